"""GVA against horizon for several spectral radii of the closed loop, on the cliff: writes a PNG.

    python examples/cliff_horizon.py       # radii from 0.995 to 1.0005 into cliff-horizon.png
    python examples/cliff_horizon.py --seeds 10 --radii 0.99 1 --out here.png

For each radius a dataset stab/cliff-radius<10000 r>/expert-v0 is recorded (once), and
``stab.compare`` trains on it.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import stab
from stab.tasks import datasets
from stab.tasks.control.cliff import LINEAR, Cliff

RADII = [0.995, 0.998, 0.999, 1.0, 1.0005]


def compare(radius, seeds, runs, stabilizers, overrides):
    """Return the comparison of one radius; its dataset is recorded first if it is missing."""
    dataset = f"stab/cliff-radius{round(10_000 * radius)}/expert-v0"
    if not datasets.exists(dataset):
        Cliff("cliff", dataset, radius=radius).collect()
    out = runs / f"radius{round(10_000 * radius)}"
    overrides = [
        "train.lr=0.01",
        *overrides,
    ]  # so that a linear policy is learned well before the window
    return stab.compare(
        "cliff",
        stabilizers,
        dataset=dataset,
        policy=LINEAR,
        seeds=seeds,
        out=out,
        resume=True,
        overrides=overrides,
    )


def draw(found, path):
    """Draw GVA against horizon: one line per radius, one panel per stabilizer."""
    stabilizers = sorted(
        {entry["stabilizer"] for result in found.values() for entry in result.entries}, reverse=True
    )
    figure, axes = plt.subplots(
        1,
        len(stabilizers),
        figsize=(4.5 * len(stabilizers), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, stabilizer in zip(axes[0], stabilizers, strict=True):
        for radius, result in found.items():
            (entry,) = (entry for entry in result.entries if entry["stabilizer"] == stabilizer)
            points = entry["gva_by_horizon"]
            axis.plot(
                [int(horizon) for horizon in points], list(points.values()), label=f"{radius:g}"
            )
        axis.set(title=stabilizer, xlabel="horizon (steps)")
    axes[0, 0].set_ylabel("GVA")
    axes[0, -1].legend(title="spectral radius", frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--radii", type=float, nargs="+", default=RADII)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stabilizers", default="none,ema")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/cliff-horizon"), help="run folders, one a radius"
    )
    parser.add_argument("--out", type=Path, default=Path("cliff-horizon.png"))
    parser.add_argument("overrides", nargs="*", help="settings such as train.updates=400")
    given = parser.parse_intermixed_args()
    found = {
        r: compare(r, given.seeds, given.runs, given.stabilizers, given.overrides)
        for r in given.radii
    }
    draw(found, given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
