"""Nested state on disk: what is read is what was written, and nothing else is."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stab import StabError, files

tensors = st.sampled_from(
    [
        torch.randn(3, 4),
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.randn(5, 4).T,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor([True, False]),
        torch.arange(3),
        torch.randn(2, dtype=torch.float64),
        torch.randn(3).bfloat16(),
        np.arange(6.0).reshape(2, 3),
    ]
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(max_size=5)
    | tensors
)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor | np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
        return same and (
            isinstance(one, np.ndarray) or one.numel() < 2 or one.stride() == other.stride()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(tree=trees)
def test_what_is_read_is_what_was_written(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    files.save_tree(path, tree)
    assert equal(files.load_tree(path), tree)


@pytest.mark.parametrize("bad", [object(), {1.5: 2}, [lambda: 1], {"a": {2, 3}}])
def test_other_things_are_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(TypeError, match="not plain data"):
        files.save_tree(tmp_path / "state", bad)
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_each(tmp_path):
    whole = torch.randn(4, 4)
    files.save_tree(tmp_path / "state", {"whole": whole, "row": whole[1], "again": whole})
    found = files.load_tree(tmp_path / "state")
    assert torch.equal(found["whole"], whole)
    assert torch.equal(found["row"], whole[1])
    assert found["again"].data_ptr() != found["whole"].data_ptr()


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "text", "truncated", "pickle", "no tree", "other tree", "deep tree"],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, kind):
    path = tmp_path / "state"
    files.save_tree(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "no tree":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "other tree":
        save_file({"a": torch.zeros(1)}, path, {"tree": json.dumps({"module": "os"})})
    elif kind == "deep tree":
        save_file({"a": torch.zeros(1)}, path, {"tree": '{"list": [' * 5000 + "]}" * 5000})
    else:
        contents = {
            "empty": b"",
            "text": b"half of it",
            "truncated": whole[:-50],
            "pickle": pickle.dumps({"a": 1}),
        }
        path.write_bytes(contents[kind])
    with pytest.raises(StabError, match="cannot read"):
        files.load_tree(path)
