"""Averages whose memory grows with training: a power-function profile."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stab.stabilizers import Average, hyper
from stab.stabilizers.base import MeanState, clone

if TYPE_CHECKING:
    from stab.stabilizers.base import Params


@dataclass(frozen=True)
class PowerEMA(Average):
    """Power-function average: its memory is a fixed share of the run so far.

    ::

        avg_t = sum_i (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1) theta_i
        avg <- beta_t avg + (1 - beta_t) theta_t,   beta_t = (1 - 1/t)^(gamma+1)

    Iterate i weighs the integral of tau^gamma over [i - 1, i]. The two lines are the same: the factors
    beta_(i+1) ... beta_t telescope to (i/t)^(gamma+1), and 1 - beta_i leaves the difference of powers. ``sigma_rel`` is the
    profile's standard deviation as a share of t. With density (gamma + 1) tau^gamma on [0, 1], mean (gamma+1)/(gamma+2) and
    second moment (gamma+1)/(gamma+3) its square is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)),
    a cubic in gamma. gamma = 0, the mean of all iterates, has 1/sqrt(12) = 0.2887; 0.1 is gamma = 6.94. Over independent
    iterates the variance falls as 1/t for ever: (gamma+1)^2 / (2 gamma + 1) / t of the raw one.

    Suggested: sigma_rel 0.05 to 0.15.
    Cost: one copy of the parameters in float32, three once an iterate's weight is below 2^-10; one multiply-add a
    parameter an update.
    Conflicts: another average (at most one).
    Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (EDM2), arXiv 2312.02696,
    section 3.1 and appendix C (the profile and its parameter); the sums above are derived here.
    """

    sigma_rel: float = hyper(
        0.1,
        "width of the memory as a share of the run so far",
        lambda v: 0.001 <= v <= 0.288,
        "a number in [0.001, 0.288]",
    )
    convex: ClassVar[bool] = True

    @functools.cached_property
    def gamma(self) -> float:
        """The exponent: with x = gamma + 1 the largest root of sigma_rel^2 (x + 1)^2 (x + 2) = x."""
        s2 = self.sigma_rel**2
        return float(np.roots([s2, 4 * s2, 5 * s2 - 1, 2 * s2]).real.max()) - 1

    def init(self, params: Params, total: int | None) -> MeanState:
        return MeanState(clone(params), 0)

    def update(self, state: MeanState, params: Params, step: int) -> None:
        state.take(params, 1 - (1 - 1 / (state.count + 1)) ** (self.gamma + 1))
        state.count += 1

    def read(self, state: MeanState) -> Params:
        return dict(state.items())
