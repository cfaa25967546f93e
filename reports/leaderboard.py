"""The leaderboard: the score of every entry, and everything reported beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stab import gva
from stab.config import Config
from stab.recipe import Recipe
from stab.reports import inference, sweep
from stab.reports.columns import COLUMNS, RANKED, STATUSES, Scored
from stab.reports.results import Results
from stab.run import rows
from stab.stabilizers import parse
from stab.stabilizers.strings import method

# What the cells of a task share, and the report says of the task.
SHARED = (
    "task_version", "environment", "dataset", "dataset_sha256", "expert_sha256", "horizons",
    "references", "references_source", "starts", "versions", "metrics",
)  # fmt: skip
BUDGET = (
    "Budget: every recipe takes the same number of optimizer steps; accumulation by k draws k times"
    " the samples, shown under cost."
)


def leaderboard(results: Results) -> dict[str, Any]:
    """Return the content of ``leaderboard.json``: schema, protocol, run, entries.

    Entries stand task by task, ranked ones first.
    """
    config = results.config
    entries: list[dict[str, Any]] = []
    tasks: dict[str, Any] = {}
    for task in config.tasks:
        own = [_entry(results, task, string) for string in config.stabilizers]
        ranked = sorted((e for e in own if e["status"] in RANKED), key=lambda e: e["gva"])
        open_ranks = inference.rank_intervals([e["gva_per_seed"] for e in ranked]) if ranked else []
        for rank, (entry, (low, high)) in enumerate(zip(ranked, open_ranks, strict=True), 1):
            entry |= {"rank": rank, "rank_low": low, "rank_high": high}
        others = [e for e in own if e["rank"] is None]
        others.sort(key=lambda e: (STATUSES.index(e["status"]), e["gva"] or 0))
        entries += ranked + others
        tasks[task] = _about_task(results, task) | {
            "verdict": _compare_with_none(own),
            "none": next((e["gva"] for e in own if e["stabilizer"] == "none"), None),
        }
    return {
        "schema": rows.SCHEMA,
        "protocol": gva.PROTOCOL,
        "run": {
            "smoke": config.smoke,
            "budget": BUDGET,
            **results.about,
            "settings": config.to_dict(),
            "tasks": tasks,
        },
        "entries": entries,
    }


def _compare_with_none(entries: list[dict[str, Any]]) -> str | None:
    """Add to each entry how its GVA compares with that of ``none``; return the verdict in words."""
    base = next((e for e in entries if e["stabilizer"] == "none" and e["gva"] is not None), None)
    others = [e for e in entries if e["stabilizer"] != "none" and e["gva"] is not None]
    if base is None or not others:
        return None
    per_seed = [e["gva_per_seed"] for e in (base, *others)]
    for entry, p in zip(others, inference.many_to_one(per_seed), strict=True):
        if not math.isnan(p):  # below 3 seeds there is no test
            entry["improvement"] = inference.probability_of_improvement(
                entry["gva_per_seed"], base["gva_per_seed"]
            )
            entry["p_value"] = p
            entry["against_none"] = inference.against_none(entry["gva"] - base["gva"], p)
    ranked = sorted((e for e in others if e["rank"] is not None), key=lambda e: int(e["rank"]))
    return inference.verdict(
        [(e["stabilizer"], e["against_none"], e["p_value"]) for e in ranked],
        len(base["gva_per_seed"]),
    )


def _entry(results: Results, task: str, string: str) -> dict[str, Any]:
    """Return one entry of the leaderboard; figures are null if there are none."""
    config, key = results.config, (task, string)
    series = results.series.get(key)
    recipe = _recipe(config, string) if series is None else series.recipe
    entry: dict[str, Any] = dict.fromkeys(column.key for column in COLUMNS) | {
        "task": task,
        "stabilizer": string,
        "method": method(string),
        "settings": sweep.settings(string, recipe),
        "samples": recipe.samples,
        "updates": recipe.updates,
        "seeds": config.seeds,
        "checkpoints": len(config.window),
        "starts": config.eval.starts,
    }
    if series is None:
        status = "skipped" if key in results.skipped else "failed"
        reason = results.skipped.get(key) or results.failures[key]
        return entry | {"status": status, "reason": reason}
    scored = Scored(
        series=series,
        raw=results.series[task, series.cells[0]["raw"]],
        base=results.series.get((task, "none")),
        timings=[results.timings[rows.cell_key(cell)] for cell in series.cells],
    )
    status = gva.status(scored.difference, bool(series.static.all()))
    if scored.base is None and status == "sound":
        status = "undecided"  # nobody has seen whether it returns less than `none`
    figures = {column.key: column.figure(scored) for column in COLUMNS if column.figure}
    entry |= {"status": status, **plain(figures)}
    return entry


def _recipe(config: Config, string: str) -> Recipe:
    """Return the recipe of an entry without rows: the base recipe if the stabilizer is gone."""
    try:
        return parse(string).apply(config.train)
    except Exception:  # a plug-in that is gone, or broken
        return config.train


def _about_task(results: Results, task: str) -> dict[str, Any]:
    """Return what the report says of a task besides its entries."""
    base = results.series.get((task, "none"))
    if base is None:
        return {
            "learned": None,
            "noise_floor": None,
            "warnings": ["none has not finished: nothing can be compared"],
        }
    cells = [
        cell for (t, _), series in results.series.items() if t == task for cell in series.cells
    ]
    warnings = []
    mean = float(base.scored.mean())
    if mean < gva.NOT_LEARNED:
        warnings.append(
            f"The raw policy returns {mean:.2f} (below {gva.NOT_LEARNED}): it has not learned, and"
            " this ranking is not meaningful."
        )
    if len(base.seeds) < 3:
        count = f"{len(base.seeds)} seed{'s' * (len(base.seeds) > 1)}"
        warnings.append(f"{count}: no intervals (3 are needed).")
    if len({cell["dataset_sha256"] for cell in cells}) > 1:
        warnings.append("The dataset's content differs between cells of this run.")
    if len({str(cell["versions"]) for cell in cells}) > 1:
        warnings.append("Cells of this run were made with different versions of the libraries.")
    timings = [results.timings[key] for key in {rows.cell_key(cell): None for cell in cells}]
    return {key: base.cells[0].get(key) for key in SHARED} | {
        "worker_seconds": plain(sum(map(_seconds, timings))),
        "window": base.scored_updates,
        "noise_floor": plain(np.mean([gva.noise_floor(J) for J in base.scored])),
        "learned": mean >= gva.NOT_LEARNED,
        "warnings": warnings,
    }


def _seconds(times: dict[str, Any]) -> float:
    """Return the seconds of a cell's training, averages and rollouts."""
    averages = sum(times.get("average_seconds", {}).values())
    return float(times.get("train_seconds", math.nan) + averages + times.get("rollout_seconds", 0))


def plain(value: Any) -> Any:
    """Numbers of Python's own types, and None for what does not exist (NaN)."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
