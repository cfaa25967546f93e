"""Averages on any module, in the user's own training loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stab.registry import StabError
from stab.stabilizers.attached import Attached
from stab.stabilizers.base import Average
from stab.stabilizers.strings import parse, spell

if TYPE_CHECKING:
    import torch
    from torch import nn


def attach(
    module: nn.Module,
    average: str | Average | Sequence[str | Average],
    total: int | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    frozen: bool = False,
) -> Attached:
    """Attach averages to a module, for use in your own training loop.

    Averages are of the trainable parameters, matched by name, in float32 at least, whatever their
    dtype is; wrappers (``torch.compile``, ``DistributedDataParallel``) do not change names.

    Args:
        module: any ``torch.nn.Module``.
        average: a stabilizer string that is an average alone (``ema``, ``ema:half_life=500``,
            ``polyak:start=0.5``, ``swa``), such an object (``EMA(half_life=500)``), or several.
        total: optimizer steps that training will take; what fractions in the string are fractions
            of. Not needed if every setting is in updates.
        optimizer: the module's optimizer, to update the averages after each of its steps: then do
            not call ``update``. Right under gradient accumulation, and with gradient scalers that
            skip steps.
        frozen: also average parameters that do not require gradients now.

    Warns of settings that will not do what they seem to (``Average.notes``).

    Raises StabError if it is not an average (an intervention changes your recipe: do that
    yourself), a setting needs ``total``, or the module has no parameters to average.

    >>> average = stab.attach(model, "ema", total=10_000)       # doctest: +SKIP
    >>> optimizer.step(); average.update()                      # doctest: +SKIP
    >>> with average.swapped(): evaluate(model)                 # doctest: +SKIP
    """
    several = [average] if isinstance(average, str | Average) else average
    averages = dict(map(_average, several)) if isinstance(several, Sequence) else {}
    if not averages:
        raise StabError(f"{average!r}: expected an average or a list of averages")
    if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 1):
        raise StabError(
            f"total={total!r}: expected the number of optimizer steps of your training, an integer"
            " >= 1"
        )
    _check(module, optimizer)
    attached = Attached(module, averages, total, optimizer, frozen)
    for name, one in averages.items():
        for note in [] if total is None else one.notes(total):
            warnings.warn(f"{name}: {note}", stacklevel=2)
    return attached


def _average(given: object) -> tuple[str, Average]:
    """Return an average with its canonical string."""
    if isinstance(given, Average):
        return spell(given), given
    if not isinstance(given, str):
        raise StabError(
            f"{given!r} is not an average: expected a string such as 'ema', or an object such as"
            " EMA(half_life=500)"
        )
    stabilizer = parse(given)
    if stabilizer.average is None or stabilizer.interventions:
        raise StabError(
            f"{given!r} edits the recipe; attach takes an average alone (ema, polyak, swa, ...)"
        )
    return stabilizer.string, stabilizer.average


def _check(module: object, optimizer: torch.optim.Optimizer | None) -> None:
    from torch import nn

    if not isinstance(module, nn.Module):
        raise StabError(f"a {type(module).__name__} is not a torch.nn.Module")
    if optimizer is None:
        return
    if not hasattr(optimizer, "register_step_post_hook"):
        raise StabError(f"a {type(optimizer).__name__} is not an optimizer with step hooks")
    parameters = {id(parameter) for parameter in module.parameters()}
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not parameters & optimized:
        raise StabError("the optimizer has none of the module's parameters")
