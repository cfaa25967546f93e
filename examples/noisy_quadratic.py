"""Theory as the oracle: SGD on a noisy quadratic, in stab's training loop, against closed forms.

Prints predicted and measured stationary variances, relative to that of the raw iterates::

    python examples/noisy_quadratic.py

loss(theta; z) = |theta - z|^2 / 2 with z ~ N(0, 1) in each of D independent coordinates, SGD with
step eta and minibatches of b, every sample drawn once. So each coordinate is an autoregression of
order one,

    theta_t = a theta_(t-1) + eta xi_t,   a = 1 - eta,   Var xi = s^2 = 1 / b,

with the stationary variance V = eta^2 s^2 / (1 - a^2) = eta s^2 / (2 - eta) and the autocovariance
V a^k (Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference",
arXiv 1704.04289, section 3, for one dimension). The coordinates are the repetitions: a variance
over D of them has a relative standard error of sqrt(2 / D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stab.recipe import Recipe
from stab.stabilizers import parse
from stab.tasks import Curve, Demonstrations, References, Task
from stab.train import train

D, ETA, BATCH, UPDATES = 20_000, 0.1, 2, 240
A, S2 = 1 - ETA, 1 / BATCH
V = ETA * S2 / (2 - ETA)
STANDARD_ERROR = math.sqrt(2 / D)  # relative, of a variance over D coordinates
SGD = Recipe(optimizer="SGD", lr=ETA, batch_size=BATCH, updates=UPDATES)


class Noise:
    """Samples z, standard normal in every coordinate."""

    def __init__(self, count: int, seed: int) -> None:
        self.z = torch.from_numpy(
            np.random.default_rng(seed).standard_normal((count, D), dtype=np.float32)
        )

    def __len__(self) -> int:
        return len(self.z)

    def batch(self, indices: np.ndarray) -> Tensor:
        return self.z[indices]


class Point(nn.Module):
    """theta, beginning at the minimum."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(D))


@dataclass(frozen=True)
class Quadratic(Task):
    """The noisy quadratic; as many samples as training draws, so that none is drawn twice."""

    name: str = "quadratic"
    data: Noise = field(default_factory=lambda: Noise(SGD.samples, 0))

    def dataset(self, *_: Any) -> Demonstrations:
        flat = Curve([0.0], 0.0, 1, 0, 1.0)
        return Demonstrations(
            self.data, self.data, References(flat, flat), "none/quadratic-v0", "", None, "None-v0"
        )

    def has_data(self) -> bool:
        return True

    def policy(self, recipe: Recipe) -> nn.Module:
        return Point()

    def loss(self, policy: nn.Module, batch: Tensor) -> Tensor:
        return (policy.theta - batch).square().sum(1).mean() / 2

    def rollout(self, *_: Any) -> Any:
        raise AssertionError("nothing is rolled out")


def measured(strings: Sequence[str], recipe: Recipe = SGD, seed: int = 0) -> dict[str, float]:
    """Variance about the minimum, over coordinates, of each stabilizer's last read-out.

    All share one trajectory, so all must have ``recipe``; strings without an average read the raw
    iterate.
    """
    task = Quadratic(data=Noise(recipe.samples, seed))
    averages = {string: average for string in strings if (average := parse(string).average)}
    (point,) = train(task, recipe, 0, averages, [recipe.updates])
    read = {string: point.averages.get(string, point.raw)["theta"].double() for string in strings}
    return {string: float(theta.square().mean()) for string, theta in read.items()}


def mean_of(n: int, spacing: int = 1) -> float:
    """Variance of a mean of n stationary iterates, ``spacing`` apart.

    V / n (1 + 2 sum_k (1 - k/n) a^(k spacing))
    """
    return V / n * (1 + 2 * sum((1 - k / n) * A ** (k * spacing) for k in range(1, n)))


def ema_of(half_life: float) -> float:
    """Stationary variance of an EMA: V g / (2 - g) (1 + a c) / (1 - a c), c = 1 - g.

    It is sum_ij g^2 c^(i+j) V a^|i-j|.

    At first the average is a running mean, of which c^(180 - 1/g) is left at the end: below 1e-3
    for the longest half-life here.
    """
    g = 1 - 2 ** (-1 / half_life)
    c = 1 - g
    return V * g / (2 - g) * (1 + A * c) / (1 - A * c)


def decayed(recipe: Recipe) -> float:
    """v_t = (1 - eta_t)^2 v_(t-1) + eta_t^2 s^2 from v_0 = 0, with the schedule's eta_t."""
    variance = 0.0
    for t in range(recipe.updates):
        eta = ETA * recipe.lr_factor(t)
        variance = (1 - eta) ** 2 * variance + eta**2 * S2
    return variance


# By t = 60 the beginning is forgotten: its share of the variance is a^120 = 3e-6.
AVERAGES: dict[str, float] = {
    "polyak:start=60": mean_of(UPDATES - 60 + 1),
    "polyak:start=200": mean_of(UPDATES - 200 + 1),
    "swa:every=10,start=60": mean_of((UPDATES - 60) // 10 + 1, 10),
    "swa:every=60,start=60": mean_of(4, 60),
    **{f"ema:burn_in=60,half_life={life}": ema_of(life) for life in (1, 5, 20)},
}
DECAYED = ("lr_decay", "lr_decay:final=0.1", "lr_decay:shape=cosine")


def table() -> list[tuple[str, float, float]]:
    """Return stabilizer, predicted and measured variance."""
    found = measured(["none", *AVERAGES])
    rows = [
        ("none", V, found["none"]),
        *((s, predicted, found[s]) for s, predicted in AVERAGES.items()),
    ]
    for k in (2, 4):
        recipe = parse(f"accumulation:steps={k}").apply(SGD)
        rows.append((f"accumulation:steps={k}", V / k, measured(["none"], recipe, k)["none"]))
    for string in DECAYED:
        recipe = parse(string).apply(SGD)
        rows.append((string, decayed(recipe), measured(["none"], recipe)["none"]))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads would wait for each other on tensors as small as these
    print(
        "| stabilizer | predicted | measured | apart, standard errors |\n| :-- | --: | --: | --: |"
    )
    for string, predicted, variance in table():
        apart = (variance / predicted - 1) / STANDARD_ERROR
        print(f"| {string} | {predicted / V:.4f} | {variance / V:.4f} | {apart:+.1f} |")
