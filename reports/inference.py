"""What seeds allow one to say: all entries against ``none``, intervals, ranks, seeds needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stab import gva

LEVEL = 0.05
NAMED = 6  # entries that a sentence names
SMALLEST = 1e-3  # p-value that is written out
STEADIER, LESS_STEADY, NO_EVIDENCE = AGAINST_NONE = ("steadier", "less steady", "no evidence")
MOST = 200  # entries of which all pairs are tested
# Seeds needed: the chance to find a difference as large as the measured one, in standard deviations
# of a normal variable (80 %), and the most that are counted.
POWER, MOST_SEEDS = 0.842, 30


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


def many_to_one(scores: ArrayLike, family: int | None = None, tests: int = 1) -> list[float]:
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

    If entries were tested before, with fewer seeds, and some of them stopped, ``family`` counts all
    that began (default: those in ``scores``), and the p-values are multiplied by ``tests``, the
    number of tests that are planned: the chance of any false finding in any of them is at most the
    sum over tests (Bonferroni).
    """
    g = np.asarray(scores, dtype=np.float64)
    entries, seeds = g.shape
    if seeds < 3 or entries < 2:
        return [math.nan] * (entries - 1)
    freedom = (entries - 1) * (seeds - 1)
    family = family or entries - 1
    return [min(1.0, tests * _dunnett(t, family, freedom)) for t in _statistics(g).tolist()]


def _statistics(g: np.ndarray) -> np.ndarray:
    """Return |T_k| of entries 1, 2, ..., as in ``many_to_one``; 0 without a difference."""
    difference, variance = _against_first(g)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference > 0, difference / np.sqrt(variance / g.shape[1]), 0.0)


def _against_first(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return |g_0 - g_k| and the variance of g_0s - g_ks over seeds, as in ``many_to_one``."""
    seeds = g.shape[1]
    level = g.mean(1)
    within = g - level[:, None]
    squares = np.square(level)
    total = (seeds - 1) * squares.sum()
    rel = np.square(within).sum() / total if total > 0 else 0.0
    error = np.maximum(2 * _pooled(g), rel * (squares[0] + squares[1:]))
    return np.abs(level[0] - level[1:]), error


def _pooled(g: np.ndarray) -> float:
    """Return the residual mean square of entries x seeds, (K - 1)(S - 1) degrees of freedom."""
    entries, seeds = g.shape
    within = g - g.mean(1, keepdims=True)
    return float(np.square(within - within.mean(0)).sum() / ((entries - 1) * (seeds - 1)))


def seeds_needed(scores: ArrayLike, family: int | None = None, tests: int = 1) -> list[int | None]:
    """Return how many seeds would show each difference to entry 0, if it is as large as measured.

    The least S' above S for which a difference and a variance as measured in ``scores`` (entries,
    seeds) give T_k >= c + 0.842, c the 5 % critical value of ``many_to_one`` with S' seeds: a
    chance of about 80 %. None if more than 30 would be needed, or below 3 seeds. ``family`` and
    ``tests`` as in ``many_to_one``, the test to come included.
    """
    g = np.asarray(scores, dtype=np.float64)
    entries, seeds = g.shape
    if seeds < 3 or entries < 2:
        return [None] * (entries - 1)
    difference, variance = _against_first(g)
    family = family or entries - 1

    def threshold(n: int) -> float:
        return _critical(family, (entries - 1) * (n - 1), LEVEL / tests) + POWER

    needed: list[int | None] = []
    for d, v in zip(difference.tolist(), variance.tolist(), strict=True):
        low, high = seeds, MOST_SEEDS  # not enough, enough
        if seeds >= high or d * math.sqrt(high) < threshold(high) * math.sqrt(v) or not d > 0:
            needed.append(None)
            continue
        while high - low > 1:
            n = (low + high) // 2
            enough = d * math.sqrt(n) >= threshold(n) * math.sqrt(v)
            low, high = (low, n) if enough else (n, high)
        needed.append(high)
    return needed


@dataclass(frozen=True)
class Tested:
    """An entry against entry 0, at the last test that it took part in.

    Attributes:
        seeds: of that test.
        difference: mean score minus that of entry 0, over these seeds.
        p: of ``many_to_one``, adjusted for entries and tests.
        needed: of ``seeds_needed``; None as well if the difference is shown.
        undecided: whether it is not shown, but the last test would show it with its own variance if
            the difference were a standard error larger than measured.
    """

    seeds: int
    difference: float
    p: float
    needed: int | None
    undecided: bool


def sequential(scores: Sequence[Sequence[float]], tests: Sequence[int]) -> list[Tested]:
    """Test entries 1, 2, ... against entry 0 where some have more seeds than others.

    ``scores`` has the scores per seed of each entry, entry 0 with the most; ``tests`` are the
    numbers of seeds at which a test is planned. An entry is tested at its own number of seeds,
    beside all that have as many, so what is said of it stays the same while others get more seeds.
    """
    counts, family = [len(own) for own in scores], len(scores) - 1
    tested: dict[int, Tested] = {}
    for seeds in sorted(set(counts[1:])):
        members = [k for k, count in enumerate(counts) if count >= seeds]
        g = np.array([scores[k][:seeds] for k in members])
        p_values = many_to_one(g, family, len(tests))
        # After the last planned test, more seeds are one test more.
        needed = seeds_needed(g, family, len(tests) + (seeds == tests[-1]))
        reach, critical = np.zeros(len(g) - 1), math.inf
        if seeds < tests[-1]:
            reach = _reach(g, tests[-1])
            critical = _critical(family, (len(g) - 1) * (tests[-1] - 1), LEVEL / len(tests))
        for i, k in enumerate(members[1:]):
            if counts[k] == seeds:
                shown = p_values[i] < LEVEL
                tested[k] = Tested(
                    seeds,
                    float(g[i + 1].mean() - g[0].mean()),
                    p_values[i],
                    None if shown else needed[i],
                    not shown and reach[i] >= critical,
                )
    return [tested[k] for k in range(1, len(scores))]


def _reach(g: np.ndarray, seeds: int) -> np.ndarray:
    """Return |T_k| with so many seeds if differences are a standard error larger than measured."""
    difference, variance = _against_first(g)
    error = np.sqrt(variance / g.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = (difference + error) / np.sqrt(variance / seeds)
    return np.where(error > 0, reach, 0.0)


@functools.cache
def _critical(entries: int, freedom: int, level: float) -> float:
    """Return the value that the largest |T| exceeds with a chance of ``level``."""
    low, high = 0.0, 50.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _dunnett(middle, entries, freedom) > level else (low, middle)
    return high


def score_intervals(J: ArrayLike) -> list[tuple[float, float]]:
    """Return 95 % intervals of the GVA of a task's entries; their ends are at or above 0.

    ``J`` is (entries, seeds S, checkpoints M, starts N). b_ks is the variance over checkpoints of
    the mean over starts, w_ks = episode / N what the noise of single episodes adds to it
    (``gva.components``). With their means over seeds b and w, and F quantiles of nu and S (M - 1)(N
    - 1) degrees of freedom, the interval is

        sqrt(max(0, b / F_0.975 - w))  to  sqrt(max(0, b / F_0.025 - w)),   nu = 2 / (c / S + d)

    (Williams, Biometrika 49, 1962; Tukey, Ann. Math. Statist. 22, 1951). c is the squared
    coefficient of variation of b over seeds, of all entries together: sum of (b_ks - b_k)^2 / ((S -
    1) sum of b_k^2), and at least 2 / (M - 1), its value for normal checkpoints and equal seeds. d
    is that over starts: the jackknife variances of b - w, leaving out a start at a time, over the
    sum of b_k^2; 0 with two starts. So seeds that differ, checkpoints that correlate and starts
    that differ widen it.

    An entry that never failed has no spread of its own, which does not prove that it never fails:
    the upper end is at least ``gva.resolution`` with the mean episode noise of all entries.
    Coverage is simulated in docs/score.md. NaN below 3 seeds.
    """
    from scipy.special import fdtri  # scipy.stats takes a second to import

    J = np.asarray(J, dtype=np.float64)
    entries, seeds, M, N = J.shape
    if seeds < 3:
        return [(math.nan, math.nan)] * entries
    b = J.mean(-1).var(-1, ddof=1)
    level, noise = b.mean(1), gva.components(J).episode.mean(1) / N
    squares = np.square(level).sum()
    over_seeds = over_starts = 0.0
    if squares > 0:
        over_seeds = np.square(b - level[:, None]).sum() / ((seeds - 1) * squares)
        if N > 2:
            left = [gva.components(np.delete(J, n, -1)).checkpoint.mean(1) for n in range(N)]
            over_starts = np.var(left, axis=0).sum() * (N - 1) / squares
    nu = 2 / (max(over_seeds, 2 / (M - 1)) / seeds + over_starts)
    rest, least = seeds * (M - 1) * (N - 1), gva.resolution(J.reshape(-1, M, N)) * entries**0.25
    low, high = (
        np.sqrt(np.maximum(0, level / fdtri(nu, rest, share) - noise)) for share in (0.975, 0.025)
    )
    return list(zip(low.tolist(), np.maximum(high, least).tolist(), strict=True))


def return_bounds(returns: ArrayLike) -> list[tuple[float, float]]:
    """Return one-sided 95 % bounds, lower and upper, of the return of each entry minus entry 0's.

    ``returns`` is (entries, seeds), seeds are blocks. y_k - y_0 -+ t_0.95 sqrt(v / S), where v is
    the larger of twice the residual mean square of entries x seeds and the entry's own variance of
    the difference over seeds; t has (K - 1)(S - 1) degrees of freedom. NaN below 3 seeds.
    """
    from scipy.special import stdtrit

    y = np.asarray(returns, dtype=np.float64)
    entries, seeds = y.shape
    if seeds < 3 or entries < 2:
        return [(math.nan, math.nan)] * (entries - 1)
    difference = y[1:] - y[0]
    variance = np.maximum(2 * _pooled(y), difference.var(1, ddof=1))
    half = stdtrit((entries - 1) * (seeds - 1), 0.95) * np.sqrt(variance / seeds)
    mean = difference.mean(1)
    return list(zip((mean - half).tolist(), (mean + half).tolist(), strict=True))


def rises(gains: ArrayLike) -> bool:
    """Return whether entry 0's return rose over the window: one-sided t-test at 5 %, above 0.05.

    ``gains`` is (entries, seeds) of ``gva.gain``; the variance over seeds is the larger of entry
    0's and the mean of all entries'. Below 3 seeds the mean decides.
    """
    from scipy.special import stdtrit

    g = np.asarray(gains, dtype=np.float64)
    seeds = g.shape[1]
    mean = float(g[0].mean())
    if mean <= gva.MARGIN or seeds < 3:
        return mean > gva.MARGIN
    variances = g.var(1, ddof=1)
    error = math.sqrt(max(variances[0], variances.mean()) / seeds)
    return mean > float(stdtrit(seeds - 1, 0.95)) * error


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
    t-tests of all pairs with Holm's correction, their error pooled as in ``many_to_one``: all true
    ranks lie in their intervals with 95 % confidence (Mogstad et al., Rev. Econ. Stud. 91, 2024,
    section 3, who bootstrap the differences instead). Below 3 seeds, and of more than ``MOST``
    entries, every rank is open.
    """
    from scipy.special import stdtr

    g = np.asarray(scores, dtype=np.float64)
    n, seeds = g.shape
    if n > MOST or n < 2 or seeds < 3:
        return [(1, n)] * n
    freedom = (n - 1) * (seeds - 1)
    pairs, p_values = [], []
    for i in range(n):
        # Entry i first: the rest of the family stays the same, so that the error does, too.
        order = [i, *(j for j in range(n) if j != i)]
        for j, p in zip(order[1:], 2 * stdtr(freedom, -_statistics(g[order])), strict=True):
            if j < i:
                pairs.append((i, j))
                p_values.append(float(p))
    mean = g.mean(1)
    better, worse = np.zeros(n, dtype=int), np.zeros(n, dtype=int)
    for (i, j), p in zip(pairs, holm(p_values), strict=True):
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
