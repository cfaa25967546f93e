"""What a plan will cost: seconds and bytes."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from stab.config import Config
from stab.run import snapshots
from stab.run.cells import Cell, make_task, task_errors
from stab.run.plan import Plan


def seconds(plan: Plan, cells: Sequence[Cell]) -> list[tuple[float, float]] | None:
    """Return the expected seconds of training and of rollouts of each cell; None if unknown.

    Measured, in about half a second per task, policy and batch size. Every episode is taken to last
    the whole horizon: policies that fail early end sooner.
    """
    expected = []
    speeds: dict[tuple[str, str], tuple[float, float] | None] = {}
    config = plan.config
    for cell in cells:
        # These two settings change the time of an update most; the estimate ignores the rest.
        recipe = dataclasses.replace(
            config.train, policy=cell.recipe.policy, batch_size=cell.recipe.batch_size
        )
        if (cell.task, recipe.key) not in speeds:
            with task_errors(cell.task):
                speeds[cell.task, recipe.key] = make_task(config, cell.task).speed(recipe)
        speed = speeds[cell.task, recipe.key]
        if speed is None:
            return None
        with task_errors(cell.task):
            horizon = min(config.eval.horizon, make_task(config, cell.task).horizon)
        steps = len(cell.stabilizers) * len(config.checkpoints) * config.eval.starts * horizon
        training = cell.recipe.updates * cell.recipe.accumulation * speed[0]
        fresh = cell.recipe.samples * speed[1] if config.data.infinite else 0.0
        expected.append((training + fresh, steps * speed[1]))
    return expected


def longest_episode(config: Config) -> int:
    """Return the steps of the longest episode of any task."""
    lengths = []
    for name in config.tasks:
        with task_errors(name):
            lengths.append(min(config.eval.horizon, make_task(config, name).horizon))
    return max(lengths)


def snapshot_bytes(plan: Plan) -> int:
    """Return the bytes of the plan's snapshots. The tasks' demonstrations must exist."""
    every = plan.config.snapshots.every
    if every is None:
        return 0
    sizes = {}
    for cell in plan.cells:
        with task_errors(cell.task):
            parameters = make_task(plan.config, cell.task).policy(cell.recipe).parameters()
        sizes[cell.task, cell.recipe.key] = sum(p.nbytes for p in parameters)
    return sum(
        sizes[cell.task, cell.recipe.key]
        * (len(snapshots.block_ends(cell.recipe.updates, every)) + len(plan.config.checkpoints))
        for cell in plan.cells
    )


def wall_seconds(expected: Sequence[tuple[float, float]], workers: int) -> float:
    """Return the wall seconds of cells with these expected seconds.

    Rollouts are shared by all workers. Training runs are not: each begins, in order, on the worker
    that is free first.
    """
    busy = [0.0] * min(workers, len(expected) + 1)
    for training, _ in expected:
        heapq.heapreplace(busy, busy[0] + training)
    return max(*busy, sum(map(sum, expected)) / workers)
