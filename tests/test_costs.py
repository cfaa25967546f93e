"""Measured costs: what must come out whatever the machine, and the cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from stab.checks import costs
from stab.checks.costs import Cost, cached, measure
from stab.recipe import Recipe
from stab.stabilizers import Intervention, stabilizers


def test_memory_is_counted_in_copies_of_the_parameters():
    found = measure(["none", "ema", "polyak", "lr_decay", "accumulation:steps=3", "lr_decay+ema"])
    copies = {name: cost.memory for name, cost in found.items()}
    assert copies["none"] == copies["lr_decay"] == copies["accumulation:steps=3"] == 0
    assert copies["ema"] == copies["lr_decay+ema"] == pytest.approx(1, abs=1e-3)
    assert copies["polyak"] == pytest.approx(1, abs=1e-3)
    assert found["none"].time == 1
    # Three gradients a step: at least two more than nothing would cost, on any machine.
    assert found["accumulation:steps=3"].time > 1.5
    assert 1 < found["ema"].time < 1.5


def test_momentum_is_a_copy_that_sgd_does_not_keep(monkeypatch):
    @dataclass(frozen=True)
    class Plain(Intervention):
        def apply(self, recipe):
            return replace(recipe, optimizer="SGD")

    monkeypatch.setitem(stabilizers._registered, "plain", (Plain, "here"))
    assert measure(["plain"])["plain"].memory == pytest.approx(
        -2, abs=1e-3
    )  # AdamW keeps two moments


def test_what_cannot_be_measured_says_why(monkeypatch):
    @dataclass(frozen=True)
    class Broken(Intervention):
        def apply(self, recipe):
            raise RuntimeError("boom")

    monkeypatch.setitem(stabilizers._registered, "broken", (Broken, "here"))
    found = measure(["broken", "emma"])
    assert found["broken"] == "RuntimeError: boom"
    assert "Did you mean 'ema'" in found["emma"]


def test_it_is_measured_once_a_version(monkeypatch, tmp_path):
    asked = []

    def stand_in(names, progress=None):
        asked.append(list(names))
        return {name: Cost(1.5, 1.0) if name != "swa" else "no" for name in names}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "measure", stand_in)
    assert cached(["ema", "swa"]) == {"ema": Cost(1.5, 1.0), "swa": "no"}
    assert cached(["polyak", "ema", "swa"]) == {
        "polyak": Cost(1.5, 1.0),
        "ema": Cost(1.5, 1.0),
        "swa": "no",
    }
    assert asked == [["ema", "swa"], ["polyak", "swa"]]
    monkeypatch.setattr(costs, "version", lambda package: "next")
    cached(["ema"])
    assert asked[-1] == ["ema"]
    (path,) = (tmp_path / "stab").iterdir()
    assert len(json.loads(path.read_text())) == 3
    path.write_text("torn")
    cached(["ema"])
    assert asked[-1] == ["ema"]


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(costs, "measure", lambda names, progress=None: {"ema": Cost(1.0, 1.0)})
    assert cached(["ema"]) == {"ema": Cost(1.0, 1.0)}


def test_it_reads_well():
    assert str(Cost(1.0432, 0.9999)) == "x1.04 time, 1 more copy of the parameters"
    assert str(Cost(2, 2.5)) == "x2.00 time, 2.5 more copies of the parameters"
    assert str(Cost(1, 0)) == "x1.00 time, no more memory"
    assert str(Cost(0.9, -2)) == "x0.90 time, 2 fewer copies of the parameters"


def test_the_setting_is_the_base_recipe():
    assert Recipe().batch_size == 256
    assert "batch 256" in costs.SETTING
