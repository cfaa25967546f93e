"""How long something takes here, for the plan's estimates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def seconds(function: Callable[[], None], budget: float) -> float:
    """Return the median wall seconds of a call, over about ``budget`` seconds after a warm-up."""
    for _ in range(3):
        function()
    times = [time.perf_counter()]
    while times[-1] - times[0] < budget:
        function()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)))


def training_step(policy: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that takes one optimizer step on the loss and waits for the device."""
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

    def update() -> None:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value.item()

    return update


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the block, as the workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
