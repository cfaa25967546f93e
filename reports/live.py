"""TensorBoard while a comparison runs: its curves grow as checkpoints are rolled out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars, scalar

from stab import files
from stab.config import Config
from stab.engines.base import Event as JobEvent
from stab.registry import StabError
from stab.reports.tensorboard import LEADERBOARD, charts
from stab.run import rows
from stab.run.cells import RETURNS, Cell
from stab.run.folder import cell_file, shards_folder
from stab.stabilizers.strings import slug

MOST = 40  # runs that TensorBoard shows by default
REFRESH = 5.0  # seconds between two looks at the shards


class EventFile:
    """An event file. Unlike SummaryWriter it has no thread, so that errors are raised here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / f"events.out.tfevents.{time.time():.0f}.live").open("wb")
        self.records = RecordWriter(self.file)
        self.write(file_version="brain.Event:2")

    def write(self, **event: Any) -> None:
        """Append an event, by its fields."""
        self.records.write(Event(wall_time=time.time(), **event).SerializeToString())

    def flush(self) -> None:
        """Make it visible to readers."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Live:
    """Curves of a running comparison: ``<task>/return``, ``<task>/val_loss``, means over seeds.

    Whenever something new comes, a stabilizer's curves are written again from their beginning,
    behind a mark that makes TensorBoard forget the old ones. ``reports.tensorboard.write`` rebuilds
    them in the end. Curves are a convenience: an error here (a full disk, somebody who rebuilds or
    deletes the folder) ends them, and never the comparison.
    """

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.folder, self.strings = run, run / "tensorboard", config.stabilizers[:MOST]
        self.files: dict[str, EventFile] = {}
        # string -> (task, update) -> seed -> mean return and validation loss
        self.means: dict[str, dict[tuple[str, int], dict[int, tuple[float, float]]]] = {}
        self.read: set[tuple[Path, int]] = set()
        self.under_way: dict[str, Cell] = {}
        self.looked, self.works = 0.0, True
        with self._harmless():
            shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier session
            with closing(EventFile(self.folder / LEADERBOARD)) as file:
                layout = custom_scalars(charts(config.tasks))  # type: ignore[no-untyped-call]
                file.write(summary=layout)
            self._show({string for cell in rows.cells(run) for string in self._take(cell)})

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.works = False

    def see(self, cell: Cell, news: JobEvent) -> None:
        """Show what an event of ``run.execute`` is about, and what else came meanwhile."""
        if news.kind == "progress":
            self.under_way[cell.key] = cell
        else:
            self.under_way.pop(cell.key, None)
            (self.finished if news.kind == "done" else self.failed)(cell)
        self.look(self.under_way.values())

    def finished(self, cell: Cell) -> None:
        """Show a finished cell."""
        with self._harmless():
            if self.works:
                self._forget(cell)  # its file may hold fewer stabilizers than its shards did
                self._show(self._take(files.read_json(cell_file(self.run, cell.key))))

    def failed(self, cell: Cell) -> None:
        """Take a failed cell out of the curves."""
        with self._harmless():
            if self.works:
                self._show(self._forget(cell))

    def look(self, cells: Iterable[Cell]) -> None:
        """Show what has been rolled out of unfinished cells, every few seconds."""
        if not self.works or time.monotonic() - self.looked < REFRESH:
            return
        with self._harmless():
            changed = set()
            for cell in cells:
                for path in sorted(shards_folder(self.run, cell.key).glob("[0-9]*.json")):
                    try:
                        version = (path, path.stat().st_mtime_ns)
                        if version in self.read:
                            continue
                        shard = files.read_as(path, RETURNS, "record")
                    except (OSError, StabError):  # deleted or damaged: its worker handles that
                        continue
                    self.read.add(version)
                    for string, update, loss, digest in shard["points"]:
                        episodes = shard["found"][digest]
                        mean = float(np.mean([episode["return"] for episode in episodes]))
                        self._put(string, cell.task, update, cell.seed, mean, loss)
                        changed.add(string)
            self._show(changed)
        self.looked = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            with self._harmless():
                file.close()

    def _take(self, cell: dict[str, Any]) -> set[str]:
        """Add a finished cell; return its stabilizers."""
        returns: dict[tuple[str, int], list[float]] = {}
        for row in cell["rows"]:
            returns.setdefault((row["stabilizer"], row["update"]), []).append(row["return"])
        for string, points in cell["checkpoints"].items():
            for point in points:
                mean = float(np.mean(returns[string, point["update"]]))
                self._put(
                    string, cell["task"], point["update"], cell["seed"], mean, point["val_loss"]
                )
        return set(cell["checkpoints"])

    def _put(
        self, string: str, task: str, update: int, seed: int, mean: float, loss: float
    ) -> None:
        self.means.setdefault(string, {}).setdefault((task, update), {})[seed] = (mean, loss)

    def _forget(self, cell: Cell) -> set[str]:
        for string in cell.stabilizers:
            for (task, _), seeds in self.means.get(string, {}).items():
                if task == cell.task:
                    seeds.pop(cell.seed, None)
        return set(cell.stabilizers) & self.means.keys()

    def _show(self, changed: Iterable[str]) -> None:
        """Write the curves of these stabilizers."""
        for string in [string for string in self.strings if string in changed]:
            file = self.files.get(string)
            if file is None:
                file = self.files[string] = EventFile(self.folder / slug(string))
            file.write(session_log=SessionLog(status=SessionLog.START), step=0)
            for (task, update), seeds in sorted(self.means[string].items()):
                if seeds:
                    mean, loss = np.mean(list(seeds.values()), axis=0)
                    for tag, value in ((f"{task}/return", mean), (f"{task}/val_loss", loss)):
                        summary = scalar(tag, value)  # type: ignore[no-untyped-call]
                        file.write(summary=summary, step=update)
            file.flush()
