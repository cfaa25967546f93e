"""``snapshots.every`` and ``stab report RUN --averages``: averages chosen after training, from outside."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import pytest
from forked import stab

from stab.cli.main import main

SIZES = ("--policy", "mlp:depth=0", "train.lr=0.01", "train.updates=400", "eval.checkpoint_every=20",
         "eval.starts=2", "eval.horizon=100")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same settings: one that kept snapshots, one (of one seed) that did not."""
    top = tmp_path_factory.mktemp("posthoc")
    for name, more in (
        ("with", ["snapshots.every=5", "--seeds", "3"]),
        ("without", ["--seeds", "1"]),
    ):
        done = stab(
            "compare",
            "-t",
            "cliff",
            "-s",
            "ema:half_life=40,lr_decay",
            "--out",
            top / name,
            *SIZES,
            *more,
        )
        assert done.returncode == 0, done.stderr
    done = stab(
        "report", top / "with", "--averages", "ema:half_life=10|40|100,lr_decay+polyak", draw=True
    )
    assert done.returncode == 0, done.stderr
    (top / "stdout").write_text(done.stdout)
    return top


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run ``stab`` in this process; it must end with exit code 2. Returns what it said."""

    def go(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["stab", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return go


def entries(run):
    return {e["stabilizer"]: e for e in json.loads((run / "averages.json").read_text())["entries"]}


def test_keeping_snapshots_changes_no_row(runs):
    cells = list((runs / "without" / "cells").iterdir())
    assert len(cells) == 2
    for cell in cells:
        assert json.loads(cell.read_text()) == json.loads(
            (runs / "with" / "cells" / cell.name).read_text()
        )
    assert not (runs / "without" / "snapshots").exists()
    assert (
        len(list((runs / "with" / "snapshots").iterdir())) == 6
    )  # none and lr_decay, three seeds each


def test_the_plan_says_how_much_disk_snapshots_take(runs, stab):
    done = stab("compare", "-t", "cliff", "-s", "ema", "snapshots.every=50", "--dry-run")
    # 3 cells x (120 blocks + 18 checkpoints) x (2 x 256 + 256 + 256 x 256 + 256 + 256 x 2 + 2) parameters x 4 bytes
    assert "snapshots of every 50 updates: 153 MB on disk" in done.stdout


def test_every_average_is_scored(runs):
    found = entries(runs / "with")
    assert list(found) == [
        "ema:half_life=10",
        "ema:half_life=40",
        "ema:half_life=100",
        "lr_decay+polyak",
    ]  # by half-life
    assert [e["half_life"][1] for e in found.values()] == sorted(
        e["half_life"][1] for e in found.values()
    )
    for entry in found.values():
        assert entry["seeds"] == len(entry["gva_per_seed"]) == 3
        assert entry["gva_low"] <= entry["gva"] <= entry["gva_high"]
        assert 0 < entry["misplaced"] < 0.25
    assert found["ema:half_life=10"]["misplaced"] > found["ema:half_life=40"]["misplaced"]


def test_it_agrees_with_the_average_online(runs):
    entry = entries(runs / "with")["ema:half_life=40"]
    online = json.loads((runs / "with" / "leaderboard.json").read_text())["entries"]
    online = next(e for e in online if e["stabilizer"] == "ema:half_life=40")
    assert entry["online_gva"] == pytest.approx(online["gva"])
    assert entry["online_return"] == pytest.approx(online["return"])
    assert entry["distance"] < 0.05
    assert entry["return"] == pytest.approx(online["return"], abs=0.02)
    assert entry["val_loss"] == pytest.approx(online["val_loss"], rel=0.01)
    assert entries(runs / "with")["ema:half_life=10"]["distance"] is None


def test_the_table_fits_and_says_the_error(runs):
    said = (runs / "stdout").read_text()
    assert max(map(len, said.splitlines())) <= 80
    assert "cliff: post-hoc averages, from snapshots of 5 updates" in said
    assert "ema:half_life=40 against the online average: final weights off by" in " ".join(
        said.split()
    )


def test_files_are_rebuilt_from_rows(runs, stab):
    run = runs / "with"
    before = {
        name: (run / name).read_text() for name in ("averages.json", "averages.md", "averages.csv")
    }
    for name in before:
        (run / name).unlink()
    assert stab("report", run, draw=True).returncode == 0
    assert {name: (run / name).read_text() for name in before} == before
    assert (run / "figures" / "cliff-averages.png").stat().st_size > 10_000
    lines = list(csv.DictReader((run / "averages.csv").open()))
    assert [line["stabilizer"] for line in lines] == list(entries(run))
    assert before["averages.md"].count("| ema:half_life") == 3
    assert json.loads(
        stab("report", run, "--averages", "ema:half_life=40", "--format", "json").stdout
    ) == json.loads(before["averages.json"])


def test_what_was_read_off_is_kept(runs, stab):
    run = runs / "with"
    before = {path: path.stat().st_mtime_ns for path in (run / "averages").iterdir()}
    assert len(before) == 12
    assert stab("report", run, "--averages", "ema:half_life=10|40").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "averages").iterdir()} == before


def test_workers_change_nothing(runs, stab):
    run = runs / "with"
    before = {path: path.read_text() for path in (run / "averages").glob("*half_life=10.json")}
    assert len(before) == 3
    for path in before:
        path.unlink()
    assert stab("report", run, "--averages", "ema:half_life=10", "--workers", 1).returncode == 0
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize(
    ("name", "averages", "message"),
    [
        (
            "without",
            "ema",
            "has no snapshots to read averages off: run the comparison with snapshots.every=5",
        ),
        ("with", "lr_decay", "'lr_decay' cannot be read off: expected an average"),
        (
            "with",
            "dropout+ema",
            "has no training run of 'dropout' on cliff with seed 0; it has none, lr_decay",
        ),
        ("with", "polyak:start=500", "start=500 does not fit 400 updates"),
        ("with", "emma", "Did you mean 'ema'"),
        ("nowhere", "ema", "is not a run folder"),
    ],
)
def test_requests_that_cannot_be_done(runs, refused, name, averages, message):
    said = refused("report", runs / name, "--averages", averages)
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_lost_snapshots_are_said(runs, refused, tmp_path):
    shutil.copytree(runs / "with", tmp_path / "run")
    next((tmp_path / "run" / "snapshots").glob("*seed0*")).write_bytes(b"torn")
    assert "seed0.safetensors: Error while" in refused(
        "report", tmp_path / "run", "--averages", "ema:half_life=20,lr_decay+ema"
    )
    for path in (tmp_path / "run" / "snapshots").iterdir():
        path.unlink()
    assert "are gone: run the comparison again" in refused(
        "report", tmp_path / "run", "--averages", "ema:half_life=20"
    )


@pytest.mark.parametrize("every", [0, -5, 30, 40])
def test_snapshots_must_end_at_checkpoints(refused, every):
    said = refused(
        "compare", "-t", "cliff", "--stabilizers", "ema", *SIZES, f"snapshots.every={every}"
    )
    assert "expected a divisor of eval.checkpoint_every (20)" in said
