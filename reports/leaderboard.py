"""The leaderboard: the score of every entry, and everything reported beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stab import gva
from stab.config import Config
from stab.recipe import Recipe
from stab.reports import inference, sweep
from stab.reports.results import Results, Series
from stab.run import rows
from stab.stabilizers import parse
from stab.stabilizers.base import method

BUDGET = (
    "Budget: every recipe takes the same number of optimizer steps; accumulation by k draws k times the samples,"
    " shown under cost."
)


def leaderboard(results: Results) -> dict[str, Any]:
    """Return the content of ``leaderboard.json``: schema, protocol, run, entries (ranked ones first, task by task)."""
    config = results.config
    entries: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for task in config.tasks:
        found = [_entry(results, task, string) for string in config.stabilizers]
        ranked = sorted(
            (e for e in found if e["status"] in ("sound", "undecided")), key=lambda e: e["gva"]
        )
        open_ranks = inference.rank_intervals([e["gva_per_seed"] for e in ranked]) if ranked else []
        for rank, (entry, (low, high)) in enumerate(zip(ranked, open_ranks, strict=True), 1):
            entry |= {"rank": rank, "rank_low": low, "rank_high": high}
        order = ["static", "unsound", "failed", "skipped"]
        others = sorted(
            (e for e in found if e not in ranked),
            key=lambda e: (order.index(e["status"]), e["gva"] or 0),
        )
        entries += ranked + others
        none = next((e["gva"] for e in found if e["stabilizer"] == "none"), None)
        about[task] = _about_task(results, task) | {
            "verdict": _compare_with_none(found),
            "none": none,
        }
    return {
        "schema": rows.SCHEMA,
        "protocol": gva.PROTOCOL,
        "run": {
            "smoke": config.smoke,
            "budget": BUDGET,
            **results.about,
            "settings": config.to_dict(),
            "tasks": about,
        },
        "entries": entries,
    }


def _compare_with_none(found: list[dict[str, Any]]) -> str | None:
    """Add to each entry how its GVA compares with that of ``none``; return in a sentence what can be said of ranked ones."""
    base = next((e["gva_per_seed"] for e in found if e["stabilizer"] == "none"), None)
    others = [e for e in found if e["stabilizer"] != "none" and e["gva_per_seed"] is not None]
    if base is None or not others:
        return None
    p = inference.holm([inference.paired_p(e["gva_per_seed"], base) for e in others])
    for entry, value in zip(others, p, strict=True):
        if not math.isnan(value):  # fewer seeds say nothing
            entry["improvement"] = inference.probability_of_improvement(entry["gva_per_seed"], base)
            entry["p_value"] = value
    ranked = sorted(
        ((e, value) for e, value in zip(others, p, strict=True) if e["rank"] is not None),
        key=lambda pair: pair[0]["rank"],
    )
    names, scores = [e["stabilizer"] for e, _ in ranked], [e["gva_per_seed"] for e, _ in ranked]
    return inference.verdict(names, scores, base, [value for _, value in ranked], len(others))


FIGURES = [
    "rank_low",
    "rank_high",
    "gva",
    "gva_low",
    "gva_high",
    "gva_per_seed",
    "improvement",
    "p_value",
    "gva_adjacent",
    "gva_by_lag",
    "gva_mean",
    "checkpoint_variance",
    "gva_late",
    "gva_by_horizon",
    "return",
    "return_low",
    "return_high",
    "return_difference",
    "return_difference_low",
    "return_difference_high",
    "worst",
    "final",
    "final_spread",
    "val_loss",
    "amplification",
    "correlation",
    "gradient_variance",
    "gradient_norm2",
    "measures",
    "half_life",
    "notes",
    "train_seconds",
    "average_seconds",
    "average_bytes",
]


def _entry(results: Results, task: str, string: str) -> dict[str, Any]:
    """Return one entry of the leaderboard; figures are null where there are none."""
    config = results.config
    recipe = (
        results.series[task, string].recipe
        if (task, string) in results.series
        else _recipe(config, string)
    )
    entry: dict[str, Any] = {
        "task": task,
        "stabilizer": string,
        "rank": None,
        "status": "failed",
        "reason": None,
    }
    entry |= dict.fromkeys(FIGURES)
    entry |= {
        "method": method(string),
        "settings": sweep.settings(string, recipe),
        "samples": recipe.samples,
        "updates": recipe.updates,
        "seeds": config.seeds,
        "checkpoints": len(config.window),
        "starts": config.eval.starts,
    }
    if (task, string) in results.skipped:
        return entry | {"status": "skipped", "reason": results.skipped[task, string]}
    if (task, string) not in results.series:
        return entry | {"reason": results.failures[task, string]}
    series = results.series[task, string]
    scored = series.returns[:, series.window]
    updates = series.updates[series.window]
    score = gva.interval([gva.gva(J) for J in scored])
    mean = gva.interval(scored.mean((1, 2)))
    base = results.series.get((task, "none"))
    if base is None:
        difference = gva.Interval(math.nan, math.nan, math.nan)
    else:
        difference = gva.interval((scored - base.returns[:, base.window]).mean((1, 2)))
    status = gva.status(difference, bool(series.static.all()))
    if base is None and status == "sound":
        status = "undecided"  # nobody has seen whether it returns less than none
    final = scored[:, -1].mean(1)
    by_lag = [gva.gva_by_lag(J) for J in scored]
    by_horizon = [gva.gva_by_horizon(J) for J in series.by_horizon[:, series.window]]
    raw = results.series[task, series.cells[0]["raw"]]
    raw_returns, raw_loss = raw.returns[:, raw.window], raw.val_loss[:, raw.window]
    noise = [
        [p for p in cell["trajectory"] if p["update"] in set(cell["window"])]
        for cell in series.cells
    ]
    timings = [results.timings[f"{task}-{series.recipe.key}-seed{seed}"] for seed in series.seeds]
    figures = {
        "gva": score.mean,
        "gva_low": score.low,
        "gva_high": score.high,
        "gva_per_seed": [gva.gva(J) for J in scored],
        "gva_adjacent": np.mean([gva.gva_adjacent(J) for J in scored]),
        "gva_by_lag": {str(lag): np.mean([lags[lag] for lags in by_lag]) for lag in by_lag[0]},
        "gva_mean": np.mean([gva.gva_mean(J) for J in scored]),
        "checkpoint_variance": np.mean([gva.checkpoint_variance(J) for J in scored]),
        "gva_late": np.mean([gva.gva_late(J, updates.tolist(), recipe.updates) for J in scored]),
        "gva_by_horizon": dict(
            zip(map(str, series.horizons), np.mean(by_horizon, axis=0), strict=True)
        ),
        "return": mean.mean,
        "return_low": mean.low,
        "return_high": mean.high,
        "return_difference": difference.mean,
        "return_difference_low": difference.low,
        "return_difference_high": difference.high,
        "worst": scored.mean(2).min(),
        "final": final.mean(),
        "final_spread": final.std(ddof=1) if len(final) > 1 else math.nan,
        "val_loss": series.val_loss[:, series.window].mean(),
        "amplification": np.mean(
            [gva.amplification(*pair) for pair in zip(raw_returns, raw_loss, strict=True)]
        ),
        "correlation": np.mean(
            [gva.correlation(*pair) for pair in zip(raw_returns, raw_loss, strict=True)]
        ),
        "gradient_variance": np.mean([[p["gradient_variance"] for p in seed] for seed in noise]),
        "gradient_norm2": np.mean([[p["gradient_norm2"] for p in seed] for seed in noise]),
        "measures": {
            name: _nanmean(values[:, series.window]) for name, values in series.measures.items()
        },
        "half_life": series.rider["half_life"],
        "notes": [*series.rider["notes"], *_idle(series, base)],
        "train_seconds": _mean([t.get("train_seconds") for t in timings]),
        "average_seconds": _mean([t.get("average_seconds", {}).get(string, 0.0) for t in timings]),
        "average_bytes": _mean([t.get("average_bytes", {}).get(string, 0) for t in timings]),
        "status": status,
    }
    entry |= plain(figures)
    return entry


def _idle(series: Series, base: Series | None) -> list[str]:
    """Return a note where the entry's weights are those of ``none`` at every checkpoint of every seed."""
    if base is None or base is series:
        return []
    own, raw = (
        [[p["weights"] for p in c["checkpoints"][s.stabilizer]] for c in s.cells]
        for s in (series, base)
    )
    return ["it had no effect: its weights are those of none, bit for bit"] if own == raw else []


def _recipe(config: Config, string: str) -> Recipe:
    """Return the recipe of an entry that has no rows: the base recipe where the stabilizer cannot be had."""
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
    scored = base.returns[:, base.window]
    cells = [
        cell for (t, _), series in results.series.items() if t == task for cell in series.cells
    ]
    warnings = []
    learned = float(scored.mean()) >= gva.NOT_LEARNED
    if not learned:
        warnings.append(
            f"The raw policy returns {scored.mean():.2f} (below {gva.NOT_LEARNED}): it has not learned, and this ranking"
            " says nothing."
        )
    if len(base.seeds) < 3:
        warnings.append(
            f"{len(base.seeds)} seed{'s' * (len(base.seeds) > 1)}: no intervals (3 are needed)."
        )
    if len({cell["dataset_sha256"] for cell in cells}) > 1:
        warnings.append("The dataset's content differs between cells of this run.")
    if len({str(cell["versions"]) for cell in cells}) > 1:
        warnings.append("Cells of this run were made with different versions of the libraries.")
    first = base.cells[0]
    keys = ("task_version", "environment", "dataset", "dataset_sha256", "expert_sha256", "horizons", "references",
            "references_source", "starts", "versions")  # fmt: skip
    timed = [
        t for key, t in results.timings.items() if key in {rows.cell_key(cell) for cell in cells}
    ]
    spent = [t.get("train_seconds", math.nan) + sum(t.get("average_seconds", {}).values()) + t.get("rollout_seconds", 0)
             for t in timed]  # fmt: skip
    return {key: first.get(key) for key in keys} | {
        "worker_seconds": plain(float(sum(spent))) if spent else None,
        "window": [int(u) for u in base.updates[base.window]],
        "noise_floor": plain(float(np.mean([gva.noise_floor(J) for J in scored]))),
        "learned": learned,
        "warnings": warnings,
    }


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if all(v is not None for v in values) else math.nan


def _nanmean(values: np.ndarray) -> float:
    """The mean of those that there are."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan


def plain(value: Any) -> Any:
    """Numbers of Python's own types, and None for what does not exist (NaN)."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
