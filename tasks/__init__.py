"""The registry of tasks."""

from stab.tasks import catalog
from stab.tasks.base import Curve, Demonstrations, References, Task, tasks

__all__ = ["Curve", "Demonstrations", "References", "Task", "catalog", "tasks"]
