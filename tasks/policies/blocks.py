"""Parts of both Transformers, of numbers and of tokens."""

from __future__ import annotations

from torch import Tensor, nn

from stab.registry import StabError
from stab.tasks.policies.kernels.dropout import Dropout
from stab.tasks.policies.kernels.linear import Linear


class Block(nn.Module):
    """x += attention(LayerNorm(x)), then x += MLP(LayerNorm(x)); subclasses give the attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.dropout = Dropout(dropout)

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return x (..., steps, width) with both branches added, given the heads' outputs."""
        x = x + self.dropout(self.project(attended))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out


def check_heads(width: int, heads: int) -> None:
    """Raise StabError unless the heads divide the width."""
    if width % heads:
        raise StabError(
            f"width={width} is not a multiple of heads={heads}: each head takes width / heads"
            f" units; use width={-(-width // heads) * heads} or other heads"
        )
