"""Snapshots of training: means of the iterates over blocks of updates, for post-hoc averages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stab import files
from stab.registry import StabError
from stab.stabilizers.base import Average, MeanState, clone, weight_profile

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from torch import Tensor

    from stab.stabilizers.base import Params
    from stab.train import Checkpoint

NAME = "(snapshots)"  # of ``BlockMeans`` among the averages of a cell; not a stabilizer string


@dataclass
class BlockState(MeanState):
    """The mean of ``count`` updates, means of finished blocks, the latest one's last iterate."""

    ends: frozenset[int] = frozenset()
    last: Params = field(default_factory=dict)
    finished: list[Params] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        finished = [dict(block) for block in self.finished]
        return super().state_dict() | {"last": dict(self.last), "finished": finished}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.last = clone(state["last"])
        self.finished = [clone(block) for block in state["finished"]]


@dataclass(frozen=True)
class BlockMeans(Average):
    """Mean of the iterates over each block of ``every`` updates; of float buffers, too.

    ``SavedBlocks.take`` takes it from a read-out. Blocks end at the last update and every ``every``
    updates before it, so that they end at every checkpoint; the first may be shorter.
    """

    every: int = 50
    averages_buffers: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> BlockState:
        ends = frozenset(block_ends(total, self.every))
        return BlockState(clone(params), 0, ends=ends, last=clone(params))

    def update(self, state: BlockState, params: Params, step: int) -> None:
        state.take(params, 1 / (state.count + 1))
        state.count += 1
        if step in state.ends:
            state.finished.append(dict(state.items()))
            state.last, state.count = clone(params), 0

    def read(self, state: BlockState) -> Params:
        import torch

        stacked = {
            name: torch.stack([block[name] for block in state.finished])
            for name in state.mean
            if state.finished
        }
        return _prefixed("blocks", stacked) | _prefixed("last", clone(state.last))


def block_ends(total: int, every: int) -> list[int]:
    """Return the last update of each block."""
    return list(range(total % every or every, total + 1, every))


def _prefixed(kind: str, params: Params) -> Params:
    return {f"{kind}/{name}": value for name, value in params.items()}


def _within(kind: str, params: Params) -> Params:
    return {
        name.removeprefix(f"{kind}/"): value
        for name, value in params.items()
        if name.startswith(f"{kind}/")
    }


@dataclass
class SavedBlocks:
    """The snapshots of a cell.

    Attributes:
        every: updates in a block.
        total: updates of training.
        blocks: (blocks, ...) means of parameters and float buffers.
        last: checkpoint -> the iterate there, the last of its block.
        buffers: checkpoint -> the raw iterate's buffers, and its frozen parameters.
    """

    every: int
    total: int
    blocks: dict[str, Tensor] = field(default_factory=dict)
    last: dict[int, Params] = field(default_factory=dict)
    buffers: dict[int, Params] = field(default_factory=dict)

    def take(self, point: Checkpoint, parameters: Container[str]) -> None:
        """Add a checkpoint that has ``BlockMeans`` among its averages, as ``NAME``."""
        read = point.averages[NAME]
        self.blocks = _within("blocks", read)
        self.last[point.update] = _within("last", read)
        self.buffers[point.update] = {
            name: value
            for name, value in point.raw.items()
            if name not in parameters or name not in self.last[point.update]  # frozen ones
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all but the blocks, which every read-out holds whole."""
        return {"last": dict(self.last), "buffers": dict(self.buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.last, self.buffers = dict(state["last"]), dict(state["buffers"])

    def read_off(self, average: Average, steps: Iterable[int]) -> tuple[dict[int, Params], float]:
        """Return what the average reads at the updates ``steps``, nearly, and the misplaced weight.

        A convex average is a sum over iterates with weights w_i that do not depend on them
        (measured by ``stabilizers.base.memory``). Here the weights of a block are spread evenly
        over it; the last iterate of all, which is known, keeps its own, and the rest of its block
        has the mean (K mean_b - last) / (K - 1)::

            read = sum_b W_b mean_b + w_last last,   W_b = sum of w_i for i in b
            misplaced = max over steps of 1/2 sum_i |w_i - W_b(i) / size of b(i)|    in [0, 1)

        That is exact if weights are constant within blocks (the mean of a tail that begins with a
        block) or the average is still the latest iterate. The distance to the online read-out is at
        most ``misplaced`` times twice the greatest distance of an iterate to the mean of its block.

        Raises StabError if the average is not convex, or one of ``steps`` is not a checkpoint.
        """
        import torch

        if not average.convex:
            raise StabError(
                f"{average!r} declares no convex weights: expected an average that does"
            )
        ends = np.array(block_ends(self.total, self.every))
        read_outs, misplaced = {}, 0.0
        for step, weights in weight_profile(average, self.total, steps).items():
            if step not in self.last:
                raise StabError(
                    f"update {step} is not a checkpoint: expected one of {sorted(self.last)}"
                )
            count = int(np.searchsorted(ends, step)) + 1
            starts = np.concatenate([[0], ends[: count - 1]])
            sizes = np.diff([*starts, step])
            sums = np.add.reduceat(weights, starts)
            spread = np.repeat(sums / sizes, sizes)
            own, size = 0.0, sizes[-1]
            if size > 1:
                rest = sums[-1] - weights[-1]
                spread[-size:-1], spread[-1] = rest / (size - 1), weights[-1]
                sums[-1], own = rest * size / (size - 1), weights[-1] - rest / (size - 1)
            misplaced = max(misplaced, float(np.abs(weights - spread).sum() / 2))
            factors = torch.from_numpy(sums)
            averaged = {}
            for name, value in self.blocks.items():  # in float64: hundreds of blocks are added up
                total = (
                    torch.tensordot(factors, value[:count].double(), 1)
                    + own * self.last[step][name].double()
                )
                averaged[name] = total.to(value.dtype)
            raw = clone(self.buffers[step])
            read_outs[step] = raw | averaged if average.averages_buffers else averaged | raw
        return read_outs, misplaced


def save(path: Path, taken: SavedBlocks) -> None:
    """Write a cell's snapshots as safetensors. Raises StabError when the disk is full."""
    tensors = _prefixed("blocks", taken.blocks)
    for kind, points in (("last", taken.last), ("buffers", taken.buffers)):
        for step, params in points.items():
            tensors |= _prefixed(f"{kind}/{step}", params)
    about = {
        "every": str(taken.every),
        "total": str(taken.total),
        "checkpoints": json.dumps(sorted(taken.last)),
    }
    try:
        files.save_tensors(path, tensors, about)
    except files.CannotWrite as e:
        raise files.CannotWrite(f"{e}; snapshots are large: raise snapshots.every") from e


def load(path: Path) -> SavedBlocks:
    """Read a cell's snapshots. Raises StabError when the file is missing or damaged."""
    tensors, about = files.load_tensors(path)
    try:
        last, buffers = (
            {step: _within(f"{kind}/{step}", tensors) for step in json.loads(about["checkpoints"])}
            for kind in ("last", "buffers")
        )
        return SavedBlocks(
            int(about["every"]), int(about["total"]), _within("blocks", tensors), last, buffers
        )
    except (KeyError, TypeError, ValueError) as e:
        raise files.damaged(path, str(e)) from e
