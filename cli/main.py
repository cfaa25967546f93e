"""The command ``stab``: sub-commands, and how errors reach the user."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

import stab
from stab.cli import check, compare, data, expert, listing, new, report, scorer
from stab.registry import StabError

app = typer.Typer(
    name="stab",
    help="Which training stabilizer keeps a network in a feedback loop steady?",
    epilog="Start here:  stab compare --task hopper --all --quick",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("list", epilog=listing.EXAMPLES)(listing.list_)
app.command("check", epilog=check.EXAMPLES)(check.check)
app.add_typer(new.app, name="new")
app.add_typer(data.app, name="data")
app.add_typer(expert.app, name="expert")
app.add_typer(scorer.app, name="scorer")
app.command("report", epilog=report.EXAMPLES)(report.report)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"stab {stab.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 entries failed, 2 refused, 130 interrupted."""
    gc.set_threshold(
        100_000
    )  # importing torch makes a million objects that stay, and would look for garbage all along
    try:
        app()
    except StabError as e:
        print(f"stab: {e}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone (stab list | head)
        sys.exit(1)
    finally:
        gc.freeze()  # Python's last collections would look at every object of torch, for a second
