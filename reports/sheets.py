"""One table and its notes: for a terminal of 80 columns, as Markdown; and records as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stab.reports import clean

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement

ROOM = 65  # of a terminal's 80 characters, for the columns after the name


@dataclass(frozen=True)
class Sheet:
    """A table of text with a heading above and notes below.

    Attributes:
        title: plain text, never markup.
        headings: of the columns; without any there are only notes.
        lines: of the table, as long as ``headings``.
        answer: what the table says, in a sentence or two above it.
        notes: sentences below the table.
        warnings: sentences that come before the notes.
        banner: a label that nobody may overlook.
        name: the heading of the column that is on the left and is broken if it is long.
        above: how many lines stand above a rule; 0 for no rule.
        level: of the heading in Markdown.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    answer: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    banner: str = ""
    name: str = "stabilizer"
    above: int = 0
    level: int = 2

    @property
    def bullets(self) -> list[str]:
        """What stands below the table, warnings first."""
        return [*(f"Warning: {warning}" for warning in self.warnings), *self.notes]


def terminal(sheets: Iterable[Sheet]) -> RenderableType:
    """Return sheets for a terminal; a table that is too wide continues in a second one."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn: list[RenderableType] = []
    for sheet in sheets:
        if sheet.banner:
            drawn.append(Text(f"*** {sheet.banner} ***", style="reverse"))
        for count, columns in enumerate(_columns(sheet)):
            title = sheet.title + " (continued)" * bool(count)
            drawn.append(Text(title, style="bold"))
            if sheet.answer and not count:
                drawn += [Text(sheet.answer), Text()]
            drawn += [_table(sheet, columns), Text()]
        if sheet.bullets:
            below = Table.grid(padding=(0, 1))
            for note in sheet.bullets:
                below.add_row(" -", Text(note))
            drawn += [below, Text()]
    return Group(*drawn[:-1])


def _columns(sheet: Sheet) -> list[list[int]]:
    """Return which columns stand in each table: as many as fit, those up to the name in all."""
    if not sheet.headings:
        return []
    wide = [2 + max(map(len, column)) for column in zip(sheet.headings, *sheet.lines, strict=True)]
    lead = list(range(sheet.headings.index(sheet.name) + 1))
    tables, room = [[*lead]], ROOM
    for n in range(len(lead), len(wide)):
        if wide[n] > room and len(tables[-1]) > len(lead):
            tables.append([*lead])
            room = ROOM
        tables[-1].append(n)
        room -= wide[n]
    return tables


def _table(sheet: Sheet, columns: Sequence[int]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text everywhere, never markup: a name or a reason may hold square brackets.
    drawn = Table(box=box.HORIZONTALS, show_edge=False, padding=(0, 0, 0, 1))
    for n in columns:
        named = sheet.headings[n] == sheet.name
        drawn.add_column(
            Text(sheet.headings[n]), justify="left" if named else "right", no_wrap=not named
        )
    for count, line in enumerate(sheet.lines, 1):
        cells = [
            Name(line[n]) if sheet.headings[n] == sheet.name else Text(line[n]) for n in columns
        ]
        drawn.add_row(*cells, end_section=count == sheet.above)
    return drawn


@dataclass(frozen=True)
class Name:
    """A stabilizer string for a terminal, broken behind its punctuation if it does not fit."""

    text: str

    def __rich_console__(
        self, _console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        yield Text(wrap_name(self.text, options.max_width), overflow="fold")

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest = max(map(len, wrap_name(self.text, 1).splitlines()))
        return Measurement(longest, len(self.text)).clamp(max_width=options.max_width)


def wrap_name(string: str, width: int) -> str:
    """Break a stabilizer string into lines of about ``width`` characters, behind punctuation."""
    lines = [""]
    for piece in re.findall(r"[^+:, ]*(?:[+:,] ?| |$)", string):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def markdown(sheets: Iterable[Sheet]) -> str:
    """Return sheets as GitHub Markdown."""
    return "\n".join(line for sheet in sheets for line in _markdown(sheet))


def _markdown(sheet: Sheet) -> Iterator[str]:
    yield from (f"{'#' * sheet.level} {clean.markdown(sheet.title)}", "")
    if sheet.banner:
        yield from (f"**{sheet.banner}**", "")
    if sheet.answer:
        yield from (clean.markdown(sheet.answer), "")
    if sheet.headings:
        sides = [":--" if heading == sheet.name else "--:" for heading in sheet.headings]
        for line in (sheet.headings, sides, *sheet.lines):
            yield f"| {' | '.join(clean.markdown(cell) for cell in line)} |"
        yield ""
    if sheet.bullets:
        yield from (*(f"- {clean.markdown(note)}" for note in sheet.bullets), "")


def readable(text: str) -> str:
    """Return text for one line: line breaks as ↵, other white space as a space, controls as �."""
    return clean.terminal(text.replace("\n", "↵"))


def csv_text(names: Iterable[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as CSV with these columns; what a record lacks is empty."""
    text, keys = io.StringIO(), list(names)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(clean.csv, keys))
    writer.writerows([clean.csv(record.get(key)) for key in keys] for record in records)
    return text.getvalue()
