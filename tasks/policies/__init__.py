"""Policy networks: from observations, and what came before them, to actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym
from torch import Tensor

from stab.arguments import Declared, parse_arguments
from stab.recipe import Recipe
from stab.registry import Registry, StabError, suggest
from stab.tasks.policies.actor import Actor
from stab.tasks.policies.base import Network, Policy, PolicyArguments, Squash, Stack, output_size
from stab.tasks.policies.gpt import GPT, GPTArguments, GPTStack
from stab.tasks.policies.mlp import MLP, MLPArguments, MLPStack
from stab.tasks.policies.transformer import History, Transformer, TransformerArguments

__all__ = [
    "GPT",
    "MLP",
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
    "policies",
]

# What a policy string names: arguments that build a policy of numbers (PolicyArguments) or of
# tokens (GPTArguments).
policies: Registry[type[Declared]] = Registry(
    "policy",
    "stab.policies",
    lambda obj: isinstance(obj, type) and issubclass(obj, PolicyArguments | GPTArguments),
)
policies.register("mlp")(MLPArguments)
policies.register("transformer")(TransformerArguments)
policies.register("gpt")(GPTArguments)
T = TypeVar("T", bound=Declared)


def build(recipe: Recipe, mean: Tensor, std: Tensor, action_space: gym.Space[Any]) -> Policy:
    """Return the policy that ``recipe.policy`` spells, freshly initialised.

    Raises StabError if it does not parse or does not fit the action space.
    """
    output_size(action_space)  # its fault is not the policy string's
    with _parsed(recipe, PolicyArguments) as arguments:
        return arguments.build(mean, std, action_space, recipe)


def build_language(recipe: Recipe, vocabulary: int, context: int) -> GPT:
    """Return the policy that ``recipe.policy`` spells, for texts of at most ``context`` tokens.

    Raises StabError if it does not parse.
    """
    with _parsed(recipe, GPTArguments) as arguments:
        return arguments.build(vocabulary, context, recipe)


@contextmanager
def _parsed(recipe: Recipe, kind: type[T]) -> Iterator[T]:
    """Yield the policy string's arguments; errors raised in the block name the setting."""
    name, _, rest = recipe.policy.partition(":")
    try:
        arguments = policies.get(name) if name in policies.names() else None
        if arguments is None or not issubclass(arguments, kind):
            others = (
                n
                for n in policies.names()
                if (cls := policies.peek(n)) is None or issubclass(cls, kind)
            )
            known = list(others)
            what = (
                f"policy {name!r} does not fit this task"
                if arguments
                else f"unknown policy {name!r}"
            )
            raise StabError(f"{what}.{suggest(name, known)} Known here: {', '.join(known)}")
        yield arguments(**parse_arguments(rest, arguments, f"policy {name!r}"))
    except StabError as e:
        raise StabError(f"train.policy={recipe.policy!r}: {e}") from e
