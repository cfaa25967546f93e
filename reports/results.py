"""A run folder, read: arrays of one task and stabilizer from its rows."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stab import files, gva
from stab.config import Config
from stab.recipe import Recipe
from stab.registry import StabError
from stab.run import folder, rows

ABOUT = ("command", "created", "seconds", "cores", "machine")  # what run.json says of a run


@dataclass(frozen=True)
class Series:
    """Everything rolled out for one task and stabilizer.

    Attributes:
        seeds: (S,) training seeds.
        updates: (K,) checkpoints, early ones first.
        window: (K,) whether a checkpoint is scored.
        returns: (S, K, N) normalised returns.
        by_horizon: (S, K, N, H) the same at each horizon.
        horizons: (H,) steps.
        lengths: (S, K, N) episode lengths in steps.
        val_loss: (S, K).
        measures: (S, K, N) the task's metrics of an episode, by name, NaN if an episode has none;
            of generated texts also ``perplexity`` (S, K, 1), exp(val_loss).
        static: (S,) whether the read-out does not change in the window.
        recipe: the trajectory's recipe.
        rider: what the cell says of the stabilizer: ``average`` (whether it is one),
            ``half_life``, ``notes``.
        cells: the cells behind it, one a seed.
    """

    task: str
    stabilizer: str
    seeds: list[int]
    updates: np.ndarray
    window: np.ndarray
    returns: np.ndarray
    by_horizon: np.ndarray
    horizons: list[int]
    lengths: np.ndarray
    val_loss: np.ndarray
    measures: dict[str, np.ndarray]
    static: np.ndarray
    recipe: Recipe
    rider: dict[str, Any]
    cells: list[dict[str, Any]]

    def first(self, seeds: int) -> Series:
        """Return the series of the first seeds alone."""
        if seeds >= len(self.seeds):
            return self
        per_seed: dict[str, Any] = {
            field.name: value[:seeds]
            for field in dataclasses.fields(self)
            if field.name not in ("updates", "window", "horizons")
            and isinstance(value := getattr(self, field.name), np.ndarray | list)
        }
        measures = {name: values[:seeds] for name, values in self.measures.items()}
        return dataclasses.replace(self, measures=measures, **per_seed)

    @cached_property
    def scored(self) -> np.ndarray:
        """(S, M, N) the returns of the window."""
        return self.returns[:, self.window]

    @property
    def scored_updates(self) -> list[int]:
        """(M,) the checkpoints of the window."""
        updates: list[int] = self.updates[self.window].tolist()
        return updates

    @cached_property
    def score(self) -> float:
        """GVA, over all seeds."""
        return gva.gva(self.scored)

    @cached_property
    def gva_per_seed(self) -> list[float]:
        """(S,) the score of each seed."""
        return gva.gva_per_seed(self.scored)

    @cached_property
    def digests(self) -> list[list[str]]:
        """(S, K) digests of the weights."""
        return [[p["weights"] for p in cell["checkpoints"][self.stabilizer]] for cell in self.cells]


@dataclass(frozen=True)
class Results:
    """A run folder, read.

    Attributes:
        series: by (task, stabilizer), for what has finished on every seed of the run; with
            ``until_decided``, on the first look's seeds at least.
        about: how the run was made (run.json).
        timings: cell key -> seconds and bytes.
        failures, skipped: (task, stabilizer) -> reason.
        post_hoc: by (task, stabilizer), averages computed from snapshots, finished on every seed
            that all entries have.
    """

    run: Path
    config: Config
    about: dict[str, Any]
    series: dict[tuple[str, str], Series]
    timings: dict[str, dict[str, Any]]
    failures: dict[tuple[str, str], str]
    skipped: dict[tuple[str, str], str]
    post_hoc: dict[tuple[str, str], Series] = field(default_factory=dict)


def read(run: Path) -> Results:
    """Read a run folder. Raises StabError when it is none, or holds rows of a later protocol.

    Rows do not depend on the protocol: older ones are scored by the present one.
    """
    config = folder.settings(run)
    grouped, timings = _cells(run, config)
    skipped = rows.skipped(run)
    failures = _failures(run, config, grouped, skipped)
    about = folder.about(run)
    _check_all_there(run, about)
    series = {
        key: _series(*key, cells)
        for key, cells in _looked_at(grouped, config).items()
        if key not in failures
    }
    for task, string in list(series):
        raw = series[task, string].cells[0]["raw"]
        if (task, raw) not in series:
            reason = failures.get((task, raw), "missing")
            failures[task, string] = f"{raw}, its raw iterates: {reason}"
    averages: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in rows.cells(run, "averages"):
        if cell["task"] in config.tasks and cell["seed"] < config.shared_seeds:
            averages.setdefault((cell["task"], cell["stabilizers"][0]), []).append(cell)
    return Results(
        run=run,
        config=config,
        about={
            key: value
            for key, value in about.items()
            if key in ABOUT and files.fits(value, (str, int, float))
        },
        series={key: one for key, one in series.items() if key not in failures},
        timings=timings,
        failures=failures,
        skipped=skipped,
        post_hoc={
            key: _series(*key, cells)
            for key, cells in averages.items()
            if len(cells) == config.shared_seeds
        },
    )


def _cells(
    run: Path, config: Config
) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """The cells of each (task, stabilizer), and the timings of each cell."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    timings = {}
    for cell in rows.cells(run):
        key = rows.cell_key(cell)
        if not 1 <= cell["protocol"] <= gva.PROTOCOL:
            raise StabError(
                f"{run} holds rows of protocol {cell['protocol']}, this stab scores protocol"
                f" {gva.PROTOCOL} and older ones: install a newer stab"
            )
        if cell["task"] not in config.tasks or cell["seed"] >= config.seeds:
            continue
        if cell["window"] != config.window or len(cell["starts"]) != config.eval.starts:
            raise StabError(
                f"cell {key} is not of the run's config.yaml (other checkpoints or starts): move"
                " it away"
            )
        for string in cell["stabilizers"]:
            same = grouped.setdefault((cell["task"], string), [])
            if cell["seed"] in [other["seed"] for other in same]:
                raise StabError(
                    f"{run} holds two cells of {cell['task']}, {string}, seed {cell['seed']}: move"
                    " one away"
                )
            same.append(cell)
        path = run / "timings" / f"{key}.json"
        timings[key] = rows.read(path, rows.TIMES, "record of times") if path.exists() else {}
    return grouped, timings


def _check_all_there(run: Path, about: dict[str, Any]) -> None:
    """Raise StabError if a cell is gone that was there when the run came to its end."""
    named = about.get("cells", [])
    there = {path.stem for path in (run / "cells").glob("*.json")}
    gone = sorted(set(named) - there) if files.fits(named, [str]) else []
    if gone:
        raise StabError(
            f"{run / 'cells' / gone[0]}.json is gone ({len(gone)} of {len(named)} finished cells"
            " are): put it back; --resume computes it anew"
        )


def _failures(
    run: Path,
    config: Config,
    grouped: dict[tuple[str, str], list[dict[str, Any]]],
    skipped: dict[tuple[str, str], str],
) -> dict[tuple[str, str], str]:
    """Why entries failed, by (task, stabilizer); seeds that have not finished are a failure."""
    failures: dict[tuple[str, str], str] = {}
    for path in sorted((run / "failures").glob("*.json")):
        failed = rows.read(path, rows.FAILURE, "failure")
        for string in failed["stabilizers"]:
            reason = f"seed {failed['seed']}: {failed['reason']}"
            failures.setdefault((failed["task"], string), reason)
    needed = config.shared_seeds
    for key in itertools.product(config.tasks, config.stabilizers):
        finished = sum(cell["seed"] < needed for cell in grouped.get(key, []))
        if finished < needed and key not in failures and key not in skipped:
            failures[key] = f"{finished} of {needed} seeds finished; resume with --resume"
    return failures


def _looked_at(
    grouped: dict[tuple[str, str], list[dict[str, Any]]], config: Config
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return each entry's cells up to the last look at which it and ``none`` have all seeds."""
    least = config.shared_seeds
    looks = [look for look in config.tests if look >= least]
    seeds = {key: {cell["seed"] for cell in cells} for key, cells in grouped.items()}
    last = {
        key: max((look for look in looks if own.issuperset(range(look))), default=0)
        for key, own in seeds.items()
    }
    kept = {}
    for (task, string), cells in grouped.items():
        count = min(last[task, string], max(last.get((task, "none"), 0), least))
        if count:
            kept[task, string] = [cell for cell in cells if cell["seed"] < count]
    return kept


def _shape(cell: dict[str, Any], string: str) -> tuple[Any, ...]:
    """Return what the cells of an entry share, whatever their seeds."""
    updates = [
        [p["update"] for p in points]
        for points in (cell["checkpoints"][string], cell["trajectory"])
    ]
    return (
        Recipe.from_dict(cell["recipe"]).key,
        cell["starts"],
        cell["horizons"],
        cell["window"],
        cell["raw"],
        updates,
    )


def _series(task: str, string: str, cells: list[dict[str, Any]]) -> Series:
    cells = sorted(cells, key=lambda cell: int(cell["seed"]))
    first = cells[0]
    for cell in cells:
        if _shape(cell, string) != _shape(first, string):
            raise StabError(
                f"cells {rows.cell_key(first)} and {rows.cell_key(cell)} do not belong to one run:"
                " move one away"
            )
    points = [p["update"] for p in first["checkpoints"][string]]
    column = {update: k for k, update in enumerate(points)}
    row = {start: n for n, start in enumerate(first["starts"])}
    horizons = first["horizons"]
    shape = (len(cells), len(points), len(row))
    returns, lengths = np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    by_horizon = np.full((*shape, len(horizons)), np.nan)
    val_loss = np.array([[p["val_loss"] for p in cell["checkpoints"][string]] for cell in cells])
    measures: dict[str, np.ndarray] = {}
    texts = False
    for s, cell in enumerate(cells):
        low, high = np.array(cell["references"]["random"]), np.array(cell["references"]["expert"])
        for r in cell["rows"]:
            if r["stabilizer"] == string:
                at = (s, column[r["update"]], row[r["start"]])
                returns[at], lengths[at] = r["return"], r["length"]
                with np.errstate(divide="ignore", invalid="ignore"):
                    by_horizon[at] = (np.array(r["cumulative"]) - low) / (high - low)
                texts = texts or "text" in r
                for name, value in r.get("measures", {}).items():
                    measures.setdefault(name, np.full(shape, np.nan))[at] = value
    if texts:
        with np.errstate(over="ignore"):
            measures = {"perplexity": np.exp(val_loss)[..., None]} | measures
    window = np.isin(points, first["window"])
    digests = [[p["weights"] for p in cell["checkpoints"][string]] for cell in cells]
    static = np.array(
        [len({sha for sha, scored in zip(d, window, strict=True) if scored}) == 1 for d in digests]
    )
    return Series(
        task=task,
        stabilizer=string,
        seeds=[cell["seed"] for cell in cells],
        updates=np.array(points),
        window=window,
        returns=returns,
        by_horizon=by_horizon,
        horizons=horizons,
        lengths=lengths,
        val_loss=val_loss,
        measures=measures,
        static=static,
        recipe=Recipe.from_dict(first["recipe"]),
        rider=first["riders"][string],
        cells=cells,
    )
