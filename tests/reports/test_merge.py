"""Several runs on one leaderboard, and what changed between two: from run folders as a user has them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from stab import files
from stab.registry import StabError
from stab.reports import inference, merge, sheets, statistics


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The plain run, and a copy of it from another machine."""
    shutil.copytree(run, tmp_path / "other")
    return run, tmp_path / "other"


def change(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    for path in (run / "cells").glob("*.json"):
        cell = files.read_json(path)
        edit(cell)
        files.write_json(path, cell)


def settings(run: Path, **new: Any) -> None:
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps(config | new))


def merged(*runs: Path, where: tuple[str, ...] = ()) -> dict[str, Any]:
    return merge.merge(merge.read(runs), where)


def shown(found: dict[str, Any]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sheets.terminal(merge.sheets(found)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    return " ".join(text.split())


def test_entries_keep_their_origin_and_are_ranked_together(pair: tuple[Path, Path]) -> None:
    first, second = pair

    def steadier(cell: dict[str, Any]) -> None:
        for row in cell["rows"]:
            if row["stabilizer"] == "none":
                row["return"] = 0.6

    change(second, steadier)
    found = merged(first, second)
    ranked = [(e["rank"], e["stabilizer"], e["run"]) for e in found["entries"] if e["rank"]]
    assert ranked[0] == (1, "none", "B")
    assert [rank for rank, *_ in ranked] == [1, 2, 3, 4, 5, 6]
    gvas = [e["gva"] for e in found["entries"] if e["rank"]]
    assert gvas == sorted(gvas)
    alone = {e["stabilizer"]: e for e in statistics.leaderboard(statistics.read(first))["entries"]}
    for entry in found["entries"]:
        if entry["run"] == "A":
            own = alone[entry["stabilizer"]]
            keys = own.keys() - {"rank", "rank_low", "rank_high"}
            assert {key: entry[key] for key in keys} == {key: own[key] for key in keys}
    assert found["runs"]["B"]["path"] == str(second)


def test_the_files_of_merged_runs_are_left_alone(pair: tuple[Path, Path]) -> None:
    def files() -> dict[Path, bytes]:
        return {
            path: path.read_bytes() for run in pair for path in run.rglob("*") if path.is_file()
        }

    before = files()
    shown(merged(*pair))
    assert files() == before


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda cell: cell.update(environment="Toy-v1"),
            "toy has other environments (Toy-v0 and Toy-v1)",
        ),
        (lambda cell: cell.update(task_version=2), "toy has other versions of the task (1 and 2)"),
        (lambda cell: cell.update(expert_sha256="2" * 64), "toy has other experts (1111"),
        (
            lambda cell: cell["references"]["expert"].__setitem__(-1, 26.0),
            "the expert's reference return on toy over 4 steps is 25 and 26",
        ),
        (lambda cell: cell["versions"].update(mujoco="3.2.0"), "toy ran on mujoco 3.3.0 and 3.2.0"),
        (lambda cell: cell["versions"].update(gymnasium="0.9"), "toy ran on gymnasium 1.0 and 0.9"),
    ],
)
def test_what_cannot_be_mixed_is_named(
    pair: tuple[Path, Path], edit: Callable[[dict[str, Any]], Any], said: str
) -> None:
    for run in pair:
        change(run, lambda cell: cell["versions"].update(mujoco="3.3.0", gymnasium="1.0"))
    merged(*pair)
    change(pair[1], edit)
    with pytest.raises(StabError) as caught:
        merged(*pair)
    assert str(caught.value).startswith(f"cannot mix {pair[0]} and {pair[1]}: ")
    assert said in str(caught.value)


def test_every_cell_is_looked_at(pair: tuple[Path, Path]) -> None:
    def other_expert(cell: dict[str, Any]) -> None:
        if cell["raw"] == "lr_decay":
            cell["expert_sha256"] = "2" * 64

    change(pair[1], other_expert)
    with pytest.raises(StabError, match="toy has other experts"):
        merged(*pair)
    # Where none has not finished, too.
    for path in (pair[1] / "cells").glob("*.json"):
        if files.read_json(path)["raw"] == "none":
            path.unlink()
    with pytest.raises(StabError, match="toy has other experts"):
        merged(*pair)


def test_references_may_differ_in_their_last_bits(pair: tuple[Path, Path]) -> None:
    change(
        pair[1], lambda cell: cell["references"]["expert"].__setitem__(-1, np.nextafter(25.0, 26.0))
    )
    assert len(merged(*pair)["entries"]) == 10


def test_the_version_of_mujoco_matters_where_the_environment_uses_it(
    pair: tuple[Path, Path],
) -> None:
    def versions(mujoco: str, environment: str) -> Callable[[dict[str, Any]], Any]:
        return lambda cell: (
            cell["versions"].update(mujoco=mujoco),
            cell.update(environment=environment),
        )

    for environment, refused in (("CartPole-v1", False), ("Hopper-v5", True)):
        change(pair[0], versions("3.3.0", environment))
        change(pair[1], versions("3.4.0", environment))
        if refused:
            with pytest.raises(StabError, match=r"ran on mujoco 3\.3\.0 and 3\.4\.0"):
                merged(*pair)
        else:
            merged(*pair)


def test_a_protocol_or_a_smoke_run_is_not_mixed(pair: tuple[Path, Path], make_run: Any) -> None:
    settings(pair[1], smoke=True)
    with pytest.raises(StabError, match="other is a smoke run"):
        merged(*pair)
    change(pair[1], lambda cell: cell.update(protocol=3))
    with pytest.raises(StabError, match="protocol 3, this stab scores protocol 2 and older"):
        merged(*pair)


def test_a_run_is_not_its_own_neighbour(run: Path) -> None:
    with pytest.raises(StabError, match="named twice"):
        merged(run, run / ".." / run.name)
    with pytest.raises(StabError, match="not a run folder"):
        merged(run, run / "cells")


def test_equal_runs_have_the_same_rows(pair: tuple[Path, Path]) -> None:
    found = merged(*pair)["changes"]
    assert (found["settings"], found["versions"], found["machine"]) == ([], [], None)
    assert (found["only_before"], found["only_after"]) == ([], [])
    assert {score["stabilizer"]: score["same"] for score in found["scores"]} == dict.fromkeys(
        ("none", "ema", "lr_decay"), True
    )
    assert "same rows" in shown(merged(*pair))


def test_what_changed_is_said_with_a_paired_test(pair: tuple[Path, Path]) -> None:
    first, second = pair
    rng = np.random.default_rng(0)

    def noisier(cell: dict[str, Any]) -> None:
        cell["versions"]["torch"] = "9.9"
        for row in cell["rows"]:
            row["return"] += 0.2 * rng.standard_normal()

    change(second, noisier)
    settings(second, stabilizers=["none", "ema", "lr_decay", "swa"])
    files.write_json(
        second / "run.json", {"command": "stab", "seconds": 1.0, "cores": 2, "machine": "Plan9 vax"}
    )
    found = merged(first, second)
    changed = found["changes"]
    assert changed["versions"] == [{"key": "torch", "before": None, "after": "9.9"}]
    assert changed["machine"] == [None, "Plan9 vax"]
    assert changed["only_before"] == ["toy accumulation", "toy dropout"]
    assert changed["only_after"] == ["toy swa"]
    boards = [
        {
            e["stabilizer"]: e["gva_per_seed"]
            for e in statistics.leaderboard(statistics.read(run))["entries"]
        }
        for run in pair
    ]
    names = [score["stabilizer"] for score in changed["scores"]]
    raw = [stats.ttest_rel(boards[1][name], boards[0][name]).pvalue for name in names]
    for score, p in zip(changed["scores"], inference.holm(raw), strict=True):
        name = score["stabilizer"]
        assert score["p_value"] == pytest.approx(p)
        assert score["difference"] == pytest.approx(
            np.mean(boards[1][name]) - np.mean(boards[0][name])
        )
        assert score["difference_low"] < score["difference"] < score["difference_high"]
        assert not score["same"]
    said = shown(found)
    assert "Versions that changed from A to B: torch was None, is 9.9." in said
    assert "Only in B: toy swa." in said
    assert "A, toy dropout (failed): seed 1: ValueError: boom" in said
    (only,) = merged(first, second, where=("method=ema",))["changes"]["scores"]
    assert only["stabilizer"] == "ema"
    assert "toy: from A to B" in sheets.markdown(merge.sheets(found))


def test_what_is_the_same_is_no_comparison_that_counts(pair: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(0)

    def noisier(cell: dict[str, Any]) -> None:
        for row in cell["rows"]:
            if row["stabilizer"] == "ema":
                row["return"] += 0.2 * rng.standard_normal()

    change(pair[1], noisier)
    scores = {score["stabilizer"]: score for score in merged(*pair)["changes"]["scores"]}
    assert [scores[name]["same"] for name in ("none", "ema", "lr_decay")] == [True, False, True]
    boards = [statistics.leaderboard(statistics.read(run))["entries"] for run in pair]
    one, other = (
        next(e["gva_per_seed"] for e in found if e["stabilizer"] == "ema") for found in boards
    )
    assert scores["ema"]["p_value"] == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert scores["none"]["p_value"] is None
    # Lengths belong to the rows, too.
    change(pair[1], lambda cell: [row.update(length=row["length"] - 1) for row in cell["rows"]])
    assert not any(score["same"] for score in merged(*pair)["changes"]["scores"])


def test_seeds_that_both_have_are_compared(pair: tuple[Path, Path]) -> None:
    settings(pair[1], seeds=2)
    found = merged(*pair)["changes"]
    assert {score["seeds"] for score in found["scores"]} == {2}
    assert all(score["same"] for score in found["scores"])
    assert {score["p_value"] for score in found["scores"]} == {None}, "two seeds allow no test"
    assert found["settings"] == [{"key": "seeds", "before": 3, "after": 2}]


def test_three_runs_filters_and_formats(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[0], tmp_path / "third")
    settings(tmp_path / "third", data={"dataset": "a/b-v0"})
    change(tmp_path / "third", lambda cell: cell.update(dataset="a/b-v0"))
    found = merged(*pair, tmp_path / "third", where=("method=ema|none",))
    assert "changes" not in found
    assert [(e["stabilizer"], e["run"]) for e in found["entries"]].count(("ema", "C")) == 1
    assert {e["stabilizer"] for e in found["entries"]} == {"ema", "none"}
    assert "toy: A and C have different datasets." in found["warnings"]
    assert any(w.startswith("Settings of A and C differ: data") for w in found["warnings"])
    lines = list(csv.DictReader(io.StringIO(merge.to_csv(found))))
    assert {(line["run"], line["path"]) for line in lines} == {
        (label, about["path"]) for label, about in found["runs"].items()
    }
    json.dumps(found, allow_nan=False)
    assert "toy: runs A, B, C" in shown(found)
