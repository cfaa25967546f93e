"""Where cells run, on a cluster: each is a task of Ray, which places it, retries it elsewhere, and brings back its files."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from stab import files
from stab.engines.local import Event
from stab.recipe import load_object
from stab.registry import StabError, reason

RETRIES = 3  # of a cell whose process or node died
PAUSE = 0.5  # seconds between two reports of a cell
REFRESH = 2.0  # seconds between two looks at the cluster

Files = dict[str, bytes]  # by their path within a folder


class RayWorkers:
    """A Ray cluster, to be left (a context manager).

    Nodes need the same packages installed, nothing else: datasets travel once to each node, through Ray's object store, and
    a cell works in a folder of its own there, whose files come back when it ends.

    Args:
        target: as for ``engine.Workers``; a cell's parts run one after the other, in its own task.
        address: of the cluster, ``auto`` or HOST:PORT; None starts a Ray of its own on this machine.
        count: cores of a Ray of its own.

    Raises StabError when Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, target: str, address: str | None, count: int) -> None:
        try:
            import ray
        except ImportError as e:
            raise StabError("--engine ray needs Ray: pip install 'stab-gva[ray]'") from e
        self.target = target
        self.ray: Any = ray
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # Ray warns of a change to come otherwise
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

    def run(
        self, jobs: Sequence[dict[str, Any]], root: Path, folders: Sequence[str]
    ) -> Generator[Event]:
        """Run jobs, which write into the folder ``job["run"]``; yield events as they come.

        Args:
            root: of the Minari datasets that jobs read.
            folders: the datasets, in it.
        """
        ray = self.ray
        data = _read(root, folders)
        name = hashlib.sha256(
            repr([(path, hashlib.sha256(data[path]).hexdigest()) for path in data]).encode()
        )
        shared = [
            name.hexdigest()[:16],
            ray.put(data),
        ]  # in a list, or Ray would fetch it for every task
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        remote = ray.remote(_run)
        waiting = {}
        for index, job in enumerate(jobs):
            before = _read(Path(job["run"]), [job["parts"]])  # what an earlier session left of it
            task = remote.options(num_cpus=1, num_gpus=job["gpus"], max_retries=RETRIES)
            waiting[task.remote(self.target, job, index, before, shared, board)] = index
        del data
        while waiting:
            try:
                ended, _ = ray.wait(list(waiting), timeout=PAUSE)
                said = ray.get(board.take.remote())
            except ray.exceptions.RayError as e:
                raise StabError(
                    f"the Ray cluster was lost ({_first_line(e)}); go on with --resume"
                ) from e
            yield from (
                Event(*one) for one in said if one[0] in waiting.values()
            )  # not what is over already
            for task in ended:
                index = waiting.pop(task)
                try:
                    why, files = ray.get(task)
                except ray.exceptions.RayError as e:
                    yield Event(
                        index,
                        "failed",
                        reason=f"Ray gave up after {RETRIES} retries: {_first_line(e)}",
                        died=True,
                    )
                    continue
                run = Path(jobs[index]["run"])
                for path in sorted(
                    files, key=lambda path: path.endswith("/trained.json")
                ):  # says that all is there
                    _write(run / path, files[path])
                yield Event(index, "failed", reason=why) if why else Event(index, "done")


def _reach(address: str) -> None:
    """Raise StabError when nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon and address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as e:
        raise StabError(
            f"no Ray cluster at {address}: {reason(e)}; expected auto or HOST:PORT, as `ray status` says"
        ) from e


class _Board:
    """An actor on which tasks leave what they have to say."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def put(self, *event: Any) -> None:
        self.said.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said


def _run(
    target: str, job: dict[str, Any], index: int, before: Files, shared: list[Any], board: Any
) -> tuple[str, Files]:
    """Do a job and all its parts, on a node; return why it failed, or nothing, and the files that it wrote."""
    last = 0.0

    with tempfile.TemporaryDirectory(prefix="stab-") as folder:
        for path, found in before.items():
            _write(Path(folder) / path, found)
        waiting = deque([(0, {**job, "run": folder})])
        asked = 0

        def more(part: dict[str, Any]) -> None:
            nonlocal asked
            asked += 1
            waiting.append((asked, part))

        try:
            os.environ["MINARI_DATASETS_PATH"] = str(_datasets(*shared))
            function = load_object(target)
            while waiting:
                part, content = waiting.popleft()

                def report(phase: str, fraction: float, part: int = part) -> None:
                    nonlocal last
                    if time.monotonic() - last > PAUSE or fraction == 1:
                        last = time.monotonic()
                        board.put.remote(index, "progress", phase, fraction, "", part)

                with redirect_stdout(
                    sys.stderr
                ):  # what plug-ins print goes to the log of Ray's worker
                    function(content, report, more)
        except Exception as e:
            # SystemExit passes: with it Ray ends a task whose node is drained, and runs it again elsewhere.
            return reason(e), {}
        return "", _read(Path(folder), ["."])


def _datasets(name: str, data: Any) -> Path:
    """Return a folder of this node that holds the datasets, fetching them where it does not yet."""
    import ray
    from filelock import FileLock

    folder = (
        Path(tempfile.gettempdir())
        / f"stab-data-{os.getuid() if hasattr(os, 'getuid') else 0}"
        / name
    )
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


def _read(root: Path, folders: Sequence[str]) -> Files:
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _write(path: Path, content: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
