"""The documentation: its commands run, it shows what they print, its links lead somewhere, its pages are in the contents.

Pages come from the checkout, commands from the installed package. Comparisons run with ``--quick`` and smaller still.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TINY = "train.updates=40 eval.checkpoint_every=10 eval.starts=2 eval.horizon=60"
ELSEWHERE = (
    "pip ",
    "pytest ",
    "tensorboard ",
    "ray ",
)  # what installs, serves or needs other machines


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the last line of text before it."""

    language: str
    text: str
    before: str

    @property
    def complete(self) -> bool:
        """Whether it is a program that runs as it stands."""
        return self.before.startswith("<!-- runs")

    @property
    def commands(self) -> list[str]:
        """Its lines, where it is a block of commands; comments and what cannot run here are left out."""
        lines = [
            re.sub(r"\s+#.*", "", line) for line in self.text.replace("\\\n", " ").splitlines()
        ]
        commands = [part for line in lines for part in line.split(" && ")]
        if self.language or not all(
            re.match(r"(stab|python|pip|pytest|tensorboard|ray|cd) ", c) for c in commands
        ):
            return []
        return [c for c in commands if not c.startswith(ELSEWHERE) and "--engine ray" not in c]


def blocks(page: Path, section: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page, or of the section of that title."""
    found: list[Block] = []
    before, opened, inside = "", None, section is None
    for line in page.read_text(encoding="utf-8").splitlines():
        if opened is not None:
            if line == "```":
                found.append(Block(opened[0], "\n".join(opened[1:]), before))
                before, opened = "", None
            else:
                opened.append(line)
        elif section and line.startswith("#"):
            inside = line.lstrip("# ") == section
        elif inside and line.startswith("```"):
            opened = [line[3:]]
        elif line:
            before = line
    return found


def prose(page: Path) -> str:
    return re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def folder(tmp_path, minari_root):
    """A copy of what the pages' scripts and examples need, to run in; no dataset of one's own yet."""
    shutil.rmtree(minari_root / "my", ignore_errors=True)
    for name in ("docs", "examples", "plugins/example"):
        shutil.copytree(
            TOP / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("*.png", "_build", "__pycache__"),
        )
    return tmp_path


@pytest.fixture
def run(stab, folder):
    """Run a command of a page, comparisons with ``--quick`` and smaller still; return what it prints."""
    where = folder

    def run(command: str) -> str:
        nonlocal where
        words = shlex.split(command)
        if words[0] == "cd":
            where = folder / words[1]
            return ""
        if words[:2] == ["stab", "compare"] and "--dry-run" not in words:
            # Snapshots end at checkpoints, so that those of --quick must do.
            less = [] if any(word.startswith("snapshots.") for word in words) else TINY.split()
            words += [*({"--quick"} - set(words)), *less]
        if words[0] == "stab":
            done = stab(*words[1:], cwd=where, timeout=400)
        else:
            assert words[0] == "python", command
            words += ["--boards", "2"] * ("score_simulation" in command)
            done = python(words[1:], where)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    return run


def python(arguments: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def check_page(page: Path, run, folder: Path) -> int:
    """Run a page's commands and complete programs in order; return how many. What follows a program is what it prints."""
    found = blocks(page)
    count = 0
    for block, after in zip(found, [*found[1:], Block("", "", "text")], strict=True):
        for command in block.commands:
            run(command)
            count += 1
        if block.complete:
            done = python(["-c", block.text], folder)
            assert done.returncode == 0, done.stderr
            count += 1
            if not after.language and not after.before:
                assert lines(done.stdout) == lines(after.text)
    return count


def test_set_up(run, hopper):
    """The line of the README that installs and compares, from the comparison on."""
    (block,) = (
        b for b in blocks(TOP / "README.md", "Set up") if b.language == "" and "pip" in b.text
    )
    assert (
        "pip install -c constraints.txt . && stab compare --task hopper --all"
        in block.text.splitlines()
    )
    assert block.commands == ["stab compare --task hopper --all"]
    assert "accumulation" in run(block.commands[0])


@pytest.mark.slow
def test_quick_start(run, folder, hopper):
    assert check_page(DOCS / "quickstart.md", run, folder) == 7
    for name in (
        "leaderboard.json",
        "report.html",
        "figures",
        "tensorboard",
        "weights",
        "cells",
        "config.yaml",
    ):
        assert (folder / "runs" / "first" / name).exists(), name


def test_the_score(run, folder):
    page = DOCS / "score.md"
    assert check_page(page, run, folder) == 5
    assert run("python docs/score_figure.py --out score.png").strip() in page.read_text(
        encoding="utf-8"
    )


def test_the_simulation_s_boards_are_what_it_says():
    parts = runpy.run_path(str(DOCS / "score_simulation.py"))
    rng = np.random.default_rng(0)
    J = rng.normal(0, 0.2, (2, 12, 1)) + rng.normal(0, 0.3, (2, 12, 6)) + rng.random(6)
    less = parts["halved"](J)
    np.testing.assert_allclose(less.mean(-1).std(1), J.mean(-1).std(1) / 2)
    np.testing.assert_allclose(less.mean(1), J.mean(1))  # the same starts
    drawn = parts["draw"](J, 5, 8, np.array([4, 1]), rng)
    assert drawn.shape == (5, 8, 2)
    assert np.isin(drawn, J[..., [4, 1]]).all()


@pytest.mark.slow
def test_use(run, hopper):
    """The README's list of commands."""
    (block,) = (b for b in blocks(TOP / "README.md", "Use") if b.commands)
    run("python examples/own_datasets.py")
    for name in ("monday", "tuesday"):
        run(f"stab compare --task cliff --stabilizers ema --out runs/{name}")
    for command in block.commands:
        run(command)


@pytest.mark.slow
def test_readme_in_python(run, hopper, folder):
    comparison, fragment = (
        b.text for b in blocks(TOP / "README.md", "Use") if b.language == "python"
    )
    done = python(["-c", comparison.replace("seeds=3", "seeds=3, quick=True")], folder)
    assert "quick=True" not in comparison
    assert done.returncode == 0, done.stderr
    compile(fragment, "README.md", "exec")
    (intervention,) = (
        b.text for b in blocks(TOP / "README.md", "Your own stabilizer") if b.language == "python"
    )
    (folder / "small.py").write_text(intervention)
    assert "all passed" in run("stab check small:SmallSteps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("tutorials/own_dataset", 4), ("tutorials/attach", 1), ("pitfalls", 4)]
)
def test_pages_that_run(run, folder, name, count):
    assert check_page(DOCS / f"{name}.md", run, folder) == count


@pytest.mark.slow
def test_writing_a_stabilizer(run, folder):
    page = DOCS / "tutorials" / "stabilizer.md"
    found = blocks(page)
    shown = {i: found[i + 1].text for i, block in enumerate(found) if block.commands}
    for i, text in shown.items():
        for command in found[i].commands:
            printed = run(command)
        assert lines(printed) == lines(text)
    for number, text in enumerate(b.text for b in found if b.language == "python"):
        (folder / f"block{number}.py").write_text(text)
        if "class SmallSteps" in text:
            run("cd .")
            assert "all passed" in run(f"stab check block{number}:SmallSteps")
    (written,) = (
        b.text for b in found if "parametrize_with_checks" in b.text and b.language == "python"
    )
    assert written in (folder / "stab-my-mean" / "test_my_mean.py").read_text()


@pytest.mark.slow
def test_decay_in_libraries(run):
    """Rows of the libraries that are installed are on the page as they are printed, versions aside."""
    rows = [line for line in run("python docs/decay.py").splitlines() if line.startswith("| `")]
    assert len(rows) >= 4
    kept = re.sub(
        r"(\| [a-z-]+) [\d.]+ \|", r"\1 |", (DOCS / "pitfalls.md").read_text(encoding="utf-8")
    )
    for row in rows:
        assert re.sub(r"(\| [a-z-]+) [\d.]+ \|", r"\1 |", row) in kept


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [TOP / "README.md", *PAGES], ids=lambda page: str(page.relative_to(TOP))
)
def test_links(page):
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    found += [
        b.language.split()[1] for b in blocks(page) if b.language.startswith("{literalinclude}")
    ]
    for link in found:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} does not exist"
        if fragment:
            titles = re.findall(r"^#+ (.*)", prose(target), re.MULTILINE)
            assert fragment in map(anchor, titles), f"{link}: no such heading"


def test_every_page_is_in_the_contents():
    listed = [
        line
        for b in blocks(DOCS / "index.md")
        if b.language == "{toctree}"
        for line in b.text.splitlines()
    ]
    listed = [line for line in listed if line and not line.startswith(":")]
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    assert sorted(listed) == sorted(set(pages) - {"index"})


def test_every_figure_is_in_the_gallery():
    shown = set(
        re.findall(r"\]\(([\w-]+\.png)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    )
    assert shown == {path.name for path in DOCS.glob("*.png")}
