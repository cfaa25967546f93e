"""Return and loss against updates: the raw iterates, and all averages of them."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from stab.reports.figures import style
from stab.reports.figures.style import BLUE, GREY, SHADE, SIZE, VERMILION
from stab.reports.results import Results, Series

NAME = "curves"
CAPTION = (
    "Return and validation loss of the same checkpoints: the raw iterates and averages of them"
)
MOST = 16  # rows in one figure


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw ``none`` and every average of it."""
    base = results.series[task, "none"]
    averages = [one for one in others(results, task) if one.recipe == base.recipe]
    return rows(results, task, [base, *steadiest(averages)], 1 + len(averages))


def others(results: Results, task: str) -> list[Series]:
    """The finished entries of a task besides ``none``, in the order of the settings."""
    strings = [string for string in results.config.stabilizers if string != "none"]
    return [results.series[task, s] for s in strings if (task, s) in results.series]


def steadiest(series: list[Series]) -> list[Series]:
    """All of them or, of more than ``MOST``, those of lowest GVA, in their order."""
    scores = {one.stabilizer: one.score for one in series}
    best = sorted(scores, key=lambda string: scores[string])[:MOST]
    return [one for one in series if one.stabilizer in best]


def rows(results: Results, task: str, shown: list[Series], of: int) -> Figure:
    """Draw return (left) and validation loss (right) against updates, one row per entry.

    Thin lines are the seeds (means over starts), the bold one is their mean; ``none`` is grey
    behind, the window shaded. ``of`` is how many entries there are in all.
    """
    base = results.series[task, "none"]
    figure = style.figure(0.75 + 1.05 * len(shown))
    grid = figure.subplots(len(shown), 2, sharex=True, sharey="col", squeeze=False)
    for (left, right), series in zip(grid, shown, strict=True):
        for axes, behind, values in (
            (left, base.returns.mean(2), series.returns.mean(2)),
            (right, base.val_loss, series.val_loss),
        ):
            style.plain(axes)
            axes.axvspan(base.updates[base.window][0], base.updates[-1], color=SHADE, zorder=0)
            if series is not base:
                axes.plot(base.updates, behind.T, color=GREY, linewidth=0.7, alpha=0.7)
            colour = VERMILION if series is base else BLUE
            axes.plot(series.updates, values.T, color=colour, linewidth=0.8, alpha=0.8)
            (mean,) = axes.plot(series.updates, values.mean(0), color=colour, linewidth=1.5)
            mean.set(marker="o", markersize=2)
            axes.margins(x=0.02)
        label = f"{style.name(series.stabilizer, 16)}\nGVA {series.score:.3f}"
        left.set_ylabel(label, fontsize=SIZE, rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], (style.RETURN, "validation loss"), strict=True):
        axes.set_title(name, fontsize=SIZE + 0.5)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for axes in grid[-1]:
        axes.set_xlabel("updates", fontsize=SIZE)
    below = (
        "thin: each seed, mean over starts; bold: mean over seeds; grey: none; "
        "shaded: the window that is scored"
    )
    cut = f" (the {len(shown)} steadiest of {of})" if len(shown) < of else ""
    text = f"{task}: return and validation loss of the same checkpoints{cut}"
    style.titles(figure, results.config.smoke, text, below)
    return figure
