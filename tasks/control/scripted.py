"""Tasks whose expert is a function; their own dataset is collected on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from stab.files import versions
from stab.registry import StabError
from stab.tasks import datasets, own
from stab.tasks.control.task import UNLIMITED, Control
from stab.tasks.environments import make
from stab.tasks.references import (
    EXPERT_SEED,
    RANDOM_SEED,
    Progress,
    References,
    curve,
    no_progress,
    portion,
    random_returns,
)

REFERENCE_EPISODES = 100

# The action for an observation; what is random in it is drawn from the episode's generator.
Act = Callable[[Any, np.random.Generator], Any]


@dataclass(frozen=True)
class Scripted(Control):
    """A task whose expert is a function. Subclasses give ``environment`` and ``expert``.

    Attributes:
        environment: Gymnasium id, registered by the time a task is made.
        noise: standard deviation of what is added to the expert's actions in the demonstrations
            (Box actions): without it a policy of the expert's own class fits every transition
            exactly, and minibatches differ in nothing.
    """

    environment: ClassVar[str]
    noise: ClassVar[float] = 0.0

    def expert(self, observation: Any) -> Any:
        """Return the expert's action. Box actions are clipped to their space."""
        raise NotImplementedError

    def demonstrate(self, observation: Any, rng: np.random.Generator) -> Any:
        """Return the recorded action: the expert's, plus ``noise`` times a standard normal draw."""
        action = self.expert(observation)
        return action + self.noise * rng.standard_normal(np.shape(action)) if self.noise else action

    def about(self) -> dict[str, Any]:
        """Return what the dataset's metadata says of the expert; plain data."""
        return {"expert": {"noise": self.noise}}

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write episodes of ``demonstrate`` (reset seeds 0, 1, ...) and references of ``expert``.

        A larger dataset begins with the smaller one. Raises StabError for a ``dataset_id`` that is
        there already.
        """
        count, spec = own.count(self, episodes), self._own
        env = make(spec)
        references = measure(
            env, lambda observation, _: self.expert(observation), portion(progress, 0.0, 0.8)
        )
        datasets.create(
            self.demonstrations_id,
            [episode(env, self.demonstrate, seed) for seed in range(count)],
            spec,
            references,
            self.about() | {"versions": versions(("stab-gva", "gymnasium", "numpy"))},
            larger=self.dataset_id is None,
            algorithm_name=f"scripted expert, noise {self.noise:g}",
            author="stab",
            description=f"{count} episodes of the scripted expert of task {self.name} in"
            f" {spec.id}.",
        )
        progress(1.0)

    @property
    def _own(self) -> gym.envs.registration.EnvSpec:
        """How to make the environment that ``collect`` records in."""
        spec = gym.spec(self.environment)
        return replace(spec, max_episode_steps=spec.max_episode_steps or UNLIMITED)

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        if self.dataset_id is None and not datasets.exists(self.demonstrations_id):
            return self._own
        spec = super()._spec
        if spec.id != self.environment:
            raise StabError(
                f"dataset {self.demonstrations_id!r} was recorded in {spec.id}, task {self.name!r}"
                f" is {self.environment}: compare on it alone: --task recorded --dataset"
                f" {self.demonstrations_id}"
            )
        return spec


def episode(env: gym.Env[Any, Any], act: Act, seed: int) -> EpisodeBuffer:
    """Return one episode; the seed fixes reset and generator. Box actions are clipped."""
    rng, space = np.random.default_rng(seed), env.action_space
    observation, _ = env.reset(seed=seed)
    observations, steps, done = [observation], [], False
    while not done:
        action = act(observation, rng)
        if isinstance(space, gym.spaces.Box):
            action = np.clip(action, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        done = terminated or truncated
    return datasets.episode(seed, observations, steps)


def measure(env: gym.Env[Any, Any], act: Act, progress: Progress = no_progress) -> References:
    """Return the references of 100 episodes each: of random actions, and of ``act``."""
    assert env.spec is not None
    assert env.spec.max_episode_steps is not None
    horizon = env.spec.max_episode_steps
    seeds = range(RANDOM_SEED, RANDOM_SEED + REFERENCE_EPISODES)
    random = random_returns(env, seeds, horizon, portion(progress, 0.0, 0.5))
    cumulative, lengths = np.zeros((REFERENCE_EPISODES, horizon)), np.zeros(REFERENCE_EPISODES)
    for n in range(REFERENCE_EPISODES):
        rewards = np.asarray(episode(env, act, EXPERT_SEED + n).rewards)
        lengths[n] = len(rewards)
        cumulative[n] = np.pad(rewards, (0, horizon - len(rewards))).cumsum()
        portion(progress, 0.5, 0.5)((n + 1) / REFERENCE_EPISODES)
    return References(
        curve(*random, RANDOM_SEED), curve(cumulative, lengths, EXPERT_SEED), "measured"
    )
