"""The hopper task: its dataset is an ordinary Minari dataset, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from safetensors.torch import load_file

from stab import StabError
from stab.recipe import Recipe
from stab.run import rows
from stab.run.cells import START_SEED
from stab.tasks import datasets, tasks
from stab.tasks.references import references_from


@pytest.fixture
def dataset(hopper) -> minari.MinariDataset:
    return minari.load_dataset("stab/hopper/expert-v0")


def test_minari_understands_it(dataset):
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "minari"), "show", "stab/hopper/expert-v0"],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "Hopper-v5" in shown.stdout
    assert dataset.total_episodes == 25
    assert "stab/hopper/expert-v0" in minari.list_local_datasets()


def test_recovered_environment_replays_the_episodes_bitwise(dataset):
    env = dataset.recover_environment()
    for episode, about in zip(
        dataset.iterate_episodes([0, 24]), dataset.storage.get_episode_metadata([0, 24])
    ):
        observation, _ = env.reset(seed=about["seed"])
        for t, action in enumerate(episode.actions):
            assert np.array_equal(observation, episode.observations[t])
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == episode.rewards[t]
            assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
        assert np.array_equal(observation, episode.observations[-1])


def test_references_are_those_of_the_experts_card(dataset):
    metadata = dataset.storage.metadata
    references = references_from(metadata["stab"]["references"])
    assert references.expert.episodes >= 100
    assert references.random.episodes >= 100
    assert metadata["ref_max_score"] == references.expert.at(1000) > 3000
    assert metadata["ref_min_score"] == references.random.at(1000) < 100
    assert (np.diff(references.expert.cumulative) > 0).all()
    # Other episodes of the same expert, so their mean is close to the reference.
    returns = [episode.rewards.sum() for episode in dataset]
    assert np.mean(returns) == pytest.approx(references.expert.at(1000), rel=0.01)


def test_random_reference_against_a_slow_loop(dataset):
    random = references_from(datasets.stab_metadata(dataset)["references"]).random
    env = gym.make("Hopper-v5")
    returns = []
    for seed in range(random.first_seed, random.first_seed + random.episodes):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, done = total + reward, terminated or truncated
        returns.append(total)
    assert random.at(1000) == pytest.approx(np.mean(returns), rel=1e-12)
    assert random.std == pytest.approx(np.std(returns, ddof=1), rel=1e-12)


def test_split_is_by_episode(hopper):
    data = tasks.get("hopper")().dataset()
    assert (len(data.train), len(data.validation)) == (20_000, 5_000)
    assert not set(data.train.episodes) & set(data.validation.episodes)


def test_policy_normalises_with_training_statistics(hopper):
    task = tasks.get("hopper")()
    train = task.dataset().train.observations
    policy = task.policy(Recipe())
    seen = (train - policy.mean) / policy.std
    assert torch.allclose(seen.mean(0), torch.zeros(11), atol=1e-4)
    assert torch.allclose(seen.std(0), torch.ones(11), atol=1e-3)
    assert {"mean", "std"} <= set(policy.state_dict())


def test_final_weights_rolled_out_alone_give_the_rows_of_the_run(tiny_run):
    """From outside: the deployed weights of one entry, alone, against what the run measured in company."""
    task = tasks.get("hopper")()
    found = [
        r
        for r in rows.rows(tiny_run)
        if (r["stabilizer"], r["seed"], r["update"]) == ("ema", 1, 40)
    ]
    weights = load_file(tiny_run / "weights" / "hopper-ema-seed1.safetensors")
    policy = task.policy(Recipe())
    starts = [row["start"] for row in found]
    assert starts == [START_SEED, START_SEED + 1]
    stacked = {name: value[None] for name, value in weights.items()}
    cumulative, lengths = task.rollout(policy, stacked, starts, found[0]["horizons"])
    assert cumulative[0].tolist() == [row["cumulative"] for row in found]
    assert lengths[0].tolist() == [row["length"] for row in found]


def test_rows_agree_with_stepping_the_environment_one_by_one(tiny_run):
    """Closed loop against a plain Gymnasium loop with a batch of one; chaos is short at this horizon."""
    found = next(
        r
        for r in rows.rows(tiny_run)
        if (r["stabilizer"], r["seed"], r["update"]) == ("none", 0, 40)
    )
    policy = tasks.get("hopper")().policy(Recipe(policy="mlp:width=32"))
    policy.load_state_dict(load_file(tiny_run / "weights" / "hopper-none-seed0.safetensors"))
    env = gym.make("Hopper-v5")
    observation, _ = env.reset(seed=found["start"])
    total, done, steps = 0.0, False, 0
    while not done and steps < found["horizons"][-1]:
        with torch.inference_mode():
            action = (
                policy(torch.tensor(observation, dtype=torch.float32)[None])[0].clip(-1, 1).numpy()
            )
        observation, reward, done, _, _ = env.step(action)
        total, steps = total + reward, steps + 1
    assert steps == found["length"]
    assert total == pytest.approx(found["cumulative"][-1], rel=1e-3)


@pytest.fixture
def other_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize("moment", ["rollout", "write"])
def test_interrupted_collection_leaves_nothing(other_root, monkeypatch, moment):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if moment == "rollout":
        monkeypatch.setattr("stab.tasks.control.experts.rollout", interrupt)
    else:
        monkeypatch.setattr(
            "minari.dataset.minari_storage.MinariStorage.update_metadata", interrupt
        )
    with pytest.raises(KeyboardInterrupt):
        tasks.get("hopper")().collect(episodes=2)
    assert not other_root.exists() or list(other_root.rglob("*")) == []


def test_truncated_dataset_is_one_clear_line(hopper, other_root, stab):
    shutil.copytree(hopper.parents[1], other_root / "stab")
    data = other_root / "stab" / "hopper" / "expert-v0" / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:50_000])
    done = stab(
        "compare", "-t", "hopper", "-s", "ema", env={"MINARI_DATASETS_PATH": str(other_root)}
    )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "stab/hopper/expert-v0" in line
    assert "cannot be read" in line


def make_dataset(dataset_id: str, env_id: str, bad: float = 0.0, **kwargs) -> None:
    env = gym.make(env_id, **kwargs)
    episodes = []
    for seed in range(3):
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards = [observation], [], []
        for _ in range(5):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        observations[2] = observations[2] + bad
        ends = [False] * 4 + [True]
        episodes.append(
            EpisodeBuffer(seed=seed, observations=np.array(observations), actions=np.array(actions), rewards=rewards,
                          terminations=[False] * 5, truncations=ends)
        )  # fmt: skip
    minari.create_dataset_from_buffers(dataset_id, episodes, env=env)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dataset_of_another_environment_is_refused(minari_root):
    if not datasets.exists("test/walker-v0"):
        make_dataset("test/walker-v0", "Walker2d-v5")
    with pytest.raises(StabError, match=r"recorded in Walker2d-v5, task 'hopper' is Hopper-v5"):
        tasks.get("hopper")(dataset_id="test/walker-v0").dataset()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_observations_that_are_not_finite_are_refused(minari_root):
    if not datasets.exists("test/nan-v0"):
        make_dataset("test/nan-v0", "Hopper-v5", bad=np.nan)
    with pytest.raises(StabError, match=r"observations that are not finite, first in episode 0"):
        datasets.split(datasets.load("test/nan-v0"), 2, 1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_somebody_elses_dataset_of_the_environment_is_normalised_by_the_tasks_references(
    hopper, minari_root
):
    if not datasets.exists("test/other-v0"):
        make_dataset("test/other-v0", "Hopper-v5")
    data = tasks.get("hopper")(
        dataset_id="test/other-v0", train_episodes=2, validation_episodes=1
    ).dataset()
    assert data.dataset == "test/other-v0"
    assert (len(data.train), len(data.validation)) == (10, 5)
    assert data.references == tasks.get("hopper")().dataset().references
    assert data.expert_sha256 is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_environment_with_other_arguments_is_another_environment(minari_root):
    if not datasets.exists("test/fast-v0"):
        make_dataset("test/fast-v0", "Hopper-v5", forward_reward_weight=50.0)
    with pytest.raises(
        StabError, match=r"with forward_reward_weight=50.0: its returns cannot be compared"
    ):
        tasks.get("hopper")(dataset_id="test/fast-v0").dataset()
