"""Dropout against its definition and torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stab.tasks.policies.kernels.dropout import Dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 251), (7,), (3, 5, 1001)])
def test_units_are_dropped_with_probability_p_and_the_others_scaled(p, shape):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(shape))
    kept = out[out != 0]
    count = math.prod(shape)
    assert abs((count - len(kept)) / count - p) < 5 * math.sqrt(p * (1 - p) / count) + 2**-17
    assert torch.allclose(kept, torch.tensor(1 / (1 - p)), rtol=2e-4)
    if len(kept):
        assert len(kept.unique()) == 1
        scale = kept[0].double().item()
        assert scale * (1 - round(p * 2**16) / 2**16) == pytest.approx(1, rel=1e-7)  # no bias


def test_draws_are_independent_of_their_neighbours():
    torch.manual_seed(1)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8, 64):
        correlation = (dropped[lag:] * dropped[:-lag]).mean() / 0.25
        assert abs(correlation) < 5 / math.sqrt(len(dropped))


def test_the_gradient_passes_where_the_unit_did():
    torch.manual_seed(2)
    x = torch.randn(64, 32, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    assert torch.allclose(x.grad * x.detach(), out.detach(), rtol=1e-6)


def test_masks_are_a_function_of_the_seed():
    x, layer = torch.ones(100), Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nothing_is_dropped_in_evaluation_or_with_probability_zero(p):
    x = torch.randn(10)
    assert torch.equal(Dropout(p).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_everything_is_dropped_with_probability_one_as_in_torch():
    assert torch.equal(Dropout(1.0)(torch.ones(5)), nn.Dropout(1.0)(torch.ones(5)))
