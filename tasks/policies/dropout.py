"""Dropout whose masks cost a third of torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BITS = 16


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU a unit's fate takes 16 random bits.

    PyTorch draws 64 of them for each unit, one unit at a time, which takes longer than the layer's product. Here the
    probability is rounded to a multiple of 2^-16, and kept units are scaled by what it then is.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = round(self.p * 2**BITS)
        if not self.training or not 0 < dropped < 2**BITS or inputs.device.type != "cpu":
            return super().forward(inputs)
        words = torch.empty(-(-inputs.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: inputs.numel()].view(inputs.shape)
        mask = (draws >= dropped - 2 ** (BITS - 1)).to(inputs.dtype)
        out: Tensor = inputs * mask.mul_(1 / (1 - dropped / 2**BITS))
        return out
