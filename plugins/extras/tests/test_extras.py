"""The extras: the rules every stabilizer keeps; each method against theory or a slow reference, through real training."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import schedulefree
import torch
from stab_extras.clip import Clip
from stab_extras.layer_norm import LayerNorm
from stab_extras.lookahead import Lookahead
from stab_extras.power_ema import PowerEMA
from stab_extras.sam import SAM
from stab_extras.schedule_free import ScheduleFree
from stab_extras.truncated_noise import AddNoise, Truncate, TruncatedNoise, pareto
from torch import nn

from stab import files
from stab.checks import Toy, parametrize_with_checks
from stab.recipe import Recipe
from stab.registry import Incompatible, StabError
from stab.stabilizers import parse
from stab.stabilizers.base import effective_half_life, memory
from stab.train import make_optimizer, minibatches, train

NAMES = ["clip", "layer_norm", "lookahead", "power_ema", "sam", "schedule_free", "truncated_noise"]
SETTINGS = [
    "clip:norm=inf,value=0.01",
    "lookahead:k=2,alpha=0.8",
    "power_ema:sigma_rel=0.2",
    "sam:rho=0.5",
    "schedule_free:beta=0.98,warmup=0.5,lr_factor=3",
    "truncated_noise:threshold=inf",
    "clip+lookahead+ema",
    "sam+lookahead",
    "lookahead+sam",
    "schedule_free+sam",
    "truncated_noise+lr_decay+power_ema",
]
TASK = Toy("toy")
RECIPE = Recipe(batch_size=8, updates=13, lr=0.01)
SGD = replace(RECIPE, optimizer="SGD", optimizer_args={"momentum": 0.9})


@parametrize_with_checks([*NAMES, *SETTINGS])
def test_it_keeps_the_rules(check):
    check.run()


def last(recipe, seed=0):
    """Where stab's training loop ends, and what it deploys there."""
    *_, point = train(TASK, recipe, seed, {}, [recipe.updates])
    return point.raw


def reference(recipe, optimizer, step, seed=0):
    """Train by a plain loop: the same initial weights and minibatches, ``step(optimizer, gradient, update)`` an update.

    ``gradient()`` puts the minibatch's gradient into ``.grad`` and returns the loss.
    """
    (start,) = train(
        TASK,
        replace(recipe, updates=1, lr=1e-30, optimizer="SGD", optimizer_args={}),
        seed,
        {},
        [1],
    )
    policy = TASK.policy(recipe)
    policy.load_state_dict(start.raw)
    policy.seen.zero_()
    policy.train()
    data, made = TASK.dataset().train, optimizer(list(policy.parameters()))
    for update in range(1, recipe.updates + 1):
        source, indices = minibatches(data, recipe, seed, update)
        batch = source.batch(indices[0])

        def gradient(batch=batch):
            policy.zero_grad()
            loss = TASK.loss(policy, batch)
            loss.backward()
            return loss.item()

        step(made, gradient, update)
    return policy, made


def same(policy, raw, atol=1e-6):
    for name, value in policy.named_parameters():
        assert torch.allclose(value, raw[name], atol=atol), name


# clip


def test_clip_by_norm_and_value_are_torch_s():
    for string in ("clip:norm=0.3", "clip:norm=inf,value=0.05", "clip:norm=0.2,value=0.1"):
        clip = parse(string).interventions[0]

        def step(optimizer, gradient, update, clip=clip):
            gradient()
            parameters = optimizer.param_groups[0]["params"]
            nn.utils.clip_grad_value_(parameters, clip.value)
            nn.utils.clip_grad_norm_(parameters, clip.norm)
            optimizer.step()

        policy, _ = reference(SGD, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), step)
        same(policy, last(clip.apply(SGD)))


def test_a_limit_that_is_never_reached_changes_nothing():
    loose, plain = last(Clip(norm=1e6).apply(RECIPE)), last(RECIPE)
    assert all(torch.equal(loose[k], plain[k]) for k in plain)


# lookahead


def test_lookahead_is_algorithm_1():
    k, alpha = 3, 0.4
    slow = []

    def step(optimizer, gradient, update):
        parameters = optimizer.param_groups[0]["params"]
        if not slow:
            slow.extend(p.detach().clone() for p in parameters)
        gradient()
        optimizer.step()
        if update % k == 0:
            with torch.no_grad():
                for s, p in zip(slow, parameters, strict=True):
                    s.add_(alpha * (p - s))
                    p.copy_(s)

    policy, _ = reference(RECIPE, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0), step)
    found = last(Lookahead(k=k, alpha=alpha).apply(RECIPE))
    deployed = dict(zip([name for name, _ in policy.named_parameters()], slow, strict=True))
    for name, value in deployed.items():
        assert torch.allclose(found[name], value, atol=1e-6)
    assert not torch.allclose(
        found["layers.0.weight"], policy.layers[0].weight
    )  # 13 is no multiple of 3


def test_lookahead_goes_on_with_the_fast_weights():
    """Asking for checkpoints (which moves the slow weights in and out) leaves no trace."""
    recipe = Lookahead(k=5).apply(RECIPE)
    often = list(train(TASK, recipe, 0, {}, range(1, 14)))
    assert all(torch.equal(often[-1].raw[k], v) for k, v in last(recipe).items())


# sam


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_sam_is_algorithm_1(rho):
    def step(optimizer, gradient, update):
        parameters = optimizer.param_groups[0]["params"]
        gradient()
        g = [p.grad.clone() for p in parameters]
        norm = math.sqrt(sum(float(x.square().sum()) for x in g))
        here = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, x in zip(parameters, g, strict=True):
                p.add_(rho * x / norm)
        gradient()
        with torch.no_grad():
            for p, h in zip(parameters, here, strict=True):
                p.copy_(h)
        optimizer.step()

    policy, _ = reference(SGD, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), step)
    same(policy, last(SAM(rho=rho).apply(SGD)), atol=1e-5)


def test_sam_finds_the_gradient_at_the_worst_place_of_a_quadratic():
    """f = x^2 / 2 at x = 2: the worst place within 0.5 is 2.5, so a step of 0.1 ends at 1.75."""
    x = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    recipe = SAM(rho=0.5).apply(Recipe(optimizer="SGD", lr=0.1))
    optimizer = make_optimizer(recipe, [x])

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum() / 2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert x.item() == pytest.approx(1.75, abs=1e-12)


def test_sam_stays_where_the_gradient_is_zero():
    x = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(SAM().apply(Recipe(optimizer="SGD", lr=0.1)), [x])

    def closure():
        optimizer.zero_grad()
        x.square().sum().backward()
        return 0.0

    optimizer.step(closure)
    assert x.item() == 0


# the wrapper


def test_state_of_wrapped_optimizers_resumes():
    """Six steps, saved, loaded into a new optimizer, seven more: as thirteen."""
    recipe = Lookahead(k=4).apply(SAM().apply(RECIPE))

    def run(interrupted):
        torch.manual_seed(0)
        x = nn.Parameter(torch.randn(5))
        optimizer = make_optimizer(recipe, [x])
        for n in range(13):

            def closure(n=n, optimizer=optimizer):
                optimizer.zero_grad()
                loss = (x - torch.arange(5) * (n % 3)).square().sum()
                loss.backward()
                return loss.item()

            optimizer.step(closure)
            if interrupted and n == 5:
                state = optimizer.state_dict()
                optimizer = make_optimizer(recipe, [x])
                optimizer.load_state_dict(state)
        return x.detach().clone()

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("string", [*NAMES, "lookahead+sam", "schedule_free+sam"])
@pytest.mark.parametrize("recipe", [RECIPE, SGD], ids=["AdamW", "SGD"])
def test_training_goes_on_from_what_was_written_down_with_the_same_bits(string, recipe, tmp_path):
    stabilizer = parse(string)
    if string.startswith("schedule_free"):
        recipe = replace(recipe, optimizer_args={})
    recipe = stabilizer.apply(recipe)
    averages = {"average": stabilizer.average} if stabilizer.average else {}
    *_, whole = train(TASK, recipe, 0, averages, [5, 13])
    saved = next(train(TASK, recipe, 0, averages, [5]))
    files.save_tree(tmp_path / "state", saved.state())
    (end,) = train(TASK, recipe, 0, averages, [13], files.load_tree(tmp_path / "state"))
    assert all(torch.equal(end.raw[name], whole.raw[name]) for name in whole.raw)
    for name, average in whole.averages.items():
        assert all(torch.equal(end.averages[name][key], average[key]) for key in average)


def test_schedules_act_on_the_inner_optimizer():
    decayed = parse("lookahead+lr_decay").apply(RECIPE)
    assert not torch.equal(
        last(decayed)["layers.0.weight"], last(Lookahead().apply(RECIPE))["layers.0.weight"]
    )
    x = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(decayed, [x])
    optimizer.param_groups[0]["lr"] = 0.123
    assert optimizer.inner.param_groups[0]["lr"] == 0.123


def test_weight_decay_reaches_the_inner_optimizer():
    optimizer = make_optimizer(
        parse("weight_decay+sam").apply(RECIPE), [nn.Parameter(torch.zeros(1))]
    )
    assert optimizer.inner.param_groups[0]["weight_decay"] == 0.1


# schedule_free


def test_schedule_free_deploys_the_average():
    """Against the library used by hand; what stab deploys is its evaluation point x."""

    def step(optimizer, gradient, update):
        optimizer.train()
        gradient()
        optimizer.step()

    for base, made in (
        (
            RECIPE,
            lambda p: schedulefree.AdamWScheduleFree(
                p, lr=0.02, betas=(0.95, 0.999), warmup_steps=4
            ),
        ),
        (
            replace(SGD, optimizer_args={}),
            lambda p: schedulefree.SGDScheduleFree(p, lr=0.02, momentum=0.95, warmup_steps=4),
        ),
    ):
        recipe = ScheduleFree(beta=0.95, warmup=0.3, lr_factor=2.0).apply(base)
        policy, optimizer = reference(base, made, step)
        trained = {name: p.detach().clone() for name, p in policy.named_parameters()}
        optimizer.eval()
        found = last(recipe)
        same(policy, found, atol=1e-5)
        assert not torch.allclose(found["layers.0.weight"], trained["layers.0.weight"], atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(schedule="linear"), "the recipe has one: linear"),
        (Recipe(schedule_warmup=0.1), "a warm-up of its own: schedule_free:warmup="),
        (Recipe(optimizer="RMSprop"), "for AdamW and SGD"),
        (Recipe(optimizer="SGD", optimizer_args={"nesterov": True}), "has no nesterov"),
    ],
)
def test_schedule_free_refuses_what_it_cannot_serve(recipe, message):
    with pytest.raises(Incompatible, match=message):
        ScheduleFree().apply(recipe)


@pytest.mark.parametrize("string", ["schedule_free+lr_decay", "lr_decay+schedule_free", "recipe:schedule=cosine+schedule_free",
                                    "schedule_free+recipe:schedule=cosine", "layer_norm+recipe:policy=transformer",
                                    "recipe:policy=transformer+layer_norm", "recipe:optimizer=LBFGS+sam"])  # fmt: skip
def test_conflicts_are_refused_in_any_order(string):
    with pytest.raises(Incompatible):
        parse(string).apply(RECIPE)


# layer_norm


def test_layer_norm_keeps_the_policy_s_other_arguments():
    assert LayerNorm().apply(Recipe()).policy == "mlp:norm=layer"
    assert (
        LayerNorm().apply(Recipe(policy="mlp:width=64,norm=none,depth=3")).policy
        == "mlp:width=64,depth=3,norm=layer"
    )
    once = LayerNorm().apply(Recipe(policy="mlp:width=64"))
    assert LayerNorm().apply(once) == once
    with pytest.raises(Incompatible, match="for MLPs, the recipe's policy is transformer"):
        LayerNorm().apply(Recipe(policy="transformer:context=4"))


# power_ema


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25, 0.288])
def test_power_ema_has_the_width_it_is_named_after(sigma_rel):
    total = 4000
    weights = memory(PowerEMA(sigma_rel=sigma_rel), total, [total])[total]
    times = (np.arange(1, total + 1) - 0.5) / total
    mean = weights @ times
    gamma = PowerEMA(sigma_rel=sigma_rel).gamma
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-4)
    assert math.sqrt(weights @ (times - mean) ** 2) == pytest.approx(sigma_rel, abs=1e-4)


def test_power_ema_s_weights_are_differences_of_powers():
    total, average = 300, PowerEMA(sigma_rel=0.15)
    i, power = np.arange(1, total + 1), average.gamma + 1
    for t, weights in memory(average, total, [1, 7, 300]).items():
        expected = (i[:t] / t) ** power - ((i[:t] - 1) / t) ** power
        assert np.allclose(weights, expected, atol=1e-12)


def test_power_ema_s_memory_is_a_share_of_the_run():
    weights = memory(PowerEMA(), 4000, [1000, 4000])
    assert effective_half_life(weights[4000]) / effective_half_life(weights[1000]) == pytest.approx(
        4, rel=0.02
    )


def test_power_ema_s_variance_over_independent_iterates():
    weights, gamma = memory(PowerEMA(), 4000, [4000])[4000], PowerEMA().gamma
    assert weights @ weights == pytest.approx((gamma + 1) ** 2 / (2 * gamma + 1) / 4000, rel=1e-2)


def test_width_is_bounded_by_the_mean_of_all():
    assert PowerEMA(sigma_rel=0.288).gamma == pytest.approx(0, abs=0.02)
    with pytest.raises(StabError, match=r"expected a number in \[0.001, 0.288\]"):
        PowerEMA(sigma_rel=0.3)


# truncated_noise


def test_the_noise_has_a_pareto_tail():
    """P(R > r) = r^-alpha: the Hill estimate of the tail index, whose standard error is alpha / sqrt(n)."""
    torch.manual_seed(0)
    for alpha in (1.2, 2.5):
        drawn = pareto(alpha, (20_000,))
        assert drawn.min() >= 1
        assert 1 / drawn.log().mean().item() == pytest.approx(alpha, rel=5 / math.sqrt(20_000))


def test_the_noise_is_isotropic_and_the_cut_keeps_the_direction():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    drawn = []
    for _ in range(4000):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        AddNoise(alpha=1.5, scale=0.1)(parameters)
        drawn.append(torch.cat([p.grad.flatten() for p in parameters]))
    found = torch.stack(drawn)
    norms = found.norm(dim=1)
    assert norms.min() >= 0.1 - 1e-6
    assert (norms > 1.0).float().mean().item() == pytest.approx(10**-1.5, rel=0.5)
    directions = found / norms[:, None]
    assert directions.mean(0).abs().max() < 5 / math.sqrt(7 * 4000)
    assert torch.allclose(directions.T @ directions / 4000, torch.eye(7) / 7, atol=0.02)

    long = torch.full((3,), 5.0)
    parameters[0].grad, parameters[1].grad = long.clone(), torch.full((2, 2), -5.0)
    Truncate(threshold=0.5)(parameters)
    cut = torch.cat([p.grad.flatten() for p in parameters])
    assert cut.norm().item() == pytest.approx(0.5, rel=1e-6)
    assert torch.allclose(cut[:3], -cut[3:6])
    Truncate(threshold=0.51)(parameters)  # short enough: bitwise as it is
    assert torch.equal(torch.cat([p.grad.flatten() for p in parameters]), cut)


def test_the_noise_is_a_function_of_seed_and_update():
    recipe = TruncatedNoise(scale=0.5).apply(RECIPE)
    first, again, other = last(recipe), last(recipe), last(recipe, seed=1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    before = torch.get_rng_state()
    list(train(TASK, recipe, 0, {}, [3, 7]))
    assert torch.equal(before, torch.get_rng_state())


def test_the_update_of_sgd_is_bounded():
    """An update of SGD is at most eta times the threshold: 13 of them end within 13 eta b of the start."""
    recipe = TruncatedNoise(alpha=0.5, scale=10.0, threshold=0.2).apply(
        replace(SGD, optimizer_args={})
    )
    points = [p.raw for p in train(TASK, recipe, 0, {}, range(1, 14))]
    names = [name for name, _ in TASK.policy(recipe).named_parameters()]
    for one, following in itertools.pairwise(points):
        moved = math.sqrt(sum(float((following[k] - one[k]).square().sum()) for k in names))
        assert moved <= 0.01 * 0.2 * (1 + 1e-4)
        assert moved > 0.01 * 0.2 * 0.9  # noise of norm 10 and more is always cut


def test_arguments_out_of_range_are_refused():
    for string in (
        "truncated_noise:alpha=0",
        "clip:norm=-1",
        "lookahead:alpha=0",
        "sam:rho=-1",
        "schedule_free:beta=1",
    ):
        with pytest.raises(StabError, match="out of range"):
            parse(string)
