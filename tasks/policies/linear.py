"""Linear layers at the speed of oneDNN, where torch's own products are slower."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

# Multiply-adds below which calling oneDNN costs more than it saves.
LARGE = 2**19


class Linear(nn.Linear):
    """``nn.Linear``; on the CPU in float32 its larger products, forward and backward, are oneDNN's.

    PyTorch gives float32 products to the BLAS it was built with, and oneDNN's to convolutions and compiled models only. MKL,
    the BLAS of the x86 wheels, leaves half of the vector units of AMD's processors idle; oneDNN writes its kernels for the
    processor it finds. ``benchmarks/updates.py`` measures both. Elsewhere, and for small products, it is ``nn.Linear``.
    The larger products take no part in ``torch.func`` and forward-mode derivatives.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // self.in_features
        if not (
            rows * self.weight.numel() >= LARGE
            and inputs.device.type == "cpu"
            and inputs.dtype is torch.float32
            and has_onednn()
        ):
            return super().forward(inputs)
        if inputs.dim() == 2:
            return product(inputs, self.weight, self.bias)
        return product(inputs.reshape(rows, -1), self.weight, self.bias).view(*inputs.shape[:-1], -1)


@functools.cache
def has_onednn() -> bool:
    """Whether this torch can multiply by oneDNN."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs (m, k) times the transpose of weight (n, k), plus bias (n,), by oneDNN; float32 on the CPU."""
    if torch.is_grad_enabled():
        out: Tensor = _Product.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _onednn(inputs, weight, bias)


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # What torch.compile calls for a linear layer; it has no derivative of its own.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if needs_inputs else None,
            product(grad.T, inputs.T) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )
