"""The one-dimensional example: its function, its update against the plug-in's own, and what it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from stab_extras.truncated_noise import AddNoise, Truncate

SCRIPT = Path(__file__).parents[1] / "examples" / "sharp_minima.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sharp_minima", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sharp_minima"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_stationary_points_are_the_constants(script: ModuleType) -> None:
    minima, maxima = script.stationary()
    np.testing.assert_allclose(minima, script.MINIMA, atol=1e-3)
    np.testing.assert_allclose(maxima, script.MAXIMA, atol=1e-3)


def test_sharp_minima_are_sharper_and_within_one_cut_update_of_a_border(script: ModuleType) -> None:
    h = 1e-4
    at = np.array(script.MINIMA)
    curvature = (script.f(at + h) - 2 * script.f(at) + script.f(at - h)) / h**2
    wide = np.array(script.WIDE)
    assert curvature[~wide].min() > 10 * curvature[wide].max()
    nearest = abs(at[:, None] - np.array(script.MAXIMA)).min(axis=1)
    assert (nearest[~wide] < script.CUT).all()
    assert (nearest[wide] > script.CUT).all()


@pytest.mark.parametrize("cut", [True, False])
def test_step_is_the_plugins_transforms_and_sgd(script: ModuleType, cut: bool) -> None:
    starts = np.linspace(-1.5, 1.5, 300)
    limit = np.array(script.CUT if cut else np.inf)
    longest = 0.0
    for seed, start in enumerate(starts):
        torch.manual_seed(seed)
        noise = script.draw_noise(1, 1)[0, 1]
        noise = noise * (500 if seed % 3 == 0 else 1)  # so that some are cut
        ours, _ = script.step(np.array([start]), noise, limit)

        x = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        h = 1e-6
        x.grad = torch.tensor(
            [(script.f(start + h) - script.f(start - h)) / (2 * h)], dtype=torch.float64
        )
        torch.manual_seed(seed)  # the same normal, then the same Pareto draw
        AddNoise(script.ALPHA, script.HEAVY * (500 if seed % 3 == 0 else 1))([x])
        if cut:
            Truncate(script.CUT / script.LR)([x])
        torch.optim.SGD([x], lr=script.LR).step()
        theirs = x.detach().clamp(-script.EDGE, script.EDGE).numpy()

        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)
        longest = max(longest, float(abs(ours - start)[0]))
    assert longest == pytest.approx(script.CUT) if cut else longest > script.CUT


def test_shares_sum_to_one_and_a_seed_gives_the_same_numbers(script: ModuleType) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (script.simulate(2_500, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shares.shape == (4, 3, 4)
    np.testing.assert_allclose(first.shares.sum(axis=2), 1)
    for name in ("shares", "moves", "path"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.path, other.path)


def test_gaussian_noise_stays_in_the_first_basin_and_is_never_cut(script: ModuleType) -> None:
    found = script.simulate(2_500, 3, 0)
    np.testing.assert_array_equal(found.path[0], found.path[2])
    np.testing.assert_array_equal(found.shares[0, :, 2], 1)
    assert not found.moves[0].any()


def test_figure_is_written_whole(script: ModuleType, tmp_path: Path) -> None:
    script.draw(script.simulate(400, 2, 0), 400, tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
