"""Execution of a plan: the checks before it, and its cells on an engine."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from stab import files
from stab.config import Config, Evaluation, flat
from stab.engines import Engine, Event
from stab.recipe import Recipe
from stab.registry import StabError
from stab.run import rows
from stab.run.cells import Cell, describe, finish, make_job, make_task, task_errors
from stab.run.folder import (
    cell_file,
    check_folder,
    clear_shards,
    failure_file,
    shards_folder,
    snapshot_file,
    timings_file,
    weights_file,
)
from stab.run.plan import Plan
from stab.tasks.base import Task
from stab.tasks.references import no_progress

WORK = "stab.run.worker:work"
DECIDING = ("stab", "torch", "mujoco", "gymnasium")  # versions that all cells must share


def prepare(
    plan: Plan, resumed: Path | None = None, progress: Callable[[str, float], None] | None = None
) -> None:
    """Load every task's demonstrations, collecting missing ones, and try its policy on the recipes.

    Raises StabError if a dataset is missing, a recipe does not fit the task, or the finished cells
    of a run folder that is resumed would not be comparable with new ones.
    """
    import numpy as np

    from stab.train import Fresh, check_pool

    loaded = {name: make_task(plan.config, name) for name in plan.config.tasks}
    for name, task in loaded.items():
        with task_errors(name):
            if plan.config.eval.horizon > max(task.horizon, Evaluation.horizon):
                raise StabError(
                    f"eval.horizon={plan.config.eval.horizon}: episodes of {name} end after"
                    f" {task.horizon} steps at the latest"
                )
            data = task.dataset(functools.partial(progress, name) if progress else no_progress)
            data.references.normalise(np.zeros(1), [min(plan.config.eval.horizon, task.horizon)])
            for recipe in {c.recipe.key: c.recipe for c in plan.cells if c.task == name}.values():
                task.policy(recipe)
                if isinstance(data.train, Fresh):
                    check_pool(data.train, recipe)
    for finished in rows.cells(resumed, skip_damaged=True) if resumed else ():
        if finished["task"] in loaded:
            _check_finished(plan.config, loaded[finished["task"]], finished)


def _check_finished(config: Config, task: Task, finished: dict[str, Any]) -> None:
    """Raise StabError if a finished cell would come out otherwise now."""
    cell = Cell(
        finished["task"],
        Recipe.from_dict(finished["recipe"]),
        finished["seed"],
        tuple(finished["stabilizers"]),
    )
    with task_errors(cell.task):
        now = describe(task, config, cell)
    new, old = _deciding(now), _deciding(finished)
    differing = [
        f"{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]
    ]
    if differing:
        raise StabError(
            f"--resume: finished cells ({cell.key}) would come out otherwise now"
            f" ({'; '.join(differing[:4])}), and new ones would not be comparable with them: choose"
            " another --out"
        )


def _deciding(cell: dict[str, Any]) -> dict[str, str]:
    versions = {name: cell["versions"].get(name) for name in DECIDING}
    return {key: repr(value) for key, value in flat(cell | {"versions": versions}).items()}


def check_unchanged(plan: Plan, run: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Raise StabError if another process used the run folder between planning and locking."""
    if check_folder(run, config, resume, overwrite) != plan.config:
        raise StabError(f"{run} was changed by another process meanwhile: give the command again")


def unfinished(plan: Plan, run: Path) -> list[Cell]:
    """Return the cells of the plan that the run folder does not hold yet."""
    return [cell for cell in plan.cells if not set(cell.stabilizers) <= set(_finished(cell, run))]


def _finished(cell: Cell, run: Path) -> list[str]:
    """Return the entries of a cell that are on disk; none if a file of the cell is damaged."""
    path = cell_file(run, cell.key)
    if not path.exists():
        return []
    try:
        entries: list[str] = files.read_json(path).get("stabilizers", [])
        tensors = [weights_file(run, cell.task, string, cell.seed) for string in entries]
        tensors.append(snapshot_file(run, cell.key))
        for read, paths in (
            (files.read_json, [timings_file(run, cell.key)]),
            (files.read_about, tensors),
        ):
            for one in paths:
                if one.exists():
                    read(one)
    except files.Damaged:
        return []
    return entries


def execute(plan: Plan, run: Path, engine: Engine) -> Generator[tuple[Cell, Event]]:
    """Run the unfinished cells on an engine for ``WORK``; yield events as they come.

    A cell or an entry that fails leaves its reason in ``failures/`` and in the event. A cell that
    was interrupted, or failed for a transient cause, keeps its shards and is resumed; see
    ``worker``. The fraction of a "progress" is that of all the cell's training, or rollouts.
    """
    todo = unfinished(plan, run)
    jobs = [make_job(cell, plan.config, run) for cell in todo]
    done: dict[tuple[int, str], dict[int, float]] = {}  # cell and phase -> part -> fraction
    with closing(engine.run(jobs)) as events:
        for event in events:
            cell = todo[event.job]
            if event.kind == "progress":
                fractions = done.setdefault((event.job, event.phase), {})
                fractions[event.part] = event.fraction
                yield cell, dataclasses.replace(event, fraction=sum(fractions.values()))
            else:
                yield cell, _settle(cell, run, event)
    if not any(shards_folder(run, cell.key).exists() for cell in todo):
        shutil.rmtree(run / "parts", ignore_errors=True)


def _settle(cell: Cell, run: Path, event: Event) -> Event:
    """Record how a cell ended; return the event with the reasons of all failures."""
    if event.kind == "done":
        try:
            failed = finish(cell, run)
        except StabError as e:
            transient = isinstance(e, files.CannotWrite)
            event = dataclasses.replace(event, kind="failed", reason=str(e), transient=transient)
            return _settle(cell, run, event)
        for path in (run / "failures").glob(f"{cell.key}[.-]*"):
            path.unlink()
        for string, reason in failed.items():
            _write_failure(failure_file(run, cell.key, string), cell, [string], reason)
        reasons = [f"{string}: {reason}" for string, reason in failed.items()]
        return dataclasses.replace(event, reason="; ".join(reasons))
    # What an earlier session finished stays finished: this one ran for new entries.
    finished = _finished(cell, run)
    lost = [string for string in cell.stabilizers if string not in finished]
    _write_failure(failure_file(run, cell.key), cell, lost, event.reason)
    if not event.transient:  # the same would fail again
        clear_shards(run, cell.key)
    return event


def _write_failure(path: Path, cell: Cell, stabilizers: list[str], reason: str) -> None:
    files.write_record(
        path, {"task": cell.task, "stabilizers": stabilizers, "seed": cell.seed, "reason": reason}
    )
