"""Linear layers with ReLUs and dropout between, and their squared error, as one function.

The results are bitwise those of the modules. In a small network, the many small operations between
the products, and autograd's work for each, take as long as the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from stab.tasks.policies.kernels.onednn import LARGE, product

if TYPE_CHECKING:
    from stab.tasks.policies.base import Squash

Parameters = Sequence[Tensor | None]
aten = torch.ops.aten


def layers(inputs: Tensor, parameters: Parameters, masks: Sequence[Tensor] = ()) -> Tensor:
    """Return inputs (rows, features), if ``has_onednn``, through linear layers and ReLUs.

    Args:
        parameters: weight (outputs, inputs) and bias (outputs,), or None, of each layer in turn.
        masks: (rows, outputs) what the ReLUs of each layer but the last are multiplied with, or
            nothing.
    """
    if torch.is_grad_enabled():
        out: Tensor = _Layers.apply(masks, inputs, *parameters)  # type: ignore[no-untyped-call]
        return out
    return _forward(inputs, parameters, masks)[-1]


def squared_error(
    inputs: Tensor,
    targets: Tensor,
    squash: Squash | None,
    parameters: Parameters,
    masks: Sequence[Tensor] = (),
) -> Tensor:
    """Return the mean squared error of squashed ``layers``; targets get no gradient."""
    error: Tensor = _SquaredError.apply(  # type: ignore[no-untyped-call]
        squash, targets, masks, inputs, *parameters
    )
    return error


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, masks: Sequence[Tensor], inputs: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        *saved, out = _forward(inputs, parameters, masks)
        ctx.masks = masks
        ctx.save_for_backward(*saved, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, parameters = _split(ctx.saved_tensors)
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_twice(
                lambda *all: _plain(ctx.masks, *all), [saved[0], *parameters], needed, grads[0]
            )
        return None, *_backward(grads[0], saved, parameters, ctx.masks, needed)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        squash: Squash | None,
        targets: Tensor,
        masks: Sequence[Tensor],
        inputs: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        *saved, out = _forward(inputs, parameters, masks)
        ctx.squash, ctx.masks, ctx.targets = squash, masks, targets
        ctx.out = out.tanh_() if squash else out
        ctx.save_for_backward(*saved, *parameters)
        error: Tensor = aten.mse_loss(squash.scale(out) if squash else out, targets)
        return error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, parameters = _split(ctx.saved_tensors)
        needed, squash, out = ctx.needs_input_grad[3:], ctx.squash, ctx.out
        if torch.is_grad_enabled():

            def again(*tensors: Tensor | None) -> Tensor:
                out = _plain(ctx.masks, *tensors)
                return torch.nn.functional.mse_loss(squash(out) if squash else out, ctx.targets)

            return None, None, None, *_twice(again, [saved[0], *parameters], needed, grads[0])
        grad = aten.mse_loss_backward(
            grads[0], squash.scale(out) if squash else out, ctx.targets, 1
        )
        if squash:
            grad = aten.tanh_backward(grad * squash.size / 2, out)
        return None, None, None, *_backward(grad, saved, parameters, ctx.masks, needed)


def _split(saved: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs of each layer, and its weights and biases."""
    count = len(saved) // 3
    return saved[:count], saved[count:]


def _forward(inputs: Tensor, parameters: Parameters, masks: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs of each layer, and the outputs of the last."""
    values = [inputs]
    for i in range(0, len(parameters), 2):
        weight, bias, last = parameters[i], parameters[i + 1], i == len(parameters) - 2
        assert weight is not None
        if len(inputs) * weight.numel() >= LARGE:
            out = product(values[-1], weight, bias, "none" if last else "relu")
        else:
            out = linear(values[-1], weight, bias)
            if not last:
                out.relu_()
        values.append(out.mul_(masks[i // 2]) if masks and not last else out)
    return values


def _backward(
    grad: Tensor,
    saved: Sequence[Tensor],
    parameters: Sequence[Tensor],
    masks: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of the inputs and the parameters that need one."""
    gradients: list[Tensor | None] = [None] * len(needed)
    for i in reversed(range(len(saved))):
        inputs, weight = saved[i], parameters[2 * i]
        if i < len(saved) - 1:  # a gradient of our own making
            if masks:
                grad.mul_(masks[i])
            aten.threshold_backward.grad_input(grad, saved[i + 1], 0, grad_input=grad)
        large = len(inputs) * weight.numel() >= LARGE
        if needed[1 + 2 * i]:
            if not large:
                gradients[1 + 2 * i] = grad.T @ inputs
            elif (
                inputs.shape[1] < grad.shape[1]
            ):  # the first operand is copied into its transpose: the smaller one
                gradients[1 + 2 * i] = product(inputs.T, grad.T).T.contiguous()
            else:
                gradients[1 + 2 * i] = product(grad.T, inputs.T)
        if needed[2 + 2 * i]:
            gradients[2 + 2 * i] = grad.sum(0)
        if i or needed[0]:
            grad = product(grad, weight.T) if large else grad @ weight
    gradients[0] = grad if needed[0] else None
    return gradients


def _plain(masks: Sequence[Tensor], inputs: Tensor | None, *parameters: Tensor | None) -> Tensor:
    """Return what ``layers`` does, by operations that torch can differentiate repeatedly."""
    assert inputs is not None
    out = inputs
    for i in range(0, len(parameters), 2):
        if i:
            out = out.relu() * masks[i // 2 - 1] if masks else out.relu()
        weight = parameters[i]
        assert weight is not None
        out = linear(out, weight, parameters[i + 1])
    return out


def _twice(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return a function's gradients at these tensors, themselves differentiable."""
    # Views: if the inputs were made from the same weights (tied ones), the path through the
    # inputs is not to be counted.
    tensors = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
    views = [
        tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None
    ]
    gradients = iter(torch.autograd.grad(function(*tensors), views, grad, create_graph=True))
    return tuple(next(gradients) if need else None for need in needed)
