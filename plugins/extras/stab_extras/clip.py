"""Gradient clipping, by norm and by value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from stab.recipe import Call, Recipe
from stab.stabilizers import GradientTransform, Intervention, hyper


@dataclass(frozen=True)
class Clip(Intervention):
    """Cut gradients that are too long back to a norm, and elements that are too large to a value.

    ::

        g <- clamp(g, -value, value)   elementwise, then
        g <- g min(1, norm / |g|)      |g| over all parameters together

    Only a gradient beyond the limit is changed, so ask first how long they are (``gradient_norm2`` + ``gradient_variance``
    of leaderboard.json is the mean square norm). By value alone: ``clip:norm=inf,value=0.1``.

    Suggested: a norm of about the usual one, so that only outliers are cut; 1 where nothing is known (language models).
    Cost: one norm of the gradient an update.
    Conflicts: Adam divides by the gradient's own running scale, so a constant factor on all gradients changes nothing.
    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", arXiv 1211.5063,
    section 3.2 (by norm), computed by ``torch.nn.utils``.
    """

    norm: float = hyper(
        1.0, "largest norm of the gradient", lambda v: v > 0, "a number > 0, inf for no limit"
    )
    value: float = hyper(
        math.inf, "largest size of an element", lambda v: v > 0, "a number > 0, inf for no limit"
    )
    neutral: ClassVar[dict[str, Any]] = {"norm": math.inf}

    def apply(self, recipe: Recipe) -> Recipe:
        limits = {"ClipValue": self.value, "ClipNorm": self.norm}
        calls = [
            Call(f"stab_extras.clip:{name}", {"limit": float(limit)})
            for name, limit in limits.items()
            if limit < math.inf
        ]
        return replace(recipe, gradient_transforms=(*recipe.gradient_transforms, *calls))


@dataclass(frozen=True)
class ClipNorm(GradientTransform):
    """Scale all gradients so that their common norm is at most ``limit``."""

    limit: float

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        clip_grad_norm_(parameters, self.limit)


@dataclass(frozen=True)
class ClipValue(GradientTransform):
    """Clamp every element of the gradients to [-limit, limit]."""

    limit: float

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        clip_grad_value_(parameters, self.limit)
