"""The command ``stab``: sub-commands, and how errors reach the user."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

import stab
from stab.cli import check, compare, data, expert, listing, new, report, scorer
from stab.cli.stopping import INTERRUPTIONS, exit_code, stoppable
from stab.registry import StabError, reason
from stab.reports import clean

_asked = {"debug": False}

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
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the trace of an error: stab --debug COMMAND ...")
    ] = False,
) -> None:
    _asked["debug"] = debug


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 entries failed or the output could not be written, 2 refused, 3 an error
    that stab did not expect, 130, 143 and 129 interrupted (Ctrl-C, SIGTERM, SIGHUP).
    """
    # Importing torch makes a million objects that stay, and would look for garbage all along.
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # whatever the locale's encoding is
    _asked["debug"] = False
    try:
        code = _run()
        sys.stdout.flush()
    except OSError as e:
        code = _not_written(e)
    finally:
        gc.freeze()  # Python's last collections would look at every object of torch, for a second
    sys.exit(code)


def _run() -> Any:
    """Run a command; return the exit code. Raises OSError if the output cannot be written."""
    try:
        os.getcwd()  # libraries fail without one, in words of their own
        with stoppable():
            app()
    except SystemExit as e:
        return e.code
    except INTERRUPTIONS as e:
        return _say(str(e) or "interrupted", exit_code(e))
    except Exception as e:
        if _asked["debug"] or (isinstance(e, OSError) and e.filename is None and not _no_folder()):
            raise
        return _say(*_explained(e))
    return 0


def _no_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _explained(error: Exception) -> tuple[str, int]:
    """Return an error in one line, and the exit code."""
    said = " ".join(str(error).split())
    if isinstance(error, StabError):
        return said, 2
    if _no_folder():
        return "the current folder was removed: change to another", 2
    return f"unexpected {reason(error)} ({_where(error)}); stab --debug shows the trace", 3


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.name}, {last.filename}:{last.lineno}"


def _say(what: str, code: int) -> int:
    print(f"stab: {clean.message(what)}", file=sys.stderr)
    return code


def _not_written(error: OSError) -> int:
    """Say that the output could not be written, unless its reader has gone (stab list | head)."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # Python will try to write what is left
    try:
        if not isinstance(error, BrokenPipeError):
            _say(f"cannot write the output: {error.strerror or error}", 1)
    except OSError:
        os.dup2(nothing, 2)
    return 1
