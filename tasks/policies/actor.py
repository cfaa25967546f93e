"""The expert's network, to roll out and to collect demonstrations with."""

from __future__ import annotations

import gymnasium as gym
from torch import Tensor, nn

from stab.tasks.policies.base import Policy, Squash


class Actor(Policy):
    """The greedy actor of a soft actor-critic expert: two ReLU layers, then a scaled tanh.

    action = low + (tanh(mean(obs)) + 1) / 2 * (high - low), from raw observations.
    """

    def __init__(self, weights: dict[str, Tensor], action_space: gym.spaces.Box) -> None:
        super().__init__()
        self.action_space = action_space
        self.layers = nn.Sequential()
        for i, name in enumerate(("trunk.0", "trunk.1", "mean")):
            outputs, inputs = weights[f"{name}.weight"].shape
            linear = nn.Linear(inputs, outputs)
            linear.load_state_dict(
                {"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}
            )
            self.layers.append(linear)
            if i < 2:
                self.layers.append(nn.ReLU())
        self.squash = Squash(action_space)

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.squash(self.layers(observations))
        return out
