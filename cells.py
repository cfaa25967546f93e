"""Cells: what one is, the files that belong to it, and how the parts that workers made become its rows."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stab.config import Config
from stab.recipe import Recipe
from stab.reports import rows
from stab.stabilizers.base import slug
from stab.tasks import Task, tasks

START_SEED = 50_000
PACKAGES = {"stab": "stab-gva", "torch": "torch", "mujoco": "mujoco", "gymnasium": "gymnasium", "minari": "minari"}


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


def make_task(config: Config, name: str) -> Task:
    """Return the task with the settings of the comparison. Raises StabError if it is unknown."""
    return tasks.get(name)(
        name=name,
        dataset_id=config.data.dataset,
        train_episodes=config.data.train_episodes,
        validation_episodes=config.data.validation_episodes,
        infinite=config.data.infinite,
    )


def make_job(cell: Cell, config: Config, run: Path) -> dict[str, Any]:
    """Return what ``worker.work`` needs to begin a cell, as plain data."""
    return {"cell": asdict(cell), "config": config.to_dict(), "run": str(run.resolve())}


def finish(cell: Cell, run: Path) -> None:
    """Put the parts of a cell together: its file and its timings."""
    parts = parts_folder(run, cell)
    trained = rows.read_json(parts / "trained.json")
    rolled = [rows.read_json(returns_file(parts, part)) for part in range(1, trained["parts"] + 1)]
    found: dict[str, list[dict[str, Any]]] = {}
    for one in rolled:
        found |= one["found"]
    timings = {
        **trained["timings"],
        "rollout_seconds": trained["validation_seconds"] + sum(one["seconds"] for one in rolled),
        "rollout_steps": sum(episode["length"] for episodes in found.values() for episode in episodes),
    }
    rows.write_json(run / "timings" / f"{cell.key}.json", timings)
    about = trained["cell"]
    rows.write_json(
        run / "cells" / f"{cell.key}.json",
        about | {"rows": make_rows(about["checkpoints"], found, about["starts"])},
    )
    shutil.rmtree(parts)


def make_rows(
    checkpoints: dict[str, list[dict[str, Any]]], found: dict[str, list[dict[str, Any]]], starts: Sequence[int]
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


def parts_folder(run: Path, cell: Cell) -> Path:
    """Return where the parts of a cell lie until it is finished."""
    return run / "parts" / cell.key


def read_outs_file(parts: Path, part: int) -> Path:
    """Return where the read-outs of a part lie, from 1 on."""
    return parts / f"{part}.safetensors"


def returns_file(parts: Path, part: int) -> Path:
    """Return where what came of a part's rollouts lies."""
    return parts / f"{part}.json"


def versions() -> dict[str, str]:
    """Return the versions that decide the numbers."""
    return {name: version(package) for name, package in PACKAGES.items()} | {"python": platform.python_version()}
