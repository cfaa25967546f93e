"""The benchmarks compute what they say; how fast is not tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch

from stab import gva
from stab.recipe import Recipe
from stab.run import cells
from stab.tasks import tasks
from stab.tasks.control.episodes import make_episodes

FOLDER = Path(__file__).parent.parent / "benchmarks"
SIZES = {"updates": 20, "checkpoint_every": 5, "starts": 2, "horizon": 20}


@pytest.fixture
def load(monkeypatch):
    """Load a script of the folder, as if it were run from there."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("environment", ["Hopper-v5", "HalfCheetah-v5"])
def test_plain_gymnasium_returns_what_stabs_episodes_do(load, environment):
    spec, seeds, steps = gym.spec(environment), [50_000, 50_001, 50_007], 200
    size = gym.make(spec).action_space.shape[0]
    # Small actions: some hoppers fall early, some late.
    actions = (
        np.random.default_rng(0).uniform(-0.3, 0.3, (steps, len(seeds), size)).astype(np.float32)
    )
    episodes = make_episodes(spec)
    episodes.reset(seeds)
    totals, running = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    for together in actions:
        which = np.flatnonzero(running)
        _, rewards, terminated, truncated = episodes.step(which.tolist(), together[which])
        totals[which] += rewards
        running[which] = ~(terminated | truncated)
        if not running.any():
            break
    assert np.array_equal(load("straightforward").open_loop(spec, seeds, actions), totals)


def test_the_reference_is_the_same_twice_and_scores_as_stab_does(load, hopper):
    straightforward = load("straightforward")
    first, second = (straightforward.run("hopper", 3, **SIZES) for _ in range(2))
    window = gva.window(20, 5)
    for name in straightforward.STABILIZERS:
        returns = first[name]["returns"]
        assert returns.shape == (len(gva.curve_only(20, 5) + window), 2)
        assert np.isfinite(returns).all()
        assert np.array_equal(returns, second[name]["returns"])
        assert first[name]["gva"] == gva.gva(returns[-len(window) :])
        assert np.isfinite(first[name]["val_loss"]).all()
        assert first[name]["val_loss"].shape == returns.shape[:1]
        assert first[name]["train_seconds"] > 0
        assert first[name]["rollout_seconds"] > 0
    # Averages ride on the very iterates of ``none``; at the first checkpoint Polyak's mean holds that iterate alone.
    assert first["polyak"]["returns"][0].tolist() == first["none"]["returns"][0].tolist()
    assert not np.array_equal(first["none"]["returns"], first["ema"]["returns"])
    assert straightforward.START_SEED == cells.START_SEED


def test_the_references_policy_is_stabs(load, hopper):
    task = tasks.get("hopper")(name="hopper")
    stabs = task.policy(Recipe())
    own = load("straightforward").Policy(stabs.mean, stabs.std, stabs.action_space, dropout=0.0)
    own.layers.load_state_dict(stabs.layers.state_dict())
    observations = task.dataset().train.observations[:4]  # more, and stab's products are oneDNN's
    with torch.no_grad():
        assert torch.equal(own(observations), stabs(observations))


def test_replay_is_what_was_recorded(load, hopper):
    measure = load("measure")
    over = measure.replay("hopper", episodes=3, steps=50)
    episodes = make_episodes(over.spec)
    observations = [episodes.reset(over.seeds)]
    observations += [episodes.step([0, 1, 2], actions)[0] for actions in over.actions]
    train = tasks.get("hopper")(name="hopper").dataset().train
    for n, seed in enumerate(over.seeds):
        recorded = train.observations[train.episodes == seed][:50].numpy()
        assert np.array_equal(np.array(observations)[:50, n].astype(np.float32), recorded)


def test_bare_physics_is_the_environments(load, hopper):
    measure = load("measure")
    over = measure.replay("hopper", episodes=2, steps=30)
    bare = measure.Bare(over)
    assert len(bare()) == len(bare()) == 30
    env = gym.make(over.spec)
    for n, seed in enumerate(over.seeds):
        env.reset(seed=seed)
        for action in over.actions[:, n]:
            env.step(action)
        assert np.array_equal(bare.data[n].qpos, env.unwrapped.data.qpos)


def test_operations_of_an_update(load):
    policy = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    # Multiply and add: outputs of both layers, gradients of both weights, gradient of the second layer's inputs.
    assert load("measure").update_operations(policy, 7) == 2 * 7 * ((15 + 10) * 2 + 10)


def test_limit_of_a_run(load, tiny_run):
    found = load("limit").limit(tiny_run, rounds=1)
    assert all(value > 0 for value in found.values())
    assert found["wall"] == json.loads((tiny_run / "run.json").read_text())["seconds"]
    assert found["running"] == found["wall"]
    assert found["floor"] == (found["training_floor"] + found["rollout_floor"]) / found["cores"]
    assert found["training_floor"] <= found["plain_floor"]
    other = load("limit").limit(tiny_run, cores=1, wall=99.0, rounds=1)
    assert (other["cores"], other["wall"]) == (1, 99.0)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "straightforward",
            "--threads 1 --updates 20 --checkpoint-every 5 --starts 2 --horizon 10",
            "| dropout |",
        ),
        ("rollouts", "--task hopper --quick", "| hopper |"),
        ("updates", "--quick", "| average: all three |"),
        ("updates", "--quick", "| products |"),
    ],
)
def test_tables(load, hopper, monkeypatch, capsys, name, arguments, said):
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    load(name).main()
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["straightforward", "limit", "rollouts", "updates", "scaling", "run"]
)
def test_help(load, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        load(name).main()
    assert stopped.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_operations_of_a_language_model_are_those_that_torch_counts(load):
    from torch.utils.flop_counter import FlopCounterMode

    language = load("language")
    policy = language.build_language(
        Recipe(policy="gpt:width=64,depth=3"), language.VOCABULARY, language.CONTEXT
    )
    tokens = torch.randint(language.VOCABULARY, (language.BATCH, language.CONTEXT))
    with FlopCounterMode(display=False) as counter:
        logits = policy.double()(tokens)  # in float64 by torch's own products, which are counted
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() == pytest.approx(language.operations(policy), rel=0.02)


def test_packing_shrinks_a_dataset(load, monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    language = load("language")
    alone, packed = (language.packing(40, each) for each in (1, 20))
    assert float(packed[1]) < float(alone[1])
