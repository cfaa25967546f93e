"""The cliff: its theory, its environment, its dataset, and a whole comparison on it."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from stab import StabError
from stab.recipe import Recipe
from stab.tasks import datasets, tasks
from stab.tasks.control.cliff import LINEAR, NOISE, Cliff, CliffEpisodes
from stab.tasks.control.cliff_env import ANGLE, GAIN, PUSH, START, advance, expert
from stab.tasks.control.scripted import episode
from stab.tasks.environments import CLIFF
from stab.tasks.environments import CLIFF_HORIZON as HORIZON
from stab.tasks.own import EPISODES

EXAMPLE = Path(__file__).parents[2] / "examples" / "cliff_horizon.py"
TINY = ("train.updates=40", "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=60", "data.train_episodes=4",
        "data.validation_episodes=2", f"train.policy='{LINEAR}'")  # fmt: skip


def cliff(**settings):
    return tasks.get("cliff")(**{"name": "cliff", **settings})


def closed_loop(radius, actions=expert):
    """A + B K as a matrix: what the dynamics do with the unit vectors."""
    unit = np.eye(2)
    return advance(unit, actions(unit), radius).T


def fall(env, gain, seed):
    """Step after which x' = A x + B gain x leaves the half-space, in the environment."""
    state, _ = env.reset(seed=seed)
    for step in range(1, HORIZON + 1):
        state, _, terminated, truncated, _ = env.step(gain @ state)
        if terminated or truncated:
            return step, terminated
    raise AssertionError("no end")


@pytest.mark.parametrize("radius", [0.98, 1.0, 1.01])
def test_the_closed_loops_eigenvalues_are_the_documented_ones(radius):
    np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(closed_loop(radius))),
                               [radius * np.exp(-1j * ANGLE), radius * np.exp(1j * ANGLE)], rtol=1e-12)  # fmt: skip
    still = closed_loop(radius, np.zeros_like)  # without actions
    np.testing.assert_allclose(abs(np.linalg.eigvals(still)), radius + PUSH * GAIN, rtol=1e-12)


def test_the_noiseless_expert_never_falls():
    env = gym.make(CLIFF)
    for seed in range(20):
        made = episode(env, lambda state, _: expert(state), seed)
        assert len(made.rewards) == sum(made.rewards) == HORIZON
        assert made.truncations[-1]
        assert not made.terminations.any()
        # Marginal stability: it circles at its first distance (actions are float32).
        np.testing.assert_allclose(
            np.hypot(*made.observations.T), np.hypot(*made.observations[0]), rtol=1e-4
        )


@pytest.mark.parametrize("growth", [0.003, 0.01, 0.03])
def test_a_wrong_gain_falls_when_linear_theory_says(growth):
    """K + (growth / PUSH) R has the closed loop (1 + growth) R: |x_t| = |x_0| (1 + growth)^t, which reaches 1 at t*.

    Since x turns, x_1 exceeds 1 within one turn (2 pi / ANGLE steps) after |x| does.
    """
    env = gym.make(CLIFF)
    gain = expert(np.eye(2)).T
    wrong = gain * (1 - growth / PUSH / GAIN)
    for seed in range(10):
        state, _ = env.reset(seed=seed)
        predicted = math.log(1 / np.hypot(*state)) / math.log(1 + growth)
        step, fell = fall(env, wrong, seed)
        turn = 2 * math.pi / ANGLE
        if predicted + turn < HORIZON:
            assert fell
            assert predicted <= step <= predicted + turn + 1
        elif predicted > HORIZON:
            assert not fell
    # The other way round the loop contracts, and nobody falls.
    assert not fall(env, gain * (1 + growth / PUSH / GAIN), 0)[1]


def test_the_environment_is_a_proper_one():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(infinity|Box).*")  # the state has no bounds
        check_env(gym.make(CLIFF, radius=1.01).unwrapped, skip_render_check=True)
    starts = [gym.make(CLIFF).reset(seed=seed)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).all()
    assert START[0] <= np.hypot(*starts[0]) <= START[1]


def test_episodes_side_by_side_are_gymnasiums_bit_for_bit():
    spec = gym.spec(CLIFF)
    side_by_side, env = CliffEpisodes(spec), gym.make(spec)
    seeds, rng = range(7), np.random.default_rng(0)
    actions = rng.normal(size=(60, 7, 2)).astype(np.float32)
    first = side_by_side.reset(seeds)
    found = [side_by_side.step(range(7), actions[t]) for t in range(60)]
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        assert observation.tobytes() == first[seed].tobytes()
        for t in range(60):
            observation, reward, terminated, _, _ = env.step(actions[t, seed])
            assert observation.tobytes() == found[t][0][seed].tobytes()
            assert (reward, terminated) == (found[t][1][seed], found[t][2][seed])
            if terminated:
                break


@pytest.mark.parametrize("string", ["mlp", LINEAR])
def test_rollouts_are_the_plain_loops_bit_for_bit(minari_root, string):
    task = cliff()
    policies = []
    for seed in range(3):
        torch.manual_seed(seed)
        policies.append(task.policy(Recipe(policy=string)).eval())
    weights = [policy.state_dict() for policy in policies]
    stacked = {name: torch.stack([w[name] for w in weights]) for name in weights[0]}
    starts, horizons = [3, 4, 5, 6], [5, 20, HORIZON]
    cumulative, lengths = task.rollout(policies[0], stacked, starts, horizons)
    assert 1 < lengths.min() < lengths.max()
    env = gym.make(CLIFF)
    for m in range(3):
        one = policies[0].stack({name: value[m : m + 1] for name, value in stacked.items()})
        for n, start in enumerate(starts):
            latest, _ = env.reset(seed=start)
            total, at = 0.0, {}
            for step in range(1, HORIZON + 1):
                # The policy acts on its whole block of rows, this start's among them, as it does in the rollout.
                rows = np.zeros((1, len(starts), 2), dtype=np.float32)
                rows[0, n] = latest
                with torch.inference_mode():
                    action = one.act(rows, [0])[0, n]
                latest, reward, terminated, truncated, _ = env.step(action)
                total += reward
                at[step] = total
                if terminated or truncated:
                    break
            assert lengths[m, n] == step
            assert cumulative[m, n].tolist() == [at.get(h, total) for h in horizons]


def test_the_dataset_replays_exactly(minari_root):
    data = cliff().dataset()
    assert (data.dataset, data.environment) == ("stab/cliff/expert-v0", CLIFF)
    assert data.references.expert.cumulative == list(range(1, HORIZON + 1))
    assert data.references.random.cumulative[-1] < HORIZON / 4
    found = datasets.load(data.dataset)
    assert found.total_episodes == EPISODES
    replayed = datasets.replay(found)
    assert replayed.exact
    assert replayed.episodes == EPISODES
    # The recorded actions are the expert's with the noise that the page names.
    train = data.train
    noise = train.actions.double().numpy() - expert(train.observations.double().numpy())
    assert noise.std() == pytest.approx(NOISE, rel=0.05)
    assert abs(noise.mean()) < 4 * NOISE / math.sqrt(noise.size)


def test_a_larger_dataset_begins_with_the_smaller(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    small = cliff(train_episodes=3, validation_episodes=1)
    small.collect(episodes=4)
    before = small.dataset().dataset_sha256
    assert not cliff().has_data()
    cliff().dataset()
    assert cliff(train_episodes=3, validation_episodes=1).dataset().dataset_sha256 == before


def test_radii_are_datasets(minari_root):
    made = Cliff("cliff", "stab/cliff-test/expert-v0", radius=0.98)
    made.collect()
    loaded = cliff(dataset_id="stab/cliff-test/expert-v0")
    assert loaded.dataset().references == made.dataset().references
    assert loaded._episodes.env.radius == loaded._env.unwrapped.radius == 0.98
    assert datasets.replay(datasets.load("stab/cliff-test/expert-v0")).exact
    with pytest.raises(StabError, match="already"):
        made.collect()
    with pytest.raises(StabError, match="infinite"):
        cliff(infinite=True)


def test_the_command_line(stab, tmp_path):
    done = stab("compare", "--task", "cliff", "-s", "ema", "--seeds", 1, "--out", "run", *TINY)
    assert done.returncode == 0, done.stderr
    (cell,) = (json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").iterdir())
    assert (cell["task"], cell["environment"], cell["horizons"][-1]) == ("cliff", CLIFF, 60)
    for command in ("prepare", "show", "verify"):
        done = stab("data", command, "cliff")
        assert done.returncode == 0, done.stderr
    assert "equal bit for bit" in done.stdout


def test_the_example_draws(minari_root, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("cliff_horizon", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    given = ["cliff_horizon.py", "--radii", "0.99", "--seeds", "1", "--runs", tmp_path / "runs"]
    overrides = [piece for piece in TINY if "policy" not in piece]
    monkeypatch.setattr(
        "sys.argv", [*map(str, given), "--out", str(tmp_path / "plot.png"), *overrides]
    )
    example.main()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
