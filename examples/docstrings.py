"""Real prose on any machine: the docstrings of Python's standard library, one text file per module.

python examples/docstrings.py prose
stab data prepare text --folder prose --dataset my/docstrings-v0
stab scorer train text --dataset my/docstrings-v0
stab compare --task text --dataset my/docstrings-v0 --all
"""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
import warnings
from pathlib import Path


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module and of everything in it, without their indentation."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented)
    ]
    return [inspect.cleandoc(text) for text in found if text]


def main(folder: Path) -> None:
    """Write the files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & {*name.parts}:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = "\n\n".join(docstrings(path.read_text("utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text:
            (folder / f"{'.'.join(name.with_suffix('').parts)}.txt").write_text(
                text + "\n", "utf-8"
            )
            size += len(text)
    print(f"{len(list(folder.iterdir()))} files, {size / 1e6:.1f} million characters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "prose"))
