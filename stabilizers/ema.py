"""Exponential moving average of the iterates, computed by torch-ema while that is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stab.arguments import hyper, number
from stab.stabilizers.base import (
    MOMENT,
    Average,
    MeanState,
    clone,
    is_moment,
    need_total,
    stabilizers,
    to_updates,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stab.stabilizers.base import Params

SMALL = 2**20  # parameters, up to which torch-ema's three passes over them stay in the cache
DECAYS = ("decay", "ema_decay", "beta", "momentum")  # what other libraries call it


@dataclass
class EMAState(MeanState):
    """The average from update ``start`` (burn-in) on, and the rate that it ends with."""

    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        small = sum(value.numel() for value in self.mean.values()) <= SMALL
        self.lerp = _torch_ema if small else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rate": self.rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "ema" in state:  # as written before there was ``MeanState``: a list beside its names
            mean = dict(zip(state["names"], state["ema"]["shadow_params"], strict=True))
            state = {"mean": mean, "count": 0, "start": state["burn_in"], "rate": state["rate"]}
        super().load_state_dict(state)
        self.rate = state["rate"]


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
    Cost: one copy of the parameters in float32, three if the half-life is above 709 updates (a
    float64 sum, where float32 would lose slow drifts); one multiply-add a parameter an update.
    Conflicts: another average (at most one). With a small alpha the half-life may never come into
    force; notes say so.
    Source: burn-in and annealed rate: arXiv 2310.11428, section 2 and appendix on experimental
    details. An update is computed by ``torch_ema.ExponentialMovingAverage`` with ``decay`` =
    1 - g_t, up to 2^20 parameters and while g_t is at least 2^-10; otherwise by
    ``torch._foreach_lerp_``, which passes over memory once instead of three times.
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

    def init(self, params: Params, total: int | None) -> EMAState:
        need_total(total, half_life=self.half_life, burn_in=self.burn_in)
        burn_in = to_updates(self.burn_in, total, "burn_in")
        return EMAState(clone(params), burn_in, rate=1 - 2 ** (-1 / self._updates(total)))

    def update(self, state: EMAState, params: Params, step: int) -> None:
        if step <= state.start:
            state.restart(params)
            return
        # 1 - (1 - g), as torch-ema computes it: other last bits would be another run.
        rate = 1 - (1 - max(state.rate, (1 + step - state.start) ** -self.alpha))
        state.take(params, rate, state.lerp)

    def read(self, state: EMAState) -> Params:
        return dict(state.items())

    def items(self, state: EMAState) -> Iterator[tuple[str, Tensor]]:
        return state.items()

    def notes(self, total: int) -> list[str]:
        state = self.init({}, total)
        last = (1 + total - state.start) ** -self.alpha
        if last <= state.rate:
            return []
        why = f"alpha={self.alpha} keeps the rate above it (at the end {last:.2g})"
        if self._updates(total) >= total - state.start:
            why = (
                f"half_life={self.half_life} is {self._updates(total):.0f} updates, the average"
                f" lasts {total - state.start}"
            )
        notes = [f"the half-life never comes into force: {why}"]
        if isinstance(self.half_life, float) and self.half_life >= 0.9:
            meant = _meant(self.half_life)
            notes += [f"half_life={self.half_life} is a fraction of training;{meant}"]
        return notes

    @classmethod
    def instead(cls, key: str, value: str) -> str:
        try:
            return _meant(float(value)) if key in DECAYS else ""
        except ValueError:
            return ""

    def _updates(self, total: int | None) -> float:
        return self.half_life if isinstance(self.half_life, int) else self.half_life * (total or 0)


def _meant(decay: float) -> str:
    """Return the half-life of a decay per update, as advice; nothing if it is not in (0, 1)."""
    if not 0 < decay < 1:
        return ""
    return f" decay={decay} is half_life={max(1, round(math.log(0.5) / math.log(decay)))}."


def _torch_ema(mean: list[Tensor], params: list[Tensor], rate: float) -> None:
    from torch_ema import ExponentialMovingAverage

    # Made for one update, of nothing: names, dtypes and what is kept are ``MeanState``'s.
    ema = ExponentialMovingAverage([], decay=1 - rate, use_num_updates=False)
    ema.shadow_params = mean
    ema.update(params)
