"""The rows and the leaderboard for TensorBoard: one run per stabilizer, one for the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import gva
from stab.reports.results import Results, Series
from stab.reports.sheets import markdown
from stab.reports.table import task_sheets
from stab.stabilizers.strings import slug

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = ("gva", "return", "worst", "val_loss")
LEADERBOARD = "leaderboard"
BINS = 40  # of histograms: 0.025 each, for returns between the random policy's and the expert's
# The group of the leaderboards: TensorBoard sorts groups by name and opens on the first.
FIRST = "GVA"
CHARTS = {
    "return": "return",
    "jump of the return between checkpoints": "return_jump",
    "validation loss": "val_loss",
}


def write(results: Results, leaderboard: dict[str, Any], figures: Path, folder: Path) -> None:
    """Write event files.

    ``<slug>``, one run per stabilizer: scalars ``<task>/return``, ``<task>/val_loss`` (at every
    checkpoint) and ``<task>/return_jump`` (within the window, where checkpoints are evenly spaced),
    means over seeds; the histogram ``<task>/returns`` over starts and seeds; and the settings in
    which entries differ as hyper-parameters, with ``hparam/<task>/{gva,return,worst,val_loss}``.
    ``leaderboard``: per task the table as text, the figures as images, and custom scalars: each of
    the three curves of all stabilizers in one chart. Tasks are tags, not runs, because TensorBoard
    hides runs if there are more than 40.

    Args:
        figures: folder of ``<task>-<kind>.png``.
    """
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in leaderboard["entries"]:
        if (entry["task"], entry["stabilizer"]) in results.series:
            entries.setdefault(entry["stabilizer"], []).append(entry)
    every = [own[0]["settings"] for own in entries.values()]
    names = dict.fromkeys(name for settings in every for name in settings)
    varied = [name for name in names if len({str(own.get(name)) for own in every}) > 1]
    for string, own in entries.items():
        series = [results.series[entry["task"], string] for entry in own]
        with SummaryWriter(str(folder / slug(series[0].stabilizer))) as writer:
            for one in series:
                _curves(writer, one)
            _hyper_parameters(writer, series[0], own, varied)
    with SummaryWriter(str(folder / LEADERBOARD)) as writer:
        writer.add_custom_scalars(charts(results.config.tasks))
        for task in results.config.tasks:
            writer.add_text(
                f"{FIRST}/{task}", markdown(task_sheets(leaderboard, task, place="page"))
            )
        for path in sorted(figures.glob("*.png")):
            task, _, kind = path.stem.rpartition("-")
            tag = f"{FIRST}/{task}" if kind == "leaderboard" else f"{task}/{kind}"
            with Image.open(path) as image:
                writer.add_image(tag, np.asarray(image), dataformats="HWC")


def charts(tasks: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the custom scalars: per task and curve one chart of all."""
    return {
        task: {title: ["Multiline", [f"^{task}/{tag}$"]] for title, tag in CHARTS.items()}
        for task in tasks
    }


def _curves(writer: SummaryWriter, series: Series) -> None:
    for k, update in enumerate(series.updates.tolist()):
        writer.add_scalar(f"{series.task}/return", series.returns[:, k].mean(), update)
        writer.add_scalar(f"{series.task}/val_loss", series.val_loss[:, k].mean(), update)
        values = series.returns[:, k].ravel()
        # NumPy's own choice of bins fails where values differ by rounding alone.
        edges = np.linspace(min(0.0, values.min()), max(1.0, values.max()), BINS + 1)
        writer.add_histogram(f"{series.task}/returns", values, update, bins=edges)
    jumps = gva.jumps(series.scored).mean(0)
    for update, jump in zip(series.updates[series.window][1:].tolist(), jumps, strict=True):
        writer.add_scalar(f"{series.task}/return_jump", jump, update)


def _hyper_parameters(
    writer: SummaryWriter, series: Series, entries: list[dict[str, Any]], varied: Sequence[str]
) -> None:
    """Write what SummaryWriter.add_hparams writes, but into this run: that method adds a run."""
    from torch.utils.tensorboard.summary import hparams

    own = entries[0]["settings"]
    values = {"stabilizer": series.stabilizer} | {
        name: own[name] for name in varied if own.get(name) is not None
    }
    scores = {
        f"hparam/{entry['task']}/{name}": entry[name] for entry in entries for name in METRICS
    }
    for summary in hparams(values, scores):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
    for tag, score in scores.items():
        writer.add_scalar(tag, score, entries[0]["updates"])
