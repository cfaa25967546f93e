"""What seeds allow one to say, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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


def test_the_verdict_is_plain() -> None:
    none = [0.3, 0.31, 0.29, 0.3, 0.32]
    far, near = [0.01, 0.02, 0.01, 0.0, 0.01], [0.31, 0.29, 0.3, 0.29, 0.32]
    p = inference.holm([inference.paired_p(far, none), inference.paired_p(near, none)])
    said = inference.verdict(["ema", "dropout"], [far, near], none, p, 2)
    assert said.startswith(
        "Steadier than none: ema (p < 0.0001) (paired t-test over 5 seeds, Holm's correction for 2"
    )
    assert "dropout" not in said
    assert said.endswith("Of the other ranked ones 5 seeds do not tell.")
    said = inference.verdict(["ema"], [far], none, [0.012], 9)
    assert said.endswith(
        "ema (p = 0.012) (paired t-test over 5 seeds, Holm's correction for 9 comparisons, 5 %)."
    )
    said = inference.verdict(["dropout"], [near], none, [0.8], 1)
    assert said.startswith("5 seeds are too few to distinguish any ranked entry from none")
    assert "Less steady than none: ema" in inference.verdict(["ema"], [none], far, [0.001], 1)
    for seeds, said in ((1, "1 seed: too few"), (2, "2 seeds: too few")):
        assert inference.verdict(
            ["ema"], [far[:seeds]], none[:seeds], [float("nan")], 1
        ).startswith(said)
    many = [f"ema:half_life={n}" for n in range(20)]
    assert " and 14 more (" in inference.verdict(many, [far] * 20, none, [0.001] * 20, 20)


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
    raw = [
        stats.ttest_rel(entries[n]["gva_per_seed"], entries["none"]["gva_per_seed"]).pvalue
        for n in names
    ]
    assert [entries[n]["p_value"] for n in names] == pytest.approx(inference.holm(raw))
    assert entries["ema"]["improvement"] == 1
    for name in ("none", "dropout", "accumulation"):
        assert (entries[name]["improvement"], entries[name]["p_value"]) == (None, None)
    assert (entries["dropout"]["rank_low"], entries["dropout"]["rank_high"]) == (None, None)
    ranked = [e for e in leaderboard["entries"] if e["rank"]]
    assert all(e["rank_low"] <= e["rank"] <= e["rank_high"] for e in ranked)
    assert leaderboard["run"]["tasks"]["toy"]["verdict"].startswith("Steadier than none: ema")
