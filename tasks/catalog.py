"""The built-in tasks, one record each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stab.tasks.base import Task, tasks


@dataclass(frozen=True)
class Record:
    """A locomotion task: its name, Gymnasium environment, and the episodes its own dataset holds.

    The expert is ``tasks/experts/<name>.safetensors`` with its card ``<name>.json``.
    """

    name: str
    environment: str
    episodes: int = 25

    @property
    def summary(self) -> str:
        """One line for lists."""
        return f"{self.environment}, demonstrations stab/{self.name}/expert-v0 (collected on first use)"

    def __call__(self, **settings: Any) -> Task:
        """Return the task with other than default settings (see ``Task``)."""
        from stab.tasks.locomotion import Locomotion

        return Locomotion(**{"name": self.name, "record": self, **settings})


CATALOG = [Record("hopper", "Hopper-v5")]

for record in CATALOG:
    tasks.register(record.name)(record)
