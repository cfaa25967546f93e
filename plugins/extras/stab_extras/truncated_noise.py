"""Truncated heavy-tailed gradient noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stab.recipe import Call, Recipe
from stab.stabilizers import GradientTransform, Intervention, hyper


@dataclass(frozen=True)
class TruncatedNoise(Intervention):
    """Add heavy-tailed noise to the gradient, then cut what is longer than a threshold back to it.

    ::

        g <- phi_b(g + scale R u),   phi_b(v) = v min(1, b / |v|)
        P(R > r) = r^-alpha for r >= 1,   b = threshold

    u is uniform on the unit sphere of all parameters together, so the noise has the norm ``scale`` R: never less than
    ``scale``, and of infinite variance for alpha < 2. Rare large jumps carry the iterate out of narrow minima; the cut keeps
    any single one from crossing a wide one. With SGD of step eta the update is -phi_(eta b)(eta (g + noise)), the source's;
    other optimizers are given the truncated gradient.

    Suggested: alpha 1.2 to 1.9; scale near the gradient's norm (``gradient_norm2`` of leaderboard.json is its square), a
    threshold 5 to 20 times the scale. A larger batch or a smaller lr goes with the same scale.
    Cost: one normal draw a parameter an update.
    Conflicts: with Adam a jump enters the second moment, too, and shortens the next steps.
    Source: Wang, Oh and Rhee, "Eliminating sharp minima from SGD with truncated heavy-tailed noise", arXiv 2102.04297,
    section 2 (the recursion with the truncation operator); additive isotropic noise stands for the noise of the gradient,
    which they make heavy-tailed by a Pareto factor.
    """

    alpha: float = hyper(
        1.5, "tail index of the noise's norm", lambda v: 0 < v < math.inf, "a number > 0"
    )
    scale: float = hyper(
        0.05, "smallest norm of the noise", lambda v: 0 <= v < math.inf, "a number >= 0"
    )
    threshold: float = hyper(
        0.5, "largest norm of gradient and noise", lambda v: v > 0, "a number > 0, inf for none"
    )
    neutral: ClassVar[dict[str, Any]] = {"scale": 0.0, "threshold": math.inf}

    def apply(self, recipe: Recipe) -> Recipe:
        calls = list(recipe.gradient_transforms)
        if self.scale > 0:
            args = {"alpha": float(self.alpha), "scale": float(self.scale)}
            calls.append(Call("stab_extras.truncated_noise:AddNoise", args))
        if self.threshold < math.inf:
            calls.append(
                Call("stab_extras.truncated_noise:Truncate", {"threshold": float(self.threshold)})
            )
        return replace(recipe, gradient_transforms=tuple(calls))


@dataclass(frozen=True)
class AddNoise(GradientTransform):
    """Add ``scale`` R u to the gradient; draws from torch's global generator, which stab seeds for every update."""

    alpha: float
    scale: float

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        noise = [torch.randn_like(g) for g in gradients]
        length = self.scale * float(pareto(self.alpha, (1,))) / _norm(noise)
        torch._foreach_add_(gradients, noise, alpha=length)


@dataclass(frozen=True)
class Truncate(GradientTransform):
    """Cut the gradient back to the norm ``threshold``."""

    threshold: float

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = _norm(gradients)
        if norm > self.threshold:
            torch._foreach_mul_(gradients, self.threshold / norm)


def pareto(alpha: float, shape: tuple[int, ...]) -> Tensor:
    """Return float64 draws R >= 1 with P(R > r) = r^-alpha: U^(-1/alpha) for U uniform in (0, 1]."""
    return (1 - torch.rand(shape, dtype=torch.float64)) ** (-1 / alpha)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))
