"""The toy task: imitate a linear controller. Its closed loop is a linear system."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stab.recipe import Recipe
from stab.tasks.base import Demonstrations, Task
from stab.tasks.references import Curve, Progress, References, no_progress
from stab.train import train

if TYPE_CHECKING:
    from stab.stabilizers.base import Params


TOY = Recipe(batch_size=8, updates=6, optimizer_args={"betas": [0.9, 0.99]})
BASES = (
    TOY,
    Recipe(),
    Recipe(
        optimizer="SGD", lr=0.1, schedule="cosine", weight_decay=0.01, dropout=0.2, accumulation=2
    ),
)


@dataclass(frozen=True)
class Rows:
    """Observations (n, 3) and actions (n, 2)."""

    observations: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return len(self.observations)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.observations[chosen], self.actions[chosen]


class ToyPolicy(nn.Module):
    """Two linear layers, dropout between; ``seen`` is a running mean of the observations."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, observations: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(observations.mean(0).detach(), 0.1)
        out: Tensor = self.layers(observations)
        return out


@dataclass(frozen=True)
class Toy(Task):
    """Linear regression, 64 training rows; the closed loop is x' = 0.9 x + 0.1 (u, 0)."""

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        def rows(seed: int, n: int) -> Rows:
            rng = np.random.default_rng(seed)
            x = torch.from_numpy(rng.standard_normal((n, 3))).float()
            return Rows(
                x, x[:, :2] * -0.5 + 0.1 * torch.from_numpy(rng.standard_normal((n, 2))).float()
            )

        low, high = (Curve([value] * 20, 0.0, 1, 0, 20.0) for value in (-20.0, 0.0))
        return Demonstrations(
            rows(0, 64), rows(1, 16), References(low, high), "toy", "0", None, "toy"
        )

    def has_data(self) -> bool:
        return True

    def policy(self, recipe: Recipe) -> nn.Module:
        return ToyPolicy(recipe.dropout)

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        observations, actions = batch
        return nn.functional.mse_loss(policy(observations), actions)

    def rollout(
        self,
        policy: nn.Module,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        number = len(next(iter(stacked.values())))
        rewards = np.zeros((number, len(starts), horizons[-1]))
        actor = copy.deepcopy(policy).eval()
        for p in range(number):
            # Storage of its own: a product's last bits depend on its operands' alignment.
            actor.load_state_dict({name: value[p].clone() for name, value in stacked.items()})
            for n, seed in enumerate(starts):
                x = torch.from_numpy(np.random.default_rng(seed).standard_normal(3)).float()
                for h in range(horizons[-1]):
                    with torch.no_grad():
                        x = 0.9 * x + 0.1 * nn.functional.pad(actor(x[None])[0], (0, 1))
                    rewards[p, n, h] = -float(x.square().sum())
        returns = rewards.cumsum(-1)[..., np.array(horizons) - 1]
        return returns, np.full((number, len(starts)), horizons[-1], dtype=np.int64)


def run_toy(recipe: Recipe) -> Params:
    """Return where a run on the toy task ends."""
    *_, last = train(Toy("toy"), recipe, 0, {}, [recipe.updates])
    return last.raw


@cache
def plain_run(total: int, dropout: float) -> list[Params]:
    """Return the raw iterates of a run on the toy task with nothing attached."""
    recipe = replace(TOY, updates=total, dropout=dropout)
    return [point.raw for point in train(Toy("toy"), recipe, 0, {}, thirds(total))]


def thirds(total: int) -> range:
    return range(total // 3, total + 1, total // 3)
