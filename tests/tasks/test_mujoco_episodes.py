"""The fast way to step MuJoCo's environments gives Gymnasium's bits, over whole episodes in the closed loop."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from stab.tasks.control import experts
from stab.tasks.control.episodes import GymEpisodes, gives_gymnasiums_bits, make_episodes
from stab.tasks.control.mujoco import FAST, HalfCheetah, MujocoEpisodes
from stab.tasks.control.record import RECORDS
from stab.tasks.control.rollout import rollout


@pytest.fixture
def looked_at_anew():
    """What a process has found out about the installed version is forgotten, before and after."""
    gives_gymnasiums_bits.cache_clear()
    yield
    gives_gymnasiums_bits.cache_clear()


EACH = pytest.mark.parametrize("record", RECORDS.values(), ids=lambda r: r.name)


def played(episodes, actor, starts, horizon):
    """Every step of every episode, and what rollout returns."""
    steps = []
    stacked = {name: value[None] for name, value in actor.state_dict().items()}
    returns, lengths = rollout(
        episodes, actor, stacked, starts, [horizon], record=lambda *step: steps.append(step)
    )
    return returns, lengths, steps


@EACH
def test_the_experts_whole_episodes_are_gymnasiums(record):
    actor, spec = experts.load(record).actor, gym.spec(record.environment)
    fast = make_episodes(spec)
    assert isinstance(fast, MujocoEpisodes)
    for starts, horizon in (
        ([50_000], 1000),
        ([3, 50_000], 100),
    ):  # the second time in a used environment, and a new one
        one, other = (
            played(fast, actor, starts, horizon),
            played(GymEpisodes(spec), actor, starts, horizon),
        )
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
        assert one[1].max() == horizon
        assert len(one[2]) == len(other[2])
        for a, b in zip(one[2], other[2]):
            assert all(np.array_equal(x, y) for x, y in zip(a, b))


@EACH
def test_falls_are_gymnasiums(record):
    """Wild actions, so that most bodies fall, at their own times; a part of the episodes is stepped at a time."""
    spec = gym.spec(record.environment)
    fast, plain = make_episodes(spec), GymEpisodes(spec)
    seeds, rng = list(range(5)), np.random.default_rng(0)
    assert np.array_equal(fast.reset(seeds), plain.reset(seeds))
    space, running, fallen = plain.envs[0].action_space, np.ones(5, dtype=bool), 0
    for step in range(300):
        which = np.flatnonzero(running & (rng.random(5) < 0.8)).tolist()
        if not which:
            continue
        size = 1.0 if step % 3 else 0.2
        actions = (size * rng.uniform(space.low, space.high, (len(which), *space.shape))).astype(
            space.dtype
        )
        found, expected = fast.step(which, actions), plain.step(which, actions)
        for a, b in zip(found, expected):
            assert np.array_equal(a, b)
            assert a.dtype == b.dtype
        running[np.array(which)[found[2]]] = False
        fallen += found[2].sum()
    assert (fallen == 0) if record.name == "halfcheetah" else (fallen >= 3)


def test_all_five_have_one():
    assert set(FAST) == {record.environment for record in RECORDS.values()}


def test_other_arguments_take_the_generic_path():
    spec = copy.deepcopy(gym.spec("HalfCheetah-v5"))
    spec.kwargs = {"forward_reward_weight": 2.0}
    assert isinstance(make_episodes(spec), GymEpisodes)


@pytest.mark.parametrize("change", ["reward", "observe", "place"])
def test_a_version_with_other_bits_takes_the_generic_path(monkeypatch, looked_at_anew, change):
    """An installed Gymnasium that computes something else is believed."""
    plain = getattr(HalfCheetah, change)

    def other(self, *arguments):
        found = plain(self, *arguments)
        if change == "reward":
            return np.nextafter(found[0], np.inf), found[1]
        return found + 1e-15 if change == "observe" else found * 2

    monkeypatch.setattr(HalfCheetah, change, other)
    assert isinstance(make_episodes(gym.spec("HalfCheetah-v5")), GymEpisodes)


def test_random_states_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    make_episodes(gym.spec("Ant-v5"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
