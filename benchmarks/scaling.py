"""Wall time and memory of tiny comparisons against their settings, and the time until the command line answers.

    python benchmarks/scaling.py            # about two minutes
    python benchmarks/scaling.py --quick

Each point is a fresh ``stab compare --task hopper --stabilizers ema``, start-up included. Memory is the largest resident
size of a single process, be it a worker or the one that waits for them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from measure import bar, demonstrations, table

STAB = str(Path(sys.executable).with_name("stab"))
PER_MB = 1024**2 if sys.platform == "darwin" else 1024  # units of ru_maxrss


@dataclass(frozen=True)
class Point:
    """Settings of one comparison; ``every`` is the number of updates between checkpoints."""

    seeds: int = 1
    starts: int = 4
    every: int = 40
    workers: int = 1
    updates: int = 400
    horizon: int = 200


BASE = Point()
POINTS = [
    *(BASE, replace(BASE, seeds=2), replace(BASE, seeds=4)),
    *(replace(BASE, starts=16), replace(BASE, starts=64)),
    *(replace(BASE, every=20), replace(BASE, every=5)),
    *(replace(BASE, updates=1600, every=160), replace(BASE, horizon=800)),
    *(replace(BASE, seeds=4, workers=2), replace(BASE, seeds=4, workers=4)),
]
QUICK = [Point(1, 2, 10, 1, 40, 20), Point(2, 2, 10, 2, 40, 20)]


def compare(point: Point) -> tuple[float, float]:
    """Return the wall seconds of a comparison and the peak memory in MB of its largest process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [STAB, "compare", "--task", "hopper", "--stabilizers", "ema", "--out", str(Path(folder) / "run")]
        command += ["--seeds", str(point.seeds), "--workers", str(point.workers), f"train.updates={point.updates}"]
        command += [f"eval.{name}" for name in (f"starts={point.starts}", f"horizon={point.horizon}")]
        command += [f"eval.checkpoint_every={point.every}"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Of this child and of the children that it has waited for, unlike RUSAGE_CHILDREN not of those before.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return seconds, usage.ru_maxrss / PER_MB


def answers(arguments: list[str], repeats: int) -> float:
    """Return the wall seconds until ``stab`` with these arguments is done, best of several."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([STAB, *arguments], stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two points, smaller still")
    given = parser.parse_args()
    points = QUICK if given.quick else POINTS
    rows = []
    with bar("scaling") as report:
        demonstrations("hopper", report)  # collecting them is no part of the first point
        for n, point in enumerate(points):
            seconds, megabytes = compare(point)
            rows.append([*map(str, astuple(point)), f"{seconds:.1f}", f"{megabytes:.0f}"])
            report((n + 1) / len(points))
    print(table([*(field.name for field in fields(Point)), "wall s", "largest process MB"], rows))
    repeats = 1 if given.quick else 5
    times = [[f"`stab {what}`", f"{answers([what], repeats):.2f} s"] for what in ("--help", "list")]
    print("\n" + table(["command", f"best of {repeats}"], times))


if __name__ == "__main__":
    main()
