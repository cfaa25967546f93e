"""data.infinite: every epoch is made of fresh expert episodes, and no sample is drawn twice."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stab import StabError
from stab.cli.main import main
from stab.recipe import Recipe
from stab.run.cells import START_SEED
from stab.tasks import tasks
from stab.tasks.control.experts import EPISODES
from stab.tasks.control.locomotion import Locomotion
from stab.tasks.references import EXPERT_SEED, RANDOM_SEED
from stab.train import Fresh as FreshData
from stab.train import minibatches, train

SIZES = {"train_episodes": 1, "validation_episodes": 1}
LENGTHS = (3, 400, 1, 50, 20, 300, 400, 1, 1, 1)  # of episodes that end early
# An epoch of 1,000 transitions, 31 minibatches, and a bit of the next.
SMALL = Recipe(updates=35, batch_size=32, policy="mlp:width=8")


def endless(name="hopper", **settings):
    return tasks.get(name)(infinite=True, **{**SIZES, **settings})


@pytest.fixture(scope="module")
def task(hopper):
    return endless()


@pytest.fixture(scope="module")
def pools(task):
    """Three pools by (seed, epoch)."""
    data = task.dataset().train
    return {key: data.pool(*key) for key in ((0, 0), (0, 1), (1, 0))}


def rows(pool) -> set[bytes]:
    return {
        bytes(o.numpy().tobytes() + a.numpy().tobytes())
        for o, a in zip(pool.observations, pool.actions)
    }


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_epoch_is_as_long_as_the_ordinary_training_set(task, pools):
    data = task.dataset()
    assert isinstance(data.train, FreshData)
    assert len(data.train) == 1000
    for pool in pools.values():
        assert len(pool) == 1000
        assert pool.observations.shape == (1000, 11)
        assert pool.actions.shape == (1000, 3)
        assert pool.observations.dtype == pool.actions.dtype == torch.float32


def test_pools_share_no_transition(task, pools):
    found = [rows(pool) for pool in pools.values()]
    data = task.dataset()
    every = np.arange(1000)
    for part in (data.train, data.validation):  # nor with the dataset's own episodes
        batch = part.batch(every)
        found.append(
            {
                o.numpy().tobytes() + a.numpy().tobytes()
                for o, a in zip(batch.observations, batch.actions)
            }
        )
    assert all(len(pool) == 1000 for pool in found)
    for one, other in itertools.combinations(found, 2):
        assert not one & other


def test_the_same_pool_has_the_same_bits(task, pools):
    again = endless().dataset().train
    for key in ((0, 1), (0, 0), (1, 0)):  # in another order
        pool = again.pool(*key)
        assert torch.equal(pool.observations, pools[key].observations)
        assert torch.equal(pool.actions, pools[key].actions)
        assert np.array_equal(pool.episodes, pools[key].episodes)


def test_validation_and_normalisation_are_those_of_the_ordinary_regime(task):
    ordinary = tasks.get("hopper")(**SIZES)
    one, other = task.dataset(), ordinary.dataset()
    assert torch.equal(one.validation.observations, other.validation.observations)
    assert one.references == other.references
    assert torch.equal(task.policy(Recipe()).mean, ordinary.policy(Recipe()).mean)
    assert torch.equal(task.policy(Recipe()).std, ordinary.policy(Recipe()).std)


def test_fresh_episodes_equal_a_plain_gymnasium_loop(task):
    """Given the recorded actions; what the expert sees is what the environment shows, bit for bit."""
    steps = []
    task.record_episodes(
        task.dataset().train._expert, [1_234_567], lambda *step: steps.append(step)
    )
    assert len(steps) == 1000
    env = gym.make("Hopper-v5")
    observation, _ = env.reset(seed=1_234_567)
    for number, seen, action, reward, terminated, truncated, following in steps:
        assert number == 0
        assert np.array_equal(seen, observation)
        observation, expected, *ends, _ = env.step(action)
        assert (reward, terminated, truncated) == (expected, *ends)
        assert np.array_equal(following, observation)
    assert 2500 < sum(step[3] for step in steps) < 4000  # the expert's


class Fallen:
    """Stands in for ``Locomotion.record_episodes``: short episodes, whose observations tell the
    reset seed and step."""

    def __init__(self, lengths):
        self.lengths, self.starts = itertools.cycle(lengths), []

    def __call__(self, actor, starts, record):
        self.starts += starts
        remaining = {n: next(self.lengths) for n in range(len(starts))}
        for step in range(max(remaining.values())):  # side by side, as a rollout records them
            for n, length in remaining.items():
                if step < length:
                    record(
                        n,
                        np.array([starts[n], step] + [0.0] * 9),
                        np.zeros(3),
                        1.0,
                        step == length - 1,
                        False,
                        None,
                    )


@pytest.fixture
def fallen(hopper, monkeypatch):
    def use(*lengths):
        stand_in = Fallen(lengths)
        monkeypatch.setattr(Locomotion, "record_episodes", lambda self, *args: stand_in(*args))
        return stand_in

    return use


def test_no_reset_seed_is_used_twice(task, fallen):
    seen = fallen(1000, 40, 300)
    data = endless().dataset().train
    for seed, epoch in itertools.product((0, 1, 2, 50), (0, 1, 2, 99, 99_999)):
        data.pool(seed, epoch)
    assert seen.starts
    assert max(Counter(seen.starts).values()) == 1
    taken = [*range(105), *(s + n for s in (EXPERT_SEED, RANDOM_SEED) for n in range(EPISODES)),
             *range(START_SEED, START_SEED + 1000)]  # fmt: skip
    assert not set(seen.starts) & set(taken)


@pytest.mark.parametrize("lengths", [(1000,), (1, 2, 3), (7,), (999, 1), (1,)])
def test_episodes_that_end_early_still_fill_the_pool(task, fallen, lengths):
    fallen(*lengths)
    pool = endless().dataset().train.pool(0, 3)
    assert len(pool) == len(pool.actions) == len(pool.episodes) == 1000
    starts, steps = pool.observations[:, 0], pool.observations[:, 1]
    fresh = np.flatnonzero(np.diff(pool.episodes, prepend=-1))
    assert (
        steps[fresh] == 0
    ).all()  # every episode from its beginning, in order, whole but for the last
    expected = itertools.chain.from_iterable(range(length) for length in itertools.cycle(lengths))
    assert steps.tolist() == list(itertools.islice(expected, 1000))
    assert len(starts[fresh].unique()) == len(fresh)
    assert pool.firsts[fresh].tolist() == fresh.tolist()


def test_ant_fills_its_pool_too(fallen, tmp_path, monkeypatch):
    """Ant's expert falls now and then; here it always does. No dataset is needed to see it."""
    from stab.tasks.control.locomotion import Fresh
    from stab.tasks.transitions import Transitions

    ant = tasks.get("ant")()
    finite = Transitions(
        torch.zeros(1000, 105), torch.zeros(1000, 8), np.zeros(1000, dtype=np.int64)
    )

    def record_episodes(self, actor, starts, record):
        assert (actor.action_space.shape, self.record.environment) == ((8,), "Ant-v5")
        for n, start in enumerate(starts):
            for _ in range(LENGTHS[start % 10]):
                record(n, np.zeros(105), np.zeros(8), 1.0, False, False, None)

    monkeypatch.setattr(Locomotion, "record_episodes", record_episodes)
    pool = Fresh(ant, finite).pool(0, 0)
    assert pool.observations.shape == (1000, 105)
    assert [int((pool.episodes == n).sum()) for n in range(7)] == [3, 400, 1, 50, 20, 300, 226]


class Counted:
    """An endless split whose pools know their name."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def batch(self, indices):
        raise AssertionError("training reads pools alone")

    def pool(self, seed, epoch):
        return (seed, epoch)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_no_transition_is_drawn_twice(length, batch_size, accumulation, seed):
    recipe = Recipe(updates=10, batch_size=batch_size, accumulation=accumulation)
    size = batch_size * accumulation
    data = Counted(length)
    if size > length:
        with pytest.raises(
            StabError, match=f"{length} fresh transitions is shorter than one step's {size} samples"
        ):
            minibatches(data, recipe, seed, 1)
        return
    drawn: Counter = Counter()
    for update in range(1, 4 * (length // size) + 2):
        source, indices = minibatches(data, recipe, seed, update)
        assert indices.shape == (accumulation, batch_size)
        assert indices.min() >= 0
        assert indices.max() < length
        assert source == (seed, (update - 1) // (length // size))
        drawn.update((source, int(index)) for index in indices.ravel())
    assert set(drawn.values()) == {1}


def test_minibatches_are_functions_of_seed_and_update():
    data, recipe = Counted(50), Recipe(batch_size=8)

    def at(seed, update):
        source, indices = minibatches(data, recipe, seed, update)
        return source, indices.tolist()

    forwards = [at(1, update) for update in range(1, 20)]
    assert forwards == [at(1, update) for update in reversed(range(1, 20))][::-1]
    assert at(0, 1) != at(1, 1)
    # Epochs are not in the same order.
    assert at(1, 1)[1] != at(1, 7)[1]


def test_training_is_reproducible_and_independent_of_the_checkpoints(task):
    def final(checkpoints, seed=0):
        *_, last = train(endless(), SMALL, seed, {}, checkpoints)
        return last.raw

    first = final([35])
    assert same(first, final([3, 31, 32, 35]))
    assert not same(first, final([35], seed=1))
    ordinary = tasks.get("hopper")(**SIZES)
    *_, last = train(ordinary, SMALL, 0, {}, [35])
    assert not same(first, last.raw)  # other data


def test_too_small_a_pool_says_what_to_change(task):
    with pytest.raises(
        StabError, match=r"1000 fresh transitions .* 1024 samples: raise data\.train_episodes"
    ):
        next(train(task, Recipe(updates=10, batch_size=256, accumulation=4), 0, {}, [10]))


def test_a_dataset_alone_has_no_fresh_episodes(task):
    with pytest.raises(StabError, match=r"data\.infinite needs an expert"):
        tasks.get("recorded")(dataset_id="stab/hopper/expert-v0", infinite=True)
    with pytest.raises(StabError, match="leave out --dataset"):
        endless(dataset_id="stab/hopper/expert-v0").dataset()


@pytest.mark.parametrize("name", ["hopper", "recorded"])
def test_a_dataset_with_infinite_data_is_refused_from_the_command_line(
    hopper, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setattr(
        "stab.run.estimate.seconds", lambda plan, cells: None
    )  # the plan's measurement takes a second
    monkeypatch.chdir(tmp_path)
    sizes = (
        "train.updates=40",
        "eval.checkpoint_every=10",
        "data.train_episodes=1",
        "data.validation_episodes=1",
    )
    chosen = ("-t", name, "--dataset", "stab/hopper/expert-v0", "-s", "ema", "data.infinite=true")
    monkeypatch.setattr(sys, "argv", ["stab", "compare", *chosen, *sizes])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    *_, line = err.strip().splitlines()
    assert line.startswith("stab: data.infinite ")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(hopper, stab, tmp_path):
    done = stab("compare", "-t", "hopper", "-s", "ema", "--seeds", 1, "--out", "run", "data.infinite=true",
                "data.train_episodes=1", "data.validation_episodes=1", "train.updates=40", "train.batch_size=32",
                "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=30")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cell,) = (json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").iterdir())
    assert cell["infinite"] is True
    assert {row["stabilizer"] for row in cell["rows"]} == {"none", "ema"}
    assert "infinite: true" in (tmp_path / "run" / "config.yaml").read_text()
