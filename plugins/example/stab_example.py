"""The smallest stab plug-in. Install it, and ``stab list`` and ``stab compare --all`` know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stab.stabilizers import Average, hyper

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Recent:
    """The iterates in memory, oldest first; before the first is due, the latest iterate alone."""

    iterates: list[dict[str, Tensor]]
    begun: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {"iterates": [dict(iterate) for iterate in self.iterates], "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iterates = [
            {k: v.clone() for k, v in iterate.items()} for iterate in state["iterates"]
        ]
        self.begun = state["begun"]


@dataclass(frozen=True)
class LAWA(Average):
    """Latest weight averaging: the mean of the last ``count`` iterates that lie ``every`` updates apart.

    ::

        avg = mean of theta_t at the last ``count`` multiples of ``every`` up to now

    Before the first multiple it is the iterate.

    Suggested: the last 5 to 10, a few hundred updates apart.
    Cost: ``count`` copies of the parameters, and one copying of them every ``every`` updates.
    Conflicts: another average (at most one).
    Source: Kaddour, "Stop wasting my time! Saving days of ImageNet and BERT training with latest weight averaging",
    arXiv 2209.14981.
    """

    count: int = hyper(
        5, "iterates in the mean", lambda v: isinstance(v, int) and v >= 1, "an integer >= 1"
    )
    every: int = hyper(
        100, "updates between iterates", lambda v: isinstance(v, int) and v >= 1, "an integer >= 1"
    )
    convex: ClassVar[bool] = True

    def init(self, params: dict[str, Tensor], total: int) -> Recent:
        return Recent([_copy(params)])

    def update(self, state: Recent, params: dict[str, Tensor], step: int) -> None:
        if step % self.every == 0:
            kept = state.iterates if state.begun else []
            state.iterates, state.begun = [*kept, _copy(params)][-self.count :], True
        elif not state.begun:
            state.iterates = [_copy(params)]

    def read(self, state: Recent) -> dict[str, Tensor]:
        return {
            name: torch.stack([i[name] for i in state.iterates]).mean(0)
            for name in state.iterates[0]
        }


def _copy(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in params.items()}
