"""Signals that ask a command to end: preemption (SIGTERM), a closed terminal (SIGHUP), Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """The process was asked to end; raised in the main thread, as KeyboardInterrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


INTERRUPTIONS = (KeyboardInterrupt, Stopped)


def exit_code(interruption: BaseException) -> int:
    """Return 128 + the signal's number, as shells do: Ctrl-C 130, SIGTERM 143, SIGHUP 129."""
    return 128 + (interruption.number if isinstance(interruption, Stopped) else signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped in the block at the first SIGTERM or SIGHUP; further ones change nothing.

    A signal that is ignored already (nohup) stays ignored.
    """
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def stop(number: int, _: Any) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        if number != signal.SIGTERM:  # the terminal is gone, and writing to it would fail
            nothing = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nothing, terminal)
        raise Stopped(number)

    own = [one for one in SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
    for one in own:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in own:
            signal.signal(one, signal.SIG_DFL)
