"""Settings of a comparison, and its plan: the cross product of tasks, stabilizers and seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stab.config import LEAST_SEEDS, PRESETS, QUICK, Config, flat, load, names
from stab.recipe import Recipe
from stab.registry import Incompatible, StabError, reason, suggest
from stab.run.cells import Cell, make_task
from stab.stabilizers import Stabilizer, expand, parse, split, stabilizers
from stab.stabilizers.strings import LARGEST
from stab.tasks import tasks

MAX_SEEDS = 16  # of --until-decided
MOST_CELLS, MOST_ROWS, MOST_SAMPLES = 10_000, 10_000_000, 10_000_000


@dataclass(frozen=True)
class Plan:
    """The cells of a comparison.

    Attributes:
        cells: the longest first.
        skipped: (task, stabilizer) -> reason, for pairs that cannot run.
        entries: rows of the future leaderboard, skipped ones included.
    """

    config: Config
    cells: list[Cell]
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return len(self.config.tasks) * len(self.config.stabilizers)

    @property
    def shared(self) -> int:
        """Training runs saved by entries that share another's trajectory."""
        own = set(self.config.stabilizers)
        return sum(max(0, len(own.intersection(cell.stabilizers)) - 1) for cell in self.cells)

    @property
    def rollouts(self) -> int:
        """Episodes to roll out, at most."""
        per_entry = len(self.config.checkpoints) * self.config.eval.starts
        return sum(len(cell.stabilizers) for cell in self.cells) * per_entry


def make_config(
    task: str | Sequence[str] = (),
    stabilizers: str | Sequence[str] | None = None,
    *,
    seeds: int | None = None,
    updates: int | None = None,
    dataset: str | None = None,
    policy: str | None = None,
    device: str | None = None,
    preset: str | None = None,
    quick: bool = False,
    until_decided: bool = False,
    max_seeds: int | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, dict[str, str] | None]:
    """Return the settings of a comparison and, for "all", the reasons why stabilizers are broken.

    Later ones win: defaults, the task's, preset, file, quick, arguments, overrides. ``stabilizers``
    is "all", a list, or a comma-separated string. A dataset without a task belongs to the built-in
    task of its environment, or is one of its own. ``until_decided`` adds looks: numbers of seeds,
    each twice the one before, up to ``max_seeds``. Raises StabError for anything unknown or out of
    range, and when no task or no stabilizer is named.
    """
    if preset is not None and preset not in PRESETS:
        raise StabError(
            f"unknown preset {preset!r}.{suggest(preset, PRESETS)} Known: {', '.join(PRESETS)}"
        )
    layers: list[dict[str, Any] | Path] = [PRESETS[preset]] if preset else []
    layers += [file] if file else []
    layers += [QUICK] if quick else []
    arguments: dict[str, Any] = {}
    broken: dict[str, str] | None = None
    if task:
        arguments["tasks"] = [task] if isinstance(task, str) else list(dict.fromkeys(task))
    if stabilizers == "all":
        arguments["stabilizers"], broken = every_stabilizer()
    elif stabilizers:
        arguments["stabilizers"] = (
            split(stabilizers) if isinstance(stabilizers, str) else list(stabilizers)
        )
    if seeds is not None:
        arguments["seeds"] = seeds
    train = {"updates": updates, "policy": policy, "device": device}
    arguments["train"] = {key: value for key, value in train.items() if value is not None}
    if dataset is not None:
        arguments["data"] = {"dataset": dataset}
    tasks_named, from_dataset = names(*layers, arguments, overrides=overrides)
    if not tasks_named and from_dataset:
        from stab.tasks.catalog import task_for

        tasks_named = arguments["tasks"] = [task_for(from_dataset)]
    config, swept = _load_for(tasks_named, [*layers, arguments], overrides)
    if not config.stabilizers:
        raise StabError(
            "no stabilizers: give --all, or --stabilizers with a list such as ema,swa,lr_decay+ema"
        )
    strings = ["none"]
    for text in config.stabilizers:
        strings += [text] if broken and text in broken else expand(text)
    usable = [s for s in dict.fromkeys(strings) if not (broken and s in broken)]
    crossed = cross(config.train, swept, usable)
    config = dataclasses.replace(config, stabilizers=tuple(dict.fromkeys([*crossed, *strings])))
    if until_decided:
        config = _add_looks(config, MAX_SEEDS if max_seeds is None else max_seeds)
    elif max_seeds is not None:
        raise StabError("--max-seeds is for --until-decided; the number of seeds is --seeds")
    return config, broken


def _add_looks(config: Config, most: int) -> Config:
    tests = list(config.tests)
    more = most > tests[-1] or (config.until_decided and most == tests[-1])
    if tests[0] < LEAST_SEEDS or not more:
        raise StabError(
            f"--until-decided begins with {tests[-1]} seeds and ends with --max-seeds, {most}:"
            f" expected {LEAST_SEEDS} at least to begin with, and more to end with"
        )
    while tests[-1] < most:
        tests.append(min(2 * tests[-1], most))
    return dataclasses.replace(config, seeds=tests[-1], looks=tuple(tests[:-1]), until_decided=True)


def _load_for(
    named: Sequence[str], layers: Sequence[dict[str, Any] | Path], overrides: Sequence[str]
) -> tuple[Config, dict[str, list[Any]]]:
    """Return the settings, over the tasks' own defaults, and the lists in them (see ``load``)."""
    if not named:
        raise StabError(f"no task: give --task NAME. Known: {', '.join(tasks.names())}")
    first, *others = named
    swept: dict[str, list[Any]] = {}
    config = load(_task_settings(first), *layers, overrides=overrides, swept=swept)
    for other in others:
        its = load(_task_settings(other), *layers, overrides=overrides, swept={})
        if its != config:
            old, new = flat(config.to_dict()), flat(its.to_dict())
            differing = "; ".join(
                f"{key} {old[key]} and {new[key]}" for key in old if old[key] != new.get(key)
            )
            raise StabError(
                f"tasks {first} and {other} have other default settings ({differing}): compare them"
                " one at a time, and read them together with stab report RUN RUN"
            )
    return config, swept


def _task_settings(name: str) -> dict[str, Any]:
    """Return a task's own defaults."""
    settings = getattr(tasks.get(name), "settings", {})
    return {section: dict(values) for section, values in settings.items()}


def cross(base: Recipe, swept: dict[str, list[Any]], strings: Sequence[str]) -> list[str]:
    """Cross stabilizers with lists of recipe settings; return strings, the base recipe's first.

    Every combination of values goes in front of every string as ``recipe:name=value,...``. It
    names only what it changes in ``base``, whose values are the first of each list. A string with
    the same recipe and average as one before it is left out, so that no setting counts twice.

    >>> cross(Recipe(), {"lr": [0.001, 0.0003]}, ["none", "ema"])
    ['none', 'ema', 'recipe:lr=0.0003', 'recipe:lr=0.0003+ema']

    Raises StabError for a value that is out of range, and for more than ``LARGEST`` entries.
    """
    if math.prod(map(len, swept.values())) * len(strings) > LARGEST:
        raise StabError(
            f"the sweep has more than {LARGEST} entries per task: make several runs of it"
        )
    entries: dict[object, str] = {}
    for values in itertools.product(*swept.values()):
        pairs = [
            (name, str(value).replace(",", ";")) for name, value in zip(swept, values, strict=True)
        ]
        changed = [
            f"{name}={value}"
            for name, value in pairs
            if parse(f"recipe:{name}={value}").apply(base) != base
        ]
        for string in strings:
            stabilizer = parse(f"recipe:{','.join(changed)}+{string}" if changed else string)
            try:
                key: object = (stabilizer.apply(base).key, repr(stabilizer.average))
            except Exception:  # the plan reports it
                key = stabilizer.string
            entries.setdefault(key if changed else stabilizer.string, stabilizer.string)
            entries.setdefault(key, stabilizer.string)
    return list(dict.fromkeys(entries.values()))


def every_stabilizer() -> tuple[list[str], dict[str, str]]:
    """Return the names behind ``--all``, plug-ins included, and why some are broken.

    ``recipe`` is not one of them: it does nothing without settings.
    """
    listing = [entry for entry in stabilizers.listing(load=True) if entry.name != "recipe"]
    broken = {entry.name: entry.broken for entry in listing if entry.broken}
    for entry in listing:
        if not entry.broken:
            try:
                parse(entry.name)
            except StabError as e:
                broken[entry.name] = str(e)
    return [entry.name for entry in listing], broken


def make_plan(
    config: Config,
    broken: dict[str, str] | None = None,
    wanted: Mapping[tuple[str, str], int] | None = None,
) -> Plan:
    """Group entries by their trajectory.

    ``wanted`` is how many seeds each (task, stabilizer) has, 0 if it is not in it. By default they
    have all seeds; with ``until_decided``, those of the first look.

    A pair that cannot run is skipped with its reason if stabilizers are those of "all" (``broken``
    is given, and names the ones known to be broken); otherwise it raises StabError. So do an
    unknown task and an impossible base recipe.
    """
    from stab.train import make_device

    make_device(config.train)
    _check_recipe(config.train)
    grouped: dict[tuple[str, str], tuple[Recipe, list[str]]] = {}
    skipped: dict[tuple[str, str], str] = {}
    for name in config.tasks:
        make_task(config, name)
        for string in config.stabilizers:
            if broken and string in broken:
                skipped[name, string] = f"broken plug-in: {broken[string]}"
                continue
            try:
                stabilizer, recipe = _apply(string, config.train)
            except Incompatible as e:
                skipped[name, string] = str(e)
                continue
            except StabError as e:
                if broken is None:
                    raise StabError(f"stabilizer {string!r}: {e}") from e
                skipped[name, string] = str(e)
                continue
            except Exception as e:  # a plug-in may raise anything; the others still run
                skipped[name, string] = f"broken plug-in: {reason(e)}"
                continue
            entries = grouped.setdefault((name, recipe.key), (recipe, []))[1]
            # Every trajectory's raw iterates are rolled out, first, even if they are not an entry.
            if not entries:
                entries.append(stabilizer.raw)
            if string not in entries:
                entries.append(string)
    _check_size(config, [len(entries) for _, entries in grouped.values()])
    every, cells = config.shared_seeds, []
    for (task, _), (recipe, (raw, *entries)) in grouped.items():
        counts = {s: every if wanted is None else wanted.get((task, s), 0) for s in [raw, *entries]}
        cells += [
            Cell(task, recipe, seed, (raw, *(s for s in entries if seed < counts[s])))
            for seed in range(max(counts.values()))
        ]
    per_entry = 1000 * len(config.checkpoints)
    cells.sort(key=lambda cell: -(cell.recipe.samples + per_entry * len(cell.stabilizers)))
    return Plan(config, cells, skipped)


def _check_size(config: Config, entries: Sequence[int]) -> None:
    """Raise StabError, before anything is laid out, if a plan is larger than a machine can hold.

    ``entries`` are those of each trajectory.
    """
    cells = len(entries) * config.seeds
    if cells > MOST_CELLS:
        raise StabError(
            f"the plan has {cells:,} training runs, expected {MOST_CELLS:,} at most: take fewer"
            " seeds, or make several runs of it"
        )
    rows = max(entries, default=0) * len(config.checkpoints) * config.eval.starts
    if rows > MOST_ROWS:
        raise StabError(
            f"a training run has {rows:,} episodes to roll out, expected {MOST_ROWS:,} at most:"
            " lower eval.starts, or raise eval.checkpoint_every"
        )


def _apply(string: str, base: Recipe) -> tuple[Stabilizer, Recipe]:
    """Return a stabilizer and its recipe after trying its average, optimizer and transforms."""
    stabilizer = parse(string)
    recipe = stabilizer.apply(base)
    if stabilizer.average:
        stabilizer.average.init({"w": _parameter().detach()}, recipe.updates)
    _check_recipe(recipe)
    return stabilizer, recipe


def _check_recipe(recipe: Recipe) -> None:
    from stab.stabilizers.optimizers import make_optimizer, make_transforms

    if recipe.batch_size > MOST_SAMPLES:
        raise StabError(
            f"train.batch_size={recipe.batch_size} is out of range: expected {MOST_SAMPLES:,} at"
            " most"
        )
    make_optimizer(recipe, [_parameter()])
    make_transforms(recipe)


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(1))
