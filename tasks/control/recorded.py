"""Any Minari dataset as a task: the environment it was recorded in, its references from metadata or measured."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import minari
import numpy as np
import torch
from torch import Tensor, nn

from stab import files
from stab.files import versions
from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import datasets
from stab.tasks.base import Demonstrations, Remarks, Task, tasks
from stab.tasks.control.episodes import Episodes, make, make_episodes
from stab.tasks.control.rollout import rollout
from stab.tasks.environments import TOKENS
from stab.tasks.policies import build
from stab.tasks.references import (
    RANDOM_SEED,
    Curve,
    Progress,
    References,
    curve,
    no_progress,
    portion,
    random_returns,
    references_from,
    references_to,
)
from stab.tasks.speed import one_thread, seconds
from stab.tasks.transitions import Transitions, digest

RANDOM_EPISODES = 100
# Standard errors that expert and random must lie apart to count as different.
APART = 4.0
UNLIMITED = 1000  # steps after which an episode of an environment without a time limit is ended


@dataclass(frozen=True)
class Recorded(Task):
    """A user's own dataset: any registered Gymnasium environment with Box observations and Box or Discrete actions.

    Arguments as for ``Task``; ``dataset_id`` must be given. Reference returns are those in the metadata (Minari's
    ``ref_min_score`` and ``ref_max_score``); where there are none, the random policy is measured over 100 episodes and
    the dataset's own mean return is the expert. The loss is the policy's: mean squared error or a likelihood for Box
    actions, cross-entropy for Discrete ones.
    """

    has_fresh_episodes: ClassVar[bool] = (
        False  # whether it can draw every minibatch from fresh ones
    )

    def __post_init__(self) -> None:
        if self.infinite and not self.has_fresh_episodes:
            raise StabError(
                f"data.infinite needs an expert to draw fresh episodes from, task {self.name!r} has none: use a task that"
                " has, such as hopper"
            )

    @property
    def demonstrations_id(self) -> str:
        if self.dataset_id is None:
            raise StabError(
                f"task {self.name!r} has no dataset of its own: give --dataset, see: stab data list"
            )
        return self.dataset_id

    @property
    def horizon(self) -> int:
        return self._spec.max_episode_steps or UNLIMITED

    def ready(self) -> bool:
        return datasets.exists(self.demonstrations_id)

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        if "_demonstrations" not in self.__dict__:
            self.__dict__["_demonstrations"] = self._load(progress)
        found: Demonstrations = self.__dict__["_demonstrations"]
        return found

    def _load(self, progress: Progress) -> Demonstrations:
        found = datasets.load(self.demonstrations_id)
        _ = self._env  # whether the environment fits comes before what the episodes hold
        train, validation = datasets.split(found, self.train_episodes, self.validation_episodes)
        return Demonstrations(
            train,
            validation,
            self._references(found, progress),
            found.id,
            digest(train, validation),
            datasets.stab_metadata(found).get("expert_sha256"),
            self._spec.id,
        )

    def _references(self, found: minari.MinariDataset, progress: Progress) -> References:
        """Return the dataset's references: stab's in its metadata, Minari's there, or measured ones."""
        about = datasets.stab_metadata(found)
        if "references" in about:
            return references_from(about["references"])
        measured = self._measured(found, progress)
        low, high = (found.storage.metadata.get(key) for key in ("ref_min_score", "ref_max_score"))
        if low is None or high is None:
            self._tell_apart(found, measured)
            return measured
        if not (math.isfinite(low) and math.isfinite(high) and high > low):
            raise StabError(
                f"dataset {found.id!r}: ref_max_score ({high}) is not above ref_min_score ({low})"
            )
        return References(
            _ending_at(measured.random, float(low)),
            _ending_at(measured.expert, float(high)),
            "dataset's metadata",
        )

    def _measured(self, found: minari.MinariDataset, progress: Progress) -> References:
        """Measure the random policy, and take the dataset's episodes as the expert; once for each dataset."""
        folder = datasets.root() / found.id / "data"
        contents = [
            (p.name, p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]
        key = [
            found.id,
            str(folder),
            contents,
            self._spec.to_json(),
            versions(("gymnasium", "mujoco", "numpy")),
        ]
        path = (
            files.cache_folder()
            / f"references-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
        )
        try:
            references = references_from(json.loads(path.read_text()))
        except (
            OSError,
            ValueError,
        ):  # StabError is one: a cache that is not what it should be is made anew
            cumulative = np.zeros((found.total_episodes, self.horizon))
            lengths = np.zeros(found.total_episodes, dtype=np.int64)
            for n, rewards in enumerate(datasets.rewards(found, portion(progress, 0.0, 0.5))):
                lengths[n] = min(len(rewards), self.horizon)
                cumulative[n, : lengths[n]] = rewards[: lengths[n]].cumsum()
                cumulative[n, lengths[n] :] = cumulative[n, lengths[n] - 1]
            seeds = range(RANDOM_SEED, RANDOM_SEED + RANDOM_EPISODES)
            random = random_returns(self._env, seeds, self.horizon, portion(progress, 0.5, 0.5))
            references = References(
                curve(*random, RANDOM_SEED),
                curve(cumulative, lengths, 0),
                "measured: random policy, dataset's mean",
            )
            files.write_cache(path, json.dumps(references_to(references)))
        return references

    def _tell_apart(self, found: minari.MinariDataset, references: References) -> None:
        """Raise StabError where expert and random policy return about the same."""
        low, high = references.random, references.expert
        error = math.hypot(low.std / math.sqrt(low.episodes), high.std / math.sqrt(high.episodes))
        gap = high.cumulative[-1] - low.cumulative[-1]
        if gap <= APART * error:
            raise StabError(
                f"dataset {found.id!r} returns {high.cumulative[-1]:.4g} an episode, actions at random"
                f" {low.cumulative[-1]:.4g}: less than {APART:g} standard errors ({error:.2g}) better, so returns cannot be"
                " normalised; give the dataset's ref_min_score and ref_max_score, or better demonstrations"
            )

    def policy(self, recipe: Recipe) -> nn.Module:
        mean, std = self._statistics
        return build(recipe, mean, std, self._env.action_space)

    def loss(self, policy: Any, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(batch)
        return loss

    def rollout(
        self,
        policy: Any,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Remarks]:
        return rollout(self._episodes, policy, stacked, starts, horizons, progress)

    def speed(self, recipe: Recipe) -> tuple[float, float]:
        env, space = self._env, self._env.action_space
        size = math.prod(env.observation_space.shape or ())
        device = torch.device(recipe.device)
        policy = build(recipe, torch.zeros(size), torch.ones(size), space)
        discrete = isinstance(space, gym.spaces.Discrete)
        actions = (
            torch.zeros(1000, dtype=torch.int64)
            if discrete
            else torch.zeros(1000, math.prod(space.shape or ()))
        )
        made_up = Transitions(torch.randn(1000, size), actions, np.zeros(1000, dtype=np.int64))
        batch = made_up.to(device).batch(np.arange(recipe.batch_size) % 1000)
        trained = copy.deepcopy(policy).to(device)
        optimizer = torch.optim.AdamW(trained.parameters(), fused=True)

        def update() -> None:
            optimizer.zero_grad()
            loss = trained.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device

        # The same policy many times over, as in a block of a rollout. Random actions fall at once: a reset would be a
        # good part of the cost, so step on.
        rows, policies = 8, 8
        stack = policy.stack(
            {
                name: value[None].repeat_interleave(policies, 0)
                for name, value in policy.state_dict().items()
            }
        )
        observations = (
            self._episodes.reset([0] * rows * policies)
            .astype(np.float32)
            .reshape(policies, rows, -1)
        )

        @torch.inference_mode()
        def step() -> None:
            actions = stack.act(observations, range(policies))
            with np.errstate(all="ignore"):  # no environment is made for going on behind its end
                self._episodes.step(
                    range(rows * policies), actions.reshape(rows * policies, *actions.shape[2:])
                )

        with one_thread():  # as in the workers
            return seconds(update, 0.2), seconds(step, 0.2) / (rows * policies)

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        spec = datasets.environment(datasets.load(self.demonstrations_id))
        return spec if spec.max_episode_steps else replace(spec, max_episode_steps=UNLIMITED)

    @functools.cached_property
    def _env(self) -> gym.Env[Any, Any]:
        env = make(self._spec)
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise StabError(
                f"observations {env.observation_space} of {self._spec.id} are not supported: expected a Box"
            )
        return env

    @functools.cached_property
    def _episodes(self) -> Episodes:
        return make_episodes(self._spec)

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        train: Any = self.dataset().train
        std, mean = torch.std_mean(train.observations.double(), dim=0, correction=0)
        # A constant observation carries nothing: leave its scale alone.
        return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


def task_for(dataset_id: str) -> str:
    """Return the task that a dataset belongs to: the one that collects it, that of its environment, or ``recorded``."""
    from stab.tasks.catalog import CATALOG

    for name in tasks.names():
        if dataset_id == f"stab/{name}/expert-v0":
            return name
    spec = datasets.load(dataset_id).env_spec
    if spec is not None and spec.id == TOKENS:
        return "stories" if spec.kwargs.get("source") == "stories" else "text"
    for record in CATALOG:
        if spec is not None and spec.id == record.environment:
            return "recorded" if datasets.rewards_differ(spec) else record.name
    return "recorded"


def _ending_at(measured: Curve, total: float) -> Curve:
    """Return the curve corrected by a straight line, so that it ends at the score that the metadata states."""
    steps = len(measured.cumulative)
    missing = total - measured.cumulative[-1]
    corrected = [value + missing * (h + 1) / steps for h, value in enumerate(measured.cumulative)]
    return replace(measured, cumulative=[*corrected[:-1], total])
