"""The return of every checkpoint from every start."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from stab.reports.figures import style
from stab.reports.figures.style import SIZE
from stab.reports.results import Results

NAME = "heat"
CAPTION = "Return of every checkpoint from every start"


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure:
    """Draw the return of every checkpoint (across) from every start (down, seed by seed).

    One panel per chosen entry. White lines divide seeds, and the window from the checkpoints
    before; all panels have one scale of colours, 0 to 1.
    """
    chosen = style.chosen(leaderboard, task)
    shown = [entry for entry in chosen if (task, entry["stabilizer"]) in results.series]
    columns = min(3, len(shown))
    figure = style.figure(0.75 + 1.75 * math.ceil(len(shown) / columns))
    grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for place, (axes, entry) in enumerate(zip(grid.flat, shown, strict=False)):
        series = results.series[task, entry["stabilizer"]]
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
        axes.set_xticks(ticks, [str(series.updates[k]) if lowest else "" for k in ticks])
        axes.set_yticks([])
        if place % columns == 0:
            every = math.ceil(seeds / 8)
            middles = [seed * starts + (starts - 1) / 2 for seed in range(0, seeds, every)]
            axes.set_yticks(middles, [f"seed {seed}" for seed in series.seeds[::every]])
        score = f"GVA {entry['gva']:.3f}{style.status(entry)}"
        axes.set_title(f"{style.name(entry['stabilizer'], 30, most=3)}\n{score}", fontsize=SIZE)
    style.colourbar(figure, image, grid, "return", extend="both")
    below = (
        "across: updates, right of the upright line scored; down: starts; "
        "return: random 0, expert 1"
    )
    text = f"{task}: return of every checkpoint from every start"
    style.titles(figure, leaderboard["run"]["smoke"], text, below)
    return figure
