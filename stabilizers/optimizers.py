"""What a recipe names: its optimizer and its gradient transforms, made."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from stab.recipe import Recipe, load_object
from stab.registry import StabError
from stab.stabilizers.base import GradientTransform

if TYPE_CHECKING:
    from torch import nn


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer.

    Raises StabError if it does not exist or fit the recipe, or its arguments contradict it.
    """
    cls = load_object(recipe.optimizer)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise StabError(
            f"train.optimizer={recipe.optimizer!r} is not a torch optimizer: expected one such as"
            " AdamW or torch.optim:SGD"
        )
    for name in ("lr", "weight_decay"):
        given = recipe.optimizer_args.get(name, getattr(recipe, name))
        if given != getattr(recipe, name):
            raise StabError(
                f"train.optimizer_args.{name}={given} contradicts"
                f" train.{name}={getattr(recipe, name)}: leave it out, and set train.{name}"
            )
    accepted = inspect.signature(cls).parameters
    args: dict[str, Any] = {"lr": recipe.lr}
    if "weight_decay" in accepted:
        args["weight_decay"] = recipe.weight_decay  # torch's defaults are not 0
    elif recipe.weight_decay:
        raise StabError(
            f"{recipe.optimizer} has no weight decay: set train.weight_decay=0 or choose another"
            " optimizer"
        )
    if "fused" in accepted:
        args["fused"] = True
    try:
        optimizer: torch.optim.Optimizer = cls(parameters, **args | recipe.optimizer_args)
    except (TypeError, ValueError, RuntimeError) as e:
        raise StabError(
            f"{recipe.optimizer} does not take train.optimizer_args={recipe.optimizer_args}: {e}"
        ) from e
    return optimizer


def make_transforms(recipe: Recipe) -> list[GradientTransform]:
    """Return the recipe's gradient transforms. Raises StabError if one cannot be made."""
    transforms = []
    for call in recipe.gradient_transforms:
        cls = load_object(call.object)
        if not (isinstance(cls, type) and issubclass(cls, GradientTransform)):
            raise StabError(
                f"{call.object!r} is not a stab.stabilizers.GradientTransform: expected a subclass"
            )
        try:
            transforms.append(cls(**call.args))
        except (TypeError, ValueError) as e:
            raise StabError(
                f"gradient transform {call.object!r} does not take {call.args}: {e}"
            ) from e
    return transforms
