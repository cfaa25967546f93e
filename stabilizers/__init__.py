"""The registry of stabilizers. One method, one file; the file list is the table of contents."""

# The order of import is the order of every list and table.
# ruff: isort: off
from stab.stabilizers import none, ema, polyak, swa, accumulation, lr_decay, weight_decay, dropout

# ruff: isort: on
from stab.arguments import hyper
from stab.stabilizers.attach import Attached, attach
from stab.stabilizers.base import Average, GradientTransform, Intervention, Stabilizer, parse, split, stabilizers

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
    "hyper",
    "lr_decay",
    "none",
    "parse",
    "polyak",
    "split",
    "stabilizers",
    "swa",
    "weight_decay",
]
