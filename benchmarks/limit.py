"""The least time this machine needs for the work of a finished run, and where the run's time went.

    stab compare --task hopper --all --seeds 1 --out runs/hopper
    python benchmarks/limit.py runs/hopper --wall 66

Training: the products of every forward and backward pass, at the rate of the fastest such product
of torch on this machine. Rollouts: the run's environment steps, at the rate of bare ``mj_step``.
Both are divided among the cores. Not counted: optimizer, policy, data, report, start-up.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from measure import (
    Bare,
    bar,
    least_seconds,
    make_task,
    product_rates,
    replay,
    table,
    update_operations,
)

from stab.recipe import Recipe
from stab.tasks import Task
from stab.tasks.references import Progress, no_progress


def limit(
    run: Path,
    cores: int | None = None,
    wall: float | None = None,
    rounds: int = 5,
    report: Progress = no_progress,
) -> dict[str, Any]:
    """Return floors and times of a run folder.

    Args:
        run: the run folder, finished, of built-in MuJoCo tasks with MLPs.
        cores: that the run could use; None for those it had.
        wall: seconds of the whole command; None for those from the first cell to the last.
        rounds: of measuring, the fastest counts.

    Returns seconds: ``training_floor``, ``rollout_floor`` and ``plain_floor`` (of training, at the
    rate of ``torch.mm``) on one core, ``training`` and ``rollouts`` as the workers spent them,
    ``running`` from the first cell to the last, ``wall``, and
    ``floor`` = (training_floor + rollout_floor) / cores.
    """
    about = json.loads((run / "run.json").read_text())
    cores = cores or about["cores"]
    found = dict.fromkeys(
        ("training_floor", "rollout_floor", "plain_floor", "training", "rollouts"), 0.0
    )
    rates: dict[str, dict[str, float]] = {}
    step_seconds: dict[str, float] = {}
    known: dict[str, Task] = {}
    cells = sorted((run / "cells").glob("*.json"))
    for n, path in enumerate(cells):
        cell = json.loads(path.read_text())
        spent = json.loads((run / "timings" / path.name).read_text())
        name, recipe = cell["task"], Recipe.from_dict(cell["recipe"])
        if name not in known:
            known[name], over = make_task(name), replay(name, report=report)
            rates[name] = product_rates(known[name].policy(recipe), recipe.batch_size, 40 * rounds)
            step_seconds[name] = (
                least_seconds({"bare": Bare(over)}, rounds)["bare"] / over.actions[..., 0].size
            )
        policy = known[name].policy(recipe)
        operations = (
            recipe.updates * recipe.accumulation * update_operations(policy, recipe.batch_size)
        )
        found["training_floor"] += operations / rates[name]["fastest"]
        found["plain_floor"] += operations / rates[name]["torch.mm"]
        found["rollout_floor"] += spent["rollout_steps"] * step_seconds[name]
        found["training"] += spent["train_seconds"] + sum(spent["average_seconds"].values())
        found["rollouts"] += spent["rollout_seconds"]
        report((n + 1) / len(cells))
    return {
        **found,
        "cores": cores,
        "floor": (found["training_floor"] + found["rollout_floor"]) / cores,
        "running": about["seconds"],
        "wall": about["seconds"] if wall is None else wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--cores", type=int, help="that the run could use (default: those it had)")
    parser.add_argument(
        "--wall",
        type=float,
        help="seconds of the whole command (default: without start-up and report)",
    )
    given = parser.parse_args()
    with bar("limit") as report:
        found = limit(given.run, given.cores, given.wall, report=report)
    cores, wall = found["cores"], found["wall"]
    plain = (found["plain_floor"] + found["rollout_floor"]) / cores
    rows = [
        ("training, summed over workers", found["training_floor"], found["training"]),
        ("rollouts, summed over workers", found["rollout_floor"], found["rollouts"]),
        (f"all of it, on {cores} cores", found["floor"], wall),
        ("the same, products at the rate of `torch.mm`", plain, wall),
    ]
    print(
        table(
            ["", "floor s", "took s", "took / floor"],
            [
                [what, f"{floor:.1f}", f"{took:.1f}", f"{took / floor:.2f}"]
                for what, floor, took in rows
            ],
        )
    )
    went = {
        "products of training": found["training_floor"] / cores,
        "the rest of training": (found["training"] - found["training_floor"]) / cores,
        "physics": found["rollout_floor"] / cores,
        "the rest of the rollouts": (found["rollouts"] - found["rollout_floor"]) / cores,
        "loading, gradient variance, writing, waiting": found["running"]
        - (found["training"] + found["rollouts"]) / cores,
        "planning before them, report and figures after": wall - found["running"],
    }
    shares = [
        [what, f"{seconds:.1f}", f"{100 * seconds / wall:.0f} %"] for what, seconds in went.items()
    ]
    print("\n" + table([f"where {wall:.1f} s went", "s", "share"], shares))


if __name__ == "__main__":
    main()
