"""Policy networks: from observations, and what came before them, to actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from torch import Tensor

from stab.arguments import parse_arguments
from stab.recipe import Recipe
from stab.registry import StabError, suggest
from stab.tasks.policies.actor import Actor
from stab.tasks.policies.base import Network, Policy, PolicyArguments, Squash, Stack, output_size
from stab.tasks.policies.mlp import MLP, MLPArguments, MLPStack
from stab.tasks.policies.transformer import History, Transformer, TransformerArguments

__all__ = [
    "MLP",
    "POLICIES",
    "Actor",
    "History",
    "MLPArguments",
    "MLPStack",
    "Network",
    "Policy",
    "PolicyArguments",
    "Squash",
    "Stack",
    "Transformer",
    "TransformerArguments",
    "build",
    "output_size",
]

POLICIES: dict[str, type[PolicyArguments]] = {"mlp": MLPArguments, "transformer": TransformerArguments}


def build(recipe: Recipe, mean: Tensor, std: Tensor, action_space: gym.Space[Any]) -> Policy:
    """Return the policy that ``recipe.policy`` spells, freshly initialised.

    Raises StabError if it does not parse or does not fit the action space.
    """
    name, _, rest = recipe.policy.partition(":")
    if name not in POLICIES:
        raise StabError(f"unknown policy {name!r}.{suggest(name, POLICIES)} Known: {', '.join(POLICIES)}")
    arguments = POLICIES[name]
    output_size(action_space)  # an action space that no policy can serve is not the policy string's fault
    try:
        made = arguments(**parse_arguments(rest, arguments, f"policy {name!r}"))
        return made.build(mean, std, action_space, recipe)
    except StabError as e:
        raise StabError(f"train.policy={recipe.policy!r}: {e}") from e
