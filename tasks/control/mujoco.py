"""MuJoCo's locomotion environments, many episodes side by side, with Gymnasium's bits.

``mujoco.mj_step`` steps one persistent ``MjData`` per episode: its warm start is part of the state,
and so are the body positions and contact forces of the last substep, which Ant and Humanoid read.
Observation, reward and termination are computed for all episodes at once, and
``mj_rnePostConstraint`` is called only if contact forces are read. Formulas:
gymnasium/envs/mujoco/*_v5.py, version 1.4.0, operation by operation, since another order has other
last bits; ``episodes.make_episodes`` checks that the installed version still gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from stab.tasks.environments import make

Array = np.ndarray
Read = dict[str, Array]  # field of MjData -> (episodes, ...)


class MujocoEpisodes:
    """Episodes of one environment. Subclasses name fields of ``MjData``, and give the formulas.

    Attributes:
        fields: name -> which rows, besides all of qpos and qvel.
        contact: whether contact forces are among them.
    """

    fields: ClassVar[dict[str, slice]] = {}
    contact: ClassVar[bool] = False

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        import mujoco

        env: Any = make(spec)
        self.env = env.unwrapped
        self.model, self.dt = self.env.model, self.env.dt
        self.rows = {"qpos": slice(None), "qvel": slice(None), **self.fields}
        self.mj_step, self.mj_contact = mujoco.mj_step, mujoco.mj_rnePostConstraint
        self.mj_copy, self.mj_data = mujoco.mj_copyData, mujoco.MjData
        self.data: list[Any] = []
        self.controls: list[np.ndarray] = []
        # Made once: an attribute of MjData is a new array object each time.
        self.views: list[list[np.ndarray]] = []
        self.places = np.empty(0)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        observations = []
        for i, seed in enumerate(seeds):
            if i == len(self.data):
                data = self.mj_data(self.model)
                self.data.append(data)
                self.controls.append(data.ctrl)
                self.views.append([getattr(data, name)[rows] for name, rows in self.rows.items()])
            observations.append(self.env.reset(seed=int(seed))[0])
            self.mj_copy(self.data[i], self.model, self.env.data)
        self.places = self.place(self._read(range(len(seeds))))
        return np.array(observations)

    def step(
        self, which: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        model, mj_step, skip = self.model, self.mj_step, self.env.frame_skip
        data, controls = self.data, self.controls
        for i, action in zip(which, actions, strict=True):
            controls[i][:] = action
            mj_step(model, data[i], skip)
            if self.contact:
                self.mj_contact(model, data[i])
        read = self._read(which)
        place = self.place(read)
        velocity = (place - self.places[which]) / self.dt
        self.places[which] = place
        reward, healthy = self.reward(read, velocity, actions)
        return self.observe(read), reward, ~healthy, np.zeros(len(which), dtype=bool)

    def _read(self, which: Sequence[int]) -> Read:
        columns = zip(*(self.views[i] for i in which), strict=True)
        return {name: np.array(column) for name, column in zip(self.rows, columns, strict=True)}

    def place(self, read: Read) -> np.ndarray:
        """Return where each episode's body is along x (episodes,)."""
        return read["qpos"][:, 0].copy()

    def reward(self, read: Read, velocity: Array, actions: Array) -> tuple[Array, Array]:
        """Return rewards and whether episodes go on, (episodes,) each, for velocities along x."""
        raise NotImplementedError

    def observe(self, read: Read) -> np.ndarray:
        """Return observations (episodes, obs_dim)."""
        raise NotImplementedError


class HalfCheetah(MujocoEpisodes):
    """HalfCheetah-v5: never ends."""

    def reward(self, read: Read, velocity: Array, actions: Array) -> tuple[Array, Array]:
        control = self.env._ctrl_cost_weight * np.square(actions).sum(1)
        healthy = np.ones(len(velocity), dtype=bool)
        return self.env._forward_reward_weight * velocity - control, healthy

    def observe(self, read: Read) -> np.ndarray:
        return np.concatenate([read["qpos"][:, 1:], read["qvel"]], 1)


class Walker2d(MujocoEpisodes):
    """Walker2d-v5."""

    def reward(self, read: Read, velocity: Array, actions: Array) -> tuple[Array, Array]:
        env, healthy = self.env, self.healthy(read)
        control = env._ctrl_cost_weight * np.square(actions).sum(1)
        forward = env._forward_reward_weight * velocity
        return forward + healthy * env._healthy_reward - control, healthy

    def healthy(self, read: Read) -> np.ndarray:
        (low, high), (least, most) = self.env._healthy_z_range, self.env._healthy_angle_range
        z, angle = read["qpos"][:, 1], read["qpos"][:, 2]
        return np.asarray((low < z) & (z < high) & (least < angle) & (angle < most))

    def observe(self, read: Read) -> np.ndarray:
        return np.concatenate([read["qpos"][:, 1:], np.clip(read["qvel"], -10, 10)], 1)


class Hopper(Walker2d):
    """Hopper-v5: Walker2d's, and every other coordinate and velocity must stay in a range."""

    def healthy(self, read: Read) -> np.ndarray:
        low, high = self.env._healthy_state_range
        state = np.concatenate([read["qpos"][:, 2:], read["qvel"]], 1)
        return np.asarray(((low < state) & (state < high)).all(1) & super().healthy(read))


class Ant(MujocoEpisodes):
    """Ant-v5: the torso's place is that of the last substep; contact forces are seen, and cost."""

    fields: ClassVar[dict[str, slice]] = {"xpos": slice(None), "cfrc_ext": slice(None)}
    contact: ClassVar[bool] = True

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        super().__init__(spec)
        self.body = self.env.data.body(self.env._main_body).id

    def place(self, read: Read) -> np.ndarray:
        return read["xpos"][:, self.body, 0].copy()

    def reward(self, read: Read, velocity: Array, actions: Array) -> tuple[Array, Array]:
        env = self.env
        low, high = env._healthy_z_range
        z, count = read["qpos"][:, 2], len(velocity)
        finite = np.isfinite(read["qpos"]).all(1) & np.isfinite(read["qvel"]).all(1)
        healthy = finite & (low <= z) & (z <= high)
        control = env._ctrl_cost_weight * np.square(actions).sum(1)
        contact = env._contact_cost_weight * np.square(self.forces(read)).reshape(count, -1).sum(1)
        forward = velocity * env._forward_reward_weight
        return forward + healthy * env._healthy_reward - (control + contact), healthy

    def forces(self, read: Read) -> np.ndarray:
        low, high = self.env._contact_force_range
        return np.clip(read["cfrc_ext"], low, high)

    def observe(self, read: Read) -> np.ndarray:
        forces = self.forces(read)[:, 1:].reshape(len(read["qpos"]), -1)
        return np.concatenate([read["qpos"][:, 2:], read["qvel"], forces], 1)


class Humanoid(MujocoEpisodes):
    """Humanoid-v5: the place is the last substep's centre of mass; it sees more of the dynamics."""

    fields: ClassVar[dict[str, slice]] = {
        "cinert": slice(1, None),
        "cvel": slice(1, None),
        "qfrc_actuator": slice(6, None),
        "cfrc_ext": slice(None),
        "xipos": slice(None),
        "ctrl": slice(None),
    }
    contact: ClassVar[bool] = True

    def place(self, read: Read) -> np.ndarray:
        mass = self.model.body_mass
        return np.asarray(np.einsum("b,kbj->kj", mass, read["xipos"])[:, 0] / mass.sum())

    def reward(self, read: Read, velocity: Array, actions: Array) -> tuple[Array, Array]:
        env = self.env
        low, high = env._healthy_z_range
        z, count = read["qpos"][:, 2], len(velocity)
        healthy = np.asarray((low < z) & (z < high))
        control = env._ctrl_cost_weight * np.square(read["ctrl"]).sum(1)
        contact = env._contact_cost_weight * np.square(read["cfrc_ext"]).reshape(count, -1).sum(1)
        costs = control + np.clip(contact, *env._contact_cost_range)
        forward = env._forward_reward_weight * velocity
        return forward + healthy * env._healthy_reward - costs, healthy

    def observe(self, read: Read) -> np.ndarray:
        count = len(read["qpos"])
        whole = [read[name] for name in ("qvel", "cinert", "cvel", "qfrc_actuator")]
        seen = [read["qpos"][:, 2:], *whole, read["cfrc_ext"][:, 1:]]
        return np.concatenate([part.reshape(count, -1) for part in seen], 1)


FAST = {
    "Hopper-v5": Hopper,
    "Walker2d-v5": Walker2d,
    "HalfCheetah-v5": HalfCheetah,
    "Ant-v5": Ant,
    "Humanoid-v5": Humanoid,
}
