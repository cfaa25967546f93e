"""A plug-in distribution, installed into an environment of its own, is found by its entry point alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

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
    (top / "broken").mkdir()
    for name, text in BROKEN.items():
        (top / "broken" / name).write_text(text)
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
        [*install, "--target", site, copy, top / "broken"], check=True, capture_output=True
    )
    return top / "venv"


def stab(environment: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    python = environment / "bin" / "python"
    return subprocess.run(
        [python, "-c", "from stab.cli.main import main; main()", *map(str, arguments)],
        cwd=cwd, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


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
    tiny = ["train.updates=40", "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=60"]
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
