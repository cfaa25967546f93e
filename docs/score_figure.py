"""The score, seen on made-up returns: writes docs/score.png and prints its figures.

    python docs/score_figure.py

Three stabilizers of the same mean return, 8 starts and 16 checkpoints: one jumps from checkpoint to
checkpoint, one drifts slowly and as far, one is steady. Noise is normal: no return has an upper limit of 1 here.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from stab import gva

CHECKPOINTS, STARTS, MEAN = 16, 8, 0.8
COLOURS = {"jumps": "#D55E00", "drifts": "#0072B2", "steady": "#009E73"}  # Okabe and Ito
MARKERS = {"jumps": "o", "drifts": "s", "steady": "D"}


def series():
    """Return (checkpoints, starts) of each kind, all with the mean ``MEAN``.

    Each start has one level, the same in all three. ``drifts`` is scaled to the GVA of ``jumps``.
    """
    rng = np.random.default_rng(0)
    level = rng.normal(0, 0.08, STARTS)
    jumps = rng.normal(0, 0.15, (CHECKPOINTS, STARTS)) + rng.normal(0, 0.15, (CHECKPOINTS, 1))
    phase = np.linspace(-np.pi / 2, np.pi / 2, CHECKPOINTS)
    drifts = np.sin(phase)[:, None] * rng.uniform(0.5, 1.5, STARTS) + rng.normal(
        0, 0.1, (CHECKPOINTS, STARTS)
    )
    drifts *= gva.gva(jumps) / gva.gva(drifts)
    steady = rng.normal(0, 0.02, (CHECKPOINTS, STARTS))
    kinds = {"jumps": jumps, "drifts": drifts, "steady": steady}
    return {name: J - J.mean() + level - level.mean() + MEAN for name, J in kinds.items()}


def table(found):
    """Return what is reported of each, as a table in Markdown."""
    lines = [
        "| | mean | GVA | gva_adjacent | lag 2 | lag 4 | lag 8 | gva_mean |",
        "| :-- |" + " --: |" * 7,
    ]
    for name, J in found.items():
        by_lag = gva.gva_by_lag(J)
        figures = [J.mean(), gva.gva(J), *by_lag.values(), gva.gva_mean(J)]
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    return "\n".join(lines)


def draw(found, path):
    """Draw the returns, the deviation of each start, and GVA by lag."""
    figure, axes = plt.subplot_mosaic(
        [["jumps", "jumps", "drifts", "drifts", "steady", "steady"], ["starts"] * 3 + ["lags"] * 3],
        figsize=(8.4, 5.2),
        layout="constrained",
    )
    updates = 200 * np.arange(CHECKPOINTS) + 3000
    for name, J in found.items():
        axis = axes[name]
        axis.plot(updates, J, color=COLOURS[name], alpha=0.35, linewidth=0.8)
        axis.plot(updates, J.mean(1), color=COLOURS[name], linewidth=2.2)
        axis.set(
            title=f"{name}: mean {J.mean():.2f}, GVA {gva.gva(J):.2f}",
            xlabel="update",
            ylim=(-0.1, 1.5),
        )
        style = {"color": COLOURS[name], "marker": MARKERS[name], "label": name}
        axes["starts"].plot(np.arange(STARTS), J.std(0, ddof=1), linestyle="none", **style)
        axes["starts"].axhline(gva.gva(J), color=COLOURS[name], linewidth=0.8, linestyle="--")
        axes["lags"].plot(list(gva.gva_by_lag(J)), list(gva.gva_by_lag(J).values()), **style)
    axes["jumps"].set_ylabel("return")
    axes["starts"].set(
        title="std over checkpoints; dashed: GVA",
        xlabel="start",
        ylabel="units of the expert-random gap",
        ylim=0,
    )
    axes["lags"].set(title="GVA by lag", xlabel="checkpoints apart", xticks=gva.LAGS, ylim=0)
    axes["lags"].legend(frameon=False)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10.5)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("score.png"))
    given = parser.parse_args()
    found = series()
    draw(found, given.out)
    print(table(found))


if __name__ == "__main__":
    main()
