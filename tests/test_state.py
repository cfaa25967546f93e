"""Nested state on disk: what is read is what was written, and nothing else is."""

from __future__ import annotations

import json
import math
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
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


def test_tensors_are_aligned_as_fresh_ones(tmp_path):
    """In the file they begin where its header ends; the last bits of products depend on that."""
    for count in range(1, 9):
        tree = {f"name {i}": torch.randn(5 + i) for i in range(count)}
        files.save_tree(tmp_path / "state", tree | {"transposed": torch.randn(7, 5).T})
        found = files.load_tree(tmp_path / "state").values()
        assert [tensor.data_ptr() % 64 for tensor in found] == [0] * (count + 1)
        assert {tensor.storage_offset() for tensor in found} == {0}


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


# Checksums


def save(path):
    about = {name: name for name in ("recipe", "task", "stabilizer", "a", "b", "é\n\x01")}
    files.save_tensors(path, {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}, about)
    return about


def test_equal_tensors_are_equal_bytes_and_any_library_reads_them(tmp_path):
    for name in range(20):  # safetensors writes six keys in one of 720 orders
        about = save(tmp_path / str(name))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata().keys() == about.keys() | {"checksum"}
        assert {k: file.metadata()[k] for k in about} == about
        assert torch.equal(file.get_tensor("w"), torch.arange(6.0).view(2, 3))
    tensors, found = files.load_tensors(tmp_path / "0")
    assert found == about
    assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3))


def test_every_flipped_bit_of_tensors_is_found(tmp_path):
    about, path = save(tmp_path / "a"), tmp_path / "a"
    whole, tensors = path.read_bytes(), files.load_tensors(path)[0]
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        said = None
        try:
            found, its = files.load_tensors(path)
        except StabError as e:
            said = str(e)
        refused += said is not None
        assert said is None or (str(path) in said and "\n" not in said)
        if said is None:  # a letter of the key "checksum", or of the blanks behind the header
            assert {k: its[k] for k in about} == about
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused > 0.9 * 8 * len(whole)


def test_tensors_without_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a", {"tree": "3"})
    assert files.load_tree(tmp_path / "a") == 3
    assert files.read_about(tmp_path / "a") == {"tree": "3"}


def test_every_flipped_bit_of_a_record_is_found_or_changes_nothing(tmp_path):
    path, data = tmp_path / "a.json", {"gva": 0.123456, "seeds": [0, 1], "é": "none", "b": {}}
    files.write_record(path, data)
    whole, refused = path.read_bytes(), 0
    assert files.read_json(path) == data
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        said = found = None
        try:
            found = files.read_json(path)
        except StabError as e:
            said = str(e)
        refused += said is not None
        kept = said is None and {key: found.get(key) for key in data} == data
        assert kept or "a.json" in said
    assert refused > 0.9 * 8 * len(whole)


def test_what_is_not_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (files.read_json, files.read_record_text, files.read_about, files.load_tree):
        for path in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere"):
            with pytest.raises(StabError, match=r"cannot read .*: "):
                read(path)
