"""The GVA score, protocol 2: arrays in, numbers out.

Throughout, ``J`` is an array of normalised returns (..., checkpoints, starts) of a window,
checkpoints in the order of training, any leading axes training seeds; J = (return - random) /
(expert - random), D4RL's normalisation (arXiv 2004.07219, section 4) on a 0-1 scale.

Within a seed, J[m, n] = start n + checkpoint m + rest: the two-way random model. The score is the
standard deviation of the checkpoint part, estimated by the method of moments (Searle, Casella,
McCulloch, Variance Components, 1992, section 4.3). Variances are pooled over seeds before the root
is taken, since a root of each would be biased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

PROTOCOL = 2
LAGS = (1, 2, 4, 8)
HORIZONS = 20
MARGIN = 0.05
NOT_LEARNED = 0.2
ONE_SIDED = 1.645  # standard deviations: 95 % of a normal variable lie below


def window(updates: int, every: int) -> list[int]:
    """Return the scored checkpoints, every ``every`` updates back from the last to the half."""
    return [t for t in range(updates, 0, -every) if 2 * t >= updates][::-1]


def curve_only(updates: int, every: int) -> list[int]:
    """Return the few checkpoints before the window, for the curve: at about 10 and 30 %."""
    grid = np.arange(updates % every or every, updates, every)
    grid = grid[2 * grid < updates]
    if not len(grid):
        return []
    wanted = updates * np.array([0.1, 0.3])
    return sorted({int(grid[np.abs(grid - w).argmin()]) for w in wanted})


def horizon_grid(horizon: int) -> list[int]:
    """Return about 20 evenly spaced horizons, the last of them ``horizon``."""
    return sorted({math.ceil(horizon * i / HORIZONS) for i in range(1, HORIZONS + 1)})


@dataclass(frozen=True)
class Components:
    """Unbiased variances of the parts of J = start + checkpoint + rest; any of the first two < 0.

    Attributes:
        checkpoint: how the return that the policy is worth moves between checkpoints; one number
            per leading index of J, as the others.
        start: how much harder some starts are than others.
        episode: the rest: the chaos of single episodes, which any change of the last bits moves,
            and what single starts do at single checkpoints.
    """

    checkpoint: np.ndarray
    start: np.ndarray
    episode: np.ndarray


def components(J: ArrayLike) -> Components:
    """Return the variance components of J (..., checkpoints M, starts N).

        episode    = sum of (J[m, n] - J[m, .] - J[., n] + J[., .])^2 / ((M - 1) (N - 1))
        checkpoint = Var_m(J[m, .]) - episode / N
        start      = Var_n(J[., n]) - episode / M

    with sample variances. Raises ValueError below two checkpoints or two starts: with one start the
    checkpoint's part cannot be told from the noise of its episode.
    """
    J = _window(J)
    M, N = J.shape[-2:]
    by_checkpoint, by_start = J.mean(-1, keepdims=True), J.mean(-2, keepdims=True)
    rest = J - by_checkpoint - by_start + J.mean((-2, -1), keepdims=True)
    episode = np.square(rest).sum((-2, -1)) / ((M - 1) * (N - 1))
    return Components(
        checkpoint=by_checkpoint[..., 0].var(-1, ddof=1) - episode / N,
        start=by_start[..., 0, :].var(-1, ddof=1) - episode / M,
        episode=episode,
    )


def gva(J: ArrayLike) -> float:
    """Return the score: sqrt(max(0, mean over seeds of the checkpoint component)).

    The standard deviation, between two checkpoints of the window, of the return that the policy is
    worth over initial states; the noise of finitely many episodes is subtracted. In other words,
    the root of the mean over all pairs of checkpoints of (d^2 - Var_n(D_n) / N) / 2, D_n the
    difference at start n and d its mean over the N starts. Raises ValueError as ``components``.
    """
    return _root(components(J).checkpoint)


def gva_per_seed(J: ArrayLike) -> list[float]:
    """Return sqrt(max(0, checkpoint component)) of each seed of J (seeds, checkpoints, starts)."""
    values: list[float] = np.sqrt(np.maximum(components(J).checkpoint, 0)).tolist()
    return values


def gva_by_lag(J: ArrayLike, lags: Sequence[int] = LAGS) -> dict[int, float]:
    """Return the score from the pairs of checkpoints ``lag`` apart, by lag.

    Equals ``gva`` in expectation where checkpoints are exchangeable; is smaller at small lags where
    the read-out has a long memory. Lag 1 is the Allan deviation of the checkpoint returns (Allan,
    Proc. IEEE 54, 1966), without the noise of single episodes.
    """
    J = _window(J)
    found = {}
    for lag in lags:
        if lag < J.shape[-2]:
            change = J[..., lag:, :] - J[..., :-lag, :]
            noise = change.var(-1, ddof=1) / J.shape[-1]
            found[lag] = _root((np.square(change.mean(-1)) - noise) / 2)
    return found


def gva_adjacent(J: ArrayLike) -> float:
    """Return gva_by_lag at lag 1."""
    return gva_by_lag(J, [1])[1]


def gva_mean(J: ArrayLike) -> float:
    """Return the deviation over checkpoints (divisor M - 1) of the mean over starts.

    What the paper plots. It holds the noise of finitely many episodes, which ``gva`` does not.
    """
    return _root(_window(J).mean(-1).var(-1, ddof=1))


def gva_protocol_1(J: ArrayLike) -> float:
    """Return the score of protocol 1: mean over seeds of sqrt(mean_n Var_m J[m, n])."""
    return float(np.sqrt(_window(J).var(-2, ddof=1).mean(-1)).mean())


def episode_noise(J: ArrayLike) -> float:
    """Return the standard deviation of the rest: how single episodes differ beyond all else."""
    return _root(components(J).episode)


def start_deviation(J: ArrayLike) -> float:
    """Return the standard deviation over starts of the return that all checkpoints share there."""
    return _root(components(J).start)


def gva_trend(J: ArrayLike) -> float:
    """Return the part of the score that a straight line over the window explains.

    With the least-squares line through the M checkpoint means, its sum of squares L and the
    residual mean square r = (sum of squares - L) / (M - 2), the checkpoint component is exactly

        (L - r) / (M - 1)  +  (r - episode / N)

    The root of the first term is returned, of the second ``gva_detrended``: each is unbiased where
    checkpoints scatter independently around a line. NaN below three checkpoints.
    """
    line, _ = _line(J)
    return _root(line)


def gva_detrended(J: ArrayLike) -> float:
    """Return the score without the part that a straight line explains; see ``gva_trend``.

    Averages move slowly, so that a line fits what is left of their oscillation, too; therefore this
    is reported beside the score. NaN below three checkpoints.
    """
    _, scatter = _line(J)
    return _root(scatter)


def _line(J: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The two terms of ``gva_trend``."""
    J = _window(J)
    M, N = J.shape[-2:]
    if M < 3:
        return np.full(J.shape[:-2], math.nan), np.full(J.shape[:-2], math.nan)
    means, time = J.mean(-1), np.arange(M) - (M - 1) / 2
    line = np.square((means * time).sum(-1)) / np.square(time).sum()
    residual = (means.var(-1) * M - line) / (M - 2)
    return (line - residual) / (M - 1), residual - components(J).episode / N


def gain(J: ArrayLike) -> float:
    """Return the mean over the window's last third minus that over its first, at least 1 each."""
    means = _window(J).mean(-1)
    third = max(1, means.shape[-1] // 3)
    return float((means[..., -third:].mean(-1) - means[..., :third].mean(-1)).mean())


def gva_by_horizon(J: ArrayLike) -> list[float]:
    """Return gva at each horizon of J (..., checkpoints, starts, horizons).

    NaN if J is not finite there.
    """
    J = np.asarray(J, dtype=np.float64)
    return [
        gva(J[..., h]) if np.isfinite(J[..., h]).all() else math.nan for h in range(J.shape[-1])
    ]


def gva_late(J: ArrayLike, updates: Sequence[int], total: int) -> float:
    """Return gva of the last quarter of training; NaN if fewer than two checkpoints lie there."""
    late = 4 * np.asarray(updates) >= 3 * total
    return gva(_window(J)[..., late, :]) if late.sum() > 1 else math.nan


def regret(J: ArrayLike) -> float:
    """Return the best checkpoint mean minus that of the last checkpoint, mean over seeds; >= 0.

    What deploying the last checkpoint costs against the window's best one. The best is chosen on
    the same starts, so with few starts part of it is noise.
    """
    means = _window(J).mean(-1)
    return float((means.max(-1) - means[..., -1]).mean())


def share_below(J: ArrayLike, level: float) -> float:
    """Return the share of checkpoints whose mean over starts is below ``level``: 0 to 1."""
    return float((_window(J).mean(-1) < level).mean())


def reached(J: ArrayLike, level: float) -> int | None:
    """Return from where on the mean over seeds and starts is at least ``level``.

    The place of that checkpoint in J (..., checkpoints, starts); None if the last one is below.
    """
    J = np.asarray(J, dtype=np.float64)
    below = np.flatnonzero(J.mean((*range(J.ndim - 2), -1)) < level)
    place = int(below[-1]) + 1 if len(below) else 0
    return place if place < J.shape[-2] else None


def jumps(J: ArrayLike) -> np.ndarray:
    """Return (..., checkpoints - 1): the size of the change of the mean over starts."""
    return np.asarray(np.abs(np.diff(_window(J).mean(-1), axis=-1)))


def amplification(J: ArrayLike, val_loss: ArrayLike) -> float:
    """Return (gva / mean return) / (std of val_loss / mean val_loss) over the window of one seed.

    How many times larger the relative swing of the reward is than the relative swing of the loss.
    NaN where the mean return or the loss's swing is 0, and where the mean loss is not positive (a
    log-likelihood can be), for then there is no relative swing.
    """
    losses = np.asarray(val_loss, dtype=np.float64)
    mean, swing = float(_window(J).mean()), float(losses.std(ddof=1))
    if mean == 0 or swing == 0 or losses.mean() <= 0:
        return math.nan
    return (gva(J) / mean) / (swing / float(losses.mean()))


def correlation(J: ArrayLike, val_loss: ArrayLike) -> float:
    """Return Pearson's correlation over checkpoints of val_loss and mean return, or NaN."""
    returns, losses = _window(J).mean(axis=1), np.asarray(val_loss, dtype=np.float64)
    if len(returns) < 3 or np.ptp(returns) == 0 or np.ptp(losses) == 0:
        return math.nan
    return float(np.corrcoef(returns, losses)[0, 1])


def resolution(J: ArrayLike) -> float:
    """Return the GVA below which a policy's swing can hardly be told from no swing.

        resolution^2 = 1.645 sqrt(2 N / ((M - 1) (N - 1) S)) episode / N

    The checkpoint component of S seeds that do not swing at all lies below it in about 95 % of
    cases: its standard deviation is that of the two mean squares it is the difference of. J is (S,
    M, N) or (M, N). It falls with the fourth root of seeds and checkpoints, and with the square
    root of the number of starts, N.
    """
    J = _window(J)
    M, N = J.shape[-2:]
    seeds = math.prod(J.shape[:-2])
    deviation = math.sqrt(2 * N / ((M - 1) * (N - 1) * seeds)) * components(J).episode.mean() / N
    return math.sqrt(ONE_SIDED * deviation)


def starts_needed(J: ArrayLike, visible: float) -> int:
    """Return how many starts bring ``resolution`` down to ``visible``, which is above 0."""
    J = _window(J)
    pairs = (J.shape[-2] - 1) * math.prod(J.shape[:-2])
    # sqrt(N / (N - 1)) / N <= target, solved for N: 1 <= target^2 N (N - 1)
    noise = ONE_SIDED * math.sqrt(2 / pairs) * components(J).episode.mean()
    if not noise > 0:
        return 2
    target = visible**2 / noise
    return max(2, math.ceil((1 + math.sqrt(1 + 4 / target**2)) / 2))


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its Student-t 95 % interval, which is NaN below 3 seeds."""

    mean: float
    low: float
    high: float


def interval(values: ArrayLike) -> Interval:
    """Return mean +- t_{0.975, S-1} s / sqrt(S) over seeds; no interval below 3 seeds."""
    from scipy.special import (
        stdtrit,  # what scipy.stats.t.ppf calls; that module takes a second to import
    )

    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 3:
        return Interval(mean, math.nan, math.nan)
    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def _root(variances: ArrayLike) -> float:
    """sqrt(max(0, mean of the variances)); NaN stays."""
    mean = float(np.asarray(variances, dtype=np.float64).mean())
    return mean if math.isnan(mean) else math.sqrt(max(0.0, mean))


def _window(J: ArrayLike) -> np.ndarray:
    J = np.asarray(J, dtype=np.float64)
    if J.ndim < 2 or J.shape[-2] < 2 or J.shape[-1] < 2 or not J.size:
        raise ValueError(
            f"expected returns (..., checkpoints >= 2, starts >= 2), got shape {J.shape}"
        )
    return J
