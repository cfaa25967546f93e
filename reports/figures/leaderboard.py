"""The leaderboard as a picture: TensorBoard opens on it."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stab.reports import table
from stab.reports.figures import style
from stab.reports.figures.style import CHARACTER, SHADE, SIZE, VERMILION, WIDTH
from stab.reports.results import Results

NAME = "leaderboard"
CAPTION = "Leaderboard"
ROWS = 20


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the leaderboard as a table, unranked entries below a line.

    Of more than ``ROWS`` entries the first are shown, and ``none``.
    """
    entries, sheet = table.entries(leaderboard, task), table.table(leaderboard, task)
    order = list(range(len(entries)))
    first, last = order[: ROWS - 1], order[ROWS - 1 :]
    first += sorted(last, key=lambda n: entries[n]["stabilizer"] != "none")[:1]
    shown = [entries[n] for n in first]
    cells = [[" ".join(cell.split()) for cell in sheet.lines[n]] for n in first]
    lines = [[*sheet.headings], *cells]
    for line in lines:
        line[1] = style.name(line[1], 48, most=4)
    wide = [
        CHARACTER * max(len(part) for cell in column for part in cell.split("\n"))
        for column in zip(*lines, strict=True)
    ]
    gap = (WIDTH - 0.2 - sum(wide)) / (len(wide) - 1)
    begin = [gap * n + sum(wide[:n]) for n in range(len(wide))]
    heights = [0.07 + 0.115 * len(line[1].splitlines()) for line in lines]
    edges = np.cumsum([0.0, *heights])  # inches from the top
    figure = style.figure(0.85 + edges[-1])
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH - 0.2), ylim=(edges[-1], 0))
    for top, bottom, line, entry in zip(edges, edges[1:], lines, [None, *shown], strict=False):
        raw = entry is not None and entry["stabilizer"] == "none"
        if raw:
            axes.axhspan(top, bottom, color=SHADE, zorder=0)
        for n, cell in enumerate(line):
            x, side = (begin[n], "left") if n == 1 else (begin[n] + wide[n], "right")
            text = axes.text(x, (top + bottom) / 2, cell, fontsize=SIZE, va="center", ha=side)
            text.set(in_layout=False, color=VERMILION if raw else "black")
            text.set(fontweight="bold" if entry is None else "normal")
    ranked = sum(entry["rank"] is not None for entry in shown)
    for row, width in ((1, 1.0), (len(lines), 1.0), (1 + ranked, 0.5)):
        axes.axhline(edges[row], color="black", linewidth=width, clip_on=False)
    unranked = "; below the thin line: not ranked" if 0 < ranked < len(shown) else ""
    below = [f"GVA: lower is steadier; behind it its 95 % interval{unranked}"]
    if len(shown) < len(entries):
        below.insert(0, f"... and {len(entries) - len(shown)} more")
    for warning in sheet.warnings:
        below += textwrap.wrap(f"Warning: {warning}", 110)
    style.titles(figure, leaderboard["run"]["smoke"], sheet.title, "\n".join(below))
    return figure
