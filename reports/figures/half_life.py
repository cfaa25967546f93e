"""GVA and return against the half-life of the average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stab.reports import table
from stab.reports.figures import style
from stab.reports.figures.style import CHARACTER, COLOURS, SIZE, STYLES, WIDTH
from stab.reports.results import Results
from stab.stabilizers.strings import method

NAME = "half_life"
CAPTION = "GVA and return against the half-life of the average"
APART = 1.8  # factor between ticks, so that their labels do not touch

Families = dict[tuple[str, str], list[dict[str, Any]]]


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure | None:
    """Draw GVA and return against the effective half-life at the end of training.

    One line per trajectory and kind of average; drawn if one of them has several lengths. A line
    begins at 1, with the raw iterates, of which the latest holds all the weight. A colour is a
    recipe, a style a method; entries that are not ranked are hollow.
    """
    families = _families(leaderboard, task)
    if all(len(points) == 1 for points in families.values()):
        return None
    at = {entry["stabilizer"]: entry for entry in table.entries(leaderboard, task)}
    names = {key: "+".join(part for part in key if part != "none") for key in families}
    labels = {key: style.name(string, 40) for key, string in names.items()}
    looks = _looks(names)
    lines = [line for key in looks for line in labels[key].splitlines()]
    columns = max(1, min(3, int(WIDTH / (CHARACTER * (max(map(len, lines)) + 8)))))
    high = -(-len(looks) // columns) * max(len(labels[key].splitlines()) for key in looks)
    figure = style.figure(2.9 + 0.14 * high)
    for axes, key in panels(figure):
        ticks = [1]
        for family, (colour, dashes) in looks.items():
            begin = at.get(family[0])
            line = [] if begin is None or begin["gva"] is None else [(1, begin)]
            line += [(entry["half_life"][-1], entry) for entry in families[family]]
            x, y = [life for life, _ in line], [entry[key] for _, entry in line]
            axes.plot(x, y, dashes, color=colour, linewidth=1.2, label=labels[family])
            for life, entry in line:
                face = colour if entry["rank"] is not None else "white"
                axes.plot(life, entry[key], "o", color=colour, markerfacecolor=face, markersize=4)
            ticks += x
        set_ticks(axes, ticks)
    figure.axes[0].set_ylim(bottom=0)
    hidden = len(families) - len(looks)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        ncols=columns,
        **style.LEGEND,
        title="at 1 the raw iterates; hollow: not ranked"
        + (f"; {hidden} more lines not shown" if hidden else ""),
        title_fontsize=SIZE,
    )
    style.titles(figure, leaderboard["run"]["smoke"], f"{task}: how long averages remember")
    return figure


def _families(leaderboard: dict[str, Any], task: str) -> Families:
    """Return averages of one kind on one trajectory, shortest half-life first.

    By (string of the trajectory, name of the average).
    """
    families: Families = {}
    order = {string: n for n, string in enumerate(leaderboard["run"]["settings"]["stabilizers"])}
    entries = style.scored(leaderboard, task)
    for entry in sorted(entries, key=lambda entry: order.get(entry["stabilizer"], 0)):
        if entry["half_life"]:
            raw, _, average = entry["stabilizer"].rpartition("+")
            families.setdefault((raw or "none", method(average)), []).append(entry)
    for points in families.values():
        points.sort(key=lambda entry: int(entry["half_life"][-1]))
    return families


def _looks(names: dict[tuple[str, str], str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the colour of each line's recipe and the style of its method, as far as they go."""
    looks = {}
    recipes: dict[str, int] = {}
    methods: dict[str, int] = {}
    for key, name in names.items():
        parts = name.split("+")
        settings = [part for part in parts if part.startswith("recipe:")]
        others = "+".join(part for part in parts if part not in settings)
        colour = recipes.setdefault("+".join(settings), len(recipes))
        dashes = methods.setdefault(others, len(methods))
        if colour < len(COLOURS) and dashes < len(STYLES):
            looks[key] = (COLOURS[colour], STYLES[dashes])
    return looks


def panels(figure: Figure) -> Iterator[tuple[Axes, str]]:
    """Yield axes for GVA and for the return, and the key of an entry that each shows."""
    names = {"gva": style.GVA, "return": style.RETURN}
    for axes, key in zip(figure.subplots(1, 2), names, strict=True):
        style.plain(axes)
        axes.set_title(names[key], fontsize=SIZE + 0.5)
        yield axes, key


def set_ticks(axes: Axes, lives: Sequence[int]) -> None:
    """Give axes a logarithmic scale of half-lives, with ticks at those that leave room."""
    axes.set_xscale("log")
    axes.set_xlabel("effective half-life at the end of training (updates)", fontsize=SIZE)
    ticks: list[int] = []
    for life in sorted(set(lives)):
        if not ticks or life > APART * ticks[-1]:
            ticks.append(life)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
