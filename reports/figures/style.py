"""What all figures share: colours, sizes, names, and which entries are shown where few can be."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stab.reports import clean, table
from stab.reports.sheets import wrap_name

# Okabe and Ito's colours, for colour-blind readers; position, shape or label tell apart as well.
BLUE, VERMILION, GREY, SHADE = "#0072B2", "#D55E00", "#8c8c8c", "#efefef"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NONE_FIRST = (VERMILION, BLUE, *COLOURS[2:])  # `none` has the same colour in every figure
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
CHOSEN = 6  # entries, if each takes a colour or a panel
WIDTH = 7.0  # inches: two columns of a paper
SIZE = 7.5  # points
CHARACTER = 0.6 * SIZE / 72  # inches: the mean width of a character, at most
LEGEND: dict[str, Any] = {"loc": "outside lower center", "fontsize": SIZE - 0.5, "frameon": False}
GVA, RETURN = "GVA (lower is steadier)", "return (random 0, expert 1)"


def figure(height: float) -> Figure:
    """An empty figure of a height in inches."""
    return Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")


def settle(figure: Figure) -> None:
    """Lay a figure out once, not once per file; nothing moves afterwards."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # not "none", with which every file would be drawn twice


def plain(axes: Axes) -> None:
    """Small ticks, and no frame at the top and on the right."""
    axes.tick_params(labelsize=SIZE - 0.5, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)


def band(axes: Axes, resolution: float | None) -> None:
    """Shade the GVAs that can hardly be told from 0 (``gva.resolution``)."""
    if resolution:
        axes.axvspan(0, resolution, color=SHADE, zorder=0)


def titles(figure: Figure, smoke: bool, above: str, below: str = "") -> None:
    """Write what is above and below the axes; a smoke run says that it is one."""
    above, below = clean.terminal(above), clean.terminal(below)
    if below:
        figure.supxlabel(below, fontsize=SIZE)
    above = textwrap.fill(above, 84).replace("$", r"\$")
    above = f"{table.SMOKE}\n{above}" if smoke else above
    figure.suptitle(above, fontsize=SIZE + 1.5, fontweight="bold")


def name(string: str, width: int, most: int = 8) -> str:
    """Break a stabilizer string into ``most`` lines of about ``width`` characters; $ stays $."""
    # A name without punctuation is broken as well, so that the axes have room.
    lines = re.findall(".{1,48}", wrap_name(clean.terminal(string), width))
    return "\n".join([*lines[:most], *(["..."] if len(lines) > most else [])]).replace("$", r"\$")


def status(entry: dict[str, Any]) -> str:
    """The status in parentheses if it is not ranked."""
    return "" if entry["status"] == "ranked" else f" ({entry['status']})"


def colourbar(figure: Figure, colours: Any, axes: Any, label: str, extend: str) -> None:
    """Draw the scale of the colours beside axes."""
    bar = figure.colorbar(colours, ax=axes, extend=extend, extendfrac=0.03, pad=0.01, aspect=30)
    bar.set_label(label, fontsize=SIZE)
    bar.ax.tick_params(labelsize=SIZE - 1, length=2)


def scored(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The entries of a task that have a score, in the order of the leaderboard."""
    return [entry for entry in table.entries(leaderboard, task) if entry["gva"] is not None]


def chosen(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Return ``none`` and up to five more entries, in the order of the leaderboard.

    Ranked ones come before others, and the best of each method before its other settings.
    """
    entries = scored(leaderboard, task)
    entries.sort(key=lambda entry: entry["stabilizer"] != "none")
    seen = Counter[str]()
    order = []
    for place, entry in enumerate(entries):
        order.append((place > 0, entry["rank"] is None, seen[entry["method"]] > 0, place))
        seen[entry["method"]] += 1
    return [entries[place] for place in sorted(place for *_, place in sorted(order)[:CHOSEN])]
