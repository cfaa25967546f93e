"""Layers and their squared error as one function, against the modules one after the other."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from stab.recipe import Recipe
from stab.tasks.policies import build
from stab.tasks.policies.kernels import chain, onednn
from stab.tasks.policies.kernels.dropout import Dropout
from stab.tasks.policies.kernels.linear import Linear
from stab.tasks.transitions import Transitions

pytestmark = pytest.mark.skipif(
    not onednn.has_onednn(torch.zeros(1)), reason="this torch has no oneDNN"
)


def modules(*sizes, bias=True):
    torch.manual_seed(0)
    made = []
    for inputs, outputs in itertools.pairwise(sizes):
        made += [Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*made[:-1])


@pytest.mark.parametrize("sizes", [(11, 256, 256, 3), (11, 3), (4, 700, 5, 1100, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_as_one_function_are_the_layers_one_by_one_to_the_bit(sizes, bias):
    stack = modules(*sizes, bias=bias)
    parameters = [
        p for layer in stack if isinstance(layer, Linear) for p in (layer.weight, layer.bias)
    ]
    x = torch.randn(256, sizes[0])

    def slopes(function, needs_x):
        stack.zero_grad()
        inputs = x.clone().requires_grad_(needs_x)
        function(inputs).square().sum().backward()
        return [inputs.grad] * needs_x + [p.grad.clone() for p in stack.parameters()]

    def together(inputs):
        return chain.layers(inputs, parameters)

    assert torch.equal(together(x), stack(x))
    with torch.no_grad():
        assert torch.equal(together(x), stack(x))
    for needs_x in (True, False):
        for mine, its in zip(slopes(together, needs_x), slopes(stack, needs_x), strict=True):
            assert torch.equal(mine, its)


def test_frozen_layers_have_no_gradient():
    stack = modules(11, 256, 256, 3)
    stack[0].requires_grad_(False)
    stack[2].bias.requires_grad_(False)
    parameters = [
        p for layer in stack if isinstance(layer, Linear) for p in (layer.weight, layer.bias)
    ]
    chain.layers(torch.randn(256, 11), parameters).sum().backward()
    assert [p.grad is None for p in parameters] == [True, True, False, True, False, False]


def test_second_derivatives_of_a_whole_policy():
    """A gradient penalty: the norm of the gradient, differentiated once more."""
    stack = modules(11, 256, 256, 3)
    exact = modules(11, 256, 256, 3).double()
    exact.load_state_dict(stack.state_dict())
    x = torch.randn(64, 11)
    parameters = [
        p for layer in stack if isinstance(layer, Linear) for p in (layer.weight, layer.bias)
    ]
    for function, inputs, over in (
        (lambda x: chain.layers(x, parameters), x, stack),
        (exact, x.double(), exact),
    ):
        first = torch.autograd.grad(
            function(inputs).square().mean(), list(over.parameters()), create_graph=True
        )
        sum(g.square().sum() for g in first).backward()
    for mine, true in zip(stack.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(
            mine.grad.double(), true.grad, rtol=1e-3, atol=1e-4 * true.grad.abs().max()
        )


def made(policy, dropout=0.0, seed=0, rows=256):
    torch.manual_seed(seed)
    space = gym.spaces.Box(np.array([-1, -2, 0.5], np.float32), np.array([1, 3, 4], np.float32))
    data = Transitions(torch.randn(rows, 11), torch.randn(rows, 3), np.zeros(rows, np.int64))
    return build(
        Recipe(policy=policy, dropout=dropout), torch.randn(11), torch.rand(11) + 0.5, space
    ), data


def gradients(policy, loss, scale=1.0):
    policy.zero_grad()
    torch.manual_seed(1)
    found = loss() * scale
    found.backward()
    return [found.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "policy",
    [
        "mlp",
        "mlp:actions=clipped",
        "mlp:depth=0",
        "mlp:depth=4,width=600",
        "mlp:depth=3,width=33",
        "mlp:width=1",
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_is_that_of_the_modules_to_the_bit(policy, dropout):
    policy, data = made(policy, dropout)
    batch = data.batch(np.arange(256))

    def one_by_one():
        return policy.error(
            policy.finish(policy.layers(policy.normalise(batch.observations))), batch.actions
        )

    for training in (True, False):
        policy.train(training)
        for scale in (1.0, 1 / 3):
            mine = gradients(policy, lambda: policy.loss(batch), scale)
            for found, expected in zip(mine, gradients(policy, one_by_one, scale), strict=True):
                assert torch.equal(found, expected)
        with torch.no_grad():
            torch.manual_seed(1)
            mine = policy.loss(batch)
            torch.manual_seed(1)
            assert torch.equal(mine, one_by_one())


def test_one_function_takes_the_place_of_many():
    policy, data = made("mlp", dropout=0.3)
    loss = policy.loss(data.batch(np.arange(256)))
    assert {type(node).__name__ for node, _ in loss.grad_fn.next_functions} <= {
        "AccumulateGrad",
        "NoneType",
    }


@pytest.mark.parametrize("dropout", [1e-6, 1 - 1e-6])
def test_a_probability_too_near_its_ends_for_16_bits_is_torchs(dropout):
    policy, data = made("mlp", dropout)
    batch = data.batch(np.arange(256))
    torch.manual_seed(3)
    expected = nn.functional.dropout(torch.ones(256, 256), dropout)
    torch.manual_seed(3)
    assert torch.equal(Dropout(dropout)(torch.ones(256, 256)), expected)
    assert torch.isfinite(policy.loss(batch))


def test_frozen_parameters_have_no_gradient_of_the_loss():
    policy, data = made("mlp")
    policy.linears[0].requires_grad_(False)
    policy.linears[1].bias.requires_grad_(False)
    policy.loss(data.batch(np.arange(256))).backward()
    assert [p.grad is None for p in policy.parameters()] == [True, True, False, True, False, False]


@pytest.mark.parametrize("policy", ["mlp", "mlp:actions=clipped"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives_of_the_loss(policy, dropout):
    """A gradient penalty: the norm of the gradient, differentiated once more; against the modules in float64."""
    exact, _ = made(policy, dropout)
    policy, data = made(policy, dropout)
    exact.load_state_dict(policy.state_dict())
    exact.double()
    batch = data.batch(np.arange(256))
    torch.manual_seed(2)
    masks = policy._masks(256)

    def layers(x):
        for i, layer in enumerate(exact.linears):
            x = layer(x)
            if i < len(exact.linears) - 1:
                x = x.relu() * (masks[i].double() if masks else 1)
        return x

    torch.manual_seed(2)
    losses = (
        policy.loss(batch),
        exact.error(
            exact.finish(layers(exact.normalise(batch.observations.double()))),
            batch.actions.double(),
        ),
    )
    for loss, over in zip(losses, (policy, exact), strict=True):
        first = torch.autograd.grad(loss, list(over.parameters()), create_graph=True)
        sum(g.square().sum() for g in first).backward()
    for mine, true in zip(policy.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(
            mine.grad.double(), true.grad, rtol=1e-3, atol=1e-4 * true.grad.abs().max()
        )
