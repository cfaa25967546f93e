"""Shared by all tests: a Minari root of their own, hopper's demonstrations collected once, the command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
import torch

from stab.engines import local

Stab = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def minari_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minari's root, and stab's cache, for the whole session."""
    root = tmp_path_factory.mktemp("minari")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    return root


@pytest.fixture(scope="session", autouse=True)
def _forks() -> Iterator[None]:
    """Workers of the engine "local" are forked, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "subprocess", forked.Popen())
        yield
    forked.stop()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in the workers; and tiny products on many threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hopper(minari_root: Path) -> Path:
    """Folder of hopper's own dataset, collected by the command a user would type."""
    done = run_stab("data", "prepare", "hopper")
    assert done.returncode == 0, done.stderr
    return minari_root / "stab" / "hopper" / "expert-v0"


def run_stab(*arguments: object, **options):
    """Run ``stab``; tiny comparisons in one worker, as another takes longer to start."""
    chosen = {"--workers", "--engine", "--dry-run"} & {*arguments}
    one = ("--workers", 1) if arguments[:1] == ("compare",) and not chosen else ()
    return forked.stab(*arguments, *one, **options)


@pytest.fixture
def stab(tmp_path: Path) -> Stab:
    """The command line, in an empty folder."""

    def run(*arguments: object, **options):
        return run_stab(*arguments, cwd=options.pop("cwd", tmp_path), **options)

    return run


@pytest.fixture(scope="session")
def stab_in() -> Stab:
    """The command line in a folder, which comes first."""
    return lambda folder, *arguments, **options: run_stab(*arguments, cwd=folder, **options)


@pytest.fixture(scope="session")
def tiny_run(hopper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: every built-in stabilizer, two seeds, two workers."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run_stab(
        *("compare", "-t", "hopper", "--all", "--seeds", 2, "--workers", 2, "--out", out),
        *forked.TINY,
        draw=True,  # tests/test_browser.py looks at the figures
    )
    assert done.returncode == 0, done.stderr
    (out.parent / "stdout.txt").write_text(done.stdout)
    return out
