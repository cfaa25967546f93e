"""A task: demonstrations, their environment, a policy, a one-step loss, reference returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stab.recipe import Recipe
from stab.registry import Registry, StabError
from stab.tasks.references import Progress, References, no_progress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from stab.train import Split

# More about each episode [policy][start], for reports; both keys may be missing:
# "measures": {name: number}, and "text": {"prompt": [...], "tokens": [...]}, lists of strings.
Infos = Sequence[Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Demonstrations:
    """A task's dataset, split by episode.

    Attributes:
        train, validation: to draw minibatches from.
        references: 0 and 1 of the normalised return.
        dataset: Minari id.
        dataset_sha256: of the training and validation arrays; may differ between machines in the
            last bits.
        expert_sha256: of the expert's weights, if the dataset names them.
        environment: Gymnasium id.
        remarks: sentences for whoever reads the results.
    """

    train: Split
    validation: Split
    references: References
    dataset: str
    dataset_sha256: str
    expert_sha256: str | None
    environment: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(ABC):
    """One imitation problem. Subclasses are frozen dataclasses, cheap until ``dataset`` is called.

    Attributes:
        name: as registered (given by whoever looks it up).
        dataset_id: Minari id, or None for the task's own.
        train_episodes, validation_episodes: how many episodes of the dataset are used for each.
        infinite: whether every epoch of training is made of fresh episodes, so that no sample
            repeats.
        version: raised when numbers of this task can change.
        settings: the task's other defaults than stab's, by section, such as
            ``{"train": {"policy": "gpt"}}``; if a factory makes the task, it has them too.
        metrics: names under "measures" of the infos, with one line of explanation each.
    """

    name: str
    dataset_id: str | None = None
    train_episodes: int = 20
    validation_episodes: int = 5
    infinite: bool = False
    version: int = field(default=1, init=False)
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    metrics: ClassVar[Mapping[str, str]] = {}

    @property
    def horizon(self) -> int:
        """Steps after which an episode ends at the latest."""
        return 1000

    @abstractmethod
    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        """Load the demonstrations, or collect them if the task can. Raises StabError otherwise."""

    @property
    def demonstrations_id(self) -> str:
        """Minari id of the dataset in use: ``dataset_id``, or ``stab/<task>/expert-v0``."""
        return self.dataset_id or f"stab/{self.name}/expert-v0"

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write the task's own dataset, of at least as many episodes as the task uses.

        Raises StabError if the task has nothing to collect from.
        """
        raise StabError(f"task {self.name!r} has no expert to collect demonstrations from")

    @abstractmethod
    def has_data(self) -> bool:
        """Whether the demonstrations are on disk (if not, ``dataset`` collects them, or raises)."""

    def training_split(self) -> Split:
        """Return the samples to train on: a task is a ``stab.train.Problem``."""
        return self.dataset().train

    @abstractmethod
    def policy(self, recipe: Recipe) -> nn.Module:
        """Return a freshly initialised policy, drawn from torch's global generator.

        Raises StabError when the recipe's policy string does not fit the task.
        """

    @abstractmethod
    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        """Return the scalar one-step loss of a batch from ``Split.batch``."""

    @abstractmethod
    def rollout(
        self,
        policy: nn.Module,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Infos]:
        """Roll out every policy from every start, in the closed loop.

        Args:
            policy: gives the architecture.
            stacked: its parameters and buffers with a leading axis (policies, ...).
            starts: reset seeds.
            horizons: increasing step counts; the last is where an episode ends at the latest.

        Returns:
            cumulative rewards (policies, starts, horizons), float64, not normalised, an ended
            episode keeping its sum; lengths (policies, starts), int64; and, if there is more to
            say of an episode, infos [policy][start].

        A policy's numbers do not depend, bitwise, on the other policies in the call, nor on earlier
        calls: a worker keeps one task for all its work.
        """

    def speed(self, recipe: Recipe) -> tuple[float, float] | None:
        """Return measured seconds of one micro-batch and of one environment step, for the plan.

        Takes about half a second and needs no demonstrations. None if the task cannot say.
        """
        return None


TaskFactory = Callable[..., Task]

tasks: Registry[TaskFactory] = Registry("task", "stab.tasks", callable)
