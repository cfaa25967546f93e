"""``stab check``: the conformance kit from outside."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import Annotated

import typer

EXAMPLES = (
    "Examples:\n\nstab check ema\n\nstab check lr_decay+ema:half_life=500 hopper\n\n"
    "stab check my_pkg:Lookahead -v"
)


def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Stabilizers, tasks, Minari datasets, stabilizer strings, or module:Object"
            " (found in the current folder,"
            " too).",
            show_default=False,
        ),
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what each check asks for.")
    ] = False,
) -> None:
    """Check that stabilizers and tasks keep the rules a comparison relies on.

    One line a check. Exit code 0: all passed, 1: some failed, 2: no such object.

    A task's demonstrations are collected first where they are missing.
    """
    from stab.checks import CheckFailed, yield_checks

    sys.path.append(os.getcwd())  # last: a file here must not take the name of a library
    checks = [c for name in names for c in yield_checks(name)]
    width = shutil.get_terminal_size().columns
    failed = 0

    def say(line: str, indent: int = 8) -> None:
        typer.echo(
            textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)
        )

    for c in checks:
        try:
            c.run()
        except CheckFailed as e:
            failed += 1
            say(f"FAILED  {c.object}  {c.name}: {e}")
        else:
            say(f"ok      {c.object}  {c.name}")
        if verbose:
            typer.echo(
                textwrap.fill(
                    c.doc.replace("``", ""),
                    width,
                    initial_indent=" " * 10,
                    subsequent_indent=" " * 10,
                )
            )
    typer.echo(
        f"{len(checks)} checks, {failed} failed" if failed else f"{len(checks)} checks, all passed"
    )
    if failed:
        raise typer.Exit(1)
