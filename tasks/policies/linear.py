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
        if rows * self.weight.numel() < LARGE or not has_onednn(inputs):
            return super().forward(inputs)
        if inputs.dim() == 2:
            return layers(inputs, self.weight, self.bias)
        return layers(inputs.reshape(rows, -1), self.weight, self.bias).view(*inputs.shape[:-1], -1)


def has_onednn(inputs: Tensor) -> bool:
    """Whether this torch can multiply these inputs by oneDNN."""
    return inputs.device.type == "cpu" and inputs.dtype is torch.float32 and _built_with_onednn()


@functools.cache
def _built_with_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def layers(inputs: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return inputs (rows, features) through linear layers with ReLUs between them, for which ``has_onednn`` holds.

    Args:
        parameters: weight (outputs, inputs) and bias (outputs,), or None, of each layer in turn.

    Bitwise the layers one after the other; as one function it has a third of the small operations.
    """
    if torch.is_grad_enabled():
        out: Tensor = _Layers.apply(inputs, *parameters)  # type: ignore[no-untyped-call]
        return out
    return _forward(inputs, parameters)[-1]


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Return inputs (m, k) times the transpose of weight (n, k), plus bias (n,), by oneDNN; without a derivative."""
    # What torch.compile calls for a linear layer.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return out


def _forward(inputs: Tensor, parameters: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Return the inputs of each layer, and the outputs of the last."""
    found = [inputs]
    for i in range(0, len(parameters), 2):
        weight, bias, last = parameters[i], parameters[i + 1], i == len(parameters) - 2
        assert weight is not None
        if len(inputs) * weight.numel() >= LARGE:
            found.append(product(found[-1], weight, bias, "none" if last else "relu"))
        else:
            out = nn.functional.linear(found[-1], weight, bias)
            found.append(out if last else out.relu_())
    return found


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor | None) -> Tensor:
        *kept, out = _forward(inputs, parameters)
        ctx.save_for_backward(*kept, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        saved, count = ctx.saved_tensors, len(ctx.saved_tensors) // 3
        kept, parameters = saved[:count], saved[count:]
        if torch.is_grad_enabled():  # for a second derivative
            return _differentiable(ctx.needs_input_grad, kept[0], parameters, grad)
        found: list[Tensor | None] = [None] * (1 + len(parameters))
        for i in reversed(range(count)):
            inputs, weight = kept[i], parameters[2 * i]
            if i < count - 1:
                grad = torch.ops.aten.threshold_backward(grad, kept[i + 1], 0)
            large = len(inputs) * weight.numel() >= LARGE
            if ctx.needs_input_grad[1 + 2 * i]:
                found[1 + 2 * i] = product(grad.T, inputs.T) if large else grad.T @ inputs
            if ctx.needs_input_grad[2 + 2 * i]:
                found[2 + 2 * i] = grad.sum(0)
            if i or ctx.needs_input_grad[0]:
                grad = product(grad, weight.T) if large else grad @ weight
        found[0] = grad if ctx.needs_input_grad[0] else None
        return tuple(found)


def _differentiable(
    needed: tuple[bool, ...], inputs: Tensor, parameters: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    out = inputs
    for i in range(0, len(parameters), 2):
        out = nn.functional.linear(out.relu() if i else out, parameters[i], parameters[i + 1])
    wanted = [tensor for tensor, need in zip((inputs, *parameters), needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
