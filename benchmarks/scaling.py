"""Wall time and memory of tiny comparisons against their settings; start-up of the command line.

    python benchmarks/scaling.py            # about four minutes
    python benchmarks/scaling.py --quick

Each point is a fresh ``stab compare --task hopper --stabilizers ema``, start-up included. Memory is
the largest resident size of a single process: a worker, or the process that waits for them.
"""

import argparse
import itertools
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
    """Settings of one comparison."""

    seeds: int = 1
    starts: int = 8
    checkpoints: int = 6
    updates: int = 1200
    horizon: int = 300
    workers: int = 1


BASE = Point()
# Of each setting the values that are tried, the others as in BASE.
SERIES = {
    "seeds": [1, 2, 4],
    "starts": [8, 16, 64],
    "checkpoints": [6, 12, 24],
    "updates": [1200, 2400, 4800],
}
WORKERS = [replace(BASE, seeds=4, workers=count) for count in (1, 2, 4)]
QUICK = [Point(1, 2, 4, 40, 20, 1), Point(2, 2, 4, 40, 20, 2)]


def compare(point: Point) -> tuple[float, float]:
    """Return the wall seconds of a comparison and the peak memory in MB of its largest process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            STAB,
            "compare",
            "--task",
            "hopper",
            "--stabilizers",
            "ema",
            "--out",
            str(Path(folder) / "run"),
        ]
        command += [
            "--seeds",
            str(point.seeds),
            "--workers",
            str(point.workers),
            f"train.updates={point.updates}",
        ]
        command += [
            f"eval.{name}" for name in (f"starts={point.starts}", f"horizon={point.horizon}")
        ]
        # Two early ones for the curve, the others over the second half of training.
        command += [f"eval.checkpoint_every={point.updates // 2 // (point.checkpoints - 3)}"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Of this child and the children it waited for; RUSAGE_CHILDREN includes earlier ones.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two points, smaller still")
    given = parser.parse_args()
    series = {} if given.quick else SERIES
    points = [
        BASE,
        *(replace(BASE, **{name: value}) for name, values in series.items() for value in values),
        *WORKERS,
    ]
    points = QUICK if given.quick else list(dict.fromkeys(points))
    took: dict[Point, float] = {}
    rows = []
    with bar("scaling") as report:
        demonstrations("hopper", report)  # collecting them is not a part of the first point
        for n, point in enumerate(points):
            took[point], megabytes = compare(point)
            rows.append([*map(str, astuple(point)), f"{took[point]:.1f}", f"{megabytes:.0f}"])
            report((n + 1) / len(points))
    print(table([*(field.name for field in fields(Point)), "wall s", "largest process MB"], rows))
    slopes = []
    for name, values in series.items():
        for low, high in itertools.pairwise(values):
            more = took[replace(BASE, **{name: high})] - took[replace(BASE, **{name: low})]
            slopes.append([name, f"{low} to {high}", f"{1000 * more / (high - low):.3g} ms"])
    if slopes:
        print("\n" + table(["setting", "from", "each one more takes"], slopes))
    repeats = 1 if given.quick else 5
    times = [[f"`stab {what}`", f"{answers([what], repeats):.2f} s"] for what in ("--help", "list")]
    print("\n" + table(["command", f"best of {repeats}"], times))


if __name__ == "__main__":
    main()
