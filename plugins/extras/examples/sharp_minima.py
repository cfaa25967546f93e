"""Noise that leaves sharp minima, in one dimension: prints a table and writes a PNG.

    python plugins/extras/examples/sharp_minima.py                                 # into sharp-minima.png
    python plugins/extras/examples/sharp_minima.py --steps 200000 --out here.png

The experiment in R of Wang, Oh and Rhee, "Eliminating sharp minima from SGD with truncated heavy-tailed noise",
arXiv 2102.04297: SGD on a function with two sharp and two wide minima, with Gaussian or Pareto noise, with and without
the cut phi_b of an update to [-b, b]::

    x <- x + phi_b(-eta (f'(x) + Z)), kept in [-1.6, 1.6]

The paper's constants, as we know them; its text was not at hand to check: f, eta = 0.001, b = 0.5, the interval, the
start 0.3, and the noise Z = 0.1 U W, U a fair sign and W Pareto with tail index 1.2. We know its minima as -1.51,
-0.66, 0.49, 1.32 and its maxima as -1.3, 0.2, 0.7. This f has its maxima there, and its minima at -1.51, -0.70, 0.50,
1.32: near the second one a detail of the formula, or of our memory of the place, differs from the paper.

Ours: standard deviation 1 of the Gaussian noise; many chains instead of one long one; the same draws for all four
variants (a light draw and its heavy partner have the same sign); f' by linear interpolation in a table of 320,000
cells.

Needs ``stab_extras``: installed, or ``PYTHONPATH=plugins/extras``.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stab_extras.truncated_noise import pareto

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Array = NDArray[np.float64]

EDGE = 1.6  # the iterates are kept in [-EDGE, EDGE]
MINIMA = (-1.5115, -0.6993, 0.4962, 1.3221)
MAXIMA = (-1.3, 0.2, 0.7)  # between the basins
WIDE = (False, True, False, True)
START = 0.3
LR = 0.001
CUT = 0.5  # b, the longest update
ALPHA, HEAVY = 1.2, 0.1  # tail index and scale of the Pareto noise
LIGHT = 1.0  # standard deviation of the Gaussian noise

CELLS = 320_000  # of the table of f'; every maximum lies on a border
BLOCK = 200  # steps whose noise is drawn at a time
THIN = 20  # moves are counted, and one chain is kept, at every 20th step
NEAR = 0.1  # a chain has come to a minimum when it is this close

VARIANTS = ("Gaussian", "heavy-tailed", "Gaussian, truncated", "heavy-tailed, truncated")
SHARP_COLOUR, WIDE_COLOUR, INK = "#d9622b", "#2f6db3", "#333333"


def f(x: Array) -> Array:
    """Return the function: minima at MINIMA, maxima of value 0 at MAXIMA."""
    product = (
        (x + 1.6)
        * (x + 1.3) ** 2
        * (x - 0.2) ** 2
        * (x - 0.7) ** 2
        * (x - 1.6)
        * (0.05 * abs(1.65 - x)) ** 0.6
    )
    narrow = (1 + 1 / (0.01 + 4 * (x - 0.5) ** 2)) * (1 + 1 / (0.1 + 4 * (x + 1.5) ** 2))
    return product * narrow * (1 - 0.25 * np.exp(-5 * (x + 0.8) ** 2))


def _tables() -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return for each cell f' at its left border, its growth to the right one, the basin, the minimum nearby or -1."""
    borders = np.linspace(-EDGE, EDGE, CELLS + 1)
    h = 1e-6
    slope = (f(borders + h) - f(borders - h)) / (2 * h)
    middle = (borders[1:] + borders[:-1]) / 2
    basin = np.searchsorted(MAXIMA, middle)
    near = np.where(abs(middle - np.array(MINIMA)[basin]) < NEAR, basin, -1)
    growth = np.append(np.diff(slope), 0.0)  # the cell of EDGE itself
    return slope, growth, np.append(basin, basin[-1]), np.append(near, near[-1])


SLOPE, GROWTH, BASIN, NEARBY = _tables()


def stationary() -> tuple[Array, Array]:
    """Return the minima and the maxima of f inside the interval: where the table's f' changes its sign."""
    borders = np.linspace(-EDGE, EDGE, CELLS + 1)
    sign = np.sign(np.where(abs(SLOPE) < 1e-6, 0, SLOPE))
    kept = np.flatnonzero(sign)
    change = np.flatnonzero(np.diff(sign[kept]))
    points = (borders[kept[change]] + borders[kept[change + 1]]) / 2
    rises = sign[kept[change + 1]] > 0
    return points[rises], points[~rises]


def cell(x: Array) -> Array:
    """Return the place of x in the tables, a float."""
    return (x + EDGE) * (CELLS / (2 * EDGE))


def draw_noise(steps: int, chains: int) -> Array:
    """Return (steps, 2, chains) draws of the noise, light and heavy, from torch's global generator."""
    light = torch.randn((steps, chains), dtype=torch.float64)
    heavy = HEAVY * pareto(ALPHA, (steps, chains)) * light.sign()
    return torch.stack((LIGHT * light, heavy), dim=1).numpy()


def step(x: Array, noise: Array, limit: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the chains after one update cut to [-limit, limit], and the cells they were in before it."""
    place = cell(x)
    index = place.astype(np.int64)
    place -= index
    place *= GROWTH.take(index)
    place += SLOPE.take(index)
    place += noise
    place *= -LR
    np.minimum(place, limit, out=place)
    np.maximum(place, -limit, out=place)
    place += x
    np.minimum(place, EDGE, out=place)
    np.maximum(place, -EDGE, out=place)
    return place, index


@dataclass(frozen=True)
class Found:
    """What the chains did; the first index is the variant, in the order of VARIANTS."""

    shares: Array  # (4, chains, 4) share of the steps of each chain in each basin
    moves: Array  # (4, chains) how often a chain came from one minimum to another
    path: Array  # (4, points) the first chain at every THIN-th step


def simulate(steps: int, chains: int, seed: int) -> Found:
    """Run all variants from START; torch's generator is left as it was."""
    limit = np.array([np.inf, CUT])[
        :, None, None
    ]  # x is (cut, tail, chain): the noise of a tail serves with and without
    limit = np.broadcast_to(limit, (2, 2, chains)).copy()
    x = np.full((2, 2, chains), START)
    counts = np.zeros((4 * chains, 4), dtype=np.int64)
    moves = np.zeros(4 * chains, dtype=np.int64)
    home = np.full(4 * chains, int(np.searchsorted(MAXIMA, START)))
    rows = 4 * np.arange(4 * chains)
    path = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = range(0, steps, BLOCK)
        console = Console(stderr=True)
        for first in track(
            blocks, description="steps", console=console, disable=not console.is_terminal
        ):
            length = min(BLOCK, steps - first)
            noise = draw_noise(length, chains)
            cells = np.empty((length, 4 * chains), dtype=np.int64)
            for t in range(length):
                x, index = step(x, noise[t], limit)
                cells[t] = index.ravel()
            counts += np.bincount(
                (BASIN.take(cells) + rows).ravel(), minlength=16 * chains
            ).reshape(-1, 4)
            for now in cells[::THIN]:
                seen = NEARBY.take(now)
                moved = (seen >= 0) & (seen != home)
                moves += moved
                home[moved] = seen[moved]
            path.append(cells[::THIN, ::chains])
    where = np.concatenate(path).T * (2 * EDGE / CELLS) - EDGE
    return Found(
        counts.reshape(4, chains, 4) / steps, moves.reshape(4, chains).astype(float), where
    )


def make_table(found: Found) -> Table:
    """Return the shares as a table: mean over the chains, and the standard error of the share of wide minima."""
    columns = [
        f"{m:.2f} {'wide' if wide else 'sharp'}" for m, wide in zip(MINIMA, WIDE, strict=True)
    ]
    result = Table("noise", box=box.SIMPLE)
    for column in (*columns, "wide minima", "moves a chain"):
        result.add_column(column, justify="right")
    for title, shares, moves in zip(VARIANTS, found.shares, found.moves, strict=True):
        wide = shares[:, list(WIDE)].sum(axis=1)
        error = wide.std(ddof=1) / len(wide) ** 0.5 if len(wide) > 1 else np.nan
        cells = [f"{share:.4f}" for share in shares.mean(axis=0)]
        result.add_row(title, *cells, f"{wide.mean():.4f} ± {error:.4f}", f"{moves.mean():.2f}")
    return result


def draw(found: Found, steps: int, path: Path) -> None:
    """Draw f above, and for each variant the first chain and the shares of all chains."""
    size, borders = 9, (-EDGE, *MAXIMA, EDGE)
    colours = [WIDE_COLOUR if wide else SHARP_COLOUR for wide in WIDE]
    with plt.rc_context(
        {"font.size": size, "axes.edgecolor": "#999999", "text.color": INK, "axes.labelcolor": INK}
    ):
        figure = plt.figure(figsize=(10, 9.4), layout="constrained")
        grid = figure.add_gridspec(5, 2, width_ratios=(3.4, 1), height_ratios=(1.7, 1, 1, 1, 1))
        top = figure.add_subplot(grid[0, :])
        _function(top, borders, colours)
        for row, name in enumerate(VARIANTS):
            left = figure.add_subplot(grid[row + 1, 0])
            right = figure.add_subplot(grid[row + 1, 1], sharey=left)
            for low, high, colour in zip(borders[:-1], borders[1:], colours, strict=True):
                left.axhspan(low, high, color=colour, alpha=0.13, linewidth=0)
            every = max(1, found.path.shape[1] // 6000)
            y = found.path[row, ::every]
            left.plot(
                np.arange(len(y)) * every * THIN / 1e6,
                y,
                ".",
                markersize=1.6,
                color=INK,
                rasterized=True,
            )
            left.set(
                ylim=(-EDGE - 0.05, EDGE + 0.05), yticks=MINIMA, xlim=(0, steps / 1e6), ylabel="x"
            )
            left.set_yticklabels([f"{m:.2f}" for m in MINIMA])
            left.set_title(name, loc="left", fontsize=size + 1, fontweight="bold")
            shares = found.shares[row].mean(axis=0)
            height = [0.26, 0.5, 0.26, 0.5]
            right.barh(MINIMA, shares, height=height, color=colours)
            for place, share in zip(MINIMA, shares, strict=True):
                right.text(
                    share + 0.02, place, f"{100 * share:.1f} %", va="center", fontsize=size - 0.5
                )
            right.set(xlim=(0, 1.42), xticks=(0, 0.5, 1))
            right.set_xticklabels(["0", "50 %", "100 %"])
            right.tick_params(labelleft=False, left=False)
            right.spines[["top", "right"]].set_visible(False)
            left.tick_params(labelbottom=row == len(VARIANTS) - 1)
            right.tick_params(labelbottom=row == len(VARIANTS) - 1)
            if row == 0:
                right.set_title("share of the steps, all chains", loc="left", fontsize=size)
        left.set_xlabel("updates of one chain, in millions")
        part = path.with_name(f".{path.name}.part")
        figure.savefig(part, dpi=100, format="png")
        plt.close(figure)
    os.replace(part, path)


def _function(axis: Axes, borders: tuple[float, ...], colours: list[str]) -> None:
    """Draw f with its basins shaded and its minima marked."""
    x = np.linspace(-EDGE, EDGE, 4001)
    axis.plot(x, f(x), color=INK, linewidth=1.6)
    for low, high, minimum, wide, colour in zip(
        borders[:-1], borders[1:], MINIMA, WIDE, colours, strict=True
    ):
        axis.axvspan(low, high, color=colour, alpha=0.13, linewidth=0)
        depth = float(f(np.array(minimum)))
        axis.plot(minimum, depth, "o", color=colour, markersize=6)
        label = f"{'wide' if wide else 'sharp'}, {minimum:.2f}"
        axis.annotate(
            label,
            (minimum, depth),
            (18 * (minimum < -1.4), -9),  # within the axes
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour,
            weight="bold",
        )
    start = np.array(START)
    axis.plot(START, f(start), "v", color=INK, markersize=6)
    axis.annotate(
        "start",
        (START, float(f(start))),
        (-4, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
    )
    axis.set(xlim=(-EDGE, EDGE), ylim=(-0.82, 0.12), xlabel="x", ylabel="f(x)")
    axis.set_title(
        "the function: two sharp and two wide minima", loc="left", fontsize=10, fontweight="bold"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3_000_000, help="updates a chain")
    parser.add_argument("--chains", type=int, default=100, help="independent chains a variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("sharp-minima.png"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = simulate(given.steps, given.chains, given.seed)
    for name, points in zip(("minima", "maxima"), stationary(), strict=True):
        print(f"{name} of f: " + ", ".join(f"{point:.3f}" for point in points))
    Console(width=120).print(make_table(found))
    draw(found, given.steps, given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
