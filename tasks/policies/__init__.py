"""Policy networks: from observations, and what came before them, to actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym
from torch import Tensor

from stab.arguments import parse_arguments
from stab.recipe import Recipe
from stab.registry import StabError, suggest
from stab.tasks.policies.actor import Actor
from stab.tasks.policies.base import Network, Policy, PolicyArguments, Squash, Stack, output_size
from stab.tasks.policies.gpt import GPT, GPTArguments, GPTStack
from stab.tasks.policies.mlp import MLP, MLPArguments, MLPStack
from stab.tasks.policies.transformer import History, Transformer, TransformerArguments

__all__ = [
    "GPT",
    "LANGUAGE",
    "MLP",
    "POLICIES",
    "Actor",
    "GPTArguments",
    "GPTStack",
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
    "build_language",
    "output_size",
]

POLICIES: dict[str, type[PolicyArguments]] = {
    "mlp": MLPArguments,
    "transformer": TransformerArguments,
}
LANGUAGE = {"gpt": GPTArguments}  # of tokens, where the others are of numbers
T = TypeVar("T")


def build(recipe: Recipe, mean: Tensor, std: Tensor, action_space: gym.Space[Any]) -> Policy:
    """Return the policy that ``recipe.policy`` spells, freshly initialised.

    Raises StabError if it does not parse or does not fit the action space.
    """
    output_size(
        action_space
    )  # an action space that no policy can serve is not the policy string's fault
    with _parsed(recipe, POLICIES) as arguments:
        return arguments.build(mean, std, action_space, recipe)


def build_language(recipe: Recipe, vocabulary: int, context: int) -> GPT:
    """Return the policy that ``recipe.policy`` spells, freshly initialised, for texts of at most ``context`` tokens.

    Raises StabError if it does not parse.
    """
    with _parsed(recipe, LANGUAGE) as arguments:
        return arguments.build(vocabulary, context, recipe)


@contextmanager
def _parsed(recipe: Recipe, known: Mapping[str, type[T]]) -> Iterator[T]:
    """Yield what the policy string says; what the block raises of it names the setting."""
    name, _, rest = recipe.policy.partition(":")
    if name not in known:
        what = (
            f"policy {name!r} is none of this task's"
            if name in POLICIES | LANGUAGE
            else f"unknown policy {name!r}"
        )
        raise StabError(
            f"train.policy={recipe.policy!r}: {what}.{suggest(name, known)} Known here: {', '.join(known)}"
        )
    try:
        yield known[name](**parse_arguments(rest, known[name], f"policy {name!r}"))
    except StabError as e:
        raise StabError(f"train.policy={recipe.policy!r}: {e}") from e
