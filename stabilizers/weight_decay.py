"""Weight decay."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stab.arguments import hyper, number
from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("weight_decay")
@dataclass(frozen=True)
class WeightDecay(Intervention):
    """Shrink every parameter a little at each update.

    ::

        theta <- (1 - lr coefficient) theta,   then the optimizer's step

    So for AdamW, where it is decoupled from the gradient. Other optimizers do what their
    ``weight_decay`` does: an L2 penalty in the gradient for ``torch.optim.SGD`` (the same thing
    without momentum) and for ``torch.optim.Adam`` (another).

    Suggested: 0.01 to 0.1 for AdamW.
    Cost: none.
    Conflicts: optimizers without weight decay, refused; what the base recipe has is added to.
    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101,
    algorithm 2.
    """

    coefficient: float = hyper(0.1, "strength of the decay", number("[0, inf)"))
    neutral: ClassVar[dict[str, Any]] = {"coefficient": 0.0}

    def apply(self, recipe: Recipe) -> Recipe:
        return replace(recipe, weight_decay=recipe.weight_decay + self.coefficient)
