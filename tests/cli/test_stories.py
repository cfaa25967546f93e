"""Language models from the command line: the same table, files and promises as for the other tasks."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import forked
import pytest

from stab.run import rows

STAB = Path(sys.executable).parent / "stab"
SETTINGS = [
    "compare", "--task", "stories", "--stabilizers", "ema,lr_decay", "--seeds", "2",
    "--policy", "gpt:width=16,depth=1", "train.updates=120", "train.batch_size=8",
    "eval.checkpoint_every=10", "eval.starts=3", "eval.horizon=40",
    "data.train_episodes=2", "data.validation_episodes=1",
]  # fmt: skip


def cells(run):
    return {path.name: path.read_bytes() for path in sorted((run / "cells").glob("*.json"))}


@pytest.fixture(scope="module")
def run(stab_in, minari_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    done = stab_in(folder, *SETTINGS, "--workers", 2, "--out", "run", draw=True)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def test_the_leaderboard_and_the_measures_beside_it(run):
    said = (run.parent / "stdout.txt").read_text()
    assert "stories (stab/Tokens-v0): 2 seeds x 7 checkpoints x 3 starts" in " ".join(said.split())
    assert "stories, beside the score" in said
    for name in ("perplexity", "sentences", "until"):
        assert name in said
    assert max(map(len, said.splitlines())) <= 80
    entries = json.loads((run / "leaderboard.json").read_text())["entries"]
    assert {entry["stabilizer"] for entry in entries} == {"none", "ema", "lr_decay"}
    for entry in entries:
        assert (
            {"perplexity", "sentences", "until"}
            <= set(entry["measures"])
            <= {"perplexity", "sentences", "facts", "until"}
        )
        assert 0 <= entry["measures"]["sentences"] <= 1 < entry["measures"]["perplexity"]
    assert (run / "figures" / "stories-divergence.png").stat().st_size > 10_000


def test_rows_say_what_was_written(run):
    for row in rows.rows(run):
        assert row["environment"] == "stab/Tokens-v0"
        assert row["text"]["tokens"]
        assert len(row["text"]["tokens"]) == row["length"] <= 40
        assert "<end>" not in "".join(row["text"]["prompt"])


def test_an_interrupted_run_of_one_worker_ends_as_the_whole_one_of_two(run, tmp_path):
    command = [*SETTINGS, "--workers", 1, "--out", tmp_path / "run"]
    process = forked.popen(*command)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("parts/*/state*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(cells(tmp_path / "run")) < 4
    done = forked.stab(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert cells(tmp_path / "run") == cells(run)


def test_tasks_with_other_defaults_are_compared_one_at_a_time(stab):
    done = stab("compare", "--task", "cliff", "--task", "stories", "--all", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "train.policy mlp and gpt" in done.stderr
    assert "stab report RUN RUN" in done.stderr


def test_what_the_user_says_comes_before_the_tasks_defaults(stab):
    done = stab(
        "compare",
        "--task",
        "stories",
        "--all",
        "--dry-run",
        "--updates",
        240,
        "eval.starts=4",
        "snapshots.every=16",
    )
    assert done.returncode == 0, done.stderr
    assert "of 240 updates" in done.stdout
    assert "of at most 92 steps" in " ".join(done.stdout.split())
