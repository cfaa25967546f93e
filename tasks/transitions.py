"""Demonstrations in memory: transitions of whole episodes, and the minibatches drawn from them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

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


def digest(*parts: Transitions) -> str:
    """SHA-256 of the arrays of all parts."""
    sha = hashlib.sha256()
    for part in parts:
        for array in (part.observations.numpy(), part.actions.numpy(), part.episodes):
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
