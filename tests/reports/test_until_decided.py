"""More seeds for what is undecided: the sequential test, and run folders with unequal seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from stab.config import Config
from stab.registry import StabError
from stab.reports import inference, render
from stab.reports.leaderboard import leaderboard, undecided
from stab.reports.results import read
from stab.reports.schema import schema
from stab.run.folder import check_folder, settings
from stab.run.plan import make_config, make_plan

TESTS = (3, 6, 12)


def drawn(rng: np.random.Generator, levels: list[float]) -> np.ndarray:
    """Scores (entries, 12 seeds) that differ by a third of their level from seed to seed."""
    return np.array(levels)[:, None] * rng.gamma(9, 1 / 9, (len(levels), TESTS[-1]))


def grown(scores: np.ndarray) -> tuple[list[inference.Tested], list[int]]:
    """Add seeds to the undecided until nothing is; the rule as the docs say it."""
    counts = [TESTS[0]] * len(scores)
    while True:
        tested = inference.sequential(
            [own[:n].tolist() for own, n in zip(scores, counts, strict=True)], TESTS
        )
        more = [k for k, of in enumerate(tested, 1) if of.undecided]
        if not more:
            return tested, counts
        for k in more:
            counts[k] = next(test for test in TESTS if test > counts[k])
        counts[0] = max(counts)


def test_with_equal_seeds_it_is_dunnett_s_test_times_the_number_of_tests() -> None:
    scores = drawn(np.random.default_rng(0), [0.3, 0.1, 0.25, 0.3])[:, :6]
    expected = [min(1, 3 * p) for p in inference.many_to_one(scores)]
    tested = inference.sequential(scores.tolist(), TESTS)
    assert [of.p for of in tested] == expected
    assert [of.difference for of in tested] == pytest.approx(scores[1:].mean(1) - scores[0].mean())
    assert {of.seeds for of in tested} == {6}


def test_what_was_said_of_an_entry_stays_while_others_get_more_seeds() -> None:
    scores = drawn(np.random.default_rng(1), [0.3, 0.02, 0.25, 0.28])
    first = inference.sequential(scores[:, :3].tolist(), TESTS)
    uneven = [scores[0], scores[1, :3], scores[2], scores[3, :6]]
    later = inference.sequential([own.tolist() for own in uneven], TESTS)
    assert later[0] == first[0]
    assert [of.seeds for of in later] == [3, 12, 6]
    # Alone at 12 seeds, but still one of three that began.
    assert later[1].p == min(1, 3 * inference.many_to_one(scores[[0, 2]], family=3)[0])


def test_the_chance_of_any_false_finding_in_all_tests_is_5_percent_at_most() -> None:
    rng = np.random.default_rng(2)
    false, seeds = [], []
    for _ in range(300):
        tested, counts = grown(drawn(rng, [0.3] * 6))
        false.append(any(of.p < inference.LEVEL for of in tested))
        seeds.append(counts)
    assert np.mean(false) <= 0.05
    assert np.mean(seeds) < 9, "and it does not train all seeds"


def test_it_finds_what_three_seeds_do_not() -> None:
    rng, found = np.random.default_rng(3), []
    for _ in range(50):
        scores = drawn(rng, [0.3, 0.15, 0.3, 0.3])
        few = inference.many_to_one(scores[:, :3])[0] < inference.LEVEL
        found.append((few, grown(scores)[0][0].p < inference.LEVEL))
    few, more = np.mean(found, axis=0)
    assert few < 0.4
    assert more > few + 0.3


def test_nothing_is_undecided_at_the_last_test_or_without_any_spread() -> None:
    scores = drawn(np.random.default_rng(4), [0.3, 0.25, 0.28])
    assert not any(of.undecided for of in inference.sequential(scores.tolist(), TESTS))
    (flat,) = inference.sequential([[0.1] * 3, [0.1] * 3], TESTS)
    assert (flat.p, flat.undecided) == (1, False)


CASES = {"ema": 3, "lr_decay": 6, "none": 12}  # seeds that each has


@pytest.fixture
def uneven(make_run: Callable[..., Path]) -> Path:
    """A run that ended with 3, 6 and 12 seeds."""
    return make_run(seeds=CASES, looks=(3, 6))


def test_a_run_with_uneven_seeds_is_read_and_shown(uneven: Path) -> None:
    results = read(uneven)
    assert {string: len(one.seeds) for (_, string), one in results.series.items()} == CASES
    board = render(uneven)
    jsonschema.validate(board, schema())
    entries = {e["stabilizer"]: e for e in board["entries"]}
    assert {string: entries[string]["seeds"] for string in CASES} == CASES
    assert {string: len(entries[string]["gva_per_seed"]) for string in CASES} == CASES
    assert entries["ema"]["return_difference"] == pytest.approx(
        (results.series["toy", "ema"].scored - results.series["toy", "none"].scored[:3]).mean()
    )
    assert entries["ema"]["p_value"] == pytest.approx(
        min(
            1,
            3
            * inference.many_to_one(
                [entries[s]["gva_per_seed"][:3] for s in ("none", "ema", "lr_decay")]
            )[0],
        )
    )
    text = (uneven / "leaderboard.md").read_text()
    assert "3 to 12 seeds x" in text
    assert "Tested at 3, 6 and 12 seeds at most: p-values are multiplied by 3." in text
    assert "Seeds: 3 ema; 6 lr_decay; 12 none." in text


def test_a_test_whose_seeds_are_not_all_there_is_not_made(uneven: Path) -> None:
    for path in (uneven / "cells").glob("*-seed5.json"):
        path.unlink()
    assert {s: len(one.seeds) for (_, s), one in read(uneven).series.items()} == dict.fromkeys(
        CASES, 3
    )


def test_undecided_entries_and_none_get_the_seeds_of_the_next_test(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read(uneven)

    def says(undecided: dict[str, bool]) -> None:
        order = [
            e["stabilizer"]
            for e in leaderboard(results)["entries"]
            if e["gva"] is not None and e["stabilizer"] != "none"
        ]
        tested = [
            inference.Tested(CASES[string], -0.1, 0.5, None, undecided[string]) for string in order
        ]
        monkeypatch.setattr(inference, "sequential", lambda *_: tested)

    says({"ema": False, "lr_decay": True})
    assert undecided(results) == {("toy", "lr_decay"): 12, ("toy", "none"): 12}
    monkeypatch.undo()
    says({"ema": True, "lr_decay": False})
    assert undecided(results) == {("toy", "ema"): 6, ("toy", "none"): 6}
    monkeypatch.undo()
    says({"ema": False, "lr_decay": False})
    assert undecided(results) == {}


def options(**given: Any) -> Config:
    return make_config("hopper", "all", **given)[0]


@pytest.mark.parametrize(
    ("given", "tests"),
    [
        ({}, (4, 8, 16)),
        ({"seeds": 3, "max_seeds": 20}, (3, 6, 12, 20)),
        ({"seeds": 5, "max_seeds": 6}, (5, 6)),
    ],
)
def test_seeds_double_from_test_to_test(given: dict[str, Any], tests: tuple[int, ...]) -> None:
    config = options(until_decided=True, **given)
    assert config.tests == tests
    assert config.until_decided
    cells = make_plan(config, {}).cells
    assert {cell.seed for cell in cells} == set(range(tests[0])), "the first test's seeds first"


def test_a_plan_has_the_seeds_that_are_wanted_alone() -> None:
    config = options(until_decided=True)
    wanted = {("hopper", "none"): 8, ("hopper", "lr_decay"): 8}
    cells = make_plan(config, {}, wanted).cells
    assert {(cell.stabilizers, cell.seed) for cell in cells} == {
        ((string,), seed) for string in ("none", "lr_decay") for seed in range(8)
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_seeds": 8}, "--max-seeds is for --until-decided"),
        ({"until_decided": True, "seeds": 2}, "begins with 2 seeds"),
        ({"until_decided": True, "max_seeds": 4}, "ends with --max-seeds, 4"),
        ({"overrides": ["looks=[8,4]"]}, "expected rising numbers of seeds"),
        ({"overrides": ["looks=[2]"]}, "from 3"),
        ({"overrides": ["until_decided=true"]}, "needs looks"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(StabError, match=said):
        options(**given)


def test_resuming_with_more_seeds_counts_the_scores_that_were_seen(
    make_run: Callable[..., Path],
) -> None:
    run = make_run()
    plain = settings(run)

    def joined(**changes: Any) -> tuple[tuple[int, ...], bool]:
        config = check_folder(run, dataclasses.replace(plain, **changes), resume=True)
        return config.tests, config.until_decided

    assert joined(seeds=6) == ((6,), False), "nothing was shown yet"
    render(run)
    assert joined() == ((3,), False)
    assert joined(seeds=6) == ((3, 6), False)
    assert joined(seeds=12, looks=(3, 6), until_decided=True) == ((3, 6, 12), True)
    assert joined(seeds=2) == ((3,), False)
