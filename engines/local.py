"""Where cells run: worker processes on this machine, one thread each. (On a cluster: ``ray_engine``.)

A worker is a fresh interpreter that reads one JSON job a line on standard input and answers with JSON events, one a
line; what a job computes lands on disk. So nothing is pickled, a user's script needs no ``__main__`` guard, and a worker
that dies takes one job with it.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stab.recipe import load_object
from stab.registry import reason

FIRST = 4  # workers that are started before there is anything to do
BACKLOG = 2  # parts a worker, above which no further job is begun: what waits takes room


@dataclass(frozen=True)
class Event:
    """What a job has to say.

    Attributes:
        job: index of the job.
        kind: "progress" (with ``phase`` and ``fraction``, of this part of the job), "done", or "failed" (with ``reason``).
        part: 0 for the job itself, 1, 2, ... for those that it asked for.
        died: whether it failed because its worker died, and not by an exception of its own.
    """

    job: int
    kind: str
    phase: str = ""
    fraction: float = 0.0
    reason: str = ""
    part: int = 0
    died: bool = False


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    log: Path
    job: int = 0
    part: int = 0


class Engine(Protocol):
    """Where jobs run: ``Workers`` on this machine, ``ray_engine.RayWorkers`` on a cluster. A context manager.

    Attributes:
        count: jobs at a time.
        where: the machines in words, as they are now; empty for this one.
    """

    count: int

    @property
    def where(self) -> str: ...

    def run(
        self, jobs: Sequence[dict[str, Any]], root: Path, folders: Sequence[str]
    ) -> Generator[Event]:
        """Run jobs; yield events as they come.

        Args:
            jobs: plain data; ``run`` is the folder they write into.
            root: of the datasets that they read.
            folders: these, in it.
        """

    def close(self) -> None:
        """End whatever still runs."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Worker processes, to be closed (a context manager). The first ones begin at once to import what they need.

    Args:
        target: ``module:function`` of what they do. The function takes a job and two callbacks: ``report(phase, fraction)``,
            and ``more(job)``, which asks for another job as a part of this one.
        count: of processes.
    """

    where = ""

    def __init__(self, target: str, count: int) -> None:
        self.target, self.count = target, count
        self.events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.busy: list[_Worker] = []
        self.folder = tempfile.TemporaryDirectory(prefix="stab-")
        self.idle = [self._start() for _ in range(min(count, FIRST))]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers, whatever they are doing."""
        for worker in [*self.busy, *self.idle]:
            _kill(worker)
        self.busy, self.idle = [], []
        self.folder.cleanup()

    def run(
        self, jobs: Sequence[dict[str, Any]], root: Path | None = None, folders: Sequence[str] = ()
    ) -> Generator[Event]:
        """Run jobs, as many at a time as there are workers; yield events as they come. Closed early, it closes the workers.

        ``root`` and ``folders`` say which datasets they read (another engine must bring them along; here they are).

        A job is "done" when it and all its parts are, and "failed" when one of them is; parts that have not begun are then
        dropped, and workers at its others are killed. Jobs begin in the given order and, while not too many of them wait,
        before parts: so there are parts left for all workers in the end.
        """
        waiting = deque(enumerate(jobs))
        parts: deque[tuple[int, int, dict[str, Any]]] = deque()
        asked, left = [0] * len(jobs), [1] * len(jobs)
        try:
            while waiting or parts or self.busy:
                while (waiting or parts) and len(self.busy) < self.count:
                    if waiting and len(parts) < BACKLOG * self.count:
                        job, content = waiting.popleft()
                        self._give(job, 0, content)
                    else:
                        self._give(*parts.popleft())
                worker, event = self.events.get()
                if worker not in self.busy:
                    continue
                job = worker.job
                if event is None:
                    self.busy.remove(worker)
                    event = {"kind": "failed", "reason": _cause_of_death(worker), "died": True}
                elif event["kind"] in ("done", "failed"):
                    self.busy.remove(worker)
                    self.idle.append(worker)
                if event["kind"] == "more":
                    asked[job] += 1
                    left[job] += 1
                    parts.append((job, asked[job], event["job"]))
                elif event["kind"] == "progress":
                    yield Event(job, part=worker.part, **event)
                elif event["kind"] == "failed":
                    left[job] = 0
                    parts = deque(part for part in parts if part[0] != job)
                    for other in [
                        one for one in self.busy if one.job == job
                    ]:  # it would go on writing
                        self.busy.remove(other)
                        _kill(other)
                    yield Event(job, part=worker.part, **event)
                else:
                    left[job] -= 1
                    if not left[job]:
                        yield Event(job, "done")
        finally:
            if self.busy:  # stopped early (Ctrl-C)
                self.close()

    def _give(self, job: int, part: int, content: dict[str, Any]) -> None:
        while self.idle and self.idle[-1].process.poll() is not None:  # it died with nothing to do
            self.idle.pop()
        worker = self.idle.pop() if self.idle else self._start()
        worker.job, worker.part = job, part
        self.busy.append(worker)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(content) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; the listener says so

    def _start(self) -> _Worker:
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = "1"
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        with tempfile.NamedTemporaryFile(
            "w", suffix=".log", dir=self.folder.name, delete=False
        ) as stderr:
            log = Path(stderr.name)
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"from stab.engines.local import serve; serve({self.target!r})",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                cwd=self.folder.name,  # what libraries drop into the current folder (MUJOCO_LOG.TXT) goes with it
                start_new_session=True,  # the terminal's Ctrl-C goes to the parent alone
            )
        worker = _Worker(process, log)
        threading.Thread(target=self._listen, args=[worker], daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        try:
            for line in worker.process.stdout:
                self.events.put((worker, json.loads(line)))
        finally:  # whatever it said: without this event, run would wait for ever
            worker.process.stdout.close()
            worker.process.wait()
            self.events.put((worker, None))


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()


def _cause_of_death(worker: _Worker) -> str:
    code = worker.process.returncode
    lines = worker.log.read_text(errors="replace").strip().splitlines()
    last = f"; its last words: {lines[-1]}" if lines else ""
    if code == -signal.SIGKILL:
        return f"the worker was killed (SIGKILL: out of memory?){last}"
    return f"the worker died with {f'signal {-code}' if code < 0 else f'exit code {code}'}{last}"


def serve(target: str) -> None:
    """Serve as a worker: jobs from standard input, events to standard output, everything that prints to stderr."""
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the parent is gone

    threading.Thread(target=read, daemon=True).start()

    def send(**event: Any) -> None:
        protocol.write(json.dumps(event) + "\n")

    # While there is nothing to do yet; what goes wrong is every job's reason. Importing makes objects that stay: looking
    # for garbage among them, now and again later, would take a third as long once more.
    gc.disable()
    try:
        function, broken = load_object(target), None
    except Exception as e:
        function, broken = None, e
    gc.freeze()
    gc.enable()
    while True:
        job = json.loads(jobs.get())
        try:
            if broken is not None:
                raise broken
            function(
                job,
                lambda phase, fraction: send(kind="progress", phase=phase, fraction=fraction),
                lambda part: send(kind="more", job=part),
            )
        except BaseException as e:
            traceback.print_exc()
            sys.stderr.flush()
            send(kind="failed", reason=reason(e))
        else:
            send(kind="done")
