"""``stab report``: rebuild a run's tables, figures and TensorBoard from its rows."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = "Examples:\n\nstab report runs/2026-11-22-101500-hopper\n\nstab report RUN --format json | jq '.entries[0]'"


class Format(StrEnum):
    """What is printed."""

    table = "table"
    json = "json"
    markdown = "markdown"
    csv = "csv"


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    format: Annotated[Format, typer.Option(help="What to print; the files are rebuilt in any case.")] = Format.table,
) -> None:
    """Rebuild leaderboard files, figures and TensorBoard from the rows of a run, without training; print the leaderboard."""
    from rich.console import Console

    from stab.reports import render
    from stab.reports.table import board

    leaderboard = render(run)
    if format is Format.table:
        Console().print(board(leaderboard))
    else:
        suffix = {Format.json: "json", Format.markdown: "md", Format.csv: "csv"}[format]
        typer.echo((run / f"leaderboard.{suffix}").read_text(), nl=False)
