"""The HTML report: whole, self-contained, and nothing that a run folder holds becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stab import files
from stab.reports import figures, page, statistics, sweep, table

VOID = {"meta", "br", "img", "wbr", "link", "input", "hr"}
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e\ud800{{ 7 * 7 }}&amp;'


class Parsed(HTMLParser):
    """A page: its tags, attributes and text. Fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.text += data
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(
    run: Path, change: Callable[[statistics.Results], statistics.Results] = lambda results: results
) -> str:
    results = change(statistics.read(run))
    page.write(results, statistics.leaderboard(results), run / "figures", run / "report.html")
    return (run / "report.html").read_text()


def draw(run: Path) -> None:
    results = statistics.read(run)
    (run / "figures").mkdir(exist_ok=True)
    figures.save(figures.draw(results, statistics.leaderboard(results)), run / "figures")


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_it_holds_every_entry_and_says_who_is_steadiest(run: Path) -> None:
    leaderboard = statistics.leaderboard(statistics.read(run))
    parsed = Parsed(written(run))
    for entry in leaderboard["entries"]:
        assert any(cell.split(" ")[0] == entry["stabilizer"] for cell in parsed.cells)
        for key in ("gva",):
            if entry[key] is not None:
                assert any(cell.startswith(f"{entry[key]:.3f}") for cell in parsed.cells)
        if entry["reason"]:
            assert entry["reason"] in parsed.text
    for note in table.table(leaderboard, "toy").notes:
        assert note in parsed.text
    assert re.search(
        r"ema has the lowest GVA of \d ranked entries, 0\.\d+ against 0\.\d+ for none", parsed.text
    )
    for known in (
        "stab compare toy",
        "Toy-v0",
        "toy/expert-v0",
        "0" * 64,
        "1" * 64,
        "50000, 50001",
        "arXiv 2310.11428",
    ):
        assert known in parsed.text
    assert table.SMOKE not in parsed.text


def test_unranked_entries_are_below_a_line(run: Path) -> None:
    text = written(run)
    ranked, unranked = re.findall(r"<tbody>(.*?)</tbody>", text, flags=re.S)
    assert [name in ranked for name in ("ema", "lr_decay", "dropout", "accumulation")] == [
        True,
        True,
        False,
        False,
    ]
    assert "failed" in unranked
    assert "skipped" in unranked


def test_it_loads_nothing(run: Path) -> None:
    draw(run)
    text = written(run)
    parsed = Parsed(text)
    for _, attrs in parsed.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/"))
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    assert not parsed.all("link")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "url(" not in re.sub(r'src="data:[^"]*"', "", text)
    assert "@import" not in text


def test_figures_are_inlined_with_words(run: Path) -> None:
    draw(run)
    text = written(run)
    pictures = Parsed(text).all("img")
    drawn = {path.stem for path in (run / "figures").iterdir()} - {"toy-leaderboard"}
    assert [str(one["alt"]).split(":")[0] for one in pictures] == ["toy"] * len(drawn)
    assert len({one["alt"] for one in pictures}) == len(pictures)
    assert "GVA and return of every entry" in str(pictures[0]["alt"])
    assert len(text) < 2_000_000


@pytest.mark.parametrize(("svg", "kind"), [(100, "svg+xml"), (100_000, "png")])
def test_a_figure_is_an_svg_unless_its_png_is_much_smaller(run: Path, svg: int, kind: str) -> None:
    (run / "figures").mkdir()
    head = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><metadata>now</metadata>'
    (run / "figures" / "toy-new_one.svg").write_text(f'{head}\n<g id="{"a" * svg}#&amp;%"/></svg>')
    (run / "figures" / "toy-new_one.png").write_bytes(b"\x89PNG" + bytes(1000))
    for name in (
        "tasks-all.png",
        "other-scores.png",
        "toy.png",
        "toy-notes.txt",
        "toy-leaderboard.png",
    ):
        (run / "figures" / name).write_bytes(b"\x89PNG")
    everywhere, own = Parsed(written(run)).all("img")
    assert everywhere["alt"] == "All tasks: All"
    assert own["alt"] == "toy: New one"
    assert str(own["src"]).startswith(f"data:image/{kind}")
    assert not re.search("[<>\"'&#\n]|now", str(own["src"]))


def test_nothing_of_a_run_folder_becomes_markup(run: Path) -> None:
    plain = [(tag, sorted(attrs)) for tag, attrs in Parsed(written(run)).tags if tag != "wbr"]
    rewrite(run / "run.json", command=HOSTILE, machine=HOSTILE)
    rewrite(run / "failures" / "toy-dropout-seed1.json", reason=HOSTILE)
    skipped = json.loads((run / "skipped.json").read_text())
    (run / "skipped.json").write_text(json.dumps([skipped[0] | {"reason": HOSTILE}]))
    for path in (run / "cells").glob("*.json"):
        riders = json.loads(path.read_text())["riders"]
        for rider in riders.values():
            rider["notes"] = [HOSTILE] if rider["notes"] else []
        rewrite(
            path,
            versions={"stab": HOSTILE},
            environment=HOSTILE,
            dataset=HOSTILE,
            dataset_sha256=HOSTILE,
            expert_sha256=HOSTILE,
            references_source=HOSTILE,
            riders=riders,
        )

    def rename(results: statistics.Results) -> statistics.Results:
        failures = {(task, HOSTILE): reason for (task, _), reason in results.failures.items()}
        names = tuple(HOSTILE if name == "dropout" else name for name in results.config.stabilizers)
        config = dataclasses.replace(results.config, stabilizers=names)
        return dataclasses.replace(results, config=config, failures=failures)

    text = written(run, rename)
    parsed = Parsed(text)
    hostile = [(tag, sorted(attrs)) for tag, attrs in parsed.tags if tag != "wbr"]
    added = [one for one in hostile if one not in plain]
    assert added == []
    assert hostile.count(("script", [])) == 1
    assert "onerror=" not in re.sub(r"&lt;img src=x onerror=", "", text.replace("<wbr>", ""))
    assert text.isascii()
    assert "\u202e" not in parsed.text
    for place in ("img src=x onerror=alert(2)", "{{ 7 * 7 }}&amp;"):
        assert parsed.text.count(place) >= 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"smoke": True}, table.SMOKE),
        ({"learned": False}, "has not learned (return 0."),
        ({"static": "ema"}, "static"),
        ({"static": "none"}, "lowest GVA"),
        (
            {"level": {"ema": 0.1, "lr_decay": 0.1}},
            "none has the lowest GVA; nothing else is ranked",
        ),
    ],
)
def test_runs_of_other_kinds(
    make_run: Callable[..., Path], change: dict[str, Any], said: str
) -> None:
    assert said in Parsed(written(make_run(**change))).text


def test_nothing_finished(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        path.unlink()
    (run / "run.json").unlink()
    parsed = Parsed(written(run))
    assert "none has not finished, so nothing can be compared" in parsed.text
    assert "Make it again" not in parsed.text


def test_one_seed(run: Path) -> None:
    rewrite(run / "config.yaml", seeds=1)
    text = Parsed(written(run)).text
    assert "1 seed:" in text
    assert "1 seed × " in text
    assert "too few to say" in text


def test_several_tasks(run: Path) -> None:
    rewrite(run / "config.yaml", tasks=["toy", "other"])
    for folder in ("cells", "timings"):
        for path in (run / folder).glob("toy-*.json"):
            copy = path.with_name(path.name.replace("toy-", "other-"))
            copy.write_text(path.read_text())
            rewrite(
                copy,
                **({"task": "other", "versions": {"stab": "9.9"}} if folder == "cells" else {}),
            )
    (run / "figures").mkdir()
    for name in ("tasks-all.png", "toy-scores.png", "other-scores.png"):
        (run / "figures" / name).write_bytes(b"\x89PNG")
    text = written(run)
    parsed = Parsed(text)
    ids = [attrs["id"] for _, attrs in parsed.tags if attrs.get("id")]
    assert ids == ["overview", "task-toy", "task-other", "score", "recipe", "provenance"]
    assert [link["href"] for link in parsed.all("a")] == ["#task-toy", "#task-other"]
    assert [str(one["alt"]).split(":")[0] for one in parsed.all("img")] == [
        "All tasks",
        "toy",
        "other",
    ]
    assert "stab 9.9" in parsed.text
    assert all(note in parsed.text for note in table.OVERVIEW)
    assert "amplification" in parsed.cells


def test_a_sweep(run: Path) -> None:
    names = ["none", "ema", "lr_decay", "lr_decay:final=0.5", "recipe:lr=0.1+ema:half_life=3"]
    rewrite(run / "config.yaml", stabilizers=names)
    parsed = Parsed(written(run))
    groups = sweep.groups(statistics.leaderboard(statistics.read(run)), "toy")
    assert len(groups) > 1
    sheet = sweep.sheet(groups, ["method"], "")
    assert {
        *sheet.headings,
        *(cell for line in sheet.lines for cell in line),
    } <= {*parsed.cells}
    for expected in ("toy, tuned", *sheet.notes, "If recipe: does not say otherwise"):
        assert expected in parsed.text
    assert any(cell.startswith("recipe:lr=0.1+ema:half_life=3 ") for cell in parsed.cells)


def test_it_is_the_same_again_and_needs_no_figures(run: Path) -> None:
    assert written(run) == written(run)
    draw(run)
    first = written(run)
    assert first == written(run)
    assert not list(run.glob(".*"))


def test_it_is_written_in_any_locale(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text: list[str] = []
    monkeypatch.setattr(files, "write_text", lambda _, content: text.append(content))
    results = statistics.read(run)
    page.write(results, statistics.leaderboard(results), run / "figures", run / "report.html")
    assert text[0].isascii()
    assert "&#8211;" in text[0]
