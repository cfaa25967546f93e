"""Dropout."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stab.arguments import hyper, number
from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("dropout")
@dataclass(frozen=True)
class Dropout(Intervention):
    """Zero each hidden unit with probability p in training and scale the others by 1 / (1 - p).

    ::

        h <- h m / (1 - p)
        m ~ Bernoulli(1 - p)   for each unit, example and update

    Suggested: 0.05 to 0.2.
    Cost: one random draw a hidden unit and example an update.
    Conflicts: none; a policy without hidden units has nothing to drop.
    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, 2014.
    """

    p: float = hyper(0.1, "probability of dropping a unit", number("[0, 1)"))
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    def apply(self, recipe: Recipe) -> Recipe:
        return recipe if self.p == 0 else replace(recipe, dropout=self.p)
