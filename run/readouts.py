"""Read-outs: the policies of a cell's entries at checkpoints, and their rollouts."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stab import gva
from stab.config import Config
from stab.recipe import Recipe
from stab.run import rows
from stab.run.cells import starts
from stab.stabilizers import parse
from stab.stabilizers.base import effective_half_life, weight_profile
from stab.tasks import Task

if TYPE_CHECKING:
    from stab.stabilizers.base import Params

# More read-outs per shard share the Python time of a step; fewer keep the last worker less alone.
SHARD = 8


class ReadOuts:
    """Collects read-outs and hands them over a shard at a time; equal ones once.

    A shard is about ``SHARD`` read-outs, so memory does not grow with the checkpoints. A rollout
    does not depend on its company, so no number depends on the shards.

    Args:
        names: of the stabilizers.
        expected: read-outs of all of them together.
        hand_over: called with stacked parameters (policies, ...) and the policies' digests.

    Attributes:
        checkpoints: stabilizer -> a record of each of its read-outs.
        shards: how many were handed over, including the one that is being handed over.
        seen: digests of the read-outs.
        seconds: spent in validation losses.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        names: Sequence[str],
        expected: int,
        hand_over: Callable[[Params, list[str]], None],
    ) -> None:
        data = task.dataset()
        self.task, self.policy, self.hand_over = task, task.policy(recipe).eval(), hand_over
        self.validation = data.validation.batch(np.arange(len(data.validation)))
        self.size = -(-expected // max(1, expected // SHARD))  # shards of equal size
        self.checkpoints: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.seen: set[str] = set()
        self.pending: dict[str, Params] = {}
        self.shards, self.seconds = 0, 0.0

    def add(self, name: str, update: int, read_out: Params) -> None:
        """Add one read-out; hand over a shard when it is full."""
        began = time.perf_counter()
        digest = _digest(read_out)
        self.policy.load_state_dict(read_out)
        with torch.inference_mode():
            val_loss = float(self.task.loss(self.policy, self.validation))
        if not math.isfinite(val_loss):
            raise ValueError(f"the validation loss at update {update} is {val_loss}")
        self.checkpoints[name].append({"update": update, "val_loss": val_loss, "weights": digest})
        self.seconds += time.perf_counter() - began
        if digest not in self.seen:
            self.seen.add(digest)
            self.pending[digest] = read_out
        if len(self.pending) == self.size:
            self.close()

    def points(self, digests: list[str]) -> list[tuple[str, int, float, str]]:
        """Return stabilizer, update, validation loss and digest of these read-outs."""
        return [
            (name, point["update"], point["val_loss"], point["weights"])
            for name, records in self.checkpoints.items()
            for point in records
            if point["weights"] in digests
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the read-outs that were handed over; plain data and tensors."""
        return {
            "checkpoints": self.checkpoints,
            "seen": sorted(self.seen),
            "pending": self.pending,
            "parts": self.shards,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.checkpoints, self.pending = dict(state["checkpoints"]), dict(state["pending"])
        self.seen, self.shards, self.seconds = set(state["seen"]), state["parts"], state["seconds"]

    def close(self) -> None:
        """Hand over the last shard."""
        if self.pending:
            self.shards += 1
            first = next(iter(self.pending.values()))
            stacked = {
                name: torch.stack([tensors[name] for tensors in self.pending.values()])
                for name in first
            }
            self.hand_over(stacked, list(self.pending))
            self.pending = {}


def roll_out(
    task: Task, config: Config, recipe: Recipe, stacked: Params, progress: Callable[[float], None]
) -> list[list[dict[str, Any]]]:
    """Roll out policies (the leading axis of ``stacked``); return their rows' content per start."""
    horizons = gva.horizon_grid(min(config.eval.horizon, task.horizon))
    cumulative, lengths, *more = task.rollout(
        task.policy(recipe).eval(), stacked, starts(config), horizons, progress
    )
    J = task.dataset().references.normalise(cumulative, horizons)
    return [
        [
            {
                "return": J[i, n, -1].item(),
                "length": lengths[i, n].item(),
                "cumulative": cumulative[i, n].tolist(),
                **(rows.infos(more[0][i][n]) if more else {}),
            }
            for n in range(config.eval.starts)
        ]
        for i in range(len(cumulative))
    ]


def describe_entry(string: str, recipe: Recipe, window: list[int]) -> dict[str, Any]:
    """Return what reports say of a stabilizer: they cannot load it if its plug-in is missing."""
    stabilizer = parse(string)
    average = stabilizer.average
    about: dict[str, Any] = {"average": average is not None, "half_life": None, "notes": []}
    if average is not None:
        about["notes"] = average.notes(recipe.updates)
        if average.convex:
            weights = weight_profile(average, recipe.updates, [window[0], window[-1]])
            about["half_life"] = [effective_half_life(weights[t]) for t in (window[0], window[-1])]
    return about


def _digest(weights: Params) -> str:
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(weights[name].numpy().tobytes())
    return sha.hexdigest()[:16]
