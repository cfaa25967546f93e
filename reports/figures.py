"""The figures of a task: reward and loss against updates, and the scores. Matplotlib without its global state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import gva
from stab.reports.statistics import Results, Series
from stab.reports.table import SMOKE, entries, fold
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
APART = 1.8  # factor between ticks, so that their labels do not touch
WIDTH = 7.0  # inches: two columns of a paper
SIZE = 7.5  # points


def draw(results: Results, leaderboard: dict[str, Any]) -> dict[str, Figure]:
    """Return every figure of a run by its name.

    ``<task>-curves``: the raw iterates of the base recipe and every average of them; ``<task>-recipes``: every entry with
    a recipe of its own (of more than ``MOST``, those of lowest GVA); ``<task>-scores``; and where averages of several
    lengths ride on one trajectory ``<task>-half_life``. A task whose raw iterates have not finished has scores alone.
    """
    drawn = {}
    for task in results.config.tasks:
        base = results.series.get((task, "none"))
        if base is not None:
            listed = [
                results.series[task, string]
                for string in results.config.stabilizers
                if string != "none" and (task, string) in results.series
            ]
            same = [s for s in listed if s.recipe == base.recipe]
            drawn[f"{task}-curves"] = curves(results, task, [base, *_steadiest(same)])
            if len(same) < len(listed):
                others = _steadiest([s for s in listed if s.recipe != base.recipe])
                drawn[f"{task}-recipes"] = curves(results, task, others)
            if len(families := _families(leaderboard, task)) < sum(map(len, families.values())):
                drawn[f"{task}-half_life"] = half_lives(leaderboard, task, families)
        drawn[f"{task}-scores"] = scores(leaderboard, task)
    return drawn


def _steadiest(found: list[Series]) -> list[Series]:
    """Return them all or, of more than ``MOST``, those of lowest GVA, in their order."""
    score = {one.stabilizer: np.mean([gva.gva(J) for J in one.returns[:, one.window]]) for one in found}
    kept = sorted(score, key=lambda string: score[string])[:MOST]
    return [one for one in found if one.stabilizer in kept]


def save(drawn: dict[str, Figure], folder: Path) -> None:
    """Write each figure as PNG (150 dpi) and SVG."""
    for name, figure in drawn.items():
        engine = figure.get_layout_engine()
        if engine is not None:  # once, and not for every file
            engine.execute(figure)
            figure.set_layout_engine("none")
        for kind in ("png", "svg"):
            figure.savefig(folder / f"{name}.{kind}", dpi="figure")


def curves(results: Results, task: str, rows: list[Series]) -> Figure:
    """Draw reward and validation loss against updates, one row a stabilizer.

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
            axes.plot(series.updates, values.mean(0), color=colour, linewidth=1.5, marker="o", markersize=2)
            axes.margins(x=0.02)
        label = f"{fold(series.stabilizer, 16)}\nGVA {score:.3f}"
        left.set_ylabel(label, fontsize=SIZE, rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], ("return (random 0, expert 1)", "validation loss"), strict=True):
        axes.set_title(name, fontsize=SIZE + 0.5)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for axes in grid[-1]:
        axes.set_xlabel("updates", fontsize=SIZE)
    legend = "thin: each seed, mean over starts; bold: mean over seeds; grey: none; shaded: the window that is scored"
    figure.supxlabel(legend, fontsize=SIZE)
    _title(figure, results.config.smoke, f"{task}: return and validation loss of the same checkpoints")
    return figure


def scores(leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw GVA and return of every entry, in the order of the leaderboard, unranked ones below a line.

    A filled dot is the mean over seeds with its 95 % interval, hollow ones are the seeds; the band around ``none`` is
    the noise floor.
    """
    found = entries(leaderboard, task)
    labels = [fold(e["stabilizer"], 24) + ("" if e["status"] == "sound" else f"\n({e['status']})") for e in found]
    edges = np.cumsum([0.0, *(0.12 + 0.12 * len(label.splitlines()) for label in labels)])  # inches from the top
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
        left.plot(per_seed, [y] * len(per_seed), "o", color=colour, markerfacecolor="white", markersize=3.5)
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
    _title(figure, leaderboard["run"]["smoke"], f"{task}: how much the return changes between checkpoints")
    return figure


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
        panels, ("gva", "return"), ("GVA (lower is steadier)", "return (random 0, expert 1)"), strict=True
    ):
        _style(axes)
        if base is not None and base[key] is not None:
            axes.axhline(base[key], color=GREY, linewidth=1, label="none")
        for colour, marker, (family, points) in zip(COLOURS, MARKERS, families.items(), strict=False):
            x, y = [p["half_life"][1] for p in points], [p[key] for p in points]
            axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=family)
            for p in points:
                if p[f"{key}_low"] is not None:
                    axes.plot([p["half_life"][1]] * 2, [p[f"{key}_low"], p[f"{key}_high"]], color=colour, linewidth=0.8)
                if p["online_gva"] is not None:
                    value = p[f"online_{key}"]
                    axes.plot(p["half_life"][1], value, "s", color=colour, markerfacecolor="none", markersize=9)
        axes.set_title(name, fontsize=SIZE + 0.5)
        _half_life_axis(axes, [p["half_life"][1] for p in found])
    panels[0].set_ylim(bottom=-0.02 * panels[0].get_ylim()[1])  # intervals may reach below 0, a GVA cannot
    panels[1].legend(fontsize=SIZE - 0.5, frameon=False)
    figure.supxlabel(
        "filled: read off afterwards, with 95 % interval; hollow square: the same average online", fontsize=SIZE
    )
    _title(figure, leaderboard["run"]["smoke"], f"{task}: averages chosen after training")
    return figure


def _families(leaderboard: dict[str, Any], task: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return averages of one kind on one trajectory, by (raw string, name of the average), shortest half-life first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    order = {string: n for n, string in enumerate(leaderboard["run"]["settings"]["stabilizers"])}
    for entry in sorted(entries(leaderboard, task), key=lambda entry: order.get(entry["stabilizer"], 0)):
        if entry["half_life"] and entry["gva"] is not None:
            raw, _, average = entry["stabilizer"].rpartition("+")
            found.setdefault((raw or "none", method(average)), []).append(entry)
    return {key: sorted(points, key=lambda entry: int(entry["half_life"][-1])) for key, points in found.items()}


def half_lives(leaderboard: dict[str, Any], task: str, families: dict[tuple[str, str], list[dict[str, Any]]]) -> Figure:
    """Draw GVA and return against the effective half-life at the end of training, a line a trajectory and kind of average.

    A line begins at 1, with the raw iterates, of which the latest holds all the weight. A colour is a recipe, a style a
    method; entries that are not ranked are hollow.
    """
    at = {entry["stabilizer"]: entry for entry in entries(leaderboard, task)}
    labels = {key: "+".join(part for part in key if part != "none") for key in families}
    recipes = list(dict.fromkeys(_recipe(label) for label in labels.values()))
    methods = list(dict.fromkeys(method(label) for label in labels.values()))
    figure = _figure(3.4)
    panels = figure.subplots(1, 2)
    for axes, key, name in zip(
        panels, ("gva", "return"), ("GVA (lower is steadier)", "return (random 0, expert 1)"), strict=True
    ):
        _style(axes)
        ticks = [1]
        for family, points in families.items():
            label = labels[family]
            if recipes.index(_recipe(label)) >= len(COLOURS):
                continue
            colour = COLOURS[recipes.index(_recipe(label))]
            begin = at.get(family[0])
            line = [] if begin is None or begin["gva"] is None else [(1, begin)]
            line += [(entry["half_life"][-1], entry) for entry in points]
            x, y = [life for life, _ in line], [entry[key] for _, entry in line]
            style = STYLES[methods.index(method(label)) % len(STYLES)]
            axes.plot(x, y, style, color=colour, linewidth=1.2, label=label)
            for life, entry in line:
                face = colour if entry["rank"] is not None else "white"
                axes.plot(life, entry[key], "o", color=colour, markerfacecolor=face, markersize=4)
            ticks += x
        axes.set_title(name, fontsize=SIZE + 0.5)
        _half_life_axis(axes, ticks)
    panels[0].set_ylim(bottom=0)
    left_out = len(recipes) - len(COLOURS)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=SIZE - 0.5,
        frameon=False,
        title="at 1 the raw iterates; hollow: not ranked"
        + (f"; {left_out} more recipes not shown" if left_out > 0 else ""),
        title_fontsize=SIZE,
    )
    _title(figure, leaderboard["run"]["smoke"], f"{task}: how long averages remember")
    return figure


def _recipe(string: str) -> str:
    """Return the settings of the recipe in front of a stabilizer string, or nothing."""
    return "+".join(part for part in string.split("+") if part.startswith("recipe:"))


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


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=SIZE - 0.5, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)


def _title(figure: Figure, smoke: bool, text: str) -> None:
    figure.suptitle(f"{SMOKE}\n{text}" if smoke else text, fontsize=SIZE + 1.5, fontweight="bold")


def _dot(axes: Axes, y: float, entry: dict[str, Any], key: str, colour: str) -> None:
    axes.plot(entry[key], y, "o", color=colour, markersize=5.5)
    if entry[f"{key}_low"] is not None:
        axes.plot([entry[f"{key}_low"], entry[f"{key}_high"]], [y, y], color=colour, linewidth=1.4)
