"""Paired differences between entries of a run, with 95 % intervals over seeds, not corrected.

python examples/paired.py RUN     # none, decay and EMA of a sweep's learning rates
"""

import json
import sys
from pathlib import Path

import numpy as np

from stab import gva

leaderboard = json.loads((Path(sys.argv[1]) / "leaderboard.json").read_text())
found = {entry["stabilizer"]: np.array(entry["gva_per_seed"]) for entry in leaderboard["entries"]}


def difference(first: str, second: str) -> str:
    """Return GVA(first) - GVA(second)."""
    if first not in found or second not in found:
        return "–"
    between = gva.interval(found[first] - found[second])
    return f"{between.mean:+.3f} [{between.low:+.3f}, {between.high:+.3f}]"


print(
    "recipe          half-life  none - ema               decay - ema"
    "              ema - (decay + ema)"
)
for recipe in ("", "recipe:lr=0.0003+", "recipe:lr=0.003+"):
    raw = recipe.rstrip("+") or "none"
    print(f"{raw:<16} none - decay: {difference(raw, f'{recipe}lr_decay')}")
    for life in (30, 100, 300, 1000):
        ema, both = f"{recipe}ema:half_life={life}", f"{recipe}lr_decay+ema:half_life={life}"
        pairs = ((raw, ema), (f"{recipe}lr_decay", ema), (ema, both))
        print(f"{raw:<16} {life:>8}  " + "  ".join(f"{difference(*pair):<23}" for pair in pairs))
