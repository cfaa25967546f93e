"""Closed-loop episodes: many policies side by side, each from the same starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stab.registry import StabError
from stab.tasks.control.episodes import Episodes
from stab.tasks.policies import Policy
from stab.tasks.references import Progress, no_progress, portion

# Episodes side by side, if there are no more starts. Enough to share the cost of a step's
# Python; few enough that memory does not grow with the policies.
EPISODES = 128

# (episode, observation acted on, action, reward, terminated, truncated, next observation)
Recorder = Callable[[int, Any, Any, float, bool, bool, Any], None]


@torch.inference_mode()
def rollout(
    episodes: Episodes,
    policy: Policy,
    stacked: dict[str, Tensor],
    starts: Sequence[int],
    horizons: Sequence[int],
    progress: Progress = no_progress,
    record: Recorder | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Roll out every policy from every start; see ``Task.rollout`` for shapes and meaning.

    An episode ends at termination, at the environment's own truncation or at the last horizon, and
    never restarts into the sum. ``record`` sees every step; an episode's number is policy *
    len(starts) + start.
    """
    count, rows = len(next(iter(stacked.values()))), len(starts)
    cumulative = np.zeros((count, rows, len(horizons)))
    lengths = np.zeros((count, rows), dtype=np.int64)
    most = max(1, EPISODES // rows)
    for first in range(0, count, most):
        block = {name: value[first : first + most] for name, value in stacked.items()}
        size = min(most, count - first)
        cumulative[first : first + size], lengths[first : first + size] = _block(
            episodes,
            policy.stack(block),
            size,
            starts,
            horizons,
            portion(progress, first / count, size / count),
            record,
        )
    return cumulative, lengths


def _block(
    episodes: Episodes,
    stack: Any,
    size: int,
    starts: Sequence[int],
    horizons: Sequence[int],
    progress: Progress,
    record: Recorder | None,
) -> tuple[np.ndarray, np.ndarray]:
    rows, horizon = len(starts), horizons[-1]
    latest = episodes.reset([*starts] * size)
    totals = np.zeros(size * rows)
    cumulative = np.zeros((size * rows, len(horizons)))
    lengths = np.full(size * rows, horizon)
    which = np.arange(size * rows)  # the episodes that go on
    column, fewer = 0, True
    for step in range(1, horizon + 1):
        if fewer:
            # An ended episode's row stays as padding: each policy always acts on the same number of
            # rows.
            live, place = np.unique(which // rows, return_inverse=True)
            row, stepped, acting = which % rows, which.tolist(), live.tolist()
        actions = stack.act(latest.astype(np.float32).reshape(size, rows, -1), acting)[place, row]
        observations, rewards, terminated, truncated = episodes.step(stepped, actions)
        if not np.isfinite(rewards).all():
            bad = int(which[~np.isfinite(rewards)][0])
            raise StabError(
                f"step {step} of the episode with reset seed {starts[bad % rows]} returned a"
                " reward that is not finite"
            )
        totals[which] += rewards
        ended = terminated | truncated
        fewer = bool(ended.any())
        if record:
            cut = truncated | (~terminated & (step == horizon))
            for k, episode in enumerate(which.tolist()):
                record(
                    episode,
                    latest[episode].copy(),
                    actions[k],
                    rewards[k],
                    terminated[k],
                    cut[k],
                    observations[k],
                )
        latest[which] = observations
        lengths[which[ended]] = step
        which = which[~ended]
        if step == horizons[column]:
            cumulative[:, column] = totals
            column += 1
        if not len(which):
            break
        if step % 20 == 0:  # often enough to be interrupted at
            progress(step / horizon)
    cumulative[:, column:] = totals[:, None]
    progress(1.0)
    return cumulative.reshape(size, rows, -1), lengths.reshape(size, rows)
