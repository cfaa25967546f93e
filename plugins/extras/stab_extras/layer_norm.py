"""Layer normalization in the policy network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stab.recipe import Recipe
from stab.registry import Incompatible
from stab.stabilizers import Intervention


@dataclass(frozen=True)
class LayerNorm(Intervention):
    """Normalise each hidden layer of an MLP, for every example on its own.

    ::

        h <- w (h - mean(h)) / sqrt(var(h) + 1e-5) + b

    Mean and variance are over the layer's units, before the ReLU; w and b are learned.

    It edits the recipe's policy, ``mlp`` to ``mlp:norm=layer``: another network with another initial loss, so compare its
    return with ``none``'s first.

    Suggested: nothing to set.
    Cost: two parameters a hidden unit, one normalisation a layer.
    Conflicts: policies other than an MLP (a Transformer has its own normalisation), refused.
    Source: Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450, equation 4.
    """

    def check(self, recipe: Recipe) -> None:
        if self.apply(recipe) != recipe:
            raise Incompatible(f"layer_norm is undone by a later policy: {recipe.policy}")

    def apply(self, recipe: Recipe) -> Recipe:
        name, _, rest = recipe.policy.partition(":")
        if name != "mlp":
            raise Incompatible(f"layer_norm is for MLPs, the recipe's policy is {recipe.policy}")
        arguments = [a for a in rest.split(",") if a and not a.strip().startswith("norm=")]
        policy = f"mlp:{','.join([*arguments, 'norm=layer'])}"
        return recipe if recipe.policy == policy else replace(recipe, policy=policy)
