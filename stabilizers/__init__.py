"""The registry of stabilizers. One method, one file; the file list is the table of contents."""

# The order of import is the order of every list and table.
# ruff: isort: off
from stab.stabilizers import (
    none,
    ema,
    polyak,
    swa,
    accumulation,
    lr_decay,
    weight_decay,
    dropout,
    recipe,
)

# ruff: isort: on
from stab.arguments import hyper
from stab.stabilizers.attach import attach
from stab.stabilizers.attached import Attached
from stab.stabilizers.base import Average, GradientTransform, Intervention, stabilizers
from stab.stabilizers.strings import Stabilizer, expand, parse, split

__all__ = [
    "Attached",
    "Average",
    "GradientTransform",
    "Intervention",
    "Stabilizer",
    "accumulation",
    "attach",
    "dropout",
    "ema",
    "expand",
    "hyper",
    "lr_decay",
    "none",
    "parse",
    "polyak",
    "recipe",
    "split",
    "stabilizers",
    "swa",
    "weight_decay",
]
