"""Theory as the oracle: SGD on a noisy quadratic, through the real training loop, against closed forms.

loss(theta; z) = |theta - z|^2 / 2 with z ~ N(0, 1) in each of D independent coordinates, SGD with step eta and minibatches
of b, every sample drawn once. So each coordinate is an autoregression of order one,

    theta_t = a theta_(t-1) + eta xi_t,   a = 1 - eta,   Var xi = s^2 = 1 / b,

with the stationary variance V = eta^2 s^2 / (1 - a^2) = eta s^2 / (2 - eta) and the autocovariance V a^k (Mandt, Hoffman and
Blei, "Stochastic gradient descent as approximate Bayesian inference", arXiv 1704.04289, section 3, for one dimension). The
coordinates are the repetitions: a variance over D of them has a relative standard error of sqrt(2 / D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from stab.recipe import Recipe
from stab.stabilizers import parse
from stab.tasks.base import Curve, Demonstrations, References, Task, no_progress
from stab.train import train

D, ETA, BATCH, UPDATES = 20_000, 0.1, 2, 240
A, S2 = 1 - ETA, 1 / BATCH
V = ETA * S2 / (2 - ETA)
TOLERANCE = 5 * math.sqrt(2 / D)  # five standard errors
FLAT = Curve([0.0], 0.0, 1, 0, 1.0)
SGD = Recipe(optimizer="SGD", lr=ETA, batch_size=BATCH, updates=UPDATES)


class Noise:
    """Samples z, standard normal in every coordinate."""

    def __init__(self, count: int, seed: int) -> None:
        self.z = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, D), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.z)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
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

    def dataset(self, progress=no_progress):
        return Demonstrations(self.data, self.data, References(FLAT, FLAT), "test/quadratic-v0", "", None, "None-v0")

    def ready(self):
        return True

    def policy(self, recipe):
        return Point()

    def loss(self, policy, batch):
        return (policy.theta - batch).square().sum(1).mean() / 2

    def rollout(self, *_):
        raise AssertionError("nothing is rolled out")


def variances(strings: list[str], recipe: Recipe = SGD, data: Noise | None = None) -> dict[str, float]:
    """Variance over the coordinates, about the minimum, of the last read-out of each stabilizer of one trajectory."""
    task = Quadratic(data=data) if data else Quadratic()
    averages = {string: parse(string).average for string in strings if parse(string).average}
    (point,) = train(task, recipe, 0, averages, [recipe.updates])
    read = {string: point.averages.get(string, point.raw)["theta"].double() for string in strings}
    return {string: float(theta.square().mean()) for string, theta in read.items()}


def mean_of(n: int, spacing: int = 1) -> float:
    """Variance of a mean of n stationary iterates, ``spacing`` apart: V / n (1 + 2 sum_k (1 - k/n) a^(k spacing))."""
    return V / n * (1 + 2 * sum((1 - k / n) * A ** (k * spacing) for k in range(1, n)))


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """All averages ride on one trajectory."""
    return variances(["none", *AVERAGES])


# By t = 60 the beginning is forgotten: its share of the variance is a^120 = 3e-6.
EMA = {f"ema:burn_in=60,half_life={life}": life for life in (1, 5, 20)}
AVERAGES: dict[str, float] = {
    "polyak:start=60": mean_of(UPDATES - 60 + 1),
    "polyak:start=200": mean_of(UPDATES - 200 + 1),
    "swa:every=10,start=60": mean_of((UPDATES - 60) // 10 + 1, 10),
    "swa:every=60,start=60": mean_of(4, 60),
}
for name, life in EMA.items():
    # Var = V g / (2 - g) (1 + a c) / (1 - a c), c = 1 - g: from sum_ij g^2 c^(i+j) V a^|i-j|. Before the half-life comes
    # into force the average is a running mean, of which c^(180 - 1/g) is left: below 1e-3 for the longest half-life here.
    g = 1 - 2 ** (-1 / life)
    c = 1 - g
    AVERAGES[name] = V * g / (2 - g) * (1 + A * c) / (1 - A * c)


def test_raw_iterates(found):
    assert found["none"] == pytest.approx(V, rel=TOLERANCE)


@pytest.mark.parametrize("string", AVERAGES)
def test_averages(found, string):
    assert found[string] == pytest.approx(AVERAGES[string], rel=TOLERANCE)


def test_averages_with_a_memory_much_longer_than_the_iterates_lose_it_all_to_length(found):
    """The limit of all of them: V (1 + a) / (1 - a) / n_eff, with n_eff = n of a mean and (2 - g) / g of an EMA."""
    g = 1 - 2 ** (-1 / 20)
    assert found["ema:burn_in=60,half_life=20"] == pytest.approx(V * (1 + A) / (1 - A) * g / (2 - g), rel=0.4)
    assert found["polyak:start=60"] == pytest.approx(V * (1 + A) / (1 - A) / (UPDATES - 59), rel=0.1)


@pytest.mark.parametrize("k", [1, 3])
def test_accumulation_divides_the_variance(k):
    """Var xi = s^2 / k, and V with it."""
    recipe = parse(f"accumulation:steps={k}").apply(SGD)
    (variance,) = variances(["none"], recipe, Noise(recipe.samples, k)).values()
    assert variance == pytest.approx(V / k, rel=TOLERANCE)


@pytest.mark.parametrize("string", ["lr_decay", "lr_decay:final=0.1", "lr_decay:shape=cosine"])
def test_decayed_steps(string):
    """v_t = (1 - eta_t)^2 v_(t-1) + eta_t^2 s^2 from v_0 = 0, exactly, with the schedule's eta_t."""
    recipe = parse(string).apply(SGD)
    (variance,) = variances(["none"], recipe).values()
    expected = 0.0
    for t in range(UPDATES):
        eta = ETA * recipe.lr_factor(t)
        expected = (1 - eta) ** 2 * expected + eta**2 * S2
    assert expected < V
    assert variance == pytest.approx(expected, rel=TOLERANCE)


def test_weight_decay_of_sgd_shortens_the_memory():
    """SGD's weight decay w adds w theta to the gradient: a = 1 - eta (1 + w), V = eta^2 s^2 / (1 - a^2)."""
    recipe = replace(SGD, weight_decay=0.5)
    (variance,) = variances(["none"], recipe).values()
    assert variance == pytest.approx(ETA**2 * S2 / (1 - (1 - ETA * 1.5) ** 2), rel=TOLERANCE)


def test_the_oracle_can_fail(found):
    """The tolerance tells a half-life of 5 from one of 6, and a tail from one a tenth longer."""
    g = 1 - 2 ** (-1 / 6)
    other = V * g / (2 - g) * (1 + A * (1 - g)) / (1 - A * (1 - g))
    assert found["ema:burn_in=60,half_life=5"] != pytest.approx(other, rel=TOLERANCE)
    assert found["polyak:start=60"] != pytest.approx(mean_of(200), rel=TOLERANCE)
