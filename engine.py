"""Where cells run: worker processes on this machine, one thread each.

A worker is a fresh interpreter that reads one JSON job a line on standard input and answers with JSON events, one a
line; what a job computes lands on disk. So nothing is pickled, a user's script needs no ``__main__`` guard, and a worker
that dies takes one job with it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stab.recipe import load_object


@dataclass(frozen=True)
class Event:
    """What a job has to say.

    Attributes:
        job: index of the job.
        kind: "progress" (with ``phase`` and ``fraction`` of the job), "done", or "failed" (with ``reason``).
    """

    job: int
    kind: str
    phase: str = ""
    fraction: float = 0.0
    reason: str = ""


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    log: Path
    job: int | None = None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(target: str, jobs: Sequence[dict[str, Any]], workers: int) -> Generator[Event]:
    """Run ``target`` (``module:function`` of a job and a callback) on every job; yield events as they come.

    Jobs start in the given order, as many at a time as there are workers. When the consumer stops early (Ctrl-C), the
    workers are killed at once.
    """
    events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    waiting = list(range(len(jobs)))[::-1]
    busy: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="stab-") as folder:
        try:
            while waiting or busy:
                while waiting and len(busy) < min(workers, len(jobs)):
                    busy.append(_start(target, Path(folder), events))
                    _give(busy[-1], waiting.pop(), jobs)
                worker, event = events.get()
                if worker not in busy:
                    continue
                assert worker.job is not None
                if event is None:
                    busy.remove(worker)
                    yield Event(worker.job, "failed", reason=_cause_of_death(worker))
                    continue
                yield Event(worker.job, **event)
                if event["kind"] != "progress":
                    if waiting:
                        _give(worker, waiting.pop(), jobs)
                    else:
                        busy.remove(worker)
                        _kill(worker)
        finally:
            for worker in busy:
                _kill(worker)


def _start(target: str, folder: Path, events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> _Worker:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    with tempfile.NamedTemporaryFile("w", suffix=".log", dir=folder, delete=False) as stderr:
        log = Path(stderr.name)
        process = subprocess.Popen(
            [sys.executable, "-c", f"from stab.engine import serve; serve({target!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            cwd=folder,  # what libraries drop into the current folder (MUJOCO_LOG.TXT) goes with it
            start_new_session=True,  # the terminal's Ctrl-C goes to the parent alone
        )
    worker = _Worker(process, log)

    def listen() -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                events.put((worker, json.loads(line)))
        finally:  # whatever it said: without this event, run would wait for ever
            process.stdout.close()
            process.wait()
            events.put((worker, None))

    threading.Thread(target=listen, daemon=True).start()
    return worker


def _give(worker: _Worker, job: int, jobs: Sequence[dict[str, Any]]) -> None:
    worker.job = job
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(json.dumps(jobs[job]) + "\n")
        worker.process.stdin.flush()
    except BrokenPipeError:
        pass  # it has died; the listener says so


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

    function: Callable[..., None] | None = None
    while True:
        job = json.loads(jobs.get())
        try:
            function = function or load_object(target)
            function(job, lambda phase, fraction: send(kind="progress", phase=phase, fraction=fraction))
        except BaseException as e:
            traceback.print_exc()
            sys.stderr.flush()
            reason = " ".join(str(e).split())
            send(kind="failed", reason=f"{type(e).__name__}: {reason}" if reason else type(e).__name__)
        else:
            send(kind="done")
