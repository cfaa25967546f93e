"""Many settings on one leaderboard: filters, groups, and what tuning buys at an equal budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stab.recipe import Recipe
from stab.registry import StabError, suggest
from stab.reports.columns import EMPTY
from stab.reports.sheets import Sheet
from stab.stabilizers.recipe import SETTINGS
from stab.stabilizers.strings import parse

OWN = (
    "task",
    "stabilizer",
    "method",
    "status",
)  # keys of an entry that filters and groups know beside its settings


def settings(string: str, recipe: Recipe) -> dict[str, Any]:
    """Return the settings of an entry's recipe, as edited, and arguments as ``ema.half_life``."""
    values = {name: getattr(recipe, name) for name in SETTINGS}
    values["optimizer"] = values["optimizer"].removeprefix("torch.optim:")
    try:
        values |= parse(string).arguments
    except StabError:  # a plug-in that is gone
        pass
    kept = (str, int, type(None))
    return {
        name: v if isinstance(v, kept) or _is_finite(v) else str(v) for name, v in values.items()
    }


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def budget(tried: Mapping[str, int]) -> str:
    """Return how many settings each method has, in words."""
    return ", ".join(f"{name} {count}" for name, count in tried.items())


def several(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some method of these entries has more than one setting."""
    names = [(entry["task"], entry["method"]) for entry in entries]
    return len(set(names)) < len(names)


def keys(entries: Iterable[Mapping[str, Any]], by: Sequence[str] | None) -> Sequence[str]:
    """Return what to group entries by; the default is the method if one has several settings."""
    return by if by is not None else ("method",) if several(entries) else ()


def select(leaderboard: dict[str, Any], conditions: Sequence[str]) -> dict[str, Any]:
    """Return the leaderboard with the entries that meet every condition, at their ranks.

    A condition is ``key=value`` or ``key=value|value``; keys are task, stabilizer, method, status
    and every setting, as in an entry's ``settings`` (lr, policy, ema.half_life). An entry without
    the setting does not meet it. Raises StabError for an unknown key, and if no entry is left.
    """
    chosen = matching(leaderboard["entries"], conditions)
    tasks = {
        name: about
        for name, about in leaderboard["run"]["tasks"].items()
        if name in {e["task"] for e in chosen}
    }
    count = f"{len(chosen)} of {len(leaderboard['entries'])} entries"
    shown = f"Shown: {count}, those with {' and '.join(conditions)}."
    return leaderboard | {
        "run": leaderboard["run"] | {"tasks": tasks, "shown": shown},
        "entries": chosen,
    }


def matching(entries: Sequence[dict[str, Any]], conditions: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries that meet every condition; see ``select``."""
    matches = list(entries)
    for condition in conditions:
        key, equals, values = (part.strip() for part in condition.partition("="))
        if not equals or not values:
            raise StabError(
                f"{condition!r} is not a condition: expected key=value, such as lr=0.001 or"
                " method=none|ema"
            )
        _check(key, entries)
        wanted = [value.strip() for value in values.split("|")]
        matches = [
            e
            for e in matches
            if _value(e, key) is not None and any(_same(_value(e, key), one) for one in wanted)
        ]
    if not matches:
        raise StabError(
            f"no entry has {' and '.join(' '.join(condition.split()) for condition in conditions)}"
        )
    return matches


def _check(key: str, entries: Sequence[Mapping[str, Any]]) -> None:
    known = [*OWN, *dict.fromkeys(name for entry in entries for name in entry["settings"])]
    if key not in known:
        raise StabError(f"entries have no {key!r}.{suggest(key, known)} Known: {', '.join(known)}")


def _value(entry: Mapping[str, Any], key: str) -> Any:
    return entry[key] if key in OWN else entry["settings"].get(key)


def _same(value: Any, text: str) -> bool:
    if not isinstance(value, int | float) or str(value) == text:
        return str(value) == text
    try:
        return value == float(text)
    except ValueError:
        return False


@dataclass(frozen=True)
class Group:
    """Entries that share something, and what choosing among them gives.

    Attributes:
        name: what they share.
        tried: how many there are, failed and unsound ones included, skipped ones not.
        ranked: how many can be chosen; if it is 0, ``best`` is None and ``held_out`` NaN.
        best: the entry of lowest GVA.
        held_out: mean over seeds of the GVA, on that seed, of the entry whose mean GVA on the
            others is lowest: what the choice is worth on an unseen seed. NaN with one seed.
        expected: the expected GVA of the best of ``budget`` of those tried, drawn at random; see
            ``expected_lowest``.
        budget: the fewest that any of the groups tried; the same for all.
    """

    name: str
    tried: int
    ranked: int
    best: Mapping[str, Any] | None
    held_out: float
    expected: float
    budget: int


def groups(leaderboard: dict[str, Any], task: str, by: Sequence[str] = ("method",)) -> list[Group]:
    """Group the entries of a task by the values of ``by``; the lowest expected GVA first.

    Raises StabError for an unknown key.
    """
    for key in by:
        _check(key, leaderboard["entries"])
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for entry in leaderboard["entries"]:
        if entry["task"] == task and entry["status"] != "skipped":
            values = {key: _value(entry, key) for key in by}
            name = ", ".join(
                str(value) if key in OWN else f"{key}={'–' if value is None else value}"
                for key, value in values.items()
            )
            grouped.setdefault(name, []).append(entry)
    ranked = {
        name: [e for e in members if e["rank"] is not None] for name, members in grouped.items()
    }
    budget = min(map(len, grouped.values()), default=0)
    fallback = leaderboard["run"]["tasks"][task]["none"]
    result = []
    for name, members in ranked.items():
        shared = min((entry["seeds"] for entry in members), default=0)
        scores = np.array([entry["gva_per_seed"][:shared] for entry in members])
        result.append(
            Group(
                name=name,
                tried=len(grouped[name]),
                ranked=len(members),
                best=min(members, key=lambda entry: entry["rank"], default=None),
                held_out=held_out(scores) if members else math.nan,
                expected=expected_lowest(
                    [entry["gva"] for entry in members],
                    len(grouped[name]),
                    budget,
                    math.nan if fallback is None else fallback,
                ),
                budget=budget,
            )
        )
    return sorted(result, key=lambda group: (group.best is None, group.expected))


def held_out(scores: np.ndarray) -> float:
    """Return the mean over seeds of the score, on that seed, of the best setting on the others.

    ``scores`` is (settings, seeds), lower is better; of equals the first. NaN with one seed.
    """
    count = scores.shape[1]
    if count < 2:
        return math.nan
    others = scores.sum(1, keepdims=True) - scores
    return float(np.mean([scores[np.argmin(others[:, seed]), seed] for seed in range(count)]))


def expected_lowest(scores: Sequence[float], tried: int, budget: int, fallback: float) -> float:
    """Return the expected lowest score of ``budget`` of the ``tried``, drawn without replacement.

    Only those with ``scores`` can be chosen; if none of them is drawn, ``fallback`` counts. With n
    tried, k drawn and s_1 <= ... <= s_r it is the sum of s_i C(n - i, k - 1) / C(n, k), and
    C(n - r, k) / C(n, k) of the fallback: the unbiased estimator of Tang et al., arXiv 2004.13705,
    section 3.
    """
    total = math.comb(tried, budget)
    weights = [math.comb(tried - i, budget - 1) / total for i in range(1, len(scores) + 1)]
    missed = math.comb(tried - len(scores), budget) / total
    return float(np.dot(np.sort(scores), weights)) + (missed * fallback if missed else 0.0)


def sheet(groups: Sequence[Group], by: Sequence[str], title: str) -> Sheet:
    """Return the table of groups, and how to read it, the tuning budget first."""
    budget, equal = groups[0].budget, len({group.tried for group in groups}) == 1
    name = ", ".join(by)
    return Sheet(
        title,
        [name, "ranked", f"best of {budget}", "best of all", "held out", "return", "#"],
        [_cells(group) for group in groups],
        notes=[
            f"Tuning budget: {'every' if equal else 'not every'} line tried as many settings."
            " ranked: how many of them can be chosen.",
            f"best of {budget}: the expected lowest GVA of {budget} of a line's settings, drawn at"
            " random: the same budget for all. If no ranked setting is drawn, none's score counts.",
            "best of all flatters who tried more; return and # are its own. held out: on each seed,"
            " the GVA of the setting that is best on the other seeds.",
        ],
        name=name,
        level=3,
    )


def _cells(group: Group) -> list[str]:
    best = group.best or {"gva": math.nan, "return": math.nan, "rank": EMPTY}
    scores = (group.expected, best["gva"], group.held_out)
    texts = [EMPTY if math.isnan(score) else f"{score:.3f}" for score in scores]
    mean = EMPTY if group.best is None else f"{best['return']:.2f}"
    return [group.name, f"{group.ranked} of {group.tried}", *texts, mean, str(best["rank"])]
