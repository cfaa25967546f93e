"""A run folder's renderings: rebuilt from its rows, the same each time, and a plain error where rows are damaged."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stab import files
from stab.cli.console import Console
from stab.registry import StabError
from stab.reports import clean, render, sheets, statistics, table
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


# Strangers' folders


def recorded(run: Path) -> Path:
    """Write every file again with a checksum, as stab does."""
    for path in run.rglob("*.json"):
        data = json.loads(path.read_text())
        files.write_record(path, data if isinstance(data, dict) else {"skipped": data})
    files.write_record_text(run / "config.yaml", (run / "config.yaml").read_text())
    names = sorted(path.stem for path in (run / "cells").iterdir())
    files.write_record(run / "run.json", files.read_json(run / "run.json") | {"cells": names})
    return run


def test_files_with_checksums_give_the_leaderboard_of_those_without(run: Path) -> None:
    before = statistics.leaderboard(statistics.read(run))
    assert statistics.leaderboard(statistics.read(recorded(run))) == before


@pytest.mark.parametrize(
    "which", ["cells/*", "timings/*", "failures/*", "skipped.json", "run.json", "config.yaml"]
)
def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(run: Path, which: str) -> None:
    path = sorted(recorded(run).glob(which))[0]
    whole, before = path.read_bytes(), statistics.leaderboard(statistics.read(run))
    rng, refused = random.Random(which), 0
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found = said = None
        try:
            found = statistics.leaderboard(statistics.read(run))
        except StabError as e:
            said = str(e)
        refused += found is None
        assert found == before if said is None else path.name in said and "\n" not in said
    assert refused > 40
    path.write_bytes(whole)


def test_a_number_that_was_changed_by_hand_is_refused(run: Path) -> None:
    path = next((recorded(run) / "cells").iterdir())
    path.write_text(path.read_text().replace('"length": 4', '"length": 3', 1))
    with pytest.raises(StabError, match=rf"{path.name} is not as stab.*--resume computes it anew"):
        render(run)


def test_a_cell_that_was_deleted_is_named(run: Path) -> None:
    path = next((recorded(run) / "cells").iterdir())
    path.unlink()
    with pytest.raises(StabError, match=rf"{path.name} is gone .1 of 6 .*--resume computes it"):
        render(run)


def test_a_folder_does_not_get_its_reader_s_environment(run: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAB_SECRET", "hunter2")
    settings = json.loads((run / "config.yaml").read_text())
    for key in ("device", "policy", "optimizer_args"):
        value = "${oc.env:STAB_SECRET}"
        train = settings["train"] | {key: {"x": value} if key == "optimizer_args" else value}
        (run / "config.yaml").write_text(json.dumps(settings | {"train": train}))
        with pytest.raises(StabError, match=rf"config.yaml is not valid at train.{key}") as caught:
            render(run)
        assert "hunter2" not in str(caught.value)
    assert not list(run.glob("leaderboard*"))


ESCAPES = "\x1b]0;owned\x07\x1b[31m\u202egnp\u2066\x9b2J"
NASTY = f"=cmd|'/c calc'!A1 {ESCAPES} <script>alert(1)</script> [x](javascript:1)\n# head"


def test_what_a_stranger_wrote_is_shown_and_never_obeyed(run: Path, capsys: Any) -> None:
    skipped = [{"task": "toy", "stabilizer": "accumulation", "reason": NASTY + "y" * 2000}]
    files.write_json(run / "skipped.json", skipped)
    about = json.loads((run / "run.json").read_text()) | {"command": NASTY, "machine": NASTY}
    files.write_json(run / "run.json", about)
    path = next((run / "failures").iterdir())
    files.write_json(path, json.loads(path.read_text()) | {"reason": f"@SUM(1) {NASTY}"})
    for cell in (run / "cells").iterdir():
        data = json.loads(cell.read_text()) | {"environment": NASTY, "dataset": NASTY}
        for rider in data["riders"].values():
            rider["notes"] = [NASTY]
        for row in data["rows"]:
            row["measures"] = {f"+{NASTY}": 1.0}
        cell.write_text(json.dumps(data | {"metrics": {f"+{NASTY}": NASTY}}))
    leaderboard = render(run)
    Console(file=sys.stdout, width=80).print(sheets.terminal(table.sheets(leaderboard)))
    shown = {name: (run / name).read_text() for name in ("leaderboard.md", "leaderboard.csv")}
    shown |= {"report.html": (run / "report.html").read_text(), "terminal": capsys.readouterr().out}
    for name, text in shown.items():
        odd = {c for c in text if not c.isprintable() and c != "\n"}
        assert odd == set(), name
        assert "y" * 300 not in text or name == "leaderboard.csv", name
    for name in ("leaderboard.md", "report.html"):
        assert "<script>alert" not in shown[name]
    assert "\n# head" not in shown["leaderboard.md"]
    assert not re.search(r"(?<!\\)\]\(javascript", shown["leaderboard.md"])
    for line in csv.reader(shown["leaderboard.csv"].splitlines()):
        for cell in line:
            assert not cell.startswith(("=", "+", "@"))
            assert cell[:1] != "-" or float(cell) < 0
    reasons = [one["reason"] for one in csv.DictReader(shown["leaderboard.csv"].splitlines())]
    assert sum(reason.startswith("'=cmd") for reason in reasons) == 1


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    assert clean.message("a\nb\x1b[1m \t c") == "a b� [1m c".replace("� ", "�")
    assert clean.message("short") == "short"
    long = clean.message(f"Unknown name {'x' * 2000}. Known: ema")
    assert len(long) < 240
    assert long.startswith("Unknown name xxx")
    assert long.endswith("xxx. Known: ema")
    assert len(clean.message("word " * 1000)) == clean.LONGEST
