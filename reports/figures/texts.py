"""What two neighbouring checkpoints write, as a picture for TensorBoard and papers."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from stab.reports import texts
from stab.reports.figures import style
from stab.reports.figures.style import VERMILION, WIDTH
from stab.reports.results import Results
from stab.reports.table import readable

NAME = "texts"
CAPTION = "What two neighbouring checkpoints write"
MONO = "DejaVu Sans Mono"  # matplotlib's own
ADVANCE = 9 / 150  # inches per character: whole pixels, to which a PNG rounds
TYPE = 72 * ADVANCE * 2048 / 1233  # points at which a character of MONO takes that
QUIET = "#6b6b6b"  # grey that can be read: 5 to 1 on white
PROMPT, LINES = 2, 12  # lines of a prompt, about, and of a text, at most

Look = dict[str, Any]


def draw(results: Results, leaderboard: dict[str, Any], task: str) -> Figure | None:
    """Draw two neighbouring checkpoints' texts side by side, one row per stabilizer.

    The first token that differs is marked. All is in one typeface of equally wide characters, in
    lines that are broken by counting them: no text reaches beyond its place. Long texts are cut.
    """
    example = texts.example(results, leaderboard, task)
    if example is None:
        return None
    across = int((WIDTH - 0.3) / ADVANCE)  # characters
    pieces, deep = _layout(example, across)
    smoke = leaderboard["run"]["smoke"]
    below = textwrap.wrap(example.description, 108)
    title = f"{task}: what two neighbouring checkpoints write"
    top = 0.32 + 0.15 * (len(textwrap.wrap(title, 84)) - 1 + smoke)
    bottom, high = 0.2 + 0.15 * len(below), deep * 1.35 * TYPE / 72
    figure = style.figure(top + high + bottom)
    figure.set_layout_engine(None)  # it would stretch what is placed by characters
    inches, wide = figure.get_figheight(), across * ADVANCE
    left = (WIDTH - wide) / 2 / WIDTH
    axes = figure.add_axes((left, bottom / inches, wide / WIDTH, high / inches))
    axes.set_axis_off()
    axes.set(xlim=(0, across), ylim=(deep, 0))
    for x, y, piece, look in pieces:
        text = axes.text(x, y + 0.8, piece, fontsize=TYPE, family=MONO, va="baseline", **look)
        text.set_parse_math(False)
    style.titles(figure, smoke, title, "\n".join(below))
    return figure


def _layout(
    example: texts.Example, across: int
) -> tuple[list[tuple[float, float, str, Look]], float]:
    """Return pieces (characters from the left, lines from the top, text, look), and the lines."""
    column = (across - 4) // 2
    pieces: list[tuple[float, float, str, Look]] = []
    prompt = _drawable(texts.ending(example.prompt, PROMPT * across))
    y = 0.0
    for begin, end in texts.wrapped(prompt, across):
        pieces.append((0, y, prompt[begin:end], {"style": "italic"}))
        y += 1
    for pair in example.pairs:
        name, room = _drawable(readable(pair.stabilizer)), across - len(pair.description) - 2
        head = f"{texts.beginning(name, room)}: {pair.description}"
        pieces.append((0, y + 0.8, head, {"weight": "bold"}))
        y += 2.1
        deepest = 0
        for x, text in zip((0, across - column), pair.texts, strict=True):
            head = f"update {text.update}, return {text.score:.2f}"
            pieces.append((x, y, head, {"color": QUIET}))
            lines = _lines(text, column)
            deepest = max(deepest, len(lines))
            for n, line in enumerate(lines):
                pieces += [(x + begin, y + 1.2 + n, piece, look) for begin, piece, look in line]
        y += 1.2 + deepest
    return pieces, y


def _lines(text: texts.Text, column: int) -> list[list[tuple[int, str, Look]]]:
    """Return the lines of a text of ``column`` characters: pieces (first column, text, look)."""
    cut = texts.shortened(text, LINES * column // 4, LINES * column)
    parts = [_drawable(part) for part in cut]
    whole = "".join(parts)
    bounds = [*pairwise(np.cumsum([0, *map(len, parts)]))]
    looks: list[Look] = [{"color": QUIET}, {"color": VERMILION, "weight": "bold"}, {}]
    places = texts.wrapped(whole, column)
    lines = []
    for begin, end in places[:LINES]:
        spans = [(max(begin, first), min(end, last)) for first, last in bounds]
        styled = zip(spans, looks, strict=True)
        lines.append([(a - begin, whole[a:b], look) for (a, b), look in styled if a < b])
    if len(places) > LINES:
        begin, piece, look = lines[-1][-1]
        fits = begin + len(piece) + 2 <= column
        piece = f"{piece} …" if fits else texts.beginning(f"{piece}  ", column - begin)
        lines[-1][-1] = (begin, piece, look)
    return lines


def _drawable(text: str) -> str:
    """Return text with � for what the typeface has no picture of."""
    looks: tuple[Look, ...] = ({}, {"weight": "bold"}, {"style": "italic"})
    faces = [get_font(findfont(FontProperties(family=MONO, **look))) for look in looks]
    lacking = {c for c in {*text} if not all(face.get_char_index(ord(c)) for face in faces)}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in lacking else c for c in text)
