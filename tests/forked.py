"""Processes of stab forked from one that has imported its libraries: an import takes four seconds.

``python tests/forked.py SOCKET`` is the process that forks. A connection carries one request, with
the three standard streams, and stays open for the exit code. What runs in the child is what runs in
a process of its own: ``stab``'s command line, or a worker of the engine "local".
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Sizes at which a whole comparison takes seconds.
TINY = (
    "train.policy=mlp:width=32",
    "train.updates=40",
    "eval.checkpoint_every=10",
    "eval.starts=2",
    "eval.horizon=60",
)
WORKER = "from stab.engines.local import serve; serve("


class Forked:
    """A forked process; as ``subprocess.Popen``, as far as stab and its tests use that."""

    def __init__(
        self,
        server: str,
        command: list[str],
        env: dict[str, str],
        cwd: str,
        streams: list[int],
        largest: int | None = None,
        draw: bool = False,
    ) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server)
        request = json.dumps(
            {
                "command": command,
                "env": env,
                "cwd": cwd,
                "draw": draw,
                "largest": resource.getrlimit(resource.RLIMIT_FSIZE)[0]
                if largest is None
                else largest,
            }
        ).encode()
        socket.send_fds(self.connection, [len(request).to_bytes(8, "big")], streams)
        self.connection.sendall(request)
        self.pid = self._answer()
        self.returncode: int | None = None
        self.lock = threading.Lock()
        self.stdin: Any = None
        self.stdout: Any = None

    def _answer(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            line += self.connection.recv(1) or b" -9\n"
        return int(line)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        with self.lock:
            if self.returncode is None:
                if not select.select([self.connection], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("stab", timeout or 0)
                self.returncode = self._answer()
                self.connection.close()
            return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.lock.locked():
            return self.returncode
        try:
            return self.wait(1e-3)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Kill it if it runs."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def stab(
    *arguments: object,
    cwd: object = None,
    env: dict[str, str] | None = None,
    timeout: float = 180,
    largest: int | None = None,
    draw: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``stab`` as a user would, at 80 columns.

    Args:
        largest: bytes of the largest file it may write.
        draw: whether figures are written; they are half of the time of a small comparison, and have
            tests of their own.
    """
    command = ["stab", *map(str, arguments)]
    where = ({**os.environ, "COLUMNS": "80", **(env or {})}, str(cwd or os.getcwd()))
    (out, write_out), (err, write_err) = os.pipe(), os.pipe()
    with open(os.devnull) as stdin, ThreadPoolExecutor(2) as readers:
        streams = [stdin.fileno(), write_out, write_err]
        process = Forked(server(), command, *where, streams, largest, draw)
        os.close(write_out)
        os.close(write_err)
        texts = [readers.submit(_read, end) for end in (out, err)]
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, code, *(text.result() for text in texts))


def _read(end: int) -> str:
    with os.fdopen(end) as stream:
        return stream.read()


def popen(*arguments: object) -> Forked:
    """Start ``stab``, whose output is lost."""
    with open(os.devnull, "r+") as nothing:
        command = ["stab", *map(str, arguments)]
        streams = [nothing.fileno()] * 3
        return Forked(server(), command, dict(os.environ), os.getcwd(), streams)


class Popen:
    """Stands in for ``subprocess`` in ``stab.engines.local``: its workers are forked."""

    PIPE = subprocess.PIPE

    def Popen(self, command: list[str], *, stderr: Any, env: dict[str, str], cwd: str, **_: Any):
        """Start a worker."""
        (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
        streams = [read_in, write_out, stderr.fileno()]
        process = Forked(server(), ["worker", command[-1]], env, cwd, streams)
        os.close(read_in)
        os.close(write_out)
        process.stdin = os.fdopen(write_in, "w")
        process.stdout = os.fdopen(read_out, "r")
        return process


_running: list[subprocess.Popen[bytes]] = []


def server() -> str:
    """Return the socket of the process that forks, which starts at its first use."""
    if "STAB_FORKS" not in os.environ:
        os.environ["STAB_FORKS"] = _start(Path(tempfile.mkdtemp(prefix="forks")))
    return os.environ["STAB_FORKS"]


def stop() -> None:
    """End the process that forks."""
    path = os.environ.pop("STAB_FORKS", None)
    for process in _running:
        process.kill()
        process.wait()
    if path:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def _start(folder: Path) -> str:
    path = str(folder / "forks")
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, str(Path(__file__).resolve()), path]
    process = subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.PIPE)
    while not os.path.exists(path):
        if process.poll() is not None:
            raise RuntimeError("the process that forks did not start")
        time.sleep(0.05)
    _running.append(process)
    return path


def _serve(path: str) -> None:
    sys.path.remove(str(Path(__file__).resolve().parent))
    from stab.tasks import speed

    for name in (
        "torch._dynamo", "minari", "mujoco", "h5py", "rich.progress", "jinja2", "torch_ema",
        "torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg", "gymnasium.envs.mujoco.hopper_v5", "stab.cli.main",
        "stab.run.worker", "stab.tasks.control.locomotion", "stab.engines.local",
        "stab.reports.averages", "stab.reports.merge", "stab.reports.page", "stab.reports.schema",
        "stab.reports.tensorboard", "stab.checks", "scipy.special",
    ):  # fmt: skip
        __import__(name)
    _draw()
    measure = speed.seconds  # for the plan's estimate; tests need no exact one
    speed.seconds = lambda function, budget: measure(function, budget / 20)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.tmp")
    listener.listen(64)
    os.rename(f"{path}.tmp", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection, path)
        connection.close()


def _draw() -> None:
    """Draw something: Matplotlib's fonts are read at their first use."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().set(title="a", xlabel="b")
    for kind in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=kind)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _handle(connection: socket.socket, path: str) -> None:
    """Fork the child of a request, and report its pid and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size, streams, *_ = socket.recv_fds(connection, 8, 3)
    length, request = int.from_bytes(size, "big"), b""
    while len(request) < length:
        request += connection.recv(length - len(request))
    content = json.loads(request)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _child(content, streams, path)
    for stream in streams:
        os.close(stream)
    try:
        connection.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code}\n".encode())
    finally:
        os._exit(0)


def _child(content: dict[str, Any], streams: list[int], path: str) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_FSIZE, (content["largest"], resource.RLIM_INFINITY))
    os.chdir(content["cwd"])
    os.environ.clear()
    os.environ.update(content["env"])
    added = [part for part in content["env"].get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = dict.fromkeys([*added, *sys.path])
    if any(os.path.exists(f"{part}/sitecustomize.py") for part in added):
        sys.modules.pop("sitecustomize", None)  # what runs first in a process of its own
        __import__("sitecustomize")
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    kind, *arguments = content["command"]
    code: Any = 1
    try:
        if kind == "worker":
            from stab.engines.local import serve

            serve(eval(arguments[0].removeprefix(WORKER).removesuffix(")")))
        else:
            from stab.cli.main import main
            from stab.engines import local
            from stab.reports import figures

            if not content["draw"]:
                figures.save = lambda drawn, folder: None
            os.environ["STAB_FORKS"] = path
            local.subprocess = Popen()  # type: ignore[assignment]
            sys.argv = ["stab", *arguments]
            main()
        code = 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        if isinstance(code, str):
            print(code, file=sys.stderr)
        threading._shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
