"""Episodes stepped side by side: of any Gymnasium environment, and faster of MuJoCo's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from stab.tasks.environments import make


class Episodes(Protocol):
    """A number of episodes, each in an environment of its own."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin one episode per seed; return observations (episodes, obs_dim), their dtype kept."""

    def step(
        self, which: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the episodes ``which`` (k,) by actions (k, ...).

        Returns observations (k, obs_dim), rewards (k,) float64, and terminated and truncated, (k,)
        bool each.
        """


class GymEpisodes:
    """Any environment, one ``env.step`` at a time; environments are reused."""

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        self.spec = spec
        self.envs: list[gym.Env[Any, Any]] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        while len(self.envs) < len(seeds):
            self.envs.append(make(self.spec))
        return np.array(
            [np.ravel(env.reset(seed=int(s))[0]) for env, s in zip(self.envs, seeds, strict=False)]
        )

    def step(
        self, which: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        steps = [self.envs[i].step(action) for i, action in zip(which, actions, strict=True)]
        observations, rewards, terminated, truncated, _ = zip(*steps, strict=True)
        return (
            np.array([np.ravel(o) for o in observations]),
            np.array(rewards),
            np.array(terminated),
            np.array(truncated),
        )


def make_episodes(spec: gym.envs.registration.EnvSpec) -> Episodes:
    """Return the fastest way to step this environment that gives Gymnasium's bits."""
    from stab.tasks.control.mujoco import FAST

    if spec.id in FAST and spec == gym.spec(spec.id) and gives_gymnasiums_bits(spec.id):
        return FAST[spec.id](spec)
    return GymEpisodes(spec)


@functools.cache
def gives_gymnasiums_bits(environment: str) -> bool:
    """Whether the fast way gives the bits of the installed version of Gymnasium."""
    from stab.tasks.control.mujoco import FAST

    spec = gym.spec(environment)
    one, other, seeds = FAST[environment](spec), GymEpisodes(spec), [0, 1]
    rng = np.random.default_rng(0)
    if not np.array_equal(one.reset(seeds), other.reset(seeds)):
        return False
    space = other.envs[0].action_space
    assert isinstance(space, gym.spaces.Box)
    for _ in range(10):
        actions = rng.uniform(space.low, space.high, (2, *space.shape)).astype(space.dtype)
        pairs = zip(one.step([0, 1], actions), other.step([0, 1], actions), strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            return False
    return True
