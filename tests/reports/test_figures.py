"""The figures hold the numbers of the statistics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from stab.reports import figures, statistics, table
from stab.reports.columns import shown


@pytest.fixture
def results(run: Path) -> statistics.Results:
    return statistics.read(run)


HEADINGS = [column.heading for column in shown("terminal")]


def lines(axes: Any) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.get_lines()]


def drawn(run: Path) -> tuple[statistics.Results, dict[str, Any], dict[str, Any]]:
    results = statistics.read(run)
    leaderboard = statistics.leaderboard(results)
    return results, leaderboard, figures.draw(results, leaderboard)


def change(run: Path, **settings: Any) -> Path:
    """Edit settings in the run's config.yaml."""
    path = run / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return run


def second_task(run: Path, name: str = "other") -> Path:
    """Give the run a second task: the cells of the first again, without lr_decay's."""
    for kind in ("cells", "timings"):
        for path in (run / kind).glob("toy-*.json"):
            cell = json.loads(path.read_text())
            if kind == "cells" and cell["raw"] == "none":
                (path.parent / path.name.replace("toy", name, 1)).write_text(
                    json.dumps(cell | {"task": name})
                )
    return change(run, tasks=["toy", name])


def many(leaderboard: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the leaderboard with ``count`` more entries, hardly apart, half of them unranked."""
    base = next(entry for entry in leaderboard["entries"] if entry["stabilizer"] == "none")
    more = [
        base
        | {
            "stabilizer": f"recipe:lr=0.000{n}+lr_decay+ema:half_life={n}",
            "method": "lr_decay+ema",
            "gva": 1e-3 * n,
        }
        | {
            "rank": n + 1 if 2 * n < count else None,
            "status": "ranked" if 2 * n < count else "unsound",
        }
        for n in range(count)
    ]
    found = [*more[: count // 2], *leaderboard["entries"], *more[count // 2 :]]
    settings = leaderboard["run"]["settings"]
    settings |= {
        "stabilizers": [*settings["stabilizers"], *(entry["stabilizer"] for entry in more)]
    }
    return leaderboard | {"entries": found, "run": leaderboard["run"] | {"settings": settings}}


def test_every_figure_is_listed_and_has_a_caption() -> None:
    modules = {path.stem for path in Path(figures.__file__).parent.glob("[a-z]*.py")}
    assert modules - {"style"} == set(figures.CAPTIONS)
    assert all(figures.CAPTIONS.values())


def test_curves_show_the_raw_iterates_and_every_average_of_them(
    results: statistics.Results,
) -> None:
    figure = figures.draw(results, statistics.leaderboard(results))["toy-curves"]
    rows = np.array(figure.axes).reshape(-1, 2)
    assert [left.get_ylabel().split("\n")[0] for left, _ in rows] == [
        "none",
        "ema",
    ]  # not lr_decay: other iterates
    for (left, right), name in zip(rows, ("none", "ema"), strict=True):
        series = results.series["toy", name]
        np.testing.assert_allclose(lines(left)[-1], series.returns.mean((0, 2)))
        np.testing.assert_allclose(lines(right)[-1], series.val_loss.mean(0))
        for seed in series.returns.mean(2):
            assert any(np.array_equal(seed, line) for line in lines(left))


def test_scores_stand_in_the_order_of_the_leaderboard(results: statistics.Results) -> None:
    leaderboard = statistics.leaderboard(results)
    left, right = figures.scores.draw(results, leaderboard, "toy").axes
    names = [label.get_text().split("\n")[0] for label in left.get_yticklabels()]
    assert names == [entry["stabilizer"] for entry in leaderboard["entries"]]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first entry is on top"
    points = [
        {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()}
        for axes in (left, right)
    ]
    for y, entry in zip(left.get_yticks(), leaderboard["entries"], strict=True):
        if entry["gva"] is not None:
            assert (entry["gva"], y) in points[0]
            assert (entry["return"], y) in points[1]


def test_the_tradeoff_has_a_dot_an_entry(run: Path) -> None:
    _, leaderboard, found = drawn(run)
    (axes,) = found["toy-tradeoff"].axes
    dots = {line.get_label(): line for line in axes.get_lines() if line.get_marker() == "o"}
    figured = [entry for entry in leaderboard["entries"] if entry["gva"] is not None]
    assert list(dots) == [entry["stabilizer"] for entry in figured]
    for entry in figured:
        assert dots[entry["stabilizer"]].get_xydata().tolist() == [[entry["gva"], entry["return"]]]
        spans = [line.get_xydata().tolist() for line in axes.get_lines()]
        assert [[entry["gva_low"], entry["return"]], [entry["gva_high"], entry["return"]]] in spans
        assert [[entry["gva"], entry["return_low"]], [entry["gva"], entry["return_high"]]] in spans
    assert {text.get_text() for text in axes.texts} == set(dots)


def test_a_dots_area_is_its_cost_and_unranked_ones_are_hollow(results: statistics.Results) -> None:
    leaderboard = statistics.leaderboard(results)
    ema, *_ = (entry for entry in leaderboard["entries"] if entry["stabilizer"] == "ema")
    ema |= {"samples": 4 * ema["samples"], "rank": None, "status": "unsound"}
    figure = figures.tradeoff.draw(results, leaderboard, "toy")
    dots = {
        line.get_label(): line for line in figure.axes[0].get_lines() if line.get_marker() == "o"
    }
    assert dots["ema"].get_markersize() ** 2 == pytest.approx(
        4 * dots["none"].get_markersize() ** 2
    )
    assert [
        dots[name].get_markerfacecolor() == "white" for name in ("none", "ema", "lr_decay")
    ] == [False, True, False]
    sizes = {line.get_label(): line.get_markersize() for line in figure.legends[0].get_lines()}
    assert sizes == {"x1": dots["none"].get_markersize(), "x4": dots["ema"].get_markersize()}


def test_the_tradeoff_of_a_sweep_names_the_best_and_none(results: statistics.Results) -> None:
    leaderboard = many(statistics.leaderboard(results), 40)
    figure = figures.tradeoff.draw(results, leaderboard, "toy")
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == [*"12345678", "none"]
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == ["x1", *(f"{n + 1}: {leaderboard['entries'][n]['stabilizer']}" for n in range(8))]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_horizons_and_lags(run: Path) -> None:
    _, leaderboard, found = drawn(run)
    left, right = found["toy-horizons"].axes
    shown = [
        entry
        for name in ("none", "ema", "lr_decay")
        for entry in leaderboard["entries"]
        if entry["stabilizer"] == name
    ]
    for axes, key in ((left, "gva_by_horizon"), (right, "gva_by_lag")):
        assert [line.get_label() for line in axes.get_lines()] == [
            entry["stabilizer"] for entry in shown
        ]
        for line, entry in zip(axes.get_lines(), shown, strict=True):
            assert line.get_xdata().tolist() == [int(n) for n in entry[key]]
            assert line.get_ydata().tolist() == list(entry[key].values())
        looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
        assert (
            len({colour for colour, _ in looks})
            == len({marker for _, marker in looks})
            == len(shown)
        )


def test_those_chosen_are_none_and_the_best_of_each_method(results: statistics.Results) -> None:
    leaderboard = many(statistics.leaderboard(results), 40)
    found = [entry["stabilizer"] for entry in figures.style.chosen(leaderboard, "toy")]
    ranked = [entry["stabilizer"] for entry in leaderboard["entries"][:3]]
    assert found == ["none", *ranked, "ema", "lr_decay"]


def test_the_heat_map_holds_every_return(run: Path) -> None:
    results, leaderboard, found = drawn(run)
    figure = found["toy-heat"]
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title().split("\n")[0] for axes in panels] == ["none", "ema", "lr_decay"]
    for axes in panels:
        name, score = axes.get_title().split("\n")
        series = results.series["toy", name]
        (entry,) = (entry for entry in leaderboard["entries"] if entry["stabilizer"] == name)
        assert score.split()[:2] == ["GVA", f"{entry['gva']:.3f}"]
        (image,) = axes.get_images()
        assert image.get_clim() == (0, 1)
        seeds, checkpoints, starts = series.returns.shape
        cells = np.asarray(image.get_array()).reshape(seeds, starts, checkpoints)
        for seed, k, start in np.ndindex(series.returns.shape):
            assert cells[seed, start, k] == series.returns[seed, k, start]
        ticks = {
            int(x): label.get_text()
            for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        }
        assert ticks == {k: str(series.updates[k]) for k in ticks}
        upright = [
            line.get_xdata()[0] for line in axes.get_lines() if len(set(line.get_xdata())) == 1
        ]
        assert upright == [series.window.argmax() - 0.5]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "seed 0",
        "seed 1",
        "seed 2",
    ]


def test_the_leaderboard_is_an_image_of_the_table(run: Path) -> None:
    _, leaderboard, found = drawn(run)
    (axes,) = found["toy-leaderboard"].axes
    said = [text.get_text() for text in axes.texts]
    lines = [said[n : n + len(HEADINGS)] for n in range(0, len(said), len(HEADINGS))]
    sheet = table.table(leaderboard, "toy")
    for line, expected in zip(lines, [sheet.headings, *sheet.lines], strict=True):
        assert [cell.split() for cell in line] == [cell.split() for cell in expected]
    tops = [text.get_position()[1] for text in axes.texts[:: len(HEADINGS)]]
    rule = axes.get_lines()[-1].get_ydata()[0]
    assert sum(top < rule for top in tops) == 1 + 3, (
        "the head and the ranked ones stand above the line"
    )


def test_of_a_long_leaderboard_the_first_and_none_are_shown(results: statistics.Results) -> None:
    leaderboard = many(statistics.leaderboard(results), 60)
    figure = figures.leaderboard.draw(results, leaderboard, "toy")
    names = [text.get_text().replace("\n", "") for text in figure.axes[0].texts[1 :: len(HEADINGS)]]
    assert names[1:] == [*(entry["stabilizer"] for entry in leaderboard["entries"][:19]), "none"]
    assert f"... and {len(leaderboard['entries']) - 20} more" in figure.get_supxlabel()


def test_the_matrix_crosses_tasks_and_stabilizers(run: Path) -> None:
    _, leaderboard, found = drawn(second_task(run))
    axes = found["tasks-matrix"].axes[0]
    tasks, strings = (
        [label.get_text() for label in labels]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    assert tasks == ["toy", "other"]
    assert strings == leaderboard["run"]["settings"]["stabilizers"]
    said = {text.get_position(): text for text in axes.texts}
    (cells,) = axes.collections
    for entry in leaderboard["entries"]:
        x, y = tasks.index(entry["task"]), strings.index(entry["stabilizer"])
        value = cells.get_array()[y, x]
        if entry["gva"] is None:
            assert said[x + 0.5, y + 0.5].get_text() == "–"
            assert np.ma.is_masked(value) or np.isnan(value)
        else:
            assert said[x + 0.5, y + 0.5].get_text().split() == [
                f"{entry['gva']:.3f}",
                f"{entry['return']:.2f}",
            ]
            assert value == entry["gva"]


def test_the_matrix_marks_what_is_not_ranked_and_is_readable(make_run: Any) -> None:
    _, leaderboard, found = drawn(second_task(make_run(level={"ema": 0.3})))
    axes = found["tasks-matrix"].axes[0]
    (cells,) = axes.collections
    starred = [text for text in axes.texts if text.get_text().endswith("*")]
    assert len(starred) == sum(entry["status"] == "unsound" for entry in leaderboard["entries"]) > 0
    for level in np.linspace(0, 1, 50):  # WCAG 2: at least 4.5 to 1
        back = luminance(cells.cmap(level))
        front = luminance(to_rgb(figures.matrix.contrast(cells.cmap(level))))
        assert (max(front, back) + 0.05) / (min(front, back) + 0.05) >= 4.5


def luminance(colour: Any) -> float:
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def test_the_matrix_of_a_sweep_shows_the_first(run: Path) -> None:
    leaderboard = statistics.leaderboard(statistics.read(run))
    figure = figures.matrix.draw(many(leaderboard, 40))
    assert len(figure.axes[0].get_yticklabels()) == 24
    assert "21 more stabilizers not shown" in figure.get_supxlabel()


def test_one_task_has_no_matrix(run: Path) -> None:
    assert "tasks-matrix" not in drawn(run)[2]


def test_one_seed_one_entry_and_returns_below_0(make_run: Any, tmp_path: Path) -> None:
    run = change(make_run(level={"none": -3.0}), seeds=1, stabilizers=["none"])
    _, leaderboard, found = drawn(second_task(run))
    assert leaderboard["entries"][0]["gva_low"] is None
    assert {"toy-tradeoff", "toy-horizons", "toy-heat", "toy-leaderboard", "tasks-matrix"} <= set(
        found
    )
    assert len(found["toy-tradeoff"].axes[0].get_lines()) == 1, "no intervals"
    figures.save(found, tmp_path)


@pytest.mark.parametrize(
    "stabilizers",
    [
        ["none", "none"],
        [
            "none",
            "gone:a=$x$_{,b=$",
            "x:" + ",".join(f"k{n}={n}" for n in range(60)),
            "y" * 300,
            "",
        ],
    ],
    ids=["twice", "odd names"],
)
def test_every_run_that_can_be_read_can_be_drawn(
    run: Path, stabilizers: list[str], tmp_path: Path
) -> None:
    *_, found = drawn(second_task(change(run, stabilizers=stabilizers)))
    figures.save(found, tmp_path)


@pytest.mark.parametrize("factor", [1e15, -1e15, 0])
def test_returns_of_any_size_can_be_drawn(run: Path, factor: float, tmp_path: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text()) | {"environment": "$x_{$"}
        for row in cell["rows"]:
            row["return"] *= factor
        path.write_text(json.dumps(cell))
    *_, found = drawn(run)
    kinds = ("toy-tradeoff", "toy-heat", "toy-leaderboard")
    figures.save({kind: found[kind] for kind in kinds}, tmp_path)


def test_a_read_out_that_never_changes_is_drawn(make_run: Any, tmp_path: Path) -> None:
    *_, found = drawn(make_run(static="ema", learned=False))
    assert "Warning" in found["toy-leaderboard"].get_supxlabel()
    figures.save(found, tmp_path)


def test_horizons_without_a_score_leave_a_gap(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        cell["references"]["random"][0] = cell["references"]["expert"][0]
        path.write_text(json.dumps(cell))
    _, leaderboard, found = drawn(run)
    assert None in leaderboard["entries"][0]["gva_by_horizon"].values()
    assert np.isnan(found["toy-horizons"].axes[0].get_lines()[0].get_ydata()[0])


def test_a_smoke_figure_says_so(make_run: Any) -> None:
    *_, found = drawn(second_task(make_run(smoke=True)))
    assert "tasks-matrix" in found
    for figure in found.values():
        assert "SMOKE RUN" in figure.get_suptitle()


def test_files_and_images(run: Path, tmp_path: Path) -> None:
    *_, found = drawn(run)
    figures.save(found, tmp_path)
    for name in found:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
        image = imread(tmp_path / f"{name}.png")
        assert image.shape[1] == 7 * 150
        assert image.min() < image.max()


def test_a_task_without_its_raw_iterates_has_scores_but_no_curves(run: Path) -> None:
    for path in (run / "cells").glob("*.json"):
        if '"raw": "none"' in path.read_text():
            path.unlink()
    results = statistics.read(run)
    assert list(figures.draw(results, statistics.leaderboard(results))) == [
        "toy-scores",
        "toy-leaderboard",
    ]


def test_importing_reports_is_light() -> None:
    heavy = "{'torch', 'matplotlib', 'tensorboard'}"
    code = f"import sys, stab.reports; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_leaves_pyplot_alone(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stab.reports import figures, statistics\n"
        "results = statistics.read(Path(sys.argv[1]))\n"
        "figures.draw(results, statistics.leaderboard(results))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], check=False).returncode == 0


def lives(entries: list[tuple[str, int | None, float, int | None]]) -> dict[str, Any]:
    """A leaderboard of (stabilizer, half-life, GVA, rank)."""
    found = [
        {"task": "toy", "stabilizer": s, "half_life": None if life is None else [life, life],
         "gva": value, "return": 1 - value, "rank": rank, "status": "ranked" if rank else "unsound"}
        for s, life, value, rank in entries
    ]  # fmt: skip
    strings = [s for s, *_ in entries]
    return {"run": {"smoke": False, "settings": {"stabilizers": strings}}, "entries": found}


def test_lines_along_the_half_lives_begin_with_their_raw_iterates() -> None:
    leaderboard = lives(
        [("none", None, 0.3, 1), ("ema:half_life=100", 100, 0.1, 2),
         ("ema:half_life=30", 30, 0.2, None), ("recipe:lr=0.1", None, 0.5, None),
         ("recipe:lr=0.1+lr_decay+ema:half_life=30", 30, 0.4, 3)]
    )  # fmt: skip
    figure = figures.half_life.draw(None, leaderboard, "toy")
    left, right = figure.axes
    drawn = {
        line.get_label(): line for line in left.get_lines() if not line.get_label().startswith("_")
    }
    assert list(drawn) == ["ema", "recipe:lr=0.1+lr_decay+ema"]
    np.testing.assert_allclose(drawn["ema"].get_xydata(), [(1, 0.3), (30, 0.2), (100, 0.1)])
    # lr_decay's raw iterates at this learning rate are not an entry: the line starts later.
    np.testing.assert_allclose(drawn["recipe:lr=0.1+lr_decay+ema"].get_xydata(), [(30, 0.4)])
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.values()}
    assert len(looks) == 2
    dots = {
        tuple(line.get_xydata()[0]): line.get_markerfacecolor()
        for line in left.get_lines()
        if line.get_marker() == "o"
    }
    assert [dots[place] == "white" for place in ((1, 0.3), (30, 0.2), (100, 0.1))] == [
        False,
        True,
        False,
    ]
    assert {
        tuple(line.get_xydata()[-1]) for line in right.get_lines() if line.get_label() == "ema"
    } == {(100, 0.9)}


def test_every_line_along_the_half_lives_looks_otherwise_or_is_left_out_with_a_word() -> None:
    kinds = ("", "lr_decay+", "lr_decay:shape=cosine+", "weight_decay+", "dropout+")
    recipes = ("", *(f"recipe:batch_size=64,lr=0.{n}+" for n in range(1, 8)))
    leaderboard = lives(
        [(f"{r}{k}ema:half_life={n}", n, 0.1, 1) for r in recipes for k in kinds for n in (30, 90)]
    )
    figure = figures.half_life.draw(None, leaderboard, "toy")
    drawn = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == len(drawn) == 6 * 4
    assert f"{8 * 5 - 24} more lines not shown" in figure.legends[0].get_title().get_text()
    figures.style.settle(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_hundreds_of_entries_are_cut_and_the_title_says_so(results: statistics.Results) -> None:
    leaderboard = statistics.leaderboard(results)
    first, none = (
        next(e for e in leaderboard["entries"] if e["stabilizer"] == s) for s in ("ema", "none")
    )
    leaderboard["entries"] = [
        *(first | {"stabilizer": f"ema:half_life={n}"} for n in range(1, 500)),
        none,
    ]
    figure = figures.scores.draw(results, leaderboard, "toy")
    assert len(figure.axes[0].get_yticklabels()) == figures.scores.ROWS + 1
    assert figure.axes[0].get_yticklabels()[-1].get_text() == "none"
    assert "(61 of 500 entries)" in figure.get_suptitle().replace("\n", " ")


def test_the_same_figures_are_the_same_files(results: statistics.Results, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        figures.save(figures.draw(results, statistics.leaderboard(results)), tmp_path / folder)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
