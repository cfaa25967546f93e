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
from stab.cli.stopping import INTERRUPTIONS, exit_code
from stab.reports import clean

if TYPE_CHECKING:
    from stab.cli.console import Console
    from stab.config import Config
    from stab.engines import Engine
    from stab.run.plan import Plan

MOST = 4  # entries of a cell that are named one by one
EXAMPLES = (
    "Examples:\n\n"
    "stab compare --task hopper --all\n\n"
    "stab compare --task hopper --all --quick\n\n"
    "stab compare --task hopper --all --until-decided --max-seeds 8\n\n"
    "stab compare --task hopper --stabilizers ema,ema:half_life=700,lr_decay+ema --seeds 5\n\n"
    "stab compare --task hopper --stabilizers ema --policy transformer:context=16"
    " train.batch_size=32\n\n"
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
    seeds: Annotated[int | None, typer.Option(help="Training seeds (default 4).")] = None,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided", help="Train more seeds of entries that more seeds would decide."
        ),
    ] = False,
    max_seeds: Annotated[
        int | None, typer.Option(help="Most seeds with --until-decided (default 16).")
    ] = None,
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
        str,
        typer.Option(
            help="Where cells run: local, ray (pip install 'stab-gva\\[ray]'), or a plug-in's."
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Cluster: for Ray, auto or HOST:PORT (default: a Ray of its own, on this machine)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: a dated folder under runs/).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an existing run folder; keep finished cells.")
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
    """Compare stabilizers on tasks: train, roll out checkpoints, score, print the leaderboard."""
    from stab.cli.console import Console
    from stab.engines import check_workers, make_engine
    from stab.registry import StabError
    from stab.run import estimate
    from stab.run.execute import WORK, unfinished
    from stab.run.folder import check_folder, default_out
    from stab.run.plan import make_config, make_plan

    if every and stabilizers:
        raise StabError("--all and --stabilizers exclude each other")
    if resume and overwrite:
        raise StabError("--resume and --overwrite exclude each other")
    console = Console(stderr=not dry_run, highlight=False)  # a dry run's result is the plan
    settings, broken = make_config(
        task or (),
        "all" if every else stabilizers,
        seeds=seeds,
        updates=updates,
        dataset=dataset,
        policy=policy,
        device=device,
        preset=preset,
        quick=quick,
        until_decided=until_decided,
        max_seeds=max_seeds,
        file=config,
        overrides=overrides or (),
    )
    count = check_workers(workers)
    run = out or default_out(settings)
    with ExitStack() as stack:
        if not dry_run:  # first of all: workers import as long as planning takes
            started = stack.enter_context(make_engine(engine, WORK, workers, address))
            count = started.count
        plan = make_plan(check_folder(run, settings, resume, overwrite), broken)
        todo = plan.cells if overwrite or not run.exists() else unfinished(plan, run)
        expected = estimate.seconds(plan, todo)
        _show_plan(console, plan, run, len(plan.cells) - len(todo), expected, count)
        if dry_run:
            return
        cost = dict(zip((cell.key for cell in todo), expected or [], strict=False))
        try:
            _run(console, plan, run, started, settings, broken, cost, resume, overwrite)
        except INTERRUPTIONS as e:
            if run.exists():
                count = len(list((run / "cells").glob("*.json")))
                console.print(
                    f"Interrupted; progress is saved ({count} finished cells). Resume: --out {run}"
                    f" --resume. Partial report: stab report {run}",
                    soft_wrap=True,
                )
            else:
                console.print("Interrupted before anything was written.")
            raise typer.Exit(exit_code(e)) from None
    if any((run / "failures").glob("*.json")):
        raise typer.Exit(1)


def _run(
    console: Console,
    plan: Plan,
    run: Path,
    engine: Engine,
    settings: Config,
    broken: dict[str, str] | None,
    cost: dict[str, tuple[float, float]],
    resume: bool,
    overwrite: bool,
) -> None:
    """Fill the run folder; print the leaderboard."""
    from stab.comparison import rounds
    from stab.run import estimate
    from stab.run.execute import check_unchanged, unfinished
    from stab.run.folder import held, open_folder, write_run_info

    _prepare(console, plan, run if resume else None)
    with held(run):
        check_unchanged(plan, run, settings, resume, overwrite)
        open_folder(run, plan.config, plan.skipped, overwrite)
        began = time.monotonic()
        for one in rounds(plan, run, broken):
            if one is not plan:
                todo = unfinished(one, run)
                expected = estimate.seconds(one, todo)
                _show_round(console, one, len(todo), expected, engine.count)
                cost = dict(zip((cell.key for cell in todo), expected or [], strict=False))
            _execute(console, one, run, engine, cost)
        engine.close()
        write_run_info(run, sys.argv, time.monotonic() - began)
        _show_results(console, run)


def _show_plan(
    console: Console,
    plan: Plan,
    run: Path,
    done: int,
    expected: list[tuple[float, float]] | None,
    workers: int,
) -> None:
    from stab.reports import sweep
    from stab.run import estimate
    from stab.run.cells import make_task, task_errors
    from stab.stabilizers.strings import fold, method

    config = plan.config
    cells, entries = len(plan.cells), plan.entries
    if config.smoke:
        console.print(
            "[bold]SMOKE RUN[/]: sizes are cut down to see the pipeline work; its numbers"
            " are not meaningful."
        )
    console.print(
        f"{entries} entries on {', '.join(config.tasks)}: {', '.join(fold(config.stabilizers))}",
        markup=False,
    )
    tried = Counter(method(string) for string in config.stabilizers)
    if max(tried.values()) > 1:
        console.print(f"tuning budget, settings a method: {sweep.budget(tried)}", markup=False)
    first = config.shared_seeds
    seeds = f"{first} seed{'s' * (first != 1)}"
    console.print(
        f"{cells} cells (training runs) of {config.train.updates} updates, {seeds}; sharing"
        f" trajectories saves {plan.shared} training runs; up to {plan.rollouts} episodes of at"
        f" most {estimate.longest_episode(config)} steps"
    )
    if config.until_decided:
        looks = ", ".join(map(str, config.tests[1:]))
        console.print(f"then more seeds of what is undecided: {looks} at most")
    for (task, string), reason in plan.skipped.items():
        console.print(clean.message(f"skipped: {task} x {string}: {reason}"), markup=False)
    if done:
        console.print(f"{done} cells are finished already and kept")
    ready = True
    for name in config.tasks:
        with task_errors(name):
            ready = ready and make_task(config, name).has_data()
    collecting = "" if ready else ", after collecting the demonstrations (well under a minute)"
    if expected is not None:
        wall = estimate.wall_seconds(expected, workers)
        console.print(f"about {_duration(wall)} with {workers} workers{collecting}")
    if config.snapshots.every and ready:
        megabytes = estimate.snapshot_bytes(plan) / 1e6
        console.print(
            f"snapshots of every {config.snapshots.every} updates: {megabytes:.0f} MB on disk"
        )
    console.print(f"run folder: {run}", markup=False, soft_wrap=True)


def _show_round(
    console: Console,
    plan: Plan,
    todo: int,
    expected: list[tuple[float, float]] | None,
    workers: int,
) -> None:
    from stab.run import estimate

    own = dict.fromkeys(s for cell in plan.cells for s in cell.stabilizers)
    seeds = max(cell.seed for cell in plan.cells) + 1
    wall = estimate.wall_seconds(expected, workers) if expected else None
    about = f", about {_duration(wall)}" if wall is not None else ""
    console.print(
        f"{seeds} seeds for what is undecided ({_entries([*own])}): {todo} cells{about}",
        markup=False,
    )


def _prepare(console: Console, plan: Plan, resumed: Path | None) -> None:
    from stab.run.execute import prepare

    with bars(console) as progress:
        running: dict[str, Any] = {}

        def report(task: str, fraction: float) -> None:
            if task not in running:
                running[task] = progress.add_task(f"Collecting {task}", total=1.0)
            progress.update(running[task], completed=fraction)

        prepare(plan, resumed, report)


def _execute(
    console: Console,
    plan: Plan,
    run: Path,
    engine: Engine,
    expected: dict[str, tuple[float, float]],
) -> None:
    from stab.comparison import execute_live
    from stab.run.execute import unfinished

    todo = unfinished(plan, run)
    cost = {cell.key: expected.get(cell.key, (1.0, 1.0)) for cell in todo}
    finished = 0
    spent = 0.0
    where = engine.where
    if where:
        console.print(where, highlight=False)
    # Closed in any case, so that the workers end with the run.
    with bars(console) as progress, closing(execute_live(plan, run, engine)) as events:
        total = progress.add_task(f"Cells 0/{len(todo)}", total=sum(map(sum, cost.values())))
        running: dict[str, Any] = {}
        at: dict[str, dict[str, float]] = {}
        for cell, event in events:
            if engine.where != where:  # nodes came, or were lost
                where = engine.where
                progress.console.print(f"now on {where}", highlight=False)
            train, rollouts = cost[cell.key]
            label = f"{cell.task} {_entries(cell.stabilizers)}"
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
                    failed = clean.message(f"failed: {which} seed {cell.seed}: {event.reason}")
                    progress.console.print(failed, markup=False)
                elif not progress.console.is_terminal:
                    progress.console.print(
                        f"{finished}/{len(todo)} {label} seed {cell.seed}", markup=False
                    )
            progress.update(
                total,
                completed=spent + sum(sum(phases.values()) for phases in at.values()),
                description=f"Cells {finished}/{len(todo)}{' on ' if where else ''}{where}",
            )


def _show_results(console: Console, run: Path) -> None:
    from stab.cli.console import Console
    from stab.reports import render
    from stab.reports.sheets import terminal
    from stab.reports.table import sheets

    with console.status("Writing tables, figures and TensorBoard"):
        leaderboard = render(run)
    Console().print(terminal(sheets(leaderboard)))
    console.print(
        f"Written to {run}; all of it on one page: {run / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"tensorboard --logdir {run}", markup=False, soft_wrap=True)


def _entries(strings: Sequence[str]) -> str:
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
