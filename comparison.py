"""Compare stabilizers: the whole of stab as one function."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stab.engines import Engine, Event, make_engine
from stab.run.cells import Cell
from stab.run.execute import WORK, check_unchanged, execute, prepare
from stab.run.folder import check_folder, default_out, held, open_folder, write_run_info
from stab.run.plan import Plan, make_config, make_plan

if TYPE_CHECKING:
    from stab.reports.results import Results


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        run: the run folder.
        entries: the leaderboard's entries, in its order, with the keys of ``leaderboard.json``.
        leaderboard: the content of ``leaderboard.json``.
        results: arrays behind it: ``results.series[task, stabilizer].returns`` is
            (seeds, checkpoints, starts).
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
    until_decided: bool = False,
    max_seeds: int | None = None,
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
        task: name or names of registered tasks; may be left out if ``dataset`` is given.
        stabilizers: "all", a comma-separated string, or a list of stabilizer strings; ``none`` is
            always run. None for those of the preset.
        seeds, updates, dataset, policy, device, quick: shorthands for settings; see
            ``stab.config.Config``.
        preset: settings by name, see ``stab.config.PRESETS``.
        until_decided: train more seeds of what is undecided, up to ``max_seeds`` (default 16); the
            entries are tested at every doubling, with p-values that account for it.
        workers: jobs at a time; by default as many as cores. Does not change a number.
        engine: where cells run: "local" for processes on this machine, "ray" for a Ray cluster, or
            a plug-in's (``stab.engines``).
        address: of the cluster, for engines that take one: for Ray, ``auto`` or HOST:PORT; None
            starts a Ray of its own on this machine.
        out: run folder; by default a dated one under ``runs/``.
        resume: keep the finished cells of an existing folder.
        overwrite: delete an existing run folder first.
        overrides: dotted settings, ``["train.lr=3e-4"]``.

    Raises StabError for anything that cannot be done.

    >>> result = stab.compare("hopper", ["none", "ema"], seeds=3)      # doctest: +SKIP
    """
    from stab.reports import render
    from stab.reports.results import read

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
        until_decided=until_decided,
        max_seeds=max_seeds,
        overrides=overrides,
    )
    run = Path(out) if out is not None else default_out(config)
    with make_engine(engine, WORK, workers, address) as started:
        plan = make_plan(check_folder(run, config, resume, overwrite), broken)
        prepare(plan, run if resume else None)
        with held(run):
            check_unchanged(plan, run, config, resume, overwrite)
            open_folder(run, plan.config, plan.skipped, overwrite)
            began = time.monotonic()
            for one in rounds(plan, run, broken):
                for _ in execute_live(one, run, started):
                    pass
            write_run_info(run, ["stab.compare"], time.monotonic() - began)
            leaderboard = render(run)
    return Comparison(run, leaderboard["entries"], leaderboard, read(run))


def rounds(plan: Plan, run: Path, broken: dict[str, str] | None) -> Iterator[Plan]:
    """Yield the plan; with ``until_decided``, after each round that of what is undecided."""
    from stab.reports.leaderboard import undecided
    from stab.reports.results import read

    yield plan
    before: dict[tuple[str, str], int] = {}
    while wanted := undecided(read(run)) if plan.config.until_decided else {}:
        if wanted == before:  # cells failed: nothing came of it
            return
        before = wanted
        yield make_plan(plan.config, broken, wanted)


def execute_live(plan: Plan, run: Path, engine: Engine) -> Generator[tuple[Cell, Event]]:
    """As ``execute``, and draw curves in TensorBoard meanwhile."""
    with closing(execute(plan, run, engine)) as events, ExitStack() as stack:
        live = None
        for cell, event in events:
            if live is None:  # its imports take a second, in which the workers have begun
                from stab.reports.live import Live

                live = stack.enter_context(closing(Live(run, plan.config)))
            live.see(cell, event)
            yield cell, event
