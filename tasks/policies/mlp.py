"""The multi-layer perceptron: acts on the latest observation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import choice, hyper, integer
from stab.recipe import Recipe
from stab.tasks.policies.base import Network, Policy, PolicyArguments, Stack, output_size
from stab.tasks.policies.kernels import chain
from stab.tasks.policies.kernels.dropout import Dropout
from stab.tasks.policies.kernels.linear import Linear
from stab.tasks.policies.kernels.onednn import has_onednn
from stab.tasks.transitions import Batch


class MLP(Network):
    """``depth`` hidden layers of ``width`` ReLU units with dropout, then a linear layer.

    With ``norm`` a LayerNorm stands between a hidden layer's product and its ReLU. Outputs: see
    ``Network``.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        action_space: gym.Space[Any],
        *,
        width: int,
        depth: int,
        dropout: float,
        squashed: bool,
        gaussian: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__(mean, std, action_space, squashed=squashed, gaussian=gaussian)
        self.norm = norm
        sizes = [mean.numel()] + [width] * depth
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [
                Linear(inputs, outputs),
                *([nn.LayerNorm(outputs)] if norm else []),
                nn.ReLU(),
            ]
            layers += [Dropout(dropout)] if dropout else []
        layers.append(Linear(sizes[-1], self.outputs))
        self.layers = nn.Sequential(*layers)
        self.linears = [layer for layer in layers if isinstance(layer, Linear)]
        self.dropouts = [layer for layer in layers if isinstance(layer, Dropout)]

    @property
    def additive(self) -> bool:
        return type(self) is MLP

    def forward(self, observations: Tensor) -> Tensor:
        inputs = self.normalise(observations)
        if not self._plain(inputs):
            return self.finish(self.layers(inputs))
        return self.finish(chain.layers(inputs, self._weights(), self._masks(len(inputs))))

    def loss(self, batch: Batch) -> Tensor:
        if (
            self.gaussian
            or isinstance(self.action_space, gym.spaces.Discrete)
            or not torch.is_grad_enabled()
        ):
            return super().loss(batch)
        inputs = self.normalise(batch.observations)
        if not self._plain(inputs):
            return self.error(self.finish(self.layers(inputs)), batch.actions)
        masks = self._masks(len(inputs))
        return chain.squared_error(inputs, batch.actions, self.squash, self._weights(), masks)

    def _plain(self, inputs: Tensor) -> bool:
        """Whether ``chain`` does what the layers do."""
        dropouts = all(layer.applies or not layer.training for layer in self.dropouts)
        return not self.norm and dropouts and inputs.dim() == 2 and has_onednn(inputs)

    def _weights(self) -> list[Tensor]:
        return [parameter for layer in self.linears for parameter in (layer.weight, layer.bias)]

    def _masks(self, rows: int) -> list[Tensor]:
        if not self.training:
            return []
        widths = (layer.out_features for layer in self.linears)
        return [
            layer.mask((rows, width)) for layer, width in zip(self.dropouts, widths, strict=False)
        ]

    def stack(self, stacked: dict[str, Tensor]) -> Stack:
        return Stack(self, stacked) if self.norm else MLPStack(self, stacked)


class MLPStack(Stack):
    """The same for MLPs without LayerNorm, with one batched product per layer.

    Inputs and outputs of every product are padded with zeros to multiples of 16, rows to multiples
    of 8. So each policy's operands begin at a multiple of 64 bytes, and no product is so thin that
    another kernel is chosen: the batched product gives each policy the bits it would get alone. For
    the same reason the tanh sees whole vectors.
    """

    def __init__(self, policy: MLP, stacked: dict[str, Tensor]) -> None:
        self.policy, self.stacked = policy, stacked
        self.linear = [i for i, layer in enumerate(policy.layers) if isinstance(layer, nn.Linear)]
        self.outputs = output_size(
            policy.action_space
        )  # a Gaussian's log standard deviations take no part in acting
        self.live: list[int] = []

    def _keep(self, live: Sequence[int]) -> None:
        self.live = list(live)
        self.mean, self.std = (
            self.stacked["mean"][self.live, None],
            self.stacked["std"][self.live, None],
        )
        self.layers = []
        for i in self.linear:
            weight, bias = (
                self.stacked[f"layers.{i}.weight"][self.live],
                self.stacked[f"layers.{i}.bias"][self.live],
            )
            padding = (0, _padding(weight.shape[2]), 0, _padding(weight.shape[1]))
            bias = nn.functional.pad(bias, (0, _padding(bias.shape[1])))
            self.layers.append((nn.functional.pad(weight, padding).mT, bias[:, None]))

    def act(self, observations: np.ndarray, live: Sequence[int]) -> np.ndarray:
        if self.live != list(live):
            self._keep(live)
        rows = observations.shape[1]
        out = torch.from_numpy(observations)
        out = ((out if len(live) == len(out) else out[self.live]) - self.mean) / self.std
        out = nn.functional.pad(out, (0, _padding(out.shape[2]), 0, -rows % 8))
        for i, (weight, bias) in enumerate(self.layers):
            out = torch.baddbmm(bias, out, weight)
            if i < len(self.layers) - 1:
                out = out.relu_()
        squash = self.policy.squash
        if squash:
            out = squash.scale(out.tanh_()[:, :, : self.outputs])
        return self.policy.to_actions(out[:, :rows, : self.outputs])


def _padding(size: int) -> int:
    return -size % 16


@dataclass(frozen=True)
class MLPArguments(PolicyArguments):
    """A multi-layer perceptron with ReLU units: acts on the latest observation."""

    width: int = hyper(256, "units per hidden layer", integer(1))
    depth: int = hyper(2, "hidden layers", integer(0))
    norm: str = hyper(
        "none",
        "layer: LayerNorm between a hidden layer's product and its ReLU",
        choice("none", "layer"),
    )

    def build(
        self, mean: Tensor, std: Tensor, action_space: gym.Space[Any], recipe: Recipe
    ) -> Policy:
        return MLP(
            mean,
            std,
            action_space,
            width=self.width,
            depth=self.depth,
            dropout=recipe.dropout,
            norm=self.norm == "layer",
            **self.outputs(action_space),
        )
