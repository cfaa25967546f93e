"""How often the test of the leaderboard is wrong, what it finds, and how often intervals cover.

Boards of eight entries are drawn from real rows (score_rows.npz: the returns of the window, float16,
arrays (seeds, checkpoints, starts), of `stab compare --task TASK --all --seeds 5 eval.starts=16
eval.checkpoint_every=100`, once for hopper and once for walker2d, with torch 2.11). Each seed of each entry is a trajectory drawn at random, and on it
blocks of checkpoints, so that checkpoints keep their correlation and seeds their differences.

    python docs/score_simulation.py [--boards 500] [--sizes | --until-decided]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stab import gva
from stab.reports import inference

CHECKPOINTS, STARTS, BLOCK = 20, 4, 4  # about the defaults; checkpoints drawn together
SEEDS = (3, 5, 10)
# Seeds, checkpoints, starts.
SIZES = (
    (3, 16, 8), (4, 16, 6), (4, 20, 4), (4, 24, 6), (4, 32, 4), (5, 20, 4), (5, 32, 6),
)  # fmt: skip
TESTS = (4, 8, 16)  # seeds at which --until-decided tests
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


def draw(
    rows: np.ndarray, seeds: int, checkpoints: int, starts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return (seeds, checkpoints, starts) rows of an entry."""
    own = rng.integers(len(rows), size=(seeds, 1))
    first = rng.integers(rows.shape[1] - BLOCK + 1, size=(seeds, checkpoints // BLOCK))
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
        left = gva.components(np.where(swap, own, centred[0])).checkpoint
        right = gva.components(np.where(swap, centred[0], own)).checkpoint
        change = (left - right).T  # (seeds, sides); sides 0 is as observed
        drawn = rng.integers(2**blocks, size=(seeds, 2000))
        null = np.take_along_axis(change, drawn, 1).sum(0)
        p_values.append((1 + (null >= change[:, 0].sum()).sum()) / 2001)
    return inference.holm(p_values)


def holm_t(levels: np.ndarray) -> list[float]:
    """Return p-values of paired t-tests, corrected by Holm."""
    return inference.holm([inference.paired_p(own, levels[0]) for own in levels[1:]])


def boards_of(
    rows: dict[str, np.ndarray], kinds: list[str], size: tuple[int, int, int], boards: int
) -> Iterator[np.ndarray]:
    """Yield (entries, seeds, checkpoints, starts) returns of boards of a size; the same each time."""
    seeds, checkpoints, count = size
    rng = np.random.default_rng(0)
    for _ in range(boards):
        starts = rng.choice(rows["none"].shape[2], count, replace=False)
        yield np.stack([draw(rows[kind], seeds, checkpoints, starts, rng) for kind in kinds])


def simulate(
    rows: dict[str, np.ndarray], kinds: list[str], size: tuple[int, int, int], boards: int
) -> tuple[np.ndarray, float]:
    """Return what tests and intervals are worth on boards.

    First (tests, 2): share of boards with a false finding, share of true ones found, or NaN. Then
    the share of intervals that hold the expectation of the score, which is the mean over boards of
    the unbiased checkpoint variance.
    """
    found, variances, ends = [], [], []
    false = np.array(kinds[1:]) == kinds[0]
    for scored in boards_of(rows, kinds, size, boards):
        levels = np.array([gva.gva_per_seed(own) for own in scored])
        steadier = levels[1:].mean(1) < levels[0].mean()
        line = []
        for p in (inference.many_to_one(levels), holm_t(levels), permutation(scored)):
            hit = np.array(p) < inference.LEVEL
            right = (hit & steadier)[~false]
            wrong = (hit & false).any() if false.any() else np.nan
            line.append((wrong, right.mean() if right.size else np.nan))
        found.append(line)
        variances.append(gva.components(scored).checkpoint.mean(1))
        ends.append(np.square(inference.score_intervals(scored)))
    truth = {
        kind: np.mean(np.array(variances)[:, [k for k, name in enumerate(kinds) if name == kind]])
        for kind in kinds
    }
    expected = np.maximum([truth[kind] for kind in kinds], 0)
    low, high = np.moveaxis(np.array(ends), -1, 0)
    covered = (low <= expected) & (expected <= high)
    return np.mean(found, axis=0), float(covered.mean())


def grow(levels: np.ndarray) -> tuple[list[inference.Tested], list[int]]:
    """Train seeds of a board until it is decided; return what is said, and seeds of each entry."""
    counts = [TESTS[0]] * len(levels)
    while True:
        own = [level[:count].tolist() for level, count in zip(levels, counts, strict=True)]
        tested = inference.sequential(own, TESTS)
        more = {
            k: min(test for test in TESTS if test > of.seeds)
            for k, of in enumerate(tested, 1)
            if of.undecided
        }
        if not more:
            return tested, counts
        for k, seeds in {0: max(more.values()), **more}.items():
            counts[k] = max(seeds, counts[k])


def until_decided(
    rows: dict[str, np.ndarray], kinds: list[str], boards: int
) -> dict[str, tuple[float, float, float]]:
    """Return the share of boards with a false finding, of true ones found, and the mean seeds."""
    false = np.array(kinds[1:]) == kinds[0]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for scored in boards_of(rows, kinds, (TESTS[-1], CHECKPOINTS, STARTS), boards):
        levels = np.array([gva.gva_per_seed(own) for own in scored])
        rules = {f"{n} seeds": inference.sequential(levels[:, :n].tolist(), (n,)) for n in TESTS}
        counts = {f"{n} seeds": [n] for n in TESTS}
        rules["until decided"], counts["until decided"] = grow(levels)
        for rule, tested in rules.items():
            steadier = np.array([of.difference < 0 for of in tested])
            hit = np.array([of.p < inference.LEVEL for of in tested])
            right = (hit & steadier)[~false]
            wrong = (hit & false).any() if false.any() else np.nan
            found = right.mean() if right.size else np.nan
            lines.setdefault(rule, []).append((wrong, found, np.mean(counts[rule])))
    return {rule: tuple(np.mean(every, axis=0)) for rule, every in lines.items()}


def returns(rows: dict[str, np.ndarray], kinds: list[str], seeds: int, boards: int) -> list[float]:
    """Return how often a return is misjudged: an entry that is 0.05 below ``none`` is said to hold,
    an entry as good as ``none`` is called unsound. Both should be at most 0.05 per entry.
    """
    wrong = []
    for scored in boards_of(rows, kinds, (seeds, CHECKPOINTS, STARTS), boards):
        means = scored.mean((2, 3))
        expected = np.array([rows[kind].mean() for kind in kinds])
        same = means - expected[:, None] + expected[0]  # all entries are worth the same
        low, high = np.transpose(inference.return_bounds(same))
        unsound = (high < 0) & (low <= -gva.MARGIN)
        same[1:] -= gva.MARGIN
        low, _ = np.transpose(inference.return_bounds(same))
        wrong.append([(low > -gva.MARGIN).mean(), unsound.mean()])
    return np.mean(wrong, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--sizes", action="store_true", help="power by seeds, checkpoints, starts")
    parser.add_argument("--until-decided", action="store_true", help="error, power and seeds of it")
    arguments = parser.parse_args()
    boards = arguments.boards
    with np.load(Path(__file__).with_name("score_rows.npz")) as file:
        every = {name: file[name].astype(np.float64) for name in file.files}
    tasks = {}
    for task in ("hopper", "walker2d"):
        tasks[task] = {name.split("/")[1]: J for name, J in every.items() if name.startswith(task)}
        tasks[task]["halved"] = halved(tasks[task]["none"])
    if arguments.sizes:
        print("| rows | seeds x checkpoints x starts | false findings | found |")
        print("| :-- | :-- | --: | --: |")
        for task, rows in tasks.items():
            for size in SIZES:
                found, _ = simulate(rows, BOARDS["three of none, five steady"], size, boards)
                print(
                    f"| {task} | {' x '.join(map(str, size))} | {found[0, 0]:.3f} | {found[0, 1]:.2f} |"
                )
        return
    if arguments.until_decided:
        print("| rows | board | rule | false findings | found | seeds per entry |")
        print("| :-- | :-- | :-- | --: | --: | --: |")
        for task, rows in tasks.items():
            for name, kinds in BOARDS.items():
                for rule, line in until_decided(rows, kinds, boards).items():
                    shown = ["" if np.isnan(share) else f"{share:.3f}" for share in line[:2]]
                    print(f"| {task} | {name} | {rule} | {' | '.join(shown)} | {line[2]:.1f} |")
        return
    print("| rows | board | seeds | Dunnett | paired t | permutation | intervals that cover |")
    print("| :-- | :-- | --: | --: | --: | --: | --: |")
    for task, rows in tasks.items():
        for name, kinds in BOARDS.items():
            for seeds in SEEDS:
                found, covered = simulate(rows, kinds, (seeds, CHECKPOINTS, STARTS), boards)
                cells = []
                for error, power in found:
                    shown = [] if np.isnan(error) else [f"{error:.3f}"]
                    shown += [] if np.isnan(power) else [f"{power:.2f}"]
                    cells.append(" / ".join(shown))
                cells.append(f"{covered:.2f}")
                print(f"| {task} | {name} | {seeds} | {' | '.join(cells)} |", flush=True)
    print("\n| rows | board | seeds | said to hold, 0.05 lower | unsound, as good |")
    print("| :-- | :-- | --: | --: | --: |")
    for task, rows in tasks.items():
        for name in ("eight of none", "three of none, five steady"):
            for seeds in SEEDS:
                holds, unsound = returns(rows, BOARDS[name], seeds, boards)
                print(f"| {task} | {name} | {seeds} | {holds:.3f} | {unsound:.3f} |", flush=True)


if __name__ == "__main__":
    main()
