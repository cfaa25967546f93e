"""Jobs on a Ray cluster: Ray places each, retries it elsewhere, and brings back its files."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from stab.engines.base import Event, Job
from stab.files import CannotWrite, replacing
from stab.recipe import load_object
from stab.registry import StabError, reason

RETRIES = 3  # of a cell whose process or node died
PAUSE = 0.5  # seconds between two reports of a cell
REFRESH = 2.0  # seconds between two looks at the cluster

Files = dict[str, bytes]  # by their path within a folder


class RayWorkers:
    """The engine "ray".

    Nodes need the same packages installed, nothing else: datasets travel once to each node,
    through Ray's object store. A job works in a folder of its own there, whose files come back.

    Args:
        target: see ``Engine``; the parts of a job run one after the other, in its own Ray task.
        count: cores of a Ray of its own.
        address: of the cluster, ``auto`` or HOST:PORT; None starts a Ray of its own here.

    Raises StabError when Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, target: str, count: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as e:
            raise StabError("--engine ray needs Ray: pip install 'stab-gva[ray]'") from e
        self.target = target
        self.ray: Any = ray
        # Otherwise Ray warns of a change to come.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is not None:
            _reach(address)
        own = {"num_cpus": count, "include_dashboard": False} if address is None else {}
        try:
            self.ray.init(
                address or "local", **own, log_to_driver=False, logging_level=logging.ERROR
            )
        except Exception as e:  # Ray raises plain ones, too
            raise StabError(f"no Ray cluster at {address or 'this machine'}: {reason(e)}") from e
        self.count = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self._seen, self._where = 0.0, ""

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; what still runs there for this process is ended."""
        self.ray.shutdown()

    @property
    def where(self) -> str:
        """The cluster, in words, as it was a few seconds ago at most."""
        if time.monotonic() - self._seen > REFRESH:
            alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            cores = int(sum(resources.get("CPU", 0) for resources in alive))
            self._where = (
                f"Ray: {len(alive)} {'node' if len(alive) == 1 else 'nodes'}, {cores} cores"
            )
            self._seen = time.monotonic()
        return self._where

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Run jobs; yield events as they come."""
        ray = self.ray
        data: Files = {}
        for root, names in {(job["data"], tuple(job["datasets"])) for job in jobs}:
            data |= _read(Path(root), names)
        digests = [(path, hashlib.sha256(data[path]).hexdigest()) for path in sorted(data)]
        name = hashlib.sha256(repr(digests).encode()).hexdigest()[:16]
        shared = [name, ray.put(data)]  # in a list, or Ray would fetch it for every task
        del data
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        remote = ray.remote(_run)
        waiting = {}
        for index, job in enumerate(jobs):
            inputs = _read(Path(job["run"]), job["reads"])
            task = remote.options(num_cpus=1, num_gpus=job["gpus"], max_retries=RETRIES)
            waiting[task.remote(self.target, job, index, inputs, shared, board)] = index
        while waiting:
            try:
                ended, _ = ray.wait(list(waiting), timeout=PAUSE)
                news = ray.get(board.take.remote())
            except ray.exceptions.RayError as e:
                raise StabError(
                    f"the Ray cluster was lost ({_first_line(e)}); resume with --resume"
                ) from e
            # Not of jobs that have ended.
            yield from (Event(*one) for one in news if one[0] in waiting.values())
            for task in ended:
                index = waiting.pop(task)
                try:
                    failure, outputs = ray.get(task)
                except ray.exceptions.RayError as e:
                    why = f"Ray gave up after {RETRIES} retries: {_first_line(e)}"
                    yield Event(index, "failed", reason=why, transient=True)
                    continue
                # Last the file that declares the others complete.
                for path in sorted(outputs, key=lambda path: path.endswith("/trained.json")):
                    _write(Path(jobs[index]["run"]) / path, outputs[path])
                yield Event(index, "failed", **failure) if failure else Event(index, "done")


def _reach(address: str) -> None:
    """Raise StabError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon and address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as e:
        raise StabError(
            f"no Ray cluster at {address}: {reason(e)}; expected auto or HOST:PORT, as `ray status`"
            " shows it"
        ) from e


class _Board:
    """An actor that collects the events of running tasks."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def put(self, *event: Any) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        events, self.events = self.events, []
        return events


def _run(
    target: str, job: Job, index: int, inputs: Files, shared: list[Any], board: Any
) -> tuple[dict[str, Any], Files]:
    """Do a job and all its parts on a node; return why it failed, if so, and the files it wrote."""
    last = 0.0

    with tempfile.TemporaryDirectory(prefix="stab-") as folder:
        for path, content in inputs.items():
            _write(Path(folder) / path, content)
        parts = [{**job, "run": folder}]  # it grows
        try:
            os.environ["MINARI_DATASETS_PATH"] = str(_datasets(*shared))
            function = load_object(target)
            for number, part in enumerate(parts):

                def report(phase: str, fraction: float, number: int = number) -> None:
                    nonlocal last
                    if time.monotonic() - last > PAUSE or fraction == 1:
                        last = time.monotonic()
                        board.put.remote(index, "progress", phase, fraction, "", number)

                with redirect_stdout(sys.stderr):  # plug-ins print to the log of Ray's worker
                    function(part, report, parts.append)
        except Exception as e:
            # Not SystemExit: Ray ends a task so if its node is drained, and repeats it elsewhere.
            return {"reason": reason(e), "transient": isinstance(e, CannotWrite)}, {}
        outputs = _read(Path(folder), ["."]).items()
        return {}, {path: content for path, content in outputs if inputs.get(path) != content}


def _datasets(name: str, data: Any) -> Path:
    """Return a folder of this node that holds the datasets; fetch them if it does not exist."""
    import ray
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"stab-data-{user}" / name
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (
        folder.parent.is_symlink() or folder.parent.stat().st_uid != os.getuid()
    ):
        raise StabError(
            f"{folder.parent} is somebody else's: delete it, or set TMPDIR on the nodes"
        )
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                for path, content in ray.get(data).items():
                    _write(Path(temporary) / "all" / path, content)
                os.rename(Path(temporary) / "all", folder)
    return folder


def _read(root: Path, names: Sequence[str]) -> Files:
    """Read files, and all files in folders; hidden ones are left out."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for name in names
        for path in sorted([root / name, *(root / name).rglob("*")])
        if path.is_file() and not path.name.startswith(".")
    }


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
