"""``stab new``: a plug-in distribution to start from, complete and passing its own tests."""

from __future__ import annotations

import importlib.metadata
import keyword
import os
import re
import tempfile
from enum import StrEnum
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer

app = typer.Typer(
    help="Write a plug-in of your own to start from: a stabilizer or a task.", no_args_is_help=True
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="What it will be called in stab list: lower-case letters, digits and _.",
    ),
]


class Kind(StrEnum):
    """The two kinds of stabilizers."""

    average = "average"
    intervention = "intervention"


@app.command(
    epilog="Examples:\n\nstab new stabilizer my_mean\n\n"
    "stab new stabilizer small_steps --kind intervention"
)
def stabilizer(
    name: Name,
    kind: Annotated[
        Kind,
        typer.Option(
            help="An average looks at the iterates and never changes them, an intervention edits"
            " the recipe."
        ),
    ] = Kind.average,
) -> None:
    """Write stab-NAME/ here: a stabilizer in one file, its tests, and what installs it."""
    example = "power=0" if kind is Kind.average else "by=2"
    folder = _write("stabilizer", name, f"{kind.value}.py", {"example": example})
    _say(folder, f"stab compare --task cliff --stabilizers {name}")


@app.command(epilog="Example:\n\nstab new task my_task")
def task(name: Name) -> None:
    """Write stab-NAME/: a task in one file (environment, expert, demonstrations), and its tests."""
    _say(_write("task", name, "task.py", {}), f"stab compare --task {name} --all")


def _write(family: str, name: str, source: str, values: dict[str, str]) -> Path:
    """Write the distribution, whole or not at all; return its folder. Raises StabError."""
    from stab.registry import NAME, StabError
    from stab.stabilizers import stabilizers
    from stab.tasks import tasks

    if not NAME.fullmatch(name):
        raise StabError(
            f"{name!r} is not a {family} name: expected lower-case letters, digits and _, a letter"
            " first"
        )
    for registry in (stabilizers, tasks):  # both: ``stab check NAME`` finds either
        for entry in registry.listing():
            if entry.name == name:
                by = (
                    "built in" if registry.peek(name) is not None else entry.origin
                )  # listing loads no plug-in
                raise StabError(
                    f"{registry.noun} {name!r} is registered already ({by}): choose another name"
                )
    distribution = "stab-" + re.sub("_+", "-", name).strip("-")
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise StabError(
            f"a distribution {distribution} is installed already (version {version}): choose"
            " another name"
        )
    folder = Path(distribution)
    if os.path.lexists(folder):
        raise StabError(
            f"{folder.absolute()} exists already and is left as it is: choose another name or"
            " folder"
        )

    texts = {
        "pyproject.toml": _template("pyproject.toml"),
        f"stab_{name}.py": _template(source),
        f"test_{name}.py": _template(f"test_{family}.py"),
    }
    values |= {
        "family": family,
        "group": (stabilizers if family == "stabilizer" else tasks).group,
        "name": name,
        "distribution": distribution,
        "module": f"stab_{name}",
        "class_name": _class_name(name, family, texts[f"stab_{name}.py"].template),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".stab-", dir=".") as temporary:
            made = Path(temporary) / distribution
            made.mkdir()
            for file, text in texts.items():
                (made / file).write_text(text.substitute(values), encoding="utf-8")
            os.replace(made, folder)
    except OSError as e:
        raise StabError(f"cannot write {folder.absolute()}: {e.strerror or e}") from e
    return folder


def _template(file: str) -> Template:
    return Template(
        (resources.files("stab.cli") / "templates" / f"{file}.txt").read_text(encoding="utf-8")
    )


def _class_name(name: str, family: str, source: str) -> str:
    """Return the name in CamelCase, followed by the family if it would hide another name."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    taken = keyword.iskeyword(camel) or re.search(rf"\b{camel}\b", source)
    return camel + family.capitalize() if taken else camel


def _say(folder: Path, compare: str) -> None:
    for file in sorted(folder.iterdir()):
        typer.echo(file)
    typer.echo(f"\nNext:\n  pip install -e ./{folder} pytest\n  pytest {folder}\n  {compare}")
