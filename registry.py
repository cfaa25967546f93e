"""Named, pluggable objects: stabilizers and tasks, built in or found through entry points.

One :class:`Registry` per family. Listing imports no plug-in; a plug-in is loaded when its name is
used, and a broken one is reported with its reason and stops nobody else.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
NAME = re.compile(r"[a-z][a-z0-9_]*")
NO_MEMORY = "not enough memory"
# In what torch and NumPy say then.
ALLOCATION = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGTPE]iB))")


class StabError(ValueError):
    """What the user asked for cannot be done: one clear line; the command line exits with 2."""


def reason(error: BaseException) -> str:
    """Return on one line what went wrong; stab's own errors need no name before it."""
    said = " ".join(str(error).split())
    if isinstance(error, StabError):
        return said
    asked = ALLOCATION.search(said)
    if asked or isinstance(error, MemoryError):
        return f"{NO_MEMORY}{f' for {asked[1]}' if asked else ''}"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class Incompatible(Exception):
    """Raised by a stabilizer that cannot serve a recipe or task: the pair is skipped."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'ema'?"`` for the nearest known name, or nothing."""
    lower = {one.lower(): one for one in known}  # EMA, Ema
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


@dataclass(frozen=True)
class Listing:
    """One registered name: where it comes from and, if it cannot be used, why not."""

    name: str
    origin: str
    broken: str | None = None


class Registry(Generic[T]):
    """The objects of one family by name.

    Built-ins register with the decorator; other distributions with an entry point of ``group``
    whose value is ``module:Object``. A name registered twice is an error naming both origins, never
    an override: overriding would silently swap the method being measured.

    Args:
        noun: what an object is called in messages ("stabilizer").
        group: the entry-point group ("stab.stabilizers").
        valid: whether an object is one of the family.
    """

    def __init__(self, noun: str, group: str, valid: Callable[[object], bool]) -> None:
        self.noun, self.group, self._valid = noun, group, valid
        self._registered: dict[str, tuple[T, str]] = {}
        self._plugins: dict[str, list[importlib.metadata.EntryPoint]] | None = None
        self._loaded: dict[str, T] = {}
        self._failures: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class or function decorator. Raises StabError if the name is malformed or taken."""

        def add(obj: T) -> T:
            origin = _origin(obj)
            if not NAME.fullmatch(name):
                raise StabError(
                    f"{name!r} is not a {self.noun} name: expected lower-case letters, digits and _"
                    f" ({origin})"
                )
            if name in self._registered:
                raise StabError(
                    f"{self.noun} {name!r} is registered twice: {self._registered[name][1]} and"
                    f" {origin}"
                )
            self._registered[name] = (obj, origin)
            return obj

        return add

    def names(self) -> list[str]:
        """Every known name: built-ins in the order of registration, then plug-ins by name."""
        return [*self._registered, *sorted(set(self._entry_points()) - set(self._registered))]

    def listing(self, load: bool = False) -> list[Listing]:
        """One record per name. Plug-ins are imported only with ``load=True``."""
        rows = []
        for name in self.names():
            if load:
                try:
                    self.get(name)
                except StabError:
                    pass
            origins = self._origins(name)
            conflict = f"registered twice: {' and '.join(origins)}" if len(origins) > 1 else None
            rows.append(Listing(name, origins[0], conflict or self._failures.get(name)))
        return rows

    def get(self, name: str) -> T:
        """Return the object registered as ``name``, importing its plug-in if need be.

        Raises StabError if the name is unknown (with a suggestion), registered twice, or its
        plug-in is broken.
        """
        origins = self._origins(name)
        if not origins:
            broken = "".join(f" ({n} is broken: {why})" for n, why in self._failures.items())
            raise StabError(
                f"Unknown {self.noun} {name!r}.{suggest(name, self.names())} Known:"
                f" {', '.join(self.names())}.{broken}"
            )
        if len(origins) > 1:
            raise StabError(
                f"{self.noun} {name!r} is registered twice: {' and '.join(origins)}; uninstall one"
                " of them"
            )
        if name in self._registered:
            return self._registered[name][0]
        if name in self._loaded:
            return self._loaded[name]
        try:
            obj: T = self._entry_points()[name][0].load()
            if not NAME.fullmatch(name):
                raise TypeError(
                    f"{name!r} is not a {self.noun} name: expected lower-case letters, digits and _"
                )
            if not self._valid(obj):
                raise TypeError(f"{obj!r} is not a {self.noun}")
        except (Exception, SystemExit) as e:
            self._failures[name] = reason(e)
            raise StabError(
                f"{self.noun} {name!r} ({origins[0]}) is broken: {self._failures[name]}"
            ) from e
        self._loaded[name] = obj
        return obj

    def peek(self, name: str) -> T | None:
        """Return the object if it is loaded already; imports nothing."""
        return self._registered[name][0] if name in self._registered else self._loaded.get(name)

    def _entry_points(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        if self._plugins is None:
            self._plugins = {}
            for point in importlib.metadata.entry_points(group=self.group):
                points = self._plugins.setdefault(point.name, [])
                # sys.path can hold a distribution twice (an editable install and its source).
                if all(_plugin_origin(point) != _plugin_origin(other) for other in points):
                    points.append(point)
        return self._plugins

    def _origins(self, name: str) -> list[str]:
        plugins = [_plugin_origin(point) for point in self._entry_points().get(name, [])]
        return [self._registered[name][1], *plugins] if name in self._registered else plugins


def _origin(obj: object) -> str:
    target = inspect.unwrap(obj) if callable(obj) else type(obj)
    target = getattr(target, "func", target)  # functools.partial
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return repr(obj)


def _plugin_origin(point: importlib.metadata.EntryPoint) -> str:
    dist = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
    return f"{dist}: {point.value}"
