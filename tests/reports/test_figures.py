"""The figures hold the numbers of the statistics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from stab.reports import figures, statistics


@pytest.fixture
def results(run: Path) -> statistics.Results:
    return statistics.read(run)


def lines(axes: Any) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.get_lines()]


def test_curves_show_the_raw_iterates_and_every_average_of_them(results: statistics.Results) -> None:
    figure = figures.draw(results, statistics.leaderboard(results))["toy-curves"]
    rows = np.array(figure.axes).reshape(-1, 2)
    assert [left.get_ylabel().split("\n")[0] for left, _ in rows] == ["none", "ema"]  # not lr_decay: other iterates
    for (left, right), name in zip(rows, ("none", "ema"), strict=True):
        series = results.series["toy", name]
        np.testing.assert_allclose(lines(left)[-1], series.returns.mean((0, 2)))
        np.testing.assert_allclose(lines(right)[-1], series.val_loss.mean(0))
        for seed in series.returns.mean(2):
            assert any(np.array_equal(seed, line) for line in lines(left))


def test_scores_stand_in_the_order_of_the_leaderboard(results: statistics.Results) -> None:
    leaderboard = statistics.leaderboard(results)
    left, right = figures.scores(leaderboard, "toy").axes
    names = [label.get_text().split("\n")[0] for label in left.get_yticklabels()]
    assert names == [entry["stabilizer"] for entry in leaderboard["entries"]]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first entry is on top"
    points = [{(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()} for axes in (left, right)]
    for y, entry in zip(left.get_yticks(), leaderboard["entries"], strict=True):
        if entry["gva"] is not None:
            assert (entry["gva"], y) in points[0]
            assert (entry["return"], y) in points[1]


def test_a_smoke_figure_says_so(make_run: Any) -> None:
    results = statistics.read(make_run(smoke=True))
    for figure in figures.draw(results, statistics.leaderboard(results)).values():
        assert "SMOKE RUN" in figure.get_suptitle()


def test_files_and_images(results: statistics.Results, tmp_path: Path) -> None:
    drawn = figures.draw(results, statistics.leaderboard(results))
    figures.save(drawn, tmp_path)
    for name in ("toy-curves", "toy-scores"):
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
    assert list(figures.draw(results, statistics.leaderboard(results))) == ["toy-scores"]


def test_importing_reports_is_light() -> None:
    code = "import sys, stab.reports; sys.exit(bool({'torch', 'matplotlib', 'tensorboard'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_leaves_pyplot_alone(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stab.reports import figures, statistics\n"
        "results = statistics.read(Path(sys.argv[1]))\n"
        "figures.draw(results, statistics.leaderboard(results))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], check=False).returncode == 0
