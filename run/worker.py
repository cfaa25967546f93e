"""What workers do for a cell, in parts: train it, and roll out its read-outs, a block of them at a time.

Rollouts are jobs of their own, so that any worker can take them: no core waits for another's long cell. Between the two the
read-outs lie in the run folder, under ``parts/``, and go when the cell is finished. So does the state of training, from
which a worker goes on after an interruption. Imported by workers as they start,
which is why what takes long to import is imported here, and this module nowhere else at the top.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer does so, too
from safetensors import SafetensorError, safe_open

from stab import files, gva
from stab.config import Config, load
from stab.recipe import Recipe
from stab.registry import StabError, reason
from stab.run import rows, snapshots
from stab.run.cells import (
    RETURNS,
    TRAINED,
    Cell,
    clear_parts,
    describe,
    make_task,
    parts_folder,
    read_outs_file,
    returns_file,
    snapshot_file,
    starts,
    state_file,
    trained_file,
    versions,
    weights_file,
)
from stab.stabilizers import parse
from stab.stabilizers.base import effective_half_life, memory
from stab.tasks import Task
from stab.train import train

if TYPE_CHECKING:
    from stab.stabilizers.base import Params

# Read-outs in a part of the rollouts. More share the cost of a step's Python; fewer leave the last worker less alone.
PART = 8
# The share of its time that training may spend on writing its state down; the first checkpoint's is always written.
WRITING = 0.02

Report = Callable[[str, float], None]  # called with the phase and the fraction of it that is done
More = Callable[[dict[str, Any]], None]  # called with a job for another worker, or this one later


def work(job: dict[str, Any], report: Report, more: More) -> None:
    """Do one part of a cell: its training, which asks for the other parts, or one block of its rollouts."""
    torch.set_num_threads(1)
    if job["versions"] != versions():
        raise StabError(
            f"this machine has {versions()}, the one that asked for the cell {job['versions']}: install the same"
        )
    config = load(job["config"])
    cell = Cell(**{**job["cell"], "recipe": Recipe.from_dict(job["cell"]["recipe"])})
    if cell.recipe.device != "cpu":  # the same numbers every time, as far as torch can there
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    run = Path(job["run"])
    task = _task((os.environ.get("MINARI_DATASETS_PATH"), json.dumps(job["config"])), cell.task)
    if "part" in job:
        _roll_out_part(task, config, cell, run, job["part"], report)
    else:
        _train(task, config, cell, run, report, lambda part: more({**job, "part": part}))


@functools.lru_cache(maxsize=8)
def _task(root_and_config: tuple[str | None, str], name: str) -> Task:
    """One task object for all that this process does for a run: it keeps its demonstrations and environments."""
    return make_task(load(json.loads(root_and_config[1])), name)


def _train(
    task: Task, config: Config, cell: Cell, run: Path, report: Report, more: Callable[[int], None]
) -> None:
    """Train; write the read-outs in parts and ask for their rollouts; write down everything but the rows.

    What a worker that was interrupted left of the cell is gone on with.
    """
    parts = parts_folder(run, cell)
    about = describe(task, config, cell)
    before = _before(run, cell, about)
    expected = len(cell.stabilizers) * len(config.checkpoints)
    rolled = 0  # read-outs, before the interruption

    def ask(part: int) -> None:
        nonlocal rolled
        if returns_file(parts, part).exists():
            rolled += len(files.read_json(returns_file(parts, part))["found"])
        else:
            more(part)

    if before and "parts" in before:  # trained already
        for part in range(1, before["parts"] + 1):
            ask(part)
        report("training", 1.0)
        report("rollouts", rolled / expected)
        return

    def hand_over(stacked: Params, shas: list[str]) -> None:
        part, path = gathered.parts, returns_file(parts, gathered.parts)
        # An interrupted worker may have rolled out the very same; what else lies there is of no use.
        if not path.exists() or list(files.read_json(path)["found"]) != shas:
            path.unlink(missing_ok=True)
            about_part = {
                "weights": json.dumps(shas),
                "share": json.dumps(len(shas) / expected),
                "points": json.dumps(gathered.points(shas)),
            }
            files.save_tensors(read_outs_file(parts, part), stacked, about_part)
        ask(part)

    gathered = ReadOuts(task, cell.recipe, cell.stabilizers, expected, hand_over)
    averages = {s: a for s in cell.stabilizers if (a := parse(s).average)}
    every = config.snapshots.every
    parameters = {
        name for name, _ in task.policy(cell.recipe).named_parameters(remove_duplicate=False)
    }
    riders = averages | ({snapshots.RIDER: snapshots.BlockMeans(every)} if every else {})
    latest: dict[str, Params] = {}
    taken = snapshots.Snapshots(every or 0, cell.recipe.updates)
    trajectory: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    if before:
        gathered.load_state_dict(before["gathered"])
        taken.load_state_dict(before["taken"])
        trajectory, failed = before["trajectory"], before["failed"]
        for part in range(1, gathered.parts + 1):
            ask(part)
    began, writing = time.perf_counter(), 0.0
    last = None
    for point in train(
        task,
        cell.recipe,
        cell.seed,
        riders,
        config.checkpoints,
        before["training"] if before else None,
    ):
        last = point
        if snapshots.RIDER in point.failed:
            raise RuntimeError(f"snapshots: {point.failed[snapshots.RIDER]}")
        failed |= point.failed
        for string in [string for string in cell.stabilizers if string not in failed]:
            latest[string] = point.averages[string] if string in averages else point.raw
            try:
                gathered.add(string, point.update, latest[string])
            except Exception as e:
                if string not in averages:
                    raise
                failed[string] = reason(e)  # the read-out does not fit the policy
        trajectory.append(
            {
                "update": point.update,
                "lr": point.lr,
                "gradient_variance": point.gradient_variance,
                "gradient_norm2": point.gradient_norm2,
            }
        )
        if every:
            taken.take(point, parameters)
        report("training", point.update / cell.recipe.updates)
        now = time.perf_counter()
        if point.update < cell.recipe.updates and writing <= WRITING * (now - began):
            _save(
                state_file(parts),
                {
                    "about": about,
                    "training": point.state(),
                    "gathered": gathered.state_dict(),
                    "taken": taken.state_dict(),
                    "trajectory": trajectory,
                    "failed": failed,
                },
            )
            writing += time.perf_counter() - now
    assert last is not None
    gathered.close()
    report(
        "rollouts", 1 - (len(gathered.seen) - rolled) / expected
    )  # what need not be rolled out any more

    about_riders = {}
    for string in [string for string in cell.stabilizers if string not in failed]:
        try:
            about_riders[string] = about_rider(string, cell.recipe, config.window)
        except Exception as e:
            failed[string] = reason(e)
    # Beside the rest of the cell, until it is finished and found to agree with what was there before.
    _save_weights(parts, cell, {string: latest[string] for string in about_riders})
    if every:
        snapshots.save(snapshot_file(parts, cell.key), taken)
    files.write_json(
        trained_file(parts),
        {
            "about": about,
            "parts": gathered.parts,
            "failed": failed,
            "timings": {
                "train_seconds": last.train_seconds,
                "average_seconds": last.average_seconds,
                "average_bytes": last.average_bytes,
            },
            "validation_seconds": gathered.seconds,
            "cell": about
            | {
                "stabilizers": list(about_riders),
                "riders": about_riders,
                "trajectory": trajectory,
                "checkpoints": {string: gathered.checkpoints[string] for string in about_riders},
            },
        },
    )
    state_file(parts).unlink(missing_ok=True)


def _before(run: Path, cell: Cell, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an interrupted worker left of the same cell; clear away whatever else is there."""
    parts = parts_folder(run, cell)
    try:
        if trained_file(parts).exists():
            before = files.read_as(trained_file(parts), TRAINED, "record")
            count = before["parts"]
        elif state_file(parts).exists():
            before = files.load_tree(state_file(parts))
            count = before["gathered"]["parts"]
        else:
            before, count = None, 0
        if before is not None and before["about"] == about:
            for part in range(1, count + 1):
                if returns_file(parts, part).exists():
                    files.read_as(returns_file(parts, part), RETURNS, "record")
                else:
                    with safe_open(read_outs_file(parts, part), "pt") as file:
                        file.metadata()["weights"], file.metadata()["points"]
            return dict(before)
    except (StabError, SafetensorError, OSError, KeyError, TypeError):
        pass  # a damaged file costs the time since the cell began, and no more
    clear_parts(run, cell)
    return None


def _save(path: Path, tree: dict[str, Any]) -> None:
    """Write the state of training. Where that cannot be, the cell would begin anew: no reason to end it."""
    try:
        files.save_tree(path, tree)
    except Exception:  # a plug-in may keep anything, and the disk be full
        path.unlink(missing_ok=True)


def _roll_out_part(
    task: Task, config: Config, cell: Cell, run: Path, part: int, report: Report
) -> None:
    """Roll out one part of the read-outs; write down what came of it."""
    parts = parts_folder(run, cell)
    with safe_open(read_outs_file(parts, part), "pt") as file:
        about = file.metadata()
        stacked = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    share = json.loads(about["share"])
    began = time.perf_counter()
    found = roll_out(
        task, config, cell.recipe, stacked, lambda fraction: report("rollouts", share * fraction)
    )
    files.write_json(
        returns_file(parts, part),
        {
            "seconds": time.perf_counter() - began,
            "found": dict(zip(json.loads(about["weights"]), found, strict=True)),
            "points": json.loads(about["points"]),
        },
    )
    read_outs_file(parts, part).unlink(missing_ok=True)


class ReadOuts:
    """Gathers read-outs as they come and hands them over a block at a time; equal ones once.

    Blocks are of about ``PART`` read-outs, so memory does not grow with the checkpoints. A rollout does not depend on its
    company, so neither do the numbers on the blocks.

    Args:
        names: of the stabilizers.
        expected: read-outs of all of them together.
        hand_over: called with parameters (policies, ...) and what tells the policies apart.

    Attributes:
        checkpoints: stabilizer -> a record of each of its read-outs.
        parts: blocks that were handed over (the one that is being handed over included).
        seen: what tells the read-outs apart.
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
        self.size = -(-expected // max(1, expected // PART))  # blocks of equal size
        self.checkpoints: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.seen: set[str] = set()
        self.pending: dict[str, Params] = {}
        self.parts, self.seconds = 0, 0.0

    def add(self, name: str, update: int, read_out: Params) -> None:
        """Take in one read-out; hand over a block when it is full."""
        began = time.perf_counter()
        sha = _digest(read_out)
        self.policy.load_state_dict(read_out)
        with torch.inference_mode():
            val_loss = float(self.task.loss(self.policy, self.validation))
        if not math.isfinite(val_loss):
            raise ValueError(f"the validation loss at update {update} is {val_loss}")
        self.checkpoints[name].append({"update": update, "val_loss": val_loss, "weights": sha})
        self.seconds += time.perf_counter() - began
        if sha not in self.seen:
            self.seen.add(sha)
            self.pending[sha] = read_out
        if len(self.pending) == self.size:
            self.close()

    def points(self, shas: list[str]) -> list[tuple[str, int, float, str]]:
        """Return which read-outs these are: stabilizer, update, validation loss, and which of them."""
        return [
            (name, point["update"], point["val_loss"], point["weights"])
            for name, found in self.checkpoints.items()
            for point in found
            if point["weights"] in shas
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was gathered, blocks that were handed over excepted; plain data and tensors."""
        return {
            "checkpoints": self.checkpoints,
            "seen": sorted(self.seen),
            "pending": self.pending,
            "parts": self.parts,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.checkpoints, self.pending = dict(state["checkpoints"]), dict(state["pending"])
        self.seen, self.parts, self.seconds = set(state["seen"]), state["parts"], state["seconds"]

    def close(self) -> None:
        """Hand over what is left."""
        if self.pending:
            self.parts += 1
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
    """Return what a row says of each episode: for each of the policies (leading axis of ``stacked``), one a start."""
    horizons = gva.horizon_grid(min(config.eval.horizon, task.horizon))
    cumulative, lengths, *more = task.rollout(
        task.policy(recipe).eval(), stacked, starts(config), horizons, progress
    )
    J = task.dataset().references.normalise(cumulative, horizons)
    return [
        [
            {
                **{
                    "return": J[i, n, -1].item(),
                    "length": lengths[i, n].item(),
                    "cumulative": cumulative[i, n].tolist(),
                },
                **(rows.remarks(more[0][i][n]) if more else {}),
            }
            for n in range(config.eval.starts)
        ]
        for i in range(len(cumulative))
    ]


def about_rider(string: str, recipe: Recipe, window: list[int]) -> dict[str, Any]:
    """Return what reports say of a stabilizer, so that they need not load it (it may be a plug-in)."""
    stabilizer = parse(string)
    average = stabilizer.average
    about: dict[str, Any] = {"average": average is not None, "half_life": None, "notes": []}
    if average is not None:
        about["notes"] = average.notes(recipe.updates)
        if average.convex:
            weights = memory(average, recipe.updates, [window[0], window[-1]])
            about["half_life"] = [effective_half_life(weights[t]) for t in (window[0], window[-1])]
    return about


def _digest(weights: Params) -> str:
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(weights[name].numpy().tobytes())
    return sha.hexdigest()[:16]


def _save_weights(folder: Path, cell: Cell, latest: dict[str, Params]) -> None:
    for string, tensors in latest.items():
        about = {
            "task": cell.task,
            "stabilizer": string,
            "recipe": json.dumps(cell.recipe.to_dict()),
        }
        files.save_tensors(weights_file(folder, cell.task, string, cell.seed), tensors, about)
