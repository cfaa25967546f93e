"""References of a dataset: those in its metadata, or measured ones."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec

from stab import files
from stab.registry import StabError
from stab.tasks import datasets
from stab.tasks.references import (
    RANDOM_SEED,
    Curve,
    Progress,
    References,
    curve,
    portion,
    random_returns,
    references_from,
    references_to,
)

RANDOM_EPISODES = 100
# Standard errors that expert and random must lie apart to count as different.
APART = 4.0
FORM = 2  # of cached references: what earlier versions measured is measured again


def references_of(
    dataset: minari.MinariDataset, spec: EnvSpec, env: gym.Env[Any, Any], progress: Progress
) -> References:
    """Return the dataset's references: stab's in its metadata, Minari's there, or measured ones.

    Raises StabError if they make no sense, or would not with the rewards that were recorded.
    """
    stated = datasets.stated_references(dataset)
    if stated is not None:
        return stated
    scores = _scores(dataset)
    measured = _cached(dataset, spec, env, scores is None, progress)
    if scores is None:
        _tell_apart(dataset, measured)
        return measured
    low, high = scores
    return References(
        _ending_at(measured.random, low),
        _ending_at(measured.expert, high, measured.known or 0),
        "dataset's metadata",
    )


def _scores(dataset: minari.MinariDataset) -> tuple[float, float] | None:
    """Return Minari's reference scores in the metadata, if both are there."""
    found = []
    for key in ("ref_min_score", "ref_max_score"):
        value = dataset.storage.metadata.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise StabError(
                f"dataset {dataset.id!r}: {key}={value!a:.60} in its metadata is not a finite"
                " number"
            )
        found.append(float(value))
    low, high = found
    if high <= low:
        raise StabError(
            f"dataset {dataset.id!r}: ref_max_score ({high}) is not above ref_min_score ({low})"
        )
    return low, high


def _cached(
    dataset: minari.MinariDataset,
    spec: EnvSpec,
    env: gym.Env[Any, Any],
    alone: bool,
    progress: Progress,
) -> References:
    """Return ``_measured``, from the cache if it is there."""
    folder = datasets.root() / dataset.id / "data"
    stats = [(p.name, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    contents = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    versions = files.versions(("gymnasium", "mujoco", "numpy"))
    key = json.dumps([FORM, dataset.id, str(folder), contents, spec.to_json(), versions])
    sha = hashlib.sha256(key.encode()).hexdigest()
    path = files.cache_folder() / f"references-{sha[:32]}.json"
    try:
        references = references_from(json.loads(path.read_text()))
    except (OSError, ValueError):  # StabError is one: rebuild a damaged cache
        assert spec.max_episode_steps is not None
        references = _measured(dataset, env, spec.max_episode_steps, alone, progress)
        files.write_cache(path, json.dumps(references_to(references)))
    return references


def _measured(
    dataset: minari.MinariDataset,
    env: gym.Env[Any, Any],
    horizon: int,
    alone: bool,
    progress: Progress,
) -> References:
    """Measure the random policy, and take the dataset's episodes as the expert.

    If nothing else says what they return (``alone``), both end with the first episode that was cut.
    Raises StabError if rewards seem not to be recorded then.
    """
    episodes = datasets.endings(dataset, portion(progress, 0.0, 0.5))
    known = _cut(dataset, episodes, env, horizon)
    steps = known if known is not None and alone else horizon
    lengths = np.array([min(len(episode.rewards), steps) for episode in episodes])
    cumulative = np.zeros((len(episodes), steps))
    for n, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        cumulative[n, :length] = episode.rewards[:length].cumsum()
        cumulative[n, length:] = cumulative[n, length - 1]
    seeds = range(RANDOM_SEED, RANDOM_SEED + RANDOM_EPISODES)
    random = random_returns(env, seeds, steps, portion(progress, 0.5, 0.5))
    if alone:
        _check_rewards(dataset, np.concatenate([one.rewards for one in episodes]), *random)
    return References(
        curve(*random, RANDOM_SEED),
        curve(cumulative, lengths, 0),
        "measured: random policy, dataset's mean",
        known,
    )


def _cut(
    dataset: minari.MinariDataset,
    episodes: list[datasets.Ended],
    env: gym.Env[Any, Any],
    horizon: int,
) -> int | None:
    """Return the length of the shortest episode that the environment would not have ended there.

    The flag of a truncation does not tell: recorders set it, too, where they stop. One episode of
    each length is replayed.
    """
    short = {
        len(one.rewards): one.number
        for one in reversed(episodes)
        if len(one.rewards) < horizon and not one.terminated
    }
    cut = (n for n in sorted(short) if not datasets.ends_there(dataset, short[n], env))
    return next(cut, None)


def _check_rewards(
    dataset: minari.MinariDataset, rewards: np.ndarray, cumulative: np.ndarray, lengths: np.ndarray
) -> None:
    """Raise StabError if all rewards are equal, and those of random actions say that it is wrong.

    An environment may pay 1 for every step, and a recorder that kept no rewards leaves zeros.
    """
    if rewards.min() != rewards.max():
        return
    steps = np.diff(cumulative, axis=1, prepend=0.0)
    found = np.concatenate([row[:n] for row, n in zip(steps, lengths, strict=True)])
    same = np.isclose(found, rewards[0], rtol=1e-6, atol=1e-9)
    if not (same.any() if rewards[0] else same.all()):
        raise StabError(
            f"dataset {dataset.id!r}: every reward is {rewards[0]:g}, the environment's are from"
            f" {found.min():.4g} to {found.max():.4g}: it seems to have been recorded without"
            " rewards; give its ref_min_score and ref_max_score"
        )


def _tell_apart(dataset: minari.MinariDataset, references: References) -> None:
    """Raise StabError if expert and random policy return about the same."""
    low, high = references.random, references.expert
    error = math.hypot(low.std / math.sqrt(low.episodes), high.std / math.sqrt(high.episodes))
    gap = high.cumulative[-1] - low.cumulative[-1]
    if gap <= APART * error:
        cut = f" in the {references.known} steps after which one was cut" * bool(references.known)
        raise StabError(
            f"dataset {dataset.id!r} returns {high.cumulative[-1]:.4g} an episode{cut}, actions at"
            f" random {low.cumulative[-1]:.4g}: less than {APART:g} standard errors ({error:.2g})"
            " better, so returns cannot be normalised; give the dataset's ref_min_score and"
            " ref_max_score, or better demonstrations"
        )


def _ending_at(measured: Curve, total: float, known: int = 0) -> Curve:
    """Return the curve plus a straight line from ``known`` steps on, to end at ``total``."""
    steps = len(measured.cumulative)
    missing = total - measured.cumulative[-1]
    corrected = [
        value + missing * max(0, h + 1 - known) / (steps - known)
        for h, value in enumerate(measured.cumulative)
    ]
    return replace(measured, cumulative=[*corrected[:-1], total])
