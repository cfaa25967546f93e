"""The registry of tasks."""

from typing import TYPE_CHECKING, Any

from stab.tasks import catalog
from stab.tasks.base import Demonstrations, Task, tasks
from stab.tasks.references import Curve, References

if TYPE_CHECKING:
    from stab.tasks.control.scripted import Scripted

__all__ = ["Curve", "Demonstrations", "References", "Scripted", "Task", "catalog", "tasks"]


def __getattr__(name: str) -> Any:
    if name == "Scripted":  # only when it is asked for: its module imports torch and Gymnasium
        from stab.tasks.control.scripted import Scripted

        return Scripted
    raise AttributeError(f"module 'stab.tasks' has no attribute {name!r}")
