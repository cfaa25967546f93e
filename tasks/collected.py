"""Tasks whose own dataset is collected on first use, from an expert that comes with stab."""

from __future__ import annotations

from dataclasses import dataclass

from stab.tasks import datasets
from stab.tasks.base import Demonstrations, Progress
from stab.tasks.recorded import Recorded

EPISODES = 25  # of a task's own dataset, where no more are used


@dataclass(frozen=True)
class Collected(Recorded):
    """A task with an expert. Subclasses give ``collect``; arguments as for ``Task``.

    The task's own dataset is collected when it is missing, or holds fewer episodes than are used; one that is named by
    ``dataset_id`` is taken as it is.
    """

    @property
    def demonstrations_id(self) -> str:
        return self.dataset_id or f"stab/{self.name}/expert-v0"

    def ready(self) -> bool:
        if not datasets.exists(self.demonstrations_id):
            return False
        return self.dataset_id is not None or datasets.load(self.demonstrations_id).total_episodes >= self._wanted

    def _load(self, progress: Progress) -> Demonstrations:
        if self.dataset_id is None and not self.ready():
            self.collect(progress)
        return super()._load(progress)

    def _count(self, episodes: int | None) -> int:
        """How many episodes to collect: as asked, or as many as are used, at least 25."""
        return max(EPISODES, self._wanted) if episodes is None else episodes

    @property
    def _wanted(self) -> int:
        return self.train_episodes + self.validation_episodes
