"""How long something takes here, for the plan's estimates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seconds(function: Callable[[], None], budget: float) -> float:
    """Return the median wall seconds of a call, over about ``budget`` seconds after a warm-up."""
    for _ in range(3):
        function()
    times = [time.perf_counter()]
    while times[-1] - times[0] < budget:
        function()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the block, as in the workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
