"""The score against hand-expanded cases, simulated processes of known variance, and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from stab import gva

SQRT = math.sqrt
# Three checkpoints, two starts.
J = np.array([[0.1, 1.0], [0.4, 0.0], [0.1, 0.5]])
BAD_WINDOWS = [np.zeros(4), np.zeros((1, 4)), np.zeros((4, 0)), np.zeros((4, 1)), 1.0]


# Hand-expanded


def test_components_by_hand():
    # Additive: no rest, so all of the variances are the parts' own.
    additive = np.array([1.0, 2.0, 4.0])[:, None] + np.array([0.0, 10.0])
    parts = gva.components(additive)
    shared = ((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2
    assert parts.checkpoint == pytest.approx(shared, rel=1e-12)
    assert parts.start == pytest.approx(50, rel=1e-12)
    assert parts.episode == pytest.approx(0, abs=1e-12)
    assert gva.gva(additive) == pytest.approx(SQRT(shared), rel=1e-12)
    # Nothing shared: rows +1, -1 and -1, +1 have mean 0; (2 - 1)(2 - 1) = 1 degree of freedom.
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]])
    parts = gva.components(opposed)
    assert (parts.checkpoint, parts.start, parts.episode) == (-2, -2, 4)
    assert gva.gva(opposed) == 0, "an estimate below 0 is no swing that was seen"


def test_components_are_those_of_the_two_way_analysis_of_variance():
    """Against the mean squares of a regression on indicator variables."""
    rng = np.random.default_rng(8)
    J = rng.standard_normal((5, 4)) + rng.standard_normal((5, 1))
    M, N = J.shape
    m, n = np.repeat(np.arange(M), N), np.tile(np.arange(N), M)

    def left(*factors):
        design = np.column_stack([np.ones(M * N), *(np.eye(f.max() + 1)[f] for f in factors)])
        fitted = design @ np.linalg.lstsq(design, J.ravel(), rcond=None)[0]
        return np.square(J.ravel() - fitted).sum()

    episode = left(m, n) / ((M - 1) * (N - 1))
    checkpoint = ((left(n) - left(m, n)) / (M - 1) - episode) / N
    start = ((left(m) - left(m, n)) / (N - 1) - episode) / M
    parts = gva.components(J)
    assert (parts.checkpoint, parts.start, parts.episode) == pytest.approx(
        (checkpoint, start, episode), rel=1e-9
    )
    assert gva.episode_noise(J) == pytest.approx(SQRT(episode))
    assert gva.start_deviation(J) == pytest.approx(SQRT(max(0, start)))


def test_gva_is_the_mean_over_all_pairs_of_checkpoints():
    rng = np.random.default_rng(9)
    J = rng.standard_normal((6, 3)) + 2 * rng.standard_normal((6, 1))
    pairs = []
    for a in range(6):
        for b in range(a):
            change = J[a] - J[b]
            noise = np.square(change - change.mean()).sum() / 2 / 3
            pairs.append((change.mean() ** 2 - noise) / 2)
    assert gva.gva(J) == pytest.approx(SQRT(np.mean(pairs)), rel=1e-12)


def test_seeds_are_pooled_before_the_root():
    rng = np.random.default_rng(10)
    J = rng.standard_normal((5, 8, 4)) + np.arange(5)[:, None, None] * rng.standard_normal(
        (5, 8, 1)
    )
    each = [gva.components(one).checkpoint for one in J]
    assert gva.gva(J) == pytest.approx(SQRT(np.mean(each)), rel=1e-12)
    assert gva.gva_per_seed(J) == pytest.approx([SQRT(max(0, c)) for c in each], rel=1e-12)
    for score in (gva.gva_mean, gva.gva_adjacent, gva.gva_trend, gva.gva_detrended):
        squares = [score(one) ** 2 for one in J]
        if min(squares) > 0:
            assert score(J) == pytest.approx(SQRT(np.mean(squares)), rel=1e-9)
    assert gva.gva_mean(J) == pytest.approx(SQRT(J.mean(2).var(1, ddof=1).mean()), rel=1e-12)
    assert gva.regret(J) == pytest.approx(np.mean([gva.regret(one) for one in J]))
    assert gva.gain(J) == pytest.approx(np.mean([gva.gain(one) for one in J]))


def test_by_lag_by_hand():
    def half(change):
        return (change.mean() ** 2 - change.var(ddof=1) / 2) / 2

    J = np.array([[0.0, 0.1], [0.5, 0.8], [0.3, 0.2]])
    one = (half(J[1] - J[0]) + half(J[2] - J[1])) / 2
    found = gva.gva_by_lag(J)
    assert list(found) == [1, 2]  # lags 4 and 8 have no pair
    assert found[1] == pytest.approx(SQRT(one), rel=1e-14)
    assert found[2] == pytest.approx(SQRT(half(J[2] - J[0])), rel=1e-14)
    assert gva.gva_adjacent(J) == found[1]


def test_by_lag_takes_the_lags_below_the_number_of_checkpoints():
    J9 = np.arange(9.0)[:, None] + np.zeros(2)
    assert gva.gva_by_lag(J9) == pytest.approx(
        {lag: lag / SQRT(2) for lag in (1, 2, 4, 8)}, rel=1e-14
    )
    assert list(gva.gva_by_lag(J9[:8])) == [1, 2, 4]
    assert gva.gva_by_lag(J9, [3]) == pytest.approx({3: 3 / SQRT(2)}, rel=1e-14)


def test_mean_by_hand():
    means = [(0.1 + 1.0) / 2, (0.4 + 0.0) / 2, (0.1 + 0.5) / 2]
    centre = sum(means) / 3
    assert gva.gva_mean(J) == pytest.approx(
        SQRT(sum((m - centre) ** 2 for m in means) / 2), rel=1e-14
    )


def test_protocol_1_by_hand():
    # Start 1: mean 0.2, deviations -0.1, 0.2, -0.1; start 2: mean 0.5, deviations 0.5, -0.5, 0.
    first = (0.1**2 + 0.2**2 + 0.1**2) / 2
    second = (0.5**2 + 0.5**2 + 0.0**2) / 2
    expected = SQRT((first + second) / 2)
    assert gva.gva_protocol_1(J) == pytest.approx(expected, rel=1e-14)
    assert gva.gva_protocol_1([J, 3 * J]) == pytest.approx(2 * expected, rel=1e-14)


def test_a_line_and_the_scatter_around_it_add_up():
    rng = np.random.default_rng(11)
    J = np.linspace(0, 1, 12)[:, None] + 0.1 * rng.standard_normal((12, 4))
    slope = np.polyfit(np.arange(12), J.mean(1), 1)[0]
    fitted = slope * (np.arange(12) - 5.5)
    residual = np.square(J.mean(1) - J.mean() - fitted).sum() / 10
    assert gva.gva_trend(J) ** 2 == pytest.approx(
        (np.square(fitted).sum() - residual) / 11, rel=1e-9
    )
    both = gva.gva_trend(J) ** 2 + residual - gva.components(J).episode / 4
    assert gva.gva(J) ** 2 == pytest.approx(both, rel=1e-9)
    line = np.arange(6.0)[:, None] + np.zeros(3)
    assert gva.gva_trend(line) == pytest.approx(gva.gva(line))
    assert gva.gva_detrended(line) == pytest.approx(0, abs=1e-7)
    assert math.isnan(gva.gva_trend(line[:2]))
    assert math.isnan(gva.gva_detrended(line[:2]))


def test_gain_is_the_last_third_against_the_first():
    J = np.array([1.0, 2.0, 7.0, 9.0, 4.0, 6.0])[:, None] + np.array([0.0, 10.0])
    assert gva.gain(J) == pytest.approx(5 - 1.5)
    assert gva.gain(J[:2]) == pytest.approx(1)


def test_by_horizon_is_gva_at_each():
    J3 = np.stack([J, 10 * J, np.full_like(J, np.nan), J], axis=2)
    J3[1, 1, 3] = np.inf
    found = gva.gva_by_horizon(J3)
    assert found[:2] == pytest.approx([gva.gva(J), 10 * gva.gva(J)], rel=1e-14)
    assert math.isnan(found[2])
    assert math.isnan(found[3])


def test_late_is_the_last_quarter():
    J5 = np.array([[9.0], [7.0], [3.0], [1.0], [2.0]]) + np.zeros(2)
    # 3/4 of 8 is 6, which belongs to the last quarter.
    assert gva.gva_late(J5, [4, 5, 6, 7, 8], 8) == pytest.approx(
        SQRT((1**2 + 1**2 + 0) / 2), rel=1e-14
    )
    assert gva.gva_late([J5, J5], [1, 2, 3, 7, 8], 8) == pytest.approx(
        SQRT((0.5**2 + 0.5**2) / 1), rel=1e-14
    )
    assert math.isnan(gva.gva_late(J5, [1, 2, 3, 4, 8], 8))


def test_jumps_by_hand():
    assert gva.jumps(J) == pytest.approx([0.55 - 0.2, 0.3 - 0.2], rel=1e-12)
    assert gva.jumps([J, J]).shape == (2, 2)


def test_amplification_by_hand():
    losses = [1.0, 2.0, 3.0]  # standard deviation 1, mean 2
    J = np.array([[0.1, 0.2], [0.6, 0.7], [0.4, 0.4]])
    assert gva.gva(J) > 0.2
    assert gva.amplification(J, losses) == pytest.approx((gva.gva(J) / 0.4) / (1 / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("returns", "losses"),
    [
        ([[1.0, -1.0], [1.0, -2.0], [0.5, 0.5]], [1.0, 2.0, 3.0]),
        (J, [2.0, 2.0, 2.0]),
        (J, [-1.0, 0.0, 1.0]),
    ],
    ids=["mean return 0", "constant loss", "mean loss 0"],
)
def test_amplification_is_nan_where_it_has_no_meaning(returns, losses):
    assert math.isnan(gva.amplification(returns, losses))


def test_correlation_by_hand_and_by_scipy():
    line = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    assert gva.correlation(line, [5.0, 3.0, 1.0]) == pytest.approx(-1)
    losses = [0.3, 0.9, 0.2]
    assert gva.correlation(J, losses) == pytest.approx(stats.pearsonr(J.mean(1), losses).statistic)


@pytest.mark.parametrize(
    ("returns", "losses"),
    [(np.ones((3, 2)), [1.0, 2.0, 3.0]), (J, [1.0, 1.0, 1.0]), (J[:2], [1.0, 2.0])],
)
def test_correlation_is_nan_for_a_constant_or_two_points(returns, losses):
    assert math.isnan(gva.correlation(returns, losses))


def test_resolution_by_hand():
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]])  # rest 4; M = N = 2
    deviation = SQRT(2 * 2 / (1 * 1)) * 4 / 2
    assert gva.resolution(opposed) == pytest.approx(SQRT(1.645 * deviation), rel=1e-12)
    four = gva.resolution([opposed] * 16)
    assert four == pytest.approx(gva.resolution(opposed) / 2, rel=1e-12), "fourth root of seeds"
    assert gva.resolution(np.ones((4, 3))) == 0


def test_nothing_that_swings_lies_below_the_resolution_in_95_of_100_cases():
    rng = np.random.default_rng(12)
    J = rng.standard_normal((2000, 3, 16, 8))
    share = np.mean([gva.gva(one) < gva.resolution(one) for one in J])
    assert 0.93 < share < 0.97


def test_the_starts_that_are_needed_are_just_enough():
    rng = np.random.default_rng(13)
    J = rng.standard_normal((3, 16, 8))
    noise = gva.components(J).episode.mean()
    for visible in (0.05, 0.2, 0.5):
        count = gva.starts_needed(J, visible)

        def limit(N):
            return SQRT(1.645 * SQRT(2 * N / (15 * (N - 1) * 3)) * noise / N)

        assert limit(count) <= visible * (1 + 1e-9)
        assert count == 2 or limit(count - 1) > visible
    assert gva.starts_needed(np.ones((4, 3)), 0.1) == 2
    assert gva.starts_needed(J, 10.0) == 2


# Which checkpoints


def test_window_defaults():
    assert gva.window(6000, 200) == list(range(3000, 6001, 200))
    assert len(gva.window(6000, 200)) == 16
    assert gva.curve_only(6000, 200) == [600, 1800]


@pytest.mark.parametrize(
    ("updates", "every", "scored", "early"),
    [
        (1000, 300, [700, 1000], [100, 400]),
        (7, 2, [5, 7], [1, 3]),
        (8, 2, [4, 6, 8], [2]),
        (5, 9, [5], []),
        (1, 1, [1], []),
        (400, 50, [200, 250, 300, 350, 400], [50, 100]),
    ],
)
def test_window_odd_values(updates, every, scored, early):
    assert gva.window(updates, every) == scored
    assert gva.curve_only(updates, every) == early


@given(st.integers(1, 3000), st.integers(1, 500))
def test_window_and_curve_lie_on_one_grid(updates, every):
    scored, early = gva.window(updates, every), gva.curve_only(updates, every)
    grid = [t for t in range(1, updates + 1) if (updates - t) % every == 0]
    assert scored == [t for t in grid if t >= updates / 2]
    assert scored[-1] == updates
    assert set(early) <= {t for t in grid if t < updates / 2}
    assert len(early) <= 4
    assert early == sorted(set(early))


def test_horizon_grid():
    assert gva.horizon_grid(1000) == list(range(50, 1001, 50))
    assert gva.horizon_grid(7) == [1, 2, 3, 4, 5, 6, 7]
    assert gva.horizon_grid(1) == [1]
    assert gva.horizon_grid(21)[-1] == 21
    assert len(gva.horizon_grid(21)) == 20


# Simulated processes. Seeds are fixed, tolerances are five standard errors of the simulation itself.


def mean_of(samples):
    """Mean of samples and five standard errors of it."""
    return np.mean(samples), 5 * np.std(samples, ddof=1) / SQRT(len(samples))


def close(samples, expected):
    mean, error = mean_of(samples)
    assert error < 0.2 * abs(expected), "the simulation is too small to tell"
    assert abs(mean - expected) < error


@pytest.mark.parametrize("starts", [2, 8])
def test_the_score_does_not_depend_on_the_number_of_starts_or_their_noise(starts):
    rng = np.random.default_rng(starts)
    found = [
        gva.components(0.3 * rng.standard_normal((16, 1)) + 0.2 * rng.standard_normal((16, starts)))
        for _ in range(3000)
    ]
    close([parts.checkpoint for parts in found], 0.3**2)
    close([parts.episode for parts in found], 0.2**2)


def test_iid_returns_score_the_same_at_every_lag():
    rng = np.random.default_rng(0)
    J = 0.3 * rng.standard_normal((3000, 16, 1)) + 0.2 * rng.standard_normal((3000, 16, 2))
    for lag, found in gva.gva_by_lag(J).items():
        assert found == pytest.approx(0.3, rel=0.02), lag


def ar1(rng, rho, sigma, M, N):
    """Stationary AR(1) over checkpoints with standard deviation sigma, and noise: (M, N)."""
    J = np.empty(M)
    J[0] = sigma * rng.standard_normal()
    for m in range(1, M):
        J[m] = rho * J[m - 1] + sigma * SQRT(1 - rho**2) * rng.standard_normal()
    return J[:, None] + 0.2 * rng.standard_normal((M, N))


@pytest.mark.parametrize("rho", [0.5, 0.9, -0.6])
def test_ar1_returns_by_lag_and_over_the_window(rho):
    rng = np.random.default_rng(1)
    sigma, M = 0.5, 16
    runs = np.stack([ar1(rng, rho, sigma, M, 8) for _ in range(4000)])
    for lag, found in gva.gva_by_lag(runs).items():
        assert found**2 == pytest.approx(sigma**2 * (1 - rho**lag), rel=0.06)
    bias = sum((M - lag) * rho**lag for lag in range(1, M)) * 2 / (M * (M - 1))
    close(gva.components(runs).checkpoint, sigma**2 * (1 - bias))


def test_two_way_model():
    shared, specific, noise, M, N = 0.3, 0.4, 0.2, 16, 8
    rng = np.random.default_rng(2)
    runs = [
        shared * rng.standard_normal((M, 1))
        + 10 * rng.standard_normal(N)
        + specific * rng.standard_normal((M, N))
        + noise * rng.standard_normal((M, N))
        for _ in range(4000)
    ]
    parts = gva.components(runs)
    close(parts.checkpoint, shared**2)
    close(parts.episode, specific**2 + noise**2)
    close(parts.start, 10**2)
    close([gva.gva_mean(J) ** 2 for J in runs], shared**2 + (specific**2 + noise**2) / N)
    close([gva.gva_protocol_1(J) ** 2 for J in runs], shared**2 + specific**2 + noise**2)


def test_the_checkpoint_part_is_without_bias_where_nothing_is_shared():
    rng = np.random.default_rng(3)
    found = gva.components(rng.standard_normal((3000, 8, 3))).checkpoint
    mean, error = mean_of(found)
    assert abs(mean) < error < 0.05
    assert min(found) < 0


def test_a_line_explains_nothing_of_independent_checkpoints():
    rng = np.random.default_rng(14)
    J = rng.standard_normal((4000, 16, 1)) + 0.3 * rng.standard_normal((4000, 16, 4))
    assert gva.gva_trend(J) < 0.2
    assert gva.gva_detrended(J) == pytest.approx(1, rel=0.02)


def test_a_line_seems_to_explain_much_of_a_slow_average():
    """Which is why the score is not detrended: it would flatter averages with a long memory."""
    rng = np.random.default_rng(15)
    noise = rng.standard_normal((1000, 200))
    slow = np.stack([noise[:, t : t + 30].mean(1) for t in range(0, 48, 3)], axis=1)[..., None]
    J = slow + np.zeros(2)
    assert gva.gva_trend(J) ** 2 > 0.3 * gva.gva(J) ** 2


windows = arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(2, 5)),
    elements=st.integers(-50, 50).map(float),
)


@settings(max_examples=60, deadline=None)
@given(windows, st.floats(-4, 4), st.floats(-100, 100))
def test_affine_equivariance(J, scale, shift):
    moved = scale * J + shift
    for score in (gva.gva, gva.gva_adjacent, gva.gva_mean, gva.resolution, gva.gva_protocol_1):
        assert score(moved) == pytest.approx(abs(scale) * score(J), rel=1e-9, abs=1e-5)
    assert gva.components(moved).checkpoint == pytest.approx(
        scale**2 * gva.components(J).checkpoint, rel=1e-9, abs=1e-7
    )


@settings(max_examples=60, deadline=None)
@given(windows, st.data())
def test_offsets_of_the_starts_do_not_matter(J, data):
    offsets = data.draw(
        arrays(np.float64, J.shape[1], elements=st.integers(-1000, 1000).map(float))
    )
    for score in (gva.gva, gva.gva_adjacent, gva.gva_mean, gva.resolution):
        assert score(J + offsets) == pytest.approx(score(J), rel=1e-9, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(windows)
def test_the_order_of_the_checkpoints_matters_only_by_lag(J):
    assert gva.gva(J[::-1]) == pytest.approx(gva.gva(J), rel=1e-9, abs=1e-6)
    backwards = pytest.approx(gva.gva_by_lag(J), rel=1e-9, abs=1e-6)  # time runs either way
    assert gva.gva_by_lag(J[::-1]) == backwards
    order = np.random.default_rng(len(J)).permutation(len(J))
    assert gva.gva(J[order]) == pytest.approx(gva.gva(J), rel=1e-9, abs=1e-6)
    assert gva.gva_mean(J[order]) == pytest.approx(gva.gva_mean(J), rel=1e-12, abs=1e-12)


# Interval


def test_interval_by_hand():
    values = [1.0, 2.0, 6.0]
    found = gva.interval(values)
    deviation = SQRT((2**2 + 1**2 + 3**2) / 2)
    quantile = 4.302652729696142  # t of 2 degrees of freedom at 0.975, from a printed table: 4.303
    assert found.mean == 3
    assert found.high == pytest.approx(3 + quantile * deviation / SQRT(3), rel=1e-9)
    assert found.low == pytest.approx(3 - quantile * deviation / SQRT(3), rel=1e-9)


def test_interval_is_scipys():
    values = np.random.default_rng(0).standard_normal(7)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    found = gva.interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_covers_the_mean_in_95_of_100_cases():
    rng = np.random.default_rng(4)
    covered = [
        abs(i.mean) < i.high - i.mean
        for i in (gva.interval(rng.standard_normal(3)) for _ in range(2000))
    ]
    assert abs(np.mean(covered) - 0.95) < 5 * SQRT(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.7]])
def test_no_interval_below_three_seeds(values):
    found = gva.interval(values)
    assert found.mean == sum(values) / len(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_freeze_control_scores_nothing():
    """A frozen policy returns the same from every start at every checkpoint."""
    frozen = np.tile(np.random.default_rng(5).standard_normal(8), (16, 1))
    assert gva.gva(frozen) == pytest.approx(0, abs=1e-14)  # the mean of equal numbers is rounded
    assert gva.gva_adjacent(frozen) == 0


# Not a number, not a window


@pytest.mark.parametrize("bad", BAD_WINDOWS, ids=lambda b: str(np.shape(b)))
@pytest.mark.parametrize(
    "score",
    [
        gva.gva,
        gva.gva_by_lag,
        gva.gva_adjacent,
        gva.gva_mean,
        gva.components,
        gva.resolution,
        gva.gva_protocol_1,
    ],
)
def test_wrong_shapes_raise(score, bad):
    with pytest.raises(ValueError, match="checkpoints"):
        score(bad)


def test_nan_is_never_swallowed():
    bad = J.copy()
    bad[1, 1] = np.nan
    for score in (
        gva.gva,
        gva.gva_adjacent,
        gva.gva_mean,
        gva.gva_protocol_1,
        gva.gva_trend,
        gva.resolution,
    ):
        assert math.isnan(score(bad))
    assert math.isnan(gva.amplification(bad, [1.0, 2.0, 3.0]))
    assert math.isnan(gva.correlation(bad, [1.0, 2.0, 3.0]))
    assert math.isnan(gva.interval([0.1, np.nan, 0.2]).mean)


def test_lists_and_integers_are_taken_as_they_are():
    assert gva.gva([[0, 0], [1, 3]]) == pytest.approx(SQRT((2**2 - (1 + 1) / 2) / 2), rel=1e-14)


def test_regret_is_what_the_last_checkpoint_costs():
    J = np.array([[0.2, 0.4], [1.0, 0.8], [0.5, 0.7]])  # means 0.3, 0.9, 0.6
    assert gva.regret(J) == pytest.approx(0.3)
    assert gva.regret(J[[0, 2, 1]]) == 0
    assert gva.regret(np.full((4, 2), 0.7)) == 0
    with pytest.raises(ValueError, match="checkpoints >= 2"):
        gva.regret(J[:1])


def test_from_where_a_level_is_reached_and_kept():
    J = np.array([[0.2, 0.4], [1.0, 0.8], [0.5, 0.7], [0.4, 1.0]])  # means 0.3, 0.9, 0.6, 0.7
    assert [gva.reached(J, level) for level in (0.2, 0.6, 0.65, 0.7, 0.8)] == [0, 1, 3, 3, None]
    assert gva.reached([J, J + 1], 1.15) == 3


def test_the_share_of_checkpoints_below_a_level():
    J = np.array([[0.2, 0.4], [1.0, 0.8], [0.5, 0.7], [0.4, 0.6]])
    assert gva.share_below(J, 0.5) == 0.25  # a checkpoint of mean 0.5 is not below it
    assert gva.share_below(J, 0.9) == 0.75
    assert gva.share_below(J, 2) == 1
