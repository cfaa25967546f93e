"""What one update of the base recipe takes, against the products in it, and what measuring and averaging add.

    python benchmarks/updates.py            # about half a minute
    python benchmarks/updates.py --quick

On the hopper task, on one thread, as in stab's workers.
"""

import argparse
import math
import time

import torch
from measure import bar, make_task, product_rate, table, update_operations

from stab.config import Config
from stab.recipe import Recipe
from stab.stabilizers import parse
from stab.tasks import Task
from stab.tasks.base import Progress, no_progress
from stab.train import gradient_noise, train

AVERAGES = ["ema", "polyak", "swa"]
WARM_UP = 10


def one_run(task: Task, recipe: Recipe, names: list[str]) -> tuple[float, float]:
    """Return seconds of an update, and of the named averages in it, over a run without its first updates."""
    averages = {name: average for name in names if (average := parse(name).average)}
    first, last = train(task, recipe, 0, averages, [WARM_UP, recipe.updates])
    updates = recipe.updates - WARM_UP
    averaging = sum(last.average_seconds.values()) - sum(first.average_seconds.values())
    return (last.train_seconds - first.train_seconds) / updates, averaging / updates


def noise_seconds(task: Task, recipe: Recipe, calls: int) -> float:
    """Return seconds of one measurement of the gradient's variance, as at every checkpoint."""
    policy = task.policy(recipe)
    least = math.inf
    for n in range(calls):
        began = time.perf_counter()
        gradient_noise(task, policy, recipe, (0, 0, n))
        least = min(least, time.perf_counter() - began)
    return least


def costs(updates: int, rounds: int, report: Progress = no_progress) -> tuple[float, float, float, dict[str, float]]:
    """Return seconds: an update, the products in it, one measurement of the gradient's variance, averages an update.

    Runs with each average alone, with all of them and with none take turns; the fastest of each count.
    """
    task, recipe = make_task("hopper"), Recipe(updates=updates)
    variants = {"none": [], **{name: [name] for name in AVERAGES}, "all three": AVERAGES}
    fastest = math.inf
    averaging = dict.fromkeys(variants, math.inf)
    for n in range(rounds):
        for k, (name, averages) in enumerate(variants.items()):
            update, own = one_run(task, recipe, averages)
            fastest, averaging[name] = min(fastest, update), min(averaging[name], own)
            report((n * len(variants) + k + 1) / (rounds * len(variants)))
    policy = task.policy(recipe)
    floor = update_operations(policy, recipe.batch_size) / product_rate(policy, recipe.batch_size)
    del averaging["none"]
    return fastest, floor, noise_seconds(task, recipe, 5 * rounds), averaging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=600, help="in a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of 30 updates")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with bar("updates") as report:
        update, floor, noise, averaging = costs(*(30, 1) if given.quick else (given.updates, given.rounds), report)
    config = Config()
    measured = len(config.checkpoints) * noise / (config.train.updates * update)
    rows = [
        ["floor: the products of a forward and backward pass", f"{1e3 * floor:.3f} ms", ""],
        ["update of the base recipe", f"{1e3 * update:.3f} ms", f"{update / floor:.2f} x the floor"],
        *(
            [f"average: {name}", f"{1e3 * own:.3f} ms", f"{100 * own / update:.1f} % of an update"]
            for name, own in averaging.items()
        ),
        [
            f"variance of the gradient, at {len(config.checkpoints)} checkpoints in {config.train.updates} updates",
            f"{1e3 * noise:.3f} ms each",
            f"{100 * measured:.2f} % of training",
        ],
    ]
    print(table(["", "time", "share"], rows))


if __name__ == "__main__":
    main()
