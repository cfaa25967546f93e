"""GVA and return of every entry."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stab.reports import table
from stab.reports.figures import style
from stab.reports.figures.style import BLUE, SHADE, SIZE, VERMILION
from stab.reports.results import Results

NAME = "scores"
CAPTION = "GVA and return of every entry"
ROWS = 60


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA and return in the order of the leaderboard, unranked entries below a line.

    A filled dot has its 95 % interval, hollow ones are the seeds; in the band at 0 a swing of
    ``none`` could hardly be told from none. Of many entries the first ``ROWS`` are shown, and
    ``none``.
    """
    every = table.entries(leaderboard, task)
    shown = [e for n, e in enumerate(every) if n < ROWS or e["stabilizer"] == "none"]
    labels = [style.name(e["stabilizer"], 24) + style.status(e).replace(" (", "\n(") for e in shown]
    heights = [0.12 + 0.12 * len(label.splitlines()) for label in labels]
    edges = np.cumsum([0.0, *heights])  # inches from the top
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    figure = style.figure(1.1 + edges[-1])
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes in (left, right):
        style.plain(axes)
        axes.grid(axis="x", color=SHADE)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
    style.band(left, leaderboard["run"]["tasks"][task]["resolution"])
    for y, entry in zip(centres, shown, strict=True):
        if entry["gva"] is None:
            continue
        colour = VERMILION if entry["stabilizer"] == "none" else BLUE
        seeds = entry["gva_per_seed"]
        _dot(left, y, entry, "gva", colour)
        left.plot(seeds, [y] * len(seeds), "o", color=colour, mfc="white", markersize=3.5)
        _dot(right, y, entry, "return", colour)
        right.plot(entry["worst"], y, "|", color=colour, markersize=7)
    left.set_yticks(centres, labels, fontsize=SIZE)
    left.set_ylim(edges[-1], 0)
    ranked = sum(entry["rank"] is not None for entry in shown)
    if 0 < ranked < len(shown):
        for axes in (left, right):
            axes.axhline(edges[ranked], color="black", linewidth=0.6)
    left.set_xlim(left=0)
    left.set_xlabel(style.GVA, fontsize=SIZE)
    right.set_xlabel(style.RETURN, fontsize=SIZE)
    below = (
        "filled: all seeds, with 95 % interval; hollow: each seed; band: too small to tell from 0; "
        "tick: worst checkpoint"
    )
    cut = f" ({len(shown)} of {len(every)} entries)" if len(shown) < len(every) else ""
    text = f"{task}: how much the return changes between checkpoints{cut}"
    style.titles(figure, leaderboard["run"]["smoke"], text, below)
    return figure


def _dot(axes: Axes, y: float, entry: dict[str, Any], key: str, colour: str) -> None:
    axes.plot(entry[key], y, "o", color=colour, markersize=5.5)
    if entry[f"{key}_low"] is not None:
        axes.plot([entry[f"{key}_low"], entry[f"{key}_high"]], [y, y], color=colour, linewidth=1.4)
