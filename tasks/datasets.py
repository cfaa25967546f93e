"""Demonstrations on disk: Minari datasets, read, split by episode, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id

from stab.registry import StabError, reason
from stab.tasks import rebuild
from stab.tasks.environments import make
from stab.tasks.references import (
    Progress,
    References,
    no_progress,
    references_from,
    references_to,
)
from stab.tasks.transitions import Transitions

REMOTE = ("mujoco/", "D4RL/", "minigrid/", "atari/")  # namespaces of the Farama hub


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
        raise StabError(
            f"{dataset_id!r} is not a Minari dataset id: expected namespace/name-v0"
        ) from None


def load(dataset_id: str) -> minari.MinariDataset:
    """Open a dataset; one of the hub's namespaces is downloaded when it is not there.

    Raises StabError when it is missing or cannot be read.
    """
    check_id(dataset_id)
    download = dataset_id.startswith(REMOTE) and not exists(dataset_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if download:
                minari.download_dataset(dataset_id)
            # Minari makes the recorded environment, whatever code it names, to learn spaces that
            # are left out.
            metadata = root() / dataset_id / "data" / "metadata.json"
            if metadata.exists() and not {"observation_space", "action_space"} <= set(
                json.loads(metadata.read_text())
            ):
                raise ValueError("its metadata lacks observation_space or action_space")
            return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        raise _missing(dataset_id) from None
    except Exception as e:
        what = "could not be downloaded" if download else f"in {root()} cannot be read"
        raise StabError(f"dataset {dataset_id!r} {what}: {reason(e)}") from e


def read(dataset: minari.MinariDataset, episodes: Sequence[int]) -> Transitions:
    """Read whole episodes. Raises StabError if they are truncated or not finite."""
    space = dataset.action_space
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    index: list[np.ndarray] = []
    try:
        for number, episode in zip(episodes, dataset.iterate_episodes(episodes), strict=True):
            steps = len(episode.actions)
            observations.append(
                np.asarray(episode.observations[:steps], dtype=np.float32).reshape(steps, -1)
            )
            if isinstance(space, gym.spaces.Discrete):
                actions.append(np.asarray(episode.actions, dtype=np.int64) - int(space.start))
            else:
                actions.append(np.asarray(episode.actions, dtype=np.float32).reshape(steps, -1))
            index.append(np.full(steps, number))
    except Exception as e:
        raise StabError(f"dataset {dataset.id!r} in {root()} cannot be read: {reason(e)}") from e
    transitions = Transitions(
        torch.from_numpy(np.concatenate(observations)),
        torch.from_numpy(np.concatenate(actions)),
        np.concatenate(index),
    )
    if isinstance(space, gym.spaces.Discrete) and not bool(
        ((transitions.actions >= 0) & (transitions.actions < space.n)).all()
    ):
        raise StabError(
            f"dataset {dataset.id!r} has actions that are not in its action space {space}"
        )
    for name, values in (
        ("observations", transitions.observations),
        ("actions", transitions.actions),
    ):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            bad = int(transitions.episodes[int((~values.isfinite()).any(1).nonzero()[0])])
            raise StabError(
                f"dataset {dataset.id!r} has {name} that are not finite, first in episode {bad}"
            )
    return transitions


def split(
    dataset: minari.MinariDataset, train_episodes: int, validation_episodes: int
) -> tuple[Transitions, Transitions]:
    """Return training and validation transitions of different episodes.

    In a dataset that stab collected, the first episodes validate and the next ones train, so they
    stay the same when more are collected. Other datasets may be ordered, by time or by quality:
    they are shuffled with a fixed seed first. Raises StabError if there are too few episodes.
    """
    used, available = train_episodes + validation_episodes, dataset.total_episodes
    if used > available:
        need = (
            f"lower data.train_episodes ({train_episodes}) or data.validation_episodes"
            f" ({validation_episodes}), or collect more"
        )
        if available < 2:
            need = "one to train on and one to validate on are the least"
        raise StabError(
            f"dataset {dataset.id!r} has {available} episode{'s' * (available != 1)}, {used} are"
            f" asked for: {need}"
        )
    order = dataset.episode_indices
    if not stab_metadata(dataset):
        order = np.random.default_rng(0).permutation(order)
    validation = order[:validation_episodes].tolist()
    train = order[validation_episodes:used].tolist()
    return read(dataset, sorted(train)), read(dataset, sorted(validation))


def local() -> list[str]:
    """Ids of the datasets on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(minari.list_local_datasets())


def _missing(dataset_id: str) -> StabError:
    names = ", ".join(local()) or "none"
    return StabError(f"dataset {dataset_id!r} is not in {root()}. Local datasets: {names}")


def remove(dataset_id: str) -> None:
    """Delete a dataset from this machine. Raises StabError if it is missing or not deletable."""
    if not exists(dataset_id):
        raise _missing(dataset_id)
    folder = root() / dataset_id
    try:
        with tempfile.TemporaryDirectory(
            prefix=".stab-", dir=root()
        ) as away:  # gone at once, or not at all
            os.rename(folder, Path(away) / "removed")
    except OSError as e:
        raise StabError(f"cannot delete {folder}: {e.strerror or e}") from e


@dataclass(frozen=True)
class Replay:
    """How a dataset compares with its environment, action by action.

    Attributes:
        episodes, steps: replayed.
        unseeded: episodes without a reset seed, which cannot be.
        observations, rewards: the largest absolute difference.
        ends: episodes whose termination or truncation differs.
    """

    episodes: int
    steps: int
    unseeded: int
    observations: float
    rewards: float
    ends: int

    @property
    def exact(self) -> bool:
        """Whether everything that was replayed is equal bit for bit."""
        return self.observations == self.rewards == self.ends == 0


def replay(dataset: minari.MinariDataset, progress: Progress = no_progress) -> Replay:
    """Step the stored actions through the environment, from each reset seed, and compare.

    Raises StabError when the environment cannot be rebuilt or no episode has a seed.
    """
    env = make(rebuild.environment(dataset))
    episodes = steps = unseeded = ends = 0
    worst = {"observations": 0.0, "rewards": 0.0}
    seeds = (
        about.get("seed") for about in dataset.storage.get_episode_metadata(dataset.episode_indices)
    )
    for number, (episode, seed) in enumerate(_readable(dataset, zip(dataset, seeds, strict=True))):
        progress(number / dataset.total_episodes)
        if seed is None:
            unseeded += 1
            continue
        observation, _ = env.reset(seed=int(seed))
        seen, rewards, terminated, truncated = [observation], [], False, False
        for action in episode.actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            rewards.append(reward)
        for name, ours, theirs in (
            ("observations", seen, episode.observations),
            ("rewards", rewards, episode.rewards),
        ):
            difference = np.abs(
                np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
            ).max()
            worst[name] = max(worst[name], float(np.nan_to_num(difference, nan=np.inf)))
        # An episode cut by its recorder ends with a truncation that the environment does not know.
        ends += bool(terminated) != bool(episode.terminations[-1]) or (
            truncated and not episode.truncations[-1]
        )
        episodes, steps = episodes + 1, steps + len(rewards)
    if not episodes:
        raise StabError(
            f"dataset {dataset.id!r}: no episode has a reset seed, so its actions cannot be"
            " replayed"
        )
    return Replay(episodes, steps, unseeded, worst["observations"], worst["rewards"], ends)


@dataclass(frozen=True)
class Ended:
    """What an episode returned, and whether it ended by itself.

    Attributes:
        number: the dataset's.
        rewards: (steps,) float64.
        terminated: whether the environment ended it, its time limit aside.
    """

    number: int
    rewards: np.ndarray
    terminated: bool


def endings(dataset: minari.MinariDataset, progress: Progress = no_progress) -> list[Ended]:
    """Return how every episode went.

    Raises StabError if they cannot be read, one has no steps, or rewards are not finite.
    """
    episodes = []
    for episode in _readable(dataset, dataset):
        rewards = np.asarray(episode.rewards, dtype=np.float64)
        if not len(rewards) or not np.isfinite(rewards).all():
            what = "a reward that is not finite" if len(rewards) else "no steps"
            raise StabError(f"dataset {dataset.id!r}: episode {episode.id} has {what}")
        episodes.append(Ended(int(episode.id), rewards, bool(episode.terminations[-1])))
        progress(len(episodes) / dataset.total_episodes)
    if not episodes:
        raise StabError(f"dataset {dataset.id!r} has no episodes")
    return episodes


def ends_there(dataset: minari.MinariDataset, number: int, env: gym.Env[Any, Any]) -> bool:
    """Whether the environment ends an episode after its last recorded step, and not before.

    The actions are replayed, from the episode's reset seed if it has one; without it, only a
    truncation counts (a limit of steps does not depend on the start).
    """
    (about,) = dataset.storage.get_episode_metadata([number])
    (episode,) = _readable(dataset, dataset.iterate_episodes([number]))
    seed = about.get("seed")
    try:
        env.reset(seed=0 if seed is None else int(seed))
        ends = [env.step(action)[2:4] for action in episode.actions]
    except StabError:  # actions of another start, perhaps
        return False
    terminated, truncated = ends[-1]
    return not any(map(any, ends[:-1])) and (truncated or (terminated and seed is not None))


def _readable(dataset: minari.MinariDataset, items: Iterable[Any]) -> Iterator[Any]:
    """Yield what is read from a dataset. Raises StabError when it cannot be."""
    try:
        yield from items
    except (OSError, KeyError, ValueError, TypeError, AssertionError, RuntimeError) as e:
        raise StabError(f"dataset {dataset.id!r} in {root()} cannot be read: {reason(e)}") from e


def stab_metadata(dataset: minari.MinariDataset) -> dict[str, Any]:
    """Return what stab wrote into the dataset's metadata; empty for other datasets."""
    about = dataset.storage.metadata.get("stab", {})
    return about if isinstance(about, dict) else {}


def stated_references(dataset: minari.MinariDataset) -> References | None:
    """Return the references that stab wrote into the metadata, if any. Raises StabError."""
    about = stab_metadata(dataset)
    try:
        return references_from(about["references"]) if "references" in about else None
    except StabError as e:
        raise StabError(f"dataset {dataset.id!r}, stab.references in its metadata: {e}") from e


def episode(
    seed: int, observations: Sequence[Any], steps: Sequence[tuple[Any, SupportsFloat, bool, bool]]
) -> EpisodeBuffer:
    """Return an episode to write.

    Args:
        seed: its reset seed.
        observations: one more than there are steps.
        steps: action, reward, terminated, truncated.
    """
    actions, rewards, terminations, truncations = map(np.array, zip(*steps, strict=True))
    return EpisodeBuffer(
        seed=seed,
        observations=np.array(observations),
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )


def create(
    dataset_id: str,
    episodes: Sequence[EpisodeBuffer],
    spec: gym.envs.registration.EnvSpec,
    references: References | None,
    metadata: dict[str, Any],
    larger: bool = False,
    evaluation: gym.envs.registration.EnvSpec | None = None,
    **description: Any,
) -> None:
    """Write a Minari dataset under its id, whole or not at all.

    With ``larger`` it replaces a smaller one from the same expert. ``evaluation`` is the
    environment to roll out in, if it is not ``spec``. Raises StabError if the dataset exists or
    cannot be written.
    """
    check_id(dataset_id)
    known: dict[str, Any] = {}
    if references is not None:
        known = {
            "ref_min_score": references.random.cumulative[-1],
            "ref_max_score": references.expert.cumulative[-1],
            "num_episodes_average_score": references.expert.episodes,
        }
    target = root() / dataset_id
    if target.exists() and not larger:
        raise StabError(
            f"dataset {dataset_id!r} is already in {root()}; delete it first: stab data remove"
            f" {dataset_id}"
        )
    try:
        root().mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".stab-", dir=root()) as folder,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            with _minari_root(folder):
                written = minari.create_dataset_from_buffers(
                    dataset_id,
                    list(episodes),
                    env=spec,
                    eval_env=evaluation or spec,
                    **(known | description),
                )
                if references is not None:
                    metadata = metadata | {"references": references_to(references)}
                written.storage.update_metadata({"stab": metadata})
            _make_namespaces(dataset_id)
            smaller = Path(folder) / "smaller"
            if larger and target.exists():
                os.rename(target, smaller)
            try:
                os.rename(Path(folder) / dataset_id, target)
            except OSError:
                if smaller.exists():
                    os.rename(smaller, target)
                raise
    except OSError as e:
        if exists(dataset_id):  # another process was faster
            return
        raise StabError(f"cannot write dataset {dataset_id!r} into {root()}: {reason(e)}") from e


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
