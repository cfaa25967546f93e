"""Averages chosen after training: read off a run's snapshots, rolled out as every other entry, kept beside the cells."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stab import files
from stab.engines import local as engine
from stab.recipe import Recipe
from stab.registry import StabError
from stab.reports.statistics import cell_key, settings
from stab.run import rows, snapshots
from stab.run.cells import make_rows, make_task, snapshot_file, weights_file
from stab.stabilizers import parse
from stab.stabilizers.base import slug

if TYPE_CHECKING:
    from stab.run.worker import More, Report
    from stab.stabilizers.base import Params


@dataclass(frozen=True)
class Job:
    """One average of one cell, to be read off and rolled out."""

    cell: Path
    string: str

    @property
    def file(self) -> Path:
        """Where its rows will lie."""
        return self.cell.parent.parent / "averages" / f"{self.cell.stem}-{slug(self.string)}.json"


def make_jobs(run: Path, strings: Sequence[str]) -> list[Job]:
    """Return what is to be read off for these strings: one job a task and seed whose recipe they share.

    Raises StabError when the run kept no snapshots, a string is no convex average, its settings do not fit the length of
    training, or the run has no training run of its recipe.
    """
    config = settings(run)
    if config.snapshots.every is None:
        raise StabError(
            f"{run} kept no snapshots to read averages off: run the comparison with snapshots.every="
            f"{config.eval.checkpoint_every // 4 or 1} (a divisor of eval.checkpoint_every)"
        )
    cells = {(c["task"], Recipe.from_dict(c["recipe"]).key, c["seed"]): c for c in rows.cells(run)}
    jobs = []
    for string in strings:
        stabilizer = parse(string)
        if stabilizer.average is None or not stabilizer.average.convex:
            raise StabError(
                f"{string!r} is no average that can be read off: expected one that declares convex weights"
            )
        recipe = stabilizer.apply(config.train)
        stabilizer.average.init({}, recipe.updates)
        for task, seed in itertools.product(config.tasks, range(config.seeds)):
            cell = cells.get((task, recipe.key, seed))
            if cell is None:
                there = {c["raw"] for c in cells.values() if c["task"] == task}
                known = [
                    raw
                    for raw in dict.fromkeys(parse(s).raw for s in config.stabilizers)
                    if raw in there
                ]
                raise StabError(
                    f"{string!r}: {run} has no training run of {stabilizer.raw!r} on {task} with seed {seed}; it has"
                    f" {', '.join(known) or 'nothing that finished'}"
                )
            key = cell_key(cell)
            if not snapshot_file(run, key).exists():
                raise StabError(
                    f"the snapshots {snapshot_file(run, key)} are gone: run the comparison again"
                )
            jobs.append(Job(run / "cells" / f"{key}.json", string))
    return jobs


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Return those whose rows are not on disk yet."""
    return [job for job in jobs if not job.file.exists()]


def execute(jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, engine.Event]]:
    """Read off and roll out; yield events as they come."""
    plain = [{"cell": str(job.cell.resolve()), "string": job.string} for job in jobs]
    with (
        engine.Workers("stab.run.posthoc:run_job", min(workers, len(plain))) as processes,
        closing(processes.run(plain)) as events,
    ):
        for event in events:
            yield jobs[event.job], event


def run_job(job: dict[str, Any], report: Report, _more: More) -> None:
    """Read one average off one cell's snapshots, roll out its window, write its rows; what a worker does."""
    import torch

    from stab.run.worker import ReadOuts, about_rider, roll_out

    torch.set_num_threads(1)
    path, string = Path(job["cell"]), job["string"]
    run, cell = path.parent.parent, files.read_json(path)
    config = settings(run)
    recipe = Recipe.from_dict(cell["recipe"])
    average = parse(string).average
    assert average is not None
    taken = snapshots.load(snapshot_file(run, path.stem))
    report("reading off", 0.0)
    found, misplaced = taken.read_off(average, cell["window"])
    task = make_task(config, cell["task"])
    rolled: dict[str, list[dict[str, Any]]] = {}

    def hand_over(stacked: Params, shas: list[str]) -> None:
        begin, share = len(rolled) / len(found), len(shas) / len(found)
        episodes = roll_out(
            task, config, recipe, stacked, lambda part: report("rollouts", begin + part * share)
        )
        rolled.update(zip(shas, episodes, strict=True))

    gathered = ReadOuts(task, recipe, [string], len(found), hand_over)
    for update, read_out in found.items():
        gathered.add(string, update, read_out)
    gathered.close()
    about = about_rider(string, recipe, cell["window"])
    files.write_json(
        Job(path, string).file,
        cell
        | {
            "stabilizers": [string],
            "riders": {string: about},
            "checkpoints": gathered.checkpoints,
            "rows": make_rows(gathered.checkpoints, rolled, cell["starts"]),
            "read_off": {
                "every": taken.every,
                "misplaced": misplaced,
                "distance": _distance(run, cell, string, found[recipe.updates]),
            },
        },
    )


def _distance(run: Path, cell: dict[str, Any], string: str, found: Params) -> float | None:
    """Return |read off - online| / |online - raw| of the final weights; None where the average did not ride online."""
    from safetensors.torch import load_file

    if string not in cell["stabilizers"]:
        return None
    online, raw = (
        load_file(weights_file(run, cell["task"], s, cell["seed"])) for s in (string, cell["raw"])
    )
    error = sum(float((found[k].double() - v.double()).square().sum()) for k, v in online.items())
    moved = sum(float((raw[k].double() - v.double()).square().sum()) for k, v in online.items())
    return (error / moved) ** 0.5 if moved else None
