"""Exponential moving average of the iterates, computed by torch-ema."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stab.arguments import hyper, number
from stab.stabilizers.base import MOMENT, Average, is_moment, stabilizers, to_updates

if TYPE_CHECKING:
    from torch_ema import ExponentialMovingAverage

    from stab.stabilizers.base import Params


@dataclass
class EMAState:
    """torch-ema's object, its parameters in the order of ``names``, and resolved updates."""

    ema: ExponentialMovingAverage
    names: list[str]
    burn_in: int
    rate: float

    def state_dict(self) -> dict[str, Any]:
        return {
            "ema": self.ema.state_dict(),
            "names": list(self.names),
            "burn_in": self.burn_in,
            "rate": self.rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema = _torch_ema(copy.deepcopy(state["ema"]["shadow_params"]))
        self.ema.load_state_dict(state["ema"])
        self.names, self.burn_in, self.rate = list(state["names"]), state["burn_in"], state["rate"]


@stabilizers.register("ema")
@dataclass(frozen=True)
class EMA(Average):
    """Exponential moving average with burn-in and a decaying rate.

    ::

        avg <- (1 - g_t) avg + g_t theta_t
        g_t = max(g_min, (1 + t - t0)^-alpha)
        g_min = 1 - 2^(-1 / half_life)

    Until update t0 (the burn-in) the average is the iterate, bitwise. With alpha = 1 it is the
    running mean of the iterates from t0 on until the half-life is reached; a smaller alpha forgets
    faster from the start. Where (1 + total - t0)^-alpha > g_min the half-life never comes into
    force. Over independent iterates the stationary variance is g_min / (2 - g_min) of the raw one.

    Suggested: a half-life of 0.02 to 0.1 of training, burn_in after the loss has fallen, alpha 1
    (0.67: the source's).
    Cost: one copy of the parameters; one multiply-add a parameter an update.
    Conflicts: another average (at most one). With a small alpha the half-life may never come into
    force; notes say so.
    Source: burn-in and annealed rate: arXiv 2310.11428, section 2 and appendix on experimental
    details; the average
    itself: ``torch_ema.ExponentialMovingAverage`` with ``decay`` = 1 - g_t set before each update.
    """

    half_life: int | float = hyper(
        0.05,
        "updates after which an iterate's weight has halved",
        lambda v: is_moment(v) and v > 0,
        "an integer >= 1 (updates) or a fraction of training in (0, 1)",
    )
    burn_in: int | float = hyper(0.1, "the average starts here", is_moment, MOMENT)
    alpha: float = hyper(1.0, "power of the early rate", number("(0, 1]"))
    convex: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> EMAState:
        half_life = self.half_life if isinstance(self.half_life, int) else self.half_life * total
        burn_in = to_updates(self.burn_in, total, "burn_in")
        return EMAState(
            _torch_ema(params.values()), list(params), burn_in, 1 - 2 ** (-1 / half_life)
        )

    def update(self, state: EMAState, params: Params, step: int) -> None:
        if step <= state.burn_in:
            # Not a decay of 0: torch-ema's s - (s - p) differs from p in the last bits.
            state.ema = _torch_ema(params.values())
            return
        state.ema.decay = 1 - max(state.rate, (1 + step - state.burn_in) ** -self.alpha)
        state.ema.update(params.values())

    def notes(self, total: int) -> list[str]:
        state = self.init({}, total)
        last = (1 + total - state.burn_in) ** -self.alpha
        if last <= state.rate:
            return []
        return [
            f"the half-life never comes into force: alpha={self.alpha} keeps the rate above it (at"
            f" the end {last:.2g})"
        ]

    def read(self, state: EMAState) -> Params:
        return {
            name: value.clone()
            for name, value in zip(state.names, state.ema.shadow_params, strict=True)
        }


def _torch_ema(params: Any) -> ExponentialMovingAverage:
    from torch_ema import ExponentialMovingAverage

    return ExponentialMovingAverage(params, decay=0.0, use_num_updates=False)
