"""How often the test of the leaderboard is wrong, and how often it finds a halved swing.

Boards of eight entries are drawn from real rows (score_rows.npz: the returns of the window, float16,
arrays (seeds, checkpoints, starts), of `stab compare --task TASK --all --seeds 5 eval.starts=16
eval.checkpoint_every=100`, once for hopper and once for walker2d, with torch 2.11). Each seed of each entry is a trajectory drawn at random, and on it
blocks of checkpoints, so that checkpoints keep their correlation and seeds their differences.

    python docs/score_simulation.py [--boards 500]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stab import gva
from stab.reports import inference

CHECKPOINTS, STARTS, BLOCK = 16, 8, 4  # defaults of `stab compare`; checkpoints drawn together
SEEDS = (3, 5, 10)
STEADY = ["ema", "polyak", "swa", "lr_decay", "accumulation"]
# What the entries are drawn from, `none` first. Those of the same rows as `none` are true nulls.
BOARDS = {
    "eight of none": ["none"] * 8,
    "eight of dropout": ["dropout"] * 8,
    "eight of ema": ["ema"] * 8,
    "three of none, five steady": ["none"] * 3 + STEADY,
    "two of none, six steady": ["none"] * 2 + ["ema", "polyak", "swa"] * 2,
    "seven of none, one halved": ["none"] * 7 + ["halved"],
    "one of none, seven halved": ["none"] + ["halved"] * 7,
}


def halved(J: np.ndarray) -> np.ndarray:
    """Return rows whose checkpoints move half as far, with the same starts and episode noise."""
    return J - 0.5 * (J.mean(-1, keepdims=True) - J.mean((-2, -1), keepdims=True))


def draw(rows: np.ndarray, seeds: int, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (seeds, CHECKPOINTS, starts) rows of an entry."""
    own = rng.integers(len(rows), size=(seeds, 1))
    first = rng.integers(rows.shape[1] - BLOCK + 1, size=(seeds, CHECKPOINTS // BLOCK))
    at = (first[:, :, None] + np.arange(BLOCK)).reshape(seeds, -1)
    return rows[own, at][..., starts]


def permutation(scored: np.ndarray) -> list[float]:
    """Return p-values of a paired block permutation, corrected by Holm.

    Blocks of checkpoints change sides between an entry and ``none``, start means aside; the
    statistic is the difference of the variances that all starts share. One-sided.
    """
    centred = scored - scored.mean(2, keepdims=True)
    seeds, M = centred.shape[1:3]
    blocks = M // BLOCK
    sides = np.arange(2**blocks)[:, None] >> np.arange(blocks) & 1
    swap = np.repeat(sides, BLOCK, axis=1).astype(bool)[:, None, :, None]  # (sides, 1, M, 1)
    rng, p_values = np.random.default_rng(0), []
    for own in centred[1:]:
        left = component(np.where(swap, own, centred[0]))
        right = component(np.where(swap, centred[0], own))
        change = (left - right).T  # (seeds, sides); sides 0 is as observed
        drawn = rng.integers(2**blocks, size=(seeds, 2000))
        null = np.take_along_axis(change, drawn, 1).sum(0)
        p_values.append((1 + (null >= change[:, 0].sum()).sum()) / 2001)
    return inference.holm(p_values)


def component(J: np.ndarray) -> np.ndarray:
    """Return ``gva.checkpoint_variance`` of (..., checkpoints, starts), for many at once."""
    M, N = J.shape[-2:]
    means = J.mean(-1, keepdims=True)
    rest = J - means - J.mean(-2, keepdims=True) + J.mean((-2, -1), keepdims=True)
    return means[..., 0].var(-1, ddof=1) - np.square(rest).sum((-2, -1)) / ((M - 1) * (N - 1) * N)


def holm_t(levels: np.ndarray) -> list[float]:
    """Return p-values of paired t-tests, corrected by Holm."""
    return inference.holm([inference.paired_p(own, levels[0]) for own in levels[1:]])


def simulate(rows: dict[str, np.ndarray], kinds: list[str], seeds: int, boards: int) -> np.ndarray:
    """Return (tests, 2): share of boards with a false finding, share of true ones found, or NaN."""
    rng, found = np.random.default_rng(0), []  # the same boards for every test
    false = np.array(kinds[1:]) == kinds[0]
    for _ in range(boards):
        starts = rng.choice(rows["none"].shape[2], STARTS, replace=False)
        scored = np.stack([draw(rows[kind], seeds, starts, rng) for kind in kinds])
        levels = np.array([[gva.gva(J) for J in own] for own in scored])
        steadier = levels[1:].mean(1) < levels[0].mean()
        line = []
        for p in (inference.many_to_one(levels), holm_t(levels), permutation(scored)):
            hit = np.array(p) < inference.LEVEL
            right = (hit & steadier)[~false]
            wrong = (hit & false).any() if false.any() else np.nan
            line.append((wrong, right.mean() if right.size else np.nan))
        found.append(line)
    return np.mean(found, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=500)
    boards = parser.parse_args().boards
    with np.load(Path(__file__).with_name("score_rows.npz")) as file:
        every = {name: file[name].astype(np.float64) for name in file.files}
    print("| rows | board | seeds | Dunnett | paired t | permutation |")
    print("| :-- | :-- | --: | --: | --: | --: |")
    for task in ("hopper", "walker2d"):
        rows = {name.split("/")[1]: J for name, J in every.items() if name.startswith(task)}
        rows["halved"] = halved(rows["none"])
        for name, kinds in BOARDS.items():
            for seeds in SEEDS:
                cells = []
                for error, power in simulate(rows, kinds, seeds, boards):
                    shown = [] if np.isnan(error) else [f"{error:.3f}"]
                    shown += [] if np.isnan(power) else [f"{power:.2f}"]
                    cells.append(" / ".join(shown))
                print(f"| {task} | {name} | {seeds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
