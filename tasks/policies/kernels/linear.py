"""Linear layers whose products are oneDNN's."""

from __future__ import annotations

from torch import Tensor, nn

from stab.tasks.policies.kernels.chain import layers
from stab.tasks.policies.kernels.onednn import LARGE, has_onednn


class Linear(nn.Linear):
    """``nn.Linear``; on the CPU in float32 its larger products, forward and backward, are oneDNN's.

    Elsewhere, and for small products, it is ``nn.Linear``. The larger products take no part in
    ``torch.func`` and forward-mode derivatives.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // self.in_features
        if rows * self.weight.numel() < LARGE or not has_onednn(inputs):
            return super().forward(inputs)
        if inputs.dim() == 2:
            return layers(inputs, [self.weight, self.bias])
        return layers(inputs.reshape(rows, -1), [self.weight, self.bias]).view(
            *inputs.shape[:-1], -1
        )
