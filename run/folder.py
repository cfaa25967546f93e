"""A run folder: its paths, its lock, and the questions asked before it is used."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from stab import files
from stab.config import LEAST_SEEDS, Config, flat, recorded
from stab.engines.base import cores
from stab.registry import NAME, StabError
from stab.run import rows
from stab.stabilizers.strings import slug

# The system holds the lock file, which stays; the other names the process that holds it.
LOCK, HOLDER = ".lock", ".holder.json"
# fmt: off
RUN_FILES = {
    "config.yaml", "run.json", "skipped.json", "cells", "timings", "failures", "weights", "figures",
    "tensorboard", "leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "parts",
    "snapshots", "averages", "averages.json", "averages.csv", "averages.md", LOCK, HOLDER,
}
# fmt: on


def default_out(config: Config) -> Path:
    """Path of a new run folder: a dated one under ``runs/``."""
    kind = "-smoke" if config.smoke else ""
    return Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{'-'.join(config.tasks)}{kind}"


def cell_file(run: Path, key: str) -> Path:
    """Path of a finished cell."""
    return run / "cells" / f"{key}.json"


def timings_file(run: Path, key: str) -> Path:
    """Path of a finished cell's times."""
    return run / "timings" / f"{key}.json"


def failure_file(run: Path, key: str, string: str | None = None) -> Path:
    """Path of the reason why a cell, or one entry of it, failed."""
    return run / "failures" / f"{key}{f'--{slug(string)}' if string else ''}.json"


def weights_file(run: Path, task: str, string: str, seed: int) -> Path:
    """Path of the final weights of an entry."""
    return run / "weights" / f"{task}-{slug(string)}-seed{seed}.safetensors"


def snapshot_file(run: Path, key: str) -> Path:
    """Path of a cell's snapshots."""
    return run / "snapshots" / f"{key}.safetensors"


def shards_folder(run: Path, key: str) -> Path:
    """Path of the shards of a cell that is not finished."""
    return run / "parts" / key


def read_outs_file(shards: Path, number: int) -> Path:
    """Path of the read-outs of a shard, from 1 on."""
    return shards / f"{number}.safetensors"


def returns_file(shards: Path, number: int) -> Path:
    """Path of the results of a shard's rollouts."""
    return shards / f"{number}.json"


def state_file(shards: Path) -> Path:
    """Path of the state of unfinished training."""
    return shards / "state.safetensors"


def trained_file(shards: Path) -> Path:
    """Path of everything but the rows, once training is over."""
    return shards / "trained.json"


def clear_shards(run: Path, key: str) -> None:
    """Delete a cell's shards; index files first, so that a half-deleted cell is never resumed."""
    shards = shards_folder(run, key)
    for path in (trained_file(shards), state_file(shards)):
        path.unlink(missing_ok=True)
    shutil.rmtree(shards, ignore_errors=True)


def settings(run: Path) -> Config:
    """Return the settings of a run folder. Raises StabError if it is not one."""
    path = run / "config.yaml"
    if not _exists(path):
        raise StabError(f"{run} is not a run folder: it has no config.yaml")
    config = recorded(path)
    if not config.tasks or "none" not in config.stabilizers:
        raise StabError(
            f"{path} names no tasks, or not the stabilizer 'none': it is not as stab wrote it"
        )
    for task in config.tasks:
        if not NAME.fullmatch(task):  # it becomes a part of file names
            raise StabError(f"{path}: {task!r} is not the name of a task")
    return config


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run folder, making it if it is missing, until the block or the process ends.

    Raises StabError when another process holds it, naming that process, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / LOCK)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise StabError(
            f"{run} is in use by {_holder(run)}: wait until it ends, or choose another --out"
        ) from None
    except (OSError, NotImplementedError) as e:
        raise StabError(
            f"cannot write to {run}: {getattr(e, 'strerror', None) or e}; choose another --out"
        ) from e
    try:
        since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        files.write_json(
            run / HOLDER, {"process": os.getpid(), "machine": platform.node(), "since": since}
        )
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(run: Path) -> str:
    try:
        holder = files.read_json(run / HOLDER)
        return f"process {holder['process']} on {holder['machine']} since {holder['since']}"
    except (StabError, KeyError, TypeError):  # it has only just begun
        return "another process"


def check_folder(
    run: Path, config: Config, resume: bool = False, overwrite: bool = False
) -> Config:
    """Check, writing nothing, that a run folder can be used.

    Return the settings; on resume, those of the folder and the new ones together. Raises StabError
    when the folder exists and neither flag is given, when it cannot be written, or when resuming
    would mix settings, naming those that differ.
    """
    _check_writable(run)
    if not run.exists() or all(
        path.name in (LOCK, HOLDER) or _is_left_over(path) for path in run.iterdir()
    ):
        return config
    if not (resume or overwrite):
        raise StabError(
            f"{run} already exists: add --resume to continue it, --overwrite to start again, or"
            " choose another --out"
        )
    if not (run / "config.yaml").exists():
        raise StabError(f"{run} is not a run folder (no config.yaml): choose another --out")
    before = recorded(run / "config.yaml")
    if overwrite:
        _check_own(run)
        return config
    _check_readable(run)
    return _join(run, before, config)


def _exists(path: Path) -> bool:
    """Whether there is a file or folder. Raises StabError for what cannot be a path."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:  # too long; holds a NUL
        why = getattr(e, "strerror", None) or e
        raise StabError(f"{str(path)!r} cannot be used as a path: {why}") from e
    return True


def _check_writable(run: Path) -> None:
    _exists(run)
    parent = next(p for p in (run.absolute(), *run.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "read-only" if parent.is_dir() else "not a folder"
        raise StabError(f"cannot write to {run}: {parent} is {why}; choose another --out")


def _check_own(run: Path) -> None:
    """Refuse to delete what stab did not write."""
    foreign = sorted(
        path.name
        for path in run.iterdir()
        if path.name not in RUN_FILES and not _is_left_over(path)
    )
    if foreign or run.is_symlink():
        what = f"holds {foreign[0]!r}" if foreign else "is a link"
        raise StabError(
            f"--overwrite: {run} {what}, which is not stab's: delete it yourself or choose another"
            " --out"
        )


def _check_readable(run: Path) -> None:
    """Refuse to resume what this version cannot read later."""
    for cell in rows.cells(run, skip_damaged=True):
        if not cell_file(run, rows.cell_key(cell)).exists():
            raise StabError(
                f"--resume: {run} was made by another version of stab: choose another --out"
            )
    with suppress(files.Damaged):
        about(run)


def _join(run: Path, before: Config, config: Config) -> Config:
    """Return old and new settings together. Raises StabError if rows would not be comparable."""
    skipped = {string for _, string in rows.skipped(run)}
    old, new = _deciding(before), _deciding(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in differing)
        raise StabError(
            f"--resume: {run} was made with other settings ({changes}): choose another --out"
        )
    strings = [*(s for s in before.stabilizers if s not in skipped), *config.stabilizers]
    # Scores that were shown were looked at; so are those of seeds that are still to come.
    shown = before.until_decided or (run / "leaderboard.json").exists()
    more = [seeds for seeds in config.tests if seeds > before.seeds]
    tests = [*before.looks, *([before.seeds] if shown or not more else []), *more]
    return dataclasses.replace(
        config,
        tasks=tuple(dict.fromkeys(before.tasks + config.tasks)),
        stabilizers=tuple(dict.fromkeys(strings)),
        seeds=tests[-1],
        looks=tuple(seeds for seeds in tests[:-1] if seeds >= LEAST_SEEDS),
        until_decided=before.until_decided or config.until_decided,
    )


def _deciding(config: Config) -> dict[str, str]:
    """Return what must be equal for two runs to share a folder, by dotted key."""
    joined = ("tasks", "stabilizers", "seeds", "looks", "until_decided")
    shared = {key: value for key, value in config.to_dict().items() if key not in joined}
    return {key: repr(value) for key, value in flat(shared).items()}


def _is_left_over(path: Path) -> bool:
    """Whether a killed process left this: a file or folder under a temporary name."""
    return re.fullmatch(r"\.tmp\w{6}|\..+-\w{8}", path.name) is not None


def open_folder(
    run: Path, config: Config, skipped: Mapping[tuple[str, str], str], overwrite: bool = False
) -> None:
    """Write settings, and the plan's skipped pairs, into a run folder that this process holds.

    ``overwrite`` deletes everything else in it first.
    """
    from omegaconf import OmegaConf

    run.mkdir(parents=True, exist_ok=True)
    try:
        # config.yaml last: while it exists, the rest is recognised as a run folder.
        for path in sorted(run.iterdir(), key=lambda path: path.name == "config.yaml"):
            if _is_left_over(path) or (overwrite and path.name not in (LOCK, HOLDER)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in ("cells", "timings", "weights", "failures", "snapshots"):
            for path in filter(_is_left_over, (run / folder).glob(".*")):
                path.unlink()
    except OSError as e:
        raise StabError(f"cannot clear {run}: {e.strerror or e}") from e
    text = OmegaConf.to_yaml(OmegaConf.create(config.to_dict()))
    files.write_record_text(run / "config.yaml", text)
    pairs = [{"task": t, "stabilizer": s, "reason": why} for (t, s), why in skipped.items()]
    files.write_record(run / "skipped.json", {"skipped": pairs})


def about(run: Path) -> dict[str, Any]:
    """Return how a run was made; nothing if it has not come to an end yet."""
    path = run / "run.json"
    found: dict[str, Any] = rows.read(path, rows.ABOUT, "record") if path.exists() else {}
    return found


def write_run_info(run: Path, command: Sequence[str], seconds: float) -> None:
    """Record how the run was made: the command, when, on what, and the time of all sessions."""
    before = 0.0
    with suppress(files.Damaged):
        before = about(run).get("seconds", 0.0)
    info: dict[str, Any] = {
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "created": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
        "seconds": round(before + seconds, 1),
        "cores": cores(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cells": sorted(path.stem for path in (run / "cells").glob("*.json")),
    }
    files.write_record(run / "run.json", info)
