"""Text on its way out, one function per format: what strangers wrote is shown, never obeyed.

Names, reasons, notes and commands come from run folders, datasets, plug-ins and command lines. In a
terminal they may hold escape codes, in Markdown and HTML elements, in a spreadsheet formulas, and
everywhere marks that turn the reading direction.
"""

from __future__ import annotations

import re
from typing import Any

LONGEST_WORD = 200  # characters; a word is what holds no white space, such as a name or a path
LONGEST = 500  # characters of a message
ODD = re.compile(r"[^\n\x20-\x7e]")
FORMULA = ("=", "+", "-", "@")  # how formulas of spreadsheets begin


def terminal(text: str) -> str:
    """Return text in which white space is a space or a line break, and other controls are �."""
    return ODD.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    one = match[0]
    return one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}"


def message(text: str) -> str:
    """Return text for one line of a terminal; what nobody would read to its end is cut."""
    line = " ".join(terminal(text).split())
    long = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
    return _middle(long.sub(lambda word: _middle(word[0], LONGEST_WORD), line), LONGEST)


def markdown(text: str) -> str:
    """Return text for one line of Markdown, in which nothing makes a link, column or element."""
    line = " ".join(terminal(text).split())
    return re.sub(r"([][|\\])", r"\\\1", line).replace("<", "&lt;")


def csv(value: Any) -> Any:
    """Return a value for a cell of CSV; text that would be a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = " ".join(terminal(value).split())
    return f"'{text}" if text.startswith(FORMULA) else text


def html(page: str) -> str:
    """Return a page, whose texts are escaped already, in ASCII: right in any encoding."""
    return terminal(page).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _middle(text: str, most: int) -> str:
    """Return at most ``most`` characters of a text: its beginning and its end."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"
