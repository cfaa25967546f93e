"""The strings that spell stabilizers: ``ema:half_life=500``, ``lr_decay+ema``, lists, slugs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stab.arguments import parse_arguments
from stab.recipe import Recipe
from stab.registry import StabError, reason
from stab.stabilizers.base import Average, Intervention, stabilizers

LONGEST = 120  # characters of a slug
LARGEST = 10_000  # stabilizers that one string with alternatives may spell


@dataclass(frozen=True)
class Stabilizer:
    """Interventions, applied left to right, then at most one average."""

    string: str
    interventions: tuple[Intervention, ...] = ()
    average: Average | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe as edited by the interventions. Raises Incompatible."""
        for intervention in self.interventions:
            recipe = intervention.apply(recipe)
        for intervention in self.interventions:
            intervention.check(recipe)
        return recipe

    @property
    def methods(self) -> list[Average | Intervention]:
        """The interventions, then the average if there is one."""
        return [*self.interventions, *([] if self.average is None else [self.average])]

    @property
    def raw(self) -> str:
        """The string without its average."""
        return self.string.rpartition("+")[0] or "none" if self.average else self.string

    @property
    def arguments(self) -> dict[str, Any]:
        """Every hyper-parameter, as ``ema.half_life``, with its value."""
        # ``none`` contributes no method.
        named = zip(_names(self.string), self.methods, strict=False)
        return {
            f"{name}.{f.name}": getattr(method, f.name)
            for name, method in named
            if name != "recipe"
            for f in dataclasses.fields(method)
        }


def method(string: str) -> str:
    """Return a stabilizer string without arguments, and without settings of the recipe.

    >>> method("recipe:lr=0.0003+lr_decay+ema:half_life=300")
    'lr_decay+ema'
    """
    return "+".join(name for name in _names(string) if name != "recipe") or "none"


def slug(string: str) -> str:
    """Return a string as a file name: ``lr_decay:final=0.1+ema`` -> ``lr_decay-final=0.1--ema``.

    A long one is cut and ends in a hash: file systems take 255 bytes.
    """
    name = re.sub(r"^\.|[^A-Za-z0-9_.,=-]", "_", string.replace(":", "-").replace("+", "--"))
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(string.encode()).hexdigest()[:8]}"


def split(text: str) -> list[str]:
    """Split a list of stabilizer strings at commas; a piece ``key=...`` continues the one before.

    >>> split("none,ema:half_life=500,alpha=0.67,lr_decay+ema")
    ['none', 'ema:half_life=500,alpha=0.67', 'lr_decay+ema']
    """
    parts: list[str] = []
    for piece in text.split(","):
        if re.match(r"[^:+]*=", piece) and parts:
            parts[-1] += f",{piece.strip()}"
        else:
            parts.append(piece.strip())
    return parts


def expand(text: str) -> list[str]:
    """Return the canonical strings that a list spells; ``|`` separates alternatives.

    >>> expand("ema:half_life=100|300,alpha=0.67,none|lr_decay+polyak")
    ['ema:alpha=0.67,half_life=100', 'ema:alpha=0.67,half_life=300', 'polyak', 'lr_decay+polyak']

    Raises StabError for what is not a stabilizer string, and for more than ``LARGEST`` of them.
    """
    strings: list[str] = []
    for pattern in split(text):
        pieces = [piece.split("|") for piece in re.split(r"([=,:+])", pattern)]
        if math.prod(map(len, pieces)) > LARGEST:
            raise StabError(
                f"{pattern[:60]!r}... spells more than {LARGEST} stabilizers: make several runs"
            )
        strings += [parse("".join(choice)).string for choice in itertools.product(*pieces)]
    return list(dict.fromkeys(strings))


def fold(strings: Iterable[str]) -> list[str]:
    """Return fewer strings, with alternatives, that ``expand`` turns back into these.

    >>> fold(["none", "ema:half_life=100", "ema:half_life=300"])
    ['none', 'ema:half_life=100|300']
    """
    grouped: dict[tuple[str, ...], list[list[str]]] = {}
    for string in strings:
        pieces = re.split(r"((?<==)[^=,:+;][^,+]*)", string)  # values at the odd places
        grouped.setdefault(tuple(pieces[::2]), []).append(pieces[1::2])
    folded = []
    for pattern, values in grouped.items():
        columns = [list(dict.fromkeys(column)) for column in zip(*values, strict=True)]
        varied = [value for column in columns if len(column) > 1 for value in column]
        # Only a whole product is folded, and a value that holds arguments of its own is not.
        whole = len(values) == math.prod(map(len, columns))
        if whole and not re.search("[:=]", "".join(varied)):
            folded.append(_filled(pattern, ["|".join(column) for column in columns]))
        else:
            folded += [_filled(pattern, chosen) for chosen in values]
    return folded


def _filled(pattern: Sequence[str], values: Sequence[str]) -> str:
    return "".join(map("".join, zip(pattern, [*values, ""], strict=True)))


def parse(text: str) -> Stabilizer:
    """Return the stabilizer that a string spells, with its canonical string.

    Canonical: non-default arguments, in alphabetical order. Raises StabError if it does not parse,
    a name or argument is unknown, a value is out of range, or an average is not the last part.

    >>> parse("lr_decay:shape=linear+ema:half_life=500").string
    'lr_decay+ema:half_life=500'
    """
    methods: list[Average | Intervention] = []
    strings: list[str] = []
    for atom in _atoms(text):
        method, string = _parse_atom(atom, text)
        if string != "none":  # in a composition it adds nothing
            methods.append(method)
            strings.append(string)
    for method in methods[:-1]:
        if isinstance(method, Average):
            raise StabError(
                f"{text!r}: an average comes last, and only one (interventions+average)"
            )
    average = methods[-1] if methods and isinstance(methods[-1], Average) else None
    interventions = tuple(m for m in methods if isinstance(m, Intervention))
    return Stabilizer("+".join(strings) or "none", interventions, average)


def _atoms(text: str) -> list[str]:
    return re.split(r"\+(?=\s*[A-Za-z_])", text)  # not the + of 1e+3


def _names(text: str) -> list[str]:
    return [atom.partition(":")[0] for atom in _atoms(text)]


def _parse_atom(atom: str, text: str) -> tuple[Average | Intervention, str]:
    name, colon, rest = atom.strip().partition(":")
    if not name or (colon and not rest):
        raise StabError(
            f"{text!r} is not a stabilizer: expected name or name:key=value,key=value, parts joined"
            " with +"
        )
    cls = stabilizers.get(name)
    args = parse_arguments(rest, cls, f"{stabilizers.noun} {name!r}")
    try:
        method = cls(**args)
    except Exception as e:  # a plug-in may raise anything
        raise StabError(f"{stabilizers.noun} {name!r}: {reason(e)}") from e
    return method, _canonical(name, method)


def spell(method: Average | Intervention) -> str:
    """Return the canonical string of an object; of a class not registered, by its own name."""
    names = [name for name in stabilizers.names() if stabilizers.peek(name) is type(method)]
    return _canonical(names[0] if names else type(method).__name__, method)


def _canonical(name: str, method: Average | Intervention) -> str:
    values = {f.name: (getattr(method, f.name), f.default) for f in dataclasses.fields(method)}
    changed = {key: value for key, (value, default) in values.items() if value != default}
    canonical = ",".join(f"{key}={changed[key]}" for key in sorted(changed))
    return f"{name}:{canonical}" if canonical else name
