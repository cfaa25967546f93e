"""Dropout whose masks cost a third of torch's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BITS = 16


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU a unit's fate takes 16 random bits.

    PyTorch draws 64 of them for each unit, one unit at a time, which takes longer than the layer's
    product. Here the probability is rounded to a multiple of 2^-16, and the other units are scaled
    by the rounded one.
    """

    @property
    def dropped(self) -> int:
        """The probability of being dropped, in units of 2^-16."""
        dropped: int = round(self.p * 2**BITS)
        return dropped

    @property
    def applies(self) -> bool:
        """Whether ``mask`` is to be applied: in training, unless all or no units are dropped."""
        return self.training and 0 < self.dropped < 2**BITS

    def mask(self, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return factors of this shape: 0 for dropped units, 1 / (1 - p) for the others."""
        count = math.prod(size)
        words = torch.empty(-(-count * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[:count].view(*size)
        mask: Tensor = (
            (draws >= self.dropped - 2 ** (BITS - 1))
            .to(dtype)
            .mul_(1 / (1 - self.dropped / 2**BITS))
        )
        return mask

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.applies or inputs.device.type != "cpu":
            return super().forward(inputs)
        return inputs * self.mask(inputs.shape, inputs.dtype)
