"""How long something takes here, for the plan's estimates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def seconds(function: Callable[[], None], budget: float) -> float:
    """Return the median wall seconds of a call, from about ``budget`` seconds of calls."""
    for _ in range(3):
        function()
    times = [time.perf_counter()]
    while times[-1] - times[0] < budget:
        function()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)))


def speeds(
    policy: nn.Module, loss: Callable[[Any], Tensor], steps: Callable[[], None], count: int
) -> tuple[float, float]:
    """Return seconds of an update of a policy, and of one of the ``count`` steps of a call.

    The processor uses one thread, as in the workers.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

    def update() -> None:
        optimizer.zero_grad()
        value = loss(policy)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value.item()  # waits for the device

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(update, 0.2), seconds(steps, 0.2) / count
    finally:
        torch.set_num_threads(threads)
