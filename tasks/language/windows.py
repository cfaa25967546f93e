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
    """Texts to draw minibatches from. A sample is a piece of a text no longer than the context.

    Attributes:
        inputs: (tokens,) int64, what a policy sees.
        targets: (tokens,) int64, the token that follows each input.
        firsts, lengths: (samples,) index of the first token of each sample, and its length.
    """

    inputs: Tensor
    targets: Tensor
    firsts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.firsts)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (batch, longest); short samples are padded with 0 and -100."""
        lengths = self.lengths[indices, None]
        steps = np.arange(lengths.max())
        at = torch.from_numpy(self.firsts[indices, None] + np.minimum(steps, lengths - 1))
        beyond = torch.from_numpy(steps >= lengths).to(self.inputs.device)
        return self.inputs[at].masked_fill(beyond, 0), self.targets[at].masked_fill(beyond, -100)

    def to(self, device: torch.device) -> Windows:
        """Return a copy on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def windows(texts: Iterable[np.ndarray], context: int) -> Windows:
    """Cut texts into samples of at most ``context`` tokens.

    Each text (tokens,) is given without the END that it begins with.
    """
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


class FreshTexts:
    """Fresh texts for every epoch: no text is drawn twice.

    Args:
        finite: the training texts of the dataset; an epoch has as many.
    """

    def __init__(self, source: Source, finite: Windows) -> None:
        self.source, self.finite = source, finite
        self._latest: tuple[tuple[int, int], Windows] | None = None

    def __len__(self) -> int:
        return len(self.finite)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return texts of the dataset, for readers of a few that do not train on them."""
        return self.finite.batch(indices)

    def to(self, device: torch.device) -> FreshTexts:
        """Return a copy whose texts are on a device."""
        return FreshTexts(self.source, self.finite.to(device))

    def pool(self, seed: int, epoch: int) -> Windows:
        """Return the texts of one epoch, a function of seed and epoch."""
        if self._latest is None or self._latest[0] != (seed, epoch):
            rng = np.random.default_rng((seed, epoch, FRESH))
            pairs = (self.source.text(rng) for _ in range(len(self)))
            texts = (np.array([*opening, *rest]) for opening, rest in pairs)
            fresh = windows(texts, self.source.context)
            self._latest = (seed, epoch), fresh.to(self.finite.inputs.device)
        return self._latest[1]
