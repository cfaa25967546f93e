"""Control: an agent in a Gymnasium environment, cloned from a Minari dataset."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import minari
import numpy as np
import torch
from torch import Tensor, nn

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import datasets, own, rebuild
from stab.tasks.base import Demonstrations, Infos, Task
from stab.tasks.control.episodes import Episodes, make_episodes
from stab.tasks.control.measured import references_of
from stab.tasks.control.rollout import rollout
from stab.tasks.environments import make
from stab.tasks.policies import Policy, build
from stab.tasks.references import Progress, References, no_progress
from stab.tasks.speed import speeds
from stab.tasks.transitions import Transitions, digest, remarks

UNLIMITED = 1000  # steps after which an episode of an environment without a time limit is ended


@dataclass(frozen=True)
class Control(Task):
    """What all tasks of control share. Observations are a Box, actions a Box or Discrete.

    The loss is the policy's: mean squared error or a likelihood for Box actions, cross-entropy for
    Discrete ones.
    """

    has_fresh_episodes: ClassVar[bool] = False  # whether minibatches can be of fresh ones

    def __post_init__(self) -> None:
        own.check_fresh(self, self.has_fresh_episodes)

    @property
    def horizon(self) -> int:
        return self._spec.max_episode_steps or UNLIMITED

    def has_data(self) -> bool:
        return own.has_data(self)

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        return own.loaded(self, self._load, progress)

    def _load(self, progress: Progress) -> Demonstrations:
        if self.dataset_id is None and not self.has_data():
            self.collect(progress)
        dataset = datasets.load(self.demonstrations_id)
        _ = self._env  # whether the environment fits comes before what the episodes hold
        train, validation = datasets.split(dataset, self.train_episodes, self.validation_episodes)
        return Demonstrations(
            train,
            validation,
            self._references(dataset, progress),
            dataset.id,
            digest(train, validation),
            datasets.stab_metadata(dataset).get("expert_sha256"),
            self._spec.id,
            remarks(train, validation, self._env.action_space),
        )

    def _references(self, dataset: minari.MinariDataset, progress: Progress) -> References:
        """Return the dataset's references: stab's or Minari's in its metadata, or measured ones."""
        return references_of(dataset, self._spec, self._env, progress)

    def policy(self, recipe: Recipe) -> nn.Module:
        mean, std = self._statistics
        return build(recipe, mean, std, self._env.action_space)

    def loss(self, policy: Any, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(batch)
        return loss

    def additive(self, policy: Any) -> bool:
        """Whether a batch's loss is the mean of its samples' losses: the policy knows.

        Not if a subclass has a loss of its own.
        """
        return type(self).loss is Control.loss and getattr(policy, "additive", False)

    def parts(self, policy: Any, batch: Any) -> int:
        """Return how many parts a batch's loss is the mean of: the policy knows, as above."""
        own = type(self).loss is Control.loss and isinstance(policy, Policy)
        return policy.parts(batch) if own else 1

    def rollout(
        self,
        policy: Any,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Infos]:
        return rollout(self._episodes, policy, stacked, starts, horizons, progress)

    def speed(self, recipe: Recipe) -> tuple[float, float] | None:
        env, space = self._env, self._env.action_space
        size = math.prod(env.observation_space.shape or ())
        device = torch.device(recipe.device)
        policy = build(recipe, torch.zeros(size), torch.ones(size), space)
        actions = torch.zeros(1000, math.prod(space.shape or ()))
        if isinstance(space, gym.spaces.Discrete):
            actions = torch.zeros(1000, dtype=torch.int64)
        random = Transitions(torch.randn(1000, size), actions, np.zeros(1000, dtype=np.int64))
        batch = random.to(device).batch(np.arange(recipe.batch_size) % 1000)
        trained = copy.deepcopy(policy).to(device)

        # The same policy many times over, as in a block of a rollout. Random actions fall at once:
        # a reset would be a good part of the cost, so step on.
        rows, policies = 8, 8
        weights = policy.state_dict().items()
        stack = policy.stack({name: torch.stack([value] * policies) for name, value in weights})
        first = self._episodes.reset([0] * rows * policies)
        observations = first.astype(np.float32).reshape(policies, rows, -1)

        @torch.inference_mode()
        def step() -> None:
            actions = stack.act(observations, range(policies))
            with np.errstate(all="ignore"):  # environments do not expect steps after the end
                self._episodes.step(
                    range(rows * policies), actions.reshape(rows * policies, *actions.shape[2:])
                )

        try:
            return speeds(trained, lambda policy: policy.loss(batch), step, rows * policies)
        except StabError:  # some environments do not bear steps after the end
            return None

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        spec = rebuild.environment(datasets.load(self.demonstrations_id))
        return spec if spec.max_episode_steps else replace(spec, max_episode_steps=UNLIMITED)

    @functools.cached_property
    def _env(self) -> gym.Env[Any, Any]:
        env = make(self._spec)
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise StabError(
                f"observations {env.observation_space} of {self._spec.id} are not supported:"
                " expected a Box"
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
