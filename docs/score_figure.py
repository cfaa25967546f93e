"""The score, seen on made-up returns: writes docs/score.png and prints its figures.

    python docs/score_figure.py

Four stabilizers of the same mean return, 8 starts and 16 checkpoints: the policy of one jumps from
checkpoint to checkpoint, that of another drifts as far, slowly; in the third single episodes differ
and the policy does not; the last is steady. Noise is normal: returns may exceed 1 here.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from stab import gva

CHECKPOINTS, STARTS, MEAN = 16, 8, 0.8
COLOURS = {"jumps": "#D55E00", "drifts": "#0072B2", "chaos": "#CC79A7", "steady": "#009E73"}
MARKERS = {"jumps": "o", "drifts": "s", "chaos": "^", "steady": "D"}
PARTS = {
    "checkpoint\n(GVA)": gva.gva,
    "start": gva.start_deviation,
    "episode\nnoise": gva.episode_noise,
}


def series():
    """Return (checkpoints, starts) of each kind, all with the mean ``MEAN``.

    Each start has its level, the same in all. ``drifts`` has the GVA of ``jumps``, ``chaos`` its
    protocol-1 score.
    """
    rng = np.random.default_rng(0)
    level = rng.normal(0, 0.08, STARTS)
    noise = rng.normal(0, 0.08, (3, CHECKPOINTS, STARTS))
    jumps = rng.normal(0, 0.2, (CHECKPOINTS, 1)) + noise[0]
    phase = np.linspace(-np.pi / 2, np.pi / 2, CHECKPOINTS)
    drifts = np.sin(phase)[:, None] + 0.3 * noise[1]
    drifts *= gva.gva(jumps) / gva.gva(drifts)
    chaos = noise[2]
    chaos *= gva.gva_protocol_1(jumps) / gva.gva_protocol_1(chaos)
    steady = rng.normal(0, 0.02, (CHECKPOINTS, STARTS))
    kinds = {"jumps": jumps, "drifts": drifts, "chaos": chaos, "steady": steady}
    return {name: J - J.mean() + level - level.mean() + MEAN for name, J in kinds.items()}


def table(returns):
    """Return what is reported of each, as a table in Markdown."""
    lines = [
        "| | mean | GVA | gva_adjacent | lag 2 | lag 4 | lag 8 | gva_trend | gva_mean"
        " | episode_noise | gva_protocol_1 |",
        "| :-- |" + " --: |" * 10,
    ]
    for name, J in returns.items():
        figures = [J.mean(), gva.gva(J), *gva.gva_by_lag(J).values(), gva.gva_trend(J)]
        figures += [gva.gva_mean(J), gva.episode_noise(J), gva.gva_protocol_1(J)]
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    return "\n".join(lines)


def draw(returns, path):
    """Draw the returns, the parts of their variance, and GVA by lag."""
    figure, axes = plt.subplot_mosaic(
        [["jumps", "drifts", "chaos", "steady"], ["parts", "parts", "lags", "lags"]],
        figsize=(9.0, 5.2),
        layout="constrained",
    )
    updates = 200 * np.arange(CHECKPOINTS) + 3000
    width = 0.2
    for k, (name, J) in enumerate(returns.items()):
        axis = axes[name]
        axis.plot(updates, J, color=COLOURS[name], alpha=0.35, linewidth=0.8)
        axis.plot(updates, J.mean(1), color=COLOURS[name], linewidth=2.2)
        axis.set(title=f"{name}: GVA {gva.gva(J):.2f}", xlabel="update", ylim=(-0.1, 1.7))
        heights = [part(J) for part in PARTS.values()]
        places = np.arange(len(PARTS)) + (k - 1.5) * width
        axes["parts"].bar(places, heights, width, color=COLOURS[name], label=name)
        style = {"color": COLOURS[name], "marker": MARKERS[name], "label": name}
        axes["lags"].plot(list(gva.gva_by_lag(J)), list(gva.gva_by_lag(J).values()), **style)
    axes["jumps"].set_ylabel("return")
    axes["parts"].set_xticks(range(len(PARTS)), PARTS)
    axes["parts"].set(
        title="parts, as standard deviations", ylabel="units of the expert-random gap"
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
    returns = series()
    draw(returns, given.out)
    print(table(returns))


if __name__ == "__main__":
    main()
