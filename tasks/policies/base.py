"""What a policy is: a network that acts, its loss, and how many of them act side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import Declared, choice, hyper
from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks.transitions import Batch

LOG_STD = (-5.0, 2.0)  # the range of a Gaussian policy's log standard deviations


class Policy(nn.Module):
    """A network that acts in an environment with Box observations and Box or Discrete actions.

    Subclasses give ``forward`` (for the loss) and, when they read a history, ``memory`` and
    ``act``.

    Attributes:
        action_space: where it acts.
        gaussian: whether the network's outputs (..., 2 * act_dim) are means and log standard
            deviations.
    """

    action_space: gym.Space[Any]
    gaussian: bool = False

    @property
    def additive(self) -> bool:
        """Whether ``loss`` is a mean over samples that do not depend on each other.

        Where it is, micro-batches are computed as one batch. A policy declares it for itself, not
        for its subclasses, which may add BatchNorm or other terms.
        """
        return False

    def loss(self, batch: Batch) -> Tensor:
        """Return the one-step loss: ``error`` of the expert's actions at the observations."""
        return self.error(self(batch.observations), batch.actions)

    def parts(self, batch: Batch) -> int:
        """Return how many parts ``loss`` is the mean of: its transitions."""
        return len(batch)

    def error(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the loss of outputs (n, out) for actions (n, act_dim), or (n,) if Discrete.

        Box: mean over n and dimensions of (action - mean)^2, or, when Gaussian with standard
        deviation s, of (action - mean)^2 / (2 s^2) + log s + log(2 pi) / 2 (nats). Discrete: mean
        cross-entropy (nats).
        """
        if isinstance(self.action_space, gym.spaces.Discrete):
            return nn.functional.cross_entropy(outputs, actions)
        if not self.gaussian:
            return nn.functional.mse_loss(outputs, actions)
        mean, log_std = outputs.chunk(2, -1)
        scaled = (actions - mean) * torch.exp(-log_std)
        return (scaled.square() / 2 + log_std).mean() + math.log(2 * math.pi) / 2

    def memory(self, episodes: int) -> Any:
        """Return what ``act`` needs at the first step of this many episodes; None for nothing."""
        return None

    def act(self, observations: Tensor, memory: Any) -> tuple[np.ndarray, Any]:
        """Return greedy actions for observations (episodes, obs_dim), and the next memory.

        Box actions are the mean, clipped to the space; of Discrete ones the likeliest is taken.
        """
        return self.to_actions(self(observations)), memory

    def stack(self, stacked: dict[str, Tensor]) -> Stack:
        """Return policies with parameters (policies, ...), to act side by side."""
        return Stack(self, stacked)

    def to_actions(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (..., out) into actions of the space, without log standard deviations."""
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return np.asarray(outputs.argmax(-1).numpy() + space.start)
        assert isinstance(space, gym.spaces.Box)
        actions: np.ndarray = (
            outputs[..., : output_size(space)].numpy().reshape(*outputs.shape[:-1], *space.shape)
        )
        return np.asarray(np.clip(actions, space.low, space.high), dtype=space.dtype)


class Network(Policy):
    """A policy to be trained: normalised observations in; means (and deviations) or logits out.

    Observations are normalised with the training set's mean and standard deviation (obs_dim,), kept
    as buffers. With ``squashed`` a Box mean is low + (tanh(out) + 1) / 2 * (high - low), otherwise
    the linear output, clipped in the closed loop. With ``gaussian`` as many further outputs x give
    the log standard deviations -5 + 7 (tanh(x) + 1) / 2: bounded softly, so that no gradient is
    exactly lost at the bounds -5 and 2.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        action_space: gym.Space[Any],
        *,
        squashed: bool,
        gaussian: bool,
    ) -> None:
        super().__init__()
        self.action_space, self.gaussian = action_space, gaussian
        self.squash = Squash(action_space) if squashed else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.outputs = output_size(action_space) * (2 if gaussian else 1)

    def normalise(self, observations: Tensor) -> Tensor:
        """(observations - mean) / std."""
        return (observations - self.mean) / self.std

    def finish(self, out: Tensor) -> Tensor:
        """Turn the last layer's values (..., outputs) into outputs for ``error``."""
        if not self.gaussian:
            return self.squash(out) if self.squash else out
        mean, log_std = out.chunk(2, -1)
        low, high = LOG_STD
        log_std = low + (high - low) * (log_std.tanh() + 1) / 2
        return torch.cat([self.squash(mean) if self.squash else mean, log_std], -1)


class Squash(nn.Module):
    """low + (tanh(x) + 1) / 2 * (high - low), elementwise: into the bounds of a Box."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        if not (isinstance(space, gym.spaces.Box) and np.isfinite([space.low, space.high]).all()):
            raise StabError(f"actions {space} have no bounds to squash into: use actions=clipped")
        self.low: Tensor
        self.size: Tensor
        self.register_buffer("low", torch.as_tensor(space.low).flatten(), persistent=False)
        self.register_buffer(
            "size", torch.as_tensor(space.high - space.low).flatten(), persistent=False
        )

    def scale(self, squashed: Tensor) -> Tensor:
        """Map (-1, 1) to the bounds."""
        return self.low + (squashed + 1) / 2 * self.size

    def forward(self, outputs: Tensor) -> Tensor:
        return self.scale(outputs.tanh())


class Stack:
    """Policies that act side by side, each on its own block of episodes.

    A policy's actions must not depend, bitwise, on its company. Here each policy is a module of its
    own, with weights in storage of their own: a matrix product's last bits depend on the alignment
    of its operands and on the number of rows.
    """

    def __init__(self, policy: Policy, stacked: dict[str, Tensor]) -> None:
        self.policies = []
        for i in range(len(next(iter(stacked.values())))):
            self.policies.append(copy.deepcopy(policy).eval().requires_grad_(False))
            self.policies[-1].load_state_dict({name: value[i] for name, value in stacked.items()})
        self.memories: list[Any] = []

    def act(self, observations: np.ndarray, live: Sequence[int]) -> np.ndarray:
        """Return actions (live, episodes, ...) for float32 (policies, episodes, obs_dim)."""
        if not self.memories:
            self.memories = [policy.memory(observations.shape[1]) for policy in self.policies]
        actions = []
        for i in live:
            action, self.memories[i] = self.policies[i].act(
                torch.tensor(observations[i]), self.memories[i]
            )
            actions.append(action)
        return np.stack(actions)


def output_size(space: gym.Space[Any]) -> int:
    """Return act_dim of a Box of floats, or the choices of a Discrete. Raises StabError."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return math.prod(space.shape)
    raise StabError(
        f"actions {space} are not supported: expected a Box of floats or a Discrete space"
    )


@dataclass(frozen=True)
class PolicyArguments(Declared):
    """Arguments that every policy string takes."""

    actions: str = hyper(
        "squashed",
        "Box actions: tanh into the bounds, or linear and clipped in the closed loop",
        choice("squashed", "clipped"),
    )
    likelihood: str = hyper(
        "mse",
        "loss of Box actions: mean squared error, or a Gaussian's negative log-likelihood"
        " (Discrete: cross-entropy)",
        choice("mse", "gaussian"),
    )

    def build(
        self, mean: Tensor, std: Tensor, action_space: gym.Space[Any], recipe: Recipe
    ) -> Policy:
        """Return a fresh policy. Raises StabError if the arguments do not fit the space."""
        raise NotImplementedError

    def outputs(self, action_space: gym.Space[Any]) -> dict[str, bool]:
        """Return ``squashed`` and ``gaussian`` of ``Network``. Raises StabError if they clash."""
        box = isinstance(action_space, gym.spaces.Box)
        gaussian = self.likelihood == "gaussian"
        if gaussian and not box:
            raise StabError(
                f"likelihood=gaussian needs Box actions, got {action_space}: leave likelihood out,"
                " and the loss is the cross-entropy"
            )
        return {"squashed": box and self.actions == "squashed", "gaussian": gaussian}
