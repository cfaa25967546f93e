"""stab.attach on a torch model in a training loop of one's own."""

import copy
import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import stab
from stab.stabilizers import Attached, Average
from stab.stabilizers.base import clone

TOTAL = 40


@dataclass
class MeanOfAll:
    sums: dict
    count: int = 0


@dataclass(frozen=True)
class BufferMean(Average):
    """The mean of all iterates, float buffers among them."""

    averages_buffers: ClassVar[bool] = True

    def init(self, params, total):
        return MeanOfAll(clone(params))

    def update(self, state, params, step):
        state.count += 1
        for name, value in params.items():
            state.sums[name] += (value - state.sums[name]) / state.count

    def read(self, state):
        return clone(state.sums)


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Loop:
    """A training loop on random data."""

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(1)

    def step(self):
        x = torch.randn(16, 4, generator=self.generator)
        self.optimizer.zero_grad()
        (self.model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        self.optimizer.step()


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(average="ema", updates=20):
    loop = Loop(make())
    attached = stab.attach(loop.model, average, TOTAL)
    for _ in range(updates):
        loop.step()
        attached.update()
    return loop, attached


@pytest.mark.parametrize(
    "average", ["ema", "ema:half_life=3,burn_in=0", "polyak", "swa:every=2", "polyak:start=0"]
)
def test_attaching_changes_nothing_about_training(average):
    loop, attached = trained(average)
    with attached.swapped():
        pass
    alone = Loop(make())
    for _ in range(20):
        alone.step()
    assert equal(snapshot(loop.model), snapshot(alone.model))


def test_polyak_is_the_mean_of_the_iterates():
    loop = Loop(make())
    attached = stab.attach(loop.model, "polyak:start=11", TOTAL)
    seen = []
    for step in range(1, 21):
        loop.step()
        attached.update()
        if step >= 11:
            seen.append(snapshot(loop.model))
    for name, value in attached.read().items():
        torch.testing.assert_close(
            value, torch.stack([s[name] for s in seen]).double().mean(0).float()
        )


def test_swapped_holds_the_average_and_gives_the_raw_weights_back():
    loop, attached = trained()
    raw = snapshot(loop.model)
    with attached.swapped() as model:
        assert model is loop.model
        inside = snapshot(model)
        for name, value in attached.read().items():
            assert torch.equal(inside[name], value)
        assert not torch.equal(inside["0.weight"], raw["0.weight"])
    assert equal(snapshot(loop.model), raw)


def test_swapped_gives_back_after_an_exception_and_after_meddling():
    loop, attached = trained()
    raw, average = snapshot(loop.model), attached.read()

    def evaluate():
        with attached.swapped() as model:
            with torch.no_grad():
                model[0].weight.fill_(7)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        evaluate()
    assert equal(snapshot(loop.model), raw)
    assert equal(attached.read(), average)


def test_swapped_keeps_parameters_the_same_objects_and_gradients_possible():
    loop, attached = trained()
    before = list(loop.model.parameters())
    with attached.swapped():
        assert all(
            a is b and a.requires_grad for a, b in zip(before, loop.model.parameters(), strict=True)
        )
    assert all(
        a is b and a.requires_grad for a, b in zip(before, loop.model.parameters(), strict=True)
    )
    loop.step()
    attached.update()


def test_a_read_out_is_new_tensors():
    loop, attached = trained()
    raw, first = snapshot(loop.model), attached.read()
    for value in first.values():
        value.fill_(5)
    assert not any((v == 5).all() for v in attached.read().values())
    assert equal(snapshot(loop.model), raw)


def test_more_updates_than_promised_are_refused():
    loop, attached = trained(updates=TOTAL)
    average = attached.read()
    with pytest.raises(stab.StabError, match=f"more than total={TOTAL}"):
        attached.update()
    assert equal(attached.read(), average)
    loop.step()


@pytest.mark.parametrize("average", ["ema", "polyak", "swa:every=3"])
@pytest.mark.parametrize("at", [0, 3, 20, 39])
def test_state_round_trip(average, at):
    loop, attached = trained(average, at)
    file = io.BytesIO()
    torch.save({"model": loop.model.state_dict(), "attached": attached.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = stab.attach(make(seed=5), average, TOTAL)
    other.module.load_state_dict(saved["model"])
    other.load_state_dict(saved["attached"])
    assert other.step == at
    assert equal(other.read(), attached.read())
    for _ in range(at, TOTAL):
        loop.step()
        other.module.load_state_dict(loop.model.state_dict())
        attached.update()
        other.update()
    assert equal(other.read(), attached.read())
    with pytest.raises(stab.StabError):
        other.update()


def test_a_state_of_another_total_is_refused():
    _, attached = trained()
    other = stab.attach(make(), "ema", TOTAL + 1)
    with pytest.raises(stab.StabError, match=f"total={TOTAL}.*total={TOTAL + 1}"):
        other.load_state_dict(attached.state_dict())


@pytest.mark.parametrize("average", ["ema", "polyak", "swa:every=2"])
def test_buffers_stay_the_live_models(average):
    loop, attached = trained(average)
    assert set(attached.read()) == {name for name, _ in loop.model.named_parameters()}
    live = {name: value.clone() for name, value in loop.model.named_buffers()}
    with attached.swapped() as model:
        assert equal(dict(model.named_buffers()), live)


def test_an_average_of_buffers_averages_the_float_ones():
    loop = Loop(make())
    attached = Attached(loop.model, BufferMean(), TOTAL)
    seen = []
    for _ in range(10):
        loop.step()
        attached.update()
        seen.append(snapshot(loop.model))
    assert "1.running_mean" in attached.read()
    assert "1.num_batches_tracked" not in attached.read()
    raw = snapshot(loop.model)
    with attached.swapped() as model:
        for name in ("1.running_mean", "1.running_var", "0.weight"):
            expected = torch.stack([s[name] for s in seen]).mean(0)
            torch.testing.assert_close(model.state_dict()[name], expected)
        assert model[1].num_batches_tracked == 10
    assert equal(snapshot(loop.model), raw)


def test_evaluating_under_swapped_leaves_running_statistics_as_found():
    """In eval mode BatchNorm does not move; in train mode it would, which is the user's own doing."""
    loop, attached = trained()
    raw = snapshot(loop.model)
    loop.model.eval()
    with attached.swapped() as model, torch.no_grad():
        model(torch.randn(8, 4))
    assert equal(snapshot(loop.model), raw)


def test_frozen_and_tied_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    attached = stab.attach(model, "polyak:start=0", 5)
    first = copy.deepcopy(model.state_dict())
    attached.update()
    with torch.no_grad():
        model[0].weight.add_(2)
    attached.update()
    raw = snapshot(model)
    with attached.swapped():
        torch.testing.assert_close(model[1].weight.detach(), first["0.weight"] + 1)
        assert model[1].weight is model[0].weight
    assert equal(snapshot(model), raw)


@pytest.mark.parametrize("average", ["lr_decay", "lr_decay+ema", "none", "dropout+swa"])
def test_only_an_average_alone(average):
    with pytest.raises(stab.StabError, match=r"edits the recipe|takes an average alone"):
        stab.attach(make(), average, TOTAL)


@pytest.mark.parametrize("total", [0, -5])
def test_a_total_below_one(total):
    with pytest.raises(stab.StabError, match=f"total={total}"):
        stab.attach(make(), "ema", total)


def test_a_start_beyond_the_total_and_an_unknown_name():
    with pytest.raises(stab.StabError, match="does not fit 40 updates"):
        stab.attach(make(), "ema:burn_in=40", TOTAL)
    with pytest.raises(stab.StabError, match="Did you mean 'ema'"):
        stab.attach(make(), "emma", TOTAL)


def test_a_swap_that_fails_half_way_leaves_the_raw_weights(monkeypatch):
    model = torch.nn.Linear(3, 2)
    average = stab.attach(model, "ema", total=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read = average.read()
    monkeypatch.setattr(
        average, "read", lambda: {"weight": read["weight"] + 1}
    )  # the bias is missing
    with pytest.raises(KeyError), average.swapped():
        pass
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
