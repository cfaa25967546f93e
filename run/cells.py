"""Cells: what one is, the files that belong to it, and how the parts that workers made become its rows."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stab import files, gva
from stab.config import Config
from stab.recipe import Recipe
from stab.registry import StabError, reason
from stab.run import rows
from stab.stabilizers.base import slug
from stab.tasks import Task, tasks

START_SEED = 50_000
PACKAGES = {
    "stab": "stab-gva",
    "torch": "torch",
    "mujoco": "mujoco",
    "gymnasium": "gymnasium",
    "minari": "minari",
}

EPISODE = {"return": files.NUMBER, "length": int, "cumulative": [files.NUMBER]}
# What came of a part's rollouts; its points are stabilizer, update, validation loss, and which of those found it is.
RETURNS = {"seconds": files.NUMBER, "found": {str: [EPISODE]}, "points": [list]}
TRAINED = {  # everything but the rows
    **{
        "about": dict,
        "parts": int,
        "failed": {str: str},
        "timings": dict,
        "validation_seconds": files.NUMBER,
    },
    "cell": {"starts": [int], "checkpoints": {str: [{"update": int, "weights": str}]}},
}


@dataclass(frozen=True)
class Cell:
    """One (task, recipe, seed): one training run and everything that rides on it.

    Attributes:
        stabilizers: canonical strings; those without an average read the raw iterate, and the first is one of them.
    """

    task: str
    recipe: Recipe
    seed: int
    stabilizers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the cell's file."""
        return f"{self.task}-{self.recipe.key}-seed{self.seed}"


@contextmanager
def asking(task: str) -> Iterator[None]:
    """Turn whatever a task's own code raises in the block into one line that names it (a StabError).

    What it prints goes to stderr: stdout is for results.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except StabError:
        raise
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        raise StabError(
            f"task {task!r} raised {reason(e)} ({where.name}, {where.filename}:{where.lineno})"
        ) from e


def make_task(config: Config, name: str) -> Task:
    """Return the task with the settings of the comparison. Raises StabError if it is unknown, or raises anything."""
    make = tasks.get(name)
    with asking(name):
        return make(
            name=name,
            dataset_id=config.data.dataset,
            train_episodes=config.data.train_episodes,
            validation_episodes=config.data.validation_episodes,
            infinite=config.data.infinite,
        )


def make_job(cell: Cell, config: Config, run: Path) -> dict[str, Any]:
    """Return what ``worker.work`` needs to begin a cell, and the engine to place it, as plain data."""
    return {
        "cell": asdict(cell),
        "config": config.to_dict(),
        "run": str(run.resolve()),
        "parts": parts_folder(run, cell).relative_to(run).as_posix(),
        "gpus": int(cell.recipe.device != "cpu"),
        "versions": versions(),
    }


def describe(task: Task, config: Config, cell: Cell) -> dict[str, Any]:
    """Return what decides the numbers of a cell, as plain data; its file begins with it. Loads the demonstrations."""
    data = task.dataset()
    horizons = gva.horizon_grid(min(config.eval.horizon, task.horizon))
    references = {
        "random": [data.references.random.at(h) for h in horizons],
        "expert": [data.references.expert.at(h) for h in horizons],
    }
    about = {
        "schema": rows.SCHEMA,
        "protocol": gva.PROTOCOL,
        "smoke": config.smoke,
        "task": cell.task,
        "task_version": task.version,
        "environment": data.environment,
        "dataset": data.dataset,
        "dataset_sha256": data.dataset_sha256,
        "expert_sha256": data.expert_sha256,
        "train_episodes": config.data.train_episodes,
        "validation_episodes": config.data.validation_episodes,
        "infinite": config.data.infinite,
        "recipe": cell.recipe.to_dict(),
        "seed": cell.seed,
        "versions": versions(),
        "horizons": horizons,
        "starts": starts(config),
        "references": references,
        "references_source": data.references.source,
        "window": config.window,
        "stabilizers": list(cell.stabilizers),
        "raw": cell.stabilizers[0],
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def finish(cell: Cell, run: Path) -> dict[str, str]:
    """Put the parts of a cell together: its files. Return why riders failed, by stabilizer string.

    Raises StabError when the cell is there already, from before it had some of its riders, with other rows; the old ones
    stay then as they are.
    """
    parts = parts_folder(run, cell)
    trained = files.read_as(trained_file(parts), TRAINED, "record")
    rolled = [
        files.read_as(returns_file(parts, part), RETURNS, "record")
        for part in range(1, trained["parts"] + 1)
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for one in rolled:
        found |= one["found"]
    timings = {
        **trained["timings"],
        "rollout_seconds": trained["validation_seconds"] + sum(one["seconds"] for one in rolled),
        "rollout_steps": sum(
            episode["length"] for episodes in found.values() for episode in episodes
        ),
    }
    about = trained["cell"]
    try:
        made = about | {"rows": make_rows(about["checkpoints"], found, about["starts"])}
    except KeyError as e:
        raise StabError(
            f"the parts of {cell.key} do not fit together; --resume begins it anew"
        ) from e
    path = cell_file(run, cell)
    if path.exists():
        _compare(path, files.read_json(path)["rows"], made["rows"])
    for kind in ("weights", "snapshots"):
        for file in sorted((parts / kind).glob("*")):
            (run / kind).mkdir(exist_ok=True)
            os.replace(file, run / kind / file.name)
    files.write_json(run / "timings" / f"{cell.key}.json", timings)
    files.write_json(path, made)
    clear_parts(run, cell)
    failed: dict[str, str] = trained["failed"]
    return failed


def clear_parts(run: Path, cell: Cell) -> None:
    """Delete the parts of a cell; first what says that there are others, so that half of it is not gone on with."""
    parts = parts_folder(run, cell)
    for path in (trained_file(parts), state_file(parts)):
        path.unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)


def _compare(path: Path, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    found = {(row["stabilizer"], row["update"], row["start"]): row for row in now}
    for row in before:
        name = (row["stabilizer"], row["update"], row["start"])
        if found.get(name) != row:
            raise StabError(
                f"trained again for new stabilizers, {path.name} came out otherwise ({name[0]} at update {name[1]}), so"
                " that old and new rows cannot be compared; the old ones are kept. Were libraries, the dataset or the"
                " machine changed? Run it in another --out"
            )


def make_rows(
    checkpoints: dict[str, list[dict[str, Any]]],
    found: dict[str, list[dict[str, Any]]],
    starts: Sequence[int],
) -> list[dict[str, Any]]:
    """Return a cell's rows: one a stabilizer, checkpoint and start."""
    return [
        {"stabilizer": string, "update": point["update"], "start": start, **episode}
        for string, points in checkpoints.items()
        for point in points
        for start, episode in zip(starts, found[point["weights"]], strict=True)
    ]


def starts(config: Config) -> list[int]:
    """Return the reset seeds of the starts."""
    return [START_SEED + n for n in range(config.eval.starts)]


def weights_file(run: Path, task: str, string: str, seed: int) -> Path:
    """Return where the final weights of an entry lie."""
    return run / "weights" / f"{task}-{slug(string)}-seed{seed}.safetensors"


def snapshot_file(run: Path, key: str) -> Path:
    """Return where a cell's snapshots lie."""
    return run / "snapshots" / f"{key}.safetensors"


def cell_file(run: Path, cell: Cell) -> Path:
    """Return where a finished cell lies."""
    return run / "cells" / f"{cell.key}.json"


def failure_file(run: Path, cell: Cell, string: str | None = None) -> Path:
    """Return where it lies why a cell failed, or one of its riders."""
    return run / "failures" / f"{cell.key}{f'--{slug(string)}' if string else ''}.json"


def parts_folder(run: Path, cell: Cell) -> Path:
    """Return where the parts of a cell lie until it is finished."""
    return run / "parts" / cell.key


def read_outs_file(parts: Path, part: int) -> Path:
    """Return where the read-outs of a part lie, from 1 on."""
    return parts / f"{part}.safetensors"


def returns_file(parts: Path, part: int) -> Path:
    """Return where what came of a part's rollouts lies."""
    return parts / f"{part}.json"


def state_file(parts: Path) -> Path:
    """Return where the state of unfinished training lies."""
    return parts / "state.safetensors"


def trained_file(parts: Path) -> Path:
    """Return where everything but the rows lies once training is over."""
    return parts / "trained.json"


def versions() -> dict[str, str]:
    """Return the versions that decide the numbers."""
    return {name: version(package) for name, package in PACKAGES.items()} | {
        "python": platform.python_version()
    }
