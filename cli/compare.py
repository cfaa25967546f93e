"""``stab compare``: run the cross product, show the leaderboard."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stab.cli.progress import bars

if TYPE_CHECKING:
    from rich.console import Console

    from stab.comparison import Plan
    from stab.engines.local import Engine

MOST = 4  # riders of a cell that are named one by one
EXAMPLES = (
    "Examples:\n\n"
    "stab compare --task hopper --all\n\n"
    "stab compare --task hopper --all --quick\n\n"
    "stab compare --task hopper --stabilizers ema,ema:half_life=700,lr_decay+ema --seeds 5\n\n"
    "stab compare --task hopper --stabilizers ema --policy transformer:context=16 train.batch_size=32\n\n"
    "stab compare --dataset my/pendulum-v0 --all\n\n"
    "stab compare --task hopper --all --engine ray --address auto\n\n"
    "stab compare --task stories --all\n\n"
    "stab compare --task hopper --preset paper --dry-run"
)


def compare(
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Task; repeat for several. See: stab list tasks"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every registered stabilizer, plug-ins included.")
    ] = False,
    stabilizers: Annotated[
        str | None,
        typer.Option(
            "--stabilizers", "-s", help="Comma-separated: ema,ema:half_life=500,lr_decay+ema"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Training seeds (default 3).")] = None,
    updates: Annotated[
        int | None,
        typer.Option(help="Optimizer steps (default 6000; texts 2400); same as train.updates=N."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Minari dataset instead of the task's own; may stand without a task."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="mlp:width=128,depth=3 or transformer:context=16; see: stab list policies -v"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to train: cpu, cuda, cuda:N (default cpu). Rollouts run on the cores."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings by name: paper (long; look at --dry-run).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smoke run: the whole pipeline in about a minute.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: as many as cores).")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where cells run: local, or ray (pip install 'stab-gva\\[ray]').")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster, auto or HOST:PORT (default: a Ray of its own, on this machine)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: a dated folder under runs/).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in an existing run folder; keep finished cells.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing run folder first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and its cost; do nothing.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, such as a run's config.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings by dotted name: train.lr=3e-4 eval.starts=16"),
    ] = None,
) -> None:
    """Compare stabilizers on tasks: train, roll out every checkpoint, score, and print the leaderboard."""
    from rich.console import Console

    from stab import comparison
    from stab.registry import StabError
    from stab.run import lock

    if every and stabilizers:
        raise StabError("--all and --stabilizers exclude each other")
    if resume and overwrite:
        raise StabError("--resume and --overwrite exclude each other")
    talk = Console(stderr=not dry_run, highlight=False)  # of a dry run, the plan is the result
    settings, broken = comparison.make_config(
        task or (),
        "all" if every else stabilizers,
        seeds=seeds,
        updates=updates,
        dataset=dataset,
        policy=policy,
        device=device,
        preset=preset,
        quick=quick,
        file=config,
        overrides=overrides or (),
    )
    count = comparison.check_workers(workers)
    run = out or comparison.default_out(settings)
    with ExitStack() as stack:
        if (
            not dry_run
        ):  # first of all: they take as long to import what they need as planning takes
            processes = stack.enter_context(comparison.make_engine(engine, address, workers))
            count = processes.count
        plan = comparison.make_plan(comparison.check_out(run, settings, resume, overwrite), broken)
        todo = plan.cells if overwrite or not run.exists() else comparison.unfinished(plan, run)
        expected = comparison.costs(plan, todo)
        _show_plan(talk, plan, run, len(plan.cells) - len(todo), expected, count)
        if dry_run:
            return
        try:
            _prepare(talk, plan, run if resume else None)
            stack.enter_context(lock.held(run))
            comparison.check_unchanged(plan, run, settings, resume, overwrite)
            comparison.make_out(run, plan, overwrite)
            began = time.monotonic()
            _execute(
                talk,
                plan,
                run,
                processes,
                dict(zip((cell.key for cell in todo), expected or [], strict=False)),
            )
            processes.close()
            comparison.about_run(run, sys.argv, time.monotonic() - began)
            _show_results(talk, run)
        except KeyboardInterrupt:
            if run.exists():
                kept = len(list((run / "cells").glob("*.json")))
                talk.print(
                    f"Interrupted. {kept} finished cells are kept, and how far the others came; go on with --out {run}"
                    f" --resume, or look at what there is with: stab report {run}",
                    soft_wrap=True,
                )
            else:
                talk.print("Interrupted before anything was written.")
            raise typer.Exit(130) from None
    if any((run / "failures").glob("*.json")):
        raise typer.Exit(1)


def _show_plan(
    talk: Console,
    plan: Plan,
    run: Path,
    done: int,
    expected: list[tuple[float, float]] | None,
    workers: int,
) -> None:
    from stab import comparison
    from stab.reports import sweep
    from stab.run.cells import asking, make_task
    from stab.stabilizers.base import fold, method

    config = plan.config
    cells, entries = len(plan.cells), plan.entries
    if config.smoke:
        talk.print(
            "[bold]SMOKE RUN[/]: sizes are cut down to see the pipeline work; its numbers say nothing."
        )
    talk.print(
        f"{entries} entries on {', '.join(config.tasks)}: {', '.join(fold(config.stabilizers))}",
        markup=False,
    )
    tried = Counter(method(string) for string in config.stabilizers)
    if max(tried.values()) > 1:
        talk.print(f"tuning budget, settings a method: {sweep.budget(tried)}", markup=False)
    seeds = f"{config.seeds} seed{'s' * (config.seeds != 1)}"
    talk.print(
        f"{cells} cells (training runs) of {config.train.updates} updates, {seeds}; sharing trajectories saves"
        f" {plan.shared} training runs; up to {plan.rollouts} episodes of at most {comparison.horizon(config)} steps"
    )
    for (task, string), reason in plan.skipped.items():
        talk.print(f"skipped: {task} x {string}: {reason}", markup=False)
    if done:
        talk.print(f"{done} cells are finished already and kept")
    ready = True
    for name in config.tasks:
        with asking(name):
            ready = ready and make_task(config, name).ready()
    collecting = "" if ready else ", after collecting the demonstrations (well under a minute)"
    if expected is not None:
        wall = comparison.wall_seconds(expected, workers)
        talk.print(f"about {_duration(wall)} with {workers} workers{collecting}")
    if config.snapshots.every and ready:
        megabytes = comparison.snapshot_bytes(plan) / 1e6
        talk.print(
            f"snapshots of every {config.snapshots.every} updates: {megabytes:.0f} MB on disk"
        )
    talk.print(f"run folder: {run}", markup=False, soft_wrap=True)


def _prepare(talk: Console, plan: Plan, resumed: Path | None) -> None:
    from stab import comparison

    with bars(talk) as progress:
        running: dict[str, Any] = {}

        def report(task: str, fraction: float) -> None:
            if task not in running:
                running[task] = progress.add_task(f"Collecting {task}", total=1.0)
            progress.update(running[task], completed=fraction)

        comparison.prepare(plan, resumed, report)


def _execute(
    talk: Console, plan: Plan, run: Path, workers: Engine, expected: dict[str, tuple[float, float]]
) -> None:
    from stab import comparison

    todo = comparison.unfinished(plan, run)
    cost = {cell.key: expected.get(cell.key, (1.0, 1.0)) for cell in todo}
    finished = 0
    spent = 0.0
    where = workers.where
    if where:
        talk.print(where, highlight=False)
    # Closed whatever happens, so that the workers end with the run.
    with bars(talk) as progress, closing(comparison.execute(plan, run, workers)) as events:
        total = progress.add_task(f"Cells 0/{len(todo)}", total=sum(map(sum, cost.values())))
        running: dict[str, Any] = {}
        at: dict[str, dict[str, float]] = {}
        for cell, event in events:
            if workers.where != where:  # nodes came, or were lost
                where = workers.where
                progress.console.print(f"now on {where}", highlight=False)
            train, rollouts = cost[cell.key]
            label = f"{cell.task} {_riders(cell.stabilizers)}"
            if event.kind == "progress":
                if cell.key not in running:
                    running[cell.key] = progress.add_task(label, total=train + rollouts)
                share = train if event.phase == "training" else rollouts
                at.setdefault(cell.key, {})[event.phase] = share * event.fraction
                progress.update(
                    running[cell.key],
                    completed=sum(at[cell.key].values()),
                    description=f"  {_shorten(label)} #{cell.seed} {event.phase}",
                )
            else:
                finished += 1
                spent += train + rollouts
                at.pop(cell.key, None)
                if cell.key in running:
                    progress.remove_task(running.pop(cell.key))
                if event.reason:
                    which = label if event.kind == "failed" else cell.task
                    progress.console.print(
                        f"failed: {which} seed {cell.seed}: {event.reason}", markup=False
                    )
                elif not progress.console.is_terminal:
                    progress.console.print(
                        f"{finished}/{len(todo)} {label} seed {cell.seed}", markup=False
                    )
            progress.update(
                total,
                completed=spent + sum(sum(phases.values()) for phases in at.values()),
                description=f"Cells {finished}/{len(todo)}{' on ' if where else ''}{where}",
            )


def _show_results(talk: Console, run: Path) -> None:
    from rich.console import Console

    from stab.reports import render
    from stab.reports.table import board

    with talk.status("Writing tables, figures and TensorBoard"):
        leaderboard = render(run)
    Console().print(board(leaderboard))
    talk.print(
        f"Written to {run}; all of it on one page: {run / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )
    talk.print(f"tensorboard --logdir {run}", markup=False, soft_wrap=True)


def _riders(strings: Sequence[str]) -> str:
    return (
        "/".join(strings)
        if len(strings) <= MOST
        else f"{strings[0]} and {len(strings) - 1} averages on it"
    )


def _shorten(label: str, width: int = 24) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
