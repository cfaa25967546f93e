"""The five locomotion tasks: catalogue, expert, card, dataset and environment belong together."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from importlib import resources
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

from stab.cli.main import main
from stab.recipe import Recipe
from stab.tasks import datasets, tasks
from stab.tasks.control import experts
from stab.tasks.control.episodes import make_episodes
from stab.tasks.control.record import RECORDS
from stab.tasks.control.rollout import rollout

NAMES = ["hopper", "walker2d", "halfcheetah", "ant", "humanoid"]
SIZES = {"train_episodes": 1, "validation_episodes": 1}
TINY = ("train.policy=mlp:width=32", "train.updates=40", "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=30", "data.train_episodes=1",
        "data.validation_episodes=1", "--seeds", "1")  # fmt: skip
by_name = pytest.mark.parametrize("record", RECORDS.values(), ids=lambda record: record.name)


def read_card(name: str) -> dict:
    return json.loads((resources.files("stab.tasks.control.experts") / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def folder(hopper, tmp_path_factory) -> Path:
    """A root of its own with two episodes of each task, collected in ``cwd`` (hopper's are the session's).

    Experts act on 25 episodes at a time, of which these would use two: here on two at a time, for other last bits.
    """
    made = tmp_path_factory.mktemp("locomotion")
    shutil.copytree(hopper, made / "minari" / "stab" / "hopper" / "expert-v0")
    (made / "cwd").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made / "minari"))
        patch.setattr("stab.tasks.control.experts.ROWS", 2)
        patch.chdir(made / "cwd")
        for name in NAMES[1:]:
            patch.setattr(sys, "argv", ["stab", "data", "prepare", name, "--episodes", "2"])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert not stopped.value.code
    return made


@pytest.fixture
def root(folder, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    return folder / "minari"


def test_the_catalogue_holds_the_five():
    assert [record.name for record in RECORDS.values()] == NAMES
    assert set(NAMES) < set(tasks.names())
    for record in RECORDS.values():
        assert tasks.get(record.name)().name == record.name
        assert record.environment in tasks.get(record.name).summary


@by_name
def test_record_card_and_weights_belong_together(record):
    card = read_card(record.name)
    weights = (
        resources.files("stab.tasks.control.experts") / f"{record.name}.safetensors"
    ).read_bytes()
    assert card["task"] == record.name
    assert card["environment"] == record.environment
    assert card["algorithm"] == record.algorithm
    assert card["goal"] == record.target_return
    assert card["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert card["return_mean"] >= record.target_return or "falls_short" in card
    assert ("falls_short" in card) == (card["return_mean"] < record.target_return)


@by_name
def test_the_cards_references_are_its_measurement(record):
    card = read_card(record.name)
    horizon = gym.spec(record.environment).max_episode_steps
    for curve in (card["references"][policy] for policy in ("random", "expert")):
        assert curve["episodes"] == 100
        assert len(curve["cumulative"]) == horizon
        assert all(map(math.isfinite, curve["cumulative"]))
        assert 1 <= curve["length"] <= horizon
    expert, random = card["references"]["expert"], card["references"]["random"]
    assert round(expert["cumulative"][-1], 1) == card["return_mean"]
    assert round(expert["std"], 1) == card["return_std"]
    assert round(expert["length"], 1) == card["length_mean"]
    assert expert["cumulative"][-1] > random["cumulative"][-1] + 2000
    seeds = [
        set(range(curve["first_seed"], curve["first_seed"] + 100)) for curve in (expert, random)
    ]
    assert not seeds[0] & seeds[1]
    assert str(expert["first_seed"]) in card["evaluation"]
    found = experts.load(record)
    assert found.sha256 == card["weights_sha256"]
    assert found.references.expert.at(horizon) == expert["cumulative"][-1]


@by_name
def test_the_expert_fits_its_environment_and_ignores_what_it_was_trained_without(record):
    env = gym.make(record.environment)
    actor = experts.load(record).actor
    observation, _ = env.reset(seed=0)
    with torch.inference_mode():
        action, _ = actor.act(torch.tensor(observation, dtype=torch.float32)[None], None)
        assert env.action_space.contains(action[0])
        if record.masked:
            left_out = {f"include_{part}_in_observation": False for part in record.masked}
            kept = gym.make(record.environment, **left_out).observation_space.shape[0]
            observation[kept:] = 1e3
            other, _ = actor.act(torch.tensor(observation, dtype=torch.float32)[None], None)
            assert np.array_equal(action, other)


@by_name
def test_a_small_dataset_is_what_was_asked_for(root, record):
    dataset = minari.load_dataset(f"stab/{record.name}/expert-v0")
    metadata, card = dataset.storage.metadata, read_card(record.name)
    if record.name != "hopper":
        assert dataset.total_episodes == 2
    assert dataset.env_spec.id == record.environment
    assert metadata["stab"]["expert_sha256"] == card["weights_sha256"]
    assert metadata["ref_max_score"] == card["references"]["expert"]["cumulative"][-1]
    assert metadata["ref_min_score"] == card["references"]["random"]["cumulative"][-1]
    returns = [episode.rewards.sum() for episode in dataset.iterate_episodes([0, 1])]
    assert max(returns) > 0.5 * card["return_mean"]
    assert min(returns) > metadata["ref_min_score"]
    data = tasks.get(record.name)(**SIZES).dataset()
    assert (data.environment, data.expert_sha256) == (record.environment, card["weights_sha256"])
    assert data.references.expert.at(1000) == metadata["ref_max_score"]
    assert data.train.observations.shape[1] == dataset.observation_space.shape[0]


def test_collecting_leaves_nothing_where_it_is_run(folder):
    assert list((folder / "cwd").iterdir()) == []


def test_the_sessions_hopper_episodes_replay_bit_for_bit(hopper):
    replay = datasets.replay(datasets.load("stab/hopper/expert-v0"))
    assert replay.exact
    assert (replay.episodes, replay.steps, replay.unseeded, replay.ends) == (25, 25_000, 0, 0)


@by_name
def test_rollouts_equal_stepping_the_environment(root, record):
    """Two policies from two starts, side by side, against Gymnasium given the recorded actions: bit for bit."""
    task = tasks.get(record.name)(**SIZES)
    horizons, starts = [1, 20, 60], [50_000, 50_001]
    torch.manual_seed(0)
    policies = [task.policy(Recipe(policy="mlp:width=16")) for _ in range(2)]
    states = [policy.state_dict() for policy in policies]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    steps: dict[int, list] = {}
    spec = gym.spec(record.environment)
    cumulative, lengths = rollout(
        make_episodes(spec), policies[0], stacked, starts, horizons,
        record=lambda number, *step: steps.setdefault(number, []).append(step),
    )  # fmt: skip
    env = gym.make(record.environment)
    for number in range(4):
        policy, start = divmod(number, 2)
        observation, _ = env.reset(seed=starts[start])
        total, sums = 0.0, []
        for seen, action, reward, terminated, _, following in steps[number]:
            assert np.array_equal(seen, observation)
            observation, expected, ended, _, _ = env.step(action)
            assert reward == expected
            assert terminated == ended
            assert np.array_equal(following, observation)
            total += expected
            sums.append(total)
        assert lengths[policy, start] == len(sums)
        *_, terminated, truncated, _ = steps[number][-1]
        assert truncated == (len(sums) == 60 and not terminated)
        assert cumulative[policy, start].tolist() == [sums[min(h, len(sums)) - 1] for h in horizons]
    # The task's own rollout is the same.
    again, its_lengths = task.rollout(policies[0], stacked, starts, horizons)
    assert again.tolist() == cumulative.tolist()
    assert its_lengths.tolist() == lengths.tolist()


@pytest.mark.parametrize("name", NAMES[1:])
def test_verify_from_the_command_line(root, monkeypatch, capsys, name):
    steps = minari.load_dataset(f"stab/{name}/expert-v0").total_steps
    monkeypatch.setattr(sys, "argv", ["stab", "data", "verify", name])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    assert f"stab/{name}/expert-v0: equal bit for bit; 2 episodes, {steps} steps replayed" in out


def test_all_five_end_to_end(root, stab, tmp_path):
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*.hdf5")}
    chosen = [part for name in NAMES for part in ("-t", name)]
    done = stab("compare", *chosen, "-s", "none,ema", *TINY, "--out", "run", timeout=280)
    assert done.returncode == 0, done.stderr
    # What was prepared before, two episodes, is enough: nothing is collected.
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.hdf5")} == stamps
    assert "collecting" not in done.stderr.lower()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert max(map(len, done.stderr.splitlines())) <= 80
    leaderboard = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    assert {(e["task"], e["stabilizer"]) for e in leaderboard["entries"]} == {
        (n, s) for n in NAMES for s in ("none", "ema")
    }
    at = {(entry["task"], entry["stabilizer"]): entry for entry in leaderboard["entries"]}
    # The overview: a line an entry, a column a task, GVA and return in each.
    lines = done.stdout.splitlines()
    begin = next(n for n, line in enumerate(lines) if "GVA and return" in line)
    assert lines[begin + 1].split() == ["stabilizer", *NAMES]
    for name in ("none", "ema"):
        (line,) = (line for line in lines[begin + 2 : begin + 8] if line.split()[:1] == [name])
        shown = [float(number.strip("*")) for number in line.split()[1:]]
        assert shown == [
            round(at[task, name][key], digits)
            for task in NAMES
            for key, digits in (("gva", 3), ("return", 2))
        ]
    assert any(line.strip().startswith("amplification") for line in lines[begin:])
    for record in RECORDS.values():
        assert (
            f"{record.name} ({record.environment}): 1 seed x 3 checkpoints x 2 starts"
            in done.stdout
        )
        assert (
            f"## {record.name} ({record.environment})"
            in (tmp_path / "run" / "leaderboard.md").read_text()
        )
