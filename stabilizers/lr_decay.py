"""Learning-rate decay."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stab.arguments import choice, hyper, number
from stab.recipe import Recipe
from stab.registry import StabError
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("lr_decay")
@dataclass(frozen=True)
class LRDecay(Intervention):
    """Lower the learning rate over training, to the fraction f = ``final`` of it.

    ::

        linear      lr_t = lr (f + (1 - f) (1 - s)),   s = t / updates
        cosine      lr_t = lr (f + (1 - f) (1 + cos(pi s)) / 2)
        polynomial  lr_t = lr (f + (1 - f) (1 - s)^power)

    Suggested: linear or cosine to 0.
    Cost: none.
    Conflicts: replaces a schedule that the base recipe has; refused by ``schedule_free``.
    Source: linear and polynomial decay among the remedies of arXiv 2310.11428, section 3; cosine:
    Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """

    shape: str = hyper("linear", "shape of the decay", choice("linear", "cosine", "polynomial"))
    final: float = hyper(0.0, "fraction of lr left at the end", number("[0, 1]"))
    power: float = hyper(
        1.0, "power of the polynomial shape", number("(0, inf)"), "a number > 0 (polynomial only)"
    )
    neutral: ClassVar[dict[str, Any]] = {"final": 1.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power != 1 and self.shape != "polynomial":
            raise StabError(
                f"power={self.power} has no effect on shape={self.shape}: add shape=polynomial"
            )

    def apply(self, recipe: Recipe) -> Recipe:
        if self.final == 1:
            return recipe
        power = self.power if self.shape == "polynomial" else recipe.schedule_power
        return replace(
            recipe,
            schedule=self.shape,
            schedule_final=float(self.final),
            schedule_power=float(power),
        )
