"""The leaderboard of a task as a table: for the terminal (80 columns), as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stab import gva
from stab.reports import sweep

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.table import Table

SMOKE = "SMOKE RUN: numbers say nothing"
COLUMNS = ("#", "stabilizer", "GVA", "return", "worst", "val loss", "cost")
NESTED = ("gva_per_seed", "gva_by_lag", "gva_by_horizon", "half_life", "settings", "measures")
DEFAULT_SOURCE = "measured with the shipped expert"
OVERVIEW = (
    "*: not ranked (unsound or static).",
    "amplification: the relative swing of the raw policy's return over that of its validation loss; worker min: minutes of"
    " training and rollouts, summed over the workers.",
)
STATUS = {
    "undecided": f"the 95 % interval of its return difference to none straddles {gva.SOUND_MARGIN}.",
    "static": "its read-out does not change in the window, so there is nothing to score.",
    "unsound": f"its return falls short of none's by more than {-gva.SOUND_MARGIN}.",
}
MEASURES = {  # what tasks of texts measure beside the score
    "perplexity": "exp of the validation loss: one-step quality.",
    "sentences": "share of generated sentences that parse.",
    "facts": "share of mentions of known facts that repeat them.",
    "until": "generated tokens before the first that the source cannot have written.",
    "repetition": "share of 4-grams that occurred before in the text.",
    "distinct_1": "distinct tokens over all, within a text.",
    "distinct_2": "distinct pairs of tokens over all, within a text.",
}
ROOM = 58  # characters for the columns beside a name, of a terminal's 80
HEAD = 24  # characters of the name of a measure: a task may call it anything


def board(leaderboard: dict[str, Any], by: Sequence[str] | None = None) -> RenderableType:
    """Return the leaderboard of every task for a terminal, and of several an overview; fits 80 columns.

    ``by``: what to group entries by; None for method, where one has several settings.
    """
    from rich.console import Group
    from rich.text import Text

    tasks = list(leaderboard["run"]["tasks"])
    by = sweep.keys(leaderboard["entries"], by)
    parts: list[RenderableType] = []
    for task in tasks:
        parts += [table(leaderboard, task, brief=len(tasks) > 1)]
        parts += [part for drawn in beside(leaderboard, task) for part in (Text(), drawn)]
        if by:
            parts += [Text(), tuned(leaderboard, task, by)]
        parts.append(Text())
    if len(tasks) == 1:
        return Group(*parts[:-1])
    matrix = [] if "shown" in leaderboard["run"] else _overview(leaderboard)
    return Group(*parts, *matrix, Text(), bullets(generalbullets(leaderboard)))


def _overview(leaderboard: dict[str, Any]) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heads, body = overview(leaderboard)
    found: list[RenderableType] = []
    for first in range(1, len(heads), 5):  # as many tasks side by side as fit
        columns = [0, *range(first, min(first + 5, len(heads)))]
        drawn = Table(
            title="GVA and return",
            box=box.HORIZONTALS,
            show_edge=False,
            title_style="bold",
            padding=0,
        )
        for column in columns:
            drawn.add_column(
                heads[column], justify="right" if column else "left", overflow="fold", min_width=12
            )
        for line in body:
            drawn.add_row(*(Text(line[column]) for column in columns), end_section=line is body[-3])
        found.append(drawn)
    return found


def overview(leaderboard: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the task x stabilizer matrix as text: heads and lines.

    A cell is GVA and return, with a star where the entry is not ranked. The last two lines are the amplification of
    the raw iterates and the minutes that the workers spent.
    """
    tasks = list(leaderboard["run"]["tasks"])
    at = {(entry["task"], entry["stabilizer"]): entry for entry in leaderboard["entries"]}
    strings = list(dict.fromkeys(entry["stabilizer"] for entry in leaderboard["entries"]))
    order = {name: i for i, name in enumerate(leaderboard["run"]["settings"]["stabilizers"])}
    body = []
    for string in sorted(strings, key=lambda name: order.get(name, len(order))):
        found = [at.get((task, string), {"gva": None, "rank": None}) for task in tasks]
        cells = ["– " if e["gva"] is None else f"{e['gva']:.3f} {e['return']:.2f}" for e in found]
        body.append(
            [
                string,
                *(
                    f"{c}*" if e["rank"] is None else f"{c} "
                    for c, e in zip(cells, found, strict=True)
                ),
            ]
        )
    raw = [at[task, "none"]["amplification"] if (task, "none") in at else None for task in tasks]
    body.append(["amplification", *("– " if value is None else f"{value:.1f} " for value in raw)])
    spent = [leaderboard["run"]["tasks"][task].get("worker_seconds") for task in tasks]
    body.append(
        [
            "worker min",
            *(
                "– " if seconds is None else f"{seconds / 60:.{1 if seconds < 600 else 0}f} "
                for seconds in spent
            ),
        ]
    )
    return ["", *tasks], body


def table(leaderboard: dict[str, Any], task: str, brief: bool = False) -> RenderableType:
    """Return one task's leaderboard for a terminal; fits 80 columns.

    Args:
        leaderboard: the content of ``leaderboard.json``.
        task: one of its tasks.
        brief: leave out the notes that are the same for every task.
    """
    from rich.console import Group
    from rich.text import Text

    found = entries(leaderboard, task)
    drawn = ruled(title(leaderboard, task), COLUMNS, [cells(leaderboard, entry) for entry in found])
    if leaderboard["run"]["smoke"]:
        drawn.title = Text(f"*** {SMOKE} ***\n", style="reverse") + Text(title(leaderboard, task))
    ranked = sum(entry["rank"] is not None for entry in found)
    if ranked:
        drawn.rows[ranked - 1].end_section = True
    said = taskbullets(leaderboard, task) if brief else notes(leaderboard, task)
    return Group(drawn, Text(), bullets(said))


def beside(leaderboard: dict[str, Any], task: str) -> list[RenderableType]:
    """Return what a task measures beside the score, for a terminal; as many tables as 80 columns need, or none."""
    names, lines = measured(leaderboard, task)
    parts: list[list[int]] = []
    room = 0
    for n in range(1, len(names)):
        wide = 3 + max(len(line[n]) for line in [names, *lines])  # with the gap between columns
        if wide > room:
            parts.append([0])
            room = ROOM
        parts[-1].append(n)
        room -= wide
    drawn: list[RenderableType] = []
    for part in parts:
        cut = [[line[n] for n in part] for line in (names, *lines)]
        drawn.append(
            ruled(f"{task}, beside the score" + " (continued)" * bool(drawn), cut[0], cut[1:])
        )
    return [*drawn, bullets(said)] if (said := meanings(names)) else drawn


def measured(leaderboard: dict[str, Any], task: str) -> tuple[list[str], list[list[str]]]:
    """Return what a task measures beside the score as text: heads, and a line an entry that has figures; or nothing."""
    found = [entry for entry in entries(leaderboard, task) if entry.get("measures")]
    names = sorted(
        {name for entry in found for name in entry["measures"]},
        key=lambda n: (n != "perplexity", n),
    )
    lines = [
        [entry["stabilizer"], *(_measure(name, entry["measures"].get(name)) for name in names)]
        for entry in found
    ]
    return (
        (["stabilizer", *(readable(name)[:HEAD] for name in names)], lines) if found else ([], [])
    )


def _measure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if name == "perplexity":
        return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 9.9995 else f"{value:.1f}"


def meanings(names: Iterable[str]) -> list[str]:
    """Return what the measures of these names are, of those that are known."""
    return [f"{name}: {MEASURES[name]}" for name in names if name in MEASURES]


def tuned(leaderboard: dict[str, Any], task: str, by: Sequence[str]) -> RenderableType:
    """Return what tuning gives on a task, by group, for a terminal; fits 80 columns."""
    from rich.console import Group
    from rich.text import Text

    found = sweep.groups(leaderboard, task, by)
    if not found:
        return Text()
    drawn = ruled(
        f"{task}, tuned",
        sweep.heads(found, by),
        [sweep.cells(group) for group in found],
        ", ".join(by),
    )
    return Group(drawn, Text(), bullets(sweep.notes(found)))


def ruled(
    title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], name: str = "stabilizer"
) -> Table:
    """Return a table for a terminal: the column ``name`` on the left and broken where need be, all others on the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text everywhere, never markup: a name or a reason may hold square brackets.
    drawn = Table(title=Text(title), box=box.HORIZONTALS, show_edge=False, title_style="bold")
    for head in heads:
        drawn.add_column(
            Text(head), justify="left" if head == name else "right", no_wrap=head != name
        )
    for line in lines:
        drawn.add_row(
            *(
                Name(cell) if head == name else Text(cell)
                for head, cell in zip(heads, line, strict=True)
            )
        )
    return drawn


@dataclass(frozen=True)
class Name:
    """A stabilizer string for a terminal, broken behind its punctuation where it does not fit."""

    text: str

    def __rich_console__(
        self, _console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        yield Text(fold(self.text, options.max_width), overflow="fold")

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest = max(map(len, fold(self.text, 1).splitlines()))
        return Measurement(longest, len(self.text)).clamp(max_width=options.max_width)


def fold(string: str, width: int) -> str:
    """Break a stabilizer string into lines of about ``width`` characters, behind its punctuation."""
    lines = [""]
    for piece in re.findall(r"[^+:, ]*(?:[+:,] ?| |$)", string):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def bullets(lines: list[str]) -> RenderableType:
    """Return sentences below a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    below = Table.grid(padding=(0, 1))
    for note in lines:
        below.add_row(" -", Text(note))
    return below


def markdown(leaderboard: dict[str, Any], by: Sequence[str] | None = None) -> str:
    """Return the leaderboard of every task as GitHub Markdown, with an overview first where there are several."""
    parts = [markdown_task(leaderboard, task, by) for task in leaderboard["run"]["tasks"]]
    if len(parts) > 1 and "shown" not in leaderboard["run"]:
        heads, body = overview(leaderboard)
        lines = [
            "## GVA and return",
            "",
            markdown_line(heads),
            markdown_line([":--", *["--:"] * (len(heads) - 1)]),
            *map(markdown_line, body),
        ]
        parts.insert(0, "\n".join([*lines, "", *(f"- {escape(note)}" for note in OVERVIEW), ""]))
    return "\n".join(parts)


def markdown_task(leaderboard: dict[str, Any], task: str, by: Sequence[str] | None = None) -> str:
    """Return one task's leaderboard as GitHub Markdown."""
    lines = [f"## {title(leaderboard, task)}", ""]
    if leaderboard["run"]["smoke"]:
        lines += [f"**{SMOKE}**", ""]
    lines += [
        markdown_line(COLUMNS),
        markdown_line("--:" if name != "stabilizer" else ":--" for name in COLUMNS),
    ]
    lines += [markdown_line(cells(leaderboard, entry)) for entry in entries(leaderboard, task)]
    lines += ["", *(f"- {escape(note)}" for note in notes(leaderboard, task)), ""]
    names, measures = measured(leaderboard, task)
    if names:
        lines += [f"### {task}, beside the score", "", markdown_line(names)]
        lines += [
            markdown_line([":--", *["--:"] * (len(names) - 1)]),
            *map(markdown_line, measures),
            "",
        ]
        lines += [*(f"- {escape(said)}" for said in meanings(names)), ""]
    by = sweep.keys(leaderboard["entries"], by)
    if by and (found := sweep.groups(leaderboard, task, by)):
        heads = sweep.heads(found, by)
        lines += [
            f"### {task}, tuned",
            "",
            markdown_line(heads),
            markdown_line([":--", *["--:"] * (len(heads) - 1)]),
        ]
        lines += [*(markdown_line(sweep.cells(group)) for group in found), ""]
        lines += [*(f"- {escape(note)}" for note in sweep.notes(found)), ""]
    return "\n".join(lines)


def csv_text(leaderboard: dict[str, Any]) -> str:
    """Return the leaderboard as CSV: a line an entry, its scalar keys, settings and measures, or nothing."""
    found = leaderboard["entries"]
    every = dict.fromkeys(next(iter(found), {}))
    own = dict.fromkeys(name for entry in found for name in entry["settings"])
    measures = [
        {readable(name): value for name, value in (entry.get("measures") or {}).items()}
        for entry in found
    ]
    # A measure of the name of another column stands in the JSON alone.
    names = [
        name
        for name in dict.fromkeys(name for one in measures for name in one)
        if name not in every | own
    ]
    text = io.StringIO()
    keys = [key for key in every if key not in NESTED]
    writer = csv.DictWriter(text, [*keys, *own, *names], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        one | entry | entry["settings"] for one, entry in zip(measures, found, strict=True)
    )
    return text.getvalue()


def entries(leaderboard: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Return the entries of one task, in the order of the leaderboard."""
    return [entry for entry in leaderboard["entries"] if entry["task"] == task]


def title(leaderboard: dict[str, Any], task: str) -> str:
    """Return what was compared: task, environment, seeds x checkpoints x starts."""
    entry = entries(leaderboard, task)[0]
    environment = leaderboard["run"]["tasks"][task].get("environment")
    dataset = leaderboard["run"]["settings"]["data"]["dataset"]
    where = ", ".join(filter(None, (environment, dataset)))
    counts = [(entry[f"{word}s"], word) for word in ("seed", "checkpoint", "start")]
    size = " x ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)
    return f"{task}{f' ({where})' if where else ''}: {size}"


def notes(leaderboard: dict[str, Any], task: str) -> list[str]:
    """Return the sentences below a table: those of the task, then how to read the columns."""
    return taskbullets(leaderboard, task) + generalbullets(leaderboard, task)


def taskbullets(leaderboard: dict[str, Any], task: str) -> list[str]:
    """Return what is to be said of one task: warnings, what did not run and why, where 0 and 1 are."""
    about, found = leaderboard["run"]["tasks"][task], entries(leaderboard, task)
    lines = [leaderboard["run"]["shown"]] if "shown" in leaderboard["run"] else []
    lines += [f"Warning: {warning}" for warning in about["warnings"]]
    base = leaderboard["run"]["settings"]["train"]
    atoms = [
        atom for e in found for atom in e["stabilizer"].split("+") if atom.startswith("recipe:")
    ]
    if changed := [
        name for name in base if any(f":{name}=" in atom or f",{name}=" in atom for atom in atoms)
    ]:
        lines.append(
            f"Where recipe: does not say otherwise, {', '.join(f'{name} is {base[name]}' for name in changed)}."
        )
    lines += [f"{e['stabilizer']} ({e['status']}): {e['reason']}" for e in found if e["reason"]]
    source = about.get("references_source")
    if source and source != DEFAULT_SOURCE:
        low, high = about["references"]["random"][-1], about["references"]["expert"][-1]
        lines.append(
            f"Returns of {low:.4g} (random) and {high:.4g} (expert) count as 0 and 1; {source}."
        )
    if about["noise_floor"] is not None:
        lines.append(
            f"Differences in GVA below {about['noise_floor']:.3f} are within the A/A noise floor (none on half of the"
            " starts against none on the other half, same seeds)."
        )
    if about["verdict"]:
        lines.append(about["verdict"])
    return lines


def generalbullets(leaderboard: dict[str, Any], task: str | None = None) -> list[str]:
    """Return how to read the columns, for one task or for all."""
    found = [e for e in leaderboard["entries"] if task in (None, e["task"])]
    lines = [] if task else list(OVERVIEW)
    lines.append(
        "GVA: the standard deviation of the return between two checkpoints, from the same start (random policy 0,"
        " expert 1); lower is steadier; ± is a 95 % interval over seeds."
    )
    lines += [
        f"{status}: {said}"
        for status, said in STATUS.items()
        if status in {e["status"] for e in found}
    ]
    averages = [
        (e["stabilizer"].rpartition("+")[2], e["half_life"]) for e in found if e["half_life"]
    ]
    lives = dict.fromkeys(f"{average} {' to '.join(map(str, life))}" for average, life in averages)
    if lives:
        lines.append(
            f"Effective half-life in updates, from the window's start to its end: {', '.join(lives)}."
        )
    lines += dict.fromkeys(
        f"{e['stabilizer']}: {note}." for e in found for note in e["notes"] or []
    )
    lines.append(f"{leaderboard['run']['budget']} Seconds are those of training.")
    return lines


def cells(leaderboard: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Return one row, in the order of COLUMNS."""
    mark = "" if entry["status"] == "sound" else f" ({entry['status']})"
    name = [str(entry["rank"] or "–"), entry["stabilizer"] + mark]
    if entry["gva"] is None:
        return [*name, *["–"] * (len(COLUMNS) - 2)]
    half = "–" if entry["gva_high"] is None else f"{entry['gva_high'] - entry['gva']:.3f}"
    base = leaderboard["run"]["settings"]["train"]
    times = entry["samples"] / (base["updates"] * base["batch_size"] * base["accumulation"])
    seconds = "–" if entry["train_seconds"] is None else f"{entry['train_seconds']:.0f} s"
    return [
        *name,
        f"{entry['gva']:.3f} ±{half}",
        f"{entry['return']:.2f}",
        f"{entry['worst']:.2f}",
        f"{entry['val_loss']:#.3g}",
        f"x{times:.3g} {seconds:>6}",
    ]


def markdown_line(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(escape(cell.strip()) for cell in cells)} |"


def escape(text: str) -> str:
    """Return text for Markdown, in a line of its own: nothing in it makes a link, an image, a column or an element."""
    text = re.sub(r"([][|\\])", r"\\\1", " ".join(text.split()))
    return text.replace("<", "&lt;")


def readable(text: str) -> str:
    """Return text for one line: a line's end as ↵, other white space as a space, what has no picture (controls) as �."""
    marks = {
        c: "↵" if c == "\n" else " " if c.isspace() else "�" for c in {*text} if not c.isprintable()
    }
    return "".join(marks.get(c, c) for c in text)
