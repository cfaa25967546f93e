"""Generated texts: when those of neighbouring checkpoints part, and what they say from there on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from stab.reports.statistics import Results, Series
from stab.reports.table import entries, readable
from stab.stabilizers.base import method

END = "<end>"  # as a token that ends a text is spelled
LONGEST_WORD = 20  # characters; a longer one may be cut
GONE = "[no more]"  # in the place of a token, where one text has ended and the other goes on


def divergence(a_tokens: Sequence[str], b_tokens: Sequence[str]) -> tuple[int, bool]:
    """Return the place, counted from 1, of the first token in which two texts differ, and True.

    Where one ends and the other goes on they differ behind the last token of the shorter. Texts that are equal to
    their end may have differed later: the number of their tokens, and False.
    """
    for place, (a, b) in enumerate(zip(a_tokens, b_tokens, strict=False), 1):
        if a != b:
            return place, True
    shorter, longer = sorted((len(a_tokens), len(b_tokens)))
    return (longer, False) if shorter == longer else (shorter + 1, True)


def times(series: Series) -> np.ndarray:
    """Return where the texts of each window checkpoint and the next part, float64 (S, M-1, N), as ``divergence`` counts.

    inf where they are equal to their end, NaN where one is missing.
    """
    found = _texts(series)
    updates, starts = series.updates[series.window].tolist(), series.cells[0]["starts"]
    parted = np.full((len(series.seeds), len(updates) - 1, len(starts)), math.nan)
    for s, m, n in np.ndindex(parted.shape):
        pair = [found.get((series.seeds[s], update, starts[n])) for update in updates[m : m + 2]]
        if pair[0] is not None and pair[1] is not None:
            place, differs = divergence(pair[0]["tokens"], pair[1]["tokens"])
            parted[s, m, n] = place if differs else math.inf
    return parted


def _texts(series: Series) -> dict[tuple[int, int, int], dict[str, list[str]]]:
    """Return the texts of a series by (seed, update, start)."""
    return {
        (cell["seed"], row["update"], row["start"]): row["text"]
        for cell in series.cells
        for row in cell["rows"]
        if row["stabilizer"] == series.stabilizer and "text" in row
    }


def longest(series: Series) -> int:
    """Return how many tokens the longest text of the window has."""
    window = {*series.updates[series.window].tolist()}
    return max(
        (
            len(text["tokens"])
            for (_, update, _), text in _texts(series).items()
            if update in window
        ),
        default=0,
    )


def survival(parted: np.ndarray, last: int) -> np.ndarray:
    """Return the share of pairs that are the same in their first t tokens, at t = 0, 1, ..., ``last``: (last + 1,).

    S(t) = |{time > t}| / |{time}| over the ``times`` of any shape that are not NaN, of which there must be one. A pair
    that never parts is the same at every t, beyond its end as well: nothing is censored.
    """
    found = np.sort(parted[~np.isnan(parted)])
    return np.asarray(1 - np.searchsorted(found, np.arange(last + 1), side="right") / len(found))


def middle(parted: np.ndarray) -> float:
    """Return the lower median of the ``times`` that are not NaN: one of them; inf where more than half never part."""
    found = np.sort(parted[~np.isnan(parted)])
    return float(found[(len(found) - 1) // 2])


def first_average(results: Results, leaderboard: dict[str, Any], task: str) -> str | None:
    """Return the EMA of the raw iterates that stands first on the leaderboard, or the first other average, or None."""
    riding = [
        entry["stabilizer"]
        for entry in entries(leaderboard, task)
        if (one := results.series.get((task, entry["stabilizer"])))
        and one.cells[0]["raw"] == "none"
        and one.rider["average"]
    ]
    return min(riding, key=lambda string: method(string) != "ema", default=None)


@dataclass(frozen=True)
class Text:
    """What a checkpoint wrote, and where it departs from what the other one wrote.

    Attributes:
        update: of the checkpoint.
        score: the normalised return.
        same: what both wrote.
        mark: the first token that only this one wrote; nothing where both are equal to their end.
        rest: what follows.
    """

    update: int
    score: float
    same: str
    mark: str
    rest: str


@dataclass(frozen=True)
class Pair:
    """The texts of two neighbouring checkpoints of a stabilizer; ``place``: of the first token that differs, or None."""

    stabilizer: str
    place: int | None
    texts: tuple[Text, Text]

    @property
    def description(self) -> str:
        """Where they part, in words."""
        return (
            "the same to the end"
            if self.place is None
            else f"token {self.place} is the first to differ"
        )


@dataclass(frozen=True)
class Example:
    """Texts side by side: of the raw iterates and, where there is one, of an average of them, from the same prompt."""

    seed: int
    start: int
    prompt: str
    pairs: list[Pair]

    @property
    def description(self) -> str:
        """How it was chosen, in words."""
        return (
            f"The last two checkpoints, seed {self.seed}; of the starts the one (start {self.start}) where the texts of none"
            " differ after the median number of tokens; common beginning in grey, first token that differs marked"
        )


def example(results: Results, leaderboard: dict[str, Any], task: str) -> Example | None:
    """Return the texts to show, or None where there are none; nobody chooses them by hand.

    The last two checkpoints of the window, the first seed, and the start at which the texts of ``none`` part at the
    ``middle`` of its times; of several such starts the first.
    """
    base, string = results.series.get((task, "none")), first_average(results, leaderboard, task)
    if base is None:
        return None
    shown = [base] if string is None else [base, results.series[task, string]]
    last = {one.stabilizer: times(one)[0, -1] for one in shown}
    shown = [one for one in shown if not np.isnan(last[one.stabilizer]).all()]
    both = np.where(
        np.any([np.isnan(last[one.stabilizer]) for one in shown], axis=0), math.nan, last["none"]
    )
    if base not in shown or np.isnan(both).all():
        return None
    n = int(np.flatnonzero(both == middle(both))[0])
    seed, start = base.seeds[0], base.cells[0]["starts"][n]
    found = [_texts(one) for one in shown]
    updates = base.updates[base.window][-2:].tolist()
    tokens = [[of[seed, update, start]["tokens"] for update in updates] for of in found]
    prompt = found[0][seed, updates[0], start]["prompt"]
    # Pieces of words hold their own spaces, words do not.
    every = [token for text in (prompt, *chain(*tokens)) for token in text]
    between = "" if any(token[:1].isspace() for token in every) else " "
    pairs = []
    for one, (a, b) in zip(shown, tokens, strict=True):
        place, differs = divergence(a, b)
        begin = place - 1 if differs else place
        scores = one.returns[0, one.window][-2:, n].tolist()
        texts = [
            Text(update, score, *_parted(text, begin, differs, between))
            for update, score, text in zip(updates, scores, (a, b), strict=True)
        ]
        pairs.append(Pair(one.stabilizer, place if differs else None, (texts[0], texts[1])))
    return Example(seed, start, "".join(_spelled(prompt, between)).strip(), pairs)


def _spelled(tokens: Iterable[str], between: str) -> Iterator[str]:
    """Yield tokens as they are shown, each with what stands between it and the one before."""
    for n, token in enumerate(tokens):
        yield (" " if n and token == END else between * (n > 0)) + readable(token)


def _parted(tokens: Sequence[str], begin: int, differs: bool, between: str) -> tuple[str, str, str]:
    """Return what stands before the token at ``begin``, that token, and what follows; spaces belong to the neighbours."""
    shown = list(_spelled(tokens, between))
    same, rest = "".join(shown[:begin]), "".join(shown[begin + 1 :])
    mark = shown[begin] if begin < len(shown) else f" {GONE}" * differs
    bare = mark.strip() or mark  # a token may be nothing but a space
    before, _, after = mark.partition(bare) if bare else ("", "", "")
    return (same + before).lstrip(), bare, after + rest


def shortened(text: Text, before: int, after: int) -> tuple[str, str, str]:
    """Return ``same``, ``mark`` and ``rest``, cut: ``before`` characters of the first, ``after`` of the others each.

    Where nothing is marked, ``after`` characters of the first.
    """
    same = ending(text.same, before) if text.mark else beginning(text.same, after)
    return same, beginning(text.mark, after), beginning(text.rest, after)


def beginning(text: str, most: int) -> str:
    """Return at most ``most`` characters of the beginning of a text; where it is cut, at a space if one is near, …."""
    if len(text) <= most:
        return text
    kept = text[: max(0, most - 2)]
    space = kept.rfind(" ", max(0, most - LONGEST_WORD))
    return f"{kept[:space] if space > 0 else kept} …"


def ending(text: str, most: int) -> str:
    """Return the same of the end of a text."""
    return beginning(text[::-1], most)[::-1]


def wrapped(text: str, width: int) -> list[tuple[int, int]]:
    """Break text into lines of at most ``width`` characters, at spaces where it can; return where each begins and ends."""
    lines, begin = [], 0
    while begin < len(text):
        end = min(begin + width, len(text))
        if end < len(text) and (space := text.rfind(" ", begin + 1, end + 1)) > begin:
            end = space
        lines.append((begin, end))
        begin = end + (text[end : end + 1] == " ")
    return lines
