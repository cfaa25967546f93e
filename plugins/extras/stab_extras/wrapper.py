"""What lookahead and sam share: an optimizer around the recipe's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stab.recipe import Recipe
from stab.stabilizers.optimizers import make_optimizer


class Wrapper(torch.optim.Optimizer):
    """Another optimizer, and what a subclass's ``step`` does around its steps. Parameter groups are the same objects.

    Args:
        params: parameters.
        lr, weight_decay: passed on.
        inner: the other optimizer as a recipe names it.
        inner_args: its further keyword arguments.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        inner: str,
        inner_args: dict[str, Any],
    ) -> None:
        recipe = Recipe(
            optimizer=inner, optimizer_args=inner_args, lr=lr, weight_decay=weight_decay
        )
        self.inner = make_optimizer(recipe, list(params))
        super().__init__(self.inner.param_groups, {})

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def train(self) -> None:
        self._switch("train")

    def eval(self) -> None:
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        switch: Callable[[], Any] | None = getattr(self.inner, mode, None)
        if switch:
            switch()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        self.inner.load_state_dict(own.pop("inner"))
        super().load_state_dict(own)
        self.inner.param_groups = self.param_groups


def wrap(recipe: Recipe, optimizer: str, **args: Any) -> Recipe:
    """Return the recipe with its optimizer inside another one (``module:Object``)."""
    inner = {"inner": recipe.optimizer, "inner_args": recipe.optimizer_args}
    return replace(recipe, optimizer=optimizer, optimizer_args={**inner, **args})
