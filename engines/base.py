"""What an engine is: the jobs it gets, the events it yields."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Job = dict[str, Any]  # plain data, see Engine
Report = Callable[[str, float], None]  # called with the phase and the fraction of it that is done
More = Callable[[Job], None]  # called with a job to be done as a part of the present one


@dataclass(frozen=True)
class Event:
    """News of a job.

    Attributes:
        job: index of the job.
        kind: "progress" (with ``phase`` and ``fraction``, of this part of the job), "done", or
            "failed" (with ``reason``).
        part: 0 for the job itself, 1, 2, ... for those that it asked for.
        transient: whether a failed job may succeed when repeated: its worker died, or the disk was
            full. What it wrote is kept then.
    """

    job: int
    kind: str
    phase: str = ""
    fraction: float = 0.0
    reason: str = ""
    part: int = 0
    transient: bool = False


class Engine(Protocol):
    """Where jobs run. A context manager, made by ``name(target, workers)``.

    An engine that accepts the address of a cluster has a parameter ``address`` as well. ``target``
    is ``module:function``; the function is called with a job and two callbacks:
    ``report(phase, fraction)``, whose arguments become a "progress" event, and ``more(job)``, which
    asks for another job as a part of this one. A job is done when it and all its parts are.

    A job is a dictionary of plain data. The engine may pass it to the function with another
    ``run``, and reads these keys of it:

    - ``run``: absolute path of the folder that the job reads from and writes into.
    - ``reads``: files and folders in it that the job reads, if they exist. On a machine without
      this folder, the engine brings these there, and brings back what the job wrote.
    - ``gpus``: how many GPUs it needs.
    - ``data``, ``datasets``: root of Minari's datasets, and the names of those that the job reads.

    Attributes:
        count: jobs at a time.
        where: the machines in words, as they are now; empty for this one.
    """

    count: int

    @property
    def where(self) -> str: ...

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Run jobs; yield events as they come, exactly one "done" or "failed" per job."""

    def close(self) -> None:
        """End whatever still runs."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
