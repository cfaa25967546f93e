"""Lookahead: slow weights that follow fast ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stab.recipe import Recipe
from stab.stabilizers import Intervention, hyper
from stab_extras.wrapper import Wrapper, wrap


@dataclass(frozen=True)
class Lookahead(Intervention):
    """Let the optimizer run k steps ahead, then go a fraction alpha of the way after it and restart it there.

    ::

        every k updates:   slow <- slow + alpha (fast - slow)
                           fast <- slow

    The slow weights are the ones that are evaluated; the optimizer's own state (Adam's moments) is kept across restarts. The
    averages that ride on it see the fast weights.

    Suggested: k 5 to 10, alpha 0.5 to 0.8.
    Cost: one copy of the parameters; one multiply-add a parameter every k updates.
    Conflicts: none; a schedule acts on the inner learning rate.
    Source: Zhang, Lucas, Hinton and Ba, "Lookahead optimizer: k steps forward, 1 step back", arXiv 1907.08610, algorithm 1.
    """

    k: int = hyper(
        5, "updates between restarts", lambda v: isinstance(v, int) and v >= 1, "an integer >= 1"
    )
    alpha: float = hyper(
        0.5, "step of the slow weights", lambda v: 0 < v <= 1, "a number in (0, 1]"
    )
    neutral: ClassVar[dict[str, Any]] = {"alpha": 1.0}

    def apply(self, recipe: Recipe) -> Recipe:
        if self.alpha == 1:
            return recipe
        return wrap(
            recipe, "stab_extras.lookahead:LookaheadOptimizer", k=self.k, alpha=float(self.alpha)
        )


class LookaheadOptimizer(Wrapper):
    """Lookahead around another optimizer; ``eval()`` puts the slow weights into the module, ``train()`` the fast ones."""

    def __init__(  # as Wrapper's, and its own two
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        inner: str,
        inner_args: dict[str, Any],
        k: int,
        alpha: float,
    ) -> None:
        super().__init__(params, lr, weight_decay, inner, inner_args)
        self.k, self.alpha = k, alpha
        for p in self.parameters:
            self.state[p] = {"slow": p.detach().clone(), "step": 0}
        self.fast: list[Tensor] | None = None  # set aside while the slow weights are in the module

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = self.inner.step(closure)
        fast = self.parameters
        for p in fast:
            self.state[p]["step"] += 1
        if self.state[fast[0]]["step"] % self.k == 0:
            slow = [self.state[p]["slow"] for p in fast]
            torch._foreach_lerp_(slow, fast, self.alpha)
            torch._foreach_copy_(fast, slow)
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        super().eval()
        if self.fast is None:
            self.fast = [p.clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, [self.state[p]["slow"] for p in self.parameters])

    @torch.no_grad()
    def train(self) -> None:
        if self.fast is not None:
            torch._foreach_copy_(self.parameters, self.fast)
            self.fast = None
        super().train()
