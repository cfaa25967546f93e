"""``stab compare`` from outside: what a user types, sees and finds on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest
from forked import TINY

from stab.cli.main import main
from stab.registry import StabError
from stab.reports import render
from stab.reports.schema import schema
from stab.run.folder import check_folder
from stab.run.plan import make_config

BUILT_INS = {"none", "ema", "polyak", "swa", "accumulation", "lr_decay", "weight_decay", "dropout"}


def cells(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "cells").iterdir())}


def test_run_folder_holds_what_the_design_says(tiny_run):
    found = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "cells", "weights", "leaderboard.json", "leaderboard.csv", "leaderboard.md", "tensorboard",
            "figures"} <= found  # fmt: skip
    assert len(list((tiny_run / "weights").glob("*.safetensors"))) == 8 * 2
    hidden = [
        path.name
        for path in tiny_run.rglob("*")
        if path.name.startswith(".") or path.suffix == ".tmp"
    ]
    assert hidden == [".lock"]


def test_leaderboard_validates_and_covers_all(tiny_run):
    leaderboard = json.loads((tiny_run / "leaderboard.json").read_text())
    jsonschema.validate(leaderboard, schema())
    assert {entry["stabilizer"] for entry in leaderboard["entries"]} >= BUILT_INS
    by_name = {entry["stabilizer"]: entry for entry in leaderboard["entries"]}
    assert by_name["accumulation"]["samples"] == 4 * by_name["none"]["samples"] == 4 * 40 * 256
    assert by_name["none"]["gva_low"] is None  # two seeds: no interval
    assert {e["updates"] for e in leaderboard["entries"]} == {40}


def test_table_fits_80_columns_and_names_everything(tiny_run):
    out = (tiny_run.parent / "stdout.txt").read_text()
    assert max(map(len, out.splitlines())) <= 80
    for name in BUILT_INS:
        assert name in out


def test_equal_recipes_train_once(tiny_run):
    riders = [set(json.loads(text)["stabilizers"]) for text in cells(tiny_run).values()]
    shared = {"none", "ema", "polyak", "swa"}
    assert sum(shared <= found for found in riders) == 2  # one trajectory a seed
    assert len(riders) == 2 * (len(BUILT_INS) - len(shared) + 1)


@pytest.mark.usefixtures("hopper")
def test_one_worker_gives_the_rows_of_two(stab, tiny_run, tmp_path):
    done = stab(
        "compare", "-t", "hopper", "--all", "--seeds", 2, "--workers", 1, "--out", "run", *TINY
    )
    assert done.returncode == 0, done.stderr
    assert cells(tmp_path / "run") == cells(tiny_run)


@pytest.mark.usefixtures("hopper")
def test_other_riders_and_checkpoints_change_no_row(stab, tiny_run, tmp_path):
    done = stab("compare", "-t", "hopper", "-s", "polyak", "--seeds", 1, "--out", "run", *TINY)
    assert done.returncode == 0, done.stderr
    ((name, text),) = cells(tmp_path / "run").items()
    alone = {(r["stabilizer"], r["update"], r["start"]): r for r in json.loads(text)["rows"]}
    company = {
        (r["stabilizer"], r["update"], r["start"]): r
        for r in json.loads(cells(tiny_run)[name])["rows"]
    }
    assert alone
    assert alone.items() <= company.items()


@pytest.mark.usefixtures("hopper")
def test_resume_keeps_finished_cells_and_gives_the_same_rows(stab, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    lost = sorted((run / "cells").iterdir())[0]
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()}
    command = ("compare", "-t", "hopper", "--all", "--seeds", 2, "--out", run, *TINY)
    refused = stab(*command)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = stab(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert cells(run) == cells(tiny_run)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_resume_refuses_other_settings_by_name(stab, tiny_run):
    done = stab(
        "compare",
        "-t",
        "hopper",
        "--all",
        "--seeds",
        2,
        "--out",
        tiny_run,
        *TINY,
        "eval.starts=3",
        "--resume",
    )
    assert done.returncode == 2
    assert "eval.starts was 2, is 3" in done.stderr


@pytest.mark.usefixtures("hopper")
def test_overwrite_starts_again_but_only_run_folders(stab, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    done = stab(
        "compare", "-t", "hopper", "-s", "ema", "--seeds", 1, "--out", run, *TINY, "--overwrite"
    )
    assert done.returncode == 0, done.stderr
    assert len(cells(run)) == 1
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear")
    for config in (None, "a: 1", (run / "config.yaml").read_text()):
        if config:
            (tmp_path / "thesis" / "config.yaml").write_text(config)
        refused = stab(
            "compare", "-t", "hopper", "-s", "ema", "--out", "thesis", *TINY, "--overwrite"
        )
        assert refused.returncode == 2
        assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "dear"


@pytest.mark.usefixtures("hopper")
def test_one_seed_is_scored_without_interval_and_said_so(stab, tmp_path):
    done = stab("compare", "-t", "hopper", "-s", "ema", "--seeds", 1, "--out", "run", *TINY)
    assert done.returncode == 0, done.stderr
    assert "1 seed: no intervals" in " ".join(done.stdout.split())
    assert "hopper (Hopper-v5): 1 seed x 3 checkpoints" in " ".join(done.stdout.split())
    assert (
        json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"][0]["gva_high"]
        is None
    )


@pytest.mark.usefixtures("hopper")
def test_dry_run_shows_the_plan_and_writes_nothing(stab, tmp_path):
    done = stab("compare", "-t", "hopper", "--all", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "20 cells" in said
    assert "saves 12 training runs" in said
    assert re.search(r"about \d+ (seconds|minutes) with \d+ workers", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hopper")
def working_in(folder: Path) -> list[str]:
    """The processes that run in a folder, as Linux shows them."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # of others, or gone
            found += [link.parent.name] if os.readlink(link) == str(folder) else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_within_two_seconds_and_say_what_is_kept(tmp_path, number):
    (tmp_path / "workers").mkdir()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "stab"), "compare", "-t", "hopper", "--all", "--out", "run"],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "80", "TMPDIR": str(tmp_path / "workers")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell ignores SIGINT in what it starts in the background, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)  # workers are at work
    (folder,) = (tmp_path / "workers").glob("stab-*")
    assert working_in(folder) or not Path("/proc/self/cwd").exists()
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + number
    assert "Interrupted" in err
    assert "--resume" in err
    assert "Traceback" not in out + err
    assert not working_in(folder)
    assert not list((tmp_path / "workers").glob("stab-*"))
    assert not list((tmp_path / "run").rglob(".holder.json"))


BAD = {
    "unknown task": (["-t", "hoper", "--all"], "Did you mean 'hopper'?"),
    "no task": (["--all"], "--task"),
    "no stabilizers": (["-t", "hopper"], "--all"),
    "unknown stabilizer": (["-t", "hopper", "-s", "emma"], "Did you mean 'ema'?"),
    "unknown hyper-parameter": (
        ["-t", "hopper", "-s", "ema:halflife=3"],
        "Did you mean 'half_life'?",
    ),
    "hyper-parameter out of range": (["-t", "hopper", "-s", "ema:alpha=2"], "a number in (0, 1]"),
    "beyond training": (["-t", "hopper", "-s", "polyak:start=9000"], "6000 updates"),
    "unknown override": (["-t", "hopper", "--all", "train.lrr=1"], "Did you mean: 'lr'?"),
    "override out of range": (["-t", "hopper", "--all", "train.lr=-1"], "train.lr=-1"),
    "override of wrong type": (["-t", "hopper", "--all", "train.updates=many"], "train.updates"),
    "unknown optimizer": (["-t", "hopper", "--all", "train.optimizer=Adamm"], "Adamm"),
    "one checkpoint": (
        ["-t", "hopper", "--all", "eval.checkpoint_every=6000"],
        "at least two checkpoints",
    ),
    "no seeds": (["-t", "hopper", "--all", "--seeds", "0"], "seeds=0"),
    "no workers": (["-t", "hopper", "--all", "--workers", "0"], "workers=0"),
    "missing dataset": (["-t", "hopper", "--all", "--dataset", "my/own-v0"], "my/own-v0"),
    "malformed dataset id": (
        ["-t", "hopper", "--all", "--dataset", "../../etc-v0"],
        "not a Minari dataset id",
    ),
    "too long a horizon": (["-t", "hopper", "--all", "eval.horizon=5000"], "eval.horizon=5000"),
    "unknown policy": (["-t", "hopper", "--all", "train.policy=mpl"], "Did you mean 'mlp'?"),
    "unknown preset": (["-t", "hopper", "--preset", "papre"], "Did you mean 'paper'?"),
    "fresh episodes of a given dataset": (
        ["-t", "hopper", "--all", "data.infinite=true", "--dataset", "stab/hopper/expert-v0"],
        "leave out --dataset",
    ),
    "a pool smaller than a step": (
        [
            "-t",
            "hopper",
            "--all",
            "data.infinite=true",
            "data.train_episodes=1",
            "train.batch_size=2000",
        ],
        "raise data.train_episodes",
    ),
    "missing config": (["-t", "hopper", "--all", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "out is a file's child": (["-t", "hopper", "--all", "--out", "/dev/null/run"], "/dev/null"),
    "read-only out": (["-t", "hopper", "--all", "--out", "/proc/run"], "cannot write"),
    "contradicting flags": (["-t", "hopper", "--all", "-s", "ema"], "exclude each other"),
}


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, case):
    arguments, said = BAD[case]
    monkeypatch.setattr(
        "stab.run.estimate.seconds", lambda plan, cells: None
    )  # the plan's measurement takes a second
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stab", "compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert out == ""
    *_, line = err.strip().splitlines()
    assert line.startswith("stab: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []  # nothing left behind


PLUGIN = """
import os, torch

class Mine(torch.optim.SGD):
    def step(self, closure):
        for name in ("MINARI_DATASETS_PATH", "TMPDIR", "XDG_CACHE_HOME"):
            assert os.path.isdir(os.environ[name]), name
        return super().step(closure)
"""


def test_relative_paths_are_those_of_the_folder_where_stab_was_called(stab, tmp_path):
    """Workers run in another one."""
    for name in ("cache", "plug", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "plug" / "stab_test_mine.py").write_text(PLUGIN)
    (tmp_path / "settings.yaml").write_text("train: {optimizer: 'stab_test_mine:Mine', lr: 1e-4}")
    relative = {
        "MINARI_DATASETS_PATH": "datasets",
        "XDG_CACHE_HOME": "cache",
        "TMPDIR": "temporary",
        "PYTHONPATH": os.pathsep.join(["plug", os.environ.get("PYTHONPATH", "")]),
    }
    done = stab("compare", "-t", "cliff", "-s", "ema", "--seeds", 1, "--config", "settings.yaml",
                "--out", "here/run", *TINY, env=relative)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "datasets" / "stab" / "cliff" / "expert-v0").is_dir()
    assert list((tmp_path / "here" / "run" / "cells").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("cache", "datasets", "here", "plug", "settings.yaml", "temporary"),
    }


def test_an_error_reaches_the_shell_without_a_traceback(stab, tmp_path):
    done = stab("compare", "-t", "hoper", "--all")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_a_path_is_refused(tmp_path):
    config, _ = make_config("cliff", ["ema"])
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(StabError, match="cannot be used as a path"):
            check_folder(tmp_path / name, config)
        with pytest.raises(StabError, match="cannot be used as a path"):
            render(tmp_path / name)
