"""Snapshots: block means against slow references, and averages read off them against the same averages online."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from stab.checks import Toy
from stab.recipe import Recipe
from stab.registry import StabError
from stab.run import snapshots
from stab.run.snapshots import BlockMeans, SavedBlocks, block_ends
from stab.stabilizers import parse
from stab.train import train

RECIPE = Recipe(batch_size=8, updates=103)


def run(every: int, strings=(), task=None, checkpoints=(53, 103)):
    """Train the toy task with averages riding; return raw iterates (all of them), read-outs, and the snapshots."""
    task = task or Toy("toy")
    averages = {s: parse(s).average for s in strings} | {snapshots.NAME: BlockMeans(every)}
    points = {p.update: p for p in train(task, RECIPE, 0, averages, range(1, RECIPE.updates + 1))}
    parameters = {name for name, _ in task.policy(RECIPE).named_parameters(remove_duplicate=False)}
    taken = SavedBlocks(every, RECIPE.updates)
    for t in checkpoints:
        taken.take(points[t], parameters)
    return points, taken


def test_blocks_end_at_the_last_update():
    assert block_ends(103, 50) == [3, 53, 103]
    assert block_ends(100, 50) == [50, 100]
    assert block_ends(7, 1) == [1, 2, 3, 4, 5, 6, 7]


def test_blocks_are_means_of_the_iterates():
    points, taken = run(50)
    assert set(taken.blocks) == set(points[103].raw)  # float buffers, too
    for name, found in taken.blocks.items():
        iterates = torch.stack([points[t].raw[name] for t in range(1, 104)]).double()
        for block, (first, last) in zip(found, [(0, 3), (3, 53), (53, 103)], strict=True):
            assert torch.allclose(block.double(), iterates[first:last].mean(0), atol=1e-6)


def test_state_goes_on_after_an_interruption():
    generator = np.random.default_rng(0)
    iterates = [{"w": torch.from_numpy(generator.standard_normal(3))} for _ in range(21)]
    average = BlockMeans(4)
    whole, broken = average.init(iterates[0], 20), average.init(iterates[0], 20)
    for step in range(1, 21):
        average.update(whole, iterates[step], step)
        average.update(broken, iterates[step], step)
        if step in (4, 10):
            saved = broken.state_dict()
            broken = average.init(iterates[0], 20)
            broken.load_state_dict(saved)
    one, other = average.read(whole), average.read(broken)
    assert list(one) == list(other) == ["blocks/w", "last/w"]
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("string", ["ema", "ema:half_life=20,alpha=0.67", "polyak", "swa:every=7"])
def test_blocks_of_one_update_give_the_online_average(string):
    points, taken = run(1, [string], checkpoints=(53, 103))
    found, misplaced = taken.read_off(parse(string).average, (53, 103))
    assert misplaced == pytest.approx(0, abs=1e-12)
    for t in (53, 103):
        online = points[t].averages[string]
        assert found[t].keys() == online.keys()
        for name in online:
            assert found[t][name].dtype == online[name].dtype
            assert torch.allclose(found[t][name], online[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("string", "every"), [("ema:half_life=20", 10), ("ema:half_life=5", 25), ("swa:every=10", 10)]
)
def test_the_error_is_within_its_bound(string, every):
    points, taken = run(every, [string], checkpoints=(53, 103) if every in (10, 25) else (103,))
    found, misplaced = taken.read_off(parse(string).average, [103])
    assert 0 < misplaced < 1
    ends = block_ends(103, every)
    worst = 0.0
    for name, value in points[103].averages[string].items():
        if name == "seen":
            continue
        iterates = torch.stack([points[t].raw[name] for t in range(1, 104)]).double()
        apart = max(
            float((iterates[first:last] - iterates[first:last].mean(0)).abs().max())
            for first, last in zip([0, *ends], ends, strict=False)
        )
        error = float((found[103][name].double() - value.double()).abs().max())
        assert error <= 2 * misplaced * apart + 1e-6
        worst = max(worst, error)
    assert worst > 1e-5  # the bound was not met by nothing


def test_a_tail_that_begins_with_a_block_is_exact():
    points, taken = run(50, ["polyak:start=54"])
    found, misplaced = taken.read_off(parse("polyak:start=54").average, [103])
    assert misplaced == pytest.approx(0, abs=1e-12)
    for name, value in points[103].averages["polyak:start=54"].items():
        assert torch.allclose(found[103][name], value, atol=1e-6)


def test_before_it_begins_an_average_is_the_latest_iterate():
    points, taken = run(50, ["polyak:start=80"])
    found, misplaced = taken.read_off(parse("polyak:start=80").average, [53])
    assert misplaced == pytest.approx(0, abs=1e-12)
    for name, value in points[53].raw.items():
        assert torch.allclose(found[53][name], value, atol=1e-6), name


def test_the_last_iterate_keeps_its_own_weight():
    """An EMA of half-life 1 is half the last iterate: with it at hand, less is misplaced than an even spread would."""
    _, taken = run(10, ["ema:half_life=1,burn_in=0"])
    _, misplaced = taken.read_off(parse("ema:half_life=1,burn_in=0").average, [103])
    even = (
        1 / 2 - 1 / 10 + 1 / 4 - 1 / 10 + 1 / 8 - 1 / 10
    )  # what the three weights above 1/10 have over it
    assert misplaced < even - 0.1


def test_buffers_are_the_raw_iterates():
    points, taken = run(50, ["polyak"])
    found, _ = taken.read_off(parse("polyak").average, (53, 103))
    for t in (53, 103):
        assert torch.equal(found[t]["seen"], points[t].raw["seen"])
    assert not torch.equal(found[53]["seen"], found[103]["seen"])


def test_declared_buffers_are_averaged():
    polyak = type(parse("polyak").average)

    @dataclass(frozen=True)
    class WithBuffers(polyak):
        averages_buffers = True

    points, taken = run(1)
    found, _ = taken.read_off(WithBuffers(), [103])
    seen = torch.stack([points[t].raw["seen"] for t in range(26, 104)])
    assert torch.allclose(found[103]["seen"], seen.mean(0), atol=1e-6)


def test_snapshots_do_not_change_training():
    plain = [p.raw for p in train(Toy("toy"), RECIPE, 0, {}, [53, 103])]
    riding = [
        p.raw for p in train(Toy("toy"), RECIPE, 0, {snapshots.NAME: BlockMeans(50)}, [53, 103])
    ]
    for a, b in zip(plain, riding, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_they_survive_the_disk(tmp_path):
    _, taken = run(50)
    path = tmp_path / "snapshots" / "a.safetensors"
    snapshots.save(path, taken)
    again = snapshots.load(path)
    assert (again.every, again.total, list(again.last)) == (taken.every, taken.total, [53, 103])
    for name, value in taken.blocks.items():
        assert torch.equal(again.blocks[name], value)
    for kind in ("last", "buffers"):
        for t, found in getattr(taken, kind).items():
            there = getattr(again, kind)[t]
            assert there.keys() == found.keys()
            assert all(torch.equal(there[k], v) for k, v in found.items())
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:200])]
)
def test_damaged_files_are_said(tmp_path, damage):
    _, taken = run(50)
    path = tmp_path / "a.safetensors"
    snapshots.save(path, taken)
    damage(path)
    with pytest.raises(StabError, match=r"cannot read .*a\.safetensors"):
        snapshots.load(path)


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StabError, match="snapshots are large"):
        snapshots.save(tmp_path / "a.safetensors", SavedBlocks(50, 103, {"w": torch.zeros(2, 3)}))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_off_is_said():
    _, taken = run(50)
    with pytest.raises(
        StabError, match=r"update 60 is not a checkpoint: expected one of \[53, 103\]"
    ):
        taken.read_off(parse("ema").average, [60])
    polyak = type(parse("polyak").average)

    @dataclass(frozen=True)
    class Median(polyak):
        convex = False

    with pytest.raises(StabError, match="declares no convex weights"):
        taken.read_off(Median(), [103])


def test_tied_parameters_load_whole():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = nn.Linear(3, 2)
            self.other = self.one

        def forward(self, x):
            return self.two(self.other(self.one(x)))

    @dataclass(frozen=True)
    class TiedToy(Toy):
        def policy(self, recipe):
            return Tied()

    _, taken = run(1, task=TiedToy("tied"))
    found, _ = taken.read_off(parse("ema").average, [103])
    Tied().load_state_dict(found[103])
    assert torch.equal(found[103]["one.weight"], found[103]["other.weight"])


class Particular(nn.Module):
    """In bfloat16, with tied weights, a mask of -inf, and a compiled part."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.inner = torch.compile(nn.Linear(3, 2), backend="eager")
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.bfloat16()

    def forward(self, x):
        hidden = self.second(self.first(x.bfloat16()))
        return (self.inner._orig_mod(hidden) + self.mask.exp()).float()


class ParticularTask(Toy):
    def policy(self, recipe):
        return Particular()


def test_policies_of_any_structure_are_averaged_and_read_off_whole():
    points, taken = run(1, ["polyak", "ema"], ParticularTask("toy"))
    assert points[103].failed == {}
    raw = points[103].raw
    tail = [points[t].raw for t in range(26, 104)]
    found, _ = taken.read_off(parse("polyak").average, [103])
    for read in (points[103].averages["polyak"], found[103]):
        assert read.keys() == raw.keys()
        for name in ("first.weight", "second.weight", "inner._orig_mod.weight", "first.bias"):
            mean = torch.stack([iterate[name] for iterate in tail]).double().mean(0)
            torch.testing.assert_close(read[name].double(), mean, rtol=2**-8, atol=1e-6)
        assert not torch.equal(read["first.weight"].bfloat16(), raw["first.weight"])
        assert torch.equal(read["mask"], raw["mask"])
        Particular().load_state_dict(read)
    assert all(v.dtype == torch.bfloat16 for v in points[103].averages["ema"].values())
