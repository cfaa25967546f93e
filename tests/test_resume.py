"""Runs that are killed and gone on with end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("STAB_KILLS", "20"))  # fewer in the gate
STAB = Path(sys.executable).parent / "stab"
SETTINGS = [
    *(
        "compare",
        "--task",
        "cliff",
        "--stabilizers",
        "ema,swa,accumulation,dropout+ema",
        "--seeds",
        "2",
        "--workers",
        "2",
    ),
    *("train.updates=1200", "eval.checkpoint_every=60", "eval.starts=4", "snapshots.every=30"),
]


def command(run, *more):
    return [str(STAB), *SETTINGS, "--out", str(run), *more]


def contents(run):
    """What a finished run must hold, bit for bit; the leaderboard without its times."""
    kept = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("cells", "weights", "snapshots")
        for path in sorted((run / folder).iterdir())
    }
    entries = json.loads((run / "leaderboard.json").read_text())["entries"]
    timeless = [
        {key: value for key, value in entry.items() if "seconds" not in key} for entry in entries
    ]
    return kept, timeless


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(run), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return contents(run)


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def interrupted(run, rng, kills):
    """Run to the end, killed at random moments; return how often."""
    made = 0
    while True:
        process = subprocess.Popen(
            command(run, "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            # Start-up takes seconds: most of the moments lie behind it.
            process.wait(rng.uniform(0.2, 3) if rng.random() < 0.2 else rng.uniform(3, 9))
        except subprocess.TimeoutExpired:
            if rng.random() < 0.25:  # as the system does when memory runs out
                for pid in rng.sample(found := workers_of(process), min(1, len(found))):
                    os.kill(pid, signal.SIGKILL)
                made += 1
            else:
                os.kill(process.pid, signal.SIGKILL)
                made += 1
        _, said = process.communicate(timeout=300)
        kills.append((round(time.monotonic(), 1), process.returncode))
        assert "Traceback" not in said, said
        assert process.returncode in (0, 1, -signal.SIGKILL), said
        if process.returncode == 1:
            assert "killed" in said
        if process.returncode == 0:
            return made


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in Linux's /proc")
def test_runs_killed_at_random_moments_end_with_the_same_bits(whole, tmp_path):
    rng, kills, made, rounds = random.Random(0), [], 0, 0
    while made < KILLS:
        run = tmp_path / f"run{rounds}"
        made += interrupted(run, rng, kills)
        rounds += 1
        found = contents(run)
        assert found[0].keys() == whole[0].keys()
        assert [name for name in whole[0] if found[0][name] != whole[0][name]] == []
        assert found[1] == whole[1]
        assert not (run / "parts").exists()
        assert not list((run / "failures").glob("*"))
        assert [path.name for path in run.rglob(".*")] == [".lock"]
    print(
        f"\n{made} kills over {rounds} runs; each ended with the rows, weights and snapshots of the uninterrupted one"
    )
