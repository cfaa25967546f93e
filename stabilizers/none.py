"""No stabilizer: the raw iterates of the base recipe."""

from dataclasses import dataclass

from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


@stabilizers.register("none")
@dataclass(frozen=True)
class NoStabilizer(Intervention):
    """No stabilizer: the raw iterates of the base recipe, the reference of every other entry.

    ::

        read = theta_t

    Always run.

    Suggested: nothing to set.
    Cost: none.
    Source: the unstabilized iterates of arXiv 2310.11428, figure 1.
    """

    def apply(self, recipe: Recipe) -> Recipe:
        return recipe
