"""Any Minari dataset as a task, in the environment that it was recorded in."""

from __future__ import annotations

from dataclasses import dataclass

from stab.registry import StabError
from stab.tasks.control.task import Control


@dataclass(frozen=True)
class Recorded(Control):
    """A user's own dataset, of any registered environment (Box to Box or Discrete).

    Arguments as for ``Task``; ``dataset_id`` must be given. Reference returns are those in the
    metadata (Minari's ``ref_min_score`` and ``ref_max_score``); without them, the random
    policy is measured over 100 episodes and the dataset's own mean return is the expert.
    """

    @property
    def demonstrations_id(self) -> str:
        if self.dataset_id is None:
            raise StabError(
                f"task {self.name!r} has no dataset of its own: give --dataset, see: stab data list"
            )
        return self.dataset_id
