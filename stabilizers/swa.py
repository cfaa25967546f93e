"""Stochastic weight averaging: the mean of every k-th iterate."""

from __future__ import annotations

from collections.abc import Iterator
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
    from torch import Tensor

    from stab.stabilizers.base import Params


@stabilizers.register("swa")
@dataclass(frozen=True)
class SWA(Average):
    """Mean of every so-many-th iterate from a point of training on.

    ::

        avg = mean(theta_t0, theta_(t0+every), theta_(t0+2 every), ...)

    Before update t0 (``start``) it is the iterate. Up to 1,024 iterates the arithmetic is that of
    ``torch.optim.swa_utils.get_swa_multi_avg_fn``, to the bit; the cyclic learning rate of the
    paper is not part of it (compose with ``lr_decay``).

    Suggested: a start of 0.25 to 0.75 of training; every 10 to 100 updates, or the length of an
    epoch.
    Cost: one copy of the parameters in float32, three from 1,024 iterates on; one multiply-add a
    parameter every ``every`` updates.
    Conflicts: another average (at most one).
    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407, algorithm 1.
    """

    start: int | float = hyper(0.25, "first iterate of the mean", is_moment, MOMENT)
    every: int = hyper(100, "updates between iterates", integer(1))
    convex: ClassVar[bool] = True

    def init(self, params: Params, total: int | None) -> MeanState:
        # Update 0 is not an iterate: with start=0 the first to count is update 1.
        return MeanState(clone(params), max(1, to_updates(self.start, total, "start")))

    def update(self, state: MeanState, params: Params, step: int) -> None:
        if step < state.start:
            state.restart(params)
        elif (step - state.start) % self.every == 0:
            state.take(params, 1 / (state.count + 1))
            state.count += 1

    def read(self, state: MeanState) -> Params:
        return dict(state.items())

    def items(self, state: MeanState) -> Iterator[tuple[str, Tensor]]:
        return state.items()
