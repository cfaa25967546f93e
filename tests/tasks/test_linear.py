"""Linear layers by oneDNN, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stab.tasks.policies.kernels import onednn
from stab.tasks.policies.kernels.linear import Linear

needs_onednn = pytest.mark.skipif(
    not onednn.has_onednn(torch.zeros(1)), reason="this torch has no oneDNN"
)


def pair(inputs, outputs, bias=True):
    torch.manual_seed(0)
    ours = Linear(inputs, outputs, bias=bias)
    theirs = nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    (layer(x).square().sum() / len(x)).backward()
    return [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(256, 11, 256), (256, 256, 256), (1, 1024, 1024), (8, 11, 3)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs_but_for_rounding(rows, inputs, outputs, bias):
    ours, theirs = pair(inputs, outputs, bias)
    x = torch.randn(rows, inputs)
    exact = nn.Linear(inputs, outputs, bias=bias).double()
    exact.load_state_dict(theirs.state_dict())
    for mine, its, true in zip(
        [ours(x), *gradients(ours, x)],
        [theirs(x), *gradients(theirs, x)],
        [exact(x.double()), *gradients(exact, x.double())],
        strict=True,
    ):
        scale = true.abs().max()
        error, usual = ((found - true).abs().max() / scale for found in (mine, its))
        assert error <= max(3 * usual, 1e-6)


def test_small_products_are_torchs_to_the_bit():
    ours, theirs = pair(11, 3)
    x = torch.randn(8, 11)
    assert torch.equal(ours(x), theirs(x))
    for mine, its in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        assert torch.equal(mine, its)


@needs_onednn
def test_large_products_are_onednns_forward_and_backward():
    ours, _ = pair(256, 256)
    with torch.profiler.profile() as profile:
        gradients(ours, torch.randn(256, 256))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 3
    assert not {"aten::addmm", "aten::mm"} & set(calls)


@needs_onednn
@pytest.mark.parametrize(("rows", "inputs"), [(256, 11), (256, 256)])
def test_the_bits_do_not_depend_on_where_operands_lie_nor_on_gradients(rows, inputs):
    ours, _ = pair(inputs, 256)
    x, room = torch.randn(rows, inputs), torch.empty(rows * inputs + 16)
    expected, slopes = ours(x).detach(), gradients(ours, x)
    with torch.inference_mode():
        assert torch.equal(ours(x), expected)
    for offset in range(1, 16, 3):
        moved = room[offset : offset + rows * inputs].view(rows, inputs).copy_(x)
        assert torch.equal(ours(moved), expected)
        for mine, first in zip(gradients(ours, moved), slopes, strict=True):
            assert torch.equal(mine, first)


@needs_onednn
def test_second_derivatives():
    layer = Linear(32, 128)
    x = torch.randn(256, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    slope.square().sum().backward()
    exact = nn.Linear(32, 128).double()
    exact.load_state_dict(layer.state_dict())
    y = x.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(exact(y).pow(3).sum(), y, create_graph=True)
    slope.square().sum().backward()
    assert torch.allclose(layer.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-2)
    assert torch.allclose(x.grad.double(), y.grad, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 64, 256), (2, 3, 5, 256), (256,)])
def test_other_shapes_are_rows(shape):
    ours, _ = pair(256, 256)
    x = torch.randn(shape)
    assert torch.equal(ours(x), ours(x.reshape(-1, 256)).reshape(shape))
    for mine, flat in zip(gradients(ours, x), gradients(ours, x.reshape(-1, 256)), strict=True):
        assert torch.allclose(
            mine.flatten(), flat.flatten() * (x.numel() // 256 / len(x)), rtol=1e-4, atol=1e-4
        )


def test_other_types_are_torchs():
    ours, theirs = (layer.double() for layer in pair(256, 256))
    x = torch.randn(256, 256, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
