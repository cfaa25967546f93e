"""A causal Transformer: acts on the last observations and the actions between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import hyper, integer
from stab.recipe import Recipe
from stab.tasks.policies import blocks
from stab.tasks.policies.base import Network, Policy, PolicyArguments, output_size
from stab.tasks.policies.kernels.linear import Linear
from stab.tasks.transitions import Batch

CHUNK = 256  # windows evaluated at once without gradients


@dataclass(frozen=True)
class History:
    """A Transformer's memory of its episodes; never changed in place.

    Attributes:
        tokens: (episodes, steps, width) embedded time steps within the context, latest last,
            before positions are added; steps is 0 at the beginning.
        actions: the latest action, (episodes, act_dim) float32, or (episodes,) int64 counted from 0
            for Discrete.
    """

    tokens: Tensor
    actions: Tensor


class Transformer(Network):
    """A causal Transformer over the last ``context`` time steps; see ``Network`` for its outputs.

    One token per time step i: linear(normalised observation o_i) + embedding of the previous action
    a_(i-1) (nothing at an episode's first step) + a learned vector of its position, counted from
    the window's end. Then ``depth`` blocks x += attention(LayerNorm(x)), x += MLP(LayerNorm(x))
    with a GELU layer of 4 ``width`` units and, in training, dropout on both branches. LayerNorm and
    a linear layer give the action at step i from steps <= i.

    A window of k steps holds k observations and the k actions before them, both in training and in
    the closed loop.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        action_space: gym.Space[Any],
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        squashed: bool,
        gaussian: bool = False,
    ) -> None:
        super().__init__(mean, std, action_space, squashed=squashed, gaussian=gaussian)
        self.context, self.width = context, width
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        size = output_size(action_space)
        self.observation = Linear(mean.numel(), width)
        self.previous: nn.Module = (
            nn.Embedding(size, width) if self.discrete else Linear(size, width, bias=False)
        )
        # Of the size of an embedded observation.
        self.positions = nn.Parameter(torch.randn(context, width) / 2)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), Linear(width, self.outputs))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of ``error`` over the windows that end at each transition of the batch.

        Steps before an episode's beginning do not count. In evaluation (``eval()``) only the
        transitions count, each with its window before it: the one-step loss, comparable with that
        of other policies. Without gradients, windows are evaluated in chunks: the activations of a
        whole validation set would take gigabytes.
        """
        size = len(batch) if torch.is_grad_enabled() else CHUNK
        errors, counts = [], []
        for i in range(0, len(batch), size):
            part = batch.source.batch(batch.indices[i : i + size])
            outputs, actions, valid = self.predict(part)
            if not self.training:
                outputs, actions, valid = outputs[:, -1:], actions[:, -1:], valid[:, -1:]
            errors.append(self.error(outputs[valid], actions[valid]))
            counts.append(int(valid.sum()))
        weights = torch.tensor(counts, device=errors[0].device) / sum(counts)
        return (torch.stack(errors) * weights).sum()

    def parts(self, batch: Batch) -> int:
        """Return how many steps of the windows count."""
        begun = batch.indices - batch.source.firsts[batch.indices] + 1
        return int(np.minimum(begun, self.context).sum())

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (batch, context, outputs), the expert's actions, and their validity.

        A step is valid if it lies within the episode. The last position is the transition itself.
        """
        # One step more than the context: the action before the window's first step.
        observations, actions, within = batch.window(self.context + 1)
        valid = within[:, 1:]
        outputs = self(observations[:, 1:], actions[:, :-1], within[:, :-1], valid)
        return outputs, actions[:, 1:], valid

    def forward(
        self, observations: Tensor, previous: Tensor, known: Tensor, valid: Tensor
    ) -> Tensor:
        """Return outputs (batch, steps, outputs) of windows of at most ``context`` steps.

        Args:
            observations: (batch, steps, obs_dim).
            previous: the actions one step before, (batch, steps, act_dim), or (batch, steps) for
                Discrete.
            known: (batch, steps) bool, whether there was a step before.
            valid: (batch, steps) bool, whether the step lies within the episode. Other steps have
                no influence.
        """
        return self.decode(
            self.embed(observations.masked_fill(~valid[..., None], 0), previous, known), valid
        )

    def embed(self, observations: Tensor, previous: Tensor, known: Tensor) -> Tensor:
        """Return tokens (..., width), without positions."""
        if self.discrete:
            taken = self.previous(previous).masked_fill(~known[..., None], 0)
        else:
            taken = self.previous(previous.masked_fill(~known[..., None], 0))
        tokens: Tensor = self.observation(self.normalise(observations)) + taken
        return tokens

    def decode(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Return the outputs of tokens (batch, steps, width).

        Without ``valid`` only those of the last step.
        """
        steps = tokens.shape[1]
        x = tokens + self.positions[-steps:]
        mask = None
        if valid is not None:
            # Only padding sees padding, and only itself, so that no row of the attention is empty.
            seen = valid[:, None, :] | torch.eye(steps, dtype=torch.bool, device=valid.device)
            seen &= torch.ones(steps, steps, dtype=torch.bool, device=valid.device).tril()
            mask = seen[:, None]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, last=valid is None and i == len(self.blocks) - 1)
        return self.finish(self.head(x if valid is not None else x[:, -1]))

    def memory(self, episodes: int) -> History:
        actions = (
            torch.zeros(episodes, dtype=torch.int64)
            if self.discrete
            else torch.zeros(episodes, self._act_dim)
        )
        return History(torch.zeros(episodes, 0, self.width), actions)

    def act(self, observations: Tensor, memory: History) -> tuple[np.ndarray, History]:
        known = torch.full((len(observations),), memory.tokens.shape[1] > 0)
        token = self.embed(observations, memory.actions, known)
        tokens = torch.cat([memory.tokens, token[:, None]], 1)[:, -self.context :]
        actions = self.to_actions(self.decode(tokens, None))
        return actions, History(tokens, self._from_actions(actions))

    def _from_actions(self, actions: np.ndarray) -> Tensor:
        """Return actions of the space (episodes, ...) as ``Transitions`` holds them."""
        if isinstance(self.action_space, gym.spaces.Discrete):
            return torch.from_numpy(actions - self.action_space.start)
        return torch.from_numpy(actions.astype(np.float32).reshape(len(actions), self._act_dim))

    @property
    def _act_dim(self) -> int:
        return output_size(self.action_space)


class Block(blocks.Block):
    """A block with torch's attention."""

    def forward(self, x: Tensor, mask: Tensor | None, last: bool) -> Tensor:
        """Return (batch, steps, width), or (batch, 1, width) for the last step alone.

        ``mask`` (batch, 1, steps, steps) bool: which step (third axis) sees which. Without it a
        step sees all up to itself.
        """
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, steps, width / heads)
        if last:
            query, x = query[:, :, -1:], x[:, -1:]
        seen = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and not last
        )
        return self.add(x, seen.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class TransformerArguments(PolicyArguments):
    """A causal Transformer: acts on the last observations and the actions between them."""

    context: int = hyper(16, "time steps it sees, the present one included", integer(1))
    width: int = hyper(64, "size of a token, a multiple of heads", integer(1))
    depth: int = hyper(2, "blocks of attention and MLP", integer(1))
    heads: int = hyper(4, "attention heads, a divisor of width", integer(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks.check_heads(self.width, self.heads)

    def build(
        self, mean: Tensor, std: Tensor, action_space: gym.Space[Any], recipe: Recipe
    ) -> Policy:
        return Transformer(
            mean,
            std,
            action_space,
            context=self.context,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            dropout=recipe.dropout,
            **self.outputs(action_space),
        )
