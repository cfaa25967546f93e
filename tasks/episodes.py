"""Episodes of one environment stepped side by side: any Gymnasium environment, and MuJoCo's without its Python overhead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


class Episodes(Protocol):
    """A number of episodes, each in an environment of its own."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin one episode a seed; return observations (episodes, obs_dim) in the environment's dtype."""

    def step(self, which: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the episodes ``which`` (k,) by actions (k, ...).

        Returns observations (k, obs_dim), rewards (k,) float64, terminated (k,) and truncated (k,).
        """


class GymEpisodes:
    """Any environment, one ``env.step`` at a time; environments are reused (``reset`` makes one as good as new)."""

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        self.spec = spec
        self.envs: list[gym.Env[Any, Any]] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        while len(self.envs) < len(seeds):
            self.envs.append(make(self.spec))
        return np.array([np.ravel(env.reset(seed=int(s))[0]) for env, s in zip(self.envs, seeds, strict=False)])

    def step(self, which: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        steps = [self.envs[i].step(action) for i, action in zip(which, actions, strict=True)]
        observations, rewards, terminated, truncated, _ = zip(*steps, strict=True)
        return (
            np.array([np.ravel(o) for o in observations]),
            np.array(rewards),
            np.array(terminated),
            np.array(truncated),
        )


class HopperEpisodes:
    """Hopper-v5, bitwise as Gymnasium steps it: physics by ``mj_step``, the rest for all episodes at once.

    Each episode keeps one persistent ``MjData``, whose warm start is part of the state. Gymnasium's
    ``mj_rnePostConstraint`` is left out: it computes contact forces that Hopper does not read.
    Formulas: gymnasium/envs/mujoco/hopper_v5.py, version 1.4.0.
    """

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        import mujoco

        env: Any = make(spec)
        self.env = env.unwrapped
        self.model = self.env.model
        self.mj_step, self.mj_copy, self.mj_data = mujoco.mj_step, mujoco.mj_copyData, mujoco.MjData
        self.data: list[Any] = []
        self.views: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        observations = []
        for i, seed in enumerate(seeds):
            if i == len(self.data):
                self.data.append(self.mj_data(self.model))
                self.views.append((self.data[i].qpos, self.data[i].qvel, self.data[i].ctrl))
            observations.append(self.env.reset(seed=int(seed))[0])
            self.mj_copy(self.data[i], self.model, self.env.data)
        return np.array(observations)

    def step(self, which: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        env, model, mj_step = self.env, self.model, self.mj_step
        state = np.empty((len(which), model.nq + model.nv))
        before = np.empty(len(which))
        for k, i in enumerate(which):
            qpos, qvel, ctrl = self.views[i]
            before[k] = qpos[0]
            ctrl[:] = actions[k]
            mj_step(model, self.data[i], nstep=env.frame_skip)
            state[k, : model.nq] = qpos
            state[k, model.nq :] = qvel
        low, high = env._healthy_state_range
        z, angle = state[:, 1], state[:, 2]
        healthy = ((low < state[:, 2:]) & (state[:, 2:] < high)).all(1)
        healthy &= (env._healthy_z_range[0] < z) & (z < env._healthy_z_range[1])
        healthy &= (env._healthy_angle_range[0] < angle) & (angle < env._healthy_angle_range[1])
        velocity = (state[:, 0] - before) / env.dt
        control = env._ctrl_cost_weight * np.square(actions).sum(1)
        rewards = env._forward_reward_weight * velocity + healthy * env._healthy_reward - control
        observations = state[:, 1:].copy()
        np.clip(observations[:, model.nq - 1 :], -10, 10, out=observations[:, model.nq - 1 :])
        return observations, rewards, ~healthy, np.zeros(len(which), dtype=bool)


FAST = {"Hopper-v5": HopperEpisodes}


def make(spec: gym.envs.registration.EnvSpec) -> gym.Env[Any, Any]:
    """Make one environment, without the talk of Gymnasium and MuJoCo (which also drops a file where it is run)."""
    gym.logger.min_level = gym.logger.ERROR
    if "mujoco" in str(spec.entry_point):
        import mujoco

        mujoco.set_mju_user_warning(_ignore)
    return gym.make(spec, disable_env_checker=True)


def _ignore(message: str) -> None:
    """Say nothing: a simulation that blows up shows in its rewards."""


def make_episodes(spec: gym.envs.registration.EnvSpec) -> Episodes:
    """Return the fastest way to step this environment that gives Gymnasium's bits."""
    return FAST[spec.id](spec) if spec == gym.spec(spec.id) and spec.id in FAST else GymEpisodes(spec)
