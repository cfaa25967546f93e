"""What seeds allow one to say, against scipy and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from stab import gva
from stab.reports import inference, statistics


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_paired_test_is_scipy_s(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    a, b = rng.random(seeds), rng.random(seeds) + 0.2
    assert inference.paired_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert inference.paired_p(a, b) == inference.paired_p(b, a)


def test_the_paired_test_at_its_edges() -> None:
    assert np.isnan(inference.paired_p([1, 2], [3, 4]))
    assert inference.paired_p([1, 2, 3], [1, 2, 3]) == 1
    assert inference.paired_p([1, 2, 3], [2, 3, 4]) == 0


def test_the_probability_of_improvement_is_mann_and_whitney_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 5), rng.integers(0, 6, 7)
        greater = stats.mannwhitneyu(b, a).statistic / (5 * 7)
        assert inference.probability_of_improvement(a, b) == pytest.approx(greater)
    assert inference.probability_of_improvement([0, 0], [1, 1]) == 1
    assert inference.probability_of_improvement([1, 2], [1, 2]) == 0.5


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.4: times 4, 3, 2, 1, never falling.
    found = inference.holm([0.02, 0.4, float("nan"), 0.01, 0.03])
    np.testing.assert_allclose(found, [0.06, 0.4, np.nan, 0.04, 0.06])
    assert inference.holm([]) == []
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    rng = np.random.default_rng(1)
    false = [min(inference.holm(rng.random(8).tolist())) < inference.LEVEL for _ in range(4000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("seeds", [3, 6])
def test_rank_intervals_hold_all_true_ranks(seeds: int) -> None:
    rng, truth = np.random.default_rng(2), np.array([0.0, 0.0, 0.5, 1.0, 4.0])
    lowest = [
        1 + int((truth < value).sum()) for value in truth
    ]  # equals may have any rank of theirs
    highest = [int((truth <= value).sum()) for value in truth]
    missed, widths = 0, []
    for _ in range(400):
        found = inference.rank_intervals(truth[:, None] + 0.3 * rng.standard_normal((5, seeds)))
        missed += any(
            low > a or high < b for (low, high), a, b in zip(found, lowest, highest, strict=True)
        )
        widths.append(np.mean([high - low for low, high in found]))
    assert missed / 400 <= 0.05
    assert np.mean(widths) < (4 if seeds == 3 else 2.2), "and say something"


def test_rank_intervals_at_their_edges() -> None:
    assert inference.rank_intervals([[0.1, 0.2], [5, 6]]) == [
        (1, 2),
        (1, 2),
    ]  # two seeds: nothing is known
    assert inference.rank_intervals([[0.1, 0.2, 0.3]]) == [(1, 1)]
    apart = [[k + 0.01 * s * (-1) ** k for s in range(5)] for k in range(4)]
    assert inference.rank_intervals(apart) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def by_hand(scores: np.ndarray) -> tuple[np.ndarray, int]:
    """The statistics of ``many_to_one`` in loops, and their degrees of freedom."""
    entries, seeds = scores.shape
    residual = sum(
        (scores[k, s] - scores[k].mean() - scores[:, s].mean() + scores.mean()) ** 2
        for k in range(entries)
        for s in range(seeds)
    )
    freedom = (entries - 1) * (seeds - 1)
    levels = [row.mean() ** 2 for row in scores]
    relative = sum(row.var() * seeds for row in scores) / ((seeds - 1) * sum(levels))
    return np.array(
        [
            abs(scores[0].mean() - scores[k].mean())
            / max(2 * residual / freedom / seeds, relative * (levels[0] + levels[k]) / seeds) ** 0.5
            for k in range(1, entries)
        ]
    ), freedom


@pytest.mark.parametrize(("entries", "seeds"), [(2, 3), (3, 4), (8, 3), (8, 10)])
def test_dunnett_s_p_values_are_those_of_the_multivariate_t(entries: int, seeds: int) -> None:
    rng = np.random.default_rng(entries + seeds)
    scores = rng.gamma(4, 0.05, (entries, seeds)) * rng.uniform(0.2, 1.5, entries)[:, None]
    t, freedom = by_hand(scores)
    k = entries - 1
    joint = stats.multivariate_t(shape=0.5 + 0.5 * np.eye(k), df=freedom)
    expected = [
        1 - joint.cdf(np.full(k, x), lower_limit=np.full(k, -x), random_state=0, maxpts=10**5)
        if k > 1
        else 2 * stats.t.sf(x, freedom)
        for x in t
    ]
    np.testing.assert_allclose(inference.many_to_one(scores), expected, atol=2e-5)


def test_with_one_entry_it_is_never_bolder_than_the_paired_test() -> None:
    rng, equal = np.random.default_rng(0), 0
    for _ in range(100):
        scores = rng.random((2, 4))
        (p,), paired = inference.many_to_one(scores), inference.paired_p(*scores)
        assert p >= paired - 1e-9
        equal += p == pytest.approx(paired, abs=1e-8)
    assert equal > 10


def test_the_family_keeps_its_error_where_steady_entries_have_no_spread() -> None:
    rng = np.random.default_rng(3)
    boards = rng.gamma(6, 0.05, (1500, 8, 3))
    boards[:, 3:] *= 0.01  # five steady ones; two are as unsteady as none
    false = [min(inference.many_to_one(board)[:2]) < inference.LEVEL for board in boards]
    assert np.mean(false) <= 0.05
    true = [max(inference.many_to_one(board)[2:]) < inference.LEVEL for board in boards[:300]]
    assert np.mean(true) > 0.5, "and finds them"


def test_dunnett_at_its_edges() -> None:
    assert np.isnan(inference.many_to_one([[1, 2], [3, 4], [5, 6]])).all(), "two seeds"
    assert inference.many_to_one([[1, 2, 3]]) == []
    assert inference.many_to_one(np.zeros((3, 4))) == [1, 1]
    same = inference.many_to_one([[0.1, 0.2, 0.4]] * 3)
    assert same == pytest.approx([1, 1])
    assert inference.many_to_one([[0.3] * 3, [0.1] * 3]) == [0]
    swapped = inference.many_to_one([[0.1, 0.2, 0.3], [0.9, 0.8, 1.1]])
    assert swapped == pytest.approx(inference.many_to_one([[0.9, 0.8, 1.1], [0.1, 0.2, 0.3]]))


def swinging(rng: np.random.Generator, size: tuple[int, ...], swing: float, noise: float) -> Any:
    """Returns (..., checkpoints, starts) of a normal two-way model."""
    shared = swing * rng.standard_normal((*size[:-1], 1))
    return (
        shared
        + 3 * rng.standard_normal((*size[:-2], 1, size[-1]))
        + noise * rng.standard_normal(size)
    )


@pytest.mark.parametrize(("swing", "noise"), [(0.3, 0.1), (0.1, 0.4), (0.0, 0.3)])
def test_intervals_cover_the_swing(swing: float, noise: float) -> None:
    rng, covered, above = np.random.default_rng(4), [], []
    for _ in range(400):
        ends = inference.score_intervals(swinging(rng, (4, 3, 16, 6), swing, noise))
        covered += [low <= swing <= high for low, high in ends]
        above += [low > 0 for low, _ in ends]
        assert all(0 <= low <= high for low, high in ends)
    assert np.mean(covered) > 0.93
    assert np.mean(covered) < 0.995 or swing < 0.2
    if swing == 0:
        assert np.mean(above) < 0.05
    if (swing, noise) == (0.3, 0.1):
        assert np.mean(above) == 1


def test_an_interval_by_hand() -> None:
    J = swinging(np.random.default_rng(5), (2, 4, 10, 5), 0.2, 0.1)
    b = J.mean(-1).var(-1, ddof=1)
    noise = gva.components(J).episode.mean(1) / 5
    c = sum(b[k].var() * 4 for k in range(2)) / (3 * sum(b.mean(1) ** 2))
    left = [gva.components(np.delete(J, n, -1)).checkpoint.mean(1) for n in range(5)]
    d = 4 / 5 * sum(np.square(one - np.mean(left, 0)).sum() for one in left) / sum(b.mean(1) ** 2)
    nu, rest = 2 / (max(c, 2 / 9) / 4 + d), 4 * 9 * 4
    for k, (low, high) in enumerate(inference.score_intervals(J)):
        wide = [b[k].mean() / stats.f.ppf(q, nu, rest) - noise[k] for q in (0.975, 0.025)]
        assert (low, high) == pytest.approx(np.sqrt(np.maximum(wide, 0)), rel=1e-9)
    constant = inference.score_intervals(np.full((2, 3, 4, 5), 0.7))
    np.testing.assert_allclose(constant, 0, atol=1e-9)
    (_, first), (low, high) = inference.score_intervals([J[0], np.full_like(J[0], 1.0)])
    assert low == 0
    assert 0 < high < first, "one that never failed"
    noise = gva.components([J[0], np.full_like(J[0], 1.0)]).episode.mean()
    assert high == pytest.approx(
        gva.resolution(J[0] * (noise / gva.components(J[0]).episode.mean()) ** 0.5)
    )
    assert np.isnan(inference.score_intervals(J[:, :2])).all()


def test_bounds_of_the_return_by_hand() -> None:
    y = np.array([[0.9, 0.8, 1.0], [0.8, 0.8, 0.9], [0.2, 0.9, 0.4]])
    residual = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    pooled = np.square(residual).sum() / 4
    for k, (low, high) in enumerate(inference.return_bounds(y), 1):
        d = y[k] - y[0]
        half = stats.t.ppf(0.95, 4) * max(2 * pooled, d.var(ddof=1)) ** 0.5 / 3**0.5
        assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert np.isnan(inference.return_bounds(y[:, :2])).all()
    assert inference.return_bounds(y[:1]) == []


def test_a_return_at_the_margin_is_said_to_hold_in_5_of_100_cases() -> None:
    rng, wrong = np.random.default_rng(6), []
    for _ in range(1500):
        y = 0.1 * rng.standard_normal((5, 4)) + 0.2 * rng.standard_normal(4)
        y[1:] -= gva.MARGIN
        wrong += [low > -gva.MARGIN for low, _ in inference.return_bounds(y)]
    assert 0.02 < np.mean(wrong) < 0.06


def test_the_seeds_that_are_needed_find_it_in_80_of_100_cases() -> None:
    rng = np.random.default_rng(7)
    level = np.array([0.3, 0.3, 0.2, 0.12])[:, None]
    few = level + 0.05 * rng.standard_normal((4, 2000))  # the spread as it is, hardly by chance
    spread = few[:, :3] - few[:, :3].mean(1, keepdims=True)
    exact = level + spread * 0.05 * 3**0.5 / np.sqrt(np.square(spread).sum(1, keepdims=True))
    needed = inference.seeds_needed(exact)
    assert needed[0] is None, "no difference"
    assert needed[1] is not None
    assert needed[1] > (needed[2] or 0)
    boards = level + 0.06 * rng.standard_normal((600, 4, needed[1]))
    found = np.mean([inference.many_to_one(board)[1] < 0.05 for board in boards])
    assert 0.6 < found < 0.95
    assert inference.seeds_needed(exact[:, :2]) == [None] * 3
    assert inference.seeds_needed([[0.3, 0.3, 0.3], [0.1, 0.1, 0.1]]) == [4]


def test_whether_none_still_learns() -> None:
    rng = np.random.default_rng(8)
    flat = 0.05 * rng.standard_normal((1000, 6, 3))
    assert np.mean([inference.rises(gains) for gains in flat]) < 0.05
    assert np.mean([inference.rises(gains + 0.2) for gains in flat]) > 0.85
    assert not inference.rises(np.full((3, 4), 0.04)), "too little to matter"
    assert inference.rises([[0.1, 0.2]])
    assert not inference.rises([[-0.3, -0.4, -0.3], [0.5, 0.5, 0.5]])


def test_the_verdict_is_plain() -> None:
    steadier, less, no = inference.AGAINST_NONE
    said = inference.verdict(
        [
            ("ema", steadier, 2e-4),
            ("swa", steadier, 9e-4),
            ("lr_decay", steadier, 0.0031),
            ("dropout", no, 0.4),
            ("weight_decay", no, 0.9),
            ("sam", less, 0.02),
        ],
        5,
    )
    assert said == (
        "Steadier than none: ema, swa (p < 0.001); lr_decay (p = 0.0031). Less steady than none:"
        " sam (p = 0.02). No evidence: dropout, weight_decay."
    )
    assert inference.verdict([("dropout", no, 0.8)], 5) == (
        "No evidence in 5 seeds that any ranked entry is steadier than none, or less."
    )
    assert inference.verdict([], 3) == "No entry beside none is ranked."
    for seeds, said in ((1, "1 seed: too few"), (2, "2 seeds: too few")):
        assert inference.verdict([("ema", None, float("nan"))], seeds).startswith(said)
    many = [(f"ema:half_life={n}", steadier, 1e-5) for n in range(20)]
    assert " and 14 more." in inference.verdict(many, 5)


def test_what_a_p_value_says() -> None:
    steadier, less, no = inference.AGAINST_NONE
    assert inference.against_none(-0.1, 0.01) == steadier
    assert inference.against_none(0.1, 0.01) == less
    assert inference.against_none(-0.1, 0.05) == no
    assert inference.against_none(-0.1, float("nan")) is None


@pytest.mark.parametrize("change", [{"static": "ema"}, {"level": {"ema": 0.1}}])
def test_the_verdict_praises_no_entry_that_is_not_ranked(make_run, change) -> None:
    leaderboard = statistics.leaderboard(statistics.read(make_run(**change)))
    (ema,) = (e for e in leaderboard["entries"] if e["stabilizer"] == "ema")
    assert ema["p_value"] < 0.05
    assert "ema" not in leaderboard["run"]["tasks"]["toy"]["verdict"]


def test_hundreds_of_entries_are_not_ordered() -> None:
    scores = np.arange(201)[:, None] + np.zeros((201, 4))
    assert set(inference.rank_intervals(scores)) == {(1, 201)}


def test_the_leaderboard_says_it_of_its_entries(run) -> None:
    leaderboard = statistics.leaderboard(statistics.read(run))
    entries = {e["stabilizer"]: e for e in leaderboard["entries"]}
    names = ("ema", "lr_decay")
    scores = [entries[n]["gva_per_seed"] for n in ("none", *names)]
    assert [entries[n]["p_value"] for n in names] == inference.many_to_one(scores)
    assert entries["ema"]["improvement"] == 1
    for name in ("none", "dropout", "accumulation"):
        assert (entries[name]["improvement"], entries[name]["p_value"]) == (None, None)
    assert (entries["dropout"]["rank_low"], entries["dropout"]["rank_high"]) == (None, None)
    ranked = [e for e in leaderboard["entries"] if e["rank"]]
    assert all(e["rank_low"] <= e["rank"] <= e["rank_high"] for e in ranked)
    assert leaderboard["run"]["tasks"]["toy"]["verdict"].startswith("Steadier than none: ema")
