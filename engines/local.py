"""Worker processes on this machine, one thread each.

A worker is a fresh interpreter. It reads jobs from standard input and answers with events, each a
line of JSON; results go to disk. So nothing is pickled, a user's script needs no ``__main__``
guard, and a worker that dies takes one job with it.
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
from typing import Any

from stab.engines.base import Event, Job
from stab.files import CannotWrite
from stab.recipe import load_object
from stab.registry import reason

FIRST = 4  # workers that are started before there is anything to do
BACKLOG = 2  # waiting parts per worker above which no job begins: they take room on disk


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    log: Path
    job: int = 0
    part: int = 0


class Workers:
    """The engine "local". Its first processes begin at once to import what they need.

    Args:
        target: ``module:function`` of what they do, see ``Engine``.
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

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Run jobs; yield events as they come. If it is closed early, it closes the workers.

        When a part fails, its job fails: parts that have not begun are dropped, and workers at the
        others are killed. Jobs begin in the given order and, while not too many of them wait,
        before parts: so there are parts left for all workers in the end.
        """
        waiting = deque(enumerate(jobs))
        parts: deque[tuple[int, int, Job]] = deque()
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
                    event = {"kind": "failed", "reason": _cause_of_death(worker), "transient": True}
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
                    # They would continue to write.
                    for other in [one for one in self.busy if one.job == job]:
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

    def _give(self, job: int, part: int, content: Job) -> None:
        while self.idle and self.idle[-1].process.poll() is not None:  # it died while idle
            self.idle.pop()
        worker = self.idle.pop() if self.idle else self._start()
        worker.job, worker.part = job, part
        self.busy.append(worker)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(content) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; the listener reports that

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
                cwd=self.folder.name,  # where libraries drop files such as MUJOCO_LOG.TXT
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
        finally:  # whatever happened: without this event, run would wait for ever
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
    """Serve as a worker: jobs from stdin, events to stdout, everything that prints to stderr."""
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

    # While there is nothing to do yet; an error is every job's reason. Importing makes objects that
    # stay: to look for garbage among them, now and later, would take a third of the time again.
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
            send(kind="failed", reason=reason(e), transient=isinstance(e, CannotWrite))
        else:
            send(kind="done")
