"""stab: which training stabilizer keeps a network in a feedback loop steady?

Public names: :func:`compare`, :class:`Recipe`, :func:`attach`, :class:`StabError`,
``stab.stabilizers.Average``, ``stab.stabilizers.Intervention``, ``stab.tasks.Task``,
``stab.checks.yield_checks``. Importing ``stab`` imports neither torch nor MuJoCo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stab.comparison import compare
    from stab.recipe import Recipe
    from stab.registry import StabError
    from stab.stabilizers.attach import attach

__version__ = "0.1.0"
__all__ = ["Recipe", "StabError", "__version__", "attach", "compare"]

_LAZY = {
    "compare": "stab.comparison",
    "Recipe": "stab.recipe",
    "StabError": "stab.registry",
    "attach": "stab.stabilizers.attach",
}


def __getattr__(name: str) -> Any:
    if name in ("stabilizers", "tasks", "checks"):
        return import_module(f"stab.{name}")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'stab' has no attribute {name!r}")
