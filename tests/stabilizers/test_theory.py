"""Theory as the oracle: the closed forms of examples/noisy_quadratic.py against what stab's training loop gives."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stab.stabilizers import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "noisy_quadratic.py"
spec = importlib.util.spec_from_file_location("noisy_quadratic", EXAMPLE)
theory = importlib.util.module_from_spec(spec)
sys.modules["noisy_quadratic"] = theory  # dataclasses look their module up
spec.loader.exec_module(theory)
A, ETA, S2, SGD, UPDATES, V = theory.A, theory.ETA, theory.S2, theory.SGD, theory.UPDATES, theory.V
TOLERANCE = 5 * theory.STANDARD_ERROR


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """All averages ride on one trajectory."""
    return theory.measured(["none", *theory.AVERAGES])


def test_raw_iterates(found):
    assert found["none"] == pytest.approx(V, rel=TOLERANCE)


@pytest.mark.parametrize("string", theory.AVERAGES)
def test_averages(found, string):
    assert found[string] == pytest.approx(theory.AVERAGES[string], rel=TOLERANCE)


def test_averages_with_a_memory_much_longer_than_the_iterates_lose_it_all_to_length(found):
    """The limit of all of them: V (1 + a) / (1 - a) / n_eff, with n_eff = n of a mean and (2 - g) / g of an EMA."""
    g = 1 - 2 ** (-1 / 20)
    assert found["ema:burn_in=60,half_life=20"] == pytest.approx(
        V * (1 + A) / (1 - A) * g / (2 - g), rel=0.4
    )
    assert found["polyak:start=60"] == pytest.approx(
        V * (1 + A) / (1 - A) / (UPDATES - 59), rel=0.1
    )


@pytest.mark.parametrize("k", [1, 3])
def test_accumulation_divides_the_variance(k):
    """Var xi = s^2 / k, and V with it."""
    recipe = parse(f"accumulation:steps={k}").apply(SGD)
    assert theory.measured(["none"], recipe, k)["none"] == pytest.approx(V / k, rel=TOLERANCE)


@pytest.mark.parametrize("string", theory.DECAYED)
def test_decayed_steps(string):
    recipe = parse(string).apply(SGD)
    expected = theory.decayed(recipe)
    assert expected < V
    assert theory.measured(["none"], recipe)["none"] == pytest.approx(expected, rel=TOLERANCE)


def test_weight_decay_of_sgd_shortens_the_memory():
    """SGD's weight decay w adds w theta to the gradient: a = 1 - eta (1 + w), V = eta^2 s^2 / (1 - a^2)."""
    variance = theory.measured(["none"], replace(SGD, weight_decay=0.5))["none"]
    assert variance == pytest.approx(ETA**2 * S2 / (1 - (1 - ETA * 1.5) ** 2), rel=TOLERANCE)


def test_the_oracle_can_fail(found):
    """The tolerance tells a half-life of 5 from one of 6, and a tail from one a tenth longer."""
    assert found["ema:burn_in=60,half_life=5"] != pytest.approx(theory.ema_of(6), rel=TOLERANCE)
    assert found["polyak:start=60"] != pytest.approx(theory.mean_of(200), rel=TOLERANCE)


def test_the_example_prints_its_table():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 1 + len(theory.AVERAGES) + 2 + len(theory.DECAYED)
    assert all(abs(float(row[-1])) < 5 for row in rows)
