"""Sweeps from outside: a file with lists, its plan, its cells, its leaderboard, and what is said when it is wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

FILE = """
tasks: [cliff]
seeds: 2
stabilizers:
  - none|lr_decay
  - none|lr_decay+ema:half_life=30|60
train:
  lr: [0.01, 0.003]
  policy: "mlp:depth=0"
  updates: 200
eval: {checkpoint_every: 20, starts: 2, horizon: 60}
"""
SIZES = ("--policy", "mlp:depth=0", "--updates", 200, "--seeds", 2,
         "eval.checkpoint_every=20", "eval.starts=2", "eval.horizon=60")  # fmt: skip
PREFIXES = ("", "recipe:lr=0.003+")
METHODS = (
    "none",
    "lr_decay",
    "ema:half_life=30",
    "ema:half_life=60",
    "lr_decay+ema:half_life=30",
    "lr_decay+ema:half_life=60",
)


def cells(run: Path) -> dict[str, dict]:
    return {
        path.name: json.loads(path.read_text()) for path in sorted((run / "cells").glob("*.json"))
    }


def returns(cell: dict, string: str) -> list:
    return [
        (r["update"], r["start"], r["return"]) for r in cell["rows"] if r["stabilizer"] == string
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, stab_in):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(FILE)
    done = stab_in(folder, "compare", "--config", "sweep.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder / "run"


def test_the_plan_comes_first(swept, stab_in):
    done = stab_in(swept.parent, "compare", "--config", "sweep.yaml", "--dry-run", "--out", "other")
    said = " ".join(done.stdout.split())
    assert (
        "12 entries on cliff: none, lr_decay, ema:half_life=30|60, lr_decay+ema:half_life=30|60,"
        in said
    )
    assert "recipe:lr=0.003+lr_decay+ema:half_life=30|60" in said
    assert "tuning budget, settings a method: none 2, lr_decay 2, ema 4, lr_decay+ema 4" in said
    assert (
        "8 cells (training runs) of 200 updates, 2 seeds; sharing trajectories saves 16 training runs"
        in said
    )
    assert "about" in said
    assert not (swept.parent / "other").exists()
    assert "tuning budget" in (swept.parent / "stderr").read_text()


def test_every_combination_is_an_entry_and_trajectories_are_shared(swept):
    wanted = {(prefix + name).removesuffix("+none") for prefix in PREFIXES for name in METHODS}
    leaderboard = json.loads((swept / "leaderboard.json").read_text())
    assert {entry["stabilizer"] for entry in leaderboard["entries"]} == wanted
    for entry in leaderboard["entries"]:
        assert entry["settings"]["lr"] == (
            0.003 if entry["stabilizer"].startswith("recipe:") else 0.01
        )
        assert entry["settings"]["schedule"] == (
            "linear" if "lr_decay" in entry["stabilizer"] else "constant"
        )
    found = cells(swept)
    assert len(found) == 2 * 2 * 2
    assert all(len(cell["stabilizers"]) == 3 for cell in found.values())


def test_an_entry_of_a_sweep_is_the_same_training_run_as_without(swept, stab_in):
    folder = swept.parent
    done = stab_in(
        folder,
        "compare",
        "-t",
        "cliff",
        "-s",
        "lr_decay+ema:half_life=60",
        "--out",
        "alone",
        *SIZES,
        "train.lr=0.003",
    )
    assert done.returncode == 0, done.stderr
    alone, together = cells(folder / "alone"), cells(swept)
    assert alone.keys() < together.keys()
    for name, cell in alone.items():
        for string in cell["stabilizers"]:
            other = f"recipe:lr=0.003+{string}".removesuffix("+none")
            assert returns(cell, string) == returns(together[name], other) != []


def test_the_run_s_own_settings_hold_no_lists_and_run_again(swept, stab_in):
    folder = swept.parent
    before = cells(swept)
    done = stab_in(folder, "compare", "--config", "run/config.yaml", "--out", "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert "8 cells are finished already and kept" in " ".join(done.stderr.split())
    assert cells(swept) == before


def test_a_longer_list_runs_what_is_new(swept, stab_in, tmp_path):
    (tmp_path / "sweep.yaml").write_text(FILE.replace("0.003]", "0.003, 0.02]"))
    done = stab_in(
        tmp_path, "compare", "--config", "sweep.yaml", "--out", swept, "--resume", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "18 entries on cliff" in said
    assert "8 cells are finished already and kept" in said


def test_report_groups_and_filters(swept, stab_in):
    assert "cliff, tuned" in (swept.parent / "stdout").read_text()
    done = stab_in(swept.parent, "report", "run", "--where", "lr=0.01", "--by", "schedule")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert "Shown: 6 of 12 entries, those with lr=0.01." in said
    assert "schedule=linear" in said
    assert "recipe:lr=0.003" not in said
    done = stab_in(swept.parent, "report", "run", "--where", "method=ema", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [line["method"] for line in lines] == ["ema"] * 4
    assert {(line["lr"], line["ema.half_life"]) for line in lines} == {
        (a, b) for a in ("0.01", "0.003") for b in ("30", "60")
    }
    done = stab_in(swept.parent, "report", "run", "--where", "method=ema", "--format", "json")
    assert len(json.loads(done.stdout)["entries"]) == 4
    assert len(json.loads((swept / "leaderboard.json").read_text())["entries"]) == 12, (
        "files hold everything"
    )


def test_several_runs_are_reported_as_one(swept, stab_in):
    folder = swept.parent
    done = stab_in(
        folder,
        "compare",
        "-t",
        "cliff",
        "-s",
        "ema:half_life=30",
        "--out",
        "base",
        *SIZES,
        "train.lr=0.01",
    )
    assert done.returncode == 0, done.stderr
    done = stab_in(folder, "report", "run", "base", "--where", "lr=0.01")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "cliff: runs A, B" in said
    assert "same rows" in said, "the sweep's own base recipe, trained again elsewhere"
    found = json.loads(stab_in(folder, "report", "run", "base", "--format", "json").stdout)
    assert {(score["stabilizer"], score["same"]) for score in found["changes"]["scores"]} == {
        ("none", True),
        ("ema:half_life=30", True),
    }
    done = stab_in(folder, "report", "run", "base", "--by", "lr")
    assert (done.returncode, done.stderr) == (
        2,
        "stab: --averages and --by are for one run folder\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "run", "--where", "rl=0.1"), "entries have no 'rl'. Did you mean 'lr'?"),
        (("report", "run", "--by", "rl"), "entries have no 'rl'. Did you mean 'lr'?"),
        (("report", "run", "--where", "lr=7"), "no entry has lr=7"),
        (("report", "run", "--averages", "ema", "--by", "lr"), "--where and --by are for the leaderboard"),
        (("compare", "--config", "sweep.yaml", "train.lr=[]"), "train.lr=[] is not a list of settings"),
        (("compare", "--config", "sweep.yaml", "train.lr=[0.01,-1]"), "train.lr=-1.0 is out of range: expected"),
        (("compare", "--config", "sweep.yaml", "train.updates=[100,200]"), "is not valid at train.updates"),
        (("compare", "-t", "cliff", "-s", "ema:half_life=30|"), "half_life"),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_a_line(swept, stab_in, arguments, said):
    done = stab_in(swept.parent, *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("\n") <= 3
    assert done.stdout == ""


def test_the_half_lives_are_drawn(swept, stab_in):
    assert stab_in(swept.parent, "report", "run", draw=True).returncode == 0
    assert (swept / "figures" / "cliff-half_life.png").stat().st_size > 10_000
