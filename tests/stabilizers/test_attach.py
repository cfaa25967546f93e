"""stab.attach on a torch model in a training loop of one's own."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import stab
from stab.stabilizers import Average, parse
from stab.stabilizers.base import clone
from stab.stabilizers.ema import EMA, SMALL

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
    with pytest.raises(stab.StabError, match=f"more than total={TOTAL} times.*fractions"):
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


def test_a_longer_total_extends_a_run_and_fractions_stay_what_they_were():
    loop, attached = trained("polyak:start=0.25", TOTAL)
    state = attached.state_dict()
    longer = stab.attach(loop.model, "polyak:start=0.25", 2 * TOTAL)
    with pytest.warns(UserWarning, match=f"total={TOTAL}, now it is {2 * TOTAL}"):
        longer.load_state_dict(state)
    assert equal(longer.read(), attached.read())
    longer.update()  # of step 41: the mean of iterates 10..41, not 20..41
    last, before = snapshot(loop.model)["0.weight"], attached.read()["0.weight"]
    torch.testing.assert_close(longer.read()["0.weight"], before + (last - before) / 32)
    with pytest.raises(stab.StabError, match=f"step {TOTAL}, beyond total=10"):
        stab.attach(loop.model, "polyak:start=0.25", 10).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is a fraction: nothing to say
        saved = trained("polyak:start=3", 10)[1].state_dict()
        stab.attach(make(), "polyak:start=3", 2 * TOTAL).load_state_dict(saved)


@pytest.mark.parametrize("average", ["ema", "polyak", "swa:every=2"])
def test_buffers_stay_the_live_models(average):
    loop, attached = trained(average)
    assert set(attached.read()) == {name for name, _ in loop.model.named_parameters()}
    live = {name: value.clone() for name, value in loop.model.named_buffers()}
    with attached.swapped() as model:
        assert equal(dict(model.named_buffers()), live)


def test_an_average_of_buffers_averages_the_float_ones():
    loop = Loop(make())
    attached = stab.attach(loop.model, BufferMean(), TOTAL)
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


def test_a_swap_that_fails_half_way_leaves_the_raw_weights():
    @dataclass(frozen=True)
    class Partial(type(parse("polyak").average)):
        def items(self, state):
            yield "weight", state.mean["weight"] + 1
            raise KeyError("bias")

    model = nn.Linear(3, 2)
    average = stab.attach(model, Partial(start=0))
    before = snapshot(model)
    with pytest.raises(KeyError), average.swapped():
        pass
    assert equal(snapshot(model), before)
    average.update()  # and is outside of swapped() again


# Low precision

MOVING = ["ema:half_life=200,burn_in=0", "polyak:start=0", "swa:start=0,every=10"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("average", MOVING)
def test_averages_of_weights_in_low_precision_are_those_in_float64(average, dtype):
    """From 0.50 to 0.75 in 2,000 updates: in bfloat16 an average would stay near 0.52."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 0.5)
    attached = stab.attach(model, average)
    exact = parse(average).average
    state = exact.init({"weight": model.weight.detach().double()}, None)
    for step in range(1, 2001):
        nn.init.constant_(model.weight, 0.5 + 0.25 * step / 2000)
        attached.update()
        exact.update(state, {"weight": model.weight.detach().double()}, step)
    expected = exact.read(state)["weight"]
    assert 0.6 < expected.item() < 0.74
    found = attached.read()["weight"]
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    with attached.swapped():
        assert torch.equal(model.weight.detach(), expected.to(dtype))
    assert model.weight.item() == 0.75


def test_the_state_of_weights_in_low_precision_is_float32():
    attached = stab.attach(nn.Linear(2, 2).bfloat16(), "polyak:start=0")
    assert (
        attached.state_dict()["averages"]["polyak:start=0"]["mean"]["weight"].dtype == torch.float32
    )


def test_a_model_may_be_halved_after_attaching_but_not_doubled():
    model = nn.Linear(2, 2)
    attached = stab.attach(model, "polyak:start=0")
    attached.update()
    model.half()
    attached.update()
    assert attached.read()["weight"].dtype == torch.float16
    model.double()
    with pytest.raises(stab.StabError, match=r"'weight' is float64.* now, its average is float32"):
        attached.update()


# Names


def named(order):
    """Three layers of one shape, registered in some order."""
    model = nn.Module()
    for name in order:
        model.add_module(name, nn.Linear(2, 2, bias=False))
    for name in "abc":
        nn.init.constant_(getattr(model, name).weight, " abc".index(name))
    return model


def filled(model, by):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


@pytest.mark.parametrize(
    "average", ["ema:half_life=2,burn_in=0", "polyak:start=0", "swa:start=0,every=1"]
)
def test_another_order_of_registration_changes_no_name(average):
    model, other = named("abc"), named("cab")
    first = stab.attach(model, average)
    first.update()
    second = stab.attach(other, average)
    second.load_state_dict(first.state_dict())
    for model_, attached in ((model, first), (other, second)):
        filled(model_, 0.25)
        model_.add_module("a", model_._modules.pop("a"))  # now another order, live
        attached.update()
        filled(model_, 0.25)
        attached.update()
    assert equal(first.read(), second.read())
    for name, value in second.read().items():
        base = " abc".index(name[0])
        assert base < value.mean() < base + 0.5
    with second.swapped():
        assert equal(snapshot(other), second.read())


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
    ids=["module", "_orig_mod", "both"],
)
def test_names_of_wrapped_modules_are_those_of_the_inner_one(wrap):
    bare = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    inside = nn.Sequential(nn.Linear(2, 2), wrap(nn.Linear(2, 2)))
    wrapped = wrap(bare)
    attached = stab.attach(wrapped, "polyak:start=0")
    for module in (attached, stab.attach(inside, "polyak:start=0")):
        assert sorted(module.read()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    attached.update()
    later = stab.attach(bare, "polyak:start=0")
    later.load_state_dict(attached.state_dict())
    bare.load_state_dict(later.read())


def test_a_module_called_module_keeps_its_name():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    assert sorted(stab.attach(model, "polyak:start=0").read()) == ["module.bias", "module.weight"]


# What happens within swapped()


def halve(model):
    model.half().float()


def assign(model):
    model.load_state_dict(
        {k: torch.ones_like(v) for k, v in model.state_dict().items()}, assign=True
    )


def replace_data(model):
    model[0].weight.data = torch.zeros_like(model[0].weight)


def double_move(model):
    model.double().float()


@pytest.mark.parametrize("meddle", [halve, assign, replace_data, double_move])
def test_raw_weights_come_back_bitwise_whatever_happens(meddle):
    loop, attached = trained()
    raw, objects = snapshot(loop.model), list(loop.model.parameters())
    with attached.swapped():
        meddle(loop.model)
    for name, _ in loop.model.named_parameters():
        assert torch.equal(loop.model.state_dict()[name], raw[name]), name
    assert all(a is b for a, b in zip(objects, loop.model.parameters(), strict=True))
    loop.step()  # the optimizer still moves them
    assert not torch.equal(loop.model.state_dict()["0.weight"], raw["0.weight"])


def test_weights_that_cannot_come_back_are_named_and_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    attached = stab.attach(model, "polyak:start=0")
    attached.update()
    raw = snapshot(model)
    lost = "0.parametrizations.weight.original0"

    def meddle():
        with attached.swapped():
            nn.utils.parametrize.remove_parametrizations(model[0], "weight")
            filled(model, 1)

    with pytest.raises(stab.StabError, match=f"{lost}.*gone.*unreturned"):
        meddle()
    assert torch.equal(attached.unreturned[lost], raw[lost])
    assert torch.equal(model[1].weight.detach(), raw["1.weight"])

    def narrow():
        with attached.swapped():
            model.half()

    attached = stab.attach(model, "polyak:start=0")
    raw = snapshot(model)
    with pytest.raises(stab.StabError, match=r"'0.bias' was torch.float32, is torch.float16 now"):
        narrow()
    assert torch.equal(attached.unreturned["1.weight"], raw["1.weight"])


def test_what_belongs_to_training_is_refused_within_swapped():
    loop, attached = trained()
    state = attached.state_dict()
    with attached.swapped():
        for call in (
            attached.update,
            attached.state_dict,
            lambda: attached.load_state_dict(state),
            lambda: attached.swapped().__enter__(),
        ):
            with pytest.raises(stab.StabError, match="within swapped"):
                call()
        assert equal(
            {k: v for k, v in snapshot(loop.model).items() if k in attached.read()}, attached.read()
        )
    attached.update()


def test_swapped_takes_memory_for_one_copy():
    """Measured by torch's profiler: the largest sum of what is allocated and not yet freed."""
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(32)]).bfloat16()
    attached = stab.attach(model, "polyak:start=0")
    attached.update()
    size = sum(p.nbytes for p in model.parameters())
    with torch.profiler.profile(profile_memory=True) as profile, attached.swapped():
        pass
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert size <= peak <= 1.15 * size  # a copy, and two of the 32 tensors in float32


# States that do not fit


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [
        ("ema:half_life=200", "ema", "half_life=200 in the state, 0.05 here"),
        ("ema", "ema:alpha=0.5", "alpha=1.0 in the state, 0.5 here"),
        ("swa", "polyak", "of swa; attached: polyak"),
        (["ema", "polyak"], "ema", "of ema, polyak; attached: ema"),
    ],
)
def test_states_of_other_averages_are_refused_and_change_nothing(saved, asked, words):
    state = stab.attach(make(), saved, 5000).state_dict()
    other = stab.attach(make(seed=1), asked, 5000)
    before = other.read()
    with pytest.raises(stab.StabError, match=words):
        other.load_state_dict(state)
    assert equal(other.read(), before)
    assert other.step == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(4, 3), r"'weight' is float32 \[3, 3\] in the state, and float32 \[3, 4\]"),
        (nn.Linear(3, 3).bfloat16(), "is float32 .* in the state, and bfloat16"),
        (nn.Linear(3, 3, bias=False), "'bias' is float32 .* and not there in the module"),
    ],
)
@pytest.mark.parametrize("average", ["ema", "polyak", "swa"])
def test_states_of_other_parameters_are_refused(model, words, average):
    state = stab.attach(nn.Linear(3, 3), average, 50).state_dict()
    with pytest.raises(stab.StabError, match=words):
        stab.attach(model, average, 50).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"step": 3, "total": 5, "average": {}}, None, 3])
def test_what_is_not_a_state_is_refused(state):
    with pytest.raises(stab.StabError, match="not a state of"):
        stab.attach(nn.Linear(3, 3), "ema", 50).load_state_dict(state)


@pytest.mark.parametrize("key", ["step", "skipped", "parameters", "settings", "averages"])
@pytest.mark.parametrize("value", [None, 3.5, [], {"polyak": None}], ids=str)
def test_damaged_states_are_refused(key, value):
    attached = stab.attach(nn.Linear(3, 3), "polyak", 50)
    before = attached.read()
    with pytest.raises(stab.StabError):
        attached.load_state_dict(attached.state_dict() | {key: value})
    assert equal(attached.read(), before)


@pytest.mark.parametrize("key", ["mean", "older"])
@pytest.mark.parametrize(
    "value", [3, {}, {"weight": torch.zeros(3), "bias": torch.zeros(3)}], ids=str
)
def test_damaged_states_of_an_average_are_refused(key, value):
    attached = stab.attach(nn.Linear(3, 3), "polyak", 50)
    state = attached.state_dict()
    damaged = {"polyak": state["averages"]["polyak"] | {key: value}}
    with pytest.raises(stab.StabError):
        attached.load_state_dict(state | {"averages": damaged})


# Structure


class Adapted(nn.Module):
    """Quantised and frozen, with what is trained beside it; constants that are not finite."""

    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.ones(8, dtype=torch.uint8), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.adapter = nn.Parameter(torch.ones(8))


@pytest.mark.parametrize(
    "average", ["ema:half_life=3,burn_in=2", "polyak:start=2", "swa:start=2,every=1"]
)
def test_frozen_parameters_are_left_as_they_are(average):
    model = Adapted()
    attached = stab.attach(model, average)
    for _ in range(6):
        filled_ = model.adapter.detach().add_(1)
        attached.update()
    assert list(attached.state_dict()["parameters"]) == ["adapter"]
    read = attached.read()
    assert sorted(read) == ["adapter", "base", "frozen", "mask"]
    assert all(torch.equal(read[name], getattr(model, name)) for name in ("base", "mask", "frozen"))
    assert (read["adapter"] < filled_).all()
    model.load_state_dict(read)


def test_frozen_parameters_are_averaged_if_asked():
    model = Adapted()
    attached = stab.attach(model, "polyak:start=0", frozen=True)
    assert list(attached.state_dict()["parameters"]) == ["frozen", "adapter"]
    attached.update()
    model.frozen.requires_grad_(True)  # was averaged all along
    model.frozen.detach().add_(1)
    attached.update()
    assert torch.equal(attached.read()["frozen"], torch.full((2,), 1.5))


def unfreeze(model):
    model.frozen.requires_grad_(True)


def add(model):
    model.head = nn.Linear(2, 2)


def drop(model):
    del model.adapter


def grow(model):
    model.adapter.data = torch.ones(9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unfreeze, "'frozen' is new, or trainable now.*Attach again"),
        (add, "'head.bias' is new|'head.weight' is new"),
        (drop, "'adapter' is gone"),
        (grow, r"'adapter' is float32 \[9\] now, its average is float32 \[8\]"),
    ],
)
def test_a_module_that_changed_is_refused_at_the_next_update(change, words):
    model = Adapted()
    attached = stab.attach(model, "ema", 1000)
    attached.update()
    change(model)
    with pytest.raises(stab.StabError, match=words):
        attached.update()
    assert attached.step == 1


def test_a_layer_that_was_replaced_is_followed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    attached = stab.attach(model, "polyak:start=0")
    attached.update()
    first = model[0].weight.detach().clone()
    model[0] = nn.Linear(2, 2)
    attached.update()
    torch.testing.assert_close(attached.read()["0.weight"], (first + model[0].weight.detach()) / 2)


@pytest.mark.parametrize(
    ("make_", "words"),
    [
        (lambda: nn.LazyLinear(2), "'weight' has no shape yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' is on the meta device"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "no trainable parameters"),
        (nn.ReLU, "no trainable parameters"),
        (lambda: Adapted().requires_grad_(False).mask, "is not a torch.nn.Module"),
    ],
)
def test_modules_without_something_to_average_are_refused(make_, words):
    with pytest.raises(stab.StabError, match=words):
        stab.attach(make_(), "ema", 10)


def test_a_trainable_infinity_is_refused_at_once():
    model = Adapted()
    model.mask.requires_grad_(True)
    with pytest.raises(stab.StabError, match=r"'mask' holds an infinity.*freeze it"):
        stab.attach(model, "ema", 10)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "average", ["ema:half_life=2,burn_in=1", "polyak:start=1", "swa:start=1,every=1"]
)
def test_weights_that_are_not_finite_are_refused_and_counted(average, bad):
    model = nn.Linear(2, 2)
    attached, alone = stab.attach(model, average), []
    for step in range(1, 9):
        filled(model, 1)
        if step in (1, 4, 5):
            kept = model.weight.detach()[1, 1].clone()
            model.weight.detach()[1, 1] = bad
            before = attached.read()
            if step == 1:
                with pytest.warns(UserWarning, match="'weight' is not finite after update 1"):
                    attached.update()
            else:
                attached.update()
            assert equal(attached.read(), before)
            model.weight.detach()[1, 1] = kept
        else:
            alone.append(snapshot(model)["weight"])
            attached.update()
    assert (attached.step, attached.skipped) == (8, 3)
    assert attached.state_dict()["skipped"] == 3
    if not average.startswith("ema"):
        torch.testing.assert_close(attached.read()["weight"], torch.stack(alone).mean(0))
    assert attached.read()["weight"].isfinite().all()


def test_in_large_modules_single_numbers_that_were_not_finite_begin_again():
    """Each update looks at a sample; read-outs look at all."""
    model = nn.Linear(1024, 1 + SMALL // 1024, bias=False)
    attached = stab.attach(model, "polyak:start=0")
    attached.update()
    kept = model.weight.detach()[3, 3].clone()
    model.weight.detach()[3, 3] = torch.nan
    attached.update()
    model.weight.detach()[3, 3] = kept
    with pytest.warns(UserWarning, match="'weight' was not finite before update 2"):
        read = attached.read()["weight"]
    torch.testing.assert_close(read, model.weight.detach())
    model.weight.detach().fill_(torch.nan)
    attached.update()
    assert attached.skipped == 2
    torch.testing.assert_close(attached.read()["weight"], read)


def test_shards_of_fsdp2(tmp_path):
    """In a process of its own: averages are of the shards, and read out as sharded tensors."""
    program = """
        import torch, stab, sys
        import torch.distributed as dist
        from torch.distributed.fsdp import fully_shard
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        average = stab.attach(model, ["polyak:start=0", "swa:start=0,every=2", "ema:half_life=2,burn_in=0"])
        x, seen = torch.randn(6, 4), []
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            average.update()
            seen.append(model[0].weight.full_tensor().detach().clone())
        for name, mean in (("polyak:start=0", sum(seen) / 4), ("swa:every=2,start=0", (seen[0] + seen[2]) / 2)):
            torch.testing.assert_close(average.read(name)["0.weight"].full_tensor(), mean)
        with torch.no_grad():
            raw = model(x)
            with average.swapped("polyak:start=0"):
                inside = model(x)
            assert not torch.equal(inside, raw)
            assert torch.equal(model(x), raw)  # without reshard() by the user
        again = stab.attach(model, list(average.averages))
        again.load_state_dict(average.state_dict())
        for name in average.averages:
            for key, value in average.read(name).items():
                assert torch.equal(again.read(name)[key].full_tensor(), value.full_tensor())
        dist.destroy_process_group()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "rendezvous")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Without a total


@pytest.mark.parametrize("average", ["ema:half_life=5,burn_in=0", "polyak:start=3", "swa:start=3"])
def test_without_fractions_no_total_is_needed_and_none_ends_the_average(average):
    loop = Loop(make())
    attached = stab.attach(loop.model, average), stab.attach(loop.model, average, 9)
    for _ in range(20):
        loop.step()
        for one in attached:
            one.update()
    assert equal(attached[0].read(), attached[1].read())


@pytest.mark.parametrize(
    ("average", "words"),
    [
        ("ema", "half_life=0.05 and burn_in=0.1: fractions of training. Give total="),
        ("ema:half_life=500", "burn_in=0.1: fractions"),
        ("polyak", "start=0.25: fractions"),
        ("swa", "start=0.25: fractions"),
    ],
)
def test_which_settings_need_a_total_is_said(average, words):
    with pytest.raises(stab.StabError, match=words):
        stab.attach(make(), average)


@dataclass(frozen=True)
class Needs(BufferMean):
    def init(self, params, total):
        return MeanOfAll(clone(params), total // 2)


def test_an_average_that_needs_a_total_says_so():
    with pytest.raises(stab.StabError, match=r"Needs could not begin: TypeError.*give total="):
        stab.attach(make(), Needs())


@pytest.mark.parametrize("average", ["ema", "polyak", "swa", ["ema", "polyak"]])
def test_attached_averages_pickle_and_copy(average):
    loop, attached = trained(average, 15)
    names = list(attached.averages)
    for other in (pickle.loads(pickle.dumps(attached)), copy.deepcopy(attached)):
        assert other.module is not loop.model
        other.update()
        assert all(equal(other.read(n), other.read(n)) for n in names)
        assert other.step == attached.step + 1 == 16


@pytest.mark.parametrize(
    "average", ["ema:half_life=3,burn_in=3", "polyak:start=3", "swa:start=3,every=2"]
)
def test_inference_mode_does_no_harm(average):
    with torch.inference_mode():
        model = nn.Linear(2, 2)
        attached = stab.attach(model, average)
        attached.update()
    plain = stab.attach(copy.deepcopy(model), average)
    plain.update()
    for step in range(8):
        for one in (attached, plain):
            with torch.inference_mode(step % 3 == 0):
                with torch.inference_mode():
                    filled(one.module, 0.5)
                state = one.state_dict()
                one.load_state_dict(state)
                one.update()
                with one.swapped():
                    pass
    assert equal(attached.read(), plain.read())
    assert not attached.read()["weight"].is_inference()


# Several at once, by the optimizer


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_updates_averages_but_not_for_steps_that_a_scaler_skips(fused):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    both = ["polyak:start=0", "ema:half_life=2,burn_in=0"]
    attached = stab.attach(model, both, optimizer=optimizer)
    alone = [stab.attach(model, one) for one in both]
    for step in range(12):
        for _ in range(2):  # accumulation
            loss = (model(torch.randn(2, 4)) - 1).square().mean() / 2
            scaler.scale(loss * (torch.inf if step % 4 == 2 else 1)).backward()
        before = snapshot(model)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if not equal(snapshot(model), before):
            for one in alone:
                one.update()
    assert attached.step == alone[0].step == 9
    for name, one in zip(both, alone, strict=True):
        assert equal(attached.read(name), one.read())
    with pytest.raises(stab.StabError, match="called by the optimizer"):
        attached.update()


def test_an_optimizers_average_stays_hooked_through_a_copy():
    loop = Loop(make())
    loop.average = stab.attach(loop.model, "polyak:start=0", optimizer=loop.optimizer)
    loop.step()
    other = copy.deepcopy(loop)
    for one in (loop, other):
        for _ in range(3):
            one.step()
        assert one.average.step == 4
    assert equal(loop.average.read(), other.average.read())


def test_optimizers_of_other_parameters_and_things_that_are_none_are_refused():
    with pytest.raises(stab.StabError, match="none of the module's parameters"):
        stab.attach(make(), "polyak", 10, optimizer=torch.optim.SGD(make().parameters()))
    with pytest.raises(stab.StabError, match="a str is not an optimizer"):
        stab.attach(make(), "polyak", 10, optimizer="adam")


def test_several_averages_have_one_state_and_names():
    _, attached = trained(["ema:half_life=3", EMA(half_life=7, burn_in=2), "polyak"])
    assert list(attached.averages) == ["ema:half_life=3", "ema:burn_in=2,half_life=7", "polyak"]
    for call in (attached.read, lambda: attached.swapped().__enter__()):
        with pytest.raises(stab.StabError, match="which average"):
            call()
    with pytest.raises(stab.StabError, match="'swa' is not attached; attached: ema"):
        attached.read("swa")
    for name in attached.averages:
        assert equal(attached.read(name), trained(name)[1].read())
        with attached.swapped(name) as model:
            assert torch.equal(model[0].weight.detach(), attached.read(name)["0.weight"])
    assert torch.equal(
        attached.read("ema:half_life=7,burn_in=2")["0.weight"],
        attached.read("ema:burn_in=2,half_life=7")["0.weight"],
    )
    other = stab.attach(make(seed=3), list(attached.averages), TOTAL)
    other.load_state_dict(attached.state_dict())
    assert all(equal(other.read(name), attached.read(name)) for name in attached.averages)


def test_averages_with_and_without_buffers_share_a_module():
    _, attached = trained([BufferMean(), "polyak:start=0"])
    assert "1.running_mean" in attached.read("BufferMean")
    assert "1.running_mean" not in attached.read("polyak:start=0")
    torch.testing.assert_close(
        attached.read("BufferMean")["0.weight"], attached.read("polyak:start=0")["0.weight"]
    )


# Words


@pytest.mark.parametrize(
    ("average", "words"),
    [
        ("ema:decay=0.999", r"no argument 'decay'. decay=0.999 is half_life=693\."),
        ("ema:beta=0.99", r"beta'. decay=0.99 is half_life=69\."),
        ("EMA", "Did you mean 'ema'"),
        ("Ema:half_life=5", "Did you mean 'ema'"),
        ("Polyak", "Did you mean 'polyak'"),
        (EMA, "expected an average"),
        ([EMA], "is not an average: expected a string such as 'ema'"),
        ([], "expected an average"),
    ],
)
def test_words_for_what_is_not_an_average(average, words):
    with pytest.raises(stab.StabError, match=words):
        stab.attach(make(), average, TOTAL)


@pytest.mark.parametrize(
    ("average", "words"),
    [
        (
            "ema:half_life=0.999",
            "half_life=0.999 is a fraction of training; decay=0.999 is half_life=693",
        ),
        ("ema:half_life=5000", "half_life=5000 is 5000 updates, the average lasts 900"),
        ("ema:alpha=0.3", "alpha=0.3 keeps the rate above it"),
    ],
)
def test_what_notes_know_is_said(average, words):
    with pytest.warns(UserWarning, match=words):
        stab.attach(make(), average, 1000)


def test_sound_settings_are_not_remarked_on(recwarn):
    stab.attach(make(), ["ema", "polyak", "swa"], 1000)
    assert not recwarn.list


@pytest.mark.parametrize("total", [1e4, True, "10"])
def test_a_total_that_is_not_an_integer(total):
    with pytest.raises(stab.StabError, match="an integer"):
        stab.attach(make(), "ema", total)
