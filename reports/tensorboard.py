"""The rows and the leaderboard for TensorBoard: one run a (task, stabilizer), and one for the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import gva
from stab.reports.figures import pixels
from stab.reports.statistics import Results, Series
from stab.reports.table import markdown_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

RECIPE = ("policy", "optimizer", "lr", "schedule", "weight_decay", "dropout", "batch_size", "accumulation", "updates")
METRICS = ("gva", "return", "worst", "val_loss")


def write(results: Results, leaderboard: dict[str, Any], drawn: dict[str, Figure], folder: Path) -> None:
    """Write event files.

    ``<task>/<slug>``: scalars ``return``, ``val_loss`` (at every checkpoint) and ``return_jump`` (within the window,
    where checkpoints are evenly spaced), means over seeds; and hyper-parameters with the scores
    ``hparam/{gva,return,worst,val_loss}``. ``leaderboard``: per task the table as text and the figures as images.

    Args:
        drawn: the figures by name, as from ``stab.reports.figures.draw``.
    """
    from torch.utils.tensorboard import SummaryWriter

    for entry in leaderboard["entries"]:
        task, string = entry["task"], entry["stabilizer"]
        if (task, string) in results.series:
            series = results.series[task, string]
            with SummaryWriter(str(folder / task / series.rider["slug"])) as writer:
                _curves(writer, series)
                _hyper_parameters(writer, series, entry)
    with SummaryWriter(str(folder / "leaderboard")) as writer:
        for task in results.config.tasks:
            writer.add_text(f"{task}/leaderboard", markdown_task(leaderboard, task))
        for name, figure in drawn.items():
            task, _, kind = name.rpartition("-")
            writer.add_image(f"{task}/{kind}", pixels(figure), dataformats="HWC")


def _curves(writer: SummaryWriter, series: Series) -> None:
    for k, update in enumerate(series.updates.tolist()):
        writer.add_scalar("return", series.returns[:, k].mean(), update)
        writer.add_scalar("val_loss", series.val_loss[:, k].mean(), update)
    jumps = np.mean([gva.jumps(J) for J in series.returns[:, series.window]], axis=0)
    for update, jump in zip(series.updates[series.window][1:].tolist(), jumps, strict=True):
        writer.add_scalar("return_jump", jump, update)


def _hyper_parameters(writer: SummaryWriter, series: Series, entry: dict[str, Any]) -> None:
    """Write what SummaryWriter.add_hparams writes, but into this run: that method makes a run of its own."""
    from torch.utils.tensorboard.summary import hparams

    values = {"task": series.task, "stabilizer": series.stabilizer}
    values |= {name: getattr(series.recipe, name) for name in RECIPE}
    scores = {f"hparam/{name}": entry[name] for name in METRICS}
    for summary in hparams(values, scores):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
    for tag, score in scores.items():
        writer.add_scalar(tag, score, entry["updates"])
