"""Generated texts: where two part, how long pairs stay the same, and what is shown of them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import stab.reports
from stab.reports import figures, page, sheets, statistics, table, texts
from stab.reports.schema import schema

tokens = st.lists(st.sampled_from(["a", "b", " a", ""]), max_size=6)
TEXT = "there was a girl named lily who had a red ball and her dog ran until mother called"
WORDS = TEXT.split()
METRICS = {  # as a task declares them
    "perplexity": "exp of the validation loss.",
    "sentences": "share of sentences that parse.",
    "until": "tokens before the first that is impossible.",
}
HOSTILE = [
    "<script>alert(1)</script>",
    "<!--",
    "</p>",
    "$x^$",
    r"\frac{",
    "{{ 7 * 7 }}",
    "&amp;",
    "W" * 5000,
    "\x00\x1b[31m\x07",
    "\u202eabc\u2066",
    "\ud800",
    "\n\n\r\t\u2028",
    "",
    " ",
    "\U0001f600\u4e2d\u6587\u05e9\u05dc\u05d5\u05dd",
    "e" + "\u0301" * 200,
    "[bold]|",
]


def add_texts(
    run: Path, change: Callable[[list[str]], list[str]] = lambda text: text, **also: float
) -> Path:
    """Give the rows of a run texts: checkpoints begin alike, those of averages for longer."""
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        for row in cell["rows"]:
            shared = np.random.default_rng([row["start"], cell["seed"]])
            own = np.random.default_rng(
                [row["start"], cell["seed"], row["update"], len(row["stabilizer"])]
            )
            same = own.geometric(0.03 if row["stabilizer"] == "ema" else 0.2)
            written = [*shared.choice(WORDS, 30).tolist()[:same], *own.choice(WORDS, 40).tolist()][
                :40
            ]
            row["text"] = {
                "prompt": change(["once", "upon", "a", "time"]),
                "tokens": [*change(written), "<end>"],
            }
            row["measures"] = {"sentences": own.random(), "until": 40.0, **also}
        cell["metrics"] = METRICS
        path.write_text(json.dumps(cell))
    return run


def read(run: Path) -> tuple[statistics.Results, dict[str, Any]]:
    results = statistics.read(run)
    return results, statistics.leaderboard(results)


def pairs(series: statistics.Series) -> list[tuple[list[str], list[str]]]:
    """The texts of neighbouring window checkpoints by seed, checkpoint, start, from the rows."""
    window = series.updates[series.window].tolist()
    found = []
    for cell in series.cells:
        own = {
            (r["update"], r["start"]): r["text"]["tokens"]
            for r in cell["rows"]
            if r["stabilizer"] == series.stabilizer
        }
        found += [
            (own[u, start], own[v, start]) for u, v in pairwise(window) for start in cell["starts"]
        ]
    return found


def shown(leaderboard: dict[str, Any]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sheets.terminal(table.sheets(leaderboard)))
    return console.export_text()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("he lived", "he lived", (2, False)),
        ("he lived", "he ran", (2, True)),
        ("she lived", "he lived", (1, True)),
        ("he lived", "he lived there once", (3, True)),
        ("", "he", (1, True)),
        ("", "", (0, False)),
    ],
)
def test_where_two_texts_part(a: str, b: str, expected: tuple[int, bool]) -> None:
    assert (
        texts.divergence(a.split(), b.split()) == texts.divergence(b.split(), a.split()) == expected
    )


@given(a=tokens, b=tokens)
def test_texts_are_the_same_before_they_part_and_differ_there(a: list[str], b: list[str]) -> None:
    place, differs = texts.divergence(a, b)
    assert differs == (a != b)
    if differs:
        assert a[: place - 1] == b[: place - 1]
        assert a[:place] != b[:place]
    else:
        assert place == len(a)


@given(found=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8), last=st.integers(0, 9))
def test_the_survival_curve_counts_pairs_that_begin_alike(found: list[Any], last: int) -> None:
    parted = [texts.divergence(*pair) for pair in found]
    times = np.array([place if differs else math.inf for place, differs in parted])
    expected = [np.mean([a[:t] == b[:t] for a, b in found]) for t in range(last + 1)]
    np.testing.assert_allclose(texts.survival(np.append(times, math.nan), last), expected)
    middle = texts.middle(np.append(times, math.nan))
    assert (times < middle).mean() < 0.5 <= (times <= middle).mean()


def test_times_are_of_neighbours_in_the_window(run: Path) -> None:
    results, _ = read(add_texts(run))
    for series in results.series.values():
        times = texts.times(series)
        assert times.shape == (3, 4, 2)
        expected = [
            place if differs else math.inf
            for place, differs in (texts.divergence(*p) for p in pairs(series))
        ]
        assert times.ravel().tolist() == expected
        assert texts.longest(series) == 41


@given(text=st.text(alphabet="ab  ", max_size=60), most=st.integers(2, 40))
def test_what_is_cut_says_so_and_fits(text: str, most: int) -> None:
    first, last = texts.beginning(text, most), texts.ending(text, most)
    assert max(len(first), len(last)) <= most
    if len(text) <= most:
        assert first == last == text
    else:
        assert first.endswith("…")
        assert last.startswith("…")
        assert text.startswith(first[:-2])
        assert text.endswith(last[2:])


def test_words_stay_whole_where_they_can() -> None:
    assert texts.beginning("once upon a time there was", 20) == "once upon a time …"
    assert texts.ending("once upon a time there was", 20) == "… a time there was"
    assert texts.beginning("W" * 100, 20) == f"{'W' * 18} …"


def test_the_example_is_the_median_start_of_none_at_the_end(run: Path) -> None:
    results, leaderboard = read(add_texts(run))
    found = texts.example(results, leaderboard, "toy")
    assert found is not None
    last = texts.times(results.series["toy", "none"])[0, -1]
    assert (
        last[[50_000, 50_001].index(found.start)] == sorted(last)[0]
    )  # of two, the lower median is the lower
    assert [pair.stabilizer for pair in found.pairs] == ["none", "ema"]
    assert found.prompt == "once upon a time"
    for pair in found.pairs:
        series = results.series["toy", pair.stabilizer]
        for text, scores in zip(pair.texts, series.returns[0, -2:, found.start - 50_000]):
            (row,) = (
                row
                for row in series.cells[0]["rows"]
                if (row["stabilizer"], row["update"], row["start"])
                == (pair.stabilizer, text.update, found.start)
            )
            assert text.same + text.mark + text.rest == " ".join(row["text"]["tokens"])
            assert text.score == scores
        one, other = pair.texts
        assert one.same == other.same
        assert pair.place is not None
        assert len(one.same.split()) == pair.place - 1
        assert one.mark != other.mark


def test_pieces_of_words_bring_their_own_spaces(run: Path) -> None:
    add_texts(run, lambda text: [text[0], *(f" {token}" for token in text[1:-1]), text[-1]])
    found = texts.example(*read(run), "toy")
    assert found is not None
    assert found.prompt == "once upon atime"
    assert all("  " not in t.same + t.mark + t.rest for pair in found.pairs for t in pair.texts)
    assert all(t.rest.endswith(" <end>") for pair in found.pairs for t in pair.texts)
    assert all(t.mark == t.mark.strip() for pair in found.pairs for t in pair.texts)


def test_what_ends_first_says_so_and_equal_texts_have_no_mark(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        for row in cell["rows"]:
            longer = row["stabilizer"] == "none" and row["update"] == 80
            row["text"] = {"prompt": [], "tokens": ["he", "lived", "there"][: 2 + longer]}
        path.write_text(json.dumps(cell))
    results, leaderboard = read(run)
    found = texts.example(results, leaderboard, "toy")
    assert found is not None
    raw, average = found.pairs
    assert [(t.same + t.mark, t.rest) for t in raw.texts] == [
        (f"he lived {texts.GONE}", ""),
        ("he lived there", ""),
    ]
    assert [(t.same, t.mark, t.rest) for t in average.texts] == [("he lived", "", "")] * 2
    assert (raw.place, average.place) == (3, None)
    assert average.description == "the same to the end"


def test_curves_hold_the_shares_raw_and_average_first(run: Path) -> None:
    results, leaderboard = read(add_texts(run))
    figure = figures.draw(results, leaderboard)["toy-divergence"]
    (axes,) = figure.axes
    bold = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label().split(":")[0] for line in bold] == ["none", "ema", "lr_decay"]
    assert len({(line.get_color(), line.get_linestyle()) for line in bold}) == 3
    for line, name in zip(bold, ("none", "ema", "lr_decay")):
        found = pairs(results.series["toy", name])
        np.testing.assert_allclose(
            line.get_ydata(), [np.mean([a[:t] == b[:t] for a, b in found]) for t in range(42)]
        )
        parted = [
            place for place, differs in (texts.divergence(*pair) for pair in found) if differs
        ]
        never = 1 - len(parted) / len(found)
        assert line.get_label().endswith(f"mean {np.mean(parted):.1f}, never {never:.0%}")
    assert len(axes.get_lines()) == 3 * (1 + 3), "and a thin line a seed"


def test_a_run_with_texts_is_rendered_whole(run: Path) -> None:
    leaderboard = stab.reports.render(add_texts(run))
    jsonschema.validate(json.loads((run / "leaderboard.json").read_text()), schema())
    assert (run / "figures" / "toy-divergence.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "figures" / "toy-divergence.svg").exists()
    text = shown(leaderboard)
    assert max(map(cell_len, text.splitlines())) <= 80
    below = text[text.index("toy, beside the score") :]
    assert below.splitlines()[1].split() == ["stabilizer", "perplexity", "sentences", "until"]
    ranked = [entry for entry in leaderboard["entries"] if entry["gva"] is not None]
    for entry, line in zip(ranked, below.splitlines()[3:]):
        means = entry["measures"]
        expected = [table._metric(means["perplexity"]), f"{means['sentences']:.3f}", "40.0"]
        assert line.split() == [entry["stabilizer"], *expected]
        assert (
            f"| {' | '.join([entry['stabilizer'], *expected])} |"
            in (run / "leaderboard.md").read_text()
        )
    html = (run / "report.html").read_text()
    for name in ("perplexity", "sentences", "until"):
        assert f"{name}: {METRICS[name]}" in " ".join(text.split())
        assert f"- {name}: {METRICS[name]}" in (run / "leaderboard.md").read_text()
        assert f"<li>{name}: {METRICS[name]}</li>" in html
    assert html.count("<mark>") == 4
    assert "How long neighbouring checkpoints write the same text" in html
    (read_back, *_) = csv.DictReader(io.StringIO((run / "leaderboard.csv").read_text()))
    assert float(read_back["perplexity"]) == leaderboard["entries"][0]["measures"]["perplexity"]


def test_without_texts_there_is_nothing_new(run: Path) -> None:
    results, leaderboard = read(run)
    assert texts.example(results, leaderboard, "toy") is None
    assert "toy-divergence" not in figures.draw(results, leaderboard)
    page.write(results, leaderboard, run / "figures", run / "report.html")
    html = (run / "report.html").read_text()
    for text in (shown(leaderboard), sheets.markdown(table.sheets(leaderboard)), html):
        assert "beside the score</h3>" not in text
        assert "toy, beside" not in text
    assert "<mark>" not in html
    assert "perplexity" not in table.to_csv(leaderboard)
    assert not table.metrics(leaderboard, "toy").lines


def test_texts_of_some_rows_only(run: Path, tmp_path: Path) -> None:
    add_texts(run)
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        for row in cell["rows"]:
            if row["start"] == 50_000 and row["stabilizer"] == "none":
                del row["text"], row["measures"]
        path.write_text(json.dumps(cell))
    results, leaderboard = read(run)
    found = texts.example(results, leaderboard, "toy")
    assert found is not None
    assert found.start == 50_001
    (none,) = (entry for entry in leaderboard["entries"] if entry["stabilizer"] == "none")
    known = [
        r["measures"]["sentences"]
        for cell in results.series["toy", "none"].cells
        for r in cell["rows"]
        if "measures" in r and r["stabilizer"] == "none" and r["update"] in cell["window"]
    ]
    assert none["measures"]["sentences"] == pytest.approx(np.mean(known))
    assert re.search(r"none +\S+ +\d", shown(leaderboard))
    figures.save(figures.draw(results, leaderboard), tmp_path)


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.filterwarnings("error")
def test_nothing_that_a_text_holds_breaks_a_rendering(run: Path, spaced: bool) -> None:
    def hostile(text: list[str]) -> list[str]:
        generator = np.random.default_rng(len(text))
        found = [HOSTILE[n] for n in generator.permutation(len(HOSTILE))]
        return [*(f" {token}" if spaced else token for token in found), *text]

    names = {
        "<b>$x$": 1.0,
        "a|b": 1e15,
        "\ud800\x1b": -0.5,
        "n" * 200: 12.0,
        "return": 7.0,
        "[red]": 5.0,
        "gva_by_lag": 1.0,
    }
    leaderboard = stab.reports.render(add_texts(run, hostile, **names))
    text = shown(leaderboard)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "toy, beside the score (continued)" in text
    assert "[red]" in text
    html = (run / "report.html").read_text()
    for raw in ("alert(1)</script>", "<b>", "<!--", "{{", "\x1b", "\u202e", "49", "&#55296;"):
        assert raw not in re.sub(
            r'src="[^"]*"|&#?\w+;|<style>.*?</style>', "", html, flags=re.S
        ) or raw in ("{{", "49")
    assert html.count("<script") == 1
    assert "{{ 7 * 7 }}" in html
    read_back = list(csv.DictReader(io.StringIO((run / "leaderboard.csv").read_text())))
    assert [row["return"] for row in read_back[:3]] == [
        str(e["return"]) for e in leaderboard["entries"][:3]
    ]


def test_the_same_texts_are_the_same_files(run: Path, tmp_path: Path) -> None:
    add_texts(run)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        drawn = figures.draw(*read(run))
        figures.save({"toy-divergence": drawn["toy-divergence"]}, tmp_path / folder)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.14159, "3.142"),
        (20.0, "20.0"),
        (412.3, "412"),
        (99.96, "100"),
        (1e30, "1e+30"),
        (0.93456, "0.935"),
        (1.0, "1.000"),
        (9.9999, "10.0"),
        (-12.0, "-12.0"),
        (None, "–"),
    ],
)
def test_numbers_have_the_digits_that_can_be_read(value: float | None, expected: str) -> None:
    assert table._metric(value) == expected


def test_text_is_of_one_line() -> None:
    assert sheets.readable("a\nb\t\u2028c\x00\ud800\u202e é–") == "a↵b  c��� é–"
