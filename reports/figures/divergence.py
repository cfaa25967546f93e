"""How long neighbouring checkpoints write the same text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stab.reports import texts
from stab.reports.figures import style
from stab.reports.figures.style import CHOSEN, MARKERS, NONE_FIRST, SIZE, STYLES
from stab.reports.results import Results

NAME = "divergence"
CAPTION = "How long neighbouring checkpoints write the same text"


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure | None:
    """Draw the share of pairs of neighbouring checkpoints that write the same first t tokens.

    A pair is of one seed and one start; bold lines are of all pairs and, if entries are few, thin
    ones of a seed. Pairs that are equal to their end count as the same at every t.
    """
    times = _times(results, leaderboard, task)
    if not times:
        return None
    figure = style.figure(3.2 + 0.14 * len(times))
    axes = figure.subplots()
    style.plain(axes)
    last = max(texts.longest(results.series[task, string]) for string in times)
    every = max(1, last // 8)
    # More lines could not be told apart.
    by_seed = len(times) <= 3 and all(len(seeds) > 1 for seeds in times.values())
    x = range(last + 1)
    for n, (string, seeds) in enumerate(times.items()):
        colour, dashes = NONE_FIRST[n], STYLES[n % len(STYLES)]
        for seed in seeds if by_seed else ():
            if not np.isnan(seed).all():
                share = texts.survival(seed, last)
                axes.step(x, share, where="post", color=colour, lw=0.5, alpha=0.35)
        share = texts.survival(seeds, last)
        (line,) = axes.step(x, share, dashes, where="post", color=colour, lw=1.4)
        line.set(marker=MARKERS[n], markersize=3.5, markevery=(n * every // len(times), every))
        line.set_label(f"{style.name(string, 48, most=2)}: {_summary(seeds)}")
    axes.set(ylim=(-0.02, 1.02), xlim=(0, max(1, 1.01 * last)))
    axes.set_xlabel("generated tokens", fontsize=SIZE)
    axes.set_ylabel("share of pairs still the same", fontsize=SIZE)
    key = figure.legend(
        **style.LEGEND,
        title="the first token that differs: median of all pairs, mean of those that differ"
        f"{'; thin: each seed' * by_seed}\na pair is of one seed and one start; "
        "texts that are equal to their end count as the same throughout",
        title_fontsize=SIZE - 0.5,
    )
    key.get_title().set_multialignment("center")
    text = f"{task}: how long neighbouring checkpoints write the same text"
    style.titles(figure, leaderboard["run"]["smoke"], text)
    return figure


def _times(results: Results, leaderboard: dict[str, Any], task: str) -> dict[str, np.ndarray]:
    """Return ``texts.times`` of ``none``, of an average of it and of other chosen entries."""
    average = texts.first_average(results, leaderboard, task)
    chosen = [entry["stabilizer"] for entry in style.chosen(leaderboard, task)]
    order = dict.fromkeys(["none", *([average] if average else []), *chosen])
    series = [results.series[task, string] for string in order if (task, string) in results.series]
    times = {one.stabilizer: texts.times(one) for one in series[:CHOSEN]}
    return {string: places for string, places in times.items() if not np.isnan(places).all()}


def _summary(times: np.ndarray) -> str:
    """Describe some ``texts.times``: median, mean of the finite ones, share of the others."""
    known = times[~np.isnan(times)]
    differ, middle = known[np.isfinite(known)], texts.middle(times)
    never = f"never {1 - len(differ) / len(known):.0%}"
    if not len(differ):
        return never
    median = "never" if math.isinf(middle) else int(middle)
    return f"median {median}, mean {differ.mean():.1f}, {never}"
