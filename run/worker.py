"""The work for a cell: its training, and the rollouts of its read-outs, a shard of them at a time.

Rollouts are jobs of their own, so that any worker can take them: no core waits for another's long
cell. Meanwhile the read-outs, and the state from which an interrupted training is resumed, are in
the run folder, under ``parts/``. Workers import this module as they start: what takes long to
import is imported here, and no other module imports this one at its top.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo  # the first optimizer imports it, too

from stab import files
from stab.config import Config, load
from stab.engines.base import Job, More, Report
from stab.recipe import Recipe
from stab.registry import StabError, reason
from stab.run import snapshots
from stab.run.cells import RETURNS, TRAINED, Cell, describe, make_task, versions
from stab.run.folder import (
    clear_shards,
    read_outs_file,
    returns_file,
    shards_folder,
    snapshot_file,
    state_file,
    trained_file,
    weights_file,
)
from stab.run.readouts import ReadOuts, describe_entry, roll_out
from stab.stabilizers import parse
from stab.tasks import Task
from stab.train import train

if TYPE_CHECKING:
    from stab.stabilizers.base import Params
    from stab.train import Checkpoint

# Share of training time for writing its state; that of the first checkpoint is always written.
WRITING = 0.02


def work(job: Job, report: Report, more: More) -> None:
    """Do one part of a cell: its training, which asks for the others, or a shard's rollouts."""
    torch.set_num_threads(1)
    check_versions(job)
    config = load(job["config"])
    cell = Cell(**{**job["cell"], "recipe": Recipe.from_dict(job["cell"]["recipe"])})
    if cell.recipe.device != "cpu":  # the same numbers every time, as far as torch can there
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    run = Path(job["run"])
    task = _task((os.environ.get("MINARI_DATASETS_PATH"), json.dumps(job["config"])), cell.task)
    if "shard" in job:
        _roll_out_shard(task, config, cell, run, job["shard"], report)
    else:
        _Training(
            task, config, cell, run, report, lambda number: more({**job, "shard": number})
        ).run()


def check_versions(job: Job) -> None:
    """Raise StabError if this process has other packages than the one that made the job."""
    if job["versions"] != versions():
        raise StabError(
            f"this machine has {versions()}, the one that started the run {job['versions']}:"
            " install the same"
        )


@functools.lru_cache(maxsize=8)
def _task(root_and_config: tuple[str | None, str], name: str) -> Task:
    """Return one task per process and run: it keeps its demonstrations and environments."""
    return make_task(load(json.loads(root_and_config[1])), name)


class _Training:
    """The training of a cell: resumes what an interrupted worker left, trains, writes."""

    def __init__(
        self,
        task: Task,
        config: Config,
        cell: Cell,
        run: Path,
        report: Report,
        more: Callable[[int], None],
    ) -> None:
        self.task, self.config, self.cell = task, config, cell
        self.report, self.more = report, more
        self.shards = shards_folder(run, cell.key)
        self.about = describe(task, config, cell)
        self.saved = _load_saved(run, cell, self.about)
        self.expected = len(cell.stabilizers) * len(config.checkpoints)
        self.rolled_out = 0  # read-outs, before an interruption
        self.trajectory: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        self.latest: dict[str, Params] = {}

    def run(self) -> None:
        """Resume or begin; ask for the rollouts of shards on the way."""
        for number in range(1, (self.saved.shards if self.saved else 0) + 1):
            self.ask(number)
        if self.saved and self.saved.state is None:
            self.report("training", 1.0)
            self.report("rollouts", self.rolled_out / self.expected)
            return
        cell, names = self.cell, self.cell.stabilizers
        every = self.config.snapshots.every
        self.gathered = ReadOuts(self.task, cell.recipe, names, self.expected, self.hand_over)
        self.taken = snapshots.SavedBlocks(every or 0, cell.recipe.updates)
        state = self.saved.state if self.saved else None
        if state:
            self.gathered.load_state_dict(state["gathered"])
            self.taken.load_state_dict(state["taken"])
            self.trajectory, self.failed = state["trajectory"], state["failed"]
        last = self.train(state["training"] if state else None)
        self.gathered.close()
        # Equal read-outs are rolled out once.
        todo = len(self.gathered.seen) - self.rolled_out
        self.report("rollouts", 1 - todo / self.expected)
        self.write(last)

    def ask(self, number: int) -> None:
        """Ask for the rollouts of a shard, unless they are on disk."""
        path = returns_file(self.shards, number)
        if path.exists():
            self.rolled_out += len(files.read_json(path)["found"])
        else:
            self.more(number)

    def hand_over(self, stacked: Params, digests: list[str]) -> None:
        """Write a shard of read-outs."""
        number = self.gathered.shards
        path = returns_file(self.shards, number)
        # An interrupted worker may have rolled out the very same; other results are of no use.
        if not path.exists() or list(files.read_json(path)["found"]) != digests:
            path.unlink(missing_ok=True)
            about = {
                "weights": json.dumps(digests),
                "share": json.dumps(len(digests) / self.expected),
                "points": json.dumps(self.gathered.points(digests)),
            }
            files.save_tensors(read_outs_file(self.shards, number), stacked, about)
        self.ask(number)

    def train(self, state: Any) -> Checkpoint:
        """Train, from a state of it or from the beginning; return the last checkpoint."""
        cell, config = self.cell, self.config
        averages = {s: a for s in cell.stabilizers if (a := parse(s).average)}
        every = config.snapshots.every
        policy = self.task.policy(cell.recipe)
        parameters = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
        attached = averages | ({snapshots.NAME: snapshots.BlockMeans(every)} if every else {})
        began, writing = time.perf_counter(), 0.0
        point = None
        for point in train(self.task, cell.recipe, cell.seed, attached, config.checkpoints, state):
            if snapshots.NAME in point.failed:
                raise RuntimeError(f"snapshots: {point.failed[snapshots.NAME]}")
            self.failed |= point.failed
            self.read_out(point, averages)
            self.trajectory.append(
                {
                    "update": point.update,
                    "lr": point.lr,
                    "gradient_variance": point.gradient_variance,
                    "gradient_norm2": point.gradient_norm2,
                }
            )
            if every:
                self.taken.take(point, parameters)
            self.report("training", point.update / cell.recipe.updates)
            now = time.perf_counter()
            if point.update < cell.recipe.updates and writing <= WRITING * (now - began):
                self.save(point)
                writing += time.perf_counter() - now
        assert point is not None
        return point

    def read_out(self, point: Checkpoint, averages: dict[str, Any]) -> None:
        """Collect the read-outs of a checkpoint."""
        for string in [string for string in self.cell.stabilizers if string not in self.failed]:
            self.latest[string] = point.averages[string] if string in averages else point.raw
            try:
                self.gathered.add(string, point.update, self.latest[string])
            except Exception as e:
                if string not in averages:
                    raise
                self.failed[string] = reason(e)  # the read-out does not fit the policy

    def save(self, point: Checkpoint) -> None:
        """Write the state of training. If that fails, a resumed cell only starts from scratch."""
        path = state_file(self.shards)
        try:
            files.save_tree(
                path,
                {
                    "about": self.about,
                    "training": point.state(),
                    "gathered": self.gathered.state_dict(),
                    "taken": self.taken.state_dict(),
                    "trajectory": self.trajectory,
                    "failed": self.failed,
                },
            )
        except Exception:  # a plug-in may keep anything, and the disk be full
            path.unlink(missing_ok=True)

    def write(self, last: Checkpoint) -> None:
        """Write weights, snapshots and everything but the rows, for ``cells.finish`` to move."""
        cell, entries = self.cell, {}
        for string in [string for string in cell.stabilizers if string not in self.failed]:
            try:
                entries[string] = describe_entry(string, cell.recipe, self.config.window)
            except Exception as e:
                self.failed[string] = reason(e)
        for string in entries:
            about = {
                "task": cell.task,
                "stabilizer": string,
                "recipe": json.dumps(cell.recipe.to_dict()),
            }
            path = weights_file(self.shards, cell.task, string, cell.seed)
            files.save_tensors(path, self.latest[string], about)
        if self.config.snapshots.every:
            snapshots.save(snapshot_file(self.shards, cell.key), self.taken)
        checkpoints = self.gathered.checkpoints
        trained = {
            "about": self.about,
            "parts": self.gathered.shards,
            "failed": self.failed,
            "timings": {
                "train_seconds": last.train_seconds,
                "average_seconds": last.average_seconds,
                "average_bytes": last.average_bytes,
            },
            "validation_seconds": self.gathered.seconds,
            "cell": self.about
            | {
                "stabilizers": list(entries),
                "riders": entries,
                "trajectory": self.trajectory,
                "checkpoints": {string: checkpoints[string] for string in entries},
            },
        }
        files.write_record(trained_file(self.shards), trained)
        state_file(self.shards).unlink(missing_ok=True)


@dataclass
class _Saved:
    """How many shards were handed over, and the state of training, None once it is over."""

    shards: int
    state: dict[str, Any] | None


def _load_saved(run: Path, cell: Cell, about: dict[str, Any]) -> _Saved | None:
    """Return what an interrupted worker saved of the same cell; delete anything else."""
    shards = shards_folder(run, cell.key)
    try:
        if trained_file(shards).exists():
            content = files.read_as(trained_file(shards), TRAINED, "record")
            saved = _Saved(content["parts"], None)
        else:
            content = files.load_tree(state_file(shards))
            saved = _Saved(content["gathered"]["parts"], content)
        if content["about"] == about:
            for number in range(1, saved.shards + 1):
                if returns_file(shards, number).exists():
                    files.read_as(returns_file(shards, number), RETURNS, "record")
                else:
                    read = files.read_about(read_outs_file(shards, number))
                    read["weights"], read["points"]
            return saved
    except (StabError, OSError, KeyError, TypeError):
        pass  # a missing or damaged file costs the time since the cell began, and no more
    clear_shards(run, cell.key)
    return None


def _roll_out_shard(
    task: Task, config: Config, cell: Cell, run: Path, number: int, report: Report
) -> None:
    """Roll out a shard of the read-outs; write the results."""
    shards = shards_folder(run, cell.key)
    stacked, about = files.load_tensors(read_outs_file(shards, number))
    share = json.loads(about["share"])
    began = time.perf_counter()
    episodes = roll_out(
        task, config, cell.recipe, stacked, lambda fraction: report("rollouts", share * fraction)
    )
    content = {
        "seconds": time.perf_counter() - began,
        "found": dict(zip(json.loads(about["weights"]), episodes, strict=True)),
        "points": json.loads(about["points"]),
    }
    files.write_record(returns_file(shards, number), content)
    read_outs_file(shards, number).unlink(missing_ok=True)
