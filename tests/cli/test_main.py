"""The last resorts of every command: one line and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stab.cli import main, stopping
from stab.cli.stopping import Stopped, stoppable
from stab.registry import StabError

STAB = str(Path(sys.executable).parent / "stab")


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stab", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    return stopped.value.code


@pytest.fixture
def failing(monkeypatch):
    """``stab report`` raises what it is given."""

    def fail(error):
        def read(_):
            raise error

        monkeypatch.setattr("stab.reports.results.read", read)

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("x\x1b[31m" + "y" * 3000), 3, "stab: unexpected KeyError: 'x"),
        (RecursionError("deep"), 3, "stab: unexpected RecursionError: deep (read, "),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), 3, "not enough memory for 7.28 TiB"),
        (OSError(28, "No space left on device"), 1, "cannot write the output: No space left on device"),
        (OSError(5, "Input/output error", "/data/x"), 3, "Input/output error: '/data/x'"),
        (StabError("not that\x1b[2J way"), 2, "stab: not that"),
        (Stopped(signal.SIGTERM), 143, "stab: ended by SIGTERM"),
        (Stopped(signal.SIGHUP), 129, "stab: ended by SIGHUP"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_one_line_and_a_code(monkeypatch, capfd, failing, error, code, said):
    failing(error)
    assert run_main(monkeypatch, "report", "run") == code
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("stab: ")
    assert said in err
    assert "\x1b" not in err
    assert len(err) < 520


def test_debug_shows_the_trace(monkeypatch, failing):
    failing(KeyError("x"))
    monkeypatch.setattr(sys, "argv", ["stab", "--debug", "report", "run"])
    with pytest.raises(KeyError):
        main.main()


def test_an_ascii_terminal_is_written_to(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run([STAB, "list", "tasks"], env=env, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"hopper" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_that_cannot_be_written(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [STAB, "list"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        assert done.returncode == 1
        assert done.stderr == "stab: cannot write the output: No space left on device\n"
        assert (
            subprocess.run([STAB, "list"], stdout=full, stderr=full, cwd=tmp_path).returncode == 1
        )


def test_a_removed_current_folder(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir '{gone}'; '{STAB}' compare -t cliff --all --quick"
    done = subprocess.run(["sh", "-c", script], cwd=gone, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "stab: the current folder was removed: change to another\n"


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_the_first_signal_raises_and_later_ones_do_not(number):
    def stopped_twice():
        with stoppable():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)  # while the first is still being dealt with

    with pytest.raises(Stopped) as caught:
        stopped_twice()
    assert stopping.exit_code(caught.value) == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
