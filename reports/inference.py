"""What seeds allow one to say: paired tests, corrected for their number, and rank intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.05
NAMED = 6  # entries that a sentence names
SMALLEST = 1e-4  # p-value that is written out
MOST = 200  # entries of which all pairs are tested


def paired_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p-value of a paired t-test over seeds; NaN below 3 seeds.

    t = mean(d) / (std(d) / sqrt(S)) with d = first - second and S - 1 degrees of freedom. Where all
    d are equal it is 1 for 0 and 0 otherwise.
    """
    from scipy.special import stdtr  # scipy.stats takes a second to import

    d = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(d) < 3:
        return math.nan
    spread = d.std(ddof=1) / math.sqrt(len(d))
    if spread == 0:
        return float(d[0] == 0)
    return float(2 * stdtr(len(d) - 1, -abs(d.mean() / spread)))


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Return the share of pairs of seeds in which ``first`` is lower; ties count half.

    The Mann-Whitney statistic over its maximum; as in Agarwal et al., arXiv 2108.13264, section
    4.3, for one task, and for a score of which less is better.
    """
    a, b = np.asarray(first, dtype=np.float64)[:, None], np.asarray(second, dtype=np.float64)[None]
    return float(((a < b) + 0.5 * (a == b)).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scand. J. Statist. 6, 1979).

    NaN stays and does not count.

    With p_(1) <= ... <= p_(n) the adjusted p_(i) is the largest of min(1, (n - j + 1) p_(j)) over j
    <= i: the chance of any false finding below a level is at most that level, however the tests
    depend on each other.
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    adjusted, reached = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = reached
    return adjusted


def rank_intervals(scores: ArrayLike) -> list[tuple[int, int]]:
    """Return the ranks that the seeds leave open, for (entries, seeds) scores, lower is better.

    From 1 + the entries that are significantly better to n - those that are significantly worse, by
    paired t-tests of all pairs with Holm's correction: all true ranks lie in their intervals with
    95 % confidence (Mogstad et al., Rev. Econ. Stud. 91, 2024, section 3, who bootstrap the
    differences instead). Below 3 seeds, and of more than ``MOST`` entries, every rank is open.
    """
    scores = np.asarray(scores, dtype=np.float64)
    n, mean = len(scores), scores.mean(1)
    if n > MOST:
        return [(1, n)] * n
    pairs = [(i, j) for i in range(n) for j in range(i)]
    better, worse = np.zeros(n, dtype=int), np.zeros(n, dtype=int)
    for (i, j), p in zip(
        pairs, holm([paired_p(scores[i], scores[j]) for i, j in pairs]), strict=True
    ):
        if p < LEVEL:
            low, high = (i, j) if mean[i] < mean[j] else (j, i)
            worse[low] += 1
            better[high] += 1
    return [(1 + int(better[i]), n - int(worse[i])) for i in range(n)]


def verdict(
    names: Sequence[str],
    scores: Sequence[Sequence[float]],
    none: Sequence[float],
    p: Sequence[float],
    of: int,
) -> str:
    """Return in a sentence what can be said of entries against ``none``.

    ``p`` are adjusted for ``of`` comparisons.
    """
    seeds = len(none)
    if seeds < 3:
        return (
            f"{seeds} seed{'s' * (seeds > 1)}: too few to say whether any difference is more than"
            " chance; 3 are the least, 5 or more are better."
        )
    comparisons = f"{of} comparison{'s' * (of > 1)}"
    how = f"paired t-test over {seeds} seeds, Holm's correction for {comparisons}, 5 %"
    sentences, named = [], 0
    for word, sign in (("Steadier", 1), ("Less steady", -1)):
        significant = [
            f"{name} (p {f'= {value:.2g}' if value >= SMALLEST else f'< {SMALLEST:g}'})"
            for name, own, value in zip(names, scores, p, strict=True)
            if value < LEVEL and sign * (np.mean(none) - np.mean(own)) > 0
        ]
        named += len(significant)
        if significant:
            more = f" and {len(significant) - NAMED} more" if len(significant) > NAMED else ""
            sentences.append(f"{word} than none: {', '.join(significant[:NAMED])}{more}")
    if sentences:
        rest = f" Of the other ranked ones {seeds} seeds do not tell." if named < len(names) else ""
        return f"{'; '.join(sentences)} ({how}).{rest}"
    return (
        f"{seeds} seeds are too few to distinguish any ranked entry from none ({how}): add seeds if"
        " the order matters."
    )
