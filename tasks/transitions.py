"""Demonstrations in memory: transitions of whole episodes, and the minibatches drawn from them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """Transitions of whole episodes, in order.

    Attributes:
        observations: (transitions, obs_dim) float32.
        actions: (transitions, act_dim) float32, or (transitions,) int64 counted from 0 for a
            Discrete space.
        episodes: (transitions,) int64, the dataset's episode each transition belongs to.
    """

    observations: Tensor
    actions: Tensor
    episodes: np.ndarray

    def __len__(self) -> int:
        return len(self.observations)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the transitions at the given indices (batch,)."""
        return Batch(self, indices)

    def to(self, device: torch.device) -> Transitions:
        """Return the same on a device."""
        return replace(
            self, observations=self.observations.to(device), actions=self.actions.to(device)
        )

    def digests(self) -> list[bytes]:
        """Return SHA-256 of each episode's observations and actions."""
        begins = np.unique(self.firsts).tolist()
        arrays = self.observations.numpy(), self.actions.numpy()
        return [
            hashlib.sha256(b"".join(array[i:k].tobytes() for array in arrays)).digest()
            for i, k in zip(begins, [*begins[1:], len(self)], strict=True)
        ]

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """(transitions,) the index at which each transition's episode begins."""
        begins = np.flatnonzero(np.diff(self.episodes, prepend=self.episodes[0] - 1))
        return np.repeat(begins, np.diff(begins, append=len(self.episodes)))


@dataclass(frozen=True)
class Batch:
    """A minibatch of transitions: each alone, or with the ones before it in its episode.

    Args:
        source: what it was drawn from.
        indices: (batch,) int64.
    """

    source: Transitions
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def observations(self) -> Tensor:
        """(batch, obs_dim)."""
        return self.source.observations[torch.from_numpy(self.indices)]

    @property
    def actions(self) -> Tensor:
        """(batch, act_dim), or (batch,) for a Discrete space."""
        return self.source.actions[torch.from_numpy(self.indices)]

    def window(self, context: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last ``context`` transitions up to and including each one, oldest first.

        Returns observations (batch, context, obs_dim), actions (batch, context, ...) and whether a
        position lies within the episode (batch, context) bool; those before its beginning repeat
        its first transition and are to be masked.
        """
        at = self.indices[:, None] + np.arange(1 - context, 1)
        first = self.source.firsts[self.indices, None]
        chosen = torch.from_numpy(np.maximum(at, first))
        return (
            self.source.observations[chosen],
            self.source.actions[chosen],
            torch.from_numpy(at >= first).to(self.source.observations.device),
        )


def remarks(train: Transitions, validation: Transitions, space: gym.Space[Any]) -> tuple[str, ...]:
    """Return what a reader should know of demonstrations that can be learned from all the same."""
    said = []
    if isinstance(space, gym.spaces.Box):
        low, high = (torch.as_tensor(bound).float().flatten() for bound in (space.low, space.high))
        tolerance = 1e-6 * (1 + train.actions.abs())
        outside = (train.actions < low - tolerance) | (train.actions > high + tolerance)
        share = float(outside.any(1).double().mean())
        if share:
            said.append(
                f"{share:.1%} of the training actions are outside the bounds of the action space,"
                " where no policy can act."
            )
    seen = set(train.digests())
    repeated = [digest in seen for digest in validation.digests()]
    if any(repeated):
        said.append(
            f"{sum(repeated)} of {len(repeated)} validation episodes repeat training episodes: the"
            " validation loss is too low."
        )
    return tuple(said)


def digest(*parts: Transitions) -> str:
    """SHA-256 of the arrays of all parts."""
    sha = hashlib.sha256()
    for part in parts:
        for array in (part.observations.numpy(), part.actions.numpy(), part.episodes):
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
