"""GVA and return of post-hoc averages."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.figure import Figure

from stab.reports import table
from stab.reports.figures import half_life, style
from stab.reports.figures.style import COLOURS, GREY, MARKERS, SIZE

NAME = "averages"
CAPTION = "Post-hoc averages"


def draw(averages: dict[str, Any], leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA and return against the effective half-life at the end of training.

    ``averages`` is the content of ``averages.json``. One line per kind of average. Bars are 95 %
    intervals; hollow squares the same averages as they rode online; the grey line is ``none``.
    """
    figure = style.figure(2.9)
    entries = [entry for entry in averages["entries"] if entry["task"] == task]
    families: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:  # lr_decay+ema:half_life=300 belongs to lr_decay+ema
        families.setdefault(re.sub(r":[^+]*", "", entry["stabilizer"]), []).append(entry)
    others = table.entries(leaderboard, task)
    base = next((entry for entry in others if entry["stabilizer"] == "none"), None)
    for axes, key in half_life.panels(figure):
        if base is not None and base[key] is not None:
            axes.axhline(base[key], color=GREY, linewidth=1, label="none")
        looks = zip(COLOURS, MARKERS, families.items(), strict=False)
        for colour, marker, (family, points) in looks:
            x, y = [p["half_life"][1] for p in points], [p[key] for p in points]
            (line,) = axes.plot(x, y, color=colour, marker=marker, linewidth=1.2, label=family)
            line.set_markersize(4.5)
            for life, p in zip(x, points, strict=True):
                if p[f"{key}_low"] is not None:
                    bar = [p[f"{key}_low"], p[f"{key}_high"]]
                    axes.plot([life, life], bar, color=colour, linewidth=0.8)
                if p["online_gva"] is not None:
                    y = p[f"online_{key}"]
                    axes.plot(life, y, "s", color=colour, markerfacecolor="none", markersize=9)
        half_life.set_ticks(axes, [entry["half_life"][1] for entry in entries])
    left, right = figure.axes
    left.set_ylim(bottom=-0.02 * left.get_ylim()[1])  # intervals may reach below 0, a GVA cannot
    right.legend(fontsize=SIZE - 0.5, frameon=False)
    below = "filled: post-hoc, with 95 % interval; hollow square: the same average online"
    style.titles(figure, leaderboard["run"]["smoke"], f"{task}: post-hoc averages", below)
    return figure
