"""Sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stab.recipe import Recipe
from stab.registry import Incompatible
from stab.stabilizers import Intervention, hyper
from stab_extras.wrapper import Wrapper, wrap


@dataclass(frozen=True)
class SAM(Intervention):
    """Step by the gradient of the worst place within a distance of rho, so that flat minima are preferred.

    ::

        e = rho g(theta) / |g(theta)|
        the optimizer's step at theta, with the gradient g(theta + e)

    Both gradients are of the same minibatch (with the same dropout masks).

    Suggested: rho 0.01 to 0.1.
    Cost: two gradients an update, so about twice the time; one copy of the parameters within an update.
    Conflicts: optimizers that evaluate the loss several times a step (LBFGS).
    Source: Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving generalization",
    arXiv 2010.01412, algorithm 1 and equation 2 with p = 2.
    """

    rho: float = hyper(
        0.05, "radius of the neighbourhood", lambda v: 0 <= v < float("inf"), "a number >= 0"
    )
    neutral: ClassVar[dict[str, Any]] = {"rho": 0.0}

    def apply(self, recipe: Recipe) -> Recipe:
        if not self.rho:
            return recipe
        if recipe.optimizer == "torch.optim:LBFGS":
            raise Incompatible("sam takes one gradient a step, LBFGS evaluates the loss many times")
        return wrap(recipe, "stab_extras.sam:SAMOptimizer", rho=float(self.rho))


class SAMOptimizer(Wrapper):
    """SAM around another optimizer; ``step`` needs the closure, which it calls twice."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        inner: str,
        inner_args: dict[str, Any],
        rho: float,
    ) -> None:
        super().__init__(params, lr, weight_decay, inner, inner_args)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        moved = [p for p in self.parameters if p.grad is not None]
        here = [p.clone() for p in moved]
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # At a gradient of exactly zero there is no direction: stay.
        torch._foreach_add_(moved, gradients, alpha=self.rho / float(norm) if norm > 0 else 0.0)
        with torch.enable_grad():
            closure()
        torch._foreach_copy_(moved, here)  # back to the last bit, which subtracting would not be
        self.inner.step(lambda: loss)
        return loss
