"""Several run folders on one leaderboard, each entry with its origin; what changed between two."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stab import gva
from stab.config import flat
from stab.registry import StabError
from stab.reports import clean, inference, sweep
from stab.reports.columns import COLUMNS, EMPTY, SCHEMA, Column, shown
from stab.reports.leaderboard import leaderboard, plain
from stab.reports.results import Results, Series
from stab.reports.results import read as read_run
from stab.reports.sheets import Sheet, csv_text

RUN = Column("run", "The letter of the run.", {"type": "string"}, heading="run")
CHANGES = ("stabilizer", "GVA before", "after", "difference, 95 %", "p", "return")
# What must be the same for entries of one task to stand on one leaderboard, and what it is called.
SAME = {
    "environment": "environments",
    "task_version": "versions of the task",
    "expert_sha256": "experts",
    "horizons": "horizons",
    "starts": "starts",
}
# Relative: reference returns measured on another machine differ in their last bits.
CLOSE = 1e-6
NAMED = 8  # entries that a sentence names
LIBRARIES = ("mujoco", "gymnasium")  # whose versions are the environment's


@dataclass(frozen=True)
class Origin:
    """A run among others: the letter it is called by, where it lies, and what is in it."""

    label: str
    run: Path
    results: Results
    leaderboard: dict[str, Any]


def read(runs: Sequence[Path]) -> list[Origin]:
    """Read run folders, which may come from other machines; nothing is written into them.

    Raises StabError for a folder that is not a run or is named twice, for more than 26, and if runs
    cannot be mixed: environments or their versions, experts, horizons or starts differ, or only
    some are smoke runs.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise StabError("the same run folder is named twice")
    if len(runs) > len(string.ascii_uppercase):
        raise StabError(f"{len(runs)} run folders: expected at most {len(string.ascii_uppercase)}")
    origins = []
    for label, run in zip(string.ascii_uppercase, runs, strict=False):
        results = read_run(run)
        origins.append(Origin(label, run, results, leaderboard(results)))
    smoke = [origin.run for origin in origins if origin.results.config.smoke]
    if smoke and len(smoke) < len(origins):
        raise StabError(
            f"cannot mix runs: {smoke[0]} is a smoke run (--quick), whose numbers are not"
            " meaningful"
        )
    for one, other in itertools.combinations(origins, 2):
        _check(one, other)
    return origins


def _check(one: Origin, other: Origin) -> None:
    mixing = f"cannot mix {one.run} and {other.run}"
    for task in _shared(one, other):
        cells = [
            cell
            for origin in (one, other)
            for (name, _), series in origin.results.series.items()
            if name == task
            for cell in series.cells
        ]
        for key, name in SAME.items():
            values = dict.fromkeys(str(cell.get(key)) for cell in cells)
            if len(values) > 1:
                both = " and ".join(map(_short, values))
                raise StabError(f"{mixing}: {task} has other {name} ({both})")
        for library in _libraries(cells):
            versions = dict.fromkeys(cell["versions"].get(library) for cell in cells)
            versions.pop(None, None)
            if len(versions) > 1:
                raise StabError(f"{mixing}: {task} ran on {library} {' and '.join(versions)}")
        for which in ("random", "expert"):
            returns = np.array([cell["references"][which] for cell in cells]).reshape(
                len(cells), -1
            )
            apart = [np.ptp(column) > CLOSE * np.abs(column).max() for column in returns.T if cells]
            if any(apart):
                at = apart.index(True)
                low, high = returns[:, at].min(), returns[:, at].max()
                raise StabError(
                    f"{mixing}: the {which}'s reference return on {task} over"
                    f" {cells[0]['horizons'][at]} steps is {low:.6g} and {high:.6g}"
                )


def _libraries(cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return the libraries whose versions are those of the cells' environment."""
    import gymnasium as gym

    try:
        entry_point = str(gym.spec(cells[0]["environment"]).entry_point)
        return LIBRARIES if "mujoco" in entry_point else LIBRARIES[1:]
    except (gym.error.Error, IndexError):  # of a plug-in that is not here, or nothing has finished
        return LIBRARIES


def _shared(one: Origin, other: Origin) -> list[str]:
    return [task for task in one.results.config.tasks if task in other.results.config.tasks]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def merge(origins: Sequence[Origin], conditions: Sequence[str] = ()) -> dict[str, Any]:
    """Return one leaderboard of all runs, and what changed between two.

    Keys: schema, protocol, runs, warnings, entries, and for two runs changes.
    Entries have the keys of ``leaderboard.json`` and ``run``, the letter of their origin. Ranks are
    over all runs. Status, improvement and p-value are against the ``none`` of the entry's own run;
    the ranks that the seeds leave open are left out. ``conditions`` filter as ``sweep.select``.
    """
    tasks = list(dict.fromkeys(task for origin in origins for task in origin.results.config.tasks))
    entries: list[dict[str, Any]] = []
    for task in tasks:
        own = [
            entry | {"run": origin.label, "rank_low": None, "rank_high": None}
            for origin in origins
            for entry in origin.leaderboard["entries"]
            if entry["task"] == task
        ]
        ranked = sorted((e for e in own if e["rank"] is not None), key=lambda e: float(e["gva"]))
        for rank, entry in enumerate(ranked, 1):
            entry["rank"] = rank
        entries += ranked + [e for e in own if e["rank"] is None]
    if conditions:
        entries = sweep.matching(entries, conditions)
    kept = {(entry["task"], entry["stabilizer"]) for entry in entries}
    merged = {
        "schema": SCHEMA,
        "protocol": gva.PROTOCOL,
        "runs": {origin.label: _about(origin) for origin in origins},
        "warnings": _warnings(origins),
        "entries": entries,
    }
    return merged | (
        {"changes": changes(origins[0], origins[1], kept)} if len(origins) == 2 else {}
    )


def _about(origin: Origin) -> dict[str, Any]:
    run = origin.leaderboard["run"]
    about = {
        key: run.get(key)
        for key in ("command", "created", "machine", "cores", "seconds", "settings")
    }
    return {"path": str(origin.run), **about, "versions": _versions(origin)}


def _versions(origin: Origin) -> dict[str, str]:
    installed: dict[str, str] = {}
    for about in origin.leaderboard["run"]["tasks"].values():
        installed |= about.get("versions") or {}
    return installed


def _warnings(origins: Sequence[Origin]) -> list[str]:
    """Return what readers should know before they compare entries of different runs."""
    warnings = [
        f"{origin.label}, {task}: {warning}"
        for origin in origins
        for task, about in origin.leaderboard["run"]["tasks"].items()
        for warning in about["warnings"]
    ]
    first = origins[0]
    for other in origins[1:]:
        for task in _shared(first, other):
            pair = [origin.leaderboard["run"]["tasks"][task] for origin in (first, other)]
            for key, name in (
                ("dataset", "datasets"),
                ("dataset_sha256", "contents of the dataset"),
            ):
                values = [about.get(key) for about in pair]
                if None not in values and values[0] != values[1]:
                    warnings.append(
                        f"{task}: {first.label} and {other.label} have different {name}."
                    )
                    break
        differing = [line for line in _settings(first, other) if not line[0].startswith("seeds")]
        if differing and len(origins) > 2:  # of two it stands under what changed
            said = "; ".join(f"{key} {_short(a)}, {_short(b)}" for key, a, b in differing)
            warnings.append(f"Settings of {first.label} and {other.label} differ: {said}.")
    return warnings


def _settings(one: Origin, other: Origin) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ, by dotted name, with both values.

    Lists of tasks and stabilizers do not count.
    """
    old, new = (flat(origin.results.config.to_dict()) for origin in (one, other))
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in ("tasks", "stabilizers")]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def changes(one: Origin, other: Origin, kept: Container[tuple[str, str]]) -> dict[str, Any]:
    """Return what changed between two runs: settings, versions, machine, entries and scores.

    Scores are of the seeds that both have: GVA before and after, the mean over seeds of the
    difference of each seed's GVA (after - before) with its 95 % interval, and the p-value of a
    paired t-test over these seeds, adjusted for the number of entries that changed (Holm); null
    below 3 seeds. ``same``: every return and length of these
    seeds is equal to the last bit. Only entries in ``kept`` count.
    """
    old, new = _versions(one), _versions(other)
    there = [
        {(e["task"], e["stabilizer"]) for e in origin.leaderboard["entries"]}
        for origin in (one, other)
    ]
    scores = []
    for key, before in one.results.series.items():
        after = other.results.series.get(key)
        if after is not None and key in kept:
            scores.append(_score(before, after))
    raw = [
        math.nan if score["same"] else score["p_value"] for score in scores
    ]  # what is the same needs no test
    for score, p in zip(scores, inference.holm(raw), strict=True):
        score["p_value"] = p
    machines = [origin.leaderboard["run"].get("machine") for origin in (one, other)]
    content = {
        "settings": [{"key": key, "before": a, "after": b} for key, a, b in _settings(one, other)],
        "versions": [
            {"key": name, "before": old.get(name), "after": new.get(name)}
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ],
        "machine": machines if machines[0] != machines[1] else None,
        "only_before": _only(*there),
        "only_after": _only(*there[::-1]),
        "scores": scores,
    }
    changed: dict[str, Any] = plain(content)
    return changed


def _only(here: set[tuple[str, str]], there: set[tuple[str, str]]) -> list[str]:
    """Return the entries that are here alone; of a task that is here alone its name."""
    tasks = {task for task, _ in there}
    return sorted({f"{task} {name}" if task in tasks else task for task, name in here - there})


def _score(before: Series, after: Series) -> dict[str, Any]:
    count = min(len(before.seeds), len(after.seeds))  # seeds are 0, 1, ...
    old, new = (series.gva_per_seed[:count] for series in (before, after))
    difference = gva.interval(np.subtract(new, old))
    same = [
        np.array_equal(getattr(before, key)[:count], getattr(after, key)[:count])
        for key in ("returns", "lengths")
    ]
    return {
        "task": before.task,
        "stabilizer": before.stabilizer,
        "seeds": count,
        "gva_before": gva.gva(before.scored[:count]),
        "gva_after": gva.gva(after.scored[:count]),
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "return_before": before.scored[:count].mean(),
        "return_after": after.scored[:count].mean(),
        "p_value": inference.paired_p(new, old),
        "same": all(same) and np.array_equal(before.updates, after.updates),
    }


def sheets(merged: dict[str, Any]) -> list[Sheet]:
    """Return the merged leaderboard of every task, and of two runs what changed."""
    number, name, *rest = shown("runs")
    columns = [number, name, RUN, *rest]
    tables = []
    for task in dict.fromkeys(entry["task"] for entry in merged["entries"]):
        own = [entry for entry in merged["entries"] if entry["task"] == task]
        labels = sorted({entry["run"] for entry in own})
        title = f"{task}: run{'s' * (len(labels) > 1)} {', '.join(labels)}"
        lines = [[column.show(entry, {}) for column in columns] for entry in own]
        tables.append(Sheet(title, [column.heading for column in columns], lines))
    scores = merged.get("changes", {}).get("scores", [])
    for task in dict.fromkeys(score["task"] for score in scores):
        lines = [_change(score) for score in scores if score["task"] == task]
        tables.append(Sheet(f"{task}: from A to B", CHANGES, lines))
    return [*tables, Sheet("Runs", (), (), notes=notes(merged))]


def _change(score: dict[str, Any]) -> list[str]:
    before, after = f"{score['gva_before']:.3f}", f"{score['gva_after']:.3f}"
    if score["same"]:
        return [score["stabilizer"], before, after, "same rows", EMPTY, "same"]
    low, high, interval = score["difference_low"], score["difference_high"], EMPTY
    if low is not None:
        interval = f"{score['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    p = EMPTY if score["p_value"] is None else f"{score['p_value']:.2g}"
    returns = f"{score['return_before']:.2f} {score['return_after']:.2f}"
    return [score["stabilizer"], before, after, interval, p, returns]


def notes(merged: dict[str, Any]) -> list[str]:
    """Return what stands below the tables: the runs, warnings, what changed, how to read it."""
    lines = [
        f"{label}: {about['path']}" + (f", {about['created']}" if about["created"] else "")
        for label, about in merged["runs"].items()
    ]
    lines += [
        clean.message(f"{e['run']}, {e['task']} {e['stabilizer']} ({e['status']}): {e['reason']}")
        for e in merged["entries"]
        if e["reason"]
    ]
    lines += merged["warnings"]
    lines.append("Status is that against none of an entry's own run; ranks are over all runs.")
    changed = merged.get("changes")
    if changed:
        for what in ("settings", "versions"):
            said = "; ".join(
                f"{c['key']} was {_short(c['before'])}, is {_short(c['after'])}"
                for c in changed[what]
            )
            lines.append(f"{what.capitalize()} that changed from A to B: {said or 'none'}.")
        if changed["machine"]:
            lines.append(f"Machine: was {changed['machine'][0]}, is {changed['machine'][1]}.")
        for label, which in (("A", "only_before"), ("B", "only_after")):
            if changed[which]:
                more = (
                    f" and {len(changed[which]) - NAMED} more"
                    if len(changed[which]) > NAMED
                    else ""
                )
                lines.append(f"Only in {label}: {', '.join(changed[which][:NAMED])}{more}.")
        lines.append(
            "From A to B: seeds that both have; p: paired t-test over these seeds, Holm's"
            " correction for the number of entries that changed; same rows: equal to the last bit."
        )
    return lines


def to_csv(merged: dict[str, Any]) -> str:
    """Return the entries as CSV, with the letter and the folder of their run."""
    entries = merged["entries"]
    settings = dict.fromkeys(name for entry in entries for name in entry["settings"])
    names = [*(column.key for column in COLUMNS if column.scalar), "run", "path", *settings]
    paths = {label: about["path"] for label, about in merged["runs"].items()}
    return csv_text(names, (e | e["settings"] | {"path": paths[e["run"]]} for e in entries))
