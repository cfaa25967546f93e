"""Stochastic weight averaging: the mean of every k-th iterate, by torch.optim.swa_utils."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stab.arguments import hyper, integer
from stab.stabilizers.base import (
    MOMENT,
    Average,
    MeanState,
    clone,
    is_moment,
    stabilizers,
    to_updates,
)

if TYPE_CHECKING:
    from stab.stabilizers.base import Params


@stabilizers.register("swa")
@dataclass(frozen=True)
class SWA(Average):
    """Mean of every so-many-th iterate from a point of training on.

    ::

        avg = mean(theta_t0, theta_(t0+every), theta_(t0+2 every), ...)

    Before update t0 (``start``) it is the iterate. The average is computed by
    ``torch.optim.swa_utils.get_swa_multi_avg_fn``; the cyclic learning rate of the paper is not
    part of it (compose with ``lr_decay``).

    Suggested: a start of 0.25 to 0.75 of training; every 10 to 100 updates, or the length of an
    epoch.
    Cost: one copy of the parameters; one multiply-add a parameter every ``every`` updates.
    Conflicts: another average (at most one).
    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407, algorithm 1.
    """

    start: int | float = hyper(0.25, "first iterate of the mean", is_moment, MOMENT)
    every: int = hyper(100, "updates between iterates", integer(1))
    convex: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> MeanState:
        # Update 0 is not an iterate: with start=0 the first to count is update 1.
        return MeanState(clone(params), max(1, to_updates(self.start, total, "start")))

    def update(self, state: MeanState, params: Params, step: int) -> None:
        import torch
        from torch.optim.swa_utils import get_swa_multi_avg_fn

        if step <= state.start:
            with torch.no_grad():
                torch._foreach_copy_(list(state.mean.values()), list(params.values()))
            state.count = int(step == state.start)
        elif (step - state.start) % self.every == 0:
            average = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
            average(list(state.mean.values()), [p.detach() for p in params.values()], state.count)
            state.count += 1

    def read(self, state: MeanState) -> Params:
        return clone(state.mean)
