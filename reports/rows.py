"""A run folder on disk: one file a finished cell, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stab.registry import StabError

SCHEMA = 1
CELL_KEYS = {
    *(
        "protocol",
        "task",
        "recipe",
        "seed",
        "stabilizers",
        "raw",
        "riders",
        "horizons",
        "starts",
        "references",
        "window",
    ),
    *("trajectory", "checkpoints", "rows", "versions", "dataset_sha256"),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, for the block to write; renamed at its end, removed when it raises.

    Raises StabError when the disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as e:
        raise StabError(f"cannot write {path}: {e.strerror or e}") from e


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it. Raises StabError when the disk does not take it."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any, indent: int | None = None) -> None:
    """Write JSON (no NaN: null stands for a figure that does not exist) under a temporary name and rename it."""
    write_text(path, json.dumps(data, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises StabError when the file is missing, truncated or not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise StabError(f"cannot read {path}: {e}") from e


def cells(run: Path, folder: str = "cells") -> Iterator[dict[str, Any]]:
    """Yield the finished cells of a run folder, in the order of their file names.

    ``folder="averages"``: the averages that were read off snapshots afterwards, each a cell of one stabilizer.

    A cell holds what its rows share (protocol, task, dataset, expert, environment, recipe, seed, versions, evaluation),
    ``checkpoints`` (a record per stabilizer and checkpoint) and ``rows`` (one per stabilizer, checkpoint and start).
    Raises StabError for a file that is no cell.
    """
    for path in sorted((run / folder).glob("*.json")):
        cell = read_json(path)
        if not isinstance(cell, dict) or cell.get("schema") != SCHEMA or not cell.keys() >= CELL_KEYS:
            raise StabError(f"{path} is no cell of stab (schema {SCHEMA}); move it out of the run folder")
        yield cell


def rows(run: Path) -> Iterator[dict[str, Any]]:
    """Yield every row, complete: what its cell shares together with what is its own."""
    for cell in cells(run):
        shared = {key: value for key, value in cell.items() if key not in ("rows", "checkpoints", "trajectory")}
        raw = {point["update"]: point for point in cell["trajectory"]}
        read = {(name, point["update"]): point for name, found in cell["checkpoints"].items() for point in found}
        for row in cell["rows"]:
            yield shared | raw[row["update"]] | read[row["stabilizer"], row["update"]] | row
