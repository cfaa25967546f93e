"""The figures of a task: reward and loss against updates, and the scores. Matplotlib without its global state."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import gva
from stab.reports import texts
from stab.reports.statistics import Results, Series
from stab.reports.table import COLUMNS, SMOKE, cells, entries, fold, readable, title
from stab.stabilizers.base import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; every use is also told by position, shape or label.
BLUE, VERMILION, GREY, SHADE = "#0072B2", "#D55E00", "#8c8c8c", "#efefef"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
STYLES = ("-", "--", ":", "-.")
MOST = 16  # rows of curves in one figure
ROWS = 60  # of scores
CHOSEN = 6  # entries where each takes a colour or a panel
NAMED, BEST = 12, 8  # dots that all have a name; of more, how many of the best have one
SHORT = 24  # characters of a name that may stand beside its dot
LISTED = 20  # rows of a table
CROSSED = (24, 12)  # stabilizers and tasks of the matrix
APART = 1.8  # factor between ticks, so that their labels do not touch
WIDTH = 7.0  # inches: two columns of a paper
SIZE = 7.5  # points
CHARACTER = 0.6 * SIZE / 72  # inches: what a character takes at most, on average
MONO, ADVANCE = (
    "DejaVu Sans Mono",
    9 / 150,
)  # matplotlib's own; inches of a character: whole pixels, to which a PNG rounds
TYPE = 72 * ADVANCE * 2048 / 1233  # points at which a character of it takes that
QUIET = "#6b6b6b"  # grey that can be read: 5 to 1 on white
LINES = (2, 12)  # of a prompt, about, and at most of a text that is shown


def draw(results: Results, leaderboard: dict[str, Any]) -> dict[str, Figure]:
    """Return every figure of a run by its name.

    ``<task>-curves``: the raw iterates of the base recipe and every average of them; ``<task>-recipes``: every entry with
    a recipe of its own (of more than ``MOST``, those of lowest GVA); where averages of several lengths ride on one
    trajectory ``<task>-half_life``; where episodes are texts ``<task>-divergence`` and ``-texts``; ``<task>-tradeoff``,
    ``-horizons``, ``-heat``, ``-scores`` and ``-leaderboard``; and of several tasks ``tasks-matrix``. A task whose raw
    iterates have not finished has scores and leaderboard alone.
    """
    drawn = {}
    for task in results.config.tasks if results.config.stabilizers else ():
        base = results.series.get((task, "none"))
        if base is not None:
            listed = [
                results.series[task, string]
                for string in results.config.stabilizers
                if string != "none" and (task, string) in results.series
            ]
            same = [s for s in listed if s.recipe == base.recipe]
            drawn[f"{task}-curves"] = curves(
                results, task, [base, *_steadiest(same)], len(same) + 1
            )
            if len(same) < len(listed):
                others = [s for s in listed if s.recipe != base.recipe]
                drawn[f"{task}-recipes"] = curves(results, task, _steadiest(others), len(others))
            if len(families := _families(leaderboard, task)) < sum(map(len, families.values())):
                drawn[f"{task}-half_life"] = half_lives(leaderboard, task, families)
            if parted := _parted(results, leaderboard, task):
                drawn[f"{task}-divergence"] = divergence(results, leaderboard, task, parted)
            if shown := texts.example(results, leaderboard, task):
                drawn[f"{task}-texts"] = side_by_side(leaderboard, task, shown)
        if any(
            e["stabilizer"] == "none" and e["gva"] is not None for e in entries(leaderboard, task)
        ):
            drawn[f"{task}-tradeoff"] = tradeoff(leaderboard, task)
            drawn[f"{task}-horizons"] = horizons(leaderboard, task)
            drawn[f"{task}-heat"] = heat(results, leaderboard, task)
        drawn[f"{task}-scores"] = scores(leaderboard, task)
        drawn[f"{task}-leaderboard"] = board(leaderboard, task)
    if len(results.config.tasks) > 1 and results.config.stabilizers:
        drawn["tasks-matrix"] = matrix(leaderboard)
    return drawn


def _steadiest(found: list[Series]) -> list[Series]:
    """Return them all or, of more than ``MOST``, those of lowest GVA, in their order; ``curves`` says so."""
    score = {
        one.stabilizer: np.mean([gva.gva(J) for J in one.returns[:, one.window]]) for one in found
    }
    kept = sorted(score, key=lambda string: score[string])[:MOST]
    return [one for one in found if one.stabilizer in kept]


def save(drawn: dict[str, Figure], folder: Path) -> None:
    """Write each figure as PNG (150 dpi) and SVG; the same figure gives the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "stab"}):
        for name, figure in drawn.items():
            _settle(figure)
            figure.savefig(folder / f"{name}.png", dpi="figure")
            figure.savefig(folder / f"{name}.svg", dpi="figure", metadata={"Date": None})


def _settle(figure: Figure) -> None:
    """Lay a figure out, once and not for every file; nothing moves afterwards."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # and not "none", with which every file would be drawn twice


def curves(results: Results, task: str, rows: list[Series], of: int) -> Figure:
    """Draw reward and validation loss against updates, one row a stabilizer; ``of`` is how many there are in all.

    Reward on the left and loss on the right, thin lines the seeds (mean over starts), the bold one their mean, ``none`` in
    grey behind, the window shaded.
    """
    base = results.series[task, "none"]
    figure = _figure(0.75 + 1.05 * len(rows))
    grid = figure.subplots(len(rows), 2, sharex=True, sharey="col", squeeze=False)
    for (left, right), series in zip(grid, rows, strict=True):
        score = np.mean([gva.gva(J) for J in series.returns[:, series.window]])
        for axes, behind, values in (
            (left, base.returns.mean(2), series.returns.mean(2)),
            (right, base.val_loss, series.val_loss),
        ):
            _style(axes)
            axes.axvspan(base.updates[base.window][0], base.updates[-1], color=SHADE, zorder=0)
            if series is not base:
                axes.plot(base.updates, behind.T, color=GREY, linewidth=0.7, alpha=0.7)
            colour = VERMILION if series is base else BLUE
            axes.plot(series.updates, values.T, color=colour, linewidth=0.8, alpha=0.8)
            axes.plot(
                series.updates,
                values.mean(0),
                color=colour,
                linewidth=1.5,
                marker="o",
                markersize=2,
            )
            axes.margins(x=0.02)
        label = f"{_name(series.stabilizer, 16)}\nGVA {score:.3f}"
        left.set_ylabel(label, fontsize=SIZE, rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], ("return (random 0, expert 1)", "validation loss"), strict=True):
        axes.set_title(name, fontsize=SIZE + 0.5)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for axes in grid[-1]:
        axes.set_xlabel("updates", fontsize=SIZE)
    legend = "thin: each seed, mean over starts; bold: mean over seeds; grey: none; shaded: the window that is scored"
    figure.supxlabel(legend, fontsize=SIZE)
    cut = f" (the {len(rows)} steadiest of {of})" if len(rows) < of else ""
    _title(
        figure,
        results.config.smoke,
        f"{task}: return and validation loss of the same checkpoints{cut}",
    )
    return figure


def scores(leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA and return of every entry, in the order of the leaderboard, unranked ones below a line.

    A filled dot is the mean over seeds with its 95 % interval, hollow ones are the seeds; the band around ``none`` is
    the noise floor.
    """
    every = entries(leaderboard, task)
    found = [e for n, e in enumerate(every) if n < ROWS or e["stabilizer"] == "none"]
    labels = [
        _name(e["stabilizer"], 24) + ("" if e["status"] == "sound" else f"\n({e['status']})")
        for e in found
    ]
    edges = np.cumsum(
        [0.0, *(0.12 + 0.12 * len(label.splitlines()) for label in labels)]
    )  # inches from the top
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    figure = _figure(1.1 + edges[-1])
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes in (left, right):
        _style(axes)
        axes.grid(axis="x", color=SHADE)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
    floor = leaderboard["run"]["tasks"][task]["noise_floor"]
    for y, entry in zip(centres, found, strict=True):
        if entry["gva"] is None:
            continue
        colour = VERMILION if entry["stabilizer"] == "none" else BLUE
        if entry["stabilizer"] == "none" and floor is not None:
            left.axvspan(entry["gva"] - floor, entry["gva"] + floor, color=SHADE, zorder=0)
        per_seed = entry["gva_per_seed"]
        _dot(left, y, entry, "gva", colour)
        left.plot(
            per_seed,
            [y] * len(per_seed),
            "o",
            color=colour,
            markerfacecolor="white",
            markersize=3.5,
        )
        _dot(right, y, entry, "return", colour)
        right.plot(entry["worst"], y, "|", color=colour, markersize=7)
    left.set_yticks(centres, labels, fontsize=SIZE)
    left.set_ylim(edges[-1], 0)
    ranked = sum(entry["rank"] is not None for entry in found)
    if 0 < ranked < len(found):
        for axes in (left, right):
            axes.axhline(edges[ranked], color="black", linewidth=0.6)
    left.set_xlim(left=0)
    left.set_xlabel("GVA (lower is steadier)", fontsize=SIZE)
    right.set_xlabel("return (random 0, expert 1)", fontsize=SIZE)
    legend = "filled: mean and 95 % interval; hollow: each seed; band: none ± noise floor; tick: worst checkpoint"
    figure.supxlabel(legend, fontsize=SIZE)
    cut = f" ({len(found)} of {len(every)} entries)" if len(found) < len(every) else ""
    _title(
        figure,
        leaderboard["run"]["smoke"],
        f"{task}: how much the return changes between checkpoints{cut}",
    )
    return figure


def tradeoff(leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the return of every entry against its GVA; a dot's area is its cost in samples, relative to ``none``.

    Entries that are not ranked are hollow, thin lines are 95 % intervals, and the band around ``none`` is the noise floor.
    Of more than ``NAMED`` dots only ``none`` and the ``BEST`` ranked ones have names.
    """
    from matplotlib.lines import Line2D

    found = [entry for entry in entries(leaderboard, task) if entry["gva"] is not None]
    base = next(entry for entry in found if entry["stabilizer"] == "none")
    floor = leaderboard["run"]["tasks"][task]["noise_floor"]
    marks, key = _marks(found)
    figure = _figure(3.8 + 0.15 * math.ceil(len(key) / 2))
    axes = figure.subplots()
    _style(axes)
    if floor is not None:
        axes.axvspan(base["gva"] - floor, base["gva"] + floor, color=SHADE, zorder=0)
    times = [entry["samples"] / base["samples"] for entry in found]
    unit = min(30.0, 500 / max(times))  # square points for the samples of none
    widths = [_diameter(unit * cost) for cost in times]
    for entry, width in sorted(
        zip(found, widths, strict=True), key=lambda pair: -pair[1]
    ):  # small ones on top
        x, y = entry["gva"], entry["return"]
        colour = VERMILION if entry["stabilizer"] == "none" else BLUE
        if entry["gva_low"] is not None:
            ends = (
                [entry["gva_low"], entry["gva_high"]],
                [entry["return_low"], entry["return_high"]],
            )
            axes.plot(ends[0], [y, y], color=colour, linewidth=0.6, alpha=0.5)
            axes.plot([x, x], ends[1], color=colour, linewidth=0.6, alpha=0.5)
        face, edge = ("white", colour) if entry["rank"] is None else (colour, "white")
        (dot,) = axes.plot(
            x, y, "o", color=face, markeredgecolor=edge, markersize=width, label=entry["stabilizer"]
        )
        dot.set(
            markeredgewidth=1.2 if entry["rank"] is None else 0.5, zorder=3 if entry is base else 2
        )
    right = axes.get_xlim()[1]
    axes.set_xlim(-0.02 * right, 1.03 * right)  # intervals may reach below 0, a GVA cannot
    axes.set_xlabel("GVA (lower is steadier)", fontsize=SIZE)
    axes.set_ylabel("return (random 0, expert 1)", fontsize=SIZE)
    sizes = {cost: _diameter(unit * cost) for cost in sorted({min(times), 1.0, max(times)})}
    figure.legend(
        handles=[
            *(
                Line2D(
                    [],
                    [],
                    color=GREY,
                    marker="o",
                    lw=0,
                    markersize=sizes[cost],
                    label=f"x{cost:.3g}",
                )
                for cost in sizes
            ),
            *(Line2D([], [], lw=0, label=f"{mark}: {name}") for mark, name in key.items()),
        ],
        loc="outside lower center",
        ncols=2 if key else 3,
        fontsize=SIZE - 0.5,
        frameon=False,
        title="area: samples drawn, in those of none; hollow: not ranked; lines: 95 % intervals; band: none ± noise floor",
        title_fontsize=SIZE,
    )
    _title(
        figure, leaderboard["run"]["smoke"], f"{task}: return against steadiness (best: top left)"
    )
    _settle(figure)  # where there is room for a name is known afterwards
    _write_names(
        axes,
        [(e["gva"], e["return"], width) for e, width in zip(found, widths, strict=True)],
        marks,
    )
    return figure


def _marks(found: list[dict[str, Any]]) -> tuple[dict[int, str], dict[str, str]]:
    """Return what to write beside which dot and, where names are long, the key to it: ranks and letters -> names."""
    order = [i for i, entry in enumerate(found) if entry["stabilizer"] != "none"]
    if len(found) > NAMED:
        order = [i for i in order if found[i]["rank"] is not None][:BEST]
    raw = {i: "none" for i, entry in enumerate(found) if entry["stabilizer"] == "none"}
    names = {i: _name(found[i]["stabilizer"], 50, most=2) for i in order}
    if max(map(len, names.values()), default=0) <= SHORT:
        return raw | names, {}
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    marks = {i: next(letters) if found[i]["rank"] is None else str(found[i]["rank"]) for i in order}
    return raw | marks, {marks[i]: names[i] for i in order}


def _diameter(area: float) -> float:
    """Return the points of a marker of an area in square points that can still be seen."""
    return math.sqrt(max(area, 4.0))


def _write_names(
    axes: Axes, dots: Sequence[tuple[float, float, float]], names: dict[int, str]
) -> None:
    """Write names beside their dots (x, y, diameter in points): the nearest places where they cover little.

    A name that stands further off has a thread to its dot. The figure must have been laid out.
    """
    axes.autoscale(False)
    point = axes.figure.dpi / 72
    page = np.array([axes.get_window_extent().extents])
    to_data = axes.transData.inverted()
    at = axes.transData.transform([dot[:2] for dot in dots])
    reach = np.array([dot[2] / 2 * point for dot in dots])[:, None]
    covered = np.hstack([at - reach, at + reach])  # boxes: left, bottom, right, top
    written = np.empty((0, 4))
    drawn = [axes.transData.transform(np.asarray(line.get_xydata())) for line in axes.get_lines()]
    thin = [
        [*ends.min(0) - point / 2, *ends.max(0) + point / 2] for ends in drawn if len(ends) == 2
    ]
    bars = np.reshape(thin, (-1, 4))
    turns = np.pi / 8 * np.array([0, 8, 4, 12, 2, 6, 10, 14, 1, 7, 9, 15])
    sides = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    gaps = point * np.repeat([1, 4, 8, 14, 22, 32, 44, 60], len(sides))[:, None]
    sides = np.tile(sides, (len(gaps) // len(sides), 1))
    for i, name in names.items():
        text = axes.text(
            *dots[i][:2], name, fontsize=SIZE - 0.5, ha="center", va="center", zorder=4
        )
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.2})
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + point / 2
        centres = at[i] + sides * (reach[i] + gaps) + np.clip(1.5 * sides, -1, 1) * half
        places = np.hstack([centres - half, centres + half])
        nearest = np.clip(at, places[:, None, :2], places[:, None, 2:])
        away = np.linalg.norm(nearest - at, axis=2) - reach.T  # (places, dots)
        # How much nearer than its own dot another one is.
        doubt = np.clip(
            away[:, i] - np.delete(away, i, axis=1).min(axis=1, initial=np.inf) + point, 0, None
        )
        cost = 100 * _common(places, written) + 20 * doubt + 4 * gaps[:, 0]
        cost += (
            10 * (_common(places, covered) + 4 * half.prod() - _common(places, page))
            + _common(places, bars) / 2
        )
        best = int(np.argmin(cost))
        written = np.vstack([written, places[best]])
        (x, y), end = to_data.transform(
            [centres[best], np.clip(at[i], places[best, :2], places[best, 2:])]
        )
        text.set_position((x, y))
        if gaps[best] > 8 * point:
            axes.plot(
                [dots[i][0], end[0]], [dots[i][1], end[1]], color="black", linewidth=0.4, zorder=1
            )


def _common(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the area that each place (left, bottom, right, top) shares with all boxes together."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2).sum(axis=1))


def horizons(leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA against the horizon (left) and against the lag between checkpoints (right), a line an entry."""
    figure = _figure(3.1)
    left, right = figure.subplots(1, 2)
    colours = [
        VERMILION,
        *(colour for colour in COLOURS if colour != VERMILION),
    ]  # none has its own everywhere
    shown = _chosen(leaderboard, task)
    for entry, colour, marker in zip(shown, colours, MARKERS, strict=False):
        for axes, key in ((left, "gva_by_horizon"), (right, "gva_by_lag")):
            x, y = (
                [int(n) for n in entry[key]],
                [math.nan if v is None else v for v in entry[key].values()],
            )
            label = _name(entry["stabilizer"], 48, most=2) + _status(entry)
            axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label)
    for axes, name in ((left, "horizon (steps)"), (right, "lag (checkpoints)")):
        _style(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name, fontsize=SIZE)
    left.set_ylabel("GVA (lower is steadier)", fontsize=SIZE)
    left.set_xlim(left=0)
    right.set_xscale("log", base=2)
    lags = sorted({int(lag) for entry in shown for lag in entry["gva_by_lag"]})
    right.set_xticks(lags, list(map(str, lags)))
    right.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    columns = 3 if max(map(len, labels), default=0) < 30 else 2
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=SIZE - 0.5,
        frameon=False,
    )
    _title(
        figure,
        leaderboard["run"]["smoke"],
        f"{task}: how GVA grows with the horizon and with the lag",
    )
    return figure


def heat(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the return of every checkpoint (across) from every start (down, seed by seed), a panel an entry.

    A white line divides seeds, and the window from the checkpoints before; one scale of colours, 0 to 1, serves all.
    """
    shown = [
        entry
        for entry in _chosen(leaderboard, task)
        if (task, entry["stabilizer"]) in results.series
    ]
    columns = min(3, len(shown))
    figure = _figure(0.75 + 1.75 * math.ceil(len(shown) / columns))
    grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        series = results.series[task, shown[place]["stabilizer"]]
        seeds, checkpoints, starts = series.returns.shape
        values = series.returns.transpose(0, 2, 1).reshape(seeds * starts, checkpoints)
        image = axes.imshow(
            values, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        for seed in range(1, seeds):
            axes.axhline(seed * starts - 0.5, color="white", linewidth=1)
        if first := int(series.window.argmax()):
            axes.axvline(first - 0.5, color="white", linewidth=1)
        axes.tick_params(labelsize=SIZE - 1, length=2)
        ticks = range(checkpoints - 1, -1, -math.ceil(checkpoints / 4))
        lowest = place + columns >= len(shown)
        axes.set_xticks(
            ticks, [str(series.updates[k]) for k in ticks] if lowest else [""] * len(ticks)
        )
        axes.set_yticks([])
        if place % columns == 0:
            every = math.ceil(seeds / 8)
            middles = [seed * starts + (starts - 1) / 2 for seed in range(0, seeds, every)]
            axes.set_yticks(middles, [f"seed {seed}" for seed in series.seeds[::every]])
        score = f"GVA {shown[place]['gva']:.3f}{_status(shown[place])}"
        axes.set_title(f"{_name(shown[place]['stabilizer'], 30, most=3)}\n{score}", fontsize=SIZE)
    bar = figure.colorbar(image, ax=grid, extend="both", extendfrac=0.03, pad=0.01, aspect=30)
    bar.set_label("return", fontsize=SIZE)
    bar.ax.tick_params(labelsize=SIZE - 1, length=2)
    legend = "across: updates, right of the upright line scored; down: starts; return: random 0, expert 1"
    figure.supxlabel(legend, fontsize=SIZE)
    _title(
        figure, leaderboard["run"]["smoke"], f"{task}: return of every checkpoint from every start"
    )
    return figure


def _parted(results: Results, leaderboard: dict[str, Any], task: str) -> dict[str, np.ndarray]:
    """Return ``texts.times`` of ``none``, of an average of it and of others that are chosen, where there are texts."""
    average = texts.first_average(results, leaderboard, task)
    order = dict.fromkeys(
        ["none", *filter(None, [average]), *(e["stabilizer"] for e in _chosen(leaderboard, task))]
    )
    series = [results.series[task, string] for string in order if (task, string) in results.series]
    found = {one.stabilizer: texts.times(one) for one in series[:CHOSEN]}
    return {string: parted for string, parted in found.items() if not np.isnan(parted).all()}


def divergence(
    results: Results, leaderboard: dict[str, Any], task: str, parted: dict[str, np.ndarray]
) -> Figure:
    """Draw the share of pairs of neighbouring checkpoints whose texts are the same in their first t tokens, against t.

    A pair is of one seed and one start; bold lines are of all pairs and, of few entries, thin ones of a seed. Pairs that
    are equal to their end count as the same at every t.

    Args:
        parted: ``texts.times`` of the entries to draw, in their order.
    """
    figure = _figure(3.2 + 0.14 * len(parted))
    axes = figure.subplots()
    _style(axes)
    last = max(texts.longest(results.series[task, string]) for string in parted)
    every = max(1, last // 8)
    by_seed = len(parted) <= 3 and all(
        len(found) > 1 for found in parted.values()
    )  # more lines cannot be told apart
    colours = [
        VERMILION,
        *(colour for colour in COLOURS if colour != VERMILION),
    ]  # none has its own everywhere
    for n, (string, found) in enumerate(parted.items()):
        colour, style = colours[n], STYLES[n % len(STYLES)]
        for seed in found if by_seed else ():
            if not np.isnan(seed).all():
                axes.step(
                    range(last + 1),
                    texts.survival(seed, last),
                    where="post",
                    color=colour,
                    lw=0.5,
                    alpha=0.35,
                )
        (line,) = axes.step(
            range(last + 1), texts.survival(found, last), style, where="post", color=colour, lw=1.4
        )
        line.set(marker=MARKERS[n], markersize=3.5, markevery=(n * every // len(parted), every))
        line.set_label(f"{_name(string, 48, most=2)}: {_summary(found)}")
    axes.set(ylim=(-0.02, 1.02), xlim=(0, max(1, 1.01 * last)))
    axes.set_xlabel("generated tokens", fontsize=SIZE)
    axes.set_ylabel("share of pairs still the same", fontsize=SIZE)
    key = figure.legend(
        loc="outside lower center",
        fontsize=SIZE - 0.5,
        frameon=False,
        title="the first token that differs: median of all pairs, mean of those that differ"
        f"{'; thin: each seed' * by_seed}\n"
        "a pair is of one seed and one start; texts that are equal to their end count as the same throughout",
        title_fontsize=SIZE - 0.5,
    )
    key.get_title().set_multialignment("center")
    _title(
        figure,
        leaderboard["run"]["smoke"],
        f"{task}: how long neighbouring checkpoints write the same text",
    )
    return figure


def _summary(parted: np.ndarray) -> str:
    """Return the middle of some ``texts.times``, their mean where finite, and how many are not, in words."""
    found = parted[~np.isnan(parted)]
    differ, middle = found[np.isfinite(found)], texts.middle(parted)
    never = f"never {1 - len(differ) / len(found):.0%}"
    if not len(differ):
        return never
    return f"median {'never' if math.isinf(middle) else int(middle)}, mean {differ.mean():.1f}, {never}"


def side_by_side(leaderboard: dict[str, Any], task: str, shown: texts.Example) -> Figure:
    """Draw two neighbouring checkpoints' texts side by side, a row a stabilizer, the first token that differs marked.

    All in one typeface whose characters are equally wide, in lines that are broken by counting them: whatever a text
    holds, nothing reaches beyond its place. Long texts are cut.
    """
    across = int((WIDTH - 0.3) / ADVANCE)  # characters
    column = (across - 4) // 2
    parts: list[
        tuple[float, float, str, dict[str, Any]]
    ] = []  # characters from the left, lines from the top
    prompt = _drawable(texts.ending(shown.prompt, LINES[0] * across))
    y = 0.0
    for begin, end in texts.wrapped(prompt, across):
        parts.append((0, y, prompt[begin:end], {"style": "italic"}))
        y += 1
    for pair in shown.pairs:
        name, room = _drawable(readable(pair.stabilizer)), across - len(pair.said) - 2
        parts.append(
            (0, y + 0.8, f"{texts.beginning(name, room)}: {pair.said}", {"weight": "bold"})
        )
        y += 2.1
        deepest = 0
        for x, text in zip((0, across - column), pair.texts, strict=True):
            parts.append((x, y, f"update {text.update}, return {text.score:.2f}", {"color": QUIET}))
            lines = _lines(text, column)
            deepest = max(deepest, len(lines))
            for n, found in enumerate(lines):
                parts += [(x + begin, y + 1.2 + n, piece, look) for begin, piece, look in found]
        y += 1.2 + deepest
    below = textwrap.wrap(shown.said, 108)
    title = f"{task}: what two neighbouring checkpoints write"
    top = 0.32 + 0.15 * (len(textwrap.wrap(title, 84)) - 1 + leaderboard["run"]["smoke"])
    bottom, high = 0.2 + 0.15 * len(below), y * 1.35 * TYPE / 72
    figure = _figure(top + high + bottom)
    figure.set_layout_engine(None)  # it would stretch what is placed by characters
    inches = figure.get_figheight()
    wide = across * ADVANCE
    axes = figure.add_axes(
        ((WIDTH - wide) / 2 / WIDTH, bottom / inches, wide / WIDTH, high / inches)
    )
    axes.set_axis_off()
    axes.set(xlim=(0, across), ylim=(y, 0))
    for left, line, piece, look in parts:
        axes.text(
            left,
            line + 0.8,
            piece,
            fontsize=TYPE,
            family=MONO,
            va="baseline",
            parse_math=False,
            **look,
        )
    figure.supxlabel("\n".join(below), fontsize=SIZE)
    _title(figure, leaderboard["run"]["smoke"], title)
    return figure


def _lines(text: texts.Text, column: int) -> list[list[tuple[int, str, dict[str, Any]]]]:
    """Return the lines of a text of ``column`` characters: pieces (first column, what it says, how it looks)."""
    pieces = [
        _drawable(part) for part in texts.shortened(text, LINES[1] * column // 4, LINES[1] * column)
    ]
    whole = "".join(pieces)
    ends = np.cumsum([0, *map(len, pieces)])
    looks: list[dict[str, Any]] = [{"color": QUIET}, {"color": VERMILION, "weight": "bold"}, {}]
    found = texts.wrapped(whole, column)
    lines = []
    for begin, end in found[: LINES[1]]:
        spans = [(max(begin, first), min(end, last)) for first, last in pairwise(ends)]
        lines.append(
            [
                (a - begin, whole[a:b], look)
                for (a, b), look in zip(spans, looks, strict=True)
                if a < b
            ]
        )
    if len(found) > LINES[1]:
        begin, piece, look = lines[-1][-1]
        fits = begin + len(piece) + 2 <= column
        lines[-1][-1] = (
            begin,
            f"{piece} …" if fits else texts.beginning(f"{piece}  ", column - begin),
            look,
        )
    return lines


def _drawable(text: str) -> str:
    """Return text with � for what the typeface has no picture of."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    looks: tuple[dict[str, Any], ...] = ({}, {"weight": "bold"}, {"style": "italic"})
    faces = [get_font(findfont(FontProperties(family=MONO, **look))) for look in looks]
    lacking = {c for c in {*text} if not all(face.get_char_index(ord(c)) for face in faces)}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in lacking else c for c in text)


def board(leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the leaderboard as a table, unranked entries below a line; of more than ``LISTED`` the first, and ``none``."""
    found = entries(leaderboard, task)
    shown = found[:LISTED]
    if not any(entry["stabilizer"] == "none" for entry in shown):
        shown = [
            *found[: LISTED - 1],
            *(entry for entry in found if entry["stabilizer"] == "none"),
        ][:LISTED]
    lines = [
        list(COLUMNS),
        *([" ".join(cell.split()) for cell in cells(leaderboard, entry)] for entry in shown),
    ]
    for line in lines:
        line[1] = _name(line[1], 48, most=4)
    wide = [
        CHARACTER * max(len(part) for line in lines for part in line[n].split("\n"))
        for n in range(len(COLUMNS))
    ]
    gap = (WIDTH - 0.2 - sum(wide)) / (len(wide) - 1)
    begin = [gap * n + sum(wide[:n]) for n in range(len(wide))]
    edges = np.cumsum(
        [0.0, *(0.07 + 0.115 * len(line[1].splitlines()) for line in lines)]
    )  # inches from the top
    figure = _figure(0.85 + edges[-1])
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH - 0.2), ylim=(edges[-1], 0))
    for top, bottom, line, entry in zip(edges, edges[1:], lines, [None, *shown], strict=False):
        raw = entry is not None and entry["stabilizer"] == "none"
        if raw:
            axes.axhspan(top, bottom, color=SHADE, zorder=0)
        for n, cell in enumerate(line):
            name = COLUMNS[n] == "stabilizer"
            text = axes.text(
                begin[n] + (0 if name else wide[n]),
                (top + bottom) / 2,
                cell,
                fontsize=SIZE,
                va="center",
            )
            text.set(
                ha="left" if name else "right", in_layout=False, color=VERMILION if raw else "black"
            )
            text.set(fontweight="bold" if entry is None else "normal")
    ranked = sum(entry["rank"] is not None for entry in shown)
    for row, width in ((1, 1.0), (len(lines), 1.0), (1 + ranked, 0.5)):
        axes.axhline(edges[row], color="black", linewidth=width, clip_on=False)
    unranked = "; below the thin line: not ranked" if 0 < ranked < len(shown) else ""
    below = [f"GVA: lower is steadier, ± 95 % interval over seeds{unranked}"]
    if len(shown) < len(found):
        below.insert(0, f"... and {len(found) - len(shown)} more")
    below += [
        line
        for said in leaderboard["run"]["tasks"][task]["warnings"]
        for line in textwrap.wrap(f"Warning: {said}", 110)
    ]
    figure.supxlabel("\n".join(below), fontsize=SIZE)
    _title(figure, leaderboard["run"]["smoke"], title(leaderboard, task) if found else task)
    return figure


def matrix(leaderboard: dict[str, Any]) -> Figure:
    """Draw GVA and return of every stabilizer (down) on every task (across); the colour is GVA, a star means not ranked.

    A cell without figures is grey. Of many stabilizers or tasks the first ``CROSSED`` are shown.
    """
    order = list(dict.fromkeys(leaderboard["run"]["settings"]["stabilizers"]))
    strings, tasks = order[: CROSSED[0]], list(leaderboard["run"]["tasks"])[: CROSSED[1]]
    at = {(entry["stabilizer"], entry["task"]): entry for entry in leaderboard["entries"]}
    values = np.array(
        [[math.nan if (e := at[s, t])["gva"] is None else e["gva"] for t in tasks] for s in strings]
    )
    labels = [_name(string, 28, most=3) for string in strings]
    lines = max((len(label.splitlines()) for label in labels), default=1)
    narrow = len(tasks) > 5
    between = "\n" if narrow else "   "
    figure = _figure(
        max(2.1, 1.15 + len(strings) * max(0.1 + 0.12 * lines, 0.32 if narrow else 0.22))
    )
    axes = figure.subplots()
    # What is not ranked may be far off: it does not stretch the scale.
    high = max(
        (e["gva"] for e in at.values() if e["rank"] is not None and e["gva"] is not None),
        default=0.0,
    )
    cells = axes.pcolormesh(
        values, cmap="cividis", vmin=0, vmax=max(high, 1e-3), edgecolors="white", linewidth=0.8
    )
    axes.set_facecolor("#d9d9d9")
    axes.invert_yaxis()
    for y, string in enumerate(strings):
        for x, task in enumerate(tasks):
            entry = at[string, task]
            said, colour = "–", "black"
            if entry["gva"] is not None:
                star = "*" if entry["rank"] is None else ""
                said = f"{entry['gva']:.3f}{between}{entry['return']:.2f}{star}"
                colour = _contrast(cells.cmap(cells.norm(entry["gva"])))
            axes.text(
                x + 0.5,
                y + 0.5,
                said,
                color=colour,
                fontsize=SIZE - narrow,
                ha="center",
                va="center",
            )
    axes.set_yticks(np.arange(len(strings)) + 0.5, labels, fontsize=SIZE)
    learned = [leaderboard["run"]["tasks"][task]["learned"] is not False for task in tasks]
    heads = [
        task if fine else f"{task}\n(not learned)"
        for task, fine in zip(tasks, learned, strict=True)
    ]
    turned = max(map(len, tasks)) * len(tasks) > 75
    axes.set_xticks(
        np.arange(len(tasks)) + 0.5,
        heads,
        fontsize=SIZE,
        rotation=40 * turned,
        ha="left" if turned else "center",
    )
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=axes, extend="max", extendfrac=0.03, pad=0.01, aspect=30)
    bar.set_label("GVA (lower is steadier)", fontsize=SIZE)
    bar.ax.tick_params(labelsize=SIZE - 1, length=2)
    below = "GVA and return (random 0, expert 1); *: not ranked; –: no figures"
    hidden = (
        (len(order) - len(strings), "stabilizers"),
        (len(leaderboard["run"]["tasks"]) - len(tasks), "tasks"),
    )
    below += "".join(f"; {count} more {what} not shown" for count, what in hidden if count)
    figure.supxlabel(below, fontsize=SIZE)
    _title(figure, leaderboard["run"]["smoke"], "GVA and return of every stabilizer on every task")
    return figure


def _contrast(colour: Sequence[float] | np.ndarray) -> str:
    """Return black or white, whichever stands out more (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if np.dot((0.2126, 0.7152, 0.0722), linear) > 0.179 else "white"


def _chosen(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Return ``none`` and up to five more entries, in the order of the leaderboard.

    Ranked ones come before others, and the best of each method before its other settings.
    """
    found = [entry for entry in entries(leaderboard, task) if entry["gva"] is not None]
    found.sort(key=lambda entry: entry["stabilizer"] != "none")
    seen = Counter[str]()
    order = []
    for place, entry in enumerate(found):
        order.append((place > 0, entry["rank"] is None, seen[entry["method"]] > 0, place))
        seen[entry["method"]] += 1
    return [found[place] for place in sorted(place for *_, place in sorted(order)[:CHOSEN])]


def draw_averages(chosen: dict[str, Any], leaderboard: dict[str, Any]) -> dict[str, Figure]:
    """Return ``<task>-averages`` of every task: GVA and return of averages read off afterwards, against the half-life."""
    tasks = dict.fromkeys(entry["task"] for entry in chosen["entries"])
    return {f"{task}-averages": averages(chosen, leaderboard, task) for task in tasks}


def averages(chosen: dict[str, Any], leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA and return against the effective half-life at the end of training, a line a kind of average.

    Bars are 95 % intervals; hollow squares the same averages as they rode online; the grey line is ``none``.
    """
    figure = _figure(2.9)
    panels = figure.subplots(1, 2)
    found = [entry for entry in chosen["entries"] if entry["task"] == task]
    families: dict[str, list[dict[str, Any]]] = {}
    for entry in found:  # lr_decay+ema:half_life=300 belongs to lr_decay+ema
        families.setdefault(re.sub(r":[^+]*", "", entry["stabilizer"]), []).append(entry)
    base = next((e for e in entries(leaderboard, task) if e["stabilizer"] == "none"), None)
    for axes, key, name in zip(
        panels,
        ("gva", "return"),
        ("GVA (lower is steadier)", "return (random 0, expert 1)"),
        strict=True,
    ):
        _style(axes)
        if base is not None and base[key] is not None:
            axes.axhline(base[key], color=GREY, linewidth=1, label="none")
        for colour, marker, (family, points) in zip(
            COLOURS, MARKERS, families.items(), strict=False
        ):
            x, y = [p["half_life"][1] for p in points], [p[key] for p in points]
            axes.plot(
                x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=family
            )
            for p in points:
                if p[f"{key}_low"] is not None:
                    axes.plot(
                        [p["half_life"][1]] * 2,
                        [p[f"{key}_low"], p[f"{key}_high"]],
                        color=colour,
                        linewidth=0.8,
                    )
                if p["online_gva"] is not None:
                    value = p[f"online_{key}"]
                    axes.plot(
                        p["half_life"][1],
                        value,
                        "s",
                        color=colour,
                        markerfacecolor="none",
                        markersize=9,
                    )
        axes.set_title(name, fontsize=SIZE + 0.5)
        _half_life_axis(axes, [p["half_life"][1] for p in found])
    panels[0].set_ylim(
        bottom=-0.02 * panels[0].get_ylim()[1]
    )  # intervals may reach below 0, a GVA cannot
    panels[1].legend(fontsize=SIZE - 0.5, frameon=False)
    figure.supxlabel(
        "filled: read off afterwards, with 95 % interval; hollow square: the same average online",
        fontsize=SIZE,
    )
    _title(figure, leaderboard["run"]["smoke"], f"{task}: averages chosen after training")
    return figure


def _families(
    leaderboard: dict[str, Any], task: str
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return averages of one kind on one trajectory, by (raw string, name of the average), shortest half-life first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    order = {string: n for n, string in enumerate(leaderboard["run"]["settings"]["stabilizers"])}
    for entry in sorted(
        entries(leaderboard, task), key=lambda entry: order.get(entry["stabilizer"], 0)
    ):
        if entry["half_life"] and entry["gva"] is not None:
            raw, _, average = entry["stabilizer"].rpartition("+")
            found.setdefault((raw or "none", method(average)), []).append(entry)
    return {
        key: sorted(points, key=lambda entry: int(entry["half_life"][-1]))
        for key, points in found.items()
    }


def half_lives(
    leaderboard: dict[str, Any], task: str, families: dict[tuple[str, str], list[dict[str, Any]]]
) -> Figure:
    """Draw GVA and return against the effective half-life at the end of training, a line a trajectory and kind of average.

    A line begins at 1, with the raw iterates, of which the latest holds all the weight. A colour is a recipe, a style a
    method; entries that are not ranked are hollow.
    """
    at = {entry["stabilizer"]: entry for entry in entries(leaderboard, task)}
    labels = {key: "+".join(part for part in key if part != "none") for key in families}
    parts = {key: _apart(label) for key, label in labels.items()}
    recipes, kinds = (
        list(dict.fromkeys(part[which] for part in parts.values())) for which in (0, 1)
    )
    shown = {
        key: (COLOURS[recipes.index(recipe)], STYLES[kinds.index(kind)])
        for key, (recipe, kind) in parts.items()
        if recipe in recipes[: len(COLOURS)] and kind in kinds[: len(STYLES)]
    }
    width = max(len(line) for key in shown for line in _name(labels[key], 40).splitlines())
    columns = max(1, min(3, int(WIDTH / (CHARACTER * (width + 8)))))
    lines_high = -(-len(shown) // columns) * max(
        len(_name(labels[key], 40).splitlines()) for key in shown
    )
    figure = _figure(2.9 + 0.14 * lines_high)
    panels = figure.subplots(1, 2)
    for axes, key, name in zip(
        panels,
        ("gva", "return"),
        ("GVA (lower is steadier)", "return (random 0, expert 1)"),
        strict=True,
    ):
        _style(axes)
        ticks = [1]
        for family, (colour, style) in shown.items():
            points = families[family]
            begin = at.get(family[0])
            line = [] if begin is None or begin["gva"] is None else [(1, begin)]
            line += [(entry["half_life"][-1], entry) for entry in points]
            x, y = [life for life, _ in line], [entry[key] for _, entry in line]
            axes.plot(x, y, style, color=colour, linewidth=1.2, label=_name(labels[family], 40))
            for life, entry in line:
                face = colour if entry["rank"] is not None else "white"
                axes.plot(life, entry[key], "o", color=colour, markerfacecolor=face, markersize=4)
            ticks += x
        axes.set_title(name, fontsize=SIZE + 0.5)
        _half_life_axis(axes, ticks)
    panels[0].set_ylim(bottom=0)
    left_out = len(families) - len(shown)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        fontsize=SIZE - 0.5,
        frameon=False,
        title="at 1 the raw iterates; hollow: not ranked"
        + (f"; {left_out} more lines not shown" if left_out else ""),
        title_fontsize=SIZE,
    )
    _title(figure, leaderboard["run"]["smoke"], f"{task}: how long averages remember")
    return figure


def _apart(string: str) -> tuple[str, str]:
    """Return the settings of the recipe in a stabilizer string, and the rest of it."""
    parts = string.split("+")
    settings = [part for part in parts if part.startswith("recipe:")]
    return "+".join(settings), "+".join(part for part in parts if part not in settings)


def _half_life_axis(axes: Axes, lives: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("effective half-life at the end of training (updates)", fontsize=SIZE)
    ticks: list[int] = []
    for life in sorted(set(lives)):
        if not ticks or life > APART * ticks[-1]:
            ticks.append(life)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")


def _name(string: str, width: int, most: int = 8) -> str:
    """Return a stabilizer string in ``most`` lines of about ``width`` characters, its dollars no mathematics."""
    lines = re.findall(
        ".{1,48}", fold(string, width)
    )  # a name without punctuation leaves room for the axes, too
    return "\n".join([*lines[:most], *(["..."] if len(lines) > most else [])]).replace("$", r"\$")


def _status(entry: dict[str, Any]) -> str:
    return "" if entry["status"] == "sound" else f" ({entry['status']})"


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=SIZE - 0.5, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)


def _title(figure: Figure, smoke: bool, text: str) -> None:
    text = textwrap.fill(text, 84).replace("$", r"\$")
    figure.suptitle(f"{SMOKE}\n{text}" if smoke else text, fontsize=SIZE + 1.5, fontweight="bold")


def _dot(axes: Axes, y: float, entry: dict[str, Any], key: str, colour: str) -> None:
    axes.plot(entry[key], y, "o", color=colour, markersize=5.5)
    if entry[f"{key}_low"] is not None:
        axes.plot([entry[f"{key}_low"], entry[f"{key}_high"]], [y, y], color=colour, linewidth=1.4)
