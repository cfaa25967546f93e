"""The format of finished cells on disk, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stab.files import NUMBER, Damaged, fits, read_json
from stab.recipe import Recipe
from stab.registry import StabError

SCHEMA = 1
# fmt: off
TIMES = {
    "train_seconds": NUMBER, "rollout_seconds": NUMBER,
    "average_seconds": {str: NUMBER}, "average_bytes": {str: int},
}
FAILURE = {"task": str, "stabilizers": [str], "seed": int, "reason": str}
ABOUT = {"command": str, "seconds": NUMBER, "cores": int}
SKIPPED = [{"task": str, "stabilizer": str, "reason": str}]
CELL = {
    "schema": int, "protocol": int, "smoke": bool, "task": str, "task_version": int,
    "environment": str, "seed": int, "dataset": str, "dataset_sha256": str, "recipe": dict,
    "versions": {str: str}, "references_source": str, "horizons": [int], "starts": [int],
    "window": [int], "references": {"random": [NUMBER], "expert": [NUMBER]},
    "stabilizers": [str], "raw": str,
    "riders": {str: {"average": bool, "half_life": ([int], type(None)), "notes": [str]}},
    "trajectory": [
        {"update": int, "lr": NUMBER, "gradient_variance": NUMBER, "gradient_norm2": NUMBER}
    ],
    "checkpoints": {str: [{"update": int, "val_loss": NUMBER, "weights": str}]},
    "rows": [
        {"stabilizer": str, "update": int, "start": int, "return": NUMBER, "length": int,
         "cumulative": [NUMBER]}
    ],
}
# fmt: on
# Optional keys of a row; see ``tasks.base.Infos``.
INFOS = {"measures": {str: NUMBER}, "text": {"prompt": [str], "tokens": [str]}}


def infos(info: Any) -> dict[str, Any]:
    """Return a task's optional keys of an episode. Raises ValueError for another form."""
    if not isinstance(info, Mapping) or not all(
        key in INFOS and fits(one, INFOS[key]) for key, one in info.items()
    ):
        raise ValueError(
            f"a rollout's infos are {info!r:.200}: expected measures (finite numbers) and text"
            " alone"
        )
    return dict(info)


def read(path: Path, form: Any, what: str) -> Any:
    """Read a file of a run folder. Raises Damaged, or StabError if it is something else."""
    try:
        data = read_json(path)
    except Damaged as e:
        again = "--resume computes it anew"
        if path.name == "skipped.json":
            again = "delete it; --resume lists the skipped pairs again"
        elif path.parent.name == "averages":
            again = "delete it, and stab report RUN --averages computes it anew"
        raise Damaged(f"{e}; {again}") from e
    if not fits(data, form):
        raise StabError(f"{path} is not a {what} of stab; move it out of the run folder")
    return data


def skipped(run: Path) -> dict[tuple[str, str], str]:
    """Return the reasons of skipped pairs by (task, stabilizer)."""
    path = run / "skipped.json"
    if not path.exists():
        return {}
    data = read(path, (SKIPPED, {"skipped": SKIPPED}), "list of skipped pairs")
    pairs = data["skipped"] if isinstance(data, dict) else data  # the list itself, before checksums
    return {(pair["task"], pair["stabilizer"]): pair["reason"] for pair in pairs}


def cells(run: Path, folder: str = "cells", skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the finished cells of a run folder, in the order of their file names.

    ``folder="averages"``: post-hoc averages, each a cell of one stabilizer. ``skip_damaged``:
    leaves out what ``--resume`` computes anew.

    A cell holds what its rows share (protocol, task, dataset, expert, environment, recipe, seed,
    versions, evaluation), ``checkpoints`` (a record per stabilizer and checkpoint) and ``rows``
    (one per stabilizer, checkpoint and start). Raises StabError for an incomplete cell.
    """
    for path in sorted((run / folder).glob("*.json")):
        try:
            cell = read(path, object, "cell")
        except Damaged:
            if skip_damaged:
                continue
            raise
        if (
            not isinstance(cell, dict)
            or cell.get("schema") != SCHEMA
            or not fits(cell, CELL)
            or not fits(cell.get("metrics", {}), {str: str})
            or not _whole(cell)
        ):
            raise StabError(
                f"{path} is not a cell of stab (schema {SCHEMA}); move it out of the run folder"
            )
        yield cell


def cell_key(cell: dict[str, Any]) -> str:
    """Return the name of a cell's files."""
    return f"{cell['task']}-{Recipe.from_dict(cell['recipe']).key}-seed{cell['seed']}"


def _whole(cell: dict[str, Any]) -> bool:
    """Whether a cell is consistent: a row for each checkpoint and start of each stabilizer."""
    try:
        Recipe.from_dict(cell["recipe"])
    except (StabError, TypeError, ValueError, OverflowError):
        return False
    names, starts, horizons = cell["stabilizers"], cell["starts"], len(cell["horizons"])
    if cell["seed"] < 0 or len(set(names)) < len(names):
        return False
    if (
        not names
        or not set(names) <= cell["riders"].keys() & cell["checkpoints"].keys()
        or not starts
        or not horizons
    ):
        return False
    expected = {
        (name, p["update"], start)
        for name in names
        for p in cell["checkpoints"][name]
        for start in starts
    }
    updates = [[p["update"] for p in cell["checkpoints"][name]] for name in names]
    trained = [p["update"] for p in cell["trajectory"]]
    return (
        all(one == updates[0] and sorted(set(one)) == one for one in updates)
        and {*cell["window"]} <= {*updates[0]} <= {*trained}
        and sorted(set(trained)) == trained
        and sorted(set(cell["window"])) == cell["window"]
        and len(cell["window"]) > 1
        and expected == {(row["stabilizer"], row["update"], row["start"]) for row in cell["rows"]}
        and len(expected) == len(cell["rows"])
        and all(len(row["cumulative"]) == horizons for row in cell["rows"])
        and all(
            fits(row[key], form)
            for row in cell["rows"]
            for key, form in INFOS.items()
            if key in row
        )
        and all(len(cell["references"][which]) == horizons for which in ("random", "expert"))
    )


def rows(run: Path) -> Iterator[dict[str, Any]]:
    """Yield every row, together with what its cell shares."""
    for cell in cells(run):
        shared = {
            key: value
            for key, value in cell.items()
            if key not in ("rows", "checkpoints", "trajectory")
        }
        raw = {point["update"]: point for point in cell["trajectory"]}
        read = {
            (name, point["update"]): point
            for name, points in cell["checkpoints"].items()
            for point in points
        }
        for row in cell["rows"]:
            yield shared | raw[row["update"]] | read[row["stabilizer"], row["update"]] | row
