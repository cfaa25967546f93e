"""The comparison from Python: plans, failures, controls."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import forked
import h5py
import numpy as np
import pytest
import torch
from forked import TINY

from stab import StabError, comparison, files, gva
from stab.engines import local as engine
from stab.recipe import Recipe
from stab.reports import render
from stab.run import estimate, rows
from stab.run.cells import Cell, finish, make_job
from stab.run.execute import WORK, prepare, unfinished
from stab.run.execute import execute as run_plan
from stab.run.folder import (
    check_folder,
    clear_shards,
    held,
    open_folder,
    shards_folder,
    write_run_info,
)
from stab.run.plan import cross, every_stabilizer, make_config, make_plan
from stab.run.worker import work
from stab.stabilizers import Average, Intervention, hyper, stabilizers
from stab.stabilizers.base import MeanState, clone


def plan(*args, **options):
    return make_plan(*make_config(*args, **options))


def test_the_default_plan_is_the_design_s():
    made = plan("hopper", "all")
    assert made.config.stabilizers[:8] == (
        "none", "ema", "polyak", "swa", "accumulation", "lr_decay", "weight_decay", "dropout",
    )  # fmt: skip
    assert made.config.window == list(range(3000, 6001, 150))
    assert len(made.config.window) == 21
    assert (made.config.seeds, made.config.eval.starts, made.config.eval.horizon) == (4, 4, 1000)
    assert (made.config.data.train_episodes, made.config.data.validation_episodes) == (20, 5)
    assert made.config.train.optimizer == "torch.optim:AdamW"
    assert (made.config.train.lr, made.config.train.weight_decay, made.config.train.batch_size) == (
        1e-3,
        0,
        256,
    )


def test_equal_recipes_share_a_cell_whatever_they_are_called():
    made = plan("hopper", "ema,swa,dropout:p=0,lr_decay:final=1,lr_decay+ema", seeds=1)
    by_riders = {cell.stabilizers for cell in made.cells}
    assert ("none", "ema", "swa", "dropout:p=0.0", "lr_decay:final=1.0") in by_riders
    assert (
        "lr_decay",
        "lr_decay+ema",
    ) in by_riders  # a trajectory's raw iterates are always rolled out
    assert len(made.cells) == 2


def test_none_is_always_run_and_first():
    assert plan("hopper", ["swa"]).config.stabilizers == ("none", "swa")


def test_what_comes_to_the_same_recipe_and_average_is_one_entry_of_a_sweep():
    strings = ["none", "lr_decay", "ema", "lr_decay+ema"]
    found = cross(
        Recipe(), {"schedule": ["constant", "linear"], "lr": [1e-3, "1e-3", 0.1]}, strings
    )
    assert found == [
        *strings,
        "recipe:lr=0.1", "recipe:lr=0.1+lr_decay", "recipe:lr=0.1+ema", "recipe:lr=0.1+lr_decay+ema",
    ]  # fmt: skip
    # What is asked for by name stays, whatever it comes to.
    assert cross(Recipe(), {}, ["none", "lr_decay:final=1.0"]) == [
        "none",
        "lr_decay:final=1.0",
    ]


def test_all_leaves_out_recipe_alone():
    @dataclasses.dataclass(frozen=True)
    class Idle(Intervention):
        p: float = 0.0
        neutral = {"p": 0.0, "nothing": 1}  # noqa: RUF012

        def apply(self, recipe):
            return recipe

    stabilizers.register("idle")(Idle)
    try:
        names, broken = every_stabilizer()
    finally:
        del stabilizers._registered["idle"]
    assert "idle" in names
    assert "recipe" not in names
    assert "idle" not in broken


def test_a_policy_s_own_speed_is_in_the_plan(hopper):
    made = plan("hopper", ["none", "recipe:policy=mlp:width=512;depth=3"], seeds=1)
    by_policy = dict(
        zip(
            (cell.recipe.policy for cell in made.cells),
            estimate.seconds(made, made.cells),
            strict=True,
        )
    )
    assert by_policy["mlp:width=512,depth=3"][0] > 1.5 * by_policy["mlp"][0]


def test_layers_quick_below_arguments_below_overrides():
    config, _ = make_config(
        "hopper", "ema", quick=True, seeds=5, updates=100, overrides=["train.updates=200"]
    )
    assert (config.smoke, config.seeds, config.train.updates, config.eval.starts) == (
        True,
        5,
        200,
        2,
    )


def execute(config, run):
    made = make_plan(config)
    open_folder(run, made.config, made.skipped)
    for cell in made.cells:
        parts = [make_job(cell, config, run)]
        for job in parts:  # it grows
            work(job, lambda phase, done: None, parts.append)
        finish(cell, run)
    return made


@dataclasses.dataclass(frozen=True)
class Freeze(Average):
    """A control that cheats: the initial parameters, for ever."""

    convex = False

    def init(self, params, total):
        return MeanState(clone(params), start=0)

    def update(self, state, params, step):
        pass

    def read(self, state):
        return clone(state.mean)


@pytest.fixture
def freeze():
    stabilizers.register("freeze")(Freeze)
    yield "freeze"
    del stabilizers._registered["freeze"]


def test_a_frozen_policy_is_static_and_not_ranked(hopper, freeze, tmp_path):
    config, _ = make_config("hopper", "freeze", seeds=1, overrides=TINY)
    made = execute(config, tmp_path / "run")
    assert unfinished(made, tmp_path / "run") == []
    entries = {e["stabilizer"]: e for e in render(tmp_path / "run")["entries"]}
    assert entries["freeze"]["status"] == "static"
    assert entries["freeze"]["rank"] is None
    assert entries["freeze"]["gva"] == pytest.approx(0, abs=1e-9)
    assert entries["none"]["rank"] == 1


def test_scores_are_those_of_the_rows(tiny_run):
    """The leaderboard's numbers, recomputed from complete rows by the definition."""
    leaderboard = json.loads((tiny_run / "leaderboard.json").read_text())
    entry = next(e for e in leaderboard["entries"] if e["stabilizer"] == "polyak")
    scores, means = [], []
    for seed in (0, 1):
        J: dict[int, list[float]] = {}
        for row in rows.rows(tiny_run):
            if (row["stabilizer"], row["seed"]) == ("polyak", seed) and row["update"] in row[
                "window"
            ]:
                low, high = row["references"]["random"][-1], row["references"]["expert"][-1]
                J.setdefault(row["start"], []).append((row["cumulative"][-1] - low) / (high - low))
        # All pairs of checkpoints: half the squared mean change, without its noise.
        pairs, N = [], len(J)
        for a, b in itertools.combinations(range(len(next(iter(J.values())))), 2):
            changes = [v[a] - v[b] for v in J.values()]
            mean = sum(changes) / N
            noise = sum((x - mean) ** 2 for x in changes) / (N - 1) / N
            pairs.append((mean**2 - noise) / 2)
        scores.append(sum(pairs) / len(pairs))
        means.append(sum(map(sum, J.values())) / sum(map(len, J.values())))
    assert entry["gva"] == pytest.approx(math.sqrt(max(0, sum(scores) / 2)), rel=1e-9)
    assert entry["checkpoint_variance"] == pytest.approx(sum(scores) / 2, rel=1e-9)
    assert entry["return"] == pytest.approx(sum(means) / 2, rel=1e-9)
    assert entry["gva_low"] is None


def test_rows_carry_what_reproduces_them(tiny_run):
    row = next(rows.rows(tiny_run))
    assert {
        "protocol", "task", "task_version", "dataset", "dataset_sha256", "expert_sha256", "environment", "stabilizer",
        "recipe", "seed", "update", "start", "return", "length", "cumulative", "val_loss", "gradient_variance", "versions",
    } <= set(row)  # fmt: skip
    assert {"stab", "torch", "mujoco", "gymnasium"} <= set(row["versions"])
    assert row["protocol"] == gva.PROTOCOL
    assert row["gradient_variance"] > 0


def test_a_cell_that_diverges_is_an_entry_with_its_reason(hopper, stab, tmp_path):
    done = stab(
        "compare", "-t", "hopper", "-s", "ema,lr_decay", "--seeds", 1, "--out", "run", *TINY,
        "train.optimizer=SGD", "train.lr=1e20", "train.policy=mlp:actions=clipped",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    entries = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    assert {e["status"] for e in entries} == {"failed"}
    assert all("training diverged" in e["reason"] and e["gva"] is None for e in entries)
    assert list((tmp_path / "run" / "cells").glob("*")) == []  # a failure is never kept as a result


def test_compare_from_a_script_without_a_main_guard(hopper, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import stab\n"
        f"found = stab.compare('hopper', ['none', 'ema'], seeds=1, out='run', overrides={list(TINY)!r})\n"
        "print(found.entries[0]['gva'], found.results.series['hopper', 'ema'].returns.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(1, 4, 2)")


def test_cell_key_names_task_recipe_and_seed():
    made = plan("hopper", "accumulation", seeds=2)
    keys = {cell.key for cell in made.cells}
    assert len(keys) == 4
    assert all(
        isinstance(cell, Cell) and cell.key.endswith(f"-seed{cell.seed}") for cell in made.cells
    )


def test_no_rider_twice_whatever_the_order():
    (cell,) = (
        c
        for c in plan("hopper", "lr_decay+ema,lr_decay,ema", seeds=1).cells
        if "lr_decay" in c.stabilizers
    )
    assert cell.stabilizers == ("lr_decay", "lr_decay+ema")
    assert plan(["hopper", "hopper"], "ema").config.tasks == ("hopper",)


def test_quick_wins_over_a_file_that_spells_everything_out(tmp_path):
    config, _ = make_config("hopper", "ema")
    (tmp_path / "full.yaml").write_text(json.dumps(config.to_dict()))
    quick, _ = make_config("hopper", "ema", quick=True, file=tmp_path / "full.yaml")
    assert quick.smoke
    assert quick.train.updates == 400


def test_an_optimizer_without_weight_decay_skips_what_needs_it():
    made = plan("hopper", "all", overrides=["train.optimizer=Rprop"])
    assert list(made.skipped) == [("hopper", "weight_decay")]
    assert "has no weight decay" in made.skipped["hopper", "weight_decay"]
    with pytest.raises(StabError, match="has no weight decay"):
        plan("hopper", "weight_decay", overrides=["train.optimizer=Rprop"])


@pytest.mark.parametrize(
    "bad", ["optimizer=lr_scheduler", "gradient_transforms=[{object: 'no.such:thing'}]"]
)
def test_what_cannot_be_made_is_refused_while_planning(bad):
    with pytest.raises(StabError):
        plan("hopper", "ema", overrides=[f"train.{bad}"])


@dataclasses.dataclass(frozen=True)
class Raises(Intervention):
    """A plug-in with a bug."""

    def apply(self, recipe):
        raise KeyError("oops")


@dataclasses.dataclass(frozen=True)
class Needy(Intervention):
    """A plug-in whose argument has no default."""

    strength: float

    def apply(self, recipe):
        return recipe


@pytest.mark.parametrize("cls", [Raises, Needy])
def test_a_plug_in_that_raises_is_skipped_and_stops_nobody_else(cls):
    stabilizers.register("buggy")(cls)
    try:
        made = plan("hopper", "all", seeds=1)
    finally:
        del stabilizers._registered["buggy"]
    assert list(made.skipped) == [("hopper", "buggy")]
    assert len(made.cells) == 5


def test_an_ema_whose_half_life_never_binds_says_so(hopper, tmp_path):
    config, _ = make_config("hopper", "ema:alpha=0.1", seeds=1, overrides=TINY)
    execute(config, tmp_path / "run")
    render(tmp_path / "run")
    assert "half-life never comes into force" in (tmp_path / "run" / "leaderboard.md").read_text()


def test_a_report_needs_no_plug_in(hopper, freeze, tmp_path):
    """What a run says must not depend on what is installed where it is read."""
    config, _ = make_config("hopper", "freeze", seeds=1, overrides=TINY)
    execute(config, tmp_path / "run")
    with_it = render(tmp_path / "run")
    registered = stabilizers._registered.pop("freeze")
    try:
        assert render(tmp_path / "run") == with_it
    finally:
        stabilizers._registered["freeze"] = registered


def test_unknown_names_raise():
    with pytest.raises(StabError, match="Did you mean 'hopper'"):
        plan("hoper", "ema")
    with pytest.raises(StabError, match="no stabilizers"):
        plan("hopper")


def test_wall_time_is_that_of_trainings_begun_in_order_and_rollouts_shared():
    from stab.run.estimate import wall_seconds

    assert wall_seconds([], 2) == 0
    assert wall_seconds([(3.0, 1.0)], 2) == 3
    assert wall_seconds([(1.0, 5.0)], 2) == 3
    # 5 and 4 begin; 2 follows on the second worker (6), 3 on the first (8); rollouts fill the gap of 2, and take 3 more.
    assert wall_seconds([(5.0, 0.0), (4.0, 0.0), (2.0, 8.0), (3.0, 0.0)], 2) == 11
    assert wall_seconds([(5.0, 0.0), (4.0, 0.0), (2.0, 1.0), (3.0, 0.0)], 2) == 8
    assert wall_seconds([(1.0, 0.0)] * 6, 3) == 2


def test_whoever_rolls_out_the_parts_in_whatever_order_the_rows_are_the_same(hopper, tmp_path):
    config, _ = make_config(
        "hopper", "ema,swa", seeds=1, overrides=[*TINY, "eval.checkpoint_every=5"]
    )
    (cell,) = make_plan(config).cells
    for name, order in (("one", 1), ("other", -1)):
        parts: list[dict] = []
        work(make_job(cell, config, tmp_path / name), lambda phase, done: None, parts.append)
        assert len(parts) > 1
        for job in parts[::order]:
            work(json.loads(json.dumps(job)), lambda phase, done: None, parts.append)
        assert list((tmp_path / name / "parts").iterdir())
        finish(cell, tmp_path / name)
        assert not list((tmp_path / name / "parts").iterdir())
    one, other = (list(rows.rows(tmp_path / name)) for name in ("one", "other"))
    assert one == other
    assert len(one) == 3 * len(config.checkpoints) * 2


def test_parts_that_a_killed_session_left_do_not_get_into_the_rows(hopper, tmp_path):
    config, _ = make_config("hopper", "ema", seeds=1, overrides=TINY)
    made, run = make_plan(config), tmp_path / "run"
    open_folder(run, made.config, made.skipped)
    left = run / "parts" / made.cells[0].key
    left.mkdir(parents=True)
    for name in ("trained.json", "1.json", "1.safetensors", "7.json"):
        (left / name).write_text("half of it")
    with engine.Workers(WORK, 1) as workers:
        assert [event.kind for _, event in run_plan(made, run, workers)][-1] == "done"
    assert len(list(rows.rows(run))) == 2 * 4 * 2
    assert not (run / "parts").exists()


def test_a_part_that_fails_fails_its_cell_and_leaves_nothing(hopper, tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import time, stab.run.worker\n"
        "def roll_out(task, config, cell, run, number, report):\n"
        "    if number == 2: raise OSError('no rollouts today')\n"
        "    time.sleep(60)\n"
        "stab.run.worker._roll_out_shard = roll_out\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    config, _ = make_config("hopper", "ema", seeds=1, overrides=[*TINY, "eval.checkpoint_every=4"])
    made, run = make_plan(config), tmp_path / "run"
    open_folder(run, made.config, made.skipped)
    began = time.monotonic()
    with engine.Workers(WORK, 2) as workers:
        events = list(comparison.execute_live(made, run, workers))
    assert time.monotonic() - began < 45  # the other parts, which sleep, were not waited for
    assert [(event.kind, event.reason) for _, event in events if event.kind != "progress"] == [
        ("failed", "OSError: no rollouts today")
    ]
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "failures",
        "skipped.json",
        "tensorboard",
    ]
    assert "no rollouts today" in render(run)["entries"][0]["reason"]


def test_progress_is_that_of_the_whole_cell(hopper, tmp_path):
    config, _ = make_config("hopper", "ema", seeds=1, overrides=[*TINY, "eval.checkpoint_every=4"])
    made = make_plan(config)
    open_folder(tmp_path / "run", made.config, made.skipped)
    with engine.Workers(WORK, 2) as workers:
        events = [event for _, event in run_plan(made, tmp_path / "run", workers)]
    assert len({event.part for event in events if event.phase == "rollouts"}) > 1
    for phase in ("training", "rollouts"):
        fractions = [event.fraction for event in events if event.phase == phase]
        assert fractions == sorted(fractions)
        assert fractions[-1] == pytest.approx(1)
    assert [event.kind for event in events if event.kind != "progress"] == ["done"]


def test_a_run_of_another_version_is_not_resumed(hopper, tmp_path):
    config, _ = make_config("hopper", "ema", seeds=1, overrides=TINY)
    run = tmp_path / "run"
    (cell,) = execute(config, run).cells
    check_folder(run, config, resume=True)
    path = run / "cells" / f"{cell.key}.json"
    path.rename(
        path.with_name("hopper-0123456789ab-seed0.json")
    )  # as a recipe's key might have been made before
    with pytest.raises(StabError, match="made by another version of stab"):
        check_folder(run, config, resume=True)
    check_folder(run, config, overwrite=True)


def test_a_foreign_file_among_the_cells_is_named_on_resume(hopper, tmp_path):
    config, _ = make_config("hopper", "ema", seeds=1, overrides=TINY)
    run = tmp_path / "run"
    execute(config, run)
    (run / "cells" / "other.json").write_text("{}")
    with pytest.raises(StabError, match=r"other\.json is not a cell of stab"):
        check_folder(run, config, resume=True)


# What a run folder meets


def run_to_the_end(config, run):
    made = make_plan(config)
    prepare(made, run)
    open_folder(run, made.config, made.skipped)
    with engine.Workers(WORK, 2) as workers:
        return [event for _, event in run_plan(made, run, workers) if event.kind != "progress"]


def settings(stabilizers, run=None, seeds=1):
    config, _ = make_config("hopper", stabilizers, seeds=seeds, overrides=TINY)
    return check_folder(run, config, resume=True) if run else config


def rows_by_name(run):
    return {
        (row["stabilizer"], row["seed"], row["update"], row["start"]): row for row in rows.rows(run)
    }


def test_a_new_average_is_appended_to_rows_that_come_out_equal(hopper, tmp_path):
    run = tmp_path / "run"
    run_to_the_end(settings("ema"), run)
    before = rows_by_name(run)
    assert [event.kind for event in run_to_the_end(settings("swa:every=2", run), run)] == ["done"]
    after = rows_by_name(run)
    assert {name[0] for name in after} == {"none", "ema", "swa:every=2"}
    for name, row in before.items():
        assert {**after[name], "stabilizers": 0, "riders": 0} == {
            **row,
            "stabilizers": 0,
            "riders": 0,
        }


def test_a_new_average_is_refused_where_the_raw_rows_come_out_otherwise(hopper, tmp_path):
    run = tmp_path / "run"
    run_to_the_end(settings("ema"), run)
    (path,) = (run / "cells").iterdir()
    cell = files.read_json(path)
    cell["rows"][0]["return"] += 1e-9  # as another processor might have it
    files.write_json(path, cell)
    weights = {
        file.name: (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in (run / "weights").iterdir()
    }
    (event,) = run_to_the_end(settings("swa:every=2", run), run)
    assert event.kind == "failed"
    assert "came out otherwise (none at update 10)" in event.reason
    assert files.read_json(path) == cell
    assert weights == {
        file.name: (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in (run / "weights").iterdir()
    }
    assert {e["stabilizer"]: e["status"] for e in render(run)["entries"]}["swa:every=2"] == "failed"
    assert not (run / "parts").exists()


@pytest.mark.parametrize(
    "changed",
    ["dataset_sha256", "expert_sha256", "versions.torch", "versions.mujoco", "task_version"],
)
def test_resume_refuses_what_would_not_be_comparable(hopper, tmp_path, changed):
    run = tmp_path / "run"
    config = settings("ema")
    run_to_the_end(config, run)
    (path,) = (run / "cells").iterdir()
    cell = files.read_json(path)
    part, _, key = changed.rpartition(".")
    older = 0 if key == "task_version" else "older"
    (cell[part] if part else cell)[key] = older
    files.write_json(path, cell)
    with pytest.raises(
        StabError, match=f"would come out otherwise now \\({changed} was {older!r}, is "
    ) as refused:
        prepare(make_plan(settings("ema", run, seeds=2)), run)
    assert "\n" not in str(refused.value)
    prepare(make_plan(config))  # another folder is fine


def test_a_dataset_that_changed_between_runs_is_named(hopper, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_to_the_end(settings("ema"), run)
    root = tmp_path / "minari"
    shutil.copytree(hopper.parent.parent.parent, root)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    with h5py.File(
        root / "stab" / "hopper" / "expert-v0" / "data" / "main_data.hdf5", "r+"
    ) as file:
        file["episode_7"]["actions"][3] += 0.125
    with pytest.raises(StabError, match="dataset_sha256 was"):
        prepare(make_plan(settings("ema", run, seeds=2)), run)


@dataclasses.dataclass(frozen=True)
class Rude(Average):
    """A plug-in that prints, reseeds every generator, leaves the folder, and may raise."""

    convex = False
    at: int = hyper(10**9, "update at which it raises", lambda v: v > 0, "an integer > 0")

    def init(self, params, total):
        return MeanState(clone(params), 0)

    def update(self, state, params, step):
        print("hello from update", step)
        os.write(1, b"and past Python\n")
        sys.stderr.write("and again\n")
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        os.chdir("/")
        if step == self.at:
            raise RuntimeError("not today,\nsorry")
        state.mean = clone(params)

    def read(self, state):
        found = clone(state.mean)
        if self.at == 999:  # reads what is no policy
            found = {name: value.flatten() for name, value in found.items()}
        if self.at == 998:
            found = {name: value * math.nan for name, value in found.items()}
        return found


def test_a_plugin_that_prints_and_reseeds_changes_nothing_and_one_that_raises_stops_only_itself(
    hopper, tmp_path, monkeypatch, capfd
):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(  # workers know the plug-in, too
        f"import importlib.util\nspec = importlib.util.spec_from_file_location('rude', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); import sys; sys.modules['rude'] = module\n"
        "spec.loader.exec_module(module)\nmodule.stabilizers.register('rude')(module.Rude)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setitem(stabilizers._registered, "rude", (Rude, "here"))
    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    run_to_the_end(settings("ema"), quiet)
    (event,) = run_to_the_end(settings("rude,rude:at=13,rude:at=998,rude:at=999,ema"), loud)
    assert event.kind == "done"
    for said in (
        "rude:at=13: RuntimeError: not today, sorry",
        "rude:at=998: the average is not finite",
        "rude:at=999: RuntimeError: Error(s) in loading state_dict for MLP: size mismatch",
    ):
        assert said in event.reason
    assert capfd.readouterr().out == ""
    one, other = rows_by_name(quiet), rows_by_name(loud)
    assert {name[0] for name in other} == {"none", "ema", "rude"}
    keys = ("return", "length", "cumulative", "val_loss", "weights", "gradient_variance")
    for name, row in one.items():
        assert [row[key] for key in keys] == [other[name][key] for key in keys]
    entries = {e["stabilizer"]: e for e in render(loud)["entries"]}
    assert (entries["rude:at=13"]["status"], entries["rude:at=13"]["gva"]) == ("failed", None)
    assert "not today, sorry" in entries["rude:at=13"]["reason"]
    assert entries["ema"]["status"] != "failed"
    # It is not taken for finished, and fails again.
    (cell,) = unfinished(make_plan(settings("rude,rude:at=13,ema", loud)), loud)
    assert {"none", "rude", "rude:at=13", "ema"} <= set(cell.stabilizers)


def test_two_processes_do_not_share_a_run_folder(hopper, tmp_path):
    run = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from stab.run.folder import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for arguments in ({}, {"resume": True}):
            with pytest.raises(
                StabError,
                match=f"run is in use by process {holder.pid} on .* since 20.*another --out",
            ):
                comparison.compare("hopper", "ema", out=run, overrides=TINY, workers=1, **arguments)
    finally:
        holder.kill()
        holder.communicate()
    with held(run):  # what held it was killed
        pass
    assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "left", [[], [".lock"], [".lock", ".holder.json", ".config.yaml-x7abcd_1"], ["config.yaml"]]
)
def test_a_run_that_was_killed_as_it_began_can_be_gone_on_with(hopper, tmp_path, left):
    run = tmp_path / "run"
    run.mkdir()
    config = settings("ema")
    for name in left:
        (run / name).write_text("half of it")
    if "config.yaml" in left:
        open_folder(run, config, {})
        (run / "skipped.json").unlink()
    assert [event.kind for event in run_to_the_end(settings("ema", run), run)] == ["done"]
    assert not list(run.glob(".config*"))


def left_behind(config, run, at):
    """Leave a run as one whose worker is killed at a call of ``report``; return cell, job, and what it had asked for."""
    made = make_plan(config)
    open_folder(run, made.config, made.skipped)
    job, parts, calls = make_job(made.cells[0], config, run), [], []

    def report(phase, fraction):
        calls.append((phase, fraction))
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(job, report, parts.append)
    return made.cells[0], job, parts


LONG = [*TINY, "train.updates=100", "eval.checkpoint_every=5"]


def go_on(job):
    """Do a job and its parts; return what was reported of training."""
    parts, calls = [job], []
    for one in parts:
        work(one, lambda phase, fraction: calls.append((phase, fraction)), parts.append)
    return [fraction for phase, fraction in calls if phase == "training"]


@pytest.mark.parametrize(
    "left", ["whole", "state cut off", "read-outs missing", "returns of another run", "rolled out"]
)
def test_a_cell_goes_on_from_its_last_checkpoint_where_what_is_left_is_whole(
    hopper, tmp_path, left, monkeypatch
):
    monkeypatch.setattr("stab.run.worker.WRITING", 1.0)
    config, _ = make_config("hopper", "ema", seeds=1, overrides=LONG)
    cell, job, asked = left_behind(config, tmp_path / "run", at=8)
    parts = shards_folder(tmp_path / "run", cell.key)
    assert asked
    if left == "state cut off":
        (parts / "state.safetensors").write_bytes((parts / "state.safetensors").read_bytes()[:1000])
    elif left == "read-outs missing":
        (parts / "1.safetensors").unlink()
    elif left == "returns of another run":
        for number in (1, 2, 3):
            files.write_json(
                parts / f"{number}.json",
                {"seconds": 1.0, "found": {"0123456789abcdef": []}, "points": []},
            )
    elif left == "rolled out":
        for one in asked:
            work(one, lambda phase, fraction: None, asked.append)
    if left == "returns of another run":
        go_on(job)
        with pytest.raises(StabError, match="do not fit together"):
            finish(cell, tmp_path / "run")
        clear_shards(tmp_path / "run", cell.key)  # as execute does then
    trained = go_on(job)
    finish(cell, tmp_path / "run")
    # The eighth checkpoint had been reported, and not written down.
    first = config.checkpoints[7 if left in ("whole", "rolled out") else 0]
    assert trained[0] == pytest.approx(first / config.train.updates)
    assert trained[-1] == 1
    execute(config, tmp_path / "whole")
    assert cells_of(tmp_path / "run") == cells_of(tmp_path / "whole")


def cells_of(run):
    return {path.name: path.read_bytes() for path in sorted((run / "cells").iterdir())}


def test_rollouts_that_an_older_attempt_left_are_not_taken_for_those_of_a_later_one(
    hopper, tmp_path, monkeypatch
):
    """As where a cell goes on with other last bits (a GPU): the part that was handed over after the state was written."""
    monkeypatch.setattr("stab.run.worker.WRITING", 1.0)
    config, _ = make_config("hopper", "ema", seeds=1, overrides=LONG)
    cell, job, asked = left_behind(config, tmp_path / "run", at=4)
    later = shards_folder(tmp_path / "run", cell.key) / f"{len(asked) + 1}.json"
    files.write_json(later, {"seconds": 1.0, "found": {"0123456789abcdef": []}})
    go_on(job)
    finish(cell, tmp_path / "run")
    execute(config, tmp_path / "whole")
    assert cells_of(tmp_path / "run") == cells_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "content"), [("skipped.json", "[1]"), ("skipped.json", "null"), ("run.json", "[]")]
)
def test_resume_looks_at_what_it_will_need_before_it_begins(hopper, tmp_path, name, content):
    config, run = settings("ema"), tmp_path / "run"
    open_folder(run, config, {})
    (run / name).write_text(content)
    with pytest.raises(StabError, match=name):
        check_folder(run, config, resume=True)


def test_foreign_hidden_files_stay(hopper, tmp_path):
    run = tmp_path / "run"
    (run / "cells" / ".ipynb_checkpoints").mkdir(parents=True)
    (run / "weights").mkdir()
    (run / "weights" / ".notes").write_text("mine")
    (run / "weights" / ".tmpUoqtg7").write_text("left by safetensors")
    (run / "weights" / ".x.safetensors-a1b2c3_d").write_text("left by us")
    open_folder(run, settings("ema"), {})
    assert {path.name for folder in ("cells", "weights") for path in (run / folder).iterdir()} == {
        ".ipynb_checkpoints", ".notes",
    }  # fmt: skip


def small(bytes_):
    """A process none of whose files may grow beyond so many bytes: a disk that takes no more, for whoever runs the test."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


@pytest.mark.skipif(resource is None, reason="limits files as POSIX systems do")
def test_a_full_disk_is_a_clear_line_and_loses_nothing(hopper, tmp_path):
    wide = "train.policy=mlp"  # its state is larger than any figure
    command = ["compare", "-t", "hopper", "-s", "ema", "--seeds", 2, *TINY, wide, "--workers", 1]
    whole_command = [*command, "--out", tmp_path / "run", "--resume"]
    full = forked.stab(*whole_command, largest=100_000)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "failed: hopper none/ema seed 0: cannot write " in full.stderr
    assert "File too large" in " ".join(full.stderr.split())
    assert not list((tmp_path / "run" / "cells").glob("*"))
    tiny = forked.stab(*command, "--out", tmp_path / "other", largest=20)
    assert tiny.returncode == 2
    *_, line = tiny.stderr.strip().splitlines()
    assert line.startswith("stab: cannot write ")
    room = forked.stab(*whole_command)
    assert room.returncode == 0, room.stderr
    whole = tmp_path / "whole"
    config, _ = make_config("hopper", "ema", seeds=2, overrides=[*TINY, wide])
    run_to_the_end(config, whole)
    assert [path.read_bytes() for path in sorted((whole / "cells").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "run" / "cells").iterdir())
    ]


def test_undecided_entries_alone_are_trained_again_and_no_row_of_before_changes(
    hopper, tmp_path, monkeypatch
):
    asked = iter([{("hopper", "lr_decay"): 6, ("hopper", "none"): 6}, {}])
    monkeypatch.setattr("stab.reports.leaderboard.undecided", lambda _: next(asked))
    strings, out = ["none", "ema", "lr_decay"], tmp_path / "run"
    found = comparison.compare(
        "hopper", strings, seeds=3, until_decided=True, max_seeds=6, out=out, overrides=TINY
    )
    seeds = {}
    for row in rows.rows(out):
        seeds.setdefault(row["stabilizer"], set()).add(row["seed"])
    assert seeds == {"none": {*range(6)}, "ema": {*range(3)}, "lr_decay": {*range(6)}}
    assert {e["stabilizer"]: e["seeds"] for e in found.entries} == {
        "none": 6,
        "ema": 3,
        "lr_decay": 6,
    }
    plain = comparison.compare(
        "hopper", strings, seeds=3, out=tmp_path / "plain", overrides=TINY
    ).run
    for path in (plain / "cells").iterdir():
        assert (out / "cells" / path.name).read_bytes() == path.read_bytes()
    # A resumed run asks again, and finds everything done.
    asked = iter([{("hopper", "lr_decay"): 6, ("hopper", "none"): 6}, {}])
    before = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    comparison.compare("hopper", strings, seeds=3, out=out, resume=True, overrides=TINY)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before


# Checksums, and a disk


def test_resume_computes_anew_what_was_damaged(hopper, tmp_path):
    config, run = settings("ema,lr_decay"), tmp_path / "run"
    run_to_the_end(config, run)
    write_run_info(run, ["stab"], 1.0)
    paths = [path for name in ("cells", "weights") for path in (run / name).iterdir()]
    whole = {path: path.read_bytes() for path in paths}
    first, second = sorted((run / "cells").iterdir())
    first.write_text(first.read_text().replace('"length": ', '"length": 1', 1))
    flipped = bytearray((weights := run / "weights" / "hopper-ema-seed0.safetensors").read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    second.unlink()
    with pytest.raises(StabError, match=r"is gone|is not as stab wrote it"):
        render(run)
    assert len(run_to_the_end(settings("ema,lr_decay", run), run)) == 2
    assert {path: path.read_bytes() for path in whole} == whole  # weights, too: equal bytes
    assert render(run)["entries"][0]["status"] == "ranked"


TMPFS = """
mount -t tmpfs -o size={size} tmpfs {folder} && {change}
cd {folder} && exec "$@"
"""


def on_tmpfs(folder, size, change, *command):
    """Run a command on a file system of its own; skip the test if none can be mounted."""
    folder.mkdir(exist_ok=True)
    script = TMPFS.format(size=size, folder=folder, change=change)
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run(
        [*unshare, TMPFS.format(size="1m", folder=folder, change=":"), "sh", "true"],
        capture_output=True,
    ).returncode:
        pytest.skip("this system lets nobody mount")
    return subprocess.run(
        [*unshare, script, "sh", *map(str, command)], capture_output=True, text=True
    )


def test_a_read_only_folder_and_a_full_disk(hopper, tmp_path):
    stab = Path(sys.executable).parent / "stab"
    command = [stab, "compare", "-t", "hopper", "-s", "ema", "--seeds", 1, *TINY, "--out", "run"]
    done = on_tmpfs(
        tmp_path / "disk",
        "4m",
        "mount -o remount,ro {folder}".format(folder=tmp_path / "disk"),
        *command,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("stab: cannot write to run: ")
    assert "read-only" in done.stderr.lower()
    fill = f"head -c 3900000 /dev/zero > {tmp_path / 'disk'}/filler"
    done = on_tmpfs(tmp_path / "disk", "4m", fill, *command)
    assert done.returncode in (1, 2)
    assert "No space left on device" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
