"""The leaderboard of a task as a table: for the terminal (80 columns), as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stab import gva

if TYPE_CHECKING:
    from rich.console import RenderableType

SMOKE = "SMOKE RUN: numbers say nothing"
COLUMNS = ("#", "stabilizer", "GVA", "return", "worst", "val loss", "cost")
NESTED = ("gva_per_seed", "gva_by_lag", "gva_by_horizon", "half_life")
STATUS = {
    "undecided": f"the 95 % interval of its return difference to none straddles {gva.SOUND_MARGIN}.",
    "static": "its read-out does not change in the window, so there is nothing to score.",
    "unsound": f"its return falls short of none's by more than {-gva.SOUND_MARGIN}.",
}


def table(leaderboard: dict[str, Any], task: str) -> RenderableType:
    """Return one task's leaderboard for a terminal; fits 80 columns.

    Args:
        leaderboard: the content of ``leaderboard.json``.
        task: one of its tasks.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # Text everywhere, never markup: a name or a reason may hold square brackets.
    drawn = Table(title=Text(title(leaderboard, task)), box=box.HORIZONTALS, show_edge=False, title_style="bold")
    if leaderboard["run"]["smoke"]:
        drawn.title = Text(f"*** {SMOKE} ***\n", style="reverse") + Text(title(leaderboard, task))
    for name in COLUMNS:
        if name == "stabilizer":
            drawn.add_column(name, overflow="fold")
        else:
            drawn.add_column(name, justify="right", no_wrap=True)
    found = entries(leaderboard, task)
    for entry, following in zip(found, [*found[1:], None], strict=True):
        last_ranked = entry["rank"] is not None and following is not None and following["rank"] is None
        drawn.add_row(*map(Text, _cells(leaderboard, entry)), end_section=last_ranked)
    below = Table.grid(padding=(0, 1))
    for note in notes(leaderboard, task):
        below.add_row(" -", Text(note))
    return Group(drawn, Text(), below)


def markdown(leaderboard: dict[str, Any]) -> str:
    """Return the leaderboard of every task as GitHub Markdown, what ``leaderboard.md`` holds."""
    return "\n".join(markdown_task(leaderboard, task) for task in leaderboard["run"]["tasks"])


def markdown_task(leaderboard: dict[str, Any], task: str) -> str:
    """Return one task's leaderboard as GitHub Markdown."""
    lines = [f"## {title(leaderboard, task)}", ""]
    if leaderboard["run"]["smoke"]:
        lines += [f"**{SMOKE}**", ""]
    lines += [_line(COLUMNS), _line("--:" if name != "stabilizer" else ":--" for name in COLUMNS)]
    lines += [_line(_cells(leaderboard, entry)) for entry in entries(leaderboard, task)]
    lines += ["", *(f"- {_escape(note)}" for note in notes(leaderboard, task)), ""]
    return "\n".join(lines)


def csv_text(leaderboard: dict[str, Any]) -> str:
    """Return the leaderboard as CSV: one line an entry, its scalar keys, nothing where a figure is null."""
    keys = [key for key in next(iter(leaderboard["entries"]), {}) if key not in NESTED]
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(leaderboard["entries"])
    return text.getvalue()


def entries(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Return the entries of one task, in the order of the leaderboard."""
    return [entry for entry in leaderboard["entries"] if entry["task"] == task]


def title(leaderboard: dict[str, Any], task: str) -> str:
    """Return what was compared: task, environment, seeds x checkpoints x starts."""
    entry = entries(leaderboard, task)[0]
    environment = leaderboard["run"]["tasks"][task].get("environment")
    size = f"{entry['seeds']} seeds x {entry['checkpoints']} checkpoints x {entry['starts']} starts"
    return f"{task}{f' ({environment})' if environment else ''}: {size}"


def notes(leaderboard: dict[str, Any], task: str) -> list[str]:
    """Return the sentences below the table: warnings, what did not run and why, how to read the columns."""
    about, found = leaderboard["run"]["tasks"][task], entries(leaderboard, task)
    lines = [f"Warning: {warning}" for warning in about["warnings"]]
    lines += [f"{e['stabilizer']} ({e['status']}): {e['reason']}" for e in found if e["reason"]]
    lines.append(
        "GVA: the standard deviation of the return between two checkpoints, from the same start (random policy 0,"
        " expert 1); lower is steadier; ± is a 95 % interval over seeds."
    )
    if about["noise_floor"] is not None:
        lines.append(
            f"Differences in GVA below {about['noise_floor']:.3f} are within the A/A noise floor (none on half of the"
            " starts against none on the other half, same seeds)."
        )
    lines += [f"{status}: {said}" for status, said in STATUS.items() if status in {e["status"] for e in found}]
    lives = [f"{e['stabilizer']} {' to '.join(map(str, e['half_life']))}" for e in found if e["half_life"]]
    if lives:
        lines.append(f"Effective half-life in updates, from the window's start to its end: {', '.join(lives)}.")
    lines += [f"{e['stabilizer']}: {note}." for e in found for note in e["notes"] or []]
    lines.append(f"{leaderboard['run']['budget']} Seconds are those of training.")
    return lines


def _cells(leaderboard: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Return one row, in the order of COLUMNS."""
    mark = "" if entry["status"] == "sound" else f" ({entry['status']})"
    name = [str(entry["rank"] or "–"), entry["stabilizer"] + mark]
    if entry["gva"] is None:
        return [*name, *["–"] * (len(COLUMNS) - 2)]
    half = "–" if entry["gva_high"] is None else f"{entry['gva_high'] - entry['gva']:.3f}"
    base = leaderboard["run"]["settings"]["train"]
    times = entry["samples"] / (base["updates"] * base["batch_size"] * base["accumulation"])
    seconds = "–" if entry["train_seconds"] is None else f"{entry['train_seconds']:.0f} s"
    return [
        *name,
        f"{entry['gva']:.3f} ±{half}",
        f"{entry['return']:.2f}",
        f"{entry['worst']:.2f}",
        f"{entry['val_loss']:#.3g}",
        f"x{times:.3g} {seconds:>6}",
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_escape(cell.strip()) for cell in cells)} |"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
