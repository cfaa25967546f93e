"""Post-hoc averages: their scores against the half-life, as sheets and CSV."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stab import gva
from stab.reports import inference
from stab.reports.columns import SCHEMA, Column, Scored, shown
from stab.reports.leaderboard import plain
from stab.reports.results import Results, Series
from stab.reports.sheets import Sheet, csv_text

POOR = 0.25  # of misplaced weight: an average of other iterates than its name says
NOTES = (
    "Computed from the snapshots of a finished run, without training; rolled out as its entries"
    " were.",
    "half-life: how many of the latest iterates hold half of the weight, at the end of training.",
    "misplaced: the largest share of an average's weight that a block's mean puts on another"
    " iterate of the block.",
    "Choosing the best of many after seeing their scores flatters it: confirm it with other seeds,"
    " online.",
)


def summary(results: Results) -> dict[str, Any]:
    """Return the content of ``averages.json``: schema, protocol, entries by task and half-life."""
    tasks = results.config.tasks
    entries = []
    for task in tasks:
        own = [series for (name, _), series in results.post_hoc.items() if name == task]
        intervals = inference.score_intervals([one.scored for one in own]) if own else []
        entries += [_entry(results, one, ends) for one, ends in zip(own, intervals, strict=True)]
    entries.sort(key=lambda e: (tasks.index(e["task"]), e["half_life"][1], e["stabilizer"]))
    return {
        "schema": SCHEMA,
        "protocol": gva.PROTOCOL,
        "every": results.config.snapshots.every,
        "entries": entries,
    }


def _entry(results: Results, series: Series, interval: tuple[float, float]) -> dict[str, Any]:
    online = results.series.get((series.task, series.stabilizer))
    online = online and online.first(len(series.seeds))
    scored = Scored(series, series, None, ())
    blocks = [cell["read_off"] for cell in series.cells]
    distances = [block["distance"] for block in blocks]
    entry = {
        "task": series.task,
        "stabilizer": series.stabilizer,
        "half_life": series.rider["half_life"],
        "gva": series.score,
        "gva_low": interval[0],
        "gva_high": interval[1],
        "gva_per_seed": series.gva_per_seed,
        "return": scored.mean.mean,
        "return_low": scored.mean.low,
        "return_high": scored.mean.high,
        "worst": series.scored.mean(2).min(),
        "val_loss": series.val_loss[:, series.window].mean(),
        "seeds": len(series.seeds),
        "misplaced": max(block["misplaced"] for block in blocks),
        "distance": None if None in distances else np.mean(distances),
        "online_gva": online and online.score,
        "online_return": online and online.scored.mean(),
    }
    return {name: plain(value) for name, value in entry.items()}


OWN = (
    Column("stabilizer", "", {}, heading="average", text=lambda entry, _: entry["stabilizer"]),
    Column(
        "half_life", "", {}, heading="half-life", text=lambda entry, _: str(entry["half_life"][1])
    ),
)
MISPLACED = Column(
    "misplaced", "", {}, heading="misplaced",
    text=lambda e, _: f"{e['misplaced']:.1%}{'!' if e['misplaced'] > POOR else ' '}",
)  # fmt: skip


def sheets(content: dict[str, Any]) -> list[Sheet]:
    """Return the averages of every task."""
    columns = [*OWN, *shown("averages"), MISPLACED]
    tables = []
    for task in dict.fromkeys(entry["task"] for entry in content["entries"]):
        own = [entry for entry in content["entries"] if entry["task"] == task]
        title = f"{task}: post-hoc averages, from snapshots of {content['every']} updates"
        lines = [[column.show(entry, {}) for column in columns] for entry in own]
        tables.append(Sheet(title, [c.heading for c in columns], lines, name="average"))
    tables[-1] = dataclasses.replace(tables[-1], notes=notes(content))
    return tables


def to_csv(content: dict[str, Any]) -> str:
    """Return the same as CSV: one line per average, its scalar keys."""
    keys = [key for key in content["entries"][0] if key not in ("gva_per_seed", "half_life")]
    entries = [entry | {"half_life_end": entry["half_life"][1]} for entry in content["entries"]]
    return csv_text(["task", "stabilizer", "half_life_end", *keys[2:]], entries)


def notes(content: dict[str, Any]) -> list[str]:
    """Return how to read the columns, and the error against the averages that also rode online."""
    lines = list(NOTES)
    if any(entry["misplaced"] > POOR for entry in content["entries"]):
        lines.append(
            f"!: more than {POOR:.0%} is misplaced, so this is not the average it is named after:"
            " lower snapshots.every."
        )
    for entry in content["entries"]:
        if entry["distance"] is not None:
            lines.append(
                f"{entry['task']} {entry['stabilizer']} against the online average: final weights"
                f" off by {entry['distance']:.2g} of its distance from the raw iterate; GVA"
                f" {entry['gva']:.3f}, online {entry['online_gva']:.3f}; return"
                f" {entry['return']:.3f}, online {entry['online_return']:.3f}."
            )
    return lines
