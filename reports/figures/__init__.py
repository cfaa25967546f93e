"""The figures of a run: one module per figure, with NAME, CAPTION and draw.

They use Matplotlib without its global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from stab.reports.figures import (
    averages,
    curves,
    divergence,
    half_life,
    heat,
    horizons,
    leaderboard,
    matrix,
    recipes,
    scores,
    style,
    tradeoff,
)
from stab.reports.results import Results

# In the order of the report. A figure with nothing to show draws None.
FIGURES = [
    scores, tradeoff, curves, recipes, heat, divergence, horizons, half_life, leaderboard,
]  # fmt: skip
WITHOUT_NONE = [scores, leaderboard]  # those of a task whose raw iterates have not finished
CAPTIONS = {figure.NAME: figure.CAPTION for figure in [matrix, *FIGURES, averages]}


def draw(results: Results, leaderboard: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures of a run by ``<task>-<NAME>``; of several tasks also ``tasks-matrix``."""
    drawn = {}
    tasks = results.config.tasks if results.config.stabilizers else []
    for task in tasks:
        complete = any(e["stabilizer"] == "none" for e in style.scored(leaderboard, task))
        for figure in FIGURES if complete else WITHOUT_NONE:
            if (picture := figure.draw(results, leaderboard, task)) is not None:
                drawn[f"{task}-{figure.NAME}"] = picture
    if len(tasks) > 1:
        drawn[f"tasks-{matrix.NAME}"] = matrix.draw(leaderboard)
    return drawn


def draw_averages(content: dict[str, Any], leaderboard: dict[str, Any]) -> dict[str, Figure]:
    """Return ``<task>-averages`` of every task in the content of ``averages.json``."""
    tasks = dict.fromkeys(entry["task"] for entry in content["entries"])
    return {f"{task}-{averages.NAME}": averages.draw(content, leaderboard, task) for task in tasks}


def save(drawn: dict[str, Figure], folder: Path) -> None:
    """Write each figure as PNG (150 dpi) and SVG; the same figure gives the same bytes."""
    with rc_context({"svg.hashsalt": "stab"}):
        for name, figure in drawn.items():
            style.settle(figure)
            figure.savefig(folder / f"{name}.png", dpi="figure")
            figure.savefig(folder / f"{name}.svg", dpi="figure", metadata={"Date": None})
