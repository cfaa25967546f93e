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
    of trees. Floats keep every bit. Raises TypeError for anything else, StabError when the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart(tree, tensors))
    try:
        with rows.replacing(path) as temporary:
            save_file(tensors, temporary, {"tree": structure})
    except SafetensorError as e:
        raise StabError(f"cannot write {path}: {e}") from e


def load(path: Path) -> Any:
    """Read what ``save`` wrote. Raises StabError when the file is missing, damaged, or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            structure = json.loads(file.metadata()["tree"])
            return _put_together(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as e:
        raise StabError(f"cannot read the state {path}: {e}") from e


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        whole = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
        tensors[name] = whole.cpu().clone(memory_format=torch.contiguous_format)
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
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
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _put_together(one, tensors) for key, one in content}
    found = [_put_together(one, tensors) for one in content]
    return {"list": found, "tuple": tuple(found)}[kind]
