"""GVA against the horizon, and against the lag between checkpoints."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from stab.reports.figures import style
from stab.reports.figures.style import MARKERS, NONE_FIRST, SIZE
from stab.reports.results import Results

NAME = "horizons"
CAPTION = "GVA against the horizon and against the lag between checkpoints"


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA against the horizon (left) and the lag (right), one line per chosen entry."""
    figure = style.figure(3.1)
    left, right = figure.subplots(1, 2)
    shown = style.chosen(leaderboard, task)
    for entry, colour, marker in zip(shown, NONE_FIRST, MARKERS, strict=False):
        label = style.name(entry["stabilizer"], 48, most=2) + style.status(entry)
        for axes, key in ((left, "gva_by_horizon"), (right, "gva_by_lag")):
            x = [int(n) for n in entry[key]]
            y = [math.nan if value is None else value for value in entry[key].values()]
            axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label)
    for axes, name in ((left, "horizon (steps)"), (right, "lag (checkpoints)")):
        style.plain(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name, fontsize=SIZE)
    left.set_ylabel(style.GVA, fontsize=SIZE)
    left.set_xlim(left=0)
    right.set_xscale("log", base=2)
    lags = sorted({int(lag) for entry in shown for lag in entry["gva_by_lag"]})
    right.set_xticks(lags, list(map(str, lags)))
    right.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        ncols=3 if max(map(len, labels), default=0) < 30 else 2,
        **style.LEGEND,
    )
    text = f"{task}: how GVA grows with the horizon and with the lag"
    style.titles(figure, leaderboard["run"]["smoke"], text)
    return figure
