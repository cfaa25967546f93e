"""GVA and return of every stabilizer on every task: the one figure of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stab.reports.figures import style
from stab.reports.figures.style import SIZE

NAME = "matrix"
CAPTION = "GVA and return of every stabilizer on every task"
MOST = (24, 12)  # stabilizers and tasks


def draw(leaderboard: dict[str, Any]) -> Figure:
    """Draw GVA and return of every stabilizer (down) on every task (across).

    The colour is GVA, a star means not ranked, grey that there is no score. Of many stabilizers or
    tasks the first ``MOST`` are shown.
    """
    run = leaderboard["run"]
    order = list(dict.fromkeys(run["settings"]["stabilizers"]))
    strings, tasks = order[: MOST[0]], list(run["tasks"])[: MOST[1]]
    at = {(entry["stabilizer"], entry["task"]): entry for entry in leaderboard["entries"]}
    scores = [[at[string, task]["gva"] for task in tasks] for string in strings]
    labels = [style.name(string, 28, most=3) for string in strings]
    lines = max((len(label.splitlines()) for label in labels), default=1)
    narrow = len(tasks) > 5
    row = max(0.1 + 0.12 * lines, 0.32 if narrow else 0.22)
    figure = style.figure(max(2.1, 1.15 + len(strings) * row))
    axes = figure.subplots()
    # What is not ranked may be far off: it does not stretch the scale.
    ranked = [e["gva"] for e in at.values() if e["rank"] is not None and e["gva"] is not None]
    cells = axes.pcolormesh(
        np.array(scores, dtype=float),
        cmap="cividis",
        vmin=0,
        vmax=max(*ranked, 1e-3) if ranked else 1e-3,
        edgecolors="white",
        linewidth=0.8,
    )
    axes.set_facecolor("#d9d9d9")
    axes.invert_yaxis()
    for y, string in enumerate(strings):
        for x, task in enumerate(tasks):
            entry = at[string, task]
            text, colour = "–", "black"
            if entry["gva"] is not None:
                star = "*" if entry["rank"] is None else ""
                between = "\n" if narrow else "   "
                text = f"{entry['gva']:.3f}{between}{entry['return']:.2f}{star}"
                colour = contrast(cells.cmap(cells.norm(entry["gva"])))
            cell = axes.text(x + 0.5, y + 0.5, text, color=colour, ha="center", va="center")
            cell.set_fontsize(SIZE - narrow)
    axes.set_yticks(np.arange(len(strings)) + 0.5, labels, fontsize=SIZE)
    unlearned = {task: run["tasks"][task]["learned"] is False for task in tasks}
    heads = [f"{task}\n(not learned)" if unlearned[task] else task for task in tasks]
    turned = max(map(len, tasks)) * len(tasks) > 75
    axes.set_xticks(np.arange(len(tasks)) + 0.5, heads, fontsize=SIZE, rotation=40 * turned)
    for head in axes.get_xticklabels():
        head.set_horizontalalignment("left" if turned else "center")
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    style.colourbar(figure, cells, axes, style.GVA, extend="max")
    below = "GVA and return (random 0, expert 1); *: not ranked; –: no figures"
    hidden = {"stabilizers": len(order) - len(strings), "tasks": len(run["tasks"]) - len(tasks)}
    below += "".join(f"; {n} more {what} not shown" for what, n in hidden.items() if n)
    style.titles(figure, run["smoke"], CAPTION, below)
    return figure


def contrast(colour: Sequence[float] | np.ndarray) -> str:
    """Return black or white, whichever stands out more (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if np.dot((0.2126, 0.7152, 0.0722), linear) > 0.179 else "white"
