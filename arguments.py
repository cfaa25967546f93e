"""Declared arguments: hyper-parameters with ranges, and their spelling ``key=value,key=value``.

Shared by stabilizer strings (``ema:half_life=500``) and policy strings (``mlp:width=128``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from stab.registry import StabError, suggest


def hyper(default: Any, doc: str, valid: Callable[[Any], bool], expected: str) -> Any:
    """Declare a hyper-parameter: its default, one line of documentation, its range as a predicate and in words."""
    return field(default=default, metadata={"doc": doc, "valid": valid, "expected": expected})


@dataclass(frozen=True)
class Declared:
    """Hyper-parameters checked against the ranges they declare. Raises StabError on construction when one is outside."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if "valid" not in meta:
                continue
            try:
                ok = not isinstance(value, bool) and bool(meta["valid"](value))
            except (TypeError, OverflowError):
                ok = False
            if not ok:
                raise StabError(f"{f.name}={value!r} is out of range: expected {meta['expected']}")


def parse_arguments(text: str, cls: type, what: str) -> dict[str, Any]:
    """Parse ``key=value,key=value`` against the fields of a dataclass; used for stabilizers and for policies.

    Raises StabError naming the valid keys and their ranges.
    """
    args: dict[str, Any] = {}
    types = get_type_hints(cls)
    known = {f.name: f.metadata.get("expected", types[f.name]) for f in dataclasses.fields(cls)}
    valid = "; ".join(f"{k}: {v}" for k, v in known.items()) or "it takes none"
    for pair in filter(None, text.split(",")):
        key, equals, value = (s.strip() for s in pair.partition("="))
        if not equals or not value:
            raise StabError(f"{what}: {pair!r} is not key=value. Valid: {valid}")
        if key not in known:
            raise StabError(f"{what} has no argument {key!r}.{suggest(key, known)} Valid: {valid}")
        if key in args:
            raise StabError(f"{what}: {key!r} is given twice")
        args[key] = _value(value, types[key], f"{what}: {key}={value}", str(known[key]))
    return args


def _value(text: str, kind: Any, what: str, expected: str) -> Any:
    kinds = getattr(kind, "__args__", (kind,))
    for convert in (int, float, str):
        if convert in kinds:
            try:
                return convert(text)
            except ValueError:
                continue
    raise StabError(f"{what} is not valid: expected {expected}")


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number in [low, high]."""
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
