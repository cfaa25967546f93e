"""Run all benchmarks in order and write one Markdown page.

    python benchmarks/run.py                          # docs/performance.md; about twenty minutes
    python benchmarks/run.py --quick --out smoke.md   # tiny sizes, about a minute: not meaningful

Run it on an otherwise idle machine.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measure import bar, demonstrations, table
from scaling import STAB
from straightforward import QUICK

from stab import engines

HERE = Path(__file__).resolve().parent
ROUNDS = 2  # of each command
PACKAGES = ["torch", "mujoco", "gymnasium", "numpy"]
SECTIONS = [
    ("Environment steps", "rollouts.py"),
    ("Updates", "updates.py"),
    ("Scaling", "scaling.py"),
]


def run(command: list[str]) -> tuple[str, float]:
    """Run a command; return its output and wall seconds. Its progress bars go to the terminal."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}: {shlex.join(command)}")
    return done.stdout.strip(), time.perf_counter() - began


def script(name: str, *arguments: str) -> tuple[str, float]:
    """Run a benchmark beside this one; return as ``run`` does."""
    return run([sys.executable, str(HERE / name), *arguments])


def cpu() -> str:
    """Return the name of the processor, if the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> str:
    """Return the date, the machine and the versions, as a Markdown list."""
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    return "\n".join(
        [
            f"- {date.today()}, {engines.cores()} cores, {cpu()}, {platform.system()}",
            f"- Python {platform.python_version()}, {', '.join(versions)}",
        ]
    )


def whole_run(task: str, quick: bool, folder: Path, reference: bool) -> str:
    """Return the section of a task: stab, the straightforward program if wanted, the limit."""
    with bar(f"{task}, demonstrations") as report:
        demonstrations(task, report)  # collecting them is not a part of either
    sizes = QUICK if quick else {}
    keys = {"updates": "train.updates", "checkpoint_every": "eval.checkpoint_every"}
    settings = [f"{keys.get(name, f'eval.{name}')}={value}" for name, value in sizes.items()]
    compare = ["compare", "--task", task, "--all", "--seeds", "1", *settings]
    plan, _ = run([STAB, *compare, "--dry-run"])
    predicted = next((line for line in plan.splitlines() if line.startswith("about ")), "no time")
    reference_arguments = ["--task", task, *(["--quick"] if quick else [])]
    ours, theirs, printed = [], [], ""
    for n in range(
        1 if quick else ROUNDS
    ):  # in turns, so that other load of the machine affects both
        ours.append(run([STAB, *compare, "--out", str(folder / f"{task}{n}")])[1])
        if reference:
            printed, seconds = script("straightforward.py", *reference_arguments)
            theirs.append(seconds)
    best = min(ours)
    commands = {f"`stab {shlex.join(compare)}`": ours}
    if reference:
        commands[
            f"`{shlex.join(['python', 'benchmarks/straightforward.py', *reference_arguments])}`"
        ] = theirs
    floors, _ = script(
        "limit.py", str(folder / f"{task}{ours.index(best)}"), "--wall", f"{best:.1f}"
    )
    return "\n\n".join(
        [
            f"## {task}: "
            + (
                "against the straightforward program and the machine's limit"
                if reference
                else "the limit"
            ),
            "Wall time of the commands, start-up included; one training seed, the same sizes."
            " stab also measures the gradient's variance and the returns at 20 horizons,"
            " and draws figures.",
            table(
                ["command", "wall s, in turns", "fastest", "ratio"],
                [
                    [
                        command,
                        ", ".join(f"{one:.1f}" for one in walls),
                        f"{min(walls):.1f}",
                        f"{min(walls) / best:.2f}",
                    ]
                    for command, walls in commands.items()
                ],
            ),
            f"`--dry-run` estimated: {predicted}.",
            *(["Output of the straightforward program:", printed] if reference else []),
            f"`python benchmarks/limit.py RUN --wall {best:.1f}`,"
            " on the run folder of the fastest of the first command:",
            floors,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "performance.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    given = parser.parse_args()
    os.environ.setdefault("COLUMNS", "100")
    flags = ["--quick"] if given.quick else []
    command = shlex.join(["python", "benchmarks/run.py", *flags])
    page = [
        "# Performance",
        f"Made by `{command}`. Times that are compared were measured in the same run.",
        machine(),
    ]
    if given.quick:
        page.append("**A smoke run: its numbers are not meaningful.**")
    with tempfile.TemporaryDirectory() as folder:
        for task, reference in (("hopper", True), ("halfcheetah", False)):
            if not given.quick or reference:
                print(f"{task}: whole runs", file=sys.stderr)
                page.append(whole_run(task, given.quick, Path(folder), reference))
    for title, name in SECTIONS:
        print(title, file=sys.stderr)
        arguments = [
            *flags,
            *(["--task", "hopper"] if given.quick and name == "rollouts.py" else []),
        ]
        printed, _ = script(name, *arguments)
        page += [
            f"## {title}",
            f"`{shlex.join(['python', f'benchmarks/{name}', *arguments])}`",
            printed,
        ]
    given.out.write_text("\n\n".join(page) + "\n")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
