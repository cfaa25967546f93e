"""Policy networks: from observations to actions, one step at a time."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import Declared, hyper, parse_arguments
from stab.recipe import Recipe
from stab.registry import StabError, suggest


class Policy(nn.Module):
    """A network that acts in an environment with Box observations and Box or Discrete actions.

    Subclasses give ``forward`` (for the loss) and, when they read a history, ``memory`` and ``act``.
    """

    action_space: gym.Space[Any]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the one-step loss of observations (batch, obs_dim) and the expert's actions.

        Box: mean squared error over batch and dimensions. Discrete: cross-entropy in nats.
        """
        outputs = self(batch["observations"])
        if isinstance(self.action_space, gym.spaces.Discrete):
            return nn.functional.cross_entropy(outputs, batch["actions"])
        return nn.functional.mse_loss(outputs, batch["actions"])

    def memory(self, episodes: int) -> Any:
        """Return what ``act`` carries along at the first step of this many episodes; None for a policy without."""
        return None

    def act(self, observations: Tensor, memory: Any) -> tuple[np.ndarray, Any]:
        """Return greedy actions for observations (episodes, obs_dim), and the memory for the next step.

        Box actions are clipped to the space; of Discrete ones the likeliest is taken.
        """
        return self.to_actions(self(observations)), memory

    def stack(self, stacked: dict[str, Tensor]) -> Stack:
        """Return policies of this architecture with parameters (policies, ...), to act side by side."""
        return Stack(self, stacked)

    def to_actions(self, outputs: Tensor) -> np.ndarray:
        """Turn the network's outputs (..., out) into actions of the space."""
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return np.asarray(outputs.argmax(-1).numpy() + space.start)
        assert isinstance(space, gym.spaces.Box)
        actions: np.ndarray = outputs.numpy().reshape(*outputs.shape[:-1], *space.shape)
        return np.asarray(np.clip(actions, space.low, space.high), dtype=space.dtype)


class Stack:
    """Policies that act side by side, each on its own block of episodes.

    A policy's actions must not depend, bitwise, on its company. Here each policy is a module of its own, with weights in
    storage of their own: a matrix product's last bits depend on the alignment of its operands and on the number of rows.
    """

    def __init__(self, policy: Policy, stacked: dict[str, Tensor]) -> None:
        self.policies = []
        for i in range(len(next(iter(stacked.values())))):
            self.policies.append(copy.deepcopy(policy).eval().requires_grad_(False))
            self.policies[-1].load_state_dict({name: value[i] for name, value in stacked.items()})
        self.memories: list[Any] = []

    def act(self, observations: np.ndarray, live: Sequence[int]) -> np.ndarray:
        """Return actions (len(live), episodes, ...) for float32 observations (policies, episodes, obs_dim)."""
        if not self.memories:
            self.memories = [policy.memory(observations.shape[1]) for policy in self.policies]
        actions = []
        for i in live:
            action, self.memories[i] = self.policies[i].act(torch.tensor(observations[i]), self.memories[i])
            actions.append(action)
        return np.stack(actions)


class MLPStack(Stack):
    """The same for MLPs, with one batched product a layer.

    Rows, inputs and outputs of every product are padded with zeros to multiples of 16. So each policy's operands begin at
    a multiple of 64 bytes and no product is a thin one, for which other kernels would be chosen: the batched product
    gives each policy the bits it would get alone. The tanh sees whole vectors for the same reason.
    """

    def __init__(self, policy: MLP, stacked: dict[str, Tensor]) -> None:
        self.policy, self.stacked = policy, stacked
        self.linear = [i for i, layer in enumerate(policy.layers) if isinstance(layer, nn.Linear)]
        self.live: list[int] = []

    def _keep(self, live: Sequence[int]) -> None:
        self.live = list(live)
        self.mean, self.std = self.stacked["mean"][self.live, None], self.stacked["std"][self.live, None]
        self.layers = []
        for i in self.linear:
            weight, bias = self.stacked[f"layers.{i}.weight"][self.live], self.stacked[f"layers.{i}.bias"][self.live]
            self.outputs = bias.shape[1]
            padding = (0, _padding(weight.shape[2]), 0, _padding(self.outputs))
            bias = nn.functional.pad(bias, (0, _padding(self.outputs)))
            self.layers.append((nn.functional.pad(weight, padding).mT, bias[:, None]))

    def act(self, observations: np.ndarray, live: Sequence[int]) -> np.ndarray:
        if self.live != list(live):
            self._keep(live)
        rows = observations.shape[1]
        out = (torch.from_numpy(observations)[self.live] - self.mean) / self.std
        out = nn.functional.pad(out, (0, _padding(out.shape[2]), 0, _padding(rows)))
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


class Squash(nn.Module):
    """low + (tanh(x) + 1) / 2 * (high - low), elementwise: into the bounds of a Box."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        if not (isinstance(space, gym.spaces.Box) and np.isfinite([space.low, space.high]).all()):
            raise StabError(f"actions {space} have no bounds to squash into: use train.policy=mlp:actions=clipped")
        self.low: Tensor
        self.size: Tensor
        self.register_buffer("low", torch.as_tensor(space.low).flatten(), persistent=False)
        self.register_buffer("size", torch.as_tensor(space.high - space.low).flatten(), persistent=False)

    def scale(self, squashed: Tensor) -> Tensor:
        """Map (-1, 1) to the bounds."""
        return self.low + (squashed + 1) / 2 * self.size

    def forward(self, outputs: Tensor) -> Tensor:
        return self.scale(outputs.tanh())


class MLP(Policy):
    """Normalisation, then ``depth`` hidden layers of ``width`` ReLU units with dropout, then a linear layer.

    Observations are normalised with the training set's mean and standard deviation, kept as buffers. With ``squashed``
    a Box action is low + (tanh(out) + 1) / 2 * (high - low), otherwise it is the linear output, clipped in the closed loop.
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
    ) -> None:
        super().__init__()
        self.action_space = action_space
        self.squash = Squash(action_space) if squashed else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        sizes = [mean.numel()] + [width] * depth
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        layers.append(nn.Linear(sizes[-1], output_size(action_space)))
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.layers((observations - self.mean) / self.std)
        return self.squash(out) if self.squash else out

    def stack(self, stacked: dict[str, Tensor]) -> Stack:
        return MLPStack(self, stacked)


class Actor(Policy):
    """The greedy actor of a soft actor-critic expert: two ReLU layers, tanh, scaled to the action space.

    action = low + (tanh(mean(obs)) + 1) / 2 * (high - low), from raw observations.
    """

    def __init__(self, weights: dict[str, Tensor], action_space: gym.spaces.Box) -> None:
        super().__init__()
        self.action_space = action_space
        self.layers = nn.Sequential()
        for i, name in enumerate(("trunk.0", "trunk.1", "mean")):
            outputs, inputs = weights[f"{name}.weight"].shape
            linear = nn.Linear(inputs, outputs)
            linear.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
            self.layers.append(linear)
            if i < 2:
                self.layers.append(nn.ReLU())
        self.squash = Squash(action_space)

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.squash(self.layers(observations))
        return out


def output_size(space: gym.Space[Any]) -> int:
    """Return how many outputs a policy for this action space has. Raises StabError for other than Box and Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return math.prod(space.shape)
    raise StabError(f"actions {space} are not supported: expected a Box of floats or a Discrete space")


@dataclass(frozen=True)
class MLPArguments(Declared):
    """Arguments of the policy string ``mlp``."""

    width: int = hyper(256, "units a hidden layer", lambda v: v >= 1, "an integer >= 1")
    depth: int = hyper(2, "hidden layers", lambda v: v >= 0, "an integer >= 0")
    actions: str = hyper(
        "squashed",
        "Box actions: tanh into the bounds, or linear and clipped in the closed loop",
        lambda v: v in ("squashed", "clipped"),
        "squashed or clipped",
    )

    def build(self, mean: Tensor, std: Tensor, action_space: gym.Space[Any], recipe: Recipe) -> Policy:
        squashed = self.actions == "squashed" and isinstance(action_space, gym.spaces.Box)
        return MLP(
            mean, std, action_space, width=self.width, depth=self.depth, dropout=recipe.dropout, squashed=squashed
        )


POLICIES = {"mlp": MLPArguments}


def build(recipe: Recipe, mean: Tensor, std: Tensor, action_space: gym.Space[Any]) -> Policy:
    """Return the policy that ``recipe.policy`` spells, freshly initialised. Raises StabError if it does not parse."""
    name, _, rest = recipe.policy.partition(":")
    if name not in POLICIES:
        raise StabError(f"unknown policy {name!r}.{suggest(name, POLICIES)} Known: {', '.join(POLICIES)}")
    arguments = POLICIES[name]
    try:
        made = arguments(**parse_arguments(rest, arguments, f"policy {name!r}"))
    except StabError as e:
        raise StabError(f"train.policy={recipe.policy!r}: {e}") from e
    return made.build(mean, std, action_space, recipe)
