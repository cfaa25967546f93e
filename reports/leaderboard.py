"""The leaderboard: the score of every entry, and everything reported beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stab import gva
from stab.config import Config
from stab.recipe import Recipe
from stab.reports import inference, sweep
from stab.reports.columns import COLUMNS, SCHEMA, STATUSES, Scored
from stab.reports.results import Results, Series
from stab.run import rows
from stab.stabilizers import parse
from stab.stabilizers.strings import method

# What the cells of a task share, and the report says of the task.
SHARED = (
    "task_version", "environment", "dataset", "dataset_sha256", "expert_sha256", "horizons",
    "references", "references_source", "starts", "versions", "metrics",
)  # fmt: skip
BEYOND = 2.0  # a return of which nobody believes that the expert's is 1
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
        scored = {
            string: _scored(results, results.series[task, string])
            for string in config.stabilizers
            if (task, string) in results.series
        }
        own = [_entry(results, task, string, scored.get(string)) for string in config.stabilizers]
        _add_intervals(own, scored)
        _compare_returns(own, scored)
        ranked = sorted((e for e in own if e["status"] == "ranked"), key=_order)
        shared = min((e["seeds"] for e in ranked), default=0)
        per_seed = [e["gva_per_seed"][:shared] for e in ranked]
        open_ranks = inference.rank_intervals(per_seed) if ranked else []
        for rank, (entry, (low, high)) in enumerate(zip(ranked, open_ranks, strict=True), 1):
            entry |= {"rank": rank, "rank_low": low, "rank_high": high}
        others = [e for e in own if e["rank"] is None]
        others.sort(key=lambda e: (STATUSES.index(e["status"]), e["gva"] or 0))
        entries += ranked + others
        verdict, more = _compare_scores(own, config, results.run)
        about = _about_task(results, task, own)
        about["warnings"] += _learning(own, scored)
        tasks[task] = about | {
            "verdict": verdict,
            "more_seeds": more,
            "none": next((e["gva"] for e in own if e["stabilizer"] == "none"), None),
        }
    return {
        "schema": SCHEMA,
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


def _order(entry: dict[str, Any]) -> tuple[float, float]:
    """Lowest GVA first; where several are 0, the lowest deviation that holds episode noise."""
    return entry["gva"], entry["gva_mean"]


def _finished(own: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """``none`` if it has finished, and the other entries that have."""
    finished = [e for e in own if e["gva"] is not None]
    base = next((e for e in finished if e["stabilizer"] == "none"), None)
    return base, [e for e in finished if e is not base]


def undecided(results: Results) -> dict[tuple[str, str], int]:
    """Return how many seeds undecided entries have next, by (task, stabilizer), and ``none`` too.

    Undecided is a ranked entry of which ``inference.sequential`` says so. {} without
    ``until_decided``.
    """
    config, every = results.config, leaderboard(results)["entries"]
    wanted: dict[tuple[str, str], int] = {}
    for task in config.tasks if config.until_decided else ():
        base, others = _finished([e for e in every if e["task"] == task])
        if base is None:
            continue
        for entry, of in zip(others, _tested(base, others, config), strict=True):
            if of.undecided and entry["rank"] is not None:
                more = min(test for test in config.tests if test > of.seeds)
                wanted[task, entry["stabilizer"]] = more
                wanted[task, "none"] = max(more, wanted.get((task, "none"), 0))
    return wanted


def _tested(
    base: dict[str, Any], others: list[dict[str, Any]], config: Config
) -> list[inference.Tested]:
    return inference.sequential([e["gva_per_seed"] for e in (base, *others)], config.tests)


def _by_seeds(finished: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield each number of seeds that an entry ends with, and the entries with at least as many.

    What is said of an entry rests on its own seeds and those of the entries beside it then, so that
    it stays the same while undecided entries get more.
    """
    for seeds in sorted({e["seeds"] for e in finished}):
        yield seeds, [e for e in finished if e["seeds"] >= seeds]


def _add_intervals(own: list[dict[str, Any]], scored: dict[str, Scored]) -> None:
    """Add the interval of each GVA; how far seeds differ is pooled over the entries."""
    finished = [e for e in own if e["gva"] is not None]
    if not finished:
        return
    for seeds, members in _by_seeds(finished):
        J = np.stack([scored[e["stabilizer"]].series.scored[:seeds] for e in members])
        for entry, (low, high) in zip(members, inference.score_intervals(J), strict=True):
            if entry["seeds"] == seeds:
                entry.update(plain({"gva_low": low, "gva_high": high}))


def _compare_returns(own: list[dict[str, Any]], scored: dict[str, Scored]) -> None:
    """Add whether each entry's return holds against that of ``none``, and its status."""
    base, others = _finished(own)
    for entry in [base, *others] if base else others:
        static = scored[entry["stabilizer"]].series.static
        entry["status"] = "static" if static.all() else "ranked"
    if base is None:
        return
    bounds = {}
    for seeds, members in _by_seeds([base, *others]):
        means = [scored[e["stabilizer"]].series.scored[:seeds].mean((1, 2)) for e in members]
        for entry, ends in zip(members[1:], inference.return_bounds(means), strict=True):
            if entry["seeds"] == seeds:
                bounds[entry["stabilizer"]] = ends
    for entry in others:
        low, high = bounds[entry["stabilizer"]]
        # Below 3 seeds nothing is shown, and the mean decides.
        worse = entry["return_difference"] < -gva.MARGIN
        if not math.isnan(low):
            holds = low > -gva.MARGIN
            worse = high < 0 and not holds
            entry |= {
                "return_difference_low": low,
                "return_difference_high": high,
                "return_holds": holds,
            }
        if worse and entry["status"] == "ranked":
            entry["status"] = "unsound"


def _compare_scores(
    own: list[dict[str, Any]], config: Config, run: Path
) -> tuple[str | None, str | None]:
    """Add to each entry how its GVA compares with that of ``none``.

    Return the verdict in words, and how more seeds would change it.
    """
    base, others = _finished(own)
    if base is None or not others:
        return None, None
    for entry, of in zip(others, _tested(base, others, config), strict=True):
        if not math.isnan(of.p):  # below 3 seeds there is no test
            entry["improvement"] = inference.probability_of_improvement(
                entry["gva_per_seed"], base["gva_per_seed"][: of.seeds]
            )
            entry["p_value"] = of.p
            entry["against_none"] = inference.against_none(of.difference, of.p)
            entry["seeds_needed"] = of.needed
    ranked = sorted((e for e in others if e["rank"] is not None), key=lambda e: int(e["rank"]))
    verdict = inference.verdict(
        [(e["stabilizer"], e["against_none"], e["p_value"]) for e in ranked],
        len(base["gva_per_seed"]),
    )
    undecided = [e for e in ranked if e["against_none"] == inference.NO_EVIDENCE]
    few = sorted((e["seeds_needed"], e["stabilizer"]) for e in undecided if e["seeds_needed"])
    if not few:
        return verdict, None
    said = ", ".join(f"{count} for {name}" for count, name in few)
    others_too = f"; more than {inference.MOST_SEEDS} for the rest" * (len(few) < len(undecided))
    again = ["--config", str(run / "config.yaml"), "--out", str(run), "--resume"]
    more = ["--until-decided", "--max-seeds", str(max(few[-1][0], config.seeds))]
    command = shlex.join(["stab", "compare", *again, *more])
    return verdict, (
        "Seeds that would show a difference as large as the measured one (chance 80 %):"
        f" {said}{others_too}. Add them: {command}"
    )


def _learning(own: list[dict[str, Any]], scored: dict[str, Scored]) -> list[str]:
    """A warning if the return of ``none`` still rises in the window."""
    base, others = _finished(own)
    if base is None:
        return []
    entries = [e for e in (base, *others) if e["seeds"] == base["seeds"]]
    gains = [[gva.gain(J) for J in scored[e["stabilizer"]].series.scored] for e in entries]
    if not inference.rises(gains):
        return []
    return [
        f"Still learning: the return of none rose by {base['gain']:.2f} from the first third of the"
        " window to the last. Averages lag, and part of every GVA is progress; train longer"
        f" (train.updates, {base['updates']} here)."
    ]


def _scored(results: Results, series: Series) -> Scored:
    """What the figures of a finished entry are computed from."""
    raw, base = results.series[series.task, series.cells[0]["raw"]], None
    if (series.task, "none") in results.series:
        base = results.series[series.task, "none"].first(len(series.seeds))
    return Scored(
        series=series,
        raw=raw.first(len(series.seeds)),
        base=base,
        timings=[results.timings[rows.cell_key(cell)] for cell in series.cells],
    )


def _entry(results: Results, task: str, string: str, scored: Scored | None) -> dict[str, Any]:
    """Return one entry of the leaderboard; figures are null if there are none."""
    config, key = results.config, (task, string)
    recipe = _recipe(config, string) if scored is None else scored.series.recipe
    entry: dict[str, Any] = dict.fromkeys(column.key for column in COLUMNS) | {
        "task": task,
        "stabilizer": string,
        "method": method(string),
        "settings": sweep.settings(string, recipe),
        "samples": recipe.samples,
        "updates": recipe.updates,
        "seeds": config.shared_seeds,
        "checkpoints": len(config.window),
        "starts": config.eval.starts,
    }
    if scored is None:
        status = "skipped" if key in results.skipped else "failed"
        reason = results.skipped.get(key) or results.failures[key]
        return entry | {"status": status, "reason": reason}
    entry["seeds"] = len(scored.series.seeds)
    figures = {column.key: column.figure(scored) for column in COLUMNS if column.figure}
    entry |= plain(figures)
    return entry


def _recipe(config: Config, string: str) -> Recipe:
    """Return the recipe of an entry without rows: the base recipe if the stabilizer is gone."""
    try:
        return parse(string).apply(config.train)
    except Exception:  # a plug-in that is gone, or broken
        return config.train


def _about_task(results: Results, task: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the report says of a task besides its entries."""
    base = results.series.get((task, "none"))
    if base is None:
        return {
            "learned": None,
            "resolution": None,
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
    older = sorted({cell["protocol"] for cell in cells} - {gva.PROTOCOL})
    if older:
        warnings.append(
            f"The rows were made under protocol {older[0]}; this is protocol {gva.PROTOCOL}'s score"
            " of them."
        )
    warnings += _visible(base, next(e for e in own if e["stabilizer"] == "none"))
    warnings += [str(remark) for remark in base.cells[0].get("remarks") or ()]
    best = max((e for e in own if e["return"] is not None), key=lambda e: e["return"])
    if best["return"] > BEYOND:
        warnings.append(
            f"{best['stabilizer']} returns {best['return']:.2f}, where 1 is the expert: the"
            " reference scores are likely wrong."
        )
    if len({cell["dataset_sha256"] for cell in cells}) > 1:
        warnings.append("The dataset's content differs between cells of this run.")
    if len({str(cell["versions"]) for cell in cells}) > 1:
        warnings.append("Cells of this run were made with different versions of the libraries.")
    timings = [results.timings[key] for key in {rows.cell_key(cell): None for cell in cells}]
    return {key: base.cells[0].get(key) for key in SHARED} | {
        "worker_seconds": plain(sum(map(_seconds, timings))),
        "window": base.scored_updates,
        "resolution": plain(gva.resolution(base.scored)),
        "learned": mean >= gva.NOT_LEARNED,
        "warnings": warnings,
    }


def _visible(base: Series, entry: dict[str, Any]) -> list[str]:
    """What is to be said if ``none`` hardly swings, or episode noise hides how much."""
    if entry["gva_high"] is not None and entry["gva_high"] < gva.MARGIN:
        return [
            f"Nothing to steady: the GVA of none is {entry['gva_high']:.3f} at most (95 %), so no"
            " stabilizer can make a difference that matters."
        ]
    limit, starts = gva.resolution(base.scored), entry["starts"]
    goal = max(entry["gva"], gva.MARGIN) / 2
    if limit <= goal:
        return []
    return [
        f"{starts} starts are few: a GVA below {limit:.3f} can hardly be told from 0, since single"
        f" episodes differ by {gva.episode_noise(base.scored):.2f}. With"
        f" eval.starts={gva.starts_needed(base.scored, goal)} the limit would be {goal:.3f}."
    ]


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
