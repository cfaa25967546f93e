"""A check, its failure, and what several checks need."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stab.stabilizers import Average, Intervention, Stabilizer

if TYPE_CHECKING:
    from stab.stabilizers.base import Params


class CheckFailed(AssertionError):
    """A check failed. The message is one line: what was expected, what came, the likely cause."""


@dataclass(frozen=True)
class Check:
    """One named check of one object.

    Attributes:
        object: what is checked, in words: a registered name, a string, a class's name.
        name: of the check.
        doc: what it asks for, in one line.
        function: does it, without arguments.
    """

    object: str
    name: str
    doc: str
    function: Callable[[], None]

    @property
    def id(self) -> str:
        """``ema-read_never_aliases``."""
        return f"{self.object}-{self.name}"

    def run(self) -> None:
        """Run the check. Raises CheckFailed, whatever the object raised."""
        try:
            self.function()
        except CheckFailed:
            raise
        except Exception as e:
            raise CheckFailed(f"{type(e).__name__} where none was expected: {e}") from e


def alone(label: str, method: Average | Intervention) -> Stabilizer:
    return (
        Stabilizer(label, average=method)
        if isinstance(method, Average)
        else Stabilizer(label, (method,))
    )


def require(ok: bool, message: str) -> None:
    if not ok:
        raise CheckFailed(message)


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        (kind, np.asarray(keys).tolist(), *rest),
        random.getstate(),
    )


def unchanged(before: tuple[Any, ...], who: str) -> None:
    for name, old, new in zip(("torch", "numpy", "random"), before, random_states(), strict=True):
        require(
            old == new,
            f"{who} moved the global random state of {name}: draw from a generator of its own",
        )
