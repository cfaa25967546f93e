"""Minibatches of transitions, and windows of them that do not cross episodes, against a slow reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stab.tasks.transitions import Transitions, digest

# Lengths of the episodes, and the numbers they have in the dataset (any, but increasing: some are in the other split).
EPISODES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=6)


def made(episodes, discrete=False):
    """Transitions whose observations and actions say which they are."""
    numbers = itertools.accumulate(gap for _, gap in episodes)
    labels = np.repeat(list(numbers), [length for length, _ in episodes])
    count = torch.arange(len(labels))
    actions = count % 5 if discrete else torch.stack([count + 0.5, -count.float()], 1)
    return Transitions(torch.stack([count, count * 2, count * 3], 1).float(), actions, labels)


@given(EPISODES, st.booleans(), st.data())
def test_a_batch_is_its_rows(episodes, discrete, data):
    source = made(episodes, discrete)
    indices = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=9))
    batch = source.batch(np.array(indices))
    assert len(batch) == len(indices)
    assert batch.observations.tolist() == [source.observations[i].tolist() for i in indices]
    assert batch.actions.tolist() == [source.actions[i].tolist() for i in indices]
    assert batch.actions.dtype == (torch.int64 if discrete else torch.float32)


@given(EPISODES, st.booleans(), st.integers(1, 9), st.data())
def test_a_window_is_what_came_before_in_the_same_episode(episodes, discrete, context, data):
    source = made(episodes, discrete)
    indices = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=9))
    observations, actions, within = source.batch(np.array(indices)).window(context)
    assert observations.shape == (len(indices), context, 3)
    assert actions.shape == (len(indices), context) if discrete else (len(indices), context, 2)
    assert within.dtype == torch.bool
    for row, index in enumerate(indices):
        begin = index
        while begin > 0 and source.episodes[begin - 1] == source.episodes[index]:
            begin -= 1
        for place in range(context):
            wanted = index - (context - 1 - place)
            assert bool(within[row, place]) == (wanted >= begin)
            there = max(wanted, begin)  # before the beginning: the first transition again
            assert observations[row, place].tolist() == source.observations[there].tolist()
            assert actions[row, place].tolist() == source.actions[there].tolist()


@given(EPISODES, st.data())
def test_a_window_of_one_is_the_batch(episodes, data):
    source = made(episodes)
    batch = source.batch(np.array(data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1))))
    observations, actions, within = batch.window(1)
    assert torch.equal(observations[:, 0], batch.observations)
    assert torch.equal(actions[:, 0], batch.actions)
    assert bool(within.all())


@given(EPISODES)
def test_the_newest_transition_is_always_within(episodes):
    source = made(episodes)
    *_, within = source.batch(np.arange(len(source))).window(4)
    assert bool(within[:, -1].all())
    # Where a position is masked, so are all older ones.
    assert bool((within[:, 1:] | ~within[:, :-1]).all())


def change(source, what):
    copy = Transitions(source.observations.clone(), source.actions.clone(), source.episodes.copy())
    if what == "observation":
        copy.observations[3, 1] = torch.nextafter(copy.observations[3, 1], torch.tensor(torch.inf))
    elif what == "action":
        copy.actions[-1, 0] += 1
    elif what == "sign of a zero":
        copy.observations[0, 0] = -0.0
    elif what == "episode":
        copy.episodes[-1] += 1
    elif what == "order":
        copy.observations[[0, 1]] = copy.observations[[1, 0]]
    elif what == "shorter":
        copy = Transitions(copy.observations[:-1], copy.actions[:-1], copy.episodes[:-1])
    return copy


def test_equal_arrays_have_equal_digests():
    one, other = made([(3, 1), (4, 2)]), made([(3, 1), (4, 2)])
    assert digest(one, other) == digest(other, one)
    assert len(digest(one)) == 64
    assert digest(one, other) == digest(change(one, "nothing"), change(other, "nothing"))


@pytest.mark.parametrize(
    "what", ["observation", "action", "sign of a zero", "episode", "order", "shorter"]
)
def test_any_change_changes_the_digest(what):
    train, validation = made([(3, 1), (4, 2)]), made([(5, 2)])
    before = digest(train, validation)
    assert digest(change(train, what), validation) != before
    assert digest(train, change(validation, what)) != before


def test_training_and_validation_are_told_apart():
    train, validation = made([(3, 1), (4, 2)]), made([(5, 2)])
    assert digest(train, validation) != digest(validation, train)
    assert digest(train) != digest(train, validation)


def test_a_digest_does_not_depend_on_how_the_arrays_lie_in_memory():
    source = made([(3, 1), (4, 2)])
    strided = Transitions(
        source.observations.repeat(1, 2)[:, :3], source.actions, np.repeat(source.episodes, 2)[::2]
    )
    assert not strided.observations.is_contiguous()
    assert digest(strided) == digest(source)


def test_on_a_device_batches_are_there():
    """``meta`` stands for one: it has shapes and no values."""
    meta = torch.device("meta")
    moved = Transitions(torch.zeros(5, 2), torch.zeros(5, 1), np.zeros(5, dtype=np.int64)).to(meta)
    batch = moved.batch(np.array([0, 3]))
    assert (batch.observations.device, batch.actions.device) == (meta, meta)
    assert all(part.device == meta for part in batch.window(3))
    assert [part.shape for part in batch.window(3)] == [(2, 3, 2), (2, 3, 1), (2, 3)]
