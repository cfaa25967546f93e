"""The least time that this machine could take for the work of a finished run, and the time the run took.

    stab compare --task hopper --all --seeds 1 --out runs/hopper
    python benchmarks/limit.py runs/hopper

Training: the products of every forward and backward pass at the rate of one such product alone. Rollouts: the
environment steps that were taken at the rate of bare ``mj_step``. Both on one core each, shared among the cores, with
nothing in between: no optimizer, no policy in the loop, no data, no report, no start-up.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from measure import Bare, bar, least_seconds, make_task, product_rate, replay, table, update_operations

from stab.recipe import Recipe
from stab.tasks import Task
from stab.tasks.base import Progress, no_progress


def limit(
    run: Path,
    cores: int | None = None,
    rounds: int = 5,
    report: Progress = no_progress,
) -> dict[str, Any]:
    """Return floors and times of a run folder.

    Args:
        run: the run folder, finished, of built-in MuJoCo tasks with MLPs.
        cores: that the run could use; None for those it had.
        rounds: of measuring, the fastest counts.

    Returns seconds: ``training_floor`` and ``rollout_floor`` on one core, ``training`` and ``rollouts`` as the workers
    spent them, ``floor`` (all floors over the cores), ``wall``; and ``ratio`` = wall / floor.
    """
    about = json.loads((run / "run.json").read_text())
    cores = cores or about["cores"]
    found = dict.fromkeys(("training_floor", "rollout_floor", "training", "rollouts"), 0.0)
    rates: dict[str, float] = {}
    step_seconds: dict[str, float] = {}
    known: dict[str, Task] = {}
    cells = sorted((run / "cells").glob("*.json"))
    for n, path in enumerate(cells):
        cell = json.loads(path.read_text())
        spent = json.loads((run / "timings" / path.name).read_text())
        name, recipe = cell["task"], Recipe.from_dict(cell["recipe"])
        if name not in known:
            known[name], over = make_task(name), replay(name, report=report)
            rates[name] = product_rate(known[name].policy(recipe), recipe.batch_size, 40 * rounds)
            step_seconds[name] = least_seconds({"bare": Bare(over)}, rounds)["bare"] / over.actions[..., 0].size
        policy = known[name].policy(recipe)
        passes = recipe.updates * recipe.accumulation
        found["training_floor"] += passes * update_operations(policy, recipe.batch_size) / rates[name]
        found["rollout_floor"] += spent["rollout_steps"] * step_seconds[name]
        found["training"] += spent["train_seconds"] + sum(spent["average_seconds"].values())
        found["rollouts"] += spent["rollout_seconds"]
        report((n + 1) / len(cells))
    floor = (found["training_floor"] + found["rollout_floor"]) / cores
    return {**found, "cores": cores, "floor": floor, "wall": about["seconds"], "ratio": about["seconds"] / floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--cores", type=int, help="that the run could use (default: those it had)")
    given = parser.parse_args()
    with bar("limit") as report:
        found = limit(given.run, given.cores, report=report)
    rows = [
        ("training, summed over workers", found["training_floor"], found["training"]),
        ("rollouts, summed over workers", found["rollout_floor"], found["rollouts"]),
        (f"the run, on {found['cores']} cores", found["floor"], found["wall"]),
    ]
    print(
        table(
            ["", "floor s", "took s", "took / floor"],
            [[what, f"{floor:.1f}", f"{took:.1f}", f"{took / floor:.2f}"] for what, floor, took in rows],
        )
    )


if __name__ == "__main__":
    main()
