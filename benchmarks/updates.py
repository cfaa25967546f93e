"""Time of one update of the base recipe against its products; cost of measuring and averaging.

    python benchmarks/updates.py            # about half a minute
    python benchmarks/updates.py --quick

On the hopper task, on one thread, as in stab's workers. ``torch.profiler`` splits an update into
parts; its own cost falls on everything that has many small operations.
"""

import argparse
import math
import time

import torch
from measure import bar, make_task, product_rates, table, update_operations

from stab.config import Config
from stab.recipe import Recipe
from stab.stabilizers import parse
from stab.tasks import Task
from stab.tasks.references import Progress, no_progress
from stab.train import gradient_noise, train

AVERAGES = ["ema", "polyak", "swa"]
WARM_UP = 10
PARTS = {  # what an update is made of -> how the names of its operations begin
    "products": ("mkldnn::", "aten::mm", "aten::addmm"),
    "elementwise: activations, loss, and their gradients": (
        *(
            "aten::clamp_min",
            "aten::relu",
            "aten::threshold_backward",
            "aten::sum",
            "aten::tanh",
            "aten::mse_loss",
        ),
        *("aten::add", "aten::sub", "aten::mul", "aten::div"),
    ),
    "copies: gathering the minibatch, transposing": (
        "aten::copy_",
        "aten::index",
        "aten::contiguous",
        "aten::clone",
    ),
    "AdamW (fused)": ("aten::_fused_adamw",),
}


def one_run(task: Task, recipe: Recipe, names: list[str]) -> tuple[float, float]:
    """Return seconds of an update and of its averages, over a run without its first updates."""
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


def made_of(updates: int) -> dict[str, float]:
    """Return the parts of an update of the base recipe, as shares of its profiled time."""
    task, recipe = make_task("hopper"), Recipe(updates=WARM_UP + updates)
    points = train(task, recipe, 0, {}, [WARM_UP, recipe.updates])
    first = next(points)
    with torch.profiler.profile() as profile:
        last = next(points)
    found = dict.fromkeys([*PARTS, "other operations of torch"], 0.0)
    for event in profile.key_averages():
        if event.key.startswith("Optimizer.step"):
            continue  # not an operation: its own time is the Python of the step
        part = next(
            (part for part, names in PARTS.items() if event.key.startswith(names)),
            "other operations of torch",
        )
        found[part] += event.self_cpu_time_total / 1e6
    whole = last.train_seconds - first.train_seconds
    return {part: seconds / whole for part, seconds in found.items()} | {
        "Python, the autograd engine, the profiler": 1 - sum(found.values()) / whole
    }


def costs(
    updates: int, rounds: int, report: Progress = no_progress
) -> tuple[float, dict[str, float], float, dict[str, float]]:
    """Return seconds: an update, its products, a measurement of gradient variance, the averages.

    Runs with each average alone, with all and with none of them take turns; the fastest count.
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
    rates = product_rates(policy, recipe.batch_size)
    floors = {
        name: update_operations(policy, recipe.batch_size) / rate for name, rate in rates.items()
    }
    del averaging["none"]
    return fastest, floors, noise_seconds(task, recipe, 5 * rounds), averaging


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=600, help="in a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of 30 updates")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with bar("updates") as report:
        update, floors, noise, averaging = costs(
            *(30, 1) if given.quick else (given.updates, given.rounds), report
        )
    config = Config()
    measured = len(config.checkpoints) * noise / (config.train.updates * update)
    rows = [
        [
            "floor: the products of a forward and backward pass",
            f"{1e3 * floors['fastest']:.3f} ms",
            "",
        ],
        ["the same products by `torch.mm`", f"{1e3 * floors['torch.mm']:.3f} ms", ""],
        [
            "update of the base recipe",
            f"{1e3 * update:.3f} ms",
            f"{update / floors['fastest']:.2f} x the floor",
        ],
        *(
            [f"average: {name}", f"{1e3 * own:.3f} ms", f"{100 * own / update:.1f} % of an update"]
            for name, own in averaging.items()
        ),
        [
            f"variance of the gradient, at {len(config.checkpoints)} checkpoints"
            f" in {config.train.updates} updates",
            f"{1e3 * noise:.3f} ms each",
            f"{100 * measured:.2f} % of training",
        ],
    ]
    print(table(["", "time", "share"], rows))
    parts = made_of(30 if given.quick else given.updates)
    print(
        "\n"
        + table(
            ["an update is", "share"],
            [[part, f"{100 * share:.0f} %"] for part, share in parts.items()],
        )
    )


if __name__ == "__main__":
    main()
