"""Tasks of a plug-in that raise in any of their hooks, print, or reseed: from outside, as installed distributions."""

from __future__ import annotations

import json
import os

import pytest

SOURCE = """
import os, random, sys
import numpy as np, torch
from dataclasses import dataclass
from stab.tasks.control.cliff import Cliff

class Rude(Cliff):
    at = ""

    def say(self, hook):
        print("hello from", hook)
        if hook in ("loss", "rollout"):
            os.write(1, b"and past Python\\n")
        if hook == self.at:
            raise RuntimeError(f"not {hook} today,\\nsorry")

    def has_data(self):
        self.say("has_data")
        return super().has_data()

    def speed(self, recipe):
        self.say("speed")
        return super().speed(recipe)

    def dataset(self, progress=lambda done: None):
        self.say("dataset")
        return super().dataset(progress)

    def policy(self, recipe):
        self.say("policy")
        return super().policy(recipe)

    def loss(self, policy, batch):
        self.say("loss")
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        return super().loss(policy, batch)

    def rollout(self, *args, **kwargs):
        self.say("rollout")
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        return super().rollout(*args, **kwargs)

def factory(**arguments):
    raise RuntimeError("not factory today,\\nsorry")
"""
HOOKS = ("has_data", "speed", "dataset", "policy", "loss", "rollout")
SIZES = ("--policy", "mlp:depth=0", "--seeds", 1, "--updates", 40, "eval.checkpoint_every=10", "eval.starts=2",
         "eval.horizon=30")  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder with a distribution of tasks, one a hook that raises, and one that is merely loud."""
    site = tmp_path_factory.mktemp("site")
    source = SOURCE + "".join(f"\nclass Rude_{hook}(Rude):\n    at = {hook!r}\n" for hook in HOOKS)
    (site / "rude_tasks.py").write_text(source)
    info = site / "rude_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude-tasks\nVersion: 1.0\n")
    points = {
        "loud": "Rude",
        "rude_factory": "factory",
        **{f"rude_{hook}": f"Rude_{hook}" for hook in HOOKS},
    }
    (info / "entry_points.txt").write_text(
        "[stab.tasks]\n"
        + "".join(f"{name} = rude_tasks:{value}\n" for name, value in points.items())
    )
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))


@pytest.mark.parametrize("hook", ["factory", "has_data", "speed", "dataset", "policy"])
def test_what_raises_before_anything_is_trained_is_refused_with_a_line(path, stab, tmp_path, hook):
    done = stab(
        "compare",
        "-t",
        "cliff",
        "-t",
        f"rude_{hook}",
        "-s",
        "ema",
        "--out",
        "run",
        *SIZES,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(
        f"stab: task 'rude_{hook}' raised RuntimeError: not {hook} today, sorry ("
    )
    assert "rude_tasks.py:" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_raises_in_training_or_rollouts_is_an_entry_and_stops_nobody_else(
    path, stab, tmp_path
):
    names = ("cliff", "loud", "rude_loss", "rude_rollout")
    tasks = [option for name in names for option in ("-t", name)]
    done = stab("compare", *tasks, "-s", "ema", "--out", "run", *SIZES, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hello" not in done.stdout
    assert "past Python" not in done.stdout + done.stderr
    for hook in ("loss", "rollout"):
        assert f"RuntimeError: not {hook} today, sorry" in " ".join(done.stderr.split())
    entries = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    statuses = {name: {e["status"] for e in entries if e["task"] == name} for name in names}
    assert "failed" not in statuses["cliff"] | statuses["loud"]
    assert statuses["rude_loss"] == statuses["rude_rollout"] == {"failed"}
    assert all("not loss today" in e["reason"] for e in entries if e["task"] == "rude_loss")
    # Printing and reseeding change no number.
    cells = {
        path.name.split("-")[0]: json.loads(path.read_text())
        for path in (tmp_path / "run" / "cells").iterdir()
    }
    assert cells.keys() == {"cliff", "loud"}
    assert cells["loud"]["rows"] == cells["cliff"]["rows"]
    # It is not taken for finished.
    done = stab(
        "compare",
        *tasks,
        "-s",
        "ema",
        "--out",
        "run",
        "--resume",
        "--dry-run",
        *SIZES,
        env={"PYTHONPATH": path},
    )
    assert "2 cells are finished already and kept" in " ".join(done.stdout.split())
