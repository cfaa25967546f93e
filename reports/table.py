"""The leaderboard of every task as sheets, for the terminal and Markdown; and as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stab import gva
from stab.reports import clean, sweep
from stab.reports.columns import COLUMNS, EMPTY, shown
from stab.reports.sheets import Sheet, csv_text, readable

SMOKE = "SMOKE RUN: numbers are not meaningful"
DEFAULT_SOURCE = "measured with the shipped expert"
OVERVIEW = (
    "*: not ranked (unsound or static).",
    "amplification: the relative swing of the raw policy's return over that of its validation loss;"
    " worker min: minutes of training and rollouts, summed over the workers.",
)
STATUS = {
    "static": "its read-out does not change in the window, so there is nothing to score.",
    "unsound": f"its return is shown to be below none's, and may be more than {gva.MARGIN} below.",
}
NAMED = 6  # entries that a sentence names
HEAD = 24  # characters of the name of a metric: a task may call it anything


def sheets(
    leaderboard: dict[str, Any], by: Sequence[str] | None = None, place: str = "terminal"
) -> list[Sheet]:
    """Return the leaderboard of every task; of several tasks an overview comes first.

    ``by``: what to group entries by; None for method, if a method has several settings. ``place``
    decides the columns: those of the "terminal", which has 80, or of the "page".
    """
    tasks = list(leaderboard["run"]["tasks"])
    if len(tasks) == 1:
        return task_sheets(leaderboard, tasks[0], by, place)
    every = [
        sheet for task in tasks for sheet in task_sheets(leaderboard, task, by, place, brief=True)
    ]
    return [overview(leaderboard), *every]


def task_sheets(
    leaderboard: dict[str, Any],
    task: str,
    by: Sequence[str] | None = None,
    place: str = "terminal",
    brief: bool = False,
) -> list[Sheet]:
    """Return the sheets of a task: its leaderboard, its metrics, and what tuning gives.

    ``brief`` leaves out the notes that are the same for every task.
    """
    parts = [table(leaderboard, task, place, brief), metrics(leaderboard, task)]
    by = sweep.keys(leaderboard["entries"], by)
    if by and (groups := sweep.groups(leaderboard, task, by)):
        parts.append(sweep.sheet(groups, by, f"{task}, tuned"))
    return [sheet for sheet in parts if sheet.lines]


def table(
    leaderboard: dict[str, Any], task: str, place: str = "terminal", brief: bool = False
) -> Sheet:
    """Return the leaderboard of a task."""
    own, columns = entries(leaderboard, task), shown(place)
    about = leaderboard["run"]["tasks"][task]
    train = leaderboard["run"]["settings"]["train"]
    return Sheet(
        title(leaderboard, task),
        [column.heading for column in columns],
        [[column.show(entry, train) for column in columns] for entry in own],
        about["verdict"] or "",
        task_notes(leaderboard, task) + ([] if brief else column_notes(leaderboard, task)),
        about["warnings"],
        SMOKE if leaderboard["run"]["smoke"] else "",
        above=sum(entry["rank"] is not None for entry in own),
    )


def overview(leaderboard: dict[str, Any]) -> Sheet:
    """Return the matrix of tasks and stabilizers; without lines if only some entries are shown.

    A cell is GVA and return, with a star if the entry is not ranked. The last two lines are the
    amplification of the raw iterates and the minutes that the workers spent.
    """
    run = leaderboard["run"]
    notes = column_notes(leaderboard)
    if "shown" in run:
        return Sheet("", (), (), notes=notes)
    at = {(entry["task"], entry["stabilizer"]): entry for entry in leaderboard["entries"]}
    present = {entry["stabilizer"] for entry in leaderboard["entries"]}
    strings = [string for string in run["settings"]["stabilizers"] if string in present]
    lines = [
        [string, *(_pair(at.get((task, string))) for task in run["tasks"])] for string in strings
    ]
    raw = [at.get((task, "none"), {}).get("amplification") for task in run["tasks"]]
    lines.append(["amplification", *(_number(value, 1) for value in raw)])
    minutes = [(about.get("worker_seconds") or math.nan) / 60 for about in run["tasks"].values()]
    lines.append(["worker min", *(_number(value, 1 if value < 10 else 0) for value in minutes)])
    headings = ["stabilizer", *run["tasks"]]
    return Sheet("GVA and return", headings, lines, notes=notes, above=len(strings))


def _pair(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["gva"] is None:
        return EMPTY
    return f"{entry['gva']:.3f} {entry['return']:.2f}{'' if entry['rank'] else '*'}"


def _number(value: float | None, digits: int) -> str:
    return EMPTY if value is None or math.isnan(value) else f"{value:.{digits}f}"


def metrics(leaderboard: dict[str, Any], task: str) -> Sheet:
    """Return what a task measures beside the score; without lines if it measures nothing."""
    own = [entry for entry in entries(leaderboard, task) if entry["measures"]]
    meanings = leaderboard["run"]["tasks"][task].get("metrics") or {}
    known = {name: None for entry in own for name in entry["measures"]}
    names = [name for name in meanings if name in known]
    names += sorted(known.keys() - meanings.keys())
    return Sheet(
        f"{task}, beside the score",
        ["stabilizer", *(readable(name)[:HEAD] for name in names)],
        [[e["stabilizer"], *(_metric(e["measures"].get(name)) for name in names)] for e in own],
        notes=[clean.message(f"{name}: {meanings[name]}") for name in names if name in meanings],
        level=3,
    )


def _metric(value: float | None) -> str:
    if value is None:
        return EMPTY
    for limit, digits in ((9.9995, 3), (99.95, 1), (1e6, 0)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.3g}"


def to_csv(leaderboard: dict[str, Any]) -> str:
    """Return the leaderboard as CSV: the scalar columns of each entry, its settings and metrics."""
    records = leaderboard["entries"]
    columns = [column.key for column in COLUMNS if column.scalar]
    settings = dict.fromkeys(name for entry in records for name in entry["settings"])
    named = [
        {readable(name): value for name, value in (entry["measures"] or {}).items()}
        for entry in records
    ]
    # A metric of the name of another column stands in the JSON alone.
    taken = {column.key for column in COLUMNS} | settings.keys()
    extra = dict.fromkeys(name for one in named for name in one if name not in taken)
    lines = [one | entry | entry["settings"] for one, entry in zip(named, records, strict=True)]
    return csv_text([*columns, *settings, *extra], lines)


def entries(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Return the entries of one task, in the order of the leaderboard."""
    return [entry for entry in leaderboard["entries"] if entry["task"] == task]


def title(leaderboard: dict[str, Any], task: str) -> str:
    """Return what was compared: task, environment, seeds x checkpoints x starts."""
    entry = entries(leaderboard, task)[0]
    environment = leaderboard["run"]["tasks"][task].get("environment")
    dataset = leaderboard["run"]["settings"]["data"]["dataset"]
    where = ", ".join(filter(None, (environment, dataset)))
    seeds = {e["seeds"] for e in entries(leaderboard, task) if e["gva"] is not None}
    most = max(seeds, default=entry["seeds"])
    counts = [(most, "seed"), *((entry[f"{word}s"], word) for word in ("checkpoint", "start"))]
    size = " x ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)
    if len(seeds) > 1:
        size = f"{min(seeds)} to {size}"
    return clean.message(f"{task}{f' ({where})' if where else ''}: {size}")


def task_notes(leaderboard: dict[str, Any], task: str) -> list[str]:
    """Return what is to be said of one task beside warnings: what failed and why."""
    run, own = leaderboard["run"], entries(leaderboard, task)
    about, train = run["tasks"][task], run["settings"]["train"]
    lines = [run["shown"]] if "shown" in run else []
    recipes = [
        atom for e in own for atom in e["stabilizer"].split("+") if atom.startswith("recipe:")
    ]
    varied = [
        name for name in train if any(f":{name}=" in one or f",{name}=" in one for one in recipes)
    ]
    if varied:
        values = ", ".join(f"{name} is {train[name]}" for name in varied)
        lines.append(f"If recipe: does not say otherwise, {values}.")
    lines += [
        clean.message(f"{e['stabilizer']} ({e['status']}): {e['reason']}")
        for e in own
        if e["reason"]
    ]
    source = about.get("references_source")
    if source and source != DEFAULT_SOURCE:
        low, high = about["references"]["random"][-1], about["references"]["expert"][-1]
        lines.append(
            f"Returns of {low:.4g} (random) and {high:.4g} (expert) count as 0 and 1; {source}."
        )
    open_ = [e for e in own if e["rank"] is not None and e["return_holds"] is False]
    if open_:
        names = [f"{e['stabilizer']} {e['return_difference_low']:+.2f}" for e in open_[:NAMED]]
        more = f" and {len(open_) - NAMED} more" * (len(open_) > NAMED)
        lines.append(
            "Return not shown to hold against none, with its lower 95 % bound:"
            f" {', '.join(names)}{more}."
        )
    if about["more_seeds"]:
        lines.append(about["more_seeds"])
    looks = [*run["settings"]["looks"], run["settings"]["seeds"]]
    if len(looks) > 1:
        at = f"{', '.join(map(str, looks[:-1]))} and {looks[-1]}"
        lines.append(f"Tested at {at} seeds at most: p-values are multiplied by {len(looks)}.")
    decided: dict[int, list[str]] = {}
    for e in own:
        if e["gva"] is not None:
            decided.setdefault(e["seeds"], []).append(e["stabilizer"])
    if len(decided) > 1:
        counts = "; ".join(f"{n} {', '.join(names)}" for n, names in sorted(decided.items()))
        lines.append(f"Seeds: {counts}.")
    return lines


def column_notes(leaderboard: dict[str, Any], task: str | None = None) -> list[str]:
    """Return how to read the columns, for one task or for all."""
    own = [e for e in leaderboard["entries"] if task in (None, e["task"])]
    lines = [] if task else list(OVERVIEW)
    lines.append(
        "GVA: the standard deviation, between two checkpoints, of the return that the policy is"
        " worth (random policy 0, expert 1), without the noise of single episodes; lower is"
        " steadier; behind it its 95 % interval."
    )
    if any(e["against_none"] for e in own):
        lines.append(
            "vs none: Dunnett's test of all entries against none, seeds as blocks; on a task the"
            " chance of any false finding is about 5 % at most."
        )
    present = {e["status"] for e in own}
    lines += [f"{status}: {meaning}" for status, meaning in STATUS.items() if status in present]
    lives = dict.fromkeys(
        f"{e['stabilizer'].rpartition('+')[2]} {' to '.join(map(str, e['half_life']))}"
        for e in own
        if e["half_life"]
    )
    if lives:
        window = "from the window's start to its end"
        lines.append(f"Effective half-life in updates, {window}: {', '.join(lives)}.")
    lines += dict.fromkeys(
        clean.message(f"{e['stabilizer']}: {note}.") for e in own for note in e["notes"] or []
    )
    return [*lines, f"{leaderboard['run']['budget']} Seconds are those of training."]
