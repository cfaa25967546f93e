"""A plug-in distribution, installed into an environment of its own, is found by its entry point alone."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import forked
import pytest

EXAMPLE = Path(__file__).parents[1] / "plugins" / "example"
BROKEN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stab-broken"
version = "0.1.0"
[project.entry-points."stab.stabilizers"]
broken = "stab_broken:Missing"
[tool.setuptools]
py-modules = ["stab_broken"]
""",
    "stab_broken.py": "raise RuntimeError('needs a licence')\n",
}
POLICY = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stab-narrow"
version = "0.1.0"
[project.entry-points."stab.policies"]
narrow = "stab_narrow:Narrow"
[tool.setuptools]
py-modules = ["stab_narrow"]
""",
    "stab_narrow.py": """
from dataclasses import dataclass
from stab.arguments import hyper
from stab.tasks.policies import MLP, MLPArguments

@dataclass(frozen=True)
class Narrow(MLPArguments):
    \"\"\"An MLP with one narrow layer.\"\"\"
    width: int = hyper(2, "units", lambda v: 1 <= v <= 8, "an integer in 1..8")
    depth: int = hyper(1, "hidden layers", lambda v: v == 1, "1")
""",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that sees this one's packages, with the example plug-in and a broken one installed (no network)."""
    top = tmp_path_factory.mktemp("plugin")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", top / "venv"], check=True)
    site = (
        top
        / "venv"
        / "lib"
        / f"python{sys.version_info.major}.{sys.version_info.minor}"
        / "site-packages"
    )
    (site / "base.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    for folder, files in (("broken", BROKEN), ("narrow", POLICY)):
        (top / folder).mkdir()
        for name, text in files.items():
            (top / folder / name).write_text(text)
    copy = top / "example"
    copy.mkdir()
    for source in EXAMPLE.glob("*.*"):
        (copy / source.name).write_bytes(source.read_bytes())
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run(
        [*install, "--target", site, copy, top / "broken", top / "narrow"],
        check=True,
        capture_output=True,
    )
    return top / "venv"


def stab(
    environment: Path, *arguments: object, cwd: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    (site,) = environment.glob("lib/python*/site-packages")
    return forked.stab(*arguments, cwd=cwd, env={"PYTHONPATH": str(site), **env})


def test_listing_shows_it_without_importing_it(environment, tmp_path):
    done = stab(environment, "list", "stabilizers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "lawa plug-in, not loaded (stab-example 0.1.0: stab_example:LAWA)" in said
    assert "licence" not in said


def test_verbose_listing_loads_it_and_says_what_is_broken(environment, tmp_path):
    said = " ".join(stab(environment, "list", "stabilizers", "-v", cwd=tmp_path).stdout.split())
    assert "lawa Latest weight averaging" in said
    assert "every 100: updates between iterates" in said
    assert (
        "broken broken: RuntimeError: needs a licence (stab-broken 0.1.0: stab_broken:Missing)"
        in said
    )


def test_all_runs_it_and_skips_the_broken_one(environment, hopper, tmp_path):
    tiny = [
        "train.policy=mlp:width=32",
        "train.updates=40",
        "eval.checkpoint_every=10",
        "eval.starts=2",
        "eval.horizon=60",
    ]
    done = stab(
        environment,
        "compare",
        "-t",
        "hopper",
        "--all",
        "--seeds",
        1,
        "--out",
        "run",
        *tiny,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    entries = {
        e["stabilizer"]: e
        for e in json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    }
    assert entries["lawa"]["gva"] is not None
    assert entries["broken"]["status"] == "skipped"
    assert "needs a licence" in entries["broken"]["reason"]
    assert "lawa" in done.stdout
    # It is an average: it rode on the base trajectory and trained nothing of its own.
    assert entries["lawa"]["train_seconds"] == entries["none"]["train_seconds"]


def test_a_policy_of_a_plugin_is_one_more_policy_of_every_task(environment, tmp_path):
    compared = ["compare", "--task", "cliff", "-s", "ema", "--seeds", "1", "train.updates=40"]
    compared += ["eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=20"]
    env = {"MINARI_DATASETS_PATH": str(tmp_path / "data")}
    right = ["--policy", "narrow:width=3", "--out", "run"]
    done = stab(environment, *compared, *right, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    cell = json.loads(next((tmp_path / "run" / "cells").glob("*.json")).read_text())
    assert cell["recipe"]["policy"] == "narrow:width=3"
    done = stab(environment, "list", "policies", "-v", cwd=tmp_path)
    assert "An MLP with one narrow layer." in done.stdout
    wrong = ["--policy", "narow", "--out", "no"]
    done = stab(environment, *compared, *wrong, cwd=tmp_path, **env)
    assert done.returncode == 2
    assert "Did you mean 'narrow'?" in " ".join(done.stderr.split())
