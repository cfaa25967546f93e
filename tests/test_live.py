"""TensorBoard while a comparison runs: what its own reader finds on disk at any moment."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stab import comparison, files
from stab.engines import local as engine
from stab.recipe import Recipe
from stab.reports import live, render
from stab.reports.live import Live
from stab.run.cells import Cell
from stab.run.execute import WORK, prepare
from stab.run.folder import cell_file, open_folder, shards_folder
from stab.run.plan import make_config, make_plan

LINEAR = ("train.policy=mlp:depth=0", "train.lr=0.01", "train.updates=100", "eval.checkpoint_every=10", "eval.starts=2",
          "eval.horizon=30")  # fmt: skip


def scalars(run, string, tag):
    if not (run / "tensorboard" / string).exists():
        return {}
    events = EventAccumulator(
        str(run / "tensorboard" / string), size_guidance={"scalars": 0}
    ).Reload()
    return (
        {event.step: event.value for event in events.Scalars(tag)}
        if tag in events.Tags()["scalars"]
        else {}
    )


def finished(seed, returns, losses):
    """A finished cell of none: returns (updates, starts)."""
    updates = [10 * (k + 1) for k in range(len(returns))]
    return {
        "task": "toy",
        "seed": seed,
        "checkpoints": {
            "none": [{"update": u, "val_loss": v} for u, v in zip(updates, losses, strict=True)]
        },
        "rows": [
            {"stabilizer": "none", "update": u, "start": n, "return": value}
            for u, values in zip(updates, returns, strict=True)
            for n, value in enumerate(values)
        ],
    }


@pytest.fixture
def config():
    return make_config("cliff", "ema", seeds=2, overrides=LINEAR)[0]


def test_a_curve_is_the_mean_of_the_seeds_that_have_come(tmp_path, config):
    shown = Live(tmp_path, config)
    shown._show(shown._take(finished(0, [[0.0, 0.2], [0.4, 0.4], [0.6, 0.8]], [3.0, 2.0, 1.0])))
    assert scalars(tmp_path, "none", "toy/return") == pytest.approx({10: 0.1, 20: 0.4, 30: 0.7})
    # Another seed, further behind: from the beginning again, and nothing of the old curve stays.
    shown._show(shown._take(finished(1, [[0.3, 0.3], [0.0, 0.0]], [5.0, 4.0])))
    assert scalars(tmp_path, "none", "toy/return") == pytest.approx({10: 0.2, 20: 0.2, 30: 0.7})
    assert scalars(tmp_path, "none", "toy/val_loss") == pytest.approx({10: 4.0, 20: 3.0, 30: 1.0})
    shown.close()


def test_parts_are_shown_before_their_cell_is_finished(tmp_path, config, monkeypatch):
    monkeypatch.setattr(live, "REFRESH", 0.0)
    cell = Cell("cliff", Recipe(), 0, ("none", "ema"))
    shown = Live(tmp_path, config)

    def part(number, points):
        episode = [
            {"return": 0.1 * number, "length": 3, "cumulative": [1.0]},
            {"return": 0.3, "length": 3, "cumulative": [1.0]},
        ]
        found = {sha: episode for *_, sha in points}
        files.write_json(
            shards_folder(tmp_path, cell.key) / f"{number}.json",
            {"seconds": 1.0, "found": found, "points": points},
        )

    shown.look([cell])
    assert scalars(tmp_path, "ema", "cliff/return") == {}
    part(1, [["none", 10, 0.5, "a"], ["ema", 10, 0.4, "a"], ["none", 20, 0.3, "b"]])
    shown.look([cell])
    assert scalars(tmp_path, "none", "cliff/return") == pytest.approx({10: 0.2, 20: 0.2})
    assert scalars(tmp_path, "ema", "cliff/val_loss") == pytest.approx({10: 0.4})
    part(3, [["none", 30, 0.2, "c"]])
    shown.look([cell])
    assert scalars(tmp_path, "none", "cliff/return") == pytest.approx({10: 0.2, 20: 0.2, 30: 0.3})
    shown.close()


def test_a_part_that_is_written_again_is_read_again_and_a_damaged_one_is_passed_over(
    tmp_path, config, monkeypatch
):
    monkeypatch.setattr(live, "REFRESH", 0.0)
    cell = Cell("cliff", Recipe(), 0, ("none",))
    shown = Live(tmp_path, config)
    path = shards_folder(tmp_path, cell.key) / "1.json"

    def write(value, updates):
        episodes = [{"return": value, "length": 3, "cumulative": [1.0]}]
        points = [["none", update, 0.5, "a"] for update in updates]
        files.write_json(path, {"seconds": 1.0, "found": {"a": episodes}, "points": points})

    for content in (b"", b"{", b"[]", b'{"seconds": 1.0, "found": {}}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        shown.look([cell])
    assert scalars(tmp_path, "none", "cliff/return") == {}
    write(0.25, [10])
    shown.look([cell])
    write(0.75, [10, 20])
    os.utime(path, (1, 1))
    shown.look([cell])
    assert scalars(tmp_path, "none", "cliff/return") == {10: 0.75, 20: 0.75}
    # What a cell that fails had is no part of the mean any more.
    shown.failed(cell)
    assert scalars(tmp_path, "none", "cliff/return") == {}
    shown.close()


@pytest.mark.parametrize("what", ["rebuilt", "deleted", "a file"])
def test_whatever_happens_to_the_curves_the_comparison_goes_on(tmp_path, config, monkeypatch, what):
    monkeypatch.setattr(live, "REFRESH", 0.0)
    plan = make_plan(config)
    prepare(plan)
    run = tmp_path / "run"
    open_folder(run, plan.config, plan.skipped)
    if what == "a file":
        (run / "tensorboard").write_text("mine")
    ended = []
    with engine.Workers(WORK, 1) as workers:
        for _, event in comparison.execute_live(plan, run, workers):
            if event.kind == "progress" and event.phase == "rollouts" and what == "rebuilt":
                render(run)  # what ``stab report`` does
            elif event.kind == "progress" and what == "deleted":
                shutil.rmtree(run / "tensorboard", ignore_errors=True)
            elif event.kind != "progress":
                ended.append(event.kind)
    assert ended == ["done"] * len(plan.cells)
    if what != "a file":
        render(run)
        assert len(scalars(run, "ema", "cliff/return")) == len(config.checkpoints)


def test_looks_are_seconds_apart(tmp_path, config):
    shown = Live(tmp_path, config)
    cell = Cell("cliff", Recipe(), 0, ("none",))
    shown.looked = live.time.monotonic()
    points = [["none", 10, 0.5, "a"]]
    found = {"a": [{"return": 0.1, "length": 3, "cumulative": [1.0]}]}
    files.write_json(
        shards_folder(tmp_path, cell.key) / "1.json",
        {"seconds": 1.0, "found": found, "points": points},
    )
    shown.look([cell])
    assert shown.read == set()
    shown.close()


def test_the_curves_of_a_comparison_grow_and_end_as_they_are_rendered(
    tmp_path, config, monkeypatch
):
    monkeypatch.setattr(live, "REFRESH", 0.0)
    plan = make_plan(config)
    prepare(plan)
    run = tmp_path / "run"
    open_folder(run, plan.config, plan.skipped)
    seen = []
    with engine.Workers(WORK, 1) as workers:
        for _, event in comparison.execute_live(plan, run, workers):
            if event.kind == "progress" and event.phase == "rollouts":
                seen.append(len(scalars(run, "ema", "cliff/return")))
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, "it grew while a cell was under way"
    last = scalars(run, "ema", "cliff/return")
    cells = [json.loads(cell_file(run, cell.key).read_text()) for cell in plan.cells]
    for update in config.checkpoints:
        found = [
            r["return"]
            for cell in cells
            for r in cell["rows"]
            if (r["stabilizer"], r["update"]) == ("ema", update)
        ]
        assert last[update] == pytest.approx(np.mean(found), rel=1e-6)
    # A session that goes on begins with what there is.
    Live(run, config).close()
    assert scalars(run, "ema", "cliff/return") == last


def test_more_stabilizers_than_tensorboard_shows_are_left_out(tmp_path, config):
    lives = "|".join(map(str, range(1, 60)))
    many = make_config("cliff", f"ema:half_life={lives}", overrides=LINEAR)[0]
    shown = Live(tmp_path, many)
    assert len(shown.strings) == live.MOST
    shown.close()
