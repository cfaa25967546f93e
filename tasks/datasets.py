"""Demonstrations on disk: ordinary Minari datasets, read, split by episode and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from torch import Tensor

from stab.registry import StabError
from stab.tasks.base import Curve, References

REMOTE = ("mujoco/", "D4RL/", "minigrid/", "atari/")  # namespaces of the Farama hub


@dataclass(frozen=True)
class Transitions:
    """Transitions of whole episodes, in order.

    Attributes:
        observations: (transitions, obs_dim) float32.
        actions: (transitions, act_dim) float32, or (transitions,) int64 counted from 0 for a Discrete space.
        episodes: (transitions,) int64, the dataset's episode each transition belongs to.
    """

    observations: Tensor
    actions: Tensor
    episodes: np.ndarray

    def __len__(self) -> int:
        return len(self.observations)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return observations and actions at the given indices (batch,)."""
        chosen = torch.from_numpy(indices)
        return {"observations": self.observations[chosen], "actions": self.actions[chosen]}


def root() -> Path:
    """Minari's root folder: MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def exists(dataset_id: str) -> bool:
    """Whether the dataset is on this machine. Raises StabError for a malformed id."""
    check_id(dataset_id)
    return (root() / dataset_id / "data" / "metadata.json").exists()


def check_id(dataset_id: str) -> None:
    """Raise StabError unless this is a Minari id (which cannot leave Minari's root folder)."""
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise StabError(f"{dataset_id!r} is no Minari dataset id: expected namespace/name-v0") from None


def load(dataset_id: str) -> minari.MinariDataset:
    """Open a dataset; one of the hub's namespaces is downloaded when it is not there.

    Raises StabError when it is missing or cannot be read.
    """
    check_id(dataset_id)
    download = dataset_id.startswith(REMOTE) and not exists(dataset_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.load_dataset(dataset_id, download=download)
    except FileNotFoundError:
        local = ", ".join(minari.list_local_datasets()) or "none"
        raise StabError(f"dataset {dataset_id!r} is not in {root()}. Local datasets: {local}") from None
    except Exception as e:
        what = "could not be downloaded" if download else f"in {root()} cannot be read"
        raise StabError(f"dataset {dataset_id!r} {what}: {_line(e)}") from e


def read(dataset: minari.MinariDataset, episodes: Sequence[int]) -> Transitions:
    """Read whole episodes. Raises StabError when they are truncated, not finite, or of unsupported spaces."""
    space = dataset.action_space
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    index: list[np.ndarray] = []
    try:
        for number, episode in zip(episodes, dataset.iterate_episodes(episodes), strict=True):
            steps = len(episode.actions)
            observations.append(np.asarray(episode.observations[:steps], dtype=np.float32).reshape(steps, -1))
            if isinstance(space, gym.spaces.Discrete):
                actions.append(np.asarray(episode.actions, dtype=np.int64) - int(space.start))
            else:
                actions.append(np.asarray(episode.actions, dtype=np.float32).reshape(steps, -1))
            index.append(np.full(steps, number))
    except Exception as e:
        raise StabError(f"dataset {dataset.id!r} in {root()} cannot be read: {_line(e)}") from e
    found = Transitions(
        torch.from_numpy(np.concatenate(observations)),
        torch.from_numpy(np.concatenate(actions)),
        np.concatenate(index),
    )
    for name, values in (("observations", found.observations), ("actions", found.actions)):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            bad = int(found.episodes[int((~values.isfinite()).any(1).nonzero()[0])])
            raise StabError(f"dataset {dataset.id!r} has {name} that are not finite, first in episode {bad}")
    return found


def split(
    dataset: minari.MinariDataset, train_episodes: int, validation_episodes: int
) -> tuple[Transitions, Transitions]:
    """Return training and validation transitions of different episodes, chosen by a fixed permutation.

    The permutation keeps the halves alike where a dataset is ordered (by time, or by how good its policy was).
    Raises StabError when the dataset has too few episodes.
    """
    wanted, there = train_episodes + validation_episodes, dataset.total_episodes
    if wanted > there:
        raise StabError(
            f"dataset {dataset.id!r} has {there} episodes, {wanted} are asked for: lower data.train_episodes"
            f" ({train_episodes}) or data.validation_episodes ({validation_episodes}), or collect more"
        )
    order = dataset.episode_indices[np.random.default_rng(0).permutation(there)[:wanted]].tolist()
    return read(dataset, sorted(order[:train_episodes])), read(dataset, sorted(order[train_episodes:]))


def returns(dataset: minari.MinariDataset) -> list[float]:
    """Return every episode's return. Raises StabError when they cannot be read."""
    try:
        return [float(episode.rewards.sum()) for episode in dataset]
    except Exception as e:
        raise StabError(f"dataset {dataset.id!r} in {root()} cannot be read: {_line(e)}") from e


def digest(*splits: Transitions) -> str:
    """SHA-256 of the arrays."""
    sha = hashlib.sha256()
    for part in splits:
        for array in (part.observations.numpy(), part.actions.numpy(), part.episodes):
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def stab_metadata(dataset: minari.MinariDataset) -> dict[str, Any]:
    """Return what stab wrote into the dataset's metadata; empty for a dataset of other making."""
    found = dataset.storage.metadata.get("stab", {})
    return found if isinstance(found, dict) else {}


def references_from(data: dict[str, Any]) -> References:
    """Read references as written by ``references_to``. Raises StabError when they are not."""
    try:
        return References(Curve(**data["random"]), Curve(**data["expert"]))
    except (KeyError, TypeError) as e:
        raise StabError(f"malformed reference returns: {_line(e)}") from e


def references_to(references: References) -> dict[str, Any]:
    """Plain data, for JSON."""
    return asdict(references)


def create(
    dataset_id: str,
    episodes: Sequence[EpisodeBuffer],
    spec: gym.envs.registration.EnvSpec,
    references: References,
    metadata: dict[str, Any],
    **description: Any,
) -> None:
    """Write a Minari dataset under its id, whole or not at all. Raises StabError when it exists or cannot be written."""
    check_id(dataset_id)
    target = root() / dataset_id
    if target.exists():
        raise StabError(f"dataset {dataset_id!r} is already in {root()}; delete it first: minari delete {dataset_id}")
    try:
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".stab-", dir=root()) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _minari_root(folder):
                made = minari.create_dataset_from_buffers(
                    dataset_id,
                    list(episodes),
                    env=spec,
                    eval_env=spec,
                    ref_min_score=references.random.cumulative[-1],
                    ref_max_score=references.expert.cumulative[-1],
                    num_episodes_average_score=references.expert.episodes,
                    **description,
                )
                made.storage.update_metadata({"stab": metadata | {"references": references_to(references)}})
            _make_namespaces(dataset_id)
            os.rename(Path(folder) / dataset_id, target)
    except OSError as e:
        if exists(dataset_id):  # another process was faster
            return
        raise StabError(f"cannot write dataset {dataset_id!r} into {root()}: {_line(e)}") from e


def _make_namespaces(dataset_id: str) -> None:
    parts = dataset_id.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        folder = root() / "/".join(parts[:depth])
        folder.mkdir(exist_ok=True)
        marker = folder / "namespace_metadata.json"
        if not marker.exists():
            marker.write_text(json.dumps({}))


@contextmanager
def _minari_root(folder: str) -> Iterator[None]:
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
