"""oneDNN's float32 product, for machines on which torch's own is slower.

PyTorch gives float32 products to the BLAS it was built with, and oneDNN's to convolutions and
compiled models only. MKL, the BLAS of the x86 wheels, leaves half of the vector units of AMD's
processors idle; oneDNN writes its kernels for the processor it finds. ``benchmarks/updates.py``
measures both.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Multiply-adds below which calling oneDNN costs more than it saves.
LARGE = 2**19


def has_onednn(inputs: Tensor) -> bool:
    """Whether this torch can multiply these inputs by oneDNN."""
    return inputs.device.type == "cpu" and inputs.dtype is torch.float32 and _built_with_onednn()


@functools.cache
def _built_with_onednn() -> bool:
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Return inputs (m, k) times weight (n, k) transposed, plus bias (n,); no derivative."""
    # What torch.compile calls for a linear layer.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return out
