"""A run folder's renderings: rebuilt from its rows, the same each time, and a plain error where rows are damaged."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stab.registry import StabError
from stab.reports import render, statistics
from stab.reports.schema import schema
from stab.run import rows

SCHEMA = schema()


def check(leaderboard: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(leaderboard)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "change",
    [{}, {"smoke": True}, {"static": "ema"}, {"level": {"lr_decay": 0.1}}, {"learned": False}],
)
def test_the_leaderboard_obeys_its_schema(
    make_run: Callable[..., Path], change: dict[str, Any]
) -> None:
    check(statistics.leaderboard(statistics.read(make_run(**change))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "fine"),
        ("rank", None),
        ("rank", 0),
        ("gva", None),
        ("gva", -0.1),
        ("return", "0.5"),
        ("samples", 1.5),
        ("reason", "although it is sound"),
    ],
)
def test_the_schema_is_strict(run: Path, key: str, value: Any) -> None:
    leaderboard = statistics.leaderboard(statistics.read(run))
    leaderboard["entries"][0][key] = value
    with pytest.raises(jsonschema.ValidationError):
        check(leaderboard)


def test_every_key_of_the_schema_is_required(run: Path) -> None:
    leaderboard = statistics.leaderboard(statistics.read(run))
    for key in SCHEMA["properties"]["entries"]["items"]["properties"]:
        value = leaderboard["entries"][0].pop(key)
        with pytest.raises(jsonschema.ValidationError, match=key):
            check(leaderboard)
        leaderboard["entries"][0][key] = value


def test_render_writes_everything(run: Path) -> None:
    leaderboard = render(run)
    assert json.loads((run / "leaderboard.json").read_text()) == leaderboard
    with (run / "leaderboard.csv").open(newline="") as file:
        assert [row["stabilizer"] for row in csv.DictReader(file)] == [
            e["stabilizer"] for e in leaderboard["entries"]
        ]
    assert "| 1 | ema |" in (run / "leaderboard.md").read_text()
    names = ("curves", "recipes", "scores", "tradeoff", "horizons", "heat", "leaderboard")
    figures = {f"toy-{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert "Toy-v0" in (run / "report.html").read_text()
    assert {path.name for path in (run / "figures").iterdir()} == figures
    assert {path.name for path in (run / "tensorboard").iterdir()} == {
        "none",
        "ema",
        "lr_decay",
        "leaderboard",
    }


def test_rendering_again_gives_the_same_and_leaves_nothing_stale(run: Path) -> None:
    render(run)
    before = {
        path.name: path.read_bytes() for path in (*run.glob("leaderboard.*"), run / "report.html")
    }
    (run / "tensorboard" / "stale").write_text("")
    (run / "figures" / "stale.png").write_text("")
    render(run)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.rglob("stale*"))
    assert not list(run.glob(".*")), "no temporary folders stay"
    assert len(list((run / "tensorboard" / "ema").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("foreign.json", '{"hello": 1}'),
        ("foreign.json", "[]"),
        ("foreign.json", "no JSON"),
        ("foreign.json", ""),
    ],
)
def test_a_foreign_file_among_the_cells_is_named(run: Path, name: str, content: str) -> None:
    (run / "cells" / name).write_text(content)
    with pytest.raises(StabError, match=name) as caught:
        render(run)
    assert "\n" not in str(caught.value)
    assert not (run / "leaderboard.json").exists()


def test_a_truncated_cell_is_named(run: Path) -> None:
    path = next((run / "cells").iterdir())
    path.write_text(path.read_text()[:-100])
    with pytest.raises(StabError, match=path.name) as caught:
        render(run)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StabError, match="not a run folder"):
        render(tmp_path)


def test_unfinished_seeds_say_how_to_go_on(run: Path) -> None:
    (run / "failures" / "toy-dropout-seed1.json").unlink()
    leaderboard = render(run)
    (dropout,) = (entry for entry in leaderboard["entries"] if entry["stabilizer"] == "dropout")
    assert dropout["reason"] == "0 of 3 seeds finished; resume with --resume"


def test_rows_of_protocol_1_are_scored_again(run: Path) -> None:
    before = render(run)
    for path in (run / "cells").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": 1}))
    after = render(run)
    check(after)
    assert after["protocol"] == 2
    assert after["entries"] == before["entries"]
    (warning,) = after["run"]["tasks"]["toy"]["warnings"]
    assert warning == ("The rows were made under protocol 1; this is protocol 2's score of them.")
    assert warning in (run / "leaderboard.md").read_text()
    for path in (run / "cells").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": 0}))
    with pytest.raises(StabError, match="rows of protocol 0"):
        render(run)


def test_without_none_returns_are_compared_with_nothing(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        if json.loads(path.read_text())["raw"] == "none":
            path.unlink()
    leaderboard = render(run)
    check(leaderboard)
    status = {entry["stabilizer"]: entry["status"] for entry in leaderboard["entries"]}
    assert (status["none"], status["lr_decay"]) == ("failed", "ranked")
    (decay,) = (e for e in leaderboard["entries"] if e["stabilizer"] == "lr_decay")
    assert decay["return_holds"] is None
    assert "nothing can be compared" in (run / "leaderboard.md").read_text()


def test_rows_are_complete(run: Path) -> None:
    row = next(rows.rows(run))
    for key in (
        "protocol",
        "task",
        "dataset",
        "environment",
        "recipe",
        "seed",
        "stabilizer",
        "update",
        "start",
        "return",
    ):
        assert key in row


@pytest.mark.parametrize("change", [{"tasks": []}, {"stabilizers": []}, {"stabilizers": ["ema"]}])
def test_settings_without_tasks_or_none_are_refused(run: Path, change: dict[str, Any]) -> None:
    settings = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps(settings | change))
    with pytest.raises(StabError, match="names no tasks, or not the stabilizer 'none'"):
        render(run)
