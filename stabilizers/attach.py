"""An average on any module, in the user's own training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stab.registry import StabError
from stab.stabilizers.base import Average, averaged, clone
from stab.stabilizers.strings import parse

if TYPE_CHECKING:
    from torch import nn

    from stab.stabilizers.base import Params


class Attached:
    """An average that follows a module; made by :func:`attach`."""

    def __init__(self, module: nn.Module, average: Average, total: int) -> None:
        self.module, self.average, self.total, self.step = module, average, total, 0
        self.state = average.init(averaged(module, average), total)

    def update(self) -> None:
        """Take in the module's present parameters. Call once after each ``optimizer.step()``.

        Raises StabError when called more than ``total`` times.
        """
        if self.step == self.total:
            raise StabError(
                f"update() was called more than total={self.total} times; attach with the right"
                " total"
            )
        self.step += 1
        self.average.update(self.state, averaged(self.module, self.average), self.step)

    def read(self) -> Params:
        """Return the average's parameters as new tensors, by name."""
        return self.average.read(self.state)

    @contextmanager
    def swapped(self) -> Iterator[nn.Module]:
        """Put the average into the module within the block; afterwards the raw weights return."""
        import torch

        live = averaged(self.module, self.average)
        raw, average = clone(live), self.read()
        try:
            with torch.no_grad():
                for name, value in live.items():
                    value.copy_(average[name])
            yield self.module
        finally:
            with torch.no_grad():
                for name, value in live.items():
                    value.copy_(raw[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after an interruption."""
        return {"step": self.step, "total": self.total, "average": self.state.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict. Raises StabError when it was saved with another total."""
        if state["total"] != self.total:
            raise StabError(
                f"this state was saved with total={state['total']}, attached with"
                f" total={self.total}"
            )
        self.step = state["step"]
        self.state.load_state_dict(state["average"])


def attach(module: nn.Module, average: str, total: int) -> Attached:
    """Attach an average to a module, for use in your own training loop.

    Args:
        module: any ``torch.nn.Module``.
        average: a stabilizer string that is an average alone: ``ema``, ``ema:half_life=500``,
            ``polyak:start=0.5``, ``swa``.
        total: optimizer steps that training will take; what fractions in the string are fractions
            of.

    Raises StabError when the string is not an average (an intervention changes your recipe: do that
    yourself).

    >>> average = stab.attach(model, "ema", total=10_000)       # doctest: +SKIP
    >>> optimizer.step(); average.update()                      # doctest: +SKIP
    >>> with average.swapped(): evaluate(model)                 # doctest: +SKIP
    """
    stabilizer = parse(average)
    if stabilizer.average is None or stabilizer.interventions:
        raise StabError(
            f"{average!r} edits the recipe; attach takes an average alone (ema, polyak, swa, ...)"
        )
    if total < 1:
        raise StabError(
            f"total={total}: expected the number of optimizer steps of your training, >= 1"
        )
    return Attached(module, stabilizer.average, total)
