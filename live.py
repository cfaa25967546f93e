"""TensorBoard while a comparison runs: its curves grow as checkpoints are rolled out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from stab.cells import RETURNS, Cell, parts_folder
from stab.config import Config
from stab.reports import rows
from stab.reports.tensorboard import LEADERBOARD, charts
from stab.stabilizers.base import slug

MOST = 40  # runs that TensorBoard shows unasked
REFRESH = 5.0  # seconds between two looks at what has come


class Live:
    """Curves of a comparison under way: ``<task>/return`` and ``<task>/val_loss``, means over the seeds that have come.

    When another seed comes to an update, the curve is written again from its beginning, behind a mark that has TensorBoard
    forget the old one. Rebuilt by ``reports.tensorboard.write`` when the comparison ends.
    """

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.folder, self.strings = run, run / "tensorboard", config.stabilizers[:MOST]
        self.writers: dict[str, SummaryWriter] = {}
        self.found: dict[
            str, dict[tuple[str, int], dict[int, tuple[float, float]]]
        ] = {}  # string, (task, update), seed
        self.read: set[Path] = set()
        self.looked = 0.0
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier session
        with SummaryWriter(str(self.folder / LEADERBOARD)) as writer:
            writer.add_custom_scalars(charts(config.tasks))
        self.show({string for cell in rows.cells(run) for string in self.take(cell)})

    def take(self, cell: dict[str, Any]) -> set[str]:
        """Take in a finished cell; return the stabilizers that it has something of."""
        returns: dict[tuple[str, int], list[float]] = {}
        for row in cell["rows"]:
            returns.setdefault((row["stabilizer"], row["update"]), []).append(row["return"])
        for string, points in cell["checkpoints"].items():
            for point in points:
                mean = float(np.mean(returns[string, point["update"]]))
                self._put(string, cell["task"], point["update"], cell["seed"], mean, point["val_loss"])
        return set(cell["checkpoints"])

    def look(self, cells: Iterable[Cell]) -> None:
        """Take in and show the parts of unfinished cells that have been rolled out, every few seconds."""
        if time.monotonic() - self.looked < REFRESH:
            return
        changed = set()
        for cell in cells:
            for path in sorted(set(parts_folder(self.run, cell).glob("[0-9]*.json")) - self.read):
                part = rows.read_as(path, RETURNS, "record")
                self.read.add(path)
                for string, update, loss, sha in part["points"]:
                    mean = float(np.mean([episode["return"] for episode in part["found"][sha]]))
                    self._put(string, cell.task, update, cell.seed, mean, loss)
                    changed.add(string)
        self.show(changed)
        self.looked = time.monotonic()

    def _put(self, string: str, task: str, update: int, seed: int, mean: float, loss: float) -> None:
        self.found.setdefault(string, {}).setdefault((task, update), {})[seed] = (mean, loss)

    def show(self, changed: Iterable[str]) -> None:
        """Write the curves of these stabilizers."""
        for string in [string for string in self.strings if string in changed]:
            writer = self.writers.get(string)
            if writer is None:
                writer = self.writers[string] = SummaryWriter(str(self.folder / slug(string)))
            mark = Event(session_log=SessionLog(status=SessionLog.START))
            writer.file_writer.add_event(mark, step=0)  # type: ignore[attr-defined]
            for (task, update), seeds in sorted(self.found[string].items()):
                mean, loss = np.mean(list(seeds.values()), axis=0)
                writer.add_scalar(f"{task}/return", mean, update)
                writer.add_scalar(f"{task}/val_loss", loss, update)
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self.writers.values():
            writer.close()
