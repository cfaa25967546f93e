"""The cliff: linear dynamics, a linear expert, a reward that jumps. Theory at hand, and an episode in milliseconds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from stab.registry import StabError
from stab.tasks import datasets, environments
from stab.tasks.base import Curve, Progress, References, no_progress
from stab.tasks.collected import Collected
from stab.tasks.environments import CLIFF, EDGE, advance, expert
from stab.tasks.episodes import Episodes, make
from stab.tasks.experts import EXPERT_SEED, RANDOM_SEED, curve, versions
from stab.tasks.rollout import part, random_returns

NOISE = 0.02  # standard deviation of what is added to the expert's actions
REFERENCE_EPISODES = 100
LINEAR = "mlp:depth=0,actions=clipped"  # the expert's own class of policies; wants train.lr=0.01, see docs/cliff.md

environments.register()


@dataclass(frozen=True)
class Cliff(Collected):
    """``stab/Cliff-v0`` and its linear expert; see ``environments.CliffEnv`` for the dynamics.

    Args:
        radius: spectral radius of the closed loop in which ``collect`` records.
    Further arguments as for ``Task``. ``dataset_id`` names a dataset of any radius that ``collect`` wrote: radius and
    references are those in its metadata.

    The expert's actions carry Gaussian noise (standard deviation 0.02), in the environment and in the dataset: without it a
    linear policy fits every transition exactly, all minibatches agree on the minimum, and their gradients vanish there. With
    it the loss cannot fall below 0.0004, and the gradient of a minibatch keeps a noise that the closed loop can amplify.
    """

    radius: float = 1.0

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write noisy episodes of the expert, reset seeds 0, 1, ..., and the references of the noiseless one.

        A larger dataset begins with the smaller one. Raises StabError for a ``dataset_id`` that is there already.
        """
        count = self._count(episodes)
        spec = gym.spec(CLIFF)
        spec.kwargs = {"radius": self.radius}
        env = make(spec)
        references = measure(env, part(progress, 0.0, 0.8))
        gain = expert(np.eye(2)).T
        datasets.create(
            self.demonstrations_id,
            [episode(env, seed, NOISE) for seed in range(count)],
            spec,
            references,
            {
                "expert_sha256": hashlib.sha256(gain.tobytes()).hexdigest(),
                "expert": {"gain": gain.tolist(), "noise": NOISE},
                "versions": versions(("stab-gva", "gymnasium", "numpy")),
            },
            larger=self.dataset_id is None,
            algorithm_name=f"linear feedback, noise {NOISE:g}",
            author="stab",
            description=f"{count} episodes of the linear expert of {CLIFF}, closed-loop spectral radius {self.radius:g}.",
        )
        progress(1.0)

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        if self.dataset_id is None and not datasets.exists(self.demonstrations_id):
            return gym.spec(CLIFF)
        spec = datasets.environment(datasets.load(self.demonstrations_id))
        if spec.id != CLIFF:
            raise StabError(
                f"dataset {self.demonstrations_id!r} was recorded in {spec.id}, task {self.name!r} is {CLIFF}: compare on it"
                f" alone: --task recorded --dataset {self.demonstrations_id}"
            )
        return spec

    @functools.cached_property
    def _episodes(self) -> Episodes:
        return CliffEpisodes(self._spec)


class CliffEpisodes:
    """``CliffEnv``, bitwise as Gymnasium steps it, all episodes at once; the time limit is the caller's last horizon."""

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        self.env: Any = make(spec).unwrapped
        self.states = np.empty((0, 2))

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self.states = np.array([self.env.reset(seed=int(seed))[0] for seed in seeds])
        return self.states.copy()

    def step(self, which: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        states = self.states[which] = advance(self.states[which], actions.astype(np.float64), self.env.radius)
        fell = states[:, 0] > EDGE
        return states, np.where(fell, 0.0, 1.0), fell, np.zeros(len(fell), dtype=bool)


def episode(env: gym.Env[Any, Any], seed: int, noise: float = 0.0) -> EpisodeBuffer:
    """Return one episode of the expert: u = K x + ``noise`` times a standard normal draw, both fixed by the seed."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    observations, steps, done = [observation], [], False
    while not done:
        action = (expert(observation) + noise * rng.standard_normal(2)).clip(-1, 1).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        done = terminated or truncated
    return datasets.episode(seed, observations, steps)


def measure(env: gym.Env[Any, Any], progress: Progress = no_progress) -> References:
    """Return the references of 100 episodes each: actions drawn from the action space, and the noiseless expert."""
    assert env.spec is not None
    assert env.spec.max_episode_steps is not None
    horizon = env.spec.max_episode_steps
    seeds = range(RANDOM_SEED, RANDOM_SEED + REFERENCE_EPISODES)
    low = curve(*random_returns(env, seeds, horizon, part(progress, 0.0, 0.5)), RANDOM_SEED)
    return References(random=low, expert=_expert_curve(env, horizon, part(progress, 0.5, 0.5)), source="measured")


def _expert_curve(env: gym.Env[Any, Any], horizon: int, progress: Progress) -> Curve:
    cumulative, lengths = np.zeros((REFERENCE_EPISODES, horizon)), np.zeros(REFERENCE_EPISODES)
    for n in range(REFERENCE_EPISODES):
        rewards = np.asarray(episode(env, EXPERT_SEED + n).rewards)
        lengths[n] = len(rewards)
        cumulative[n] = np.pad(rewards, (0, horizon - len(rewards))).cumsum()
        progress((n + 1) / REFERENCE_EPISODES)
    return curve(cumulative, lengths, EXPERT_SEED)
