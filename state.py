"""Nested state on disk as data, never code: tensors as safetensors, the structure around them as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab.registry import StabError
from stab.reports import rows

if TYPE_CHECKING:
    from torch import Tensor


def save(path: Path, tree: Any) -> None:
    """Write a tree under a temporary name and rename it.

    A tree is a tensor, an array, a number, a string, a boolean, None, or a dict (keys: strings and integers), list or tuple
    of trees. Floats keep every bit, tensors their strides. Raises TypeError for anything else, StabError when the disk does
    not take it.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart(tree, tensors))
    save_tensors(path, tensors, {"tree": structure})


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write safetensors under a temporary name and rename it. Raises StabError when the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with rows.replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, about)
    except SafetensorError as e:
        raise StabError(f"cannot write {path}: {e}") from e


def load(path: Path) -> Any:
    """Read what ``save`` wrote. Raises StabError when the file is missing, damaged, or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            structure = json.loads(file.metadata()["tree"])
            return _put_together(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        raise StabError(f"cannot read the state {path}: {e}") from e


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(np.array(value, order="C"))
            return {"array": name}
        # Where elements lie in memory is kept, too: fused optimizers walk through a parameter and its state side by side.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        tensors[name] = value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": [name, order]}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _take_apart(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take_apart(one, tensors) for one in value]}
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        name, order = content
        return tensors[name].permute([order.index(axis) for axis in range(len(order))])
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _put_together(one, tensors) for key, one in content}
    found = [_put_together(one, tensors) for one in content]
    return {"list": found, "tuple": tuple(found)}[kind]
