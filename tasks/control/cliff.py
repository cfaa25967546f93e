"""The cliff: linear dynamics, a linear expert, a reward that jumps; an episode in milliseconds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from stab.tasks import environments
from stab.tasks.control.cliff_env import EDGE, advance, expert
from stab.tasks.control.episodes import Episodes
from stab.tasks.control.scripted import Scripted
from stab.tasks.environments import CLIFF, make

NOISE = 0.02  # standard deviation of what is added to the expert's actions
# The expert's own class of policies; needs train.lr=0.01, see docs/cliff.md.
LINEAR = "mlp:depth=0,actions=clipped"

environments.register()


@dataclass(frozen=True)
class Cliff(Scripted):
    """``stab/Cliff-v0`` and its linear expert; see ``environments.CliffEnv`` for the dynamics.

    Args:
        radius: spectral radius of the closed loop in which ``collect`` records.
    Further arguments as for ``Task``. ``dataset_id`` names a dataset of any radius that ``collect``
    wrote: radius and references are those in its metadata.

    The recorded actions carry Gaussian noise (standard deviation 0.02). Without it a linear policy
    fits every transition exactly, and the gradients of all minibatches vanish at the same minimum.
    With it the loss cannot fall below 0.0004, and the gradient of a minibatch keeps a noise that
    the closed loop can amplify.
    """

    radius: float = 1.0
    environment: ClassVar[str] = CLIFF
    noise: ClassVar[float] = NOISE

    def expert(self, observation: Any) -> Any:
        return expert(observation)

    def about(self) -> dict[str, Any]:
        gain = expert(np.eye(2)).T
        return {
            "expert_sha256": hashlib.sha256(gain.tobytes()).hexdigest(),
            "expert": {"gain": gain.tolist(), "noise": NOISE},
        }

    @property
    def _own(self) -> gym.envs.registration.EnvSpec:
        return replace(super()._own, kwargs={"radius": self.radius})

    @functools.cached_property
    def _episodes(self) -> Episodes:
        return CliffEpisodes(self._spec)


class CliffEpisodes:
    """``CliffEnv``, bitwise as Gymnasium steps it, all episodes at once, without a time limit."""

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        self.env: Any = make(spec).unwrapped
        self.states = np.empty((0, 2))

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self.states = np.array([self.env.reset(seed=int(seed))[0] for seed in seeds])
        return self.states.copy()

    def step(
        self, which: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        states = self.states[which] = advance(
            self.states[which], actions.astype(np.float64), self.env.radius
        )
        fell = states[:, 0] > EDGE
        return states, np.where(fell, 0.0, 1.0), fell, np.zeros(len(fell), dtype=bool)
