"""Return and loss against updates: entries with a recipe of their own."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from stab.reports.figures import curves
from stab.reports.results import Results

NAME = "recipes"
CAPTION = "Return and validation loss of the same checkpoints: entries with a recipe of their own"


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure | None:
    """Draw the entries whose recipe differs from that of ``none``, if there are any."""
    base = results.series[task, "none"]
    own = [one for one in curves.others(results, task) if one.recipe != base.recipe]
    return curves.rows(results, task, curves.steadiest(own), len(own)) if own else None
