"""The cliff's dynamics, its expert, and the environment."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

ANGLE = 0.1  # radians that one step turns the state by: 63 steps a turn
PUSH = 0.5  # B = PUSH * identity: what an action of 1 moves the state by
GAIN = 0.5  # K = -GAIN * R: the expert's feedback
EDGE = 1.0  # the half-space: first coordinate <= EDGE
START = (0.5, 0.9)  # distance from the origin at reset


def turn(states: np.ndarray) -> np.ndarray:
    """Return R x for states x (..., 2), R the rotation by ``ANGLE``.

    Written out elementwise: the bits of a state do not depend on how many stand beside it, as a
    matrix product's do.
    """
    p, q = states[..., 0], states[..., 1]
    c, s = math.cos(ANGLE), math.sin(ANGLE)
    return np.stack([c * p - s * q, s * p + c * q], -1)


def advance(states: np.ndarray, actions: np.ndarray, radius: float) -> np.ndarray:
    """Return A x + B u for states x (..., 2) and actions u (..., 2), clipped to [-1, 1].

    A = (radius + PUSH * GAIN) R and B = PUSH I, so that the closed loop of the expert u = K x, K =
    -GAIN R, is A + B K = radius R: both eigenvalues, radius exp(+-i ANGLE), have the modulus
    ``radius``.
    """
    return np.asarray((radius + PUSH * GAIN) * turn(states) + PUSH * np.clip(actions, -1.0, 1.0))


def expert(states: np.ndarray) -> np.ndarray:
    """Return the expert's actions K x = -GAIN R x (..., 2) for states (..., 2)."""
    return -GAIN * turn(states)


class CliffEnv(gym.Env[np.ndarray, np.ndarray]):
    """A state that circles beside a cliff: linear dynamics, and a reward inside a half-space.

    x' = A x + B u with x, u in R^2 (see ``advance``); reward 1 per step while x' lies in the
    half-space x_1 <= 1. Beyond it the episode ends without a reward. At reset the
    distance from the origin is uniform in [0.5, 0.9] and the direction uniform; there is no other
    noise, so a start is its reset seed.

    Args:
        radius: spectral radius of the expert's closed loop. At 1 it is marginally stable: the
            expert circles at its first distance forever, and a policy whose closed loop has the
            radius 1 + e reaches the cliff after about log(1 / distance) / log(1 + e) steps. Without
            actions the radius is ``radius`` + 0.25.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = radius
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.state = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        distance, direction = self.np_random.uniform(*START), self.np_random.uniform(0, 2 * math.pi)
        self.state = distance * np.array([math.cos(direction), math.sin(direction)])
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state = advance(self.state, np.asarray(action, dtype=np.float64), self.radius)
        fell = bool(self.state[0] > EDGE)
        return self.state.copy(), 0.0 if fell else 1.0, fell, False, {}
