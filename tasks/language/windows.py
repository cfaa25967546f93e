"""Samples of texts: what minibatches are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stab.tasks.language.source import END, FRESH, Source


@dataclass(frozen=True)
class Windows:
    """Texts to draw minibatches from: a sample is a stretch of one, as long as a policy can see.

    Attributes:
        inputs: (tokens,) int64, what a policy sees.
        targets: (tokens,) int64, what comes next.
        firsts, lengths: (samples,) where each begins, and how long it is.
    """

    inputs: Tensor
    targets: Tensor
    firsts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.firsts)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (batch, longest); shorter samples end with inputs 0 and targets -100."""
        lengths = self.lengths[indices, None]
        steps = np.arange(lengths.max())
        at = torch.from_numpy(self.firsts[indices, None] + np.minimum(steps, lengths - 1))
        beyond = torch.from_numpy(steps >= lengths).to(self.inputs.device)
        return self.inputs[at].masked_fill(beyond, 0), self.targets[at].masked_fill(beyond, -100)

    def to(self, device: torch.device) -> Windows:
        """Return the same on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def windows(texts: Iterable[np.ndarray], context: int) -> Windows:
    """Cut texts, each (tokens,) after the END that it begins with, into samples of at most ``context`` tokens."""
    inputs, targets, lengths = [], [], []
    for text in texts:
        inputs.append(np.concatenate([[END], text[:-1]]))
        targets.append(text)
        whole, rest = divmod(len(text), context)
        lengths += [context] * whole + [rest] * (rest > 0)
    ends = np.cumsum(lengths)
    return Windows(
        torch.from_numpy(np.concatenate(inputs).astype(np.int64)),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        ends - lengths,
        np.array(lengths),
    )


class FreshStories:
    """Fresh texts for every epoch: none is ever drawn twice.

    Args:
        finite: the training texts of the ordinary regime; an epoch has as many.
    """

    def __init__(self, source: Source, finite: Windows) -> None:
        self.source, self.finite = source, finite
        self._kept: tuple[tuple[int, int], Windows] | None = None

    def __len__(self) -> int:
        return len(self.finite)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return texts of the ordinary regime (for what reads a few without training on them)."""
        return self.finite.batch(indices)

    def to(self, device: torch.device) -> FreshStories:
        """Return the same, whose texts come on a device."""
        return FreshStories(self.source, self.finite.to(device))

    def pool(self, seed: int, epoch: int) -> Windows:
        """Return the texts of one epoch."""
        if self._kept is None or self._kept[0] != (seed, epoch):
            rng = np.random.default_rng((seed, epoch, FRESH))
            drawn = (self.source.text(rng) for _ in range(len(self)))
            made = windows(
                (np.array([*opening, *rest]) for opening, rest in drawn), self.source.context
            )
            self._kept = (seed, epoch), made.to(self.finite.inputs.device)
        return self._kept[1]
