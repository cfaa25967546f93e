"""Plan and run the cross product of tasks, stabilizers and seeds."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import math
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stab import files
from stab.config import PRESETS, QUICK, Config, Evaluation, flat, load, names
from stab.engines import local as engine
from stab.recipe import Recipe
from stab.registry import Incompatible, StabError, suggest
from stab.run import lock, rows, snapshots
from stab.run.cells import (
    Cell,
    asking,
    cell_file,
    clear_parts,
    describe,
    failure_file,
    finish,
    make_job,
    make_task,
    parts_folder,
)
from stab.stabilizers import expand, parse, split, stabilizers
from stab.stabilizers.base import LARGEST
from stab.tasks import tasks
from stab.tasks.base import Task
from stab.tasks.references import no_progress

if TYPE_CHECKING:
    from stab.reports.statistics import Results

WORK = "stab.run.worker:work"
ENGINES = ("local", "ray")
RUN_FILES = {
    *(
        "config.yaml",
        "run.json",
        "skipped.json",
        "cells",
        "timings",
        "failures",
        "weights",
        "figures",
        "tensorboard",
    ),
    *("leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "parts", "snapshots"),
    *("averages", "averages.json", "averages.csv", "averages.md"),
    *(lock.LOCK, lock.HOLDER),
}
DECIDING = (
    "stab",
    "torch",
    "mujoco",
    "gymnasium",
)  # versions that finished cells and new ones must share


@dataclass(frozen=True)
class Plan:
    """What will run.

    Attributes:
        cells: the longest first.
        skipped: (task, stabilizer) -> reason, for pairs that cannot run.
        entries: rows of the leaderboard to come, skipped ones included.
    """

    config: Config
    cells: list[Cell]
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return len(self.config.tasks) * len(self.config.stabilizers)

    @property
    def shared(self) -> int:
        """Training runs saved by sharing: entries x seeds that ride on another's trajectory."""
        return max(0, (self.entries - len(self.skipped)) * self.config.seeds - len(self.cells))

    @property
    def rollouts(self) -> int:
        """Episodes to roll out, at most."""
        per_rider = len(self.config.checkpoints) * self.config.eval.starts
        return sum(len(cell.stabilizers) for cell in self.cells) * per_rider


def make_config(
    task: str | Sequence[str] = (),
    stabilizers: str | Sequence[str] | None = None,
    *,
    seeds: int | None = None,
    updates: int | None = None,
    dataset: str | None = None,
    policy: str | None = None,
    device: str | None = None,
    preset: str | None = None,
    quick: bool = False,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, dict[str, str] | None]:
    """Return the settings of a comparison and, for "all", the reasons of the stabilizers that are broken.

    Later ones win: defaults, the task's, preset, file, quick, arguments, overrides. ``stabilizers`` is "all", a list, or a
    comma-separated string. A dataset without a task belongs to the built-in task of its environment, or is one of its own.
    Raises StabError for anything unknown or out of range, and when no task or no stabilizer is named.
    """
    if preset is not None and preset not in PRESETS:
        raise StabError(
            f"unknown preset {preset!r}.{suggest(preset, PRESETS)} Known: {', '.join(PRESETS)}"
        )
    layers: list[dict[str, Any] | Path] = [PRESETS[preset]] if preset else []
    layers += [file] if file else []
    layers += [QUICK] if quick else []
    arguments: dict[str, Any] = {}
    broken: dict[str, str] | None = None
    if task:
        arguments["tasks"] = [task] if isinstance(task, str) else list(dict.fromkeys(task))
    if stabilizers == "all":
        arguments["stabilizers"], broken = every_stabilizer()
    elif stabilizers:
        arguments["stabilizers"] = (
            split(stabilizers) if isinstance(stabilizers, str) else list(stabilizers)
        )
    if seeds is not None:
        arguments["seeds"] = seeds
    train = {"updates": updates, "policy": policy, "device": device}
    arguments["train"] = {key: value for key, value in train.items() if value is not None}
    if dataset is not None:
        arguments["data"] = {"dataset": dataset}
    named, from_dataset = names(*layers, arguments, overrides=overrides)
    if not named and from_dataset:
        from stab.tasks.catalog import task_for

        named = [task_for(from_dataset)]
        arguments["tasks"] = named
    if not named:
        raise StabError(f"no task: give --task NAME. Known: {', '.join(tasks.names())}")
    first, *others = named
    swept: dict[str, list[Any]] = {}
    config = load(wanted(first), *layers, arguments, overrides=overrides, swept=swept)
    for other in others:
        its = load(wanted(other), *layers, arguments, overrides=overrides, swept={})
        if its != config:
            old, new = flat(config.to_dict()), flat(its.to_dict())
            said = "; ".join(
                f"{key} {old[key]} and {new[key]}" for key in old if old[key] != new.get(key)
            )
            raise StabError(
                f"tasks {first} and {other} have other default settings ({said}): compare them one at a time, and read them"
                " together with stab report RUN RUN"
            )
    if not config.stabilizers:
        raise StabError(
            "no stabilizers: give --all, or --stabilizers with a list such as ema,swa,lr_decay+ema"
        )
    strings = ["none"]
    for text in config.stabilizers:
        strings += [text] if broken and text in broken else expand(text)
    every = cross(
        config.train, swept, [s for s in dict.fromkeys(strings) if not (broken and s in broken)]
    )
    return dataclasses.replace(config, stabilizers=tuple(dict.fromkeys([*every, *strings]))), broken


def wanted(task: str) -> dict[str, Any]:
    """Return the settings for which a task has defaults of its own, and these."""
    return {
        section: dict(values)
        for section, values in getattr(tasks.get(task), "settings", {}).items()
    }


def cross(base: Recipe, swept: dict[str, list[Any]], strings: Sequence[str]) -> list[str]:
    """Cross stabilizers with lists of recipe settings; return stabilizer strings, those of the base recipe first.

    Every combination of values goes in front of every string as ``recipe:name=value,...``. A combination names only what
    it changes in ``base``, whose values are the first of each list; what comes to the same recipe and average as a string
    before it is left out, so that no setting counts twice.

    >>> cross(Recipe(), {"lr": [0.001, 0.0003]}, ["none", "ema"])
    ['none', 'ema', 'recipe:lr=0.0003', 'recipe:lr=0.0003+ema']

    Raises StabError for a value that is out of range, and for more than ``LARGEST`` entries.
    """
    if math.prod(map(len, swept.values())) * len(strings) > LARGEST:
        raise StabError(
            f"the sweep has more than {LARGEST} entries a task: make several runs of it"
        )
    found: dict[object, str] = {}
    for values in itertools.product(*swept.values()):
        pairs = [
            (name, str(value).replace(",", ";")) for name, value in zip(swept, values, strict=True)
        ]
        changed = [
            f"{name}={value}"
            for name, value in pairs
            if parse(f"recipe:{name}={value}").apply(base) != base
        ]
        for string in strings:
            stabilizer = parse(f"recipe:{','.join(changed)}+{string}" if changed else string)
            try:
                made: object = (stabilizer.apply(base).key, repr(stabilizer.average))
            except Exception:  # the plan will say what is wrong with it
                made = stabilizer.string
            found.setdefault(made if changed else stabilizer.string, stabilizer.string)
            found.setdefault(made, stabilizer.string)
    return list(dict.fromkeys(found.values()))


def every_stabilizer() -> tuple[list[str], dict[str, str]]:
    """Return the names behind ``--all`` (built-ins and installed plug-ins), and the reasons of the broken ones.

    ``recipe`` is none of them: it does nothing unless it is told what.
    """
    listing = [entry for entry in stabilizers.listing(load=True) if entry.name != "recipe"]
    broken = {entry.name: entry.broken for entry in listing if entry.broken}
    for entry in listing:
        if not entry.broken:
            try:
                parse(entry.name)
            except StabError as e:
                broken[entry.name] = str(e)
    return [entry.name for entry in listing], broken


def make_plan(config: Config, broken: dict[str, str] | None = None) -> Plan:
    """Group entries by the trajectory they ride on.

    A pair that cannot run is skipped with its reason when stabilizers are those of ``all`` (``broken`` is given, and
    names the ones known to be broken); of those asked for by name, it raises StabError. So do an unknown task and a base
    recipe that cannot be.
    """
    from stab.train import make_device, make_optimizer, make_transforms

    parameters = [_parameter()]
    make_device(config.train)
    make_optimizer(config.train, parameters)
    make_transforms(config.train)
    grouped: dict[tuple[str, str], tuple[Recipe, list[str]]] = {}
    skipped: dict[tuple[str, str], str] = {}
    for name in config.tasks:
        make_task(config, name)
        for string in config.stabilizers:
            if broken and string in broken:
                skipped[name, string] = f"broken plug-in: {broken[string]}"
                continue
            try:
                stabilizer = parse(string)
                recipe = stabilizer.apply(config.train)
                if stabilizer.average:
                    stabilizer.average.init({"w": parameters[0].detach()}, recipe.updates)
                make_optimizer(recipe, parameters)
                make_transforms(recipe)
            except Incompatible as e:
                skipped[name, string] = str(e)
                continue
            except StabError as e:
                if broken is None:
                    raise StabError(f"stabilizer {string!r}: {e}") from e
                skipped[name, string] = str(e)
                continue
            except Exception as e:  # a plug-in may raise anything; it stops nobody else
                skipped[name, string] = f"broken plug-in: {type(e).__name__}: {e}"
                continue
            riders = grouped.setdefault((name, recipe.key), (recipe, []))[1]
            # Every trajectory's raw iterates are rolled out, first, whether or not they are an entry.
            if not riders:
                riders.append(stabilizer.raw)
            if string not in riders:
                riders.append(string)
    planned = [
        Cell(task, recipe, seed, tuple(riders))
        for (task, _), (recipe, riders) in grouped.items()
        for seed in range(config.seeds)
    ]
    planned.sort(
        key=lambda cell: (
            -(cell.recipe.samples + 1000 * len(cell.stabilizers) * len(config.checkpoints))
        )
    )
    return Plan(config, planned, skipped)


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(1))


def check_out(out: Path, config: Config, resume: bool = False, overwrite: bool = False) -> Config:
    """Look whether the run folder can be used, writing nothing; return the settings (on resume: old and new together).

    Raises StabError when the folder exists and neither flag is given, when it cannot be written, or when resuming would
    mix settings, naming those that differ.
    """
    from stab.reports.statistics import cell_key

    parent = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StabError(
            f"cannot write to {out}: {parent} is {'read-only' if parent.is_dir() else 'no folder'}; choose another --out"
        )
    if not out.exists() or all(
        path.name in (lock.LOCK, lock.HOLDER) or _left_over(path) for path in out.iterdir()
    ):
        return config
    if not (resume or overwrite):
        raise StabError(
            f"{out} already exists: add --resume to go on, --overwrite to start again, or choose another --out"
        )
    if not (out / "config.yaml").exists():
        raise StabError(f"{out} is no run folder (no config.yaml): choose another --out")
    before = load(out / "config.yaml")
    if overwrite:
        foreign = sorted(
            path.name
            for path in out.iterdir()
            if path.name not in RUN_FILES and not _left_over(path)
        )
        if foreign or out.is_symlink():
            what = f"holds {foreign[0]!r}" if foreign else "is a link"
            raise StabError(
                f"--overwrite: {out} {what}, which is not stab's: delete it yourself or choose another --out"
            )
        return config
    for cell in rows.cells(out):
        if not (out / "cells" / f"{cell_key(cell)}.json").exists():
            raise StabError(
                f"--resume: {out} was made by another version of stab: choose another --out"
            )
    if (out / "run.json").exists():
        files.read_as(out / "run.json", rows.ABOUT, "record")
    path = out / "skipped.json"
    skipped = (
        {s["stabilizer"] for s in files.read_as(path, rows.SKIPPED, "list")}
        if path.exists()
        else set()
    )
    old, new = _deciding(before), _deciding(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        said = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in differing)
        raise StabError(
            f"--resume: {out} was made with other settings ({said}): choose another --out"
        )
    return dataclasses.replace(
        config,
        tasks=tuple(dict.fromkeys(before.tasks + config.tasks)),
        stabilizers=tuple(
            dict.fromkeys(
                [*(s for s in before.stabilizers if s not in skipped), *config.stabilizers]
            )
        ),
        seeds=max(before.seeds, config.seeds),
    )


def check_unchanged(plan: Plan, run: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Raise StabError when another process used the run folder between the making of the plan and the locking."""
    if check_out(run, config, resume, overwrite) != plan.config:
        raise StabError(f"{run} was changed by another process meanwhile: give the command again")


def _left_over(path: Path) -> bool:
    """Whether a process that was killed left this: what it was writing, under a temporary name."""
    return re.fullmatch(r"\.tmp\w{6}|\..+-\w{8}", path.name) is not None


def make_out(out: Path, plan: Plan, overwrite: bool = False) -> None:
    """Fill the run folder, which this process holds (``lock.held``), with the settings; clear it first where asked for."""
    from omegaconf import OmegaConf

    out.mkdir(parents=True, exist_ok=True)
    try:
        # config.yaml last: while it is there, what is left is a run folder.
        for path in sorted(out.iterdir(), key=lambda path: path.name == "config.yaml"):
            if _left_over(path) or (overwrite and path.name not in (lock.LOCK, lock.HOLDER)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in ("cells", "timings", "weights", "failures", "snapshots"):
            for path in filter(_left_over, (out / folder).glob(".*")):
                path.unlink()
    except OSError as e:
        raise StabError(f"cannot clear {out}: {e.strerror or e}") from e
    files.write_text(
        out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plan.config.to_dict()))
    )
    files.write_json(
        out / "skipped.json",
        [{"task": t, "stabilizer": s, "reason": why} for (t, s), why in plan.skipped.items()],
    )


def _deciding(config: Config) -> dict[str, str]:
    """Return what must be equal for two runs to share a folder, by dotted key."""
    kept = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("tasks", "stabilizers", "seeds")
    }
    return {key: repr(value) for key, value in flat(kept).items()}


def unfinished(plan: Plan, run: Path) -> list[Cell]:
    """Return the cells of the plan that the run folder does not hold yet."""
    done = {}
    if (run / "cells").exists():
        for path in (run / "cells").glob("*.json"):
            done[path.stem] = files.read_json(path).get("stabilizers", [])
    return [cell for cell in plan.cells if not set(cell.stabilizers) <= set(done.get(cell.key, []))]


def execute(plan: Plan, run: Path, workers: engine.Engine) -> Generator[tuple[Cell, engine.Event]]:
    """Run the unfinished cells on workers of ``WORK``; yield events as they come.

    A cell or a rider that fails leaves its reason in ``failures/`` and in the event. A cell that was interrupted, or whose
    worker died, leaves its parts, to be gone on with; see ``worker``. The fraction of a "progress" is that of all the cell's
    training, or of all its rollouts.
    """
    from stab.tasks import datasets

    todo = unfinished(plan, run)
    jobs = [make_job(cell, plan.config, run) for cell in todo]
    done: dict[tuple[int, str], dict[int, float]] = {}  # cell and phase -> by part
    used = sorted({make_task(plan.config, cell.task).demonstrations_id for cell in todo})
    with closing(workers.run(jobs, datasets.root(), used)) as events, ExitStack() as stack:
        live = None
        for event in events:
            if live is None:  # what it imports takes a second, in which the workers have begun
                from stab.reports.live import Live

                live = stack.enter_context(closing(Live(run, plan.config)))
            cell = todo[event.job]
            live.look(todo)
            if event.kind == "progress":
                fractions = done.setdefault((event.job, event.phase), {})
                fractions[event.part] = event.fraction
                yield cell, dataclasses.replace(event, fraction=sum(fractions.values()))
            else:
                settled = _settle(cell, run, event)
                (live.finished if settled.kind == "done" else live.failed)(cell)
                yield cell, settled
    if not any(parts_folder(run, cell).exists() for cell in todo):
        shutil.rmtree(run / "parts", ignore_errors=True)


def _settle(cell: Cell, run: Path, event: engine.Event) -> engine.Event:
    """Write down how a cell ended; return the event with the reasons of riders that failed, or that of the whole cell."""
    if event.kind == "done":
        try:
            failed = finish(cell, run)
        except StabError as e:
            return _settle(cell, run, dataclasses.replace(event, kind="failed", reason=str(e)))
        for path in (run / "failures").glob(f"{cell.key}[.-]*"):
            path.unlink()
        for string, reason in failed.items():
            _write_failure(failure_file(run, cell, string), cell, [string], reason)
        return dataclasses.replace(
            event, reason="; ".join(f"{string}: {reason}" for string, reason in failed.items())
        )
    # What an earlier session finished stays finished: this one came for the riders that were new.
    path = cell_file(run, cell)
    finished = files.read_json(path)["stabilizers"] if path.exists() else []
    lost = [string for string in cell.stabilizers if string not in finished]
    _write_failure(failure_file(run, cell), cell, lost, event.reason)
    if not event.died and not event.reason.startswith(
        "cannot write"
    ):  # what raised once would raise again
        clear_parts(run, cell)
    return event


def _write_failure(path: Path, cell: Cell, stabilizers: list[str], reason: str) -> None:
    files.write_json(
        path, {"task": cell.task, "stabilizers": stabilizers, "seed": cell.seed, "reason": reason}
    )


def costs(plan: Plan, cells: Sequence[Cell]) -> list[tuple[float, float]] | None:
    """Return the expected seconds of training and of rollouts of each cell.

    Measured, in about half a second a task, policy and batch size.
    Every episode is taken to last the whole horizon, so policies that fail early end sooner. None where a task cannot say.
    """
    found = []
    speeds: dict[tuple[str, str], tuple[float, float] | None] = {}
    config = plan.config
    for cell in cells:
        # Of all that a recipe says these two change the time of an update most; the rest is left out of the estimate.
        recipe = dataclasses.replace(
            config.train, policy=cell.recipe.policy, batch_size=cell.recipe.batch_size
        )
        if (cell.task, recipe.key) not in speeds:
            with asking(cell.task):
                speeds[cell.task, recipe.key] = make_task(config, cell.task).speed(recipe)
        speed = speeds[cell.task, recipe.key]
        if speed is None:
            return None
        with asking(cell.task):
            horizon = min(config.eval.horizon, make_task(config, cell.task).horizon)
        steps = len(cell.stabilizers) * len(config.checkpoints) * config.eval.starts * horizon
        training = cell.recipe.updates * cell.recipe.accumulation * speed[0]
        fresh = cell.recipe.samples * speed[1] if config.data.infinite else 0.0
        found.append((training + fresh, steps * speed[1]))
    return found


def horizon(config: Config) -> int:
    """Return the steps of the longest episode of any task."""
    found = []
    for name in config.tasks:
        with asking(name):
            found.append(min(config.eval.horizon, make_task(config, name).horizon))
    return max(found)


def snapshot_bytes(plan: Plan) -> int:
    """Return what the snapshots of the plan take on disk. The tasks' demonstrations must be there."""
    every = plan.config.snapshots.every
    if every is None:
        return 0
    sizes = {}
    for cell in plan.cells:
        with asking(cell.task):
            parameters = make_task(plan.config, cell.task).policy(cell.recipe).parameters()
        sizes[cell.task, cell.recipe.key] = sum(p.nbytes for p in parameters)
    return sum(
        sizes[cell.task, cell.recipe.key]
        * (len(snapshots.block_ends(cell.recipe.updates, every)) + len(plan.config.checkpoints))
        for cell in plan.cells
    )


def wall_seconds(expected: Sequence[tuple[float, float]], workers: int) -> float:
    """Return the wall seconds that cells of these costs take.

    Rollouts are shared by all workers. Training runs are not: each begins, in order, on the worker that is free first.
    """
    busy = [0.0] * workers
    for training, _ in expected:
        heapq.heapreplace(busy, busy[0] + training)
    return max(*busy, sum(map(sum, expected)) / workers)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        run: the run folder.
        entries: the leaderboard's entries, in its order, with the keys of ``leaderboard.json``.
        leaderboard: the whole of ``leaderboard.json``.
        results: arrays behind it: ``results.series[task, stabilizer].returns`` is (seeds, checkpoints, starts).
    """

    run: Path
    entries: list[dict[str, Any]]
    leaderboard: dict[str, Any]
    results: Results


def compare(
    task: str | Sequence[str] = (),
    stabilizers: str | Sequence[str] | None = "all",
    *,
    seeds: int | None = None,
    updates: int | None = None,
    dataset: str | None = None,
    policy: str | None = None,
    device: str | None = None,
    preset: str | None = None,
    quick: bool = False,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Compare stabilizers on tasks: train, roll out, score, write the run folder.

    Args:
        task: name or names of registered tasks; may be left out where ``dataset`` is given.
        stabilizers: "all", a comma-separated string, or a list of stabilizer strings; ``none`` is always run. None for
            those of the preset.
        seeds, updates, dataset, policy, device, quick: shorthands for settings; see ``stab.config.Config``.
        preset: settings by name, see ``stab.config.PRESETS``.
        workers: processes; by default as many as cores. Does not change a number.
        engine: where cells run: "local" for processes on this machine, "ray" for a Ray cluster (``stab.engines.ray``).
        address: of the Ray cluster, ``auto`` or HOST:PORT; None starts a Ray of its own on this machine.
        out: run folder; by default a dated one under ``runs/``.
        resume: keep the finished cells of an existing folder.
        overwrite: delete an existing run folder first.
        overrides: dotted settings, ``["train.lr=3e-4"]``.

    Raises StabError for anything that cannot be done.

    >>> result = stab.compare("hopper", ["none", "ema"], seeds=3)      # doctest: +SKIP
    """
    from stab.reports import render
    from stab.reports.statistics import read

    config, broken = make_config(
        task,
        stabilizers,
        seeds=seeds,
        updates=updates,
        dataset=dataset,
        policy=policy,
        device=device,
        preset=preset,
        quick=quick,
        overrides=overrides,
    )
    run = Path(out) if out is not None else default_out(config)
    with make_engine(engine, address, workers) as processes:
        plan = make_plan(check_out(run, config, resume, overwrite), broken)
        prepare(plan, run if resume else None)
        with lock.held(run):
            check_unchanged(plan, run, config, resume, overwrite)
            make_out(run, plan, overwrite)
            began = time.monotonic()
            for _ in execute(plan, run, processes):
                pass
            about_run(run, ["stab.compare"], time.monotonic() - began)
            leaderboard = render(run)
    return Comparison(run, leaderboard["entries"], leaderboard, read(run))


def make_engine(name: str, address: str | None, workers: int | None) -> engine.Engine:
    """Return where cells run; a context manager. Raises StabError for what cannot be."""
    if name not in ENGINES:
        raise StabError(
            f"unknown engine {name!r}.{suggest(name, ENGINES)} Known: {', '.join(ENGINES)}"
        )
    if address is not None and (name != "ray" or workers is not None):
        raise StabError(
            f"address={address} names a Ray cluster, whose cores are what they are: engine=ray, without workers"
        )
    if name == "local":
        return engine.Workers(WORK, check_workers(workers))
    from stab.engines.ray import RayWorkers

    return RayWorkers(WORK, address, check_workers(workers))


def check_workers(workers: int | None) -> int:
    """Return the number of worker processes: as asked, or as many as cores. Raises StabError below 1."""
    if workers is not None and workers < 1:
        raise StabError(f"workers={workers}: expected an integer >= 1")
    return workers or engine.cores()


def default_out(config: Config) -> Path:
    """Return a dated folder under ``runs/``."""
    kind = "-smoke" if config.smoke else ""
    return Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{'-'.join(config.tasks)}{kind}"


def prepare(
    plan: Plan, resumed: Path | None = None, progress: Callable[[str, float], None] | None = None
) -> None:
    """Load every task's demonstrations, collecting them where need be, and try its policy on the recipes.

    Raises StabError where a dataset is missing or a recipe does not fit the task, before anything is trained; and where
    the finished cells of a run folder that is resumed would not be comparable with new ones.
    """
    import numpy as np

    from stab.train import Fresh, check_pool

    made = {name: make_task(plan.config, name) for name in plan.config.tasks}
    for name, task in made.items():
        with asking(name):
            if plan.config.eval.horizon > max(task.horizon, Evaluation.horizon):
                raise StabError(
                    f"eval.horizon={plan.config.eval.horizon}: episodes of {name} end after {task.horizon} steps at the"
                    " latest"
                )
            data = task.dataset(functools.partial(progress, name) if progress else no_progress)
            data.references.normalise(np.zeros(1), [min(plan.config.eval.horizon, task.horizon)])
            for recipe in {c.recipe.key: c.recipe for c in plan.cells if c.task == name}.values():
                task.policy(recipe)
                if isinstance(data.train, Fresh):
                    check_pool(data.train, recipe)
    for finished in rows.cells(resumed) if resumed else ():
        if finished["task"] in made:  # others are no part of the run
            _check_finished(plan.config, made[finished["task"]], finished)


def _check_finished(config: Config, task: Task, finished: dict[str, Any]) -> None:
    """Raise StabError when a cell that is finished would come out otherwise now."""
    cell = Cell(
        finished["task"],
        Recipe.from_dict(finished["recipe"]),
        finished["seed"],
        tuple(finished["stabilizers"]),
    )
    with asking(cell.task):
        now = describe(task, config, cell)
    new, old = (
        {key: repr(value) for key, value in flat(one | {"versions": deciding}).items()}
        for one in (now, finished)
        for deciding in [{name: one["versions"].get(name) for name in DECIDING}]
    )
    differing = [
        f"{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]
    ]
    if differing:
        raise StabError(
            f"--resume: finished cells ({cell.key}) would come out otherwise now ({'; '.join(differing[:4])}), and new ones"
            " would not be comparable with them: choose another --out"
        )


def about_run(run: Path, command: Sequence[str], seconds: float) -> None:
    """Write down how the run was made: the command, when, how long (earlier sessions included), on what."""
    path = run / "run.json"
    before = files.read_json(path)["seconds"] if path.exists() else 0.0
    files.write_json(
        path,
        {
            "command": shlex.join([Path(command[0]).name, *command[1:]]),
            "created": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
            "seconds": round(before + seconds, 1),
            "cores": engine.cores(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    )
