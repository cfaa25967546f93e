"""The registry of tasks."""

import importlib
from typing import Any

from stab.tasks import catalog
from stab.tasks.base import Demonstrations, Task, tasks
from stab.tasks.references import Curve, References

__all__ = ["Curve", "Demonstrations", "References", "Scripted", "Task", "catalog", "tasks"]


def __getattr__(name: str) -> Any:
    if name == "Scripted":  # only when it is asked for: its module imports torch and Gymnasium
        return importlib.import_module("stab.tasks.control.scripted").Scripted
    raise AttributeError(f"module 'stab.tasks' has no attribute {name!r}")
