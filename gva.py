"""The GVA score, protocol 1: arrays in, numbers out.

Throughout, ``J`` is an array of normalised returns (checkpoints, starts) of one training seed's
window, checkpoints in the order of training; J = (return - random) / (expert - random), D4RL's
normalisation (arXiv 2004.07219, section 4) on a 0-1 scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

PROTOCOL = 1
LAGS = (1, 2, 4, 8)
HORIZONS = 20
SOUND_MARGIN = -0.05
NOT_LEARNED = 0.2


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


def gva(J: ArrayLike) -> float:
    """Return sqrt(mean over starts of the sample variance over checkpoints), divisor M - 1.

    Pick two checkpoints of the window and one start: the standard deviation of the return between
    them. ``J`` is (checkpoints, starts); with (checkpoints, starts, horizons) use
    ``gva_by_horizon``. Raises ValueError below two checkpoints.
    """
    return float(np.sqrt(_window(J).var(axis=0, ddof=1).mean()))


def gva_by_lag(J: ArrayLike, lags: Sequence[int] = LAGS) -> dict[int, float]:
    """Return sqrt(half the mean squared difference of checkpoints ``lag`` apart), by lag.

    Equals ``gva`` in expectation where checkpoints are exchangeable; is smaller at small lags where
    the read-out has a long memory. Lag 1 is the Allan deviation of the checkpoint returns (Allan,
    Proc. IEEE 54, 1966).
    """
    J = _window(J)
    return {
        lag: float(np.sqrt(0.5 * np.square(J[lag:] - J[:-lag]).mean()))
        for lag in lags
        if lag < len(J)
    }


def gva_adjacent(J: ArrayLike) -> float:
    """Return gva_by_lag at lag 1."""
    return gva_by_lag(J, [1])[1]


def gva_mean(J: ArrayLike) -> float:
    """Return the deviation over checkpoints (divisor M - 1) of the mean over starts."""
    return float(_window(J).mean(axis=1).std(ddof=1))


def checkpoint_variance(J: ArrayLike) -> float:
    """Return gva_mean^2 minus (start-specific part) / N: what all starts share; unbiased.

    The two-way decomposition J[m, n] = start n + checkpoint m + rest: the rest's variance is the
    residual mean square with (M - 1)(N - 1) degrees of freedom. NaN with one start.
    """
    J = _window(J)
    M, N = J.shape
    if N < 2:
        return math.nan
    rest = J - J.mean(axis=0) - J.mean(axis=1, keepdims=True) + J.mean()
    residual = float(np.square(rest).sum()) / ((M - 1) * (N - 1))
    return float(gva_mean(J) ** 2 - residual / N)


def gva_by_horizon(J: ArrayLike) -> list[float]:
    """Return gva at each horizon of J (checkpoints, starts, horizons); NaN if J is not finite."""
    J = np.asarray(J, dtype=np.float64)
    return [
        gva(J[:, :, h]) if np.isfinite(J[:, :, h]).all() else math.nan for h in range(J.shape[2])
    ]


def gva_late(J: ArrayLike, updates: Sequence[int], total: int) -> float:
    """Return gva of the last quarter of training; NaN if fewer than two checkpoints lie there."""
    late = np.asarray(J)[4 * np.asarray(updates) >= 3 * total]
    return gva(late) if len(late) > 1 else math.nan


def regret(J: ArrayLike) -> float:
    """Return the best checkpoint mean minus that of the last checkpoint: at least 0.

    What deploying the last checkpoint costs against the window's best one. The best is chosen on
    the same starts, so with few starts part of it is noise.
    """
    means = _window(J).mean(axis=1)
    return float(means.max() - means[-1])


def share_below(J: ArrayLike, level: float) -> float:
    """Return the share of checkpoints whose mean over starts is below ``level``: 0 to 1."""
    return float((_window(J).mean(axis=1) < level).mean())


def jumps(J: ArrayLike) -> np.ndarray:
    """Return (checkpoints - 1,): root mean square over starts of the change between checkpoints."""
    J = np.asarray(J, dtype=np.float64)
    return np.asarray(np.sqrt(np.square(np.diff(J, axis=0)).mean(axis=1)))


def amplification(J: ArrayLike, val_loss: ArrayLike) -> float:
    """Return (gva_mean / mean return) / (std of val_loss / mean val_loss) over the window.

    How many times larger the relative swing of the reward is than the relative swing of the loss.
    NaN where the mean return or the loss's swing is 0, and where the mean loss is not positive (a
    log-likelihood can be), for then there is no relative swing.
    """
    losses = np.asarray(val_loss, dtype=np.float64)
    mean, swing = float(_window(J).mean()), float(losses.std(ddof=1))
    if mean == 0 or swing == 0 or losses.mean() <= 0:
        return math.nan
    return (gva_mean(J) / mean) / (swing / float(losses.mean()))


def correlation(J: ArrayLike, val_loss: ArrayLike) -> float:
    """Return Pearson's correlation over checkpoints of val_loss and mean return, or NaN."""
    returns, losses = _window(J).mean(axis=1), np.asarray(val_loss, dtype=np.float64)
    if len(returns) < 3 or np.ptp(returns) == 0 or np.ptp(losses) == 0:
        return math.nan
    return float(np.corrcoef(returns, losses)[0, 1])


def noise_floor(J: ArrayLike) -> float:
    """Return ``|gva of the even starts - gva of the odd starts|``; NaN with one start.

    Both halves score the same policies, so the difference is what the choice of starts alone does
    to the score.
    """
    J = _window(J)
    return abs(gva(J[:, ::2]) - gva(J[:, 1::2])) if J.shape[1] > 1 else math.nan


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


def status(difference: Interval, is_static: bool) -> str:
    """Return the status of an entry from its mean paired return difference to ``none``.

    ``static`` when the read-out does not change in the window; ``unsound`` when the mean difference
    is below -0.05; ``undecided`` when its interval straddles -0.05; else ``sound``. Below 3 seeds
    there is no interval and the mean decides.
    """
    if is_static:
        return "static"
    if difference.mean < SOUND_MARGIN:
        return "unsound"
    if difference.low < SOUND_MARGIN:
        return "undecided"
    return "sound"


def _window(J: ArrayLike) -> np.ndarray:
    J = np.asarray(J, dtype=np.float64)
    if J.ndim != 2 or len(J) < 2 or J.shape[1] < 1:
        raise ValueError(f"expected returns (checkpoints >= 2, starts >= 1), got shape {J.shape}")
    return J
