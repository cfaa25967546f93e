"""No stabilizer: the raw iterates of the base recipe."""

from dataclasses import dataclass

from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("none")
@dataclass(frozen=True)
class NoStabilizer(Intervention):
    """No stabilizer: the raw iterates of the base recipe. The reference every other entry is compared with.

    Cost: none. Always run.
    """

    def apply(self, recipe: Recipe) -> Recipe:
        return recipe
