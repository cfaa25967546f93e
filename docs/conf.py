"""The documentation site: Sphinx over this folder and the docstrings of the installed ``stab``.

pip install -c constraints.txt '.[docs]'
sphinx-build -W -q -b html docs docs/_build

No network is needed. Pages include the output of ``stab COMMAND --help`` (directive ``stab-help``),
docstrings (autodoc) and whole scripts (``literalinclude``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import stab

project = "stab"
author = "the stab authors"
copyright = author
version = release = stab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
highlight_language = "none"  # a block without a language is a formula or what a command printed

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Params", "Progress")}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_use_ivar = True  # "Attributes:" of a dataclass are its fields, which autodoc lists, too

html_theme = "furo"
html_title = f"stab {release}"
html_static_path = ["_static"]
html_css_files = ["stab.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

HERE = Path(__file__).parent
CARD = re.compile(r"(Suggested|Cost|Conflicts|Source):")


class StabHelp(Directive):
    """What ``stab COMMAND --help`` prints at 80 columns."""

    required_arguments = 0
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        from typer.testing import CliRunner

        from stab.cli.main import app

        command = self.arguments[0].split() if self.arguments else []
        done = CliRunner().invoke(
            app, [*command, "--help"], prog_name="stab", terminal_width=80, env={"COLUMNS": "80"}
        )
        if done.exit_code:
            raise self.error(f"stab {' '.join(command)} --help: {done.output}")
        text = "\n".join(line.rstrip() for line in done.output.splitlines()).strip("\n")
        return [nodes.literal_block(text, text, language="none", classes=["terminal"])]


def without_folder_links(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Remove links to folders and pages outside docs/; only a view of the repository has them."""
    page = HERE / docname

    def keep(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        outside = not target.is_relative_to(HERE)
        return link[1] if outside and (target.is_dir() or target.suffix == ".md") else link[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)\)", keep, source[0])


def for_napoleon(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: Any, lines: list[str]
) -> None:
    """Rewrite what napoleon would misread.

    It takes "Minari id of the dataset: ..." of a property for a type and a description; an empty
    first line prevents that. It keeps one name of "a, b: text" under Attributes; here each
    gets the text.
    """
    if what == "property":
        lines.insert(0, "\\ ")
    if "Attributes:" in lines:
        first = lines.index("Attributes:") + 1
        items = re.split(r"\n(?=    \w)", "\n".join(lines[first:]))
        for i, item in enumerate(items):
            if several := re.match(r"    (\w+(?:, \w+)+):", item):
                items[i] = "\n".join(
                    f"    {name}:{item[several.end() :]}" for name in several[1].split(", ")
                )
        lines[first:] = "\n".join(items).split("\n")


def defaults_that_parse(
    _app: Sphinx,
    _what: str,
    _name: str,
    _obj: object,
    _options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Spell a dataclass's default factory so that Sphinx can read the signature it stands in."""
    return signature and signature.replace("<factory>", "..."), returns


def cards_as_paragraphs(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: Any, lines: list[str]
) -> None:
    """Make the labelled parts of a stabilizer's docstring (``Cost:`` ...) separate paragraphs."""
    spaced: list[str] = []
    for line in lines:
        label = CARD.match(line)
        if label and what == "class":
            spaced += ["", f"**{label[1]}:**{line[label.end() :]}"]
        else:
            spaced.append(line)
    lines[:] = spaced


def setup(app: Sphinx) -> None:
    app.add_directive("stab-help", StabHelp)
    app.connect("source-read", without_folder_links)
    app.connect("autodoc-process-signature", defaults_that_parse)
    app.connect("autodoc-process-docstring", for_napoleon, priority=400)  # before napoleon does
    app.connect("autodoc-process-docstring", cards_as_paragraphs)
