"""Post-hoc averages: read off a run's snapshots, rolled out like every entry, beside the cells."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stab import files
from stab.config import load
from stab.engines.base import Engine, Event, Job, More, Report
from stab.recipe import Recipe
from stab.registry import StabError
from stab.run import rows, snapshots
from stab.run.cells import common_job, make_rows, make_task
from stab.run.folder import cell_file, settings, snapshot_file, weights_file
from stab.stabilizers import parse
from stab.stabilizers.strings import slug

if TYPE_CHECKING:
    from stab.stabilizers.base import Params

WORK = "stab.run.posthoc:work"


@dataclass(frozen=True)
class PostHoc:
    """One average of one cell, to be read off and rolled out."""

    task: str
    seed: int
    key: str
    string: str

    def file(self, run: Path) -> Path:
        """Path of its rows."""
        return run / "averages" / f"{self.key}-{slug(self.string)}.json"


def unfinished(run: Path, strings: Sequence[str]) -> list[PostHoc]:
    """Return the averages that are not on disk yet, for each task and seed.

    Raises StabError if the run has no snapshots, a string is not a convex average, its settings do
    not fit the length of training, or the run has no training run of its recipe.
    """
    config = settings(run)
    if config.snapshots.every is None:
        raise StabError(
            f"{run} has no snapshots to read averages off: run the comparison with snapshots.every="
            f"{config.eval.checkpoint_every // 4 or 1} (a divisor of eval.checkpoint_every)"
        )
    cells = {(c["task"], Recipe.from_dict(c["recipe"]).key, c["seed"]): c for c in rows.cells(run)}
    averages = []
    for string in strings:
        stabilizer = parse(string)
        if stabilizer.average is None or not stabilizer.average.convex:
            raise StabError(
                f"{string!r} cannot be read off: expected an average that declares convex weights"
            )
        recipe = stabilizer.apply(config.train)
        stabilizer.average.init({}, recipe.updates)
        for task, seed in itertools.product(config.tasks, range(config.shared_seeds)):
            cell = cells.get((task, recipe.key, seed))
            if cell is None:
                trained = {c["raw"] for c in cells.values() if c["task"] == task}
                raws = dict.fromkeys(parse(s).raw for s in config.stabilizers)
                known = [raw for raw in raws if raw in trained]
                raise StabError(
                    f"{string!r}: {run} has no training run of {stabilizer.raw!r} on {task} with"
                    f" seed {seed}; it has {', '.join(known) or 'none that finished'}"
                )
            key = rows.cell_key(cell)
            if not snapshot_file(run, key).exists():
                raise StabError(
                    f"the snapshots {snapshot_file(run, key)} are gone: run the comparison again"
                )
            averages.append(PostHoc(task, seed, key, string))
    return [average for average in averages if not _is_whole(average.file(run))]


def _is_whole(path: Path) -> bool:
    try:
        return path.exists() and files.read_json(path) is not None
    except files.Damaged:
        return False


def execute(
    averages: Sequence[PostHoc], run: Path, engine: Engine
) -> Generator[tuple[PostHoc, Event]]:
    """Read off and roll out, on an engine for ``WORK``; yield events as they come."""
    config = settings(run)
    jobs = []
    for one in averages:
        raw = parse(one.string).raw
        inputs = [
            cell_file(run, one.key),
            snapshot_file(run, one.key),
            *(weights_file(run, one.task, string, one.seed) for string in (one.string, raw)),
        ]
        reads = [path.relative_to(run).as_posix() for path in inputs]
        own = {"key": one.key, "string": one.string, "reads": reads}
        jobs.append(common_job(config, run, one.task) | own)
    with closing(engine.run(jobs)) as events:
        for event in events:
            yield averages[event.job], event


def work(job: Job, report: Report, _more: More) -> None:
    """Read one average off one cell's snapshots, roll out its window, write its rows."""
    import torch

    from stab.run.readouts import ReadOuts, describe_entry, roll_out
    from stab.run.worker import check_versions

    torch.set_num_threads(1)
    check_versions(job)
    run, key, string = Path(job["run"]), job["key"], job["string"]
    cell = files.read_json(cell_file(run, key))
    config = load(job["config"])
    recipe = Recipe.from_dict(cell["recipe"])
    average = parse(string).average
    assert average is not None
    saved = snapshots.load(snapshot_file(run, key))
    report("reading off", 0.0)
    read_outs, misplaced = saved.read_off(average, cell["window"])
    task = make_task(config, cell["task"])
    rolled_out: dict[str, list[dict[str, Any]]] = {}

    def hand_over(stacked: Params, digests: list[str]) -> None:
        begin, share = len(rolled_out) / len(read_outs), len(digests) / len(read_outs)
        episodes = roll_out(
            task, config, recipe, stacked, lambda part: report("rollouts", begin + part * share)
        )
        rolled_out.update(zip(digests, episodes, strict=True))

    gathered = ReadOuts(task, recipe, [string], len(read_outs), hand_over)
    for update, read_out in read_outs.items():
        gathered.add(string, update, read_out)
    gathered.close()
    content = cell | {
        "stabilizers": [string],
        "riders": {string: describe_entry(string, recipe, cell["window"])},
        "checkpoints": gathered.checkpoints,
        "rows": make_rows(gathered.checkpoints, rolled_out, cell["starts"]),
        "read_off": {
            "every": saved.every,
            "misplaced": misplaced,
            "distance": _distance(run, cell, string, read_outs[recipe.updates]),
        },
    }
    files.write_record(PostHoc(cell["task"], cell["seed"], key, string).file(run), content)


def _distance(run: Path, cell: dict[str, Any], string: str, final: Params) -> float | None:
    """Return |read off - online| / |online - raw| of the final weights; None if not online."""
    if string not in cell["stabilizers"]:
        return None
    online, raw = (
        files.load_tensors(weights_file(run, cell["task"], s, cell["seed"]))[0]
        for s in (string, cell["raw"])
    )
    error = sum(float((final[k].double() - v.double()).square().sum()) for k, v in online.items())
    moved = sum(float((raw[k].double() - v.double()).square().sum()) for k, v in online.items())
    return (error / moved) ** 0.5 if moved else None
