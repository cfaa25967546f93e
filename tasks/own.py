"""A dataset of a task's own, collected when it is missing or too small."""

from __future__ import annotations

from collections.abc import Callable

from stab.registry import StabError
from stab.tasks import datasets
from stab.tasks.base import Demonstrations, Task
from stab.tasks.references import Progress

EPISODES = 25  # of a task's own dataset, unless more are used


def wanted(task: Task) -> int:
    """Number of episodes that a task uses."""
    return task.train_episodes + task.validation_episodes


def count(task: Task, episodes: int | None) -> int:
    """Number of episodes to collect: as asked, or as many as are used, at least 25."""
    return max(EPISODES, wanted(task)) if episodes is None else episodes


def has_data(task: Task) -> bool:
    """Whether the dataset is on disk; a task's own one must have as many episodes as are used."""
    if not datasets.exists(task.demonstrations_id):
        return False
    if task.dataset_id is not None:
        return True
    return bool(datasets.load(task.demonstrations_id).total_episodes >= wanted(task))


def loaded(
    task: Task, load: Callable[[Progress], Demonstrations], progress: Progress
) -> Demonstrations:
    """Load a task's demonstrations once."""
    if "_demonstrations" not in task.__dict__:
        task.__dict__["_demonstrations"] = load(progress)
    demonstrations: Demonstrations = task.__dict__["_demonstrations"]
    return demonstrations


def check_fresh(task: Task, has_fresh_episodes: bool) -> None:
    """Raise StabError if ``data.infinite`` is asked of a task that cannot draw fresh episodes."""
    if task.infinite and not has_fresh_episodes:
        raise StabError(
            f"data.infinite needs an expert to draw fresh episodes from, task {task.name!r} has"
            " none: use a task that has, such as hopper"
        )
