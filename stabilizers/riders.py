"""Riders: the averages that look at a trajectory while it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stab.registry import StabError, reason
from stab.stabilizers.base import Average, clone
from stab.stabilizers.live import Live, plain
from stab.stabilizers.means import finite

if TYPE_CHECKING:
    from torch import nn

    from stab.stabilizers.base import Params


class Riders:
    """The averages that ride along, and their states. One that raises is dropped alone."""

    def __init__(self, averages: Mapping[str, Average], policy: nn.Module, total: int) -> None:
        self.averages, self.policy = dict(averages), policy
        self.states: dict[str, Any] = {}
        self.seconds = dict.fromkeys(averages, 0.0)
        self.failed: dict[str, str] = {}
        self.live: dict[bool, Live] = {}  # with buffers, and without

        def begin(name: str, average: Average) -> None:
            if average.averages_buffers not in self.live:
                self.live[average.averages_buffers] = Live(policy, average.averages_buffers)
            self.states[name] = average.init(self._live(average).look(), total)

        self._each(begin)

    def update(self, step: int, device: torch.device, began: float) -> None:
        """Show the live parameters to every average; ``began`` is the time before the first."""
        seen: dict[bool, Params] = {}

        def look(name: str, average: Average) -> None:
            nonlocal began
            if average.averages_buffers not in seen:
                seen[average.averages_buffers] = self._live(average).look()
            average.update(self.states[name], seen[average.averages_buffers], step)
            ended = clock(device)
            self.seconds[name] += ended - began
            began = ended

        self._each(look)

    def read(self, raw: Params) -> tuple[dict[str, Params], dict[str, int]]:
        """Return read-outs and bytes of states; what an average lacks (buffers) is ``raw``'s.

        An average that is not finite is dropped. Its iterates were not, and then the next loss is
        not either, so that looking at each of them would cost time for nothing.
        """
        read_outs, memory = {}, {}

        def read(name: str, average: Average) -> None:
            size = nbytes(self.states[name].state_dict())
            own = average.read(self.states[name])
            if own and not finite([value for value in own.values() if value.is_floating_point()]):
                raise StabError("the average is not finite")
            own = self._live(average).fitted(own, paths=True)
            read_outs[name], memory[name] = clone(raw) | own, size

        self._each(read)
        return read_outs, memory

    def state_dict(self) -> dict[str, Any]:
        states: dict[str, Any] = {}

        def write(name: str, _: Average) -> None:
            states[name] = self.states[name].state_dict()

        self._each(write)
        return {"states": states, "seconds": dict(self.seconds), "failed": dict(self.failed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds, self.failed = dict(state["seconds"]), dict(state["failed"]) | self.failed
        self.averages = {
            name: average for name, average in self.averages.items() if name in state["states"]
        }

        def load(name: str, average: Average) -> None:
            self.states[name].load_state_dict(self._live(average).local(state["states"][name]))

        self._each(load)

    def _live(self, average: Average) -> Live:
        return self.live[average.averages_buffers]

    def _each(self, call: Callable[[str, Average], None]) -> None:
        with plain():
            for name, average in tuple(self.averages.items()):
                try:
                    call(name, average)
                except (Exception, SystemExit) as e:  # a plug-in may raise anything
                    self.failed[name] = reason(e)
                    del self.averages[name]


def nbytes(state: Any) -> int:
    """Return the bytes of all tensors in nested data."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(nbytes, state.values()))
    return sum(map(nbytes, state)) if isinstance(state, list | tuple) else 0


def clock(device: torch.device) -> float:
    """Return the wall time, after the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
