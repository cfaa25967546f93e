"""``stab list``: what is registered; with ``-v`` the stabilizers' cards."""

from __future__ import annotations

import dataclasses
import inspect
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stab.cli.progress import bars

if TYPE_CHECKING:
    from stab.checks.costs import Cost
    from stab.cli.console import Console
    from stab.stabilizers.cards import Card

EXAMPLES = (
    "Examples:\n\nstab list\n\nstab list stabilizers -v\n\nstab list policies -v\n\n"
    "stab list stabilizers --markdown > docs/stabilizers.md"
)


class Family(StrEnum):
    """What to list."""

    stabilizers = "stabilizers"
    tasks = "tasks"
    policies = "policies"


def list_(
    family: Annotated[
        Family | None, typer.Argument(help="Stabilizers and tasks by default.")
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Arguments with their ranges; of stabilizers the whole card, with costs measured"
            " once on this machine"
            " (seconds each). Loads plug-ins and says which are broken.",
        ),
    ] = False,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="The stabilizers' cards as a page in Markdown (implies -v)."
        ),
    ] = False,
) -> None:
    """List stabilizers and tasks, built in and found through entry points, or policies."""
    from rich.table import Table
    from rich.text import Text

    from stab.cli.console import Console
    from stab.registry import Registry, StabError
    from stab.stabilizers import stabilizers
    from stab.tasks import tasks

    if markdown and family is not Family.stabilizers:
        raise StabError("--markdown is for stabilizers: stab list stabilizers --markdown")
    registries: dict[Family, Registry[Any]] = {Family.stabilizers: stabilizers, Family.tasks: tasks}
    if family is Family.policies:  # only then: their module imports torch
        from stab.tasks.policies import policies

        registries[Family.policies] = policies
    console = Console()
    for name, registry in registries.items():
        if family not in (None, name):
            continue
        if name is Family.stabilizers and (verbose or markdown):
            _cards(console, markdown)
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


def _about(obj: Any, origin: str, verbose: bool) -> str:
    """Return what the object says of itself; ``verbose`` adds its arguments."""
    if obj is None:
        return f"plug-in, not loaded ({origin}); -v loads it"
    lines = [
        getattr(obj, "summary", None) or (inspect.getdoc(obj) or "undocumented").splitlines()[0]
    ]
    if verbose and isinstance(obj, type) and dataclasses.is_dataclass(obj):
        lines += [f"  {f.name}={f.default}  {_meaning(f)}" for f in dataclasses.fields(obj)]
        lines.append(f"  [{obj.__module__}:{obj.__qualname__}]")
    return "\n".join(lines)


def _meaning(argument: dataclasses.Field[Any]) -> str:
    return f"{argument.metadata.get('doc', '')}; {argument.metadata.get('expected', '')}"


def _cards(console: Console, markdown: bool) -> None:
    """Print every stabilizer's card, or the page of them."""
    from rich.text import Text

    from stab.checks.costs import SETTING, cached
    from stab.cli.console import Console
    from stab.stabilizers import stabilizers
    from stab.stabilizers.cards import card

    listing = stabilizers.listing(load=True)
    sound = [entry.name for entry in listing if not entry.broken]
    with bars(Console(stderr=True, highlight=False)) as progress:
        running = progress.add_task("Measuring costs", total=1.0, visible=False)
        costs = cached(sound, lambda done: progress.update(running, completed=done, visible=True))
    if markdown:
        typer.echo(_page([(name, stabilizers.get(name), costs[name]) for name in sound]), nl=False)
        return
    for entry in listing:
        if entry.broken:
            _card(console, entry.name, f"broken: {entry.broken} ({entry.origin})", [])
            continue
        cls = stabilizers.get(entry.name)
        described = card(cls)
        lines = [
            ("rule" if n == 0 else "", line)
            for n, line in enumerate(described.formula.splitlines())
        ]
        lines += [(f.name, f"{f.default}: {_meaning(f)}") for f in dataclasses.fields(cls)]
        lines += [
            (label.lower(), text.replace("``", ""))
            for label, text in _labelled(described, costs[entry.name])
        ]
        lines.append(("defined in", f"{cls.__module__}:{cls.__qualname__}"))
        _card(console, entry.name, described.summary.replace("``", ""), lines)
    console.print(Text(f"Costs are measured on this machine: {SETTING}."))
    console.print()


def _card(console: Console, name: str, summary: str, lines: list[tuple[str, str]]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print(Text.assemble((name, "bold"), "  ", summary))
    below = Table.grid(padding=(0, 2, 0, 0))
    below.add_column(no_wrap=True)
    below.add_column()
    for label, text in lines:
        below.add_row(label, Text(text))
    console.print(Padding(below, (0, 0, 1, 2)))


def _labelled(card: Card, cost: Cost | str) -> list[tuple[str, str]]:
    measured = f"not measured ({cost})" if isinstance(cost, str) else str(cost)
    return [
        ("Suggested", card.suggested),
        ("Cost", f"{card.cost} Measured: {measured}."),
        ("Conflicts", card.conflicts if card.conflicts != "not stated" else "none known."),
        ("Source", card.source),
    ]


def _page(entries: list[tuple[str, type, Cost | str]]) -> str:
    """Return the docs page of the stabilizers."""
    from stab.checks.costs import SETTING
    from stab.stabilizers import Average
    from stab.stabilizers.cards import card

    head = [
        "# Stabilizers",
        "",
        "Made by `stab list stabilizers --markdown`; what a card says is the docstring of its"
        " class. Costs are measured"
        f" against the base recipe ({SETTING}): time of an update, memory kept between updates.",
        "",
        "| stabilizer | kind | what it is | time | copies |",
        "| :-- | :-- | :-- | --: | --: |",
    ]
    body = []
    for name, cls, cost in entries:
        described, kind = card(cls), "average" if issubclass(cls, Average) else "intervention"
        time, copies = (
            ("–", "–")
            if isinstance(cost, str)
            else (f"x{cost.time:.2f}", f"{round(cost.memory, 1) + 0:g}")
        )
        head.append(
            f"| [{name}](#{name}) | {kind} | {_cell(described.summary)} | {time} | {copies} |"
        )
        body += [
            "",
            f"## {name}",
            "",
            described.summary,
            "",
            "```",
            *described.formula.splitlines(),
            "```",
            "",
        ]
        body += [
            paragraph for text in described.prose for paragraph in (text.replace("``", "`"), "")
        ]
        if dataclasses.fields(cls):
            body += ["| argument | default | meaning | range |", "| :-- | :-- | :-- | :-- |"]
            for f in dataclasses.fields(cls):
                meta = f.metadata
                body.append(
                    f"| {f.name} | {f.default} | {_cell(meta.get('doc', ''))} |"
                    f" {_cell(meta.get('expected', ''))} |"
                )
            body.append("")
        body += [
            f"- **{label}:** {text.replace('``', '`')}"
            for label, text in _labelled(described, cost)
        ]
    return "\n".join([*head, *body, ""])


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")
