"""Return against GVA."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from stab.reports.figures import style
from stab.reports.figures.style import BLUE, GREY, SIZE, VERMILION
from stab.reports.results import Results

NAME = "tradeoff"
CAPTION = "Return against GVA; a dot is an entry, its area the samples drawn"
NAMED, BEST = 12, 8  # dots that all have a label; of more, how many of the best have one
SHORT = 24  # characters of a name that may stand beside its dot


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the return of every entry against its GVA.

    A dot's area is its cost in samples, relative to ``none``. Entries that are not ranked are
    hollow, thin lines are 95 % intervals, and in the band at 0 a swing of ``none`` could hardly be
    told from none. Of more than ``NAMED`` dots only ``none`` and the ``BEST`` ranked ones have
    labels.
    """
    entries = style.scored(leaderboard, task)
    base = next(entry for entry in entries if entry["stabilizer"] == "none")
    labels, key = _labels(entries)
    figure = style.figure(3.8 + 0.15 * math.ceil(len(key) / 2))
    axes = figure.subplots()
    style.plain(axes)
    style.band(axes, leaderboard["run"]["tasks"][task]["resolution"])
    times = [entry["samples"] / base["samples"] for entry in entries]
    unit = min(30.0, 500 / max(times))  # square points for the samples of none
    # Below 4 square points a dot could not be seen.
    diameters = {cost: math.sqrt(max(unit * cost, 4.0)) for cost in (*times, 1.0)}
    dots = [(e["gva"], e["return"], diameters[t]) for e, t in zip(entries, times, strict=True)]
    for i in sorted(range(len(dots)), key=lambda i: -dots[i][2]):  # small ones on top
        _dot(axes, entries[i], dots[i][2])
    right = axes.get_xlim()[1]
    axes.set_xlim(-0.02 * right, 1.03 * right)
    axes.set_xlabel(style.GVA, fontsize=SIZE)
    axes.set_ylabel(style.RETURN, fontsize=SIZE)
    _legend(figure, {cost: diameters[cost] for cost in sorted({min(times), 1.0, max(times)})}, key)
    text = f"{task}: return against steadiness (best: top left)"
    style.titles(figure, leaderboard["run"]["smoke"], text)
    style.settle(figure)  # whether labels touch is known afterwards
    _write(axes, dots, labels)
    return figure


def _dot(axes: Axes, entry: dict[str, Any], diameter: float) -> None:
    """Draw an entry with its intervals; ``diameter`` in points."""
    x, y = entry["gva"], entry["return"]
    raw, ranked = entry["stabilizer"] == "none", entry["rank"] is not None
    colour = VERMILION if raw else BLUE
    if entry["gva_low"] is not None:
        thin: dict[str, Any] = {"color": colour, "linewidth": 0.6, "alpha": 0.5}
        axes.plot([entry["gva_low"], entry["gva_high"]], [y, y], **thin)
        axes.plot([x, x], [entry["return_low"], entry["return_high"]], **thin)
    face, edge, width = (colour, "white", 0.5) if ranked else ("white", colour, 1.2)
    (dot,) = axes.plot(x, y, "o", color=face, markersize=diameter, label=entry["stabilizer"])
    dot.set(markeredgecolor=edge, markeredgewidth=width, zorder=3 if raw else 2)


def _legend(figure: Figure, diameters: dict[float, float], key: dict[str, str]) -> None:
    """Write what a dot's area means, and the names behind the labels."""
    dots = [
        Line2D([], [], color=GREY, marker="o", lw=0, markersize=size, label=f"x{cost:.3g}")
        for cost, size in diameters.items()
    ]
    names = [Line2D([], [], lw=0, label=f"{label}: {name}") for label, name in key.items()]
    figure.legend(
        handles=[*dots, *names],
        ncols=2 if key else 3,
        **style.LEGEND,
        title="area: samples drawn, in those of none; hollow: not ranked; "
        "lines: 95 % intervals; band: too small to tell from 0",
        title_fontsize=SIZE,
    )


def _labels(entries: list[dict[str, Any]]) -> tuple[dict[int, str], dict[str, str]]:
    """Return the label of each dot by its place among the entries, and the key to the labels.

    Labels are names or, if one of them is long, ranks and letters; the key has the names then.
    """
    order = [i for i, entry in enumerate(entries) if entry["stabilizer"] != "none"]
    if len(entries) > NAMED:
        order = [i for i in order if entries[i]["rank"] is not None][:BEST]
    raw = {i: "none" for i, entry in enumerate(entries) if entry["stabilizer"] == "none"}
    names = {i: style.name(entries[i]["stabilizer"], 50, most=2) for i in order}
    if max(map(len, names.values()), default=0) <= SHORT:
        return raw | names, {}
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    ranks = {i: entries[i]["rank"] for i in order}
    labels = {i: next(letters) if rank is None else str(rank) for i, rank in ranks.items()}
    return raw | labels, {labels[i]: names[i] for i in order}


def _write(axes: Axes, dots: list[tuple[float, float, float]], labels: dict[int, str]) -> None:
    """Write labels beside their dots (x, y, diameter in points): the nearest free place of each."""
    points = axes.figure.dpi / 72
    boxes = []
    for x, y, size in dots:
        centre = axes.transData.transform((x, y))
        boxes.append(Bbox([centre - points * size / 2, centre + points * size / 2]))
    for i, label in labels.items():
        x, y, size = dots[i]
        text = axes.annotate(label, (x, y), (0, 0), textcoords="offset points", zorder=4)
        text.set(fontsize=SIZE - 0.5, va="center")
        for far, up, side in product(range(0, 100, 2), (1, -1), (1, -1)):
            text.set_horizontalalignment("left" if side > 0 else "right")
            text.xyann = (side * (size / 2 + 2), up * far)
            box = text.get_window_extent()
            within = Bbox.intersection(box, axes.bbox)
            inside = within is not None and within.bounds == box.bounds
            if inside and not box.count_overlaps(boxes):
                break
        boxes.append(box)
