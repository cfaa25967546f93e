"""Polyak-Ruppert tail averaging: the mean of every iterate from a point of training on."""

from __future__ import annotations

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
    Cost: one copy of the parameters; one multiply-add a parameter an update.
    Conflicts: another average (at most one).
    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; tail
    averaging: Jain et al., arXiv 1610.03774.
    """

    start: int | float = hyper(0.25, "first iterate of the mean", is_moment, MOMENT)
    convex: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> MeanState:
        return MeanState(clone(params), to_updates(self.start, total, "start"))

    def update(self, state: MeanState, params: Params, step: int) -> None:
        import torch

        if step >= state.start:
            state.count += 1
        with torch.no_grad():
            if state.count <= 1:
                torch._foreach_copy_(list(state.mean.values()), list(params.values()))
            else:
                torch._foreach_lerp_(
                    list(state.mean.values()), list(params.values()), 1 / state.count
                )

    def read(self, state: MeanState) -> Params:
        return clone(state.mean)
