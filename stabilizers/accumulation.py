"""Large batches by gradient accumulation."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stab.arguments import hyper, integer
from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("accumulation")
@dataclass(frozen=True)
class Accumulation(Intervention):
    """Average the gradients of k micro-batches before each optimizer step.

    ::

        g = sum_{i=1..k} n_i g_i / sum_{i=1..k} n_i,   Var g = Var g_1 / k

    n_i counts the transitions of a micro-batch, or the tokens or steps that its loss is the mean
    of: g is the gradient of one batch, k times as large.
    The number of optimizer steps stays the same,
    so training draws k times the samples and takes about k times as long; the cost columns show it.

    Suggested: 2 to 16 micro-batches per step; a learning rate tuned for small batches is small for
    large ones.
    Cost: k times the samples and the training time.
    Conflicts: none; with ``data.infinite`` an epoch must hold one step's samples.
    Source: large batches as a remedy for gradient variance: arXiv 2310.11428, section 3.
    """

    steps: int = hyper(4, "micro-batches per step", integer(1))
    neutral: ClassVar[dict[str, Any]] = {"steps": 1}

    def apply(self, recipe: Recipe) -> Recipe:
        return replace(recipe, accumulation=recipe.accumulation * self.steps)
