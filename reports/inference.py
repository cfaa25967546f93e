"""What seeds allow one to say: all entries against ``none``, and rank intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.05
NAMED = 6  # entries that a sentence names
SMALLEST = 1e-3  # p-value that is written out
STEADIER, LESS_STEADY, NO_EVIDENCE = AGAINST_NONE = ("steadier", "less steady", "no evidence")
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


def many_to_one(scores: ArrayLike) -> list[float]:
    """Return the p-values of entries 1, 2, ... against entry 0, corrected for their number.

    ``scores`` is (entries, seeds), seeds are blocks. With the means g_k over S seeds,

        T_k = (g_0 - g_k) / sqrt(max(2 pooled, rel (g_0^2 + g_k^2)) / S)

    ``pooled`` is the residual mean square of entries x seeds, with f = (K - 1)(S - 1) degrees of
    freedom; ``rel`` is the variance over seeds relative to the squared level, of all entries
    together: sum of (g_ks - g_k)^2 / ((S - 1) sum of g_k^2). A steady entry's seeds hardly differ,
    so ``pooled`` alone is too small if many entries are steady: with the larger of the two, the
    chance of any false finding at 5 % is about 5 % at most (simulated in docs/score.md). The
    p-value is ``P(max_k |T_k| >= t)``, two-sided, T a multivariate t with correlations 1/2
    (Dunnett, J. Am. Statist. Assoc. 50, 1955). NaN below 3 seeds. Of one entry it is the p-value of
    the paired t-test, or a larger one.
    """
    g = np.asarray(scores, dtype=np.float64)
    entries, seeds = g.shape
    if seeds < 3 or entries < 2:
        return [math.nan] * (entries - 1)
    level = g.mean(1)
    within = g - level[:, None]
    freedom = (entries - 1) * (seeds - 1)
    pooled = np.square(within - within.mean(0)).sum() / freedom
    squares = np.square(level)
    total = (seeds - 1) * squares.sum()
    rel = np.square(within).sum() / total if total > 0 else 0.0
    error = np.sqrt(np.maximum(2 * pooled, rel * (squares[0] + squares[1:])) / seeds)
    difference = np.abs(level[0] - level[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(difference > 0, difference / error, 0.0)
    return [_dunnett(float(value), entries - 1, freedom) for value in t]


def _dunnett(t: float, entries: int, freedom: int) -> float:
    """Return P(max of ``entries`` of |T| >= t), by Dunnett's double integral.

    T_k = (Z_k - Z_0) / (sqrt(2) s): trapezoids over Z_0, normal, and over log s, f s^2 chi-square.
    """
    from scipy.special import gammaln, ndtr

    z = np.linspace(-8.5, 8.5, 69)
    x = np.linspace(-16, 4, 161) / math.sqrt(freedom)  # log s
    log = freedom * x - freedom * np.exp(2 * x) / 2
    density = np.exp(log + freedom / 2 * math.log(freedom / 2) - gammaln(freedom / 2)) * 2
    over_s = density * (x[1] - x[0])
    over_z = np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    reach = math.sqrt(2) * t * np.exp(x)[:, None]
    inside = ndtr(z + reach) - ndtr(z - reach)
    return min(1.0, float(over_s @ (1 - inside**entries) @ over_z))


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


def against_none(difference: float, p: float) -> str | None:
    """Return what a p-value and the entry's score minus that of ``none`` say; None if p is NaN."""
    if math.isnan(p):
        return None
    if p >= LEVEL:
        return NO_EVIDENCE
    return STEADIER if difference < 0 else LESS_STEADY


def verdict(entries: Sequence[tuple[str, str | None, float]], seeds: int) -> str:
    """Return in a sentence or two what can be said of ranked entries, lowest score first.

    An entry is its name, what ``against_none`` says of it, and its p-value.
    """
    if not entries:
        return "No entry beside none is ranked."
    if seeds < 3:
        return (
            f"{seeds} seed{'s' * (seeds > 1)}: too few to say whether any difference is more than"
            " chance; 3 are the least, 5 or more are better."
        )
    if {what for _, what, _ in entries} == {NO_EVIDENCE}:
        return f"No evidence in {seeds} seeds that any ranked entry is steadier than none, or less."
    said = []
    for word in AGAINST_NONE:
        found = [(name, p) for name, what, p in entries if what == word]
        if not found:
            continue
        if word == NO_EVIDENCE:
            names = ", ".join(name for name, _ in found[:NAMED])
            said.append(f"No evidence: {names}{_more(found)}")
            continue
        by_p: dict[str, list[str]] = {}
        for name, p in found[:NAMED]:
            by_p.setdefault(_written(p), []).append(name)
        names = "; ".join(f"{', '.join(same)} ({p})" for p, same in by_p.items())
        said.append(f"{word.capitalize()} than none: {names}{_more(found)}")
    return f"{'. '.join(said)}."


def _written(p: float) -> str:
    return f"p = {p:.2g}" if p >= SMALLEST else f"p < {SMALLEST:g}"


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - NAMED} more" * (len(found) > NAMED)
