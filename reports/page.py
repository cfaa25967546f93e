"""A run as one HTML file, which loads nothing and is readable without scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from stab import files
from stab.reports import clean, inference, table, texts
from stab.reports.columns import shown
from stab.reports.figures import CAPTIONS
from stab.reports.results import Results

STATISTICS = (
    "ranks: those that the seeds leave open (t-tests of all pairs, their error pooled, Holm's"
    " correction, 5 %)."
)
LEFT_OUT = ("leaderboard",)  # figures of what is a table here
READ = (1_000, 2_000)  # characters of a text before and after the first token that differs
TIDY = 1.5  # an SVG, sharp at every size, may be this much longer than the PNG
UNQUOTED = " -._~!*()/:;=?@,$+[]{}|^`"  # in a data URI in double quotes


def write(results: Results, leaderboard: dict[str, Any], figures: Path, path: Path) -> None:
    """Write the report of a run.

    Args:
        results: the run folder, read.
        leaderboard: the content of ``leaderboard.json``.
        figures: a folder with PNG and SVG figures ``<task>-<name>``, or ``tasks-<name>`` for all;
            they are inlined. May be missing.
        path: of the file.

    Names, reasons, commands and versions are escaped. Raises StabError if the file cannot be
    written.
    """
    files.write_text(path, _render(results, leaderboard, figures))


def _render(results: Results, leaderboard: dict[str, Any], figures: Path) -> str:
    run = leaderboard["run"]
    tasks = list(run["tasks"])
    drawn = list(_figures(figures, tasks))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "breakable": _breakable,
        "sha256": _sha256,
        "parts": _parts,
        "ending": _ending,
    }
    source = resources.files("stab.reports").joinpath("report.html.j2").read_text(encoding="utf-8")
    versions = {task: run["tasks"][task].get("versions") or {} for task in tasks}
    shared = all(one == versions[tasks[0]] for one in versions.values())
    text = environment.from_string(source).render(
        smoke=table.SMOKE if run["smoke"] else "",
        protocol=leaderboard["protocol"],
        tasks=[
            _task(results, leaderboard, task, drawn, {} if shared else versions[task])
            for task in tasks
        ],
        overview=_overview(leaderboard) if len(tasks) > 1 and "shown" not in run else None,
        figures=[figure for figure in drawn if figure.task is None],
        columns=[column.heading for column in shown("page")],
        general=[
            *table.column_notes(leaderboard, tasks[0] if len(tasks) == 1 else None),
            STATISTICS,
        ],
        settings=list(_settings(run["settings"])),
        versions=versions[tasks[0]] if shared else {},
        command=run.get("command"),
        made=list(_made(results.about)),
    )
    return clean.html(text)


def _task(
    results: Results,
    leaderboard: dict[str, Any],
    task: str,
    drawn: Iterable[Figure],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the section of a task shows."""
    own = table.entries(leaderboard, task)
    about, first = leaderboard["run"]["tasks"][task], own[0]
    seeds = f"{first['seeds']} seed{'s' * (first['seeds'] > 1)}"
    size = f"{seeds} × {first['checkpoints']} checkpoints × {first['starts']} starts"
    steadiest, sentence = _result(leaderboard, task)
    bodies = [[e for e in own if e["rank"]], [e for e in own if e["rank"] is None]]
    return {
        "name": task,
        "subtitle": " · ".join(
            filter(None, (about.get("environment"), about.get("dataset"), size))
        ),
        "steadiest": steadiest,
        "sentence": sentence,
        "verdict": about["verdict"],
        "bodies": [[_line(leaderboard, entry) for entry in body] for body in bodies if body],
        "warnings": about["warnings"],
        "notes": table.task_notes(leaderboard, task),
        "sheets": table.task_sheets(leaderboard, task)[1:],
        "figures": [figure for figure in drawn if figure.task == task],
        "example": texts.example(results, leaderboard, task),
        "facts": list(_facts(about, first["seeds"], versions)),
    }


def _result(leaderboard: dict[str, Any], task: str) -> tuple[str, str]:
    """Return the steadiest entry and a sentence about it; no name if it cannot be said."""
    own, about = table.entries(leaderboard, task), leaderboard["run"]["tasks"][task]
    base = next((e for e in own if e["stabilizer"] == "none" and e["gva"] is not None), None)
    if base is None:
        return "", "none has not finished, so nothing can be compared."
    if not about["learned"]:
        returned = f"return {base['return']:.2f}"
        return "", f"the raw policy has not learned ({returned}): the ranking is not meaningful."
    ranked = [e for e in own if e["rank"] is not None]
    if not ranked:
        return "", "no entry could be ranked."
    best = min(ranked, key=lambda e: int(e["rank"]))
    if best is base:
        others = "; nothing else is ranked"
        if len(ranked) > 1:
            others = f" of {len(ranked)} ranked entries"
        score = f"{base['gva']:.3f}, with a return of {base['return']:.2f}"
        return "none", f"has the lowest GVA{others}: {score}."
    seeds, doubt = best["seeds"], ""
    if best["p_value"] is None:
        doubt = f" ({seeds} seed{'s' * (seeds > 1)}: too few to tell)"
    elif best["p_value"] > inference.LEVEL:
        doubt = f" (which {seeds} seeds cannot distinguish)"
    loss = "; that its return holds is not shown" if best["return_holds"] is False else ""
    return best["stabilizer"], (
        f"has the lowest GVA of {len(ranked)} ranked entries, {best['gva']:.3f} against"
        f" {base['gva']:.3f} for none{doubt}, and returns {best['return']:.2f} against"
        f" {base['return']:.2f}{loss}."
    )


def _line(leaderboard: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return one line of a leaderboard: name, status, and (text, value to sort by) of columns."""
    train = leaderboard["run"]["settings"]["train"]
    rank, _, *columns = shown("page")
    return {
        "name": entry["stabilizer"],
        "status": "" if entry["rank"] else entry["status"],
        "rank": rank.show(entry, train),
        "cells": [
            (" ".join(column.show(entry, train).split()), entry[column.key]) for column in columns
        ],
    }


def _overview(leaderboard: dict[str, Any]) -> dict[str, Any]:
    """Return the matrix of tasks and stabilizers.

    Lines are (name, cells), a cell (GVA, return, whether it is the lowest ranked GVA).
    """
    sheet = table.overview(leaderboard)
    tasks = sheet.headings[1:]
    first = {(e["task"], e["stabilizer"]) for e in leaderboard["entries"] if e["rank"] == 1}
    lines = [
        (
            name,
            [
                (*cell.strip().partition(" ")[::2], (task, name) in first)
                for task, cell in zip(tasks, cells, strict=True)
            ],
        )
        for name, *cells in sheet.lines
    ]
    return {"heads": tasks, "entries": lines[: sheet.above], "sums": lines[sheet.above :]}


@dataclass(frozen=True)
class Figure:
    """A figure, inlined: its task (None for all), what it shows, and its content as a data URI."""

    task: str | None
    caption: str
    source: str


def _figures(folder: Path, tasks: Iterable[str]) -> Iterator[Figure]:
    """Yield the figures of a folder, those that are known first."""
    owner: dict[str, str | None] = {"tasks": None, **{task: task for task in tasks}}
    order = list(CAPTIONS)
    names = {
        path.stem.partition("-")[::2]
        for path in folder.glob("*-*")
        if path.suffix in (".png", ".svg")
    }
    for task, name in sorted(
        names, key=lambda one: (order.index(one[1]) if one[1] in order else len(order), one)
    ):
        if task in owner and name not in LEFT_OUT:
            caption = CAPTIONS.get(name) or re.sub(r"[-_]+", " ", name).capitalize()
            yield Figure(owner[task], caption, _inlined(folder / f"{task}-{name}"))


def _inlined(stem: Path) -> str:
    """Return the figure as a data URI: the SVG unless the PNG is much smaller.

    An SVG in an <img> runs and loads nothing.
    """
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    uris = []
    if svg.exists():
        text = re.sub(
            r"<metadata>.*?</metadata>|<!--.*?-->|^<\?xml.*?\?>|<!DOCTYPE.*?>",
            "",
            svg.read_text("utf-8"),
            flags=re.S,
        )
        uris.append("data:image/svg+xml," + quote(" ".join(text.split()), safe=UNQUOTED))
    if png.exists():
        uris.append("data:image/png;base64," + base64.b64encode(png.read_bytes()).decode())
    smallest = min(map(len, uris))
    return next(uri for uri in uris if len(uri) <= TIDY * smallest)


def _settings(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings by their dotted names; the stabilizers are listed elsewhere."""
    for name, value in settings.items():
        if isinstance(value, dict) and value and not within:
            yield from _settings(value, f"{name}.")
        else:
            yield (
                f"{within}{name}",
                f"{len(value)}, listed above" if name == "stabilizers" else _shown(value),
            )


def _shown(value: Any) -> str:
    if value is None or value in ([], (), {}, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _facts(
    about: Mapping[str, Any], seeds: int, versions: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield what decides a task's numbers besides the recipe."""
    yield "training seeds", "0" if seeds == 1 else f"0 to {seeds - 1}"
    names = {
        "environment": "environment",
        "dataset": "dataset",
        "dataset_sha256": "dataset, SHA-256",
        "expert_sha256": "expert, SHA-256",
    }
    for key, name in (names | {"task_version": "task version"}).items():
        if about.get(key) is not None:
            yield name, str(about[key])
    if references := about.get("references"):
        low, high = references["random"][-1], references["expert"][-1]
        yield (
            "return of 0 and 1",
            f"{low:.4g} (random) and {high:.4g} (expert): {about['references_source']}",
        )
    if window := about.get("window"):
        yield "window", f"{len(window)} checkpoints, updates {window[0]:,} to {window[-1]:,}"
    if starts := about.get("starts"):
        yield "starts (reset seeds)", ", ".join(map(str, starts))
    if about.get("worker_seconds") is not None:
        yield (
            "training and rollouts",
            f"{_duration(about['worker_seconds'])}, summed over the workers",
        )
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _made(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield when, how long and where the run was made."""
    for key, value in about.items():
        if key != "command":
            yield ("took", _duration(value)) if key == "seconds" else (key, str(value))


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"


def _breakable(text: str) -> Markup:
    """Return the text, escaped, with places to break a line behind its punctuation."""
    return Markup("<wbr>").join(
        escape(piece) for piece in re.split(r"(?<=[+:,/])(?=\S)", str(text))
    )


def _parts(text: texts.Text) -> tuple[str, str, str]:
    """Return what a text shows: before the first token that differs, that token, what follows."""
    return texts.shortened(text, *READ)


def _ending(text: str) -> str:
    """Return what is shown of a prompt."""
    return texts.ending(text, READ[0])


def _sha256(text: str) -> str:
    """Return the digest by which a Content-Security-Policy knows a script."""
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
