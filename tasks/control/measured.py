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


def references_of(
    dataset: minari.MinariDataset, spec: EnvSpec, env: gym.Env[Any, Any], progress: Progress
) -> References:
    """Return the dataset's references: stab's in its metadata, Minari's there, or measured ones."""
    about = datasets.stab_metadata(dataset)
    if "references" in about:
        return references_from(about["references"])
    measured = _measured(dataset, spec, env, progress)
    low, high = (dataset.storage.metadata.get(key) for key in ("ref_min_score", "ref_max_score"))
    if low is None or high is None:
        _tell_apart(dataset, measured)
        return measured
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        raise StabError(
            f"dataset {dataset.id!r}: ref_max_score ({high}) is not above ref_min_score ({low})"
        )
    return References(
        _ending_at(measured.random, float(low)),
        _ending_at(measured.expert, float(high)),
        "dataset's metadata",
    )


def _measured(
    dataset: minari.MinariDataset, spec: EnvSpec, env: gym.Env[Any, Any], progress: Progress
) -> References:
    """Measure the random policy, and take the dataset's episodes as the expert; cached."""
    horizon = spec.max_episode_steps
    assert horizon is not None
    folder = datasets.root() / dataset.id / "data"
    stats = [(p.name, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    contents = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    versions = files.versions(("gymnasium", "mujoco", "numpy"))
    key = json.dumps([dataset.id, str(folder), contents, spec.to_json(), versions])
    sha = hashlib.sha256(key.encode()).hexdigest()
    path = files.cache_folder() / f"references-{sha[:32]}.json"
    try:
        references = references_from(json.loads(path.read_text()))
    except (OSError, ValueError):  # StabError is one: rebuild a damaged cache
        cumulative = np.zeros((dataset.total_episodes, horizon))
        lengths = np.zeros(dataset.total_episodes, dtype=np.int64)
        for n, rewards in enumerate(datasets.rewards(dataset, portion(progress, 0.0, 0.5))):
            lengths[n] = min(len(rewards), horizon)
            cumulative[n, : lengths[n]] = rewards[: lengths[n]].cumsum()
            cumulative[n, lengths[n] :] = cumulative[n, lengths[n] - 1]
        seeds = range(RANDOM_SEED, RANDOM_SEED + RANDOM_EPISODES)
        random = random_returns(env, seeds, horizon, portion(progress, 0.5, 0.5))
        references = References(
            curve(*random, RANDOM_SEED),
            curve(cumulative, lengths, 0),
            "measured: random policy, dataset's mean",
        )
        files.write_cache(path, json.dumps(references_to(references)))
    return references


def _tell_apart(dataset: minari.MinariDataset, references: References) -> None:
    """Raise StabError if expert and random policy return about the same."""
    low, high = references.random, references.expert
    error = math.hypot(low.std / math.sqrt(low.episodes), high.std / math.sqrt(high.episodes))
    gap = high.cumulative[-1] - low.cumulative[-1]
    if gap <= APART * error:
        raise StabError(
            f"dataset {dataset.id!r} returns {high.cumulative[-1]:.4g} an episode, actions at"
            f" random {low.cumulative[-1]:.4g}: less than {APART:g} standard errors ({error:.2g})"
            " better, so returns cannot be normalised; give the dataset's ref_min_score and"
            " ref_max_score, or better demonstrations"
        )


def _ending_at(measured: Curve, total: float) -> Curve:
    """Return the curve plus a straight line, so that it ends at the metadata's score."""
    steps = len(measured.cumulative)
    missing = total - measured.cumulative[-1]
    corrected = [value + missing * (h + 1) / steps for h, value in enumerate(measured.cumulative)]
    return replace(measured, cumulative=[*corrected[:-1], total])
