"""Closed-loop episodes: many policies side by side, each from the same starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from stab.tasks.base import Progress, no_progress
from stab.tasks.policies import Policy

# Policies side by side. Enough to share the cost of a product; few enough that their environments stay in the cache.
BLOCK = 16

# (policy, start, observation acted on, action, reward, terminated, truncated, next observation)
Recorder = Callable[[int, int, Any, Any, float, bool, bool, Any], None]


class Environments:
    """Environments of one spec, made when first needed and used again; ``reset`` makes one as good as new."""

    def __init__(self, spec: gym.envs.registration.EnvSpec) -> None:
        self.spec = spec
        self._made: dict[int, list[gym.Env[Any, Any]]] = {}

    def take(self, count: int, horizon: int) -> list[gym.Env[Any, Any]]:
        """Return ``count`` environments whose episodes are cut at ``horizon`` steps."""
        made = self._made.setdefault(horizon, [])
        while len(made) < count:
            made.append(gym.make(self.spec, max_episode_steps=horizon, disable_env_checker=True))
        return made[:count]


@torch.inference_mode()
def rollout(
    environments: Environments,
    policy: Policy,
    stacked: dict[str, Tensor],
    starts: Sequence[int],
    horizons: Sequence[int],
    progress: Progress = no_progress,
    record: Recorder | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Roll out every policy from every start; see ``Task.rollout`` for shapes and meaning.

    An episode ends at termination, at the environment's own truncation or at the last horizon, and never restarts into
    the sum. ``record`` sees every step.
    """
    count = len(next(iter(stacked.values())))
    cumulative = np.zeros((count, len(starts), len(horizons)))
    lengths = np.zeros((count, len(starts)), dtype=np.int64)
    for first in range(0, count, BLOCK):
        block = {name: value[first : first + BLOCK] for name, value in stacked.items()}
        size = min(BLOCK, count - first)
        cumulative[first : first + size], lengths[first : first + size] = _block(
            environments.take(size * len(starts), horizons[-1]),
            policy.stack(block),
            size,
            starts,
            horizons,
            part(progress, first / count, size / count),
            record,
        )
    return cumulative, lengths


def _block(
    envs: list[gym.Env[Any, Any]],
    stack: Any,
    size: int,
    starts: Sequence[int],
    horizons: Sequence[int],
    progress: Progress,
    record: Recorder | None,
) -> tuple[np.ndarray, np.ndarray]:
    rows = len(starts)
    # An ended episode's row stays as padding: each policy always acts on the same number of rows.
    first = [envs[p * rows + n].reset(seed=int(seed))[0] for p in range(size) for n, seed in enumerate(starts)]
    observations = np.array(first, dtype=np.float32).reshape(size, rows, -1)
    latest = {(p, n): first[p * rows + n] for p in range(size) for n in range(rows)} if record else {}
    totals = np.zeros((size, rows))
    cumulative = np.zeros((size, rows, len(horizons)))
    lengths = np.zeros((size, rows), dtype=np.int64)
    running = [list(range(rows)) for _ in range(size)]
    live = list(range(size))
    column = 0
    for step in range(1, horizons[-1] + 1):
        actions = stack.act(observations, live)
        for i, p in enumerate(live):
            for n in tuple(running[p]):
                observation, reward, terminated, truncated, _ = envs[p * rows + n].step(actions[i, n])
                totals[p, n] += reward
                observations[p, n] = np.ravel(observation)
                if record:
                    record(p, n, latest[p, n], actions[i, n], float(reward), terminated, truncated, observation)
                    latest[p, n] = observation
                if terminated or truncated:
                    running[p].remove(n)
                    lengths[p, n] = step
        if step == horizons[column]:
            cumulative[:, :, column] = totals
            column += 1
        live = [p for p in live if running[p]]
        if not live:
            break
        if step % 50 == 0:
            progress(step / horizons[-1])
    for p, unfinished in enumerate(running):
        lengths[p, unfinished] = horizons[-1]
    cumulative[:, :, column:] = totals[:, :, None]
    progress(1.0)
    return cumulative, lengths


def part(progress: Progress, begin: float, share: float) -> Progress:
    """Return a progress for one part of the work, which begins at ``begin`` and makes up ``share`` of it."""
    return lambda fraction: progress(begin + fraction * share)


def random_returns(environments: Environments, starts: Sequence[int], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cumulative rewards (starts, horizon) and lengths (starts,) of actions drawn from the action space.

    Start s resets the environment and seeds its action space with s.
    """
    env = environments.take(1, horizon)[0]
    cumulative = np.zeros((len(starts), horizon))
    lengths = np.zeros(len(starts), dtype=np.int64)
    for n, seed in enumerate(starts):
        env.reset(seed=int(seed))
        env.action_space.seed(int(seed))
        rewards = np.zeros(horizon)
        for step in range(horizon):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            rewards[step] = reward
            if terminated or truncated:
                break
        cumulative[n], lengths[n] = rewards.cumsum(), step + 1
    return cumulative, lengths
