"""Cells: what one is, what decides its numbers, and how its shards become rows."""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stab import files, gva
from stab.config import Config
from stab.engines.base import Job
from stab.recipe import Recipe
from stab.registry import NO_MEMORY, StabError, reason
from stab.run import rows
from stab.run.folder import (
    cell_file,
    clear_shards,
    returns_file,
    shards_folder,
    timings_file,
    trained_file,
)
from stab.tasks import Task, tasks

START_SEED = 50_000
# fmt: off
PACKAGES = {
    "stab": "stab-gva", "torch": "torch", "mujoco": "mujoco", "gymnasium": "gymnasium",
    "minari": "minari",
}
EPISODE = {"return": files.NUMBER, "length": int, "cumulative": [files.NUMBER]}
# A shard's results. Points: stabilizer, update, validation loss, digest (a key of "found").
RETURNS = {"seconds": files.NUMBER, "found": {str: [EPISODE]}, "points": [list]}
TRAINED = {  # everything but the rows; "parts" counts the shards
    "about": dict, "parts": int, "failed": {str: str}, "timings": dict,
    "validation_seconds": files.NUMBER,
    "cell": {"starts": [int], "checkpoints": {str: [{"update": int, "weights": str}]}},
}
# fmt: on


@dataclass(frozen=True)
class Cell:
    """One (task, recipe, seed): a training run and all entries that share it.

    Attributes:
        stabilizers: canonical strings; those without an average read the raw iterate, and the first
            is one of them.
    """

    task: str
    recipe: Recipe
    seed: int
    stabilizers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the cell's files; ``rows.cell_key`` of its content."""
        return f"{self.task}-{self.recipe.key}-seed{self.seed}"


@contextmanager
def task_errors(task: str) -> Iterator[None]:
    """Turn what a task's own code raises in the block into a StabError of one line that names it.

    What it prints goes to stderr: stdout is for results.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except StabError:
        raise
    except Exception as e:
        where, said = traceback.extract_tb(e.__traceback__)[-1], reason(e)
        if said.startswith(NO_MEMORY):
            raise StabError(
                f"task {task!r}: {said}; lower train.batch_size, or the size of train.policy"
            ) from e
        raise StabError(
            f"task {task!r} raised {said} ({where.name}, {where.filename}:{where.lineno})"
        ) from e


def make_task(config: Config, name: str) -> Task:
    """Return a task with the settings of the comparison. Raises StabError if it fails."""
    make = tasks.get(name)
    with task_errors(name):
        return make(
            name=name,
            dataset_id=config.data.dataset,
            train_episodes=config.data.train_episodes,
            validation_episodes=config.data.validation_episodes,
            infinite=config.data.infinite,
        )


def make_job(cell: Cell, config: Config, run: Path) -> Job:
    """Return the job of a cell (see ``Engine``), with what ``worker.work`` needs besides."""
    return {
        **common_job(config, run, cell.task),
        "cell": asdict(cell),
        "reads": [shards_folder(run, cell.key).relative_to(run).as_posix()],
        "gpus": int(cell.recipe.device != "cpu"),
    }


def common_job(config: Config, run: Path, task: str) -> Job:
    """Return what all jobs of a run folder have."""
    from stab.tasks import datasets

    return {
        "run": str(run.resolve()),
        "config": config.to_dict(),
        "versions": versions(),
        "data": str(datasets.root()),
        "datasets": [make_task(config, task).demonstrations_id],
        "gpus": 0,
    }


def describe(task: Task, config: Config, cell: Cell) -> dict[str, Any]:
    """Return what decides the numbers of a cell, as plain data. Loads the demonstrations."""
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
    if data.remarks:
        about["remarks"] = data.remarks
    if task.metrics:
        about["metrics"] = dict(task.metrics)
    plain: dict[str, Any] = json.loads(json.dumps(about))  # tuples become lists
    return plain


def finish(cell: Cell, run: Path) -> dict[str, str]:
    """Write a cell's files from its shards. Return why entries failed, by stabilizer string.

    Raises StabError if the cell exists, from before it had some of its entries, with other rows;
    the old ones stay then.
    """
    shards = shards_folder(run, cell.key)
    trained = files.read_as(trained_file(shards), TRAINED, "record")
    results = [
        files.read_as(returns_file(shards, number), RETURNS, "record")
        for number in range(1, trained["parts"] + 1)
    ]
    episodes: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        episodes |= result["found"]
    rolled_out = trained["validation_seconds"] + sum(result["seconds"] for result in results)
    timings = {
        **trained["timings"],
        "rollout_seconds": rolled_out,
        "rollout_steps": sum(episode["length"] for one in episodes.values() for episode in one),
    }
    about = trained["cell"]
    try:
        content = about | {"rows": make_rows(about["checkpoints"], episodes, about["starts"])}
    except KeyError as e:
        raise StabError(
            f"the shards of {cell.key} do not fit together; --resume starts it from scratch"
        ) from e
    path = cell_file(run, cell.key)
    if path.exists():
        with suppress(files.Damaged):  # it is computed anew for that
            _compare(path, files.read_json(path)["rows"], content["rows"])
    for kind in ("weights", "snapshots"):
        for file in sorted((shards / kind).glob("*")):
            (run / kind).mkdir(exist_ok=True)
            os.replace(file, run / kind / file.name)
    files.write_record(timings_file(run, cell.key), timings)
    files.write_record(path, content)
    clear_shards(run, cell.key)
    failed: dict[str, str] = trained["failed"]
    return failed


def _compare(path: Path, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    by_name = {(row["stabilizer"], row["update"], row["start"]): row for row in new}
    for row in old:
        name = (row["stabilizer"], row["update"], row["start"])
        if by_name.get(name) != row:
            raise StabError(
                f"trained again for new stabilizers, {path.name} came out otherwise ({name[0]} at"
                f" update {name[1]}), so that old and new rows cannot be compared; the old ones are"
                " kept. Were libraries, the dataset or the machine changed? Run it in another --out"
            )


def make_rows(
    checkpoints: dict[str, list[dict[str, Any]]],
    episodes: dict[str, list[dict[str, Any]]],
    starts: Sequence[int],
) -> list[dict[str, Any]]:
    """Return a cell's rows, one per stabilizer, checkpoint and start; ``episodes`` by digest."""
    return [
        {"stabilizer": string, "update": point["update"], "start": start, **episode}
        for string, points in checkpoints.items()
        for point in points
        for start, episode in zip(starts, episodes[point["weights"]], strict=True)
    ]


def starts(config: Config) -> list[int]:
    """Return the reset seeds of the starts."""
    return [START_SEED + n for n in range(config.eval.starts)]


def versions() -> dict[str, str]:
    """Return the versions that decide the numbers."""
    return {name: version(package) for name, package in PACKAGES.items()} | {
        "python": platform.python_version()
    }
