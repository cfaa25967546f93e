"""``stab report``: rebuild tables, figures and TensorBoard of a run; compute post-hoc averages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stab import files
from stab.cli.progress import bars
from stab.cli.stopping import INTERRUPTIONS, exit_code

EXAMPLES = (
    "Examples:\n\nstab report runs/2026-11-22-101500-hopper\n\n"
    "stab report RUN --format json | jq '.entries[0]'\n\n"
    'stab report RUN --where "method=ema|lr_decay+ema" --by lr   (sweep of train.lr)\n\n'
    "stab report runs/monday runs/tuesday   (one leaderboard, and what changed)\n\n"
    'stab report RUN --averages "ema:half_life=100|300|1000,polyak"   (with snapshots.every=50)'
)


class Format(StrEnum):
    """What is printed."""

    table = "table"
    json = "json"
    markdown = "markdown"
    csv = "csv"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folder; several are merged.")
    ],
    format: Annotated[
        Format, typer.Option(help="What to print; the files are rebuilt in any case.")
    ] = Format.table,
    averages: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Averages to compute from the run's snapshots and roll out; | separates values."
            " Printed instead of the"
            " leaderboard.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Print these entries only: lr=0.001, method=none|ema; repeat for several.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Print groups by this: method, lr, ema.half_life; commas for several.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: as many as cores).")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where averages are rolled out: local, ray, or a plug-in's.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Cluster, for engines that take one: auto or HOST:PORT.")
    ] = None,
) -> None:
    """Rebuild leaderboard, figures and TensorBoard from a run's rows; print the leaderboard.

    Of several runs, from this or other machines, print one leaderboard, and of two what changed;
    nothing is written.
    """
    from stab.cli.console import Console
    from stab.registry import StabError
    from stab.reports import averages as chosen
    from stab.reports import render, sheets, statistics, sweep, table

    if len(runs) > 1:
        if averages is not None or by:
            raise StabError("--averages and --by are for one run folder")
        _merged(runs, format, where or ())
        return
    run = runs[0]
    if averages is not None and (where or by):
        raise StabError("--where and --by are for the leaderboard: give them without --averages")
    if averages is not None:
        _read_off(run, averages, engine, workers, address)
    if by and format in (Format.json, Format.csv):
        raise StabError(f"--by groups tables: give it without --format {format.value}")
    keys = [key.strip() for key in by.split(",")] if by else None
    leaderboard = statistics.leaderboard(statistics.read(run)) if where or keys else render(run)
    if where:
        leaderboard = sweep.select(leaderboard, where)
    if averages is None and format is not Format.table:
        texts: dict[Format, Callable[[], str]] = {
            Format.json: lambda: json.dumps(leaderboard, indent=1) + "\n",
            Format.markdown: lambda: sheets.markdown(table.sheets(leaderboard, keys, "page")),
            Format.csv: lambda: table.to_csv(leaderboard),
        }
        typer.echo(texts[format](), nl=False)
    elif format is not Format.table:
        suffix = {Format.json: "json", Format.markdown: "md", Format.csv: "csv"}[format]
        typer.echo((run / f"averages.{suffix}").read_text(encoding="utf-8"), nl=False)
    elif averages is None:
        Console().print(sheets.terminal(table.sheets(leaderboard, keys)))
    elif (run / "averages.json").exists():
        content = files.read_json(run / "averages.json")
        Console().print(sheets.terminal(chosen.sheets(content)))
    else:
        raise StabError("no average was read off on every seed")


def _merged(runs: list[Path], format: Format, conditions: Sequence[str]) -> None:
    """Print several runs as one."""
    from stab.cli.console import Console
    from stab.reports import merge, sheets

    merged = merge.merge(merge.read(runs), conditions)
    if format is Format.table:
        Console().print(sheets.terminal(merge.sheets(merged)))
    elif format is Format.json:
        typer.echo(json.dumps(merged, indent=1))
    else:
        text = merge.to_csv(merged)
        if format is Format.markdown:
            text = sheets.markdown(merge.sheets(merged))
        typer.echo(text, nl=False)


def _read_off(
    run: Path, averages: str, engine: str, workers: int | None, address: str | None
) -> None:
    """Read off and roll out what is not on disk yet. Raises StabError when one fails."""
    from stab.cli.console import Console
    from stab.engines import make_engine
    from stab.registry import StabError
    from stab.run import posthoc
    from stab.stabilizers import expand

    todo = posthoc.unfinished(run, expand(averages))
    if not todo:
        return
    console = Console(stderr=True, highlight=False)
    done: dict[posthoc.PostHoc, float] = dict.fromkeys(todo, 0.0)
    failed: dict[posthoc.PostHoc, str] = {}
    finished = 0
    try:
        with (
            make_engine(engine, posthoc.WORK, workers, address) as started,
            closing(posthoc.execute(todo, run, started)) as events,
            bars(console) as progress,
        ):
            total = progress.add_task(f"Averages 0/{len(todo)}", total=len(todo))
            for job, event in events:
                done[job] = event.fraction if event.kind == "progress" else 1.0
                if event.kind == "failed":
                    failed[job] = event.reason
                finished += event.kind != "progress"
                progress.update(
                    total,
                    completed=sum(done.values()),
                    description=f"Averages {finished}/{len(todo)}",
                )
    except INTERRUPTIONS as e:
        console.print("Interrupted. Progress is saved; the same command resumes.")
        raise typer.Exit(exit_code(e)) from None
    if failed:
        job, reason = next(iter(failed.items()))
        raise StabError(f"{job.string} of {job.key} failed: {reason}")
