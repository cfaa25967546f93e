"""Averages chosen after training: their scores against the half-life, as a table, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import gva
from stab.reports.leaderboard import plain
from stab.reports.results import Results, Series
from stab.reports.table import bullets, markdown_line, ruled
from stab.run import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("average", "half-life", "GVA", "return", "worst", "misplaced")
POOR = 0.25  # of misplaced weight: an average of other iterates than its name says
NOTES = (
    "Read off the snapshots of a finished run, without training; rolled out as its entries were.",
    "half-life: how many of the latest iterates hold half of the weight, at the end of training.",
    "misplaced: the largest share of an average's weight that a block's mean puts on another iterate of the block.",
    "Choosing the best of many after seeing their scores flatters it: confirm it with other seeds, online.",
)


def summary(results: Results) -> dict[str, Any]:
    """Return the content of ``averages.json``: schema, protocol, entries by task and half-life."""
    entries = [_entry(results, series) for series in results.afterwards.values()]
    order = {task: i for i, task in enumerate(results.config.tasks)}
    entries.sort(key=lambda e: (order[e["task"]], e["half_life"][1], e["stabilizer"]))
    return {
        "schema": rows.SCHEMA,
        "protocol": gva.PROTOCOL,
        "every": results.config.snapshots.every,
        "entries": entries,
    }


def _entry(results: Results, series: Series) -> dict[str, Any]:
    key = (series.task, series.stabilizer)
    scored = series.returns[:, series.window]
    score, mean = gva.interval([gva.gva(J) for J in scored]), gva.interval(scored.mean((1, 2)))
    online = results.series.get(key)
    distances = [cell["read_off"]["distance"] for cell in series.cells]
    found = {
        "task": series.task,
        "stabilizer": series.stabilizer,
        "half_life": series.rider["half_life"],
        "gva": score.mean,
        "gva_low": score.low,
        "gva_high": score.high,
        "gva_per_seed": [gva.gva(J) for J in scored],
        "return": mean.mean,
        "return_low": mean.low,
        "return_high": mean.high,
        "worst": scored.mean(2).min(),
        "val_loss": series.val_loss[:, series.window].mean(),
        "seeds": len(series.seeds),
        "misplaced": max(cell["read_off"]["misplaced"] for cell in series.cells),
        "distance": None if None in distances else np.mean(distances),
        "online_gva": online and np.mean([gva.gva(J) for J in online.returns[:, online.window]]),
        "online_return": online and online.returns[:, online.window].mean(),
    }
    return {name: plain(value) for name, value in found.items()}


def cells(entry: dict[str, Any]) -> list[str]:
    """Return one row, in the order of COLUMNS."""
    half = "–" if entry["gva_high"] is None else f"{entry['gva_high'] - entry['gva']:.3f}"
    return [
        entry["stabilizer"],
        str(entry["half_life"][1]),
        f"{entry['gva']:.3f} ±{half}",
        f"{entry['return']:.2f}",
        f"{entry['worst']:.2f}",
        f"{entry['misplaced']:.1%}{'!' if entry['misplaced'] > POOR else ' '}",
    ]


def table(content: dict[str, Any]) -> RenderableType:
    """Return the averages of every task for a terminal; fits 80 columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for task, entries in _by_task(content).items():
        title = f"{task}: averages read off snapshots of {content['every']} updates"
        parts += [ruled(title, COLUMNS, [cells(entry) for entry in entries], "average"), Text()]
    return Group(*parts, bullets(notes(content)))


def markdown(content: dict[str, Any]) -> str:
    """Return the same as GitHub Markdown."""
    lines = []
    for task, entries in _by_task(content).items():
        lines += [f"## {task}: averages read off snapshots of {content['every']} updates", ""]
        found = [COLUMNS, [":--", *["--:"] * (len(COLUMNS) - 1)], *map(cells, entries)]
        lines += [*map(markdown_line, found), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(content)), ""])


def csv_text(content: dict[str, Any]) -> str:
    """Return the same as CSV: one line an average, its scalar keys."""
    keys = [key for key in content["entries"][0] if key not in ("gva_per_seed", "half_life")]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["task", "stabilizer", "half_life_end", *keys[2:]], lineterminator="\n"
    )
    writer.writeheader()
    for entry in content["entries"]:
        writer.writerow(
            {key: entry[key] for key in keys} | {"half_life_end": entry["half_life"][1]}
        )
    return text.getvalue()


def notes(content: dict[str, Any]) -> list[str]:
    """Return how to read the columns, and the error against the averages that also rode online."""
    lines = list(NOTES)
    if any(entry["misplaced"] > POOR for entry in content["entries"]):
        lines.append(
            f"!: more than {POOR:.0%} is misplaced, so this is not the average it is named after: lower snapshots.every."
        )
    for entry in content["entries"]:
        if entry["distance"] is not None:
            lines.append(
                f"{entry['task']} {entry['stabilizer']} against the online average: final weights off by"
                f" {entry['distance']:.2g} of its distance from the raw iterate; GVA {entry['gva']:.3f}, online"
                f" {entry['online_gva']:.3f}; return {entry['return']:.3f}, online {entry['online_return']:.3f}."
            )
    return lines


def _by_task(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in content["entries"]:
        found.setdefault(entry["task"], []).append(entry)
    return found
