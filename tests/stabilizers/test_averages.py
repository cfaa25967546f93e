"""Averages against slow references in numpy, closed forms, and the libraries that compute them."""

import copy
import dataclasses
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from torch_ema import ExponentialMovingAverage

from stab.registry import StabError
from stab.stabilizers import Average, stabilizers
from stab.stabilizers.base import effective_half_life, memory
from stab.stabilizers.ema import EMA
from stab.stabilizers.polyak import Polyak
from stab.stabilizers.swa import SWA

NAMES = [
    n for n in stabilizers.names() if issubclass(stabilizers.peek(n) or object, Average)
]  # built in
TOTAL = 240
F64 = torch.float64


def updates(moment, total):
    return moment if isinstance(moment, int) else round(moment * total)


# The slow references take every iterate theta[0..t] (theta[0]: initial parameters) and return the average at t.


def slow_ema(theta, total, half_life=0.05, burn_in=0.1, alpha=1.0):
    t0 = updates(burn_in, total)
    life = half_life if isinstance(half_life, int) else half_life * total
    t = len(theta) - 1
    if t <= t0:
        return theta[t]
    average = theta[t0]
    for s in range(t0 + 1, t + 1):
        g = max(1 - 2 ** (-1 / life), (1 + s - t0) ** -alpha)
        average = (1 - g) * average + g * theta[s]
    return average


def slow_polyak(theta, total, start=0.25):
    t0 = updates(start, total)
    tail = theta[max(t0, 1) :]
    return np.mean(tail, axis=0) if tail else theta[-1]


def slow_swa(theta, total, start=0.25, every=100):
    t0 = max(1, updates(start, total))
    tail = theta[t0::every]
    return np.mean(tail, axis=0) if tail else theta[-1]


CASES = [
    (EMA, slow_ema, {}),
    (EMA, slow_ema, {"alpha": 0.67}),
    (EMA, slow_ema, {"half_life": 500}),
    (EMA, slow_ema, {"half_life": 3, "burn_in": 50, "alpha": 0.5}),
    (EMA, slow_ema, {"burn_in": 0}),
    (EMA, slow_ema, {"burn_in": TOTAL - 1}),
    (Polyak, slow_polyak, {}),
    (Polyak, slow_polyak, {"start": 0}),
    (Polyak, slow_polyak, {"start": 37}),
    (Polyak, slow_polyak, {"start": TOTAL - 1}),
    (SWA, slow_swa, {}),
    (SWA, slow_swa, {"start": 0, "every": 1}),
    (SWA, slow_swa, {"start": 13, "every": 7}),
    (SWA, slow_swa, {"start": 0.5, "every": 10_000}),
]
GENERIC = [stabilizers.get(name)() for name in NAMES] + [
    make(**args) for make, _, args in CASES if args
]


def name(case):
    return repr(case) if isinstance(case, Average) else None


def walk(seed=0, total=TOTAL, shape=(3,), dtype=F64):
    """Iterates 0..total, one of them exactly zero."""
    steps = torch.from_numpy(np.random.default_rng(seed).standard_normal((total + 1, *shape))).to(
        dtype
    )
    steps[total // 2] = 0
    return steps


def as_params(value):
    return {"w": value, "b": value.flatten()[:2] * 3}


def run(average, iterates, total=None):
    """Yield (step, state) for step 0, 1, ... of a run over the iterates."""
    total = total or len(iterates) - 1
    state = average.init(as_params(iterates[0]), total)
    yield 0, state
    for step in range(1, len(iterates)):
        average.update(state, as_params(iterates[step]), step)
        yield step, state


# Against references


@pytest.mark.parametrize(("make", "slow", "args"), CASES)
def test_every_read_is_the_slow_references(make, slow, args):
    iterates = walk()
    average = make(**args)
    seen = []
    for step, state in run(average, iterates):
        seen.append(iterates[step].numpy())
        found = average.read(state)
        np.testing.assert_allclose(
            found["w"].numpy(), slow(seen, TOTAL, **args), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(
            found["b"].numpy(), slow(seen, TOTAL, **args)[:2] * 3, rtol=1e-10, atol=1e-12
        )


def test_ema_by_hand():
    theta = torch.tensor([5.0, 7.0, 1.0, 0.0, 4.0], dtype=F64)  # theta[3] is zero
    half = [s["w"].item() for s in reads(EMA(half_life=1, burn_in=2), theta, 10)]
    # g_min = 1 - 2^-1 = 1/2 from the first update on: max(1/2, 1/2), max(1/2, 1/3)
    assert half == pytest.approx(
        [5, 7, 1, 1 / 2 * 1 + 1 / 2 * 0, 1 / 4 * 1 + 1 / 4 * 0 + 1 / 2 * 4], rel=1e-15
    )
    mean = [s["w"].item() for s in reads(EMA(half_life=9, burn_in=2), theta, 10)]
    # g_min = 1 - 2^(-1/9) = 0.074 does not bind yet: the running mean of theta[2..t]
    assert mean == pytest.approx([5, 7, 1, (1 + 0) / 2, (1 + 0 + 4) / 3], rel=1e-15)
    fast = [s["w"].item() for s in reads(EMA(half_life=9, burn_in=2, alpha=0.5), theta, 10)]
    g3, g4 = 2**-0.5, 3**-0.5
    assert fast[3:] == pytest.approx(
        [(1 - g3) * 1 + g3 * 0, (1 - g4) * ((1 - g3) * 1 + g3 * 0) + g4 * 4], rel=1e-14
    )


def test_polyak_by_hand():
    theta = torch.tensor([5.0, 7.0, 1.0, 0.0, 4.0], dtype=F64)
    found = [s["w"].item() for s in reads(Polyak(start=2), theta, 10)]
    assert found == pytest.approx([5, 7, 1, (1 + 0) / 2, (1 + 0 + 4) / 3], rel=1e-15)
    from_zero = [s["w"].item() for s in reads(Polyak(start=0), theta, 10)]
    assert from_zero == pytest.approx(
        [5, 7, (7 + 1) / 2, (7 + 1 + 0) / 3, (7 + 1 + 0 + 4) / 4], rel=1e-15
    )


def test_swa_by_hand():
    theta = torch.tensor([5.0, 7.0, 1.0, 0.0, 4.0, 8.0, 9.0], dtype=F64)
    found = [s["w"].item() for s in reads(SWA(start=1, every=2), theta, 10)]
    assert found == pytest.approx(
        [5, 7, 7, (7 + 0) / 2, (7 + 0) / 2, (7 + 0 + 8) / 3, (7 + 0 + 8) / 3], rel=1e-15
    )


def test_swa_takes_every_hundredth_from_a_quarter():
    assert (SWA().start, SWA().every) == (0.25, 100)
    weights = memory(SWA(), 600, [600])[600]
    assert np.flatnonzero(weights).tolist() == [149, 249, 349, 449, 549]
    assert weights[weights > 0] == pytest.approx([1 / 5] * 5)


def reads(average, theta, total):
    return [average.read(state) for _, state in run(average, theta[:, None], total)]


# Against the libraries


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "args", [{}, {"alpha": 0.67}, {"burn_in": 0}, {"half_life": 500, "burn_in": 17}]
)
def test_ema_is_torch_ema_used_directly(args, dtype):
    average = EMA(**args)
    life = average.half_life if isinstance(average.half_life, int) else average.half_life * TOTAL
    iterates, t0 = walk(shape=(4, 5), dtype=dtype), updates(average.burn_in, TOTAL)
    parameter = torch.nn.Parameter(iterates[0].clone())
    theirs = ExponentialMovingAverage([parameter], decay=0.5, use_num_updates=False)
    for step, state in run(average, iterates):
        parameter.data = iterates[step].clone()
        if step <= t0:
            theirs = ExponentialMovingAverage([parameter], decay=0.5, use_num_updates=False)
        else:
            theirs.decay = 1 - max(1 - 2 ** (-1 / life), (1 + step - t0) ** -average.alpha)
            theirs.update()
        assert torch.equal(average.read(state)["w"], theirs.shadow_params[0])


class Net(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = torch.nn.Parameter(value.clone())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("average", "counts"),
    [
        (SWA(start=30, every=7), lambda t: t >= 30 and (t - 30) % 7 == 0),
        (SWA(), lambda t: t in (60, 160)),
        (Polyak(start=30), lambda t: t >= 30),
        (SWA(start=30, every=1), lambda t: t >= 30),
    ],
    ids=lambda v: str(v) if isinstance(v, Average) else None,
)
def test_swa_and_polyak_are_torchs_averaged_model(average, counts, dtype):
    iterates = walk(shape=(4, 5), dtype=dtype)
    net = Net(iterates[0])
    theirs = AveragedModel(net, multi_avg_fn=get_swa_multi_avg_fn())
    for step, state in run(average, iterates):
        net.w.data = iterates[step].clone()
        if counts(step):
            theirs.update_parameters(net)
        if not theirs.n_averaged:
            continue
        if dtype == torch.float32:
            assert torch.equal(average.read(state)["w"], theirs.module.w)
        else:  # AveragedModel counts in a tensor, and so rounds 1 / n to float32
            torch.testing.assert_close(
                average.read(state)["w"], theirs.module.w.detach(), rtol=1e-6, atol=1e-7
            )
    assert theirs.n_averaged > 1


# Precision and names


@pytest.mark.parametrize(
    "average", [EMA(half_life=2000, burn_in=0), Polyak(start=0), SWA(start=0, every=2)], ids=str
)
def test_long_averages_lose_nothing_that_float32_can_hold(average):
    """Against the same average of the same iterates in float64.

    In float32 alone an average stands still when its step is under half an ulp: it would be off by
    up to 2^-24 / rate, 2e-4 here. In blocks of 64 that is 4e-6, and no more than they drift.
    """
    total = 8000
    time = torch.arange(total + 1, dtype=F64) / total
    noise = torch.randn(total + 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    slow, step = 1 + 1e-3 * time, (time > 0).double()
    iterates = torch.stack([step, slow, 1 + 0.1 * noise, 1 - 2 * slow], 1).float()
    single = average.init({"w": iterates[0].clone()}, total)
    double = average.init({"w": iterates[0].double()}, total)
    for t in range(1, total + 1):
        average.update(single, {"w": iterates[t]}, t)
        average.update(double, {"w": iterates[t].double()}, t)
    found, exact = average.read(single)["w"], average.read(double)["w"]
    assert found.dtype == torch.float32
    assert ((found.double() - exact).abs() <= 2**-18 * exact.abs()).all()
    saved = single.state_dict()
    assert saved["older"]["w"].dtype == F64
    again = average.init({"w": torch.zeros(4)}, total)
    again.load_state_dict(saved)
    assert torch.equal(average.read(again)["w"], found)


def test_short_averages_hold_one_copy_in_float32():
    for average in (EMA(half_life=700), Polyak(), SWA(every=1)):
        *_, (_, state) = run(average, walk(dtype=torch.float32))
        saved = state.state_dict()
        assert saved["older"] is None
        assert saved["mean"]["w"].dtype == torch.float32


def test_large_models_get_the_same_average_to_an_ulp_of_every_update():
    """Up to 2^20 parameters torch-ema computes an update, beyond that torch's lerp."""
    drawn = torch.randn(31, 2**20 + 1, generator=torch.Generator().manual_seed(0))
    average = EMA(half_life=4, burn_in=2)
    large, small = average.init({"w": drawn[0]}, 30), average.init({"w": drawn[0, :1000]}, 30)
    for step in range(1, 31):
        average.update(large, {"w": drawn[step]}, step)
        average.update(small, {"w": drawn[step, :1000]}, step)
    found, theirs = average.read(large)["w"][:1000], average.read(small)["w"]
    assert not torch.equal(found, theirs)
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_parameters_are_matched_by_name(average):
    iterates = walk(dtype=torch.float32)
    state = average.init(as_params(iterates[0]), TOTAL)
    *_, (_, expected) = run(average, iterates)
    for step in range(1, TOTAL + 1):
        average.update(state, dict(reversed(as_params(iterates[step]).items())), step)
        if step == 100:
            saved = state.state_dict()
            state = average.init(dict(reversed(as_params(iterates[0]).items())), TOTAL)
            state.load_state_dict(saved)
    for key, value in average.read(expected).items():
        assert torch.equal(average.read(state)[key], value)


@pytest.mark.parametrize("average", [EMA(), Polyak(), SWA()], ids=str)
def test_what_does_not_fit_a_state_is_refused(average):
    params = as_params(torch.zeros(3))
    state = average.init(params, TOTAL)
    with pytest.raises(StabError, match="the average is of w, b; it was shown w"):
        average.update(state, {"w": params["w"]}, 1)
    for other, words in (
        (as_params(torch.zeros(4)), r"'w' is float32 \[4\] in the state, float32 \[3\] here"),
        (as_params(torch.zeros(3, dtype=F64)), "'w' is float64"),
        ({"w": params["w"]}, "the state is of w; the average is of w, b"),
    ):
        with pytest.raises(StabError, match=words):
            state.load_state_dict(average.init(other, TOTAL).state_dict())
    for dtype in (torch.bfloat16, torch.float16, torch.uint8):
        with pytest.raises(StabError, match="averages take float32 at least"):
            average.init(as_params(torch.zeros(3, dtype=dtype)), TOTAL)


def test_states_of_ema_from_before_are_read():
    """An interrupted run's: torch-ema's list of tensors beside their names."""
    average, iterates = EMA(), walk(dtype=torch.float32)
    *_, (_, state) = run(average, iterates[:101], TOTAL)
    shadow = [state.mean["w"], state.mean["b"]]
    old = {
        "ema": {
            "decay": 0.9,
            "num_updates": None,
            "shadow_params": shadow,
            "collected_params": None,
        },
        "names": ["w", "b"],
        "burn_in": 24,
        "rate": state.rate,
    }
    other = average.init(as_params(iterates[0]), TOTAL)
    other.load_state_dict(copy.deepcopy(old))
    for step in range(101, TOTAL + 1):
        for one in (state, other):
            average.update(one, as_params(iterates[step]), step)
    assert torch.equal(average.read(other)["w"], average.read(state)["w"])


# What every average keeps


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_reads_the_initial_and_the_first_iterate(average):
    iterates = walk(dtype=torch.float32)
    found = [
        {k: v.clone() for k, v in average.read(state).items()}
        for _, state in run(average, iterates[:2], TOTAL)
    ]
    assert torch.equal(found[0]["w"], iterates[0])
    assert list(found[0]) == ["w", "b"]
    if getattr(average, "burn_in", 1) != 0:
        assert torch.equal(found[1]["w"], iterates[1])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("average", "last"),
    [
        (EMA(burn_in=50), 50),
        (EMA(), 24),
        (Polyak(start=50), 50),
        (Polyak(), 60),
        (SWA(start=50), 50),
        (SWA(), 60),
    ],
    ids=str,
)
def test_before_it_begins_it_is_the_latest_iterate_bitwise(average, last, dtype):
    iterates = walk(dtype=dtype)
    for step, state in run(average, iterates):
        same = torch.equal(average.read(state)["w"], iterates[step])
        assert same or step > last
    assert not same


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_params_are_never_changed_nor_kept(average):
    iterates = walk(dtype=torch.float32)
    params = as_params(iterates[0].clone())
    state = average.init(params, TOTAL)
    reference = run(average, iterates)
    next(reference)
    for step in range(1, TOTAL + 1):
        for key, value in as_params(iterates[step]).items():
            params[key].copy_(value)  # in place, as an optimizer does
        average.update(state, params, step)
        for key, value in as_params(iterates[step]).items():
            assert torch.equal(params[key], value)
        for value in params.values():
            value.fill_(math.nan)  # what the average keeps must be its own
        _, expected = next(reference)
        assert torch.equal(average.read(state)["w"], average.read(expected)["w"])


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_a_read_out_never_aliases(average):
    iterates = walk(dtype=torch.float32)
    reference = run(average, iterates)
    for (_, state), (_, untouched) in zip(run(average, iterates), reference, strict=True):
        before = average.read(state)
        for value in before.values():
            value.fill_(math.nan)
        again = average.read(state)
        assert all(torch.equal(again[k], v) for k, v in average.read(untouched).items())
        assert not any(v.requires_grad for v in again.values())


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_constant_iterates_give_that_constant_bitwise(average):
    constant = torch.tensor([0.1, -1 / 3, 1e-30, 0.0, 3e7])
    for _, state in run(average, constant.expand(TOTAL + 1, 5)):
        assert torch.equal(average.read(state)["w"], constant)


@pytest.mark.parametrize("average", [a for a in GENERIC if a.convex], ids=name)
def test_the_convex_hull(average):
    iterates = walk(3)
    for step, state in run(average, iterates):
        found, seen = average.read(state)["w"], iterates[: step + 1]
        assert (found >= seen.amin(0) - 1e-12).all()
        assert (found <= seen.amax(0) + 1e-12).all()


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_a_leading_axis_is_separate_runs(average):
    runs = [walk(seed, shape=(7,)) for seed in range(3)]
    together = run(average, torch.stack(runs, 1))
    alone = [run(average, iterates) for iterates in runs]
    for (_, state), *states in zip(together, *alone, strict=True):
        found = average.read(state)["w"]
        for i, (_, one) in enumerate(states):
            torch.testing.assert_close(found[i], average.read(one)["w"], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("average", [a for a in GENERIC if a.convex], ids=name)
def test_affine_equivariance(average):
    iterates = walk(4)
    for (_, state), (_, moved) in zip(
        run(average, iterates), run(average, 3 - 2 * iterates), strict=True
    ):
        torch.testing.assert_close(
            average.read(moved)["w"], 3 - 2 * average.read(state)["w"], rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("at", [0, 1, 24, 25, 60, 61, 130, 239])
@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_state_goes_through_a_file_in_the_middle_of_training(average, at):
    iterates = walk(dtype=torch.float32)
    file = io.BytesIO()
    expected = None
    for step, state in run(average, iterates):
        if step == at:
            torch.save(state.state_dict(), file)
        expected = state
    file.seek(0)
    state = average.init(as_params(torch.full((3,), 9.0)), TOTAL)
    state.load_state_dict(torch.load(file, weights_only=True))
    for step in range(at + 1, TOTAL + 1):
        average.update(state, as_params(iterates[step]), step)
    for key, value in average.read(expected).items():
        assert torch.equal(average.read(state)[key], value)


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_a_loaded_state_is_its_own(average):
    iterates = walk(dtype=torch.float32)
    *_, (_, state) = run(average, iterates[:100], TOTAL)
    saved = copy.deepcopy(state.state_dict())
    other = average.init(as_params(iterates[0]), TOTAL)
    other.load_state_dict(saved)
    before = average.read(other)["w"]
    for step in range(100, TOTAL + 1):
        average.update(other, as_params(iterates[step]), step)
    third = average.init(as_params(iterates[0]), TOTAL)
    third.load_state_dict(saved)
    assert torch.equal(average.read(third)["w"], before)
    assert torch.equal(average.read(state)["w"], before)


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_methods_pickle_and_states_copy(average):
    assert pickle.loads(pickle.dumps(average)) == average
    assert copy.deepcopy(average) == average
    assert hash(copy.deepcopy(average)) == hash(average)
    iterates = walk(dtype=torch.float32)
    copied = None
    for step, state in run(average, iterates):
        if step == 100:
            copied = copy.deepcopy(state)
        elif step > 100:
            average.update(copied, as_params(iterates[step]), step)
    assert torch.equal(average.read(copied)["w"], average.read(state)["w"])


@pytest.mark.parametrize("average", GENERIC, ids=name)
def test_one_object_serves_many_runs(average):
    """State is a value: two runs of one object at once do not leak into each other."""
    one, two = walk(1), walk(2)
    together = [
        (average.read(a)["w"], average.read(b)["w"])
        for (_, a), (_, b) in zip(run(average, one), run(average, two), strict=True)
    ]
    for (_, state), (found, _) in zip(run(average, one), together, strict=True):
        assert torch.equal(average.read(state)["w"], found)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 60))
def test_any_length_of_training_will_do(which, total):
    average = stabilizers.get(which)()
    for step, state in run(average, walk(total=total)):
        assert average.read(state)["w"].isfinite().all(), step


# Theory


@pytest.mark.parametrize("half_life", [2, 5, 20])
def test_over_independent_iterates_the_stationary_variance_of_ema_is_g_by_2_minus_g(half_life):
    g = 1 - 2 ** (-1 / half_life)
    weights = memory(EMA(half_life=half_life, burn_in=1), 600, [600])[600]
    assert (weights**2).sum() == pytest.approx(g / (2 - g), rel=1e-6)
    rng = torch.Generator().manual_seed(half_life)
    average, total, width = EMA(half_life=half_life, burn_in=1), 30 * half_life, 20_000
    state = average.init({"w": torch.zeros(width)}, total)
    for step in range(1, total + 1):
        average.update(state, {"w": 3 * torch.randn(width, generator=rng)}, step)
    variance = average.read(state)["w"].double().var().item()
    assert variance == pytest.approx(9 * g / (2 - g), rel=5 * math.sqrt(2 / width))


@pytest.mark.parametrize(
    ("average", "n"), [(Polyak(start=21), 40), (SWA(start=10, every=5), 11)], ids=str
)
def test_over_independent_iterates_the_variance_of_a_mean_is_one_by_n(average, n):
    rng = torch.Generator().manual_seed(n)
    total, width = 60, 20_000
    state = average.init({"w": torch.zeros(width)}, total)
    for step in range(1, total + 1):
        average.update(state, {"w": torch.randn(width, generator=rng)}, step)
    assert average.read(state)["w"].double().var().item() == pytest.approx(
        1 / n, rel=5 * math.sqrt(2 / width)
    )
    assert (memory(average, total, [total])[total] ** 2).sum() == pytest.approx(1 / n, rel=1e-12)


@pytest.mark.parametrize("average", [a for a in GENERIC if a.convex], ids=name)
def test_weights_are_convex_and_give_the_average(average):
    steps = [1, 2, 24, 25, 26, 60, 61, 200, TOTAL]
    weights = memory(average, TOTAL, steps)
    assert sorted(weights) == steps
    iterates = walk(5)
    iterates[0] = (
        0  # memory starts from zero, so that EMA without burn-in gives the initial parameters no weight
    )
    for step, state in run(average, iterates):
        if step in weights:
            assert len(weights[step]) == step
            assert (weights[step] >= 0).all()
            if getattr(average, "burn_in", 1) != 0:
                assert weights[step].sum() == pytest.approx(1, rel=1e-12)
            expected = weights[step] @ iterates[1 : step + 1].numpy()
            np.testing.assert_allclose(
                average.read(state)["w"].numpy(), expected, rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("half_life", [5, 30, 0.05])
def test_memory_of_ema_is_geometric(half_life):
    total, life = 1000, half_life if isinstance(half_life, int) else half_life * 1000
    weights = memory(EMA(half_life=half_life), total, [total])[total]
    g = 1 - 2 ** (-1 / life)
    bound = total - 100 - math.ceil(1 / g)  # g_min is in force for this many of the latest updates
    age = np.arange(bound)
    np.testing.assert_allclose(weights[::-1][:bound], g * (1 - g) ** age, rtol=1e-9)
    assert weights[-1 - round(life)] / weights[-1] == pytest.approx(1 / 2, rel=1e-9)
    assert abs(effective_half_life(weights) - life) <= 1


def test_the_half_life_never_comes_into_force_where_alpha_keeps_it_out():
    """(1 + total - t0)^-alpha > g_min: the rate at the end is the annealed one; otherwise it is g_min."""
    total, t0 = 400, 40
    for life in (5, 100, 500):
        for alpha in (1.0, 0.67, 0.3):
            g, annealed = 1 - 2 ** (-1 / life), (1 + total - t0) ** -alpha
            latest = memory(EMA(half_life=life, burn_in=t0, alpha=alpha), total, [total])[total][-1]
            assert latest == pytest.approx(max(g, annealed), rel=1e-9)


def test_memory_of_polyak_is_flat_and_of_swa_a_comb():
    weights = memory(Polyak(start=41), 100, [41, 42, 100])
    assert weights[41].tolist() == [0] * 40 + [1]
    np.testing.assert_allclose(weights[42][-2:], [1 / 2, 1 / 2], rtol=1e-12)
    np.testing.assert_allclose(weights[100], [0] * 40 + [1 / 60] * 60, rtol=1e-12)
    assert effective_half_life(weights[100]) == 30
    assert effective_half_life(weights[42]) == 1
    comb = memory(SWA(start=20, every=20), 100, [99, 100])
    assert np.flatnonzero(comb[99]).tolist() == [19, 39, 59, 79]
    assert effective_half_life(comb[99]) == 40  # 80 and 60 hold half: iterates 60..99
    assert (
        effective_half_life(comb[100]) == 41
    )  # 100, 80 and 60 hold three fifths: iterates 60..100


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0], 1), ([0.5, 0.5], 1), ([0.6, 0.4], 2), ([0, 0, 1], 1), ([1, 0, 0], 3), ([0.1] * 10, 5)],
)
def test_effective_half_life_by_hand(weights, expected):
    assert effective_half_life(np.array(weights)) == expected


# What does not fit


@pytest.mark.parametrize(
    ("average", "total"),
    [
        (EMA(burn_in=100), 100),
        (EMA(burn_in=100), 50),
        (Polyak(start=100), 100),
        (Polyak(start=500), 100),
        (Polyak(start=0.99), 10),
        (SWA(start=100), 100),
        (SWA(start=0.99), 10),
    ],
    ids=str,
)
def test_a_start_beyond_training_is_refused(average, total):
    with pytest.raises(StabError, match=f"does not fit {total} updates"):
        average.init({"w": torch.zeros(1)}, total)


@pytest.mark.parametrize("which", ["ema", "polyak", "swa"])
@pytest.mark.parametrize(
    "value", [None, "x", True, math.nan, math.inf, -1, -0.5, 1.5, [1]], ids=str
)
def test_hyper_parameters_out_of_range(which, value):
    cls = stabilizers.get(which)
    for field in dataclasses.fields(cls):
        with pytest.raises(StabError, match=f"{field.name}=.*expected"):
            cls(**{field.name: value})


def test_the_defaults_fixed_beforehand():
    assert EMA() == EMA(half_life=0.05, burn_in=0.1, alpha=1.0)
    assert Polyak() == Polyak(start=0.25)
    assert SWA() == SWA(start=0.25, every=100)
    assert all(stabilizers.get(n).convex for n in ("ema", "polyak", "swa"))
