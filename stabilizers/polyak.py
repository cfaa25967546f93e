"""Polyak-Ruppert tail averaging: the mean of every iterate from a point of training on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stab.arguments import hyper
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


@stabilizers.register("polyak")
@dataclass(frozen=True)
class Polyak(Average):
    """Mean of the tail of the iterates.

    ::

        avg = mean(theta_t0, ..., theta_t)
        avg <- avg + (theta_t - avg) / n   with n iterates since t0

    Before update t0 (``start``) it is the iterate. Over independent iterates its variance is 1 / n
    of the raw one.

    Suggested: a start of 0.25 to 0.5 of training, after the loss has fallen: what came before stays
    in the mean.
    Cost: one copy of the parameters in float32, three from 1,024 iterates on (a float64 sum, where
    float32 would lose slow drifts); one multiply-add a parameter an update.
    Conflicts: another average (at most one).
    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; tail
    averaging: Jain et al., arXiv 1610.03774.
    """

    start: int | float = hyper(0.25, "first iterate of the mean", is_moment, MOMENT)
    convex: ClassVar[bool] = True

    def init(self, params: Params, total: int | None) -> MeanState:
        return MeanState(clone(params), to_updates(self.start, total, "start"))

    def update(self, state: MeanState, params: Params, step: int) -> None:
        state.take(params, 1 / (state.count + 1))
        state.count += step >= state.start

    def read(self, state: MeanState) -> Params:
        return dict(state.items())

    def items(self, state: MeanState) -> Iterator[tuple[str, Tensor]]:
        return state.items()
