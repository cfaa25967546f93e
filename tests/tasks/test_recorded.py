"""One's own datasets: the task they belong to, their references, and what cannot be a task."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from stab import StabError
from stab.recipe import Recipe
from stab.run.cells import finish, make_job
from stab.run.execute import prepare
from stab.run.plan import make_config, make_plan
from stab.run.worker import work
from stab.tasks import datasets, tasks
from stab.tasks.catalog import task_for
from stab.tasks.references import RANDOM_SEED, random_returns
from stab.train import train

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Minari's, about authors and permalinks
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_datasets.py"
EPISODES = 6
SIZES = {"train_episodes": 4, "validation_episodes": 2}
TINY = ("train.updates=40", "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=60", "train.batch_size=32",
        "data.train_episodes=4", "data.validation_episodes=2")  # fmt: skip


def load_example():
    spec = importlib.util.spec_from_file_location("own_datasets", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    """Measured references go here, not into the developer's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module", autouse=True)
def own(minari_root) -> Path:
    """The example's datasets in the session's root."""
    example.record("my/pendulum-v0", "Pendulum-v1", example.pendulum, episodes=EPISODES)
    example.record("my/cartpole-v0", "CartPole-v1", example.cartpole, episodes=EPISODES)
    return minari_root


@pytest.fixture
def own_root(tmp_path, monkeypatch) -> Path:
    """A root and a cache of one's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "minari"


def task(dataset_id: str, **settings):
    return tasks.get("recorded")(dataset_id=dataset_id, **{**SIZES, **settings})


def falling(observation):
    """A cart that follows the pole and falls after a while, each time after another one."""
    return int(observation[2] > 0)


def short(dataset_id: str = "my/falling-v0", **metadata: object) -> list[np.ndarray]:
    """Record episodes that end by themselves; return the rewards of each."""
    example.record(dataset_id, "CartPole-v1", falling, episodes=EPISODES)
    tell(dataset_id, **metadata)
    return [np.asarray(episode.rewards) for episode in minari.load_dataset(dataset_id)]


def tell(dataset_id: str, **metadata: object) -> None:
    """Put something into a dataset's metadata."""
    path = datasets.root() / dataset_id / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))


def no_rollouts(*args, **kwargs):
    raise AssertionError("rolls out")


def test_pendulum_from_the_command_line(stab, tmp_path):
    done = stab(
        "compare", "--dataset", "my/pendulum-v0", "-s", "ema", "--seeds", 1, "--out", "run", *TINY
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert "recorded (Pendulum-v1, my/pendulum-v0)" in said
    assert "count as 0 and 1; measured: random policy, dataset's mean" in said
    (cell,) = (json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").iterdir())
    assert (cell["task"], cell["environment"], cell["dataset"]) == (
        "recorded",
        "Pendulum-v1",
        "my/pendulum-v0",
    )
    assert {row["stabilizer"] for row in cell["rows"]} == {"none", "ema"}
    assert cell["horizons"][-1] == 60
    assert all(-60 * 16.3 <= row["cumulative"][-1] < 0 for row in cell["rows"])
    assert "infinite" not in done.stderr


def run_here(run, *overrides, stabilizers="none", **settings):
    """Run a comparison's cells in this process; return their bytes by name."""
    config, _ = make_config(
        stabilizers=stabilizers, seeds=1, overrides=[*TINY, *overrides], **settings
    )
    plan = make_plan(config)
    prepare(plan)
    for cell in plan.cells:
        parts = [make_job(cell, config, run)]
        for job in parts:  # it grows
            work(json.loads(json.dumps(job)), lambda phase, fraction: None, parts.append)
        finish(cell, run)
    return {path.name: path.read_bytes() for path in (run / "cells").iterdir()}


def test_cartpole_twice_gives_the_same_bytes(own_root, stab, tmp_path):
    """Once from the command line, which says whose scores are 0 and 1, and once here."""
    example.record("my/cartpole-v0", "CartPole-v1", falling, episodes=EPISODES)
    tell("my/cartpole-v0", ref_min_score=2.0, ref_max_score=402.0)
    done = stab(
        "compare", "--dataset", "my/cartpole-v0", "-s", "ema", "--seeds", 1, "--out", "run", *TINY
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "recorded (CartPole-v1, my/cartpole-v0)" in said
    assert "count as 0 and 1; dataset's metadata." in said
    first = {path.name: path.read_bytes() for path in (tmp_path / "run" / "cells").iterdir()}
    assert len(first) == 1
    assert first == run_here(tmp_path / "again", dataset="my/cartpole-v0", stabilizers="ema")
    (cell,) = map(json.loads, first.values())
    assert {row["length"] for row in cell["rows"]} <= set(range(1, 61))
    assert all(
        row["cumulative"][-1] == row["length"] for row in cell["rows"]
    )  # a reward of 1 a step


@pytest.mark.parametrize("policy", ["transformer:context=4", "mlp:norm=layer,likelihood=gaussian"])
def test_other_policies_on_pendulum(policy, tmp_path):
    found = [
        run_here(tmp_path / out, "eval.starts=2", dataset="my/pendulum-v0", policy=policy)
        for out in "ab"
    ]
    assert found[0] == found[1]
    (cell,) = map(json.loads, found[0].values())
    assert cell["recipe"]["policy"] == policy
    assert cell["rows"]
    for row in cell["rows"]:
        assert row["length"] == 60
        assert -60 * 16.3 <= row["cumulative"][-1] < 0
    assert all(np.isfinite(point["val_loss"]) for point in cell["checkpoints"]["none"])


def test_rows_of_cartpole_equal_stepping_it_one_by_one():
    found = task("my/cartpole-v0")
    policy = found.policy(Recipe())
    stacked = {name: value[None] for name, value in policy.state_dict().items()}
    cumulative, lengths = found.rollout(policy, stacked, [3, 4], [5, 500])
    env = gym.make("CartPole-v1")
    for n, start in enumerate((3, 4)):
        observation, _ = env.reset(seed=start)
        done, steps = False, 0
        while not done:
            with torch.inference_mode():
                action = int(policy(torch.tensor(observation)[None])[0].argmax())
            observation, _, terminated, truncated, _ = env.step(action)
            done, steps = terminated or truncated, steps + 1
        assert lengths[0, n] == steps == cumulative[0, n, 1]
        assert cumulative[0, n, 0] == min(5, steps)


def test_the_horizon_is_the_environments():
    assert task("my/pendulum-v0").horizon == 200
    assert task("my/cartpole-v0").horizon == 500


def test_the_task_is_chosen_by_the_environment(own_root):
    example.record("my/hopper-v0", "Hopper-v5", lambda _: np.zeros(3, dtype=np.float32), episodes=2)
    example.record("my/cartpole-v0", "CartPole-v1", falling, episodes=2)
    for dataset_id, name in (("my/hopper-v0", "hopper"), ("my/cartpole-v0", "recorded")):
        assert task_for(dataset_id) == name
        assert make_config(dataset=dataset_id, stabilizers="ema")[0].tasks == (name,)
        assert make_config(overrides=[f"data.dataset={dataset_id}"], stabilizers="ema")[
            0
        ].tasks == (name,)
    assert make_config("recorded", dataset="my/hopper-v0", stabilizers="ema")[0].tasks == (
        "recorded",
    )
    with pytest.raises(StabError, match="my/nowhere-v0"):
        make_config(dataset="my/nowhere-v0", stabilizers="ema")


def test_the_random_reference_against_a_slow_loop():
    random = task("my/cartpole-v0").dataset().references.random
    env = gym.make("CartPole-v1")
    lengths = []
    for seed in range(random.first_seed, random.first_seed + random.episodes):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        lengths.append(0)
        done = False
        while not done:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            lengths[-1] += 1
            done = terminated or truncated
    assert random.episodes == 100
    assert random.length == np.mean(lengths)
    for horizon in (1, 10, 25, 500):  # a reward of 1 a step
        assert random.at(horizon) == pytest.approx(np.minimum(lengths, horizon).mean(), rel=1e-12)
    assert random.std == pytest.approx(np.std(lengths, ddof=1), rel=1e-12)


def test_the_expert_reference_is_the_mean_over_all_episodes(own_root):
    rewards = short()
    lengths = [len(r) for r in rewards]
    assert len(set(lengths)) > 2
    expert = (
        task("my/falling-v0", train_episodes=2, validation_episodes=1).dataset().references.expert
    )
    assert expert.episodes == EPISODES  # all, not those in use
    assert expert.length == np.mean(lengths)
    for horizon in (1, min(lengths) + 1, 500):
        assert expert.at(horizon) == pytest.approx(
            np.mean([r[:horizon].sum() for r in rewards]), rel=1e-12
        )


def test_measured_references_of_pendulum_by_hand():
    references = task("my/pendulum-v0").dataset().references
    rewards = np.array(
        [episode.rewards for episode in minari.load_dataset("my/pendulum-v0")], dtype=np.float64
    )
    assert rewards.shape == (EPISODES, 200)
    assert references.source == "measured: random policy, dataset's mean"
    for horizon in (1, 17, 200):
        low, high = references.random.at(horizon), references.expert.at(horizon)
        assert high == pytest.approx(rewards[:, :horizon].sum(1).mean(), rel=1e-12)
        (J,) = (
            references.normalise(np.array([(low + high) / 2]), [horizon]) if high > low else (0.5,)
        )
        assert pytest.approx(0.5) == J


def test_scores_in_the_metadata_win(own_root):
    rewards = short(ref_min_score=2.0, ref_max_score=402.0)
    measured = np.mean([r.sum() for r in rewards])
    references = task("my/falling-v0").dataset().references
    assert references.source == "dataset's metadata"
    J = references.normalise(np.array([[2.0], [402.0], [102.0]]), [500])
    assert J.ravel().tolist() == [0.0, 1.0, 0.25]
    # At a shorter horizon: what was measured, and the part of the correction that is due by then.
    at_ten = np.mean([r[:10].sum() for r in rewards]) + (402.0 - measured) * 10 / 500
    assert references.expert.at(10) == pytest.approx(at_ten, rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (5.0, 1.0)])
def test_scores_that_do_not_make_sense_are_refused(own_root, low, high):
    short(ref_min_score=low, ref_max_score=high)
    with pytest.raises(
        StabError, match=r"my/falling-v0': ref_max_score \(.*\) is not above ref_min_score"
    ):
        task("my/falling-v0").dataset()


@pytest.mark.parametrize("bad", ["'500'", "float('nan')", "float('inf')", "[500.0]", "True"])
@pytest.mark.parametrize("key", ["ref_min_score", "ref_max_score"])
def test_scores_that_are_not_numbers_are_named_with_dataset_and_key(own_root, key, bad):
    short(**({"ref_min_score": 1.0, "ref_max_score": 500.0} | {key: eval(bad)}))
    with pytest.raises(StabError, match="is not a finite number") as refused:
        task("my/falling-v0").dataset()
    said = str(refused.value)
    assert said.startswith(f"dataset 'my/falling-v0': {key}={eval(bad)!r} in its metadata")


@pytest.mark.parametrize("bad", [None, [], [float("nan")], ["1"], [float("inf")], "12"])
def test_references_of_stabs_own_form_are_checked_like_them(own_root, bad):
    curve = {"cumulative": [1.0], "std": 0.0, "episodes": 1, "first_seed": 0, "length": 1.0}
    stated = {"random": curve, "expert": curve | {"cumulative": bad}}
    short(stab={"references": stated})
    with pytest.raises(
        StabError, match=r"dataset 'my/falling-v0', stab.references in its metadata"
    ):
        task("my/falling-v0").dataset()


def stored(dataset_id: str, env_id: str, episodes: list[EpisodeBuffer], **metadata: object) -> str:
    """Write a dataset of these episodes."""
    minari.create_dataset_from_buffers(dataset_id, episodes, env=gym.make(env_id))
    tell(dataset_id, **metadata)
    return dataset_id


def balanced(steps: int, seed: int = 0, flagged: bool = False, **changes: object) -> EpisodeBuffer:
    """A recording of CartPole of so many steps, in which the pole does not fall."""
    env = gym.make("CartPole-v1")
    seen, actions = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        actions.append(example.cartpole(seen[-1]))
        observation, _, terminated, _, _ = env.step(actions[-1])
        assert not terminated
        seen.append(observation)
    content = {
        "seed": seed,
        "observations": np.array(seen),
        "actions": np.array(actions),
        "rewards": [1.0] * steps,
        "terminations": [False] * steps,
        "truncations": [False] * (steps - 1) + [flagged],
    }
    return EpisodeBuffer(**content | changes)


@pytest.mark.parametrize("flagged", [False, True])  # recorders that stop set the flag, or do not
def test_recordings_that_were_cut_are_no_expert_beyond_the_cut(own_root, flagged):
    lengths = (40, 30, 50, 45, 60, 35)
    episodes = [balanced(n, seed, flagged) for seed, n in enumerate(lengths)]
    found = task(stored("my/cut-v0", "CartPole-v1", episodes))
    references = found.dataset().references
    # 30 steps are known of all: the scale is right there, and beyond there is none.
    assert (references.known, references.expert.at(30), len(references.expert.cumulative)) == (
        30,
        30.0,
        30,
    )
    env = gym.make("CartPole-v1")
    random, _ = random_returns(env, range(RANDOM_SEED, RANDOM_SEED + 100), 30)
    assert references.random.at(30) == random[:, -1].mean()
    assert references.random.std == random[:, -1].std(ddof=1)
    assert references.normalise(np.array([30.0]), [30]) == 1
    for _ in range(2):  # measured, and from the cache
        with pytest.raises(StabError, match=r"in 31 steps .* cut after 30, .* eval.horizon=30 or"):
            task("my/cut-v0").dataset().references.normalise(np.array([31.0]), [30, 31])


def test_a_horizon_beyond_the_cut_is_refused_before_training(own_root, tmp_path):
    stored("my/cut-v0", "CartPole-v1", [balanced(30, seed) for seed in range(6)])
    with pytest.raises(StabError, match="what the expert returns in 60 steps is not known"):
        run_here(tmp_path / "run", dataset="my/cut-v0")
    assert not (tmp_path / "run").exists()
    assert run_here(tmp_path / "run", "eval.horizon=30", dataset="my/cut-v0")


def test_one_episode_of_a_single_step_does_not_shift_the_expert(own_root):
    episodes = [balanced(500, seed) for seed in range(5)] + [balanced(1, 5)]
    with pytest.raises(StabError, match="returns 1 an episode in the 1 steps after which one was"):
        task(stored("my/stub-v0", "CartPole-v1", episodes)).dataset()


def test_scores_make_cut_recordings_usable_at_every_horizon(own_root):
    episodes = [balanced(30, seed) for seed in range(6)]
    known = {"ref_min_score": 22.0, "ref_max_score": 500.0}
    references = task(stored("my/cut-v0", "CartPole-v1", episodes, **known)).dataset().references
    # As recorded up to the cut, and from there straight on: CartPole pays 1 a step.
    assert [references.expert.at(h) for h in (10, 30, 31, 100, 500)] == [10, 30, 31, 100, 500]
    assert references.known is None


def test_an_environments_own_truncation_is_an_end(toy):
    assert task(toy(right)).dataset().references.known is None  # truncated after 10 of 1000 steps
    assert task("my/toy-v0").dataset().references.expert.at(1000) == 10


def silent(steps: int) -> EpisodeBuffer:
    """A recording of the toy without flags and without a reset seed."""
    return EpisodeBuffer(
        observations=np.zeros((steps + 1, 2), dtype=np.float32),
        actions=np.ones(steps, dtype=np.int64),
        rewards=[1.0] * (steps - 1) + [0.0],
        terminations=[False] * steps,
        truncations=[False] * steps,
    )


def test_it_is_an_end_without_flags_and_seeds_too(toy):
    found = task(stored("my/silent-v0", "StabToy-v0", [silent(10)] * 6))
    assert found.dataset().references.expert.at(1000) == 9
    found = task(stored("my/nine-v0", "StabToy-v0", [silent(10), silent(9)] * 3))
    with pytest.raises(StabError, match="cut after 9"):
        found.dataset().references.normalise(np.zeros(1), [10])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_found_before_training_with_its_episode(own_root, bad):
    short()
    path = own_root / "my" / "falling-v0" / "data" / "main_data.hdf5"
    with h5py.File(path, "r+") as file:
        file["episode_3/rewards"][1] = bad
    with pytest.raises(
        StabError, match="dataset 'my/falling-v0': episode 3 has a reward that is not finite"
    ):
        task("my/falling-v0").dataset()


def test_a_dataset_without_rewards_has_no_expert(own_root, stab):
    """Pendulum's are negative, so that zeros would be the best of all."""
    example.record("my/pendulum-v0", "Pendulum-v1", example.pendulum, episodes=EPISODES)
    with h5py.File(own_root / "my" / "pendulum-v0" / "data" / "main_data.hdf5", "r+") as file:
        for episode in file.values():
            episode["rewards"][:] = 0
    with pytest.raises(StabError, match=r"every reward is 0, the environment's are from -1.* to -"):
        task("my/pendulum-v0").dataset()
    tell("my/pendulum-v0", ref_min_score=-1200.0, ref_max_score=-150.0)
    references = task("my/pendulum-v0").dataset().references
    assert references.normalise(np.array([-1200.0, -150.0])[:, None], [200]).tolist() == [[0], [1]]


def test_rewards_that_are_all_equal_and_not_the_environments_are_refused(own_root):
    short()
    with h5py.File(own_root / "my" / "falling-v0" / "data" / "main_data.hdf5", "r+") as file:
        for episode in file.values():
            episode["rewards"][:] = 100
    with pytest.raises(StabError, match="every reward is 100, the environment's are from 1 to 1"):
        task("my/falling-v0").dataset()


def warnings_of(run: Path) -> list[str]:
    found = json.loads((run / "leaderboard.json").read_text())
    return found["run"]["tasks"]["recorded"]["warnings"]


def test_actions_out_of_bounds_and_repeated_episodes_are_remarked(own_root, stab, tmp_path):
    example.record("my/pendulum-v0", "Pendulum-v1", example.pendulum, episodes=EPISODES)
    assert task("my/pendulum-v0").dataset().remarks == ()
    with h5py.File(own_root / "my" / "pendulum-v0" / "data" / "main_data.hdf5", "r+") as file:
        for episode in file.values():
            for name in ("observations", "actions"):
                episode[name][:] = file["episode_0"][name][:]
            episode["actions"][:] = np.clip(episode["actions"][:], -1.9, 1.9)
            episode["actions"][:20] = 2.5  # of 200 steps; the bounds are -2 and 2
    said = (
        "10.0% of the training actions are outside the bounds of the action space, where no policy"
        " can act.",
        "2 of 2 validation episodes repeat training episodes: the validation loss is too low.",
    )
    assert task("my/pendulum-v0").dataset().remarks == said
    tell("my/pendulum-v0", ref_min_score=-1200.0, ref_max_score=-150.0)
    stab(
        "compare", "--dataset", "my/pendulum-v0", "-s", "none", "--seeds", 1, "--out", "run", *TINY
    )
    assert set(said) <= set(warnings_of(tmp_path / "run"))


def test_a_return_far_above_the_experts_is_said(own_root, stab, tmp_path):
    example.record("my/cartpole-v0", "CartPole-v1", falling, episodes=EPISODES)
    tell("my/cartpole-v0", ref_min_score=0.0, ref_max_score=5.0)
    stab(
        "compare", "--dataset", "my/cartpole-v0", "-s", "none", "--seeds", 1, "--out", "run", *TINY,
        "eval.horizon=500",
    )  # fmt: skip
    (entry,) = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    assert entry["return"] > 2
    assert (
        f"none returns {entry['return']:.2f}, where 1 is the expert: the reference scores are"
        " likely wrong." in warnings_of(tmp_path / "run")
    )


def test_a_random_policys_dataset_is_refused(own_root):
    rng = np.random.default_rng(0)
    example.record("my/random-v0", "CartPole-v1", lambda _: int(rng.integers(2)), episodes=EPISODES)
    with pytest.raises(
        StabError, match=r"my/random-v0' returns .* actions at random .* ref_min_score"
    ) as refused:
        task("my/random-v0").dataset()
    assert "\n" not in str(refused.value)


def test_the_advice_to_give_scores_helps(own_root):
    rng = np.random.default_rng(0)
    example.record("my/random-v0", "CartPole-v1", lambda _: int(rng.integers(2)), episodes=EPISODES)
    tell("my/random-v0", ref_min_score=9.0, ref_max_score=500.0)
    references = task("my/random-v0").dataset().references
    assert references.source == "dataset's metadata"
    assert references.normalise(np.array([[9.0], [500.0]]), [500]).ravel().tolist() == [0.0, 1.0]


def test_references_are_measured_once(own_root, tmp_path, monkeypatch):
    short()
    first = task("my/falling-v0").dataset().references
    assert list((tmp_path / "cache" / "stab").iterdir())  # XDG_CACHE_HOME
    with monkeypatch.context() as patch:
        patch.setattr("stab.tasks.control.measured.random_returns", no_rollouts)
        assert task("my/falling-v0").dataset().references == first
        assert task("my/falling-v0", train_episodes=2).dataset().references == first


def test_another_dataset_under_the_same_name_is_measured_anew(own_root):
    short()
    first = task("my/falling-v0").dataset().references
    datasets.remove("my/falling-v0")
    example.record("my/falling-v0", "CartPole-v1", example.cartpole, episodes=4)
    second = task("my/falling-v0", train_episodes=2).dataset().references
    assert second.expert != first.expert
    assert second.expert.episodes == 4
    assert second.random == first.random


def test_without_xdg_the_cache_is_in_the_home_folder(own_root, tmp_path, monkeypatch):
    short()
    for value in (None, ""):
        monkeypatch.delenv("XDG_CACHE_HOME") if value is None else monkeypatch.setenv(
            "XDG_CACHE_HOME", value
        )
        monkeypatch.setenv("HOME", str(tmp_path / f"home{value}"))
        task("my/falling-v0").dataset()
        assert list((tmp_path / f"home{value}" / ".cache" / "stab").iterdir())


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"random": 1, "expert": 2}']
)
def test_a_cache_of_garbage_is_made_anew(own_root, tmp_path, garbage):
    short()
    first = task("my/falling-v0").dataset().references
    (file,) = (tmp_path / "cache" / "stab").iterdir()
    good = file.read_bytes()
    file.write_bytes(garbage)
    assert task("my/falling-v0").dataset().references == first
    assert file.read_bytes() == good


@pytest.mark.parametrize("where", ["below a file", "read-only"])
def test_a_cache_that_cannot_be_written_does_no_harm(own_root, tmp_path, monkeypatch, where):
    short()
    good = task("my/falling-v0").dataset().references
    (tmp_path / "file").write_text("dear")
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "file") if where == "below a file" else "/proc/nowhere"
    )
    assert task("my/falling-v0").dataset().references == good
    assert (tmp_path / "file").read_text() == "dear"


class Toy(gym.Env):
    """Ten steps; right is what the sign of the observation says, and pays 1."""

    def __init__(self, observations="box", actions="from one"):
        box = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = {"box": box, "dict": gym.spaces.Dict(a=box), "discrete": gym.spaces.Discrete(3),
                                  "tuple": gym.spaces.Tuple((box, box))}[observations]  # fmt: skip
        self.action_space = {
            "from one": gym.spaces.Discrete(3, start=1),
            "multi": gym.spaces.MultiDiscrete([2, 3]),
            "integers": gym.spaces.Box(0, 3, (1,), np.int64),
            "unbounded": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }[actions]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        self.shown = self.observation_space.sample()
        return self.shown, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = float(np.ravel(action)[0] == self.right())
        self.steps += 1
        self.shown = self.observation_space.sample()
        return self.shown, reward, False, self.steps == 10, {}

    def right(self):
        """1 or 3 of the choices 1, 2, 3."""
        shown = self.shown["a"] if isinstance(self.shown, dict) else self.shown
        return 3 if np.ravel(shown)[0] > 0 else 1


@pytest.fixture
def toy(own_root, monkeypatch):
    """Register the toy environment for this test; record a dataset of it."""
    module = types.ModuleType("stab_test_toy")
    module.Toy = Toy
    monkeypatch.setitem(sys.modules, "stab_test_toy", module)
    gym.register("StabToy-v0", entry_point="stab_test_toy:Toy")

    def record(controller, dataset_id="my/toy-v0", **kwargs):
        env = gym.make("StabToy-v0", **kwargs)
        buffers = []
        for seed in range(EPISODES):
            env.action_space.seed(seed)
            observation, _ = env.reset(seed=seed)
            seen, actions, rewards = [observation], [], []
            for _ in range(10):
                actions.append(controller(env, observation))
                observation, reward, *_ = env.step(actions[-1])
                seen.append(observation)
                rewards.append(reward)
            if isinstance(env.observation_space, gym.spaces.Dict):
                seen = {key: np.array([o[key] for o in seen]) for key in seen[0]}
            elif isinstance(env.observation_space, gym.spaces.Tuple):
                seen = tuple(np.array(part) for part in zip(*seen))
            else:
                seen = np.array(seen)
            ends = {"terminations": [False] * 10, "truncations": [False] * 9 + [True]}
            buffers.append(
                EpisodeBuffer(
                    seed=seed, observations=seen, actions=np.array(actions), rewards=rewards, **ends
                )
            )
        minari.create_dataset_from_buffers(dataset_id, buffers, env=env)
        return dataset_id

    yield record
    del gym.registry["StabToy-v0"]


def sample(env, observation):
    return env.action_space.sample()


def right(env, observation):
    return np.int64(3 if observation[0] > 0 else 1)


def test_a_discrete_space_that_begins_at_one(toy):
    found = task(toy(right))
    data = found.dataset()
    assert set(data.train.actions.tolist()) == {0, 2}  # counted from 0
    assert data.references.expert.at(10) == 10
    recipe = Recipe(updates=150, batch_size=32, lr=3e-3)
    (point,) = train(found, recipe, 0, {}, [150])
    policy = found.policy(recipe)
    stacked = {name: value[None] for name, value in point.raw.items()}
    cumulative, lengths = found.rollout(
        policy, stacked, [100, 101, 102], [10]
    )  # the toy asserts legal actions
    assert lengths.tolist() == [[10, 10, 10]]
    assert cumulative.mean() > 8  # at random 3.3


def test_an_environment_without_a_time_limit_is_ended_at_some_point(toy):
    assert task(toy(right)).horizon == 1000  # the toy ends itself after 10
    assert task("my/toy-v0").dataset().references.random.length == 10


UNSUPPORTED = {
    "dict observations": ({"observations": "dict"}, "observations Dict"),
    "tuple observations": ({"observations": "tuple"}, "observations Tuple"),
    "discrete observations": ({"observations": "discrete"}, "observations Discrete(3)"),
    "several choices": ({"actions": "multi"}, "MultiDiscrete([2 3])"),
    "a box of integers": ({"actions": "integers"}, "int64"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_spaces_that_are_not_supported_are_named(toy, case):
    kwargs, said = UNSUPPORTED[case]
    dataset_id = toy(sample, **kwargs)
    tell(dataset_id, ref_min_score=0.0, ref_max_score=10.0)

    def use():
        found = task(dataset_id)
        found.dataset()
        found.policy(Recipe())

    for attempt in (use, lambda: task(dataset_id).speed(Recipe())):
        with pytest.raises(StabError) as refused:
            attempt()
        assert said in str(refused.value)
        assert "supported" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_actions_without_bounds_name_the_cure(toy):
    dataset_id = toy(sample, actions="unbounded")
    tell(dataset_id, ref_min_score=-1.0, ref_max_score=10.0)
    for attempt in (
        lambda: task(dataset_id).policy(Recipe()),
        lambda: task(dataset_id).speed(Recipe()),
    ):
        with pytest.raises(StabError, match="actions=clipped"):
            attempt()


def test_actions_without_bounds_can_be_learned_linearly(toy):
    dataset_id = toy(lambda env, observation: np.float32(observation[:1]), actions="unbounded")
    tell(dataset_id, ref_min_score=-1.0, ref_max_score=10.0)
    recipe = Recipe(policy="mlp:actions=clipped", updates=5, batch_size=16)
    found = task(dataset_id)
    (point,) = train(found, recipe, 0, {}, [5])
    stacked = {name: value[None] for name, value in point.raw.items()}
    _, lengths = found.rollout(found.policy(recipe), stacked, [1], [10])
    assert lengths.tolist() == [[10]]


def test_no_environment_recorded(own_root):
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    buffers = [EpisodeBuffer(seed=0, observations=np.array([observation] * 3), actions=np.array([0, 1]),
                             rewards=[1.0, 1.0], terminations=[False, True], truncations=[False, False])] * 2  # fmt: skip
    minari.create_dataset_from_buffers(
        "my/bare-v0",
        buffers,
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    assert task_for("my/bare-v0") == "recorded"
    for name in ("recorded", "hopper"):
        with pytest.raises(StabError, match=r"dataset 'my/bare-v0' .*no environment") as refused:
            tasks.get(name)(dataset_id="my/bare-v0").dataset()
        assert "\n" not in str(refused.value)


def test_an_environment_that_is_registered_no_longer(toy):
    dataset_id = toy(right)
    spec = gym.registry.pop("StabToy-v0")
    try:
        with pytest.raises(
            StabError, match=r"StabToy-v0, which is not registered here .*entry point stab\.tasks"
        ):
            task(dataset_id).dataset()
    finally:
        gym.registry["StabToy-v0"] = spec


def test_a_dataset_must_be_given():
    for attempt in (
        lambda t: t.dataset(),
        lambda t: t.has_data(),
        lambda t: t.horizon,
        lambda t: t.collect(),
    ):
        with pytest.raises(StabError):
            attempt(tasks.get("recorded")())
    with pytest.raises(StabError, match="give --dataset"):
        tasks.get("recorded")().dataset()


def test_demonstrations_of_ones_own_are_replayed_bitwise(stab):
    for name, steps in (("pendulum", 200), ("cartpole", 500)):
        replay = datasets.replay(datasets.load(f"my/{name}-v0"))
        assert replay.exact
        assert (replay.episodes, replay.unseeded) == (EPISODES, 0)
        assert replay.steps == EPISODES * steps
