"""A table of names and values, as several commands print it."""

from __future__ import annotations

from collections.abc import Mapping


def facts(lines: Mapping[str, str], title: str | None = None) -> None:
    """Print names and values."""
    from rich.table import Table
    from rich.text import Text

    from stab.cli.console import Console

    table = Table(
        title=title, show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0)
    )
    for name, value in lines.items():
        table.add_row(name, Text(value, overflow="fold"))
    Console(highlight=False).print(table)
