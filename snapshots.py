"""Snapshots of training: means of the iterates over blocks of updates, from which averages are read off afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stab.registry import StabError
from stab.stabilizers.base import Average, clone, memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from stab.stabilizers.base import Params

RIDER = "(snapshots)"  # its name among the averages of a cell; no stabilizer string


@dataclass
class BlockState:
    """The means of the finished blocks, and of the one in progress after ``count`` updates of it."""

    ends: frozenset[int]
    mean: Params
    count: int = 0
    finished: list[Params] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "count": self.count, "finished": [dict(block) for block in self.finished]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = clone(state["mean"]), state["count"]
        self.finished = [clone(block) for block in state["finished"]]


@dataclass(frozen=True)
class BlockMeans(Average):
    """Mean of the iterates over each block of ``every`` updates; ``read`` stacks the finished blocks, (blocks, ...).

    It rides along as an average does, and looks at float buffers, too. Blocks end at the last update and every ``every``
    updates before it, so that they end at every checkpoint; the first may be shorter.
    """

    every: int = 50
    averages_buffers: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> BlockState:
        return BlockState(frozenset(block_ends(total, self.every)), clone(params))

    def update(self, state: BlockState, params: Params, step: int) -> None:
        import torch

        state.count += 1
        torch._foreach_lerp_(list(state.mean.values()), list(params.values()), 1 / state.count)
        if step in state.ends:
            state.finished.append(clone(state.mean))
            state.count = 0

    def read(self, state: BlockState) -> Params:
        import torch

        return {name: torch.stack([block[name] for block in state.finished]) for name in state.mean if state.finished}


def block_ends(total: int, every: int) -> list[int]:
    """Return the last update of each block."""
    return list(range(total % every or every, total + 1, every))


@dataclass(frozen=True)
class Snapshots:
    """What a cell kept of its training.

    Attributes:
        every: updates in a block.
        total: updates of training.
        blocks: (blocks, ...) means of parameters and float buffers.
        buffers: update -> the raw iterate's buffers at that checkpoint.
    """

    every: int
    total: int
    blocks: dict[str, Tensor]
    buffers: dict[int, Params]

    def read_off(self, average: Average, steps: Iterable[int]) -> tuple[dict[int, Params], float]:
        """Return what the average would have read at the updates ``steps``, nearly, and the share of misplaced weight.

        A convex average is a sum over iterates with weights w_i that do not depend on them (measured by
        ``stabilizers.base.memory``). Here each block's mean is taken with the block's whole weight::

            read = sum_b W_b mean_b,   W_b = sum of w_i for i in b
            misplaced = max over steps of 1/2 sum_i |w_i - W_b(i) / size of b(i)|    in [0, 1)

        That is exact where weights are constant within blocks (the mean of a tail that begins with a block); the distance
        to the online read-out is at most ``misplaced`` times twice the greatest distance of an iterate to its block's mean.

        Raises StabError when the average is not convex, or the blocks do not end at each of ``steps``.
        """
        import torch

        if not average.convex:
            raise StabError(f"{average!r} declares no convex weights: only such averages can be read off afterwards")
        ends = np.array(block_ends(self.total, self.every))
        found, misplaced = {}, 0.0
        for step, weights in memory(average, self.total, steps).items():
            count = int(np.searchsorted(ends, step)) + 1
            if ends[count - 1] != step:
                raise StabError(f"no block of {self.every} updates ends at update {step}: read off at checkpoints")
            starts = np.concatenate([[0], ends[: count - 1]])
            sums = np.add.reduceat(weights, starts)
            spread = np.repeat(sums / np.diff([*starts, step]), np.diff([*starts, step]))
            misplaced = max(misplaced, float(np.abs(weights - spread).sum() / 2))
            # In float64: hundreds of blocks are added up.
            held = {
                name: torch.tensordot(torch.from_numpy(sums), value[:count].double(), 1).to(value.dtype)
                for name, value in self.blocks.items()
            }
            raw = clone(self.buffers[step])
            found[step] = raw | held if average.averages_buffers else held | raw
        return found, misplaced


def save(path: Path, every: int, total: int, blocks: Params, buffers: Mapping[int, Params]) -> None:
    """Write a cell's snapshots as safetensors, under a temporary name first. Raises StabError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"blocks/{name}": value.contiguous() for name, value in blocks.items()}
    tensors |= {f"buffers/{t}/{name}": v.contiguous() for t, found in buffers.items() for name, v in found.items()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"every": str(every), "total": str(total)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise StabError(f"cannot write {path}: {e}; snapshots are large: raise snapshots.every") from e


def load(path: Path) -> Snapshots:
    """Read a cell's snapshots. Raises StabError when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a method, not a dict's)
        buffers: dict[int, Params] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "buffers":
                step, _, own = rest.partition("/")
                buffers.setdefault(int(step), {})[own] = value
        blocks = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith("blocks/")}
        return Snapshots(int(about["every"]), int(about["total"]), blocks, buffers)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise StabError(f"cannot read the snapshots {path}: {e}") from e
