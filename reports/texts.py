"""Generated texts: where those of neighbouring checkpoints part, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from stab.reports.results import Results, Series
from stab.reports.sheets import readable
from stab.reports.table import entries
from stab.stabilizers.strings import method

END = "<end>"  # spelling of the token that ends a text
LONGEST_WORD = 20  # characters; a longer one may be cut
GONE = "[no more]"  # shown if one text has ended and the other has a token


def divergence(a_tokens: Sequence[str], b_tokens: Sequence[str]) -> tuple[int, bool]:
    """Return the place, counted from 1, of the first token in which two texts differ, and True.

    If one ends and the other does not, they differ behind the last token of the shorter. Texts that
    are equal to their end might have differed later: the number of their tokens, and False.
    """
    for place, (a, b) in enumerate(zip(a_tokens, b_tokens, strict=False), 1):
        if a != b:
            return place, True
    shorter, longer = sorted((len(a_tokens), len(b_tokens)))
    return (longer, False) if shorter == longer else (shorter + 1, True)


def times(series: Series) -> np.ndarray:
    """Return where the texts of each window checkpoint and the next part: float64 (S, M-1, N).

    As ``divergence`` counts; inf if texts are equal to their end, NaN if one is missing.
    """
    written = _texts(series)
    updates, starts = series.updates[series.window].tolist(), series.cells[0]["starts"]
    places = np.full((len(series.seeds), len(updates) - 1, len(starts)), math.nan)
    for s, m, n in np.ndindex(places.shape):
        a, b = (written.get((series.seeds[s], update, starts[n])) for update in updates[m : m + 2])
        if a is not None and b is not None:
            place, differs = divergence(a["tokens"], b["tokens"])
            places[s, m, n] = place if differs else math.inf
    return places


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
    written = _texts(series).items()
    return max((len(t["tokens"]) for (_, update, _), t in written if update in window), default=0)


def survival(times: np.ndarray, last: int) -> np.ndarray:
    """Return the share of pairs that are the same in their first t tokens, t = 0 to ``last``.

    S(t) = |{time > t}| / |{time}|, shape (last + 1,), over the ``times`` of any shape that are not
    NaN; there must be one. A pair that never parts is the same at every t, beyond its end as well:
    nothing is censored.
    """
    known = np.sort(times[~np.isnan(times)])
    return np.asarray(1 - np.searchsorted(known, np.arange(last + 1), side="right") / len(known))


def middle(times: np.ndarray) -> float:
    """Return the lower median of the ``times`` but NaN; inf if more than half never part."""
    known = np.sort(times[~np.isnan(times)])
    return float(known[(len(known) - 1) // 2])


def first_average(results: Results, leaderboard: dict[str, Any], task: str) -> str | None:
    """Return the highest EMA of the raw iterates, else the highest other average, or None."""
    averages = [
        entry["stabilizer"]
        for entry in entries(leaderboard, task)
        if (one := results.series.get((task, entry["stabilizer"])))
        and one.cells[0]["raw"] == "none"
        and one.rider["average"]
    ]
    return min(averages, key=lambda string: method(string) != "ema", default=None)


@dataclass(frozen=True)
class Text:
    """What a checkpoint wrote, and where it departs from what the other one wrote.

    Attributes:
        update: of the checkpoint.
        score: the normalised return.
        same: what both wrote.
        mark: the first token that only this one wrote; empty if both are equal to their end.
        rest: what follows.
    """

    update: int
    score: float
    same: str
    mark: str
    rest: str


@dataclass(frozen=True)
class Pair:
    """What two neighbouring checkpoints wrote; ``place``: of the first token that differs."""

    stabilizer: str
    place: int | None
    texts: tuple[Text, Text]

    @property
    def description(self) -> str:
        """Where they part, in words."""
        if self.place is None:
            return "the same to the end"
        return f"token {self.place} is the first to differ"


@dataclass(frozen=True)
class Example:
    """Texts from one prompt: of the raw iterates and of an average, if there is one."""

    seed: int
    start: int
    prompt: str
    pairs: list[Pair]

    @property
    def description(self) -> str:
        """How it was chosen, in words."""
        return (
            f"The last two checkpoints, seed {self.seed}; of the starts the one (start"
            f" {self.start}) where the texts of none differ after the median number of tokens;"
            " common beginning in grey, first token that differs marked"
        )


def example(results: Results, leaderboard: dict[str, Any], task: str) -> Example | None:
    """Return the texts to show, or None if there are none; nobody chooses them by hand.

    The last two checkpoints of the window, the first seed, and the start at which the texts of
    ``none`` part at the ``middle`` of its times; of several such starts the first.
    """
    base, string = results.series.get((task, "none")), first_average(results, leaderboard, task)
    if base is None:
        return None
    shown = [base] if string is None else [base, results.series[task, string]]
    last = {one.stabilizer: times(one)[0, -1] for one in shown}
    shown = [one for one in shown if not np.isnan(last[one.stabilizer]).all()]
    missing = np.any([np.isnan(last[one.stabilizer]) for one in shown], axis=0)
    both = np.where(missing, math.nan, last["none"])
    if base not in shown or np.isnan(both).all():
        return None
    n = int(np.flatnonzero(both == middle(both))[0])
    seed, start = base.seeds[0], base.cells[0]["starts"][n]
    written = [_texts(one) for one in shown]
    updates = base.updates[base.window][-2:].tolist()
    tokens = [[of[seed, update, start]["tokens"] for update in updates] for of in written]
    prompt = written[0][seed, updates[0], start]["prompt"]
    # Pieces of words hold their own spaces, words do not.
    every = [token for text in (prompt, *chain(*tokens)) for token in text]
    between = "" if any(token[:1].isspace() for token in every) else " "
    pairs = []
    for one, (a, b) in zip(shown, tokens, strict=True):
        place, differs = divergence(a, b)
        begin = place - 1 if differs else place
        scores = one.returns[0, one.window][-2:, n].tolist()
        texts = [
            Text(update, score, *_split(text, begin, differs, between))
            for update, score, text in zip(updates, scores, (a, b), strict=True)
        ]
        pairs.append(Pair(one.stabilizer, place if differs else None, (texts[0], texts[1])))
    return Example(seed, start, "".join(_spelled(prompt, between)).strip(), pairs)


def _spelled(tokens: Iterable[str], between: str) -> Iterator[str]:
    """Yield tokens as they are shown, each with what separates it from the one before."""
    for n, token in enumerate(tokens):
        yield (" " if n and token == END else between * (n > 0)) + readable(token)


def _split(tokens: Sequence[str], begin: int, differs: bool, between: str) -> tuple[str, str, str]:
    """Return what precedes the token at ``begin``, the token without spaces, and what follows."""
    shown = list(_spelled(tokens, between))
    same, rest = "".join(shown[:begin]), "".join(shown[begin + 1 :])
    mark = shown[begin] if begin < len(shown) else f" {GONE}" * differs
    bare = mark.strip() or mark  # a token may be nothing but a space
    before, _, after = mark.partition(bare) if bare else ("", "", "")
    return (same + before).lstrip(), bare, after + rest


def shortened(text: Text, before: int, after: int) -> tuple[str, str, str]:
    """Return ``same``, cut to ``before`` characters, ``mark`` and ``rest``, to ``after`` each.

    If nothing is marked, ``same`` is cut to ``after``.
    """
    same = ending(text.same, before) if text.mark else beginning(text.same, after)
    return same, beginning(text.mark, after), beginning(text.rest, after)


def beginning(text: str, most: int) -> str:
    """Return at most ``most`` characters of the beginning; a cut ends in …"""
    if len(text) <= most:
        return text
    start = text[: max(0, most - 2)]
    space = start.rfind(" ", max(0, most - LONGEST_WORD))
    return f"{start[:space] if space > 0 else start} …"


def ending(text: str, most: int) -> str:
    """Return at most ``most`` characters of the end, cut like the beginning."""
    return beginning(text[::-1], most)[::-1]
