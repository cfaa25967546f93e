"""One process at a time in a run folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from stab import files
from stab.registry import StabError

LOCK, HOLDER = (
    ".lock",
    ".holder.json",
)  # the system holds the first, which stays; the second says who does


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run folder, making it where it is missing, until the block or the process ends, however it ends.

    Raises StabError when another process holds it, naming that process, or the folder cannot be made.
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
