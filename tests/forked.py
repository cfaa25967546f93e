"""Processes of stab forked from one that has imported its libraries: an import takes four seconds.

``python tests/forked.py SOCKET`` is the process that forks. A connection carries one request, with
the three standard streams, and stays open for the exit code. What runs in the child is what runs in
a process of its own: ``stab``'s command line, or a worker of the engine "local".
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WORKER = "from stab.engines.local import serve; serve("


class Forked:
    """A forked process; as ``subprocess.Popen``, as far as stab and its tests use that."""

    def __init__(
        self, server: str, command: list[str], env: dict[str, str], cwd: str, streams: list[int]
    ) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server)
        request = json.dumps({"command": command, "env": env, "cwd": cwd}).encode()
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


def run(
    server: str, arguments: list[str], env: dict[str, str], cwd: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``stab`` with these arguments, as subprocess.run with capture_output does."""
    with (
        open(os.devnull) as stdin,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        streams = [stream.fileno() for stream in (stdin, stdout, stderr)]
        process = Forked(server, ["stab", *arguments], env, cwd, streams)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read())
        return subprocess.CompletedProcess(["stab", *arguments], code, *texts)


class Popen:
    """Stands in for ``subprocess`` in ``stab.engines.local``: its workers are forked."""

    PIPE = subprocess.PIPE

    def __init__(self, server: str) -> None:
        self.server = server

    def Popen(self, command: list[str], *, stderr: Any, env: dict[str, str], cwd: str, **_: Any):
        """Start a worker."""
        (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
        streams = [read_in, write_out, stderr.fileno()]
        process = Forked(self.server, ["worker", command[-1]], env, cwd, streams)
        os.close(read_in)
        os.close(write_out)
        process.stdin = os.fdopen(write_in, "w")
        process.stdout = os.fdopen(read_out, "r")
        return process


def start(folder: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """Start the process that forks; return its socket and itself."""
    path = str(folder / "forks")
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, str(Path(__file__).resolve()), path]
    process = subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.PIPE)
    while not os.path.exists(path):
        if process.poll() is not None:
            raise RuntimeError("the process that forks did not start")
        time.sleep(0.05)
    return path, process


def _serve(path: str) -> None:
    sys.path.remove(str(Path(__file__).resolve().parent))
    for name in (
        "torch._dynamo", "minari", "mujoco", "h5py", "rich.progress", "jinja2", "torch_ema",
        "torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg", "gymnasium.envs.mujoco.hopper_v5", "stab.cli.main",
        "stab.run.worker", "stab.tasks.control.locomotion", "stab.engines.local",
    ):  # fmt: skip
        __import__(name)
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
    os.chdir(content["cwd"])
    os.environ.clear()
    os.environ.update(content["env"])
    added = [part for part in content["env"].get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = dict.fromkeys([*added, *sys.path])
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

            local.subprocess = Popen(path)  # type: ignore[assignment]
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
