"""A small GPT: logits of the next token, given the tokens so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, gelu, layer_norm, linear

from stab.arguments import Declared, hyper, integer, number
from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks.policies import blocks
from stab.tasks.policies.kernels.chain import layers
from stab.tasks.policies.kernels.dropout import Dropout
from stab.tasks.policies.kernels.onednn import has_onednn

NOTHING = -100  # the target of padding
CHUNK = 64  # rows evaluated at once without gradients


class GPT(nn.Module):
    """A causal Transformer over tokens (GPT-2's, small): logits of the next token at every step.

    x = E[token] + P[step], ``depth`` blocks x += attention(LayerNorm(x)), x += MLP(LayerNorm(x))
    with a GELU layer of 4 ``width`` units, logits = LayerNorm(x) E^T. Embeddings E (vocabulary,
    width) and positions P (context, width) are learned. In training, dropout acts on the embedded
    tokens and on both branches. Initial weights are normal with standard deviation 0.02, or 0.02 /
    sqrt(2 depth) in the products that end a branch; biases are 0.

    Attributes:
        temperature: divides the logits before a token is drawn; 0 takes the likeliest token. It
            does not affect ``loss``.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        *,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.vocabulary, self.context, self.width, self.heads = vocabulary, context, width, heads
        self.temperature = temperature
        self.embeddings = nn.Parameter(torch.empty(vocabulary, width))
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends = name.endswith(("project.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if ends else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (rows, steps, vocabulary) of the tokens that follow ``tokens``.

        ``tokens``: (rows, steps) int64, steps <= context.
        """
        steps = tokens.shape[1]
        x = self.dropout(embedding(tokens, self.embeddings) + self.positions[:steps])
        later = torch.full((steps, steps), -torch.inf, dtype=x.dtype, device=x.device).triu_(1)
        for block in self.blocks:
            x = block(x, later)
        x = self.norm(x)
        if not has_onednn(x):
            return linear(x, self.embeddings)
        return layers(x.flatten(0, 1), [self.embeddings, None]).view(*tokens.shape, -1)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy (nats) of targets after inputs, both (rows, steps) int64.

        Targets of -100 do not count. Rows are padded at their ends. A step sees only itself and the
        steps before it, so the padding needs no mask.

        Without gradients, rows are evaluated in chunks: the activations of a whole validation set
        would take gigabytes.
        """
        size = len(inputs) if torch.is_grad_enabled() else CHUNK
        sums = []
        for i in range(0, len(inputs), size):
            logits = self(inputs[i : i + size]).flatten(0, 1)
            wanted = targets[i : i + size].flatten()
            sums.append(cross_entropy(logits, wanted, ignore_index=NOTHING, reduction="sum"))
        return torch.stack(sums).sum() / (targets != NOTHING).sum()

    def parts(self, inputs: Tensor, targets: Tensor) -> int:
        """Return how many targets count."""
        return int((targets != NOTHING).sum())

    def stack(self, stacked: dict[str, Tensor], rows: int) -> GPTStack:
        """Return policies with parameters (policies, ...), to generate side by side."""
        return GPTStack(self, stacked, rows)


class Block(blocks.Block):
    """A block with its attention written out.

    On the CPU ``scaled_dot_product_attention`` cannot be differentiated twice, and at these sizes
    it is not faster.
    """

    def forward(self, x: Tensor, later: Tensor) -> Tensor:
        """Return (rows, steps, width).

        ``later`` (steps, steps) is -inf if a step (first axis) must not see the other, else 0.
        """
        rows, steps, width = x.shape
        heads, size = self.heads, width // self.heads
        qkv = self.qkv(self.norm_attention(x)).view(rows, steps, 3, heads, size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, rows * heads, steps, size)
        weights = torch.baddbmm(later, query, key.mT, alpha=size**-0.5).softmax(-1)
        seen = torch.bmm(weights, value).view(rows, heads, steps, size).transpose(1, 2)
        return self.add(x, seen.reshape(rows, steps, width))


class GPTStack:
    """Policies that generate side by side, each on its own block of rows.

    A policy's logits must not depend, bitwise, on its company. Products are batched over the
    policies, and the operands of each begin at multiples of 64 bytes (weights and rows are padded
    with zeros): so the batched product gives each policy the bits that it gets alone. For the same
    reason the GELU sees whole vectors.
    """

    def __init__(self, policy: GPT, stacked: dict[str, Tensor], rows: int) -> None:
        self.policy, self.stacked, self.rows = policy, stacked, rows
        # Rows times heads, and so rows times width, must be a multiple of 16 floats.
        unit = 16 if policy.heads % 2 else 8
        padded = -(-rows // unit) * unit
        self.padding = (0, padded - rows)
        self.steps = 0
        self.live = list(range(len(stacked["positions"])))
        heads, context = padded * policy.heads, policy.context
        # Keys and values of the tokens so far.
        self.pairs = torch.empty(
            len(policy.blocks), 2, len(self.live), heads, context, policy.width // policy.heads
        )
        self._keep(self.live)

    def _keep(self, live: Sequence[int]) -> None:
        """Continue with some of the live policies."""
        self.pairs = self.pairs[:, :, [self.live.index(i) for i in live]]
        self.live = list(live)
        weights = {name: value[self.live] for name, value in self.stacked.items()}
        self.positions = weights.pop("positions")
        # To a multiple of 16: the logits of each policy are aligned, too.
        embeddings = nn.functional.pad(
            weights.pop("embeddings"), (0, 0, 0, -self.policy.vocabulary % 16)
        )
        self.head, self.embeddings = _aligned(embeddings).mT, embeddings.flatten(0, 1)
        self.firsts = torch.arange(len(self.live))[:, None] * embeddings.shape[1]
        self.weights = {
            k: v[:, None] if v.dim() == 2 else _aligned(v).mT for k, v in weights.items()
        }

    def step(self, tokens: np.ndarray | Tensor, live: Sequence[int]) -> Tensor:
        """Return logits (len(live), rows, vocabulary) of the next tokens, without gradients.

        ``tokens``: the latest ones, (policies, rows) int64. A policy that is not live takes no step
        and cannot be live again. Raises StabError if the context is full.
        """
        policy, at = self.policy, self.steps
        if at == policy.context:
            raise StabError(f"the context of {at} tokens is full: no token can follow")
        if self.live != list(live):
            self._keep(live)
        self.steps += 1
        tokens = nn.functional.pad(torch.as_tensor(tokens)[self.live], self.padding)
        x = embedding(tokens + self.firsts, self.embeddings) + self.positions[:, at, None]
        for i in range(len(policy.blocks)):
            qkv = self._linear(f"blocks.{i}.qkv", self._norm(f"blocks.{i}.norm_attention", x))
            x = x + self._linear(f"blocks.{i}.project", self._attend(qkv, self.pairs[i], at))
            hidden = gelu(self._linear(f"blocks.{i}.mlp.0", self._norm(f"blocks.{i}.norm_mlp", x)))
            x = x + self._linear(f"blocks.{i}.mlp.2", hidden)
        return torch.bmm(self._norm("norm", x), self.head)[:, : self.rows, : policy.vocabulary]

    def _attend(self, qkv: Tensor, pairs: Tensor, at: int) -> Tensor:
        """Return the attention's output at step ``at``, (policies, rows, width).

        The step's key and value are written into the block's pairs.
        """
        heads, size = self.policy.heads, pairs.shape[-1]
        qkv = qkv.view(-1, 3, heads, size).transpose(0, 1).reshape(3, -1, 1, size)
        pairs = pairs.flatten(1, 2)
        pairs[:, :, at : at + 1] = qkv[1:]
        keys, values = pairs[:, :, : at + 1].unbind()
        weights = torch.bmm(qkv[0], keys.mT).mul_(size**-0.5).softmax(-1)
        return torch.bmm(weights, values).view(len(self.live), -1, heads * size)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(self.weights[f"{name}.bias"], x, self.weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        normed = layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.weights[f"{name}.bias"], normed, self.weights[f"{name}.weight"])


def _aligned(matrices: Tensor) -> Tensor:
    """Copy (policies, m, n) so that each policy's part begins at a multiple of 64 bytes."""
    size = matrices[0].numel()
    return nn.functional.pad(matrices.flatten(1), (0, -size % 16))[:, :size].view(matrices.shape)


@dataclass(frozen=True)
class GPTArguments(Declared):
    """A causal Transformer over tokens."""

    width: int = hyper(64, "size of an embedded token, a multiple of heads", integer(1))
    depth: int = hyper(2, "blocks of attention and MLP", integer(1))
    heads: int = hyper(4, "attention heads, a divisor of width", integer(1))
    temperature: float = hyper(
        1.0,
        "of the tokens drawn: 0 takes the likeliest token, 1 samples as the model says",
        number("[0, inf)"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks.check_heads(self.width, self.heads)

    def build(self, vocabulary: int, context: int, recipe: Recipe) -> GPT:
        """Return the policy, freshly initialised."""
        return GPT(
            vocabulary,
            context,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            dropout=recipe.dropout,
            temperature=self.temperature,
        )
