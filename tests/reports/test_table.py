"""The leaderboard as a table, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stab.reports import sheets, statistics, table
from stab.reports.columns import COLUMNS
from stab.reports.columns import shown as shown_columns

LONG = "lr_decay:power=2.0,shape=polynomial+ema:alpha=0.67,burn_in=0.25,half_life=500"


def board(run: Path) -> dict[str, Any]:
    return statistics.leaderboard(statistics.read(run))


def markdown(leaderboard: dict[str, Any]) -> str:
    return sheets.markdown(table.sheets(leaderboard))


def shown(leaderboard: dict[str, Any], width: int = 80) -> str:
    console = Console(
        width=width, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(sheets.terminal(table.task_sheets(leaderboard, "toy")))
    return console.export_text()


def line(text: str, name: str) -> list[str]:
    """The words of the table's line of a stabilizer."""
    return next(words for words in map(str.split, text.splitlines()) if name in words[1:2])


def test_the_table_shows_names_and_numbers_in_80_columns(run: Path) -> None:
    leaderboard = board(run)
    text = shown(leaderboard)
    assert max(map(len, text.splitlines())) <= 80
    assert "toy (Toy-v0): 3 seeds x 5 checkpoints x 2 starts" in text
    for entry in leaderboard["entries"]:
        words = line(text, entry["stabilizer"])
        assert words[0] == str(entry["rank"] or "–")
        if entry["rank"]:
            assert f"{entry['gva']:.3f}" in words
            (ends,) = (word for word in words if "–" in word[1:])
            low, high = map(float, ends.split("–"))
            assert low <= entry["gva_low"] < low + 0.01, "rounded outwards"
            assert high - 0.01 < entry["gva_high"] <= high
            assert f"{entry['return']:.2f}" in words
            assert f"{entry['worst']:.2f}" in words
            assert words[-3:] == ["x1", "3", "s"]  # seconds: the mean of 2, 3, 4


def test_ranks_ascend_with_gva(run: Path) -> None:
    ranked = [entry for entry in board(run)["entries"] if entry["rank"]]
    assert [entry["stabilizer"] for entry in ranked] == ["ema", "lr_decay", "none"]
    assert [entry["rank"] for entry in ranked] == [1, 2, 3]
    assert [entry["gva"] for entry in ranked] == sorted(entry["gva"] for entry in ranked)


def test_captions_say_how_to_read_the_numbers(run: Path) -> None:
    leaderboard = board(run)
    text = " ".join(shown(leaderboard).split())
    assert "without the noise of single episodes" in text
    (ema,) = (entry for entry in leaderboard["entries"] if entry["stabilizer"] == "ema")
    assert f"ema {ema['half_life'][0]} to {ema['half_life'][1]}" in text
    assert leaderboard["run"]["budget"] in text


def test_failed_and_skipped_entries_stand_below_with_their_reasons(run: Path) -> None:
    text = shown(board(run)).partition("──")[2]
    order = [
        text.index(name)
        for name in ("ema", "lr_decay", "none", "dropout (failed)", "accumulation (skipped)")
    ]
    assert order == sorted(order)
    assert "seed 1: ValueError: boom" in text
    assert "odd batch [see | docs]" in text  # square brackets are text, not rich's markup


@pytest.mark.parametrize(
    ("change", "status"), [({"static": "ema"}, "static"), ({"level": {"ema": 0.5}}, "unsound")]
)
def test_a_steady_policy_that_is_frozen_or_worse_is_not_ranked(
    make_run: Callable[..., Path], change: dict[str, Any], status: str
) -> None:
    leaderboard = board(make_run(**change))
    text = shown(leaderboard)
    lines = text.splitlines()
    (at,) = (i for i, words in enumerate(lines) if f"ema ({status})" in words)
    (last,) = (i for i, words in enumerate(lines) if words.split()[1:2] == ["none"])
    assert last + 1 < at, "a rule stands between the ranked entries and the others"
    assert set(lines[last + 1].strip()) == {"─"}
    assert line(text, "ema")[0] == "–"
    assert f"{leaderboard['entries'][2]['gva']:.3f}" in line(text, "ema")
    assert f"{status}: its re" in text


def test_a_return_that_is_not_shown_to_hold_keeps_its_rank_and_is_noted(
    make_run: Callable[..., Path],
) -> None:
    leaderboard = board(make_run(level={"ema": [0.6, 0.78, 0.66]}))
    (ema,) = (e for e in leaderboard["entries"] if e["stabilizer"] == "ema")
    assert (ema["status"], ema["rank"], ema["return_holds"]) == ("ranked", 1, False)
    assert ema["return_difference_low"] < -0.05
    assert ema["return_difference_high"] > 0
    said = " ".join(shown(leaderboard).split())
    assert "Return not shown to hold against none, with its lower 95 % bound: ema -0." in said


def test_long_names_fold(run: Path) -> None:
    leaderboard = board(run)
    leaderboard["entries"][0]["stabilizer"] = LONG
    text = shown(leaderboard)
    assert max(map(len, text.splitlines())) <= 80
    words = [word for row in text.splitlines() for word in row.split()[:2]]
    folded = "".join(
        word for word in words if word in LONG and (len(word) > 3 or word.endswith("+"))
    )
    assert LONG in folded
    assert f"{leaderboard['entries'][0]['gva']:.3f}" in text


def test_a_smoke_run_says_so_everywhere(make_run: Callable[..., Path]) -> None:
    leaderboard = board(make_run(smoke=True))
    assert table.SMOKE in shown(leaderboard)
    assert table.SMOKE in markdown(leaderboard)


def test_a_run_that_counts_has_no_smoke_label(run: Path) -> None:
    leaderboard = board(run)
    assert table.SMOKE not in shown(leaderboard) + markdown(leaderboard)


def test_warnings_are_shown(make_run: Callable[..., Path]) -> None:
    leaderboard = board(make_run(learned=False))
    (warning,) = leaderboard["run"]["tasks"]["toy"]["warnings"]
    assert "has not learned" in warning
    assert warning in " ".join(shown(leaderboard).split())
    assert warning in markdown(leaderboard)


def test_without_an_interval_the_score_stands_alone(run: Path) -> None:
    leaderboard = board(run)
    leaderboard["entries"][0] |= {"gva_low": None, "gva_high": None}
    assert line(shown(leaderboard), "ema")[3] == "steadier"


def test_markdown_is_a_table_with_the_same_columns(run: Path) -> None:
    leaderboard = board(run)
    lines = [row for row in markdown(leaderboard).splitlines() if row.startswith("|")]
    headings = [column.heading for column in shown_columns("terminal")]
    assert lines[0] == f"| {' | '.join(headings)} |"
    assert len(lines) == 2 + len(leaderboard["entries"])
    assert all(row.count("|") == len(headings) + 1 for row in lines)
    assert "odd batch \\[see \\| docs\\]" in markdown(leaderboard)


def test_csv_has_one_line_an_entry_and_only_scalars(run: Path) -> None:
    leaderboard = board(run)
    read = list(csv.DictReader(io.StringIO(table.to_csv(leaderboard))))
    assert [row["stabilizer"] for row in read] == [
        entry["stabilizer"] for entry in leaderboard["entries"]
    ]
    for row, entry in zip(read, leaderboard["entries"], strict=True):
        nested = {column.key for column in COLUMNS if not column.scalar}
        assert not set(row) & nested
        assert set(entry) - nested < set(row)
        for key, text in row.items():
            value = entry[key] if key in entry else entry["settings"].get(key)
            assert text == ("" if value is None else str(value))


def test_what_had_no_effect_is_said(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        if "lr_decay" in cell["checkpoints"]:
            base = next(
                other
                for other in map(
                    json.loads, (p.read_text() for p in (run / "cells").glob("*.json"))
                )
                if "none" in other["checkpoints"] and other["seed"] == cell["seed"]
            )
            for own, raw in zip(
                cell["checkpoints"]["lr_decay"], base["checkpoints"]["none"], strict=True
            ):
                own["weights"] = raw["weights"]
            path.write_text(json.dumps(cell))
    leaderboard = board(run)
    said = " ".join(shown(leaderboard).split())
    assert "lr_decay: it had no effect: its weights are those of none, bit for bit." in said
    assert "ema: it had no effect" not in said
    assert "none: it had no effect" not in said
    assert "lr_decay: it had no effect" in markdown(leaderboard)
