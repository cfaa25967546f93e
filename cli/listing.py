"""``stab list``: what is registered."""

from __future__ import annotations

import dataclasses
import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

EXAMPLES = "Examples:\n\nstab list\n\nstab list stabilizers -v\n\nstab list policies -v"


class Family(StrEnum):
    """What to list."""

    stabilizers = "stabilizers"
    tasks = "tasks"
    policies = "policies"


def list_(
    family: Annotated[Family | None, typer.Argument(help="Stabilizers and tasks by default.")] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Arguments with their ranges; loads plug-ins and says which are broken."),
    ] = False,
) -> None:
    """List stabilizers and tasks, built in and found through entry points, or the built-in policies."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stab.registry import Registry
    from stab.stabilizers import stabilizers
    from stab.tasks import tasks

    registries: dict[Family, Registry[Any]] = {Family.stabilizers: stabilizers, Family.tasks: tasks}
    console = Console()
    for name, registry in registries.items():
        if family not in (None, name):
            continue
        table = Table(title=name.value, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column(registry.noun, no_wrap=True)
        table.add_column("what it is")
        for entry in registry.listing(load=verbose):
            if entry.broken:
                about = f"broken: {entry.broken} ({entry.origin})"
            else:
                about = _about(registry.peek(entry.name), entry.origin, verbose)
            table.add_row(entry.name, Text(about))
        console.print(table)
        console.print()
    if family is Family.policies:  # only then: their module imports torch
        from stab.tasks.policies import POLICIES

        table = Table(title="policies", title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("policy", no_wrap=True)
        table.add_column("what it is")
        for kind, arguments in POLICIES.items():
            table.add_row(kind, Text(_about(arguments, "", verbose)))
        console.print(table)


def _about(obj: Any, origin: str, verbose: bool) -> str:
    """Return what the object says of itself, and with ``verbose`` its arguments: default, range, meaning."""
    if obj is None:
        return f"plug-in, not loaded ({origin}); -v loads it"
    lines = [getattr(obj, "summary", None) or (inspect.getdoc(obj) or "undocumented").splitlines()[0]]
    if verbose and isinstance(obj, type) and dataclasses.is_dataclass(obj):
        for f in dataclasses.fields(obj):
            lines.append(f"  {f.name}={f.default}  {f.metadata.get('doc', '')}; {f.metadata.get('expected', '')}")
        lines.append(f"  [{obj.__module__}:{obj.__qualname__}]")
    return "\n".join(lines)
