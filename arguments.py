"""Declared arguments: hyper-parameters with ranges, and their spelling ``key=value,key=value``.

Shared by stabilizer strings (``ema:half_life=500``) and policy strings (``mlp:width=128``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from stab.registry import StabError, suggest


@dataclass(frozen=True)
class Range:
    """The values that an argument may have: a predicate, and the same in words."""

    holds: Callable[[Any], bool]
    words: str

    def __call__(self, value: Any) -> bool:
        return self.holds(value)


def integer(low: int) -> Range:
    """The integers from ``low`` on."""
    return Range(lambda v: isinstance(v, int) and v >= low, f"an integer >= {low}")


def number(interval: str) -> Range:
    """The finite numbers in an interval, such as ``"[0, 1)"`` or ``"(0, inf)"``."""
    low, high = map(float, interval[1:-1].split(","))

    def holds(v: Any) -> bool:
        above = v >= low if interval[0] == "[" else v > low
        return is_number(v) and above and (v <= high if interval[-1] == "]" else v < high)

    if high < math.inf:
        return Range(holds, f"a number in {interval}")
    return Range(holds, f"a number {'>=' if interval[0] == '[' else '>'} {low:g}")


def choice(*names: str) -> Range:
    """One of these names."""
    return Range(lambda v: v in names, f"{', '.join(names[:-1])} or {names[-1]}")


def hyper(default: Any, doc: str, valid: Callable[[Any], bool], expected: str = "") -> Any:
    """Declare a hyper-parameter.

    Args:
        default: its default.
        doc: one line of documentation.
        valid: its range: ``integer(1)``, ``number("[0, 1)")``, ``choice(...)`` or any predicate.
        expected: the range in words; a ``Range`` brings its own.
    """
    words = expected or getattr(valid, "words", "")
    return field(default=default, metadata={"doc": doc, "valid": valid, "expected": words})


@dataclass(frozen=True)
class Declared:
    """Arguments that are checked against their ranges; StabError on construction."""

    prefix: ClassVar[str] = ""  # of names in messages

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
                name = f"{self.prefix}{f.name}"
                raise StabError(f"{name}={value!r} is out of range: expected {meta['expected']}")

    @classmethod
    def instead(cls, key: str, value: str) -> str:  # noqa: ARG003
        """Return advice on an argument that does not exist, or nothing: other libraries' names."""
        return ""


def parse_arguments(text: str, cls: type, what: str) -> dict[str, Any]:
    """Parse ``key=value,key=value`` against the fields of a dataclass.

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
            hint = cls.instead(key, value) if issubclass(cls, Declared) else ""
            hint = hint or suggest(key, known)
            raise StabError(f"{what} has no argument {key!r}.{hint} Valid: {valid}")
        if key in args:
            raise StabError(f"{what}: {key!r} is given twice")
        args[key] = _value(value, types[key], f"{what}: {key}={value}", str(known[key]))
    return args


def _value(text: str, kind: Any, what: str, expected: str) -> Any:
    kinds = getattr(kind, "__args__", (kind,))
    for convert in (int, float, str):
        if convert in kinds:
            try:
                return int(float(text)) if _is_whole(text, convert) else convert(text)
            except (ValueError, OverflowError):
                continue
    raise StabError(f"{what} is not valid: expected {expected}")


def _is_whole(text: str, kind: type) -> bool:
    """Whether an integer is spelled as 1e3."""
    return kind is int and "e" in text.lower() and float(text).is_integer()


def is_number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
