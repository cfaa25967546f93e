"""``stab new``: what it writes installs, passes its own tests and the checks, and can be compared; what it refuses."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "train.policy=mlp:width=32",
    "train.updates=40",
    "eval.checkpoint_every=10",
    "eval.starts=2",
)
NEW = {  # name -> the rest of the command, the folder
    "my_mean": (("stabilizer", "my_mean"), "stab-my-mean"),
    "small_steps": (("stabilizer", "small_steps", "--kind", "intervention"), "stab-small-steps"),
    "hold_it": (("task", "hold_it"), "stab-hold-it"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The three distributions, by name, as one user's commands write them."""
    top = tmp_path_factory.mktemp("new")
    for arguments, _ in NEW.values():
        done = forked.stab("new", *arguments, cwd=top)
        assert done.returncode == 0, done.stderr
        (top / f"{arguments[1]}.stdout").write_text(done.stdout)
    return {name: top / folder for name, (_, folder) in NEW.items()}


@pytest.fixture(scope="module")
def installed(written, tmp_path_factory):
    """Run a module's or a function's code in an environment that sees this one's packages and has the three installed."""
    top = tmp_path_factory.mktemp("installed")
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
    sources = []
    for name, folder in written.items():  # copies: a build leaves its own files beside the sources
        sources.append(top / name)
        sources[-1].mkdir()
        for file in folder.iterdir():
            (sources[-1] / file.name).write_bytes(file.read_bytes())
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
    subprocess.run([*install, "--target", site, *sources], check=True, capture_output=True)

    def run(*arguments, cwd, **env):
        if arguments[0] == COMMAND:
            return forked.stab(*arguments[1:], cwd=cwd, env={"PYTHONPATH": str(site), **env})
        return subprocess.run(
            [top / "venv" / "bin" / "python", *map(str, arguments)],
            cwd=cwd, env={**os.environ, "COLUMNS": "80", **env}, capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    return run


COMMAND = "stab"


def test_it_writes_three_files_and_says_how_to_go_on(written):
    for name, folder in written.items():
        files = ["pyproject.toml", f"stab_{name}.py", f"test_{name}.py"]
        assert sorted(file.name for file in folder.iterdir()) == files
        said = (folder.parent / f"{name}.stdout").read_text().splitlines()
        assert said[:5] == [*(f"{folder.name}/{file}" for file in files), "", "Next:"]
        compare = (
            "--task hold_it --all" if name == "hold_it" else f"--task cliff --stabilizers {name}"
        )
        assert said[5:] == [
            f"  pip install -e ./{folder.name} pytest", f"  pytest {folder.name}", f"  stab compare {compare}"
        ]  # fmt: skip
        assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()  # not that of a temporary folder
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def _umask():
    found = os.umask(0)
    os.umask(found)
    return found


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="needs ruff")
def test_it_is_formatted_and_clean(written):
    top = next(iter(written.values())).parent
    for command in (("check",), ("format", "--check")):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--no-cache",
            "--config",
            ROOT / "pyproject.toml",
        ]
        done = subprocess.run([*ruff, *written.values()], cwd=top, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_their_own_tests_pass(written, installed, tmp_path):
    root = tmp_path / "datasets"
    done = installed(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *written.values(),
        cwd=tmp_path,
        MINARI_DATASETS_PATH=str(root),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert not root.exists()


def test_listed_checked_and_compared(installed, tmp_path):
    def stab(*arguments):
        done = installed(
            COMMAND, *arguments, cwd=tmp_path, MINARI_DATASETS_PATH=str(tmp_path / "datasets")
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    said = stab("list", "-v")
    assert "my_mean Polynomial-decay averaging" in said
    assert "small_steps Divide the learning rate" in said
    assert "hold_it Hold a point mass at the origin" in said
    assert "all passed" in stab("check", *NEW)
    assert "equal bit for bit" in stab("data", "verify", "hold_it")
    run = (
        "--task",
        "hold_it",
        "--stabilizers",
        "my_mean,small_steps",
        "--seeds",
        1,
        "--out",
        "run",
    )
    assert "small_steps" in stab("compare", *run, *TINY)
    entries = {
        e["stabilizer"]: e
        for e in json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    }
    assert set(entries) == {"none", "my_mean", "small_steps"}
    assert all(entry["gva"] is not None for entry in entries.values())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ("stabilizer", "My-Mean"),
            "'My-Mean' is not a stabilizer name: expected lower-case letters",
        ),
        (("task", "../away"), "'../away' is not a task name"),
        (("stabilizer", "ema"), "stabilizer 'ema' is registered already (built in)"),
        (("stabilizer", "hopper"), "task 'hopper' is registered already (built in)"),
        (("task", "gva"), "a distribution stab-gva is installed already"),
    ],
)
def test_names_that_are_refused(stab, tmp_path, arguments, why):
    done = stab("new", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_plugins_name_is_refused_with_its_distribution(installed, tmp_path):
    done = installed(COMMAND, "new", "task", "my_mean", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "stabilizer 'my_mean' is registered already (stab-my-mean 0.1.0: stab_my_mean:MyMean)"
        in done.stderr
    )


def test_a_folder_that_exists_is_left_alone(stab, tmp_path):
    (tmp_path / "stab-mine").mkdir()
    done = stab("new", "stabilizer", "mine")
    assert done.returncode == 2
    assert "stab-mine exists already and is left as it is" in done.stderr
    assert [*(tmp_path / "stab-mine").iterdir()] == []


def test_a_folder_that_cannot_be_written_to(stab, tmp_path):
    done = stab("new", "stabilizer", "m" * 300)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "made"),
    [("state", "StateStabilizer"), ("average", "AverageStabilizer"), ("true", "TrueStabilizer")],
)
def test_a_class_hides_no_other_name(stab, tmp_path, name, made):
    assert stab("new", "stabilizer", name).returncode == 0
    tree = ast.parse((tmp_path / f"stab-{name}" / f"stab_{name}.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["State", made]


def test_help_has_examples(stab):
    assert (
        "stab new stabilizer small_steps --kind intervention"
        in stab("new", "stabilizer", "--help").stdout
    )
    assert "stab new task my_task" in stab("new", "task", "--help").stdout
    assert "new" in stab("--help").stdout
