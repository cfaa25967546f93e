"""The recipe: its ranges, its key, and its schedules against torch's own."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stab.recipe import SCHEDULES, Call, Recipe, load_object
from stab.registry import StabError

nan, inf = math.nan, math.inf
OUT_OF_RANGE = {
    "lr": [0, -1e-3, nan, inf],
    "schedule": ["step", "", "Linear"],
    "schedule_power": [0, -1.0, inf, nan],
    "schedule_final": [-0.1, 1.1, nan],
    "schedule_warmup": [-0.1, 1.0, nan],
    "weight_decay": [-1e-9, inf, nan],
    "dropout": [-0.1, 1, 1.0, nan],
    "batch_size": [0, -1],
    "accumulation": [0, -4],
    "updates": [0, -1],
}
IN_RANGE = {
    "lr": [1e-12, 10.0],
    "schedule": list(SCHEDULES),
    "schedule_power": [1e-3, 100.0],
    "schedule_final": [0.0, 1.0],
    "schedule_warmup": [0.0, 0.99],
    "weight_decay": [0.0, 5.0],
    "dropout": [0.0, 0.999],
    "batch_size": [1],
    "accumulation": [1],
    "updates": [1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OUT_OF_RANGE.items() for v in vs])
def test_out_of_range(name, value):
    with pytest.raises(StabError, match=f"train.{name}=.*expected") as caught:
        Recipe(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["batch_size", "accumulation", "updates"])
def test_counts_are_integers(name):
    with pytest.raises(StabError, match="expected an integer >= 1"):
        Recipe(**{name: 2.5})


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in IN_RANGE.items() for v in vs])
def test_the_ends_of_the_ranges(name, value):
    assert getattr(Recipe(**{name: value}), name) == value


def test_the_base_recipe():
    base = Recipe()
    assert base.optimizer == "torch.optim:AdamW"
    assert (base.lr, base.schedule, base.weight_decay, base.dropout) == (1e-3, "constant", 0, 0)
    assert (base.batch_size, base.accumulation, base.updates) == (256, 1, 6000)
    assert base.samples == 256 * 6000
    assert replace(base, accumulation=4).samples == 4 * 256 * 6000


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Recipe().lr = 1.0


def test_one_spelling_of_the_optimizer():
    short, long = Recipe(optimizer="AdamW"), Recipe(optimizer="torch.optim:AdamW")
    assert short == long
    assert short.key == long.key
    assert Recipe(optimizer="SGD").optimizer == "torch.optim:SGD"


CALL = Call("torch.nn.utils:clip_grad_norm_", {"max_norm": 1.0})
CHANGES = [
    {},
    {"policy": "mlp:width=32"},
    {"optimizer": "SGD"},
    {"optimizer_args": {"momentum": 0.9}},
    {"optimizer_args": {"momentum": 0.9, "nesterov": True}},
    {"lr": 2e-3},
    {"schedule": "linear"},
    {"schedule": "polynomial"},
    {"schedule_power": 2.0},
    {"schedule_final": 0.5},
    {"schedule_warmup": 0.1},
    {"weight_decay": 0.1},
    {"dropout": 0.1},
    {"batch_size": 128},
    {"accumulation": 2},
    {"gradient_transforms": (CALL,)},
    {"gradient_transforms": (CALL, CALL)},
    {"updates": 100},
]


def test_recipes_and_keys_differ_together():
    recipes = [Recipe(**change) for change in CHANGES]
    assert len({r.key for r in recipes}) == len(recipes)
    assert all((a == b) == (i == j) for i, a in enumerate(recipes) for j, b in enumerate(recipes))


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_round_trip_through_json(change):
    recipe = Recipe(**change)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.key == recipe.key


def test_the_key_is_stable():
    assert len(Recipe().key) == 12
    assert set(Recipe().key) <= set("0123456789abcdef")
    one = Recipe(optimizer_args={"betas": [0.9, 0.99], "eps": 1e-7})
    other = Recipe(optimizer_args={"eps": 1e-7, "betas": [0.9, 0.99]})
    assert one == other
    assert one.key == other.key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"weight_decay": 0}, {"weight_decay": 0.0}),
        ({"dropout": 0}, {"dropout": 0.0}),
        ({"lr": 1}, {"lr": 1.0}),
        ({"schedule_final": 1}, {"schedule_final": 1.0}),
        ({"schedule_power": 2}, {"schedule_power": 2.0}),
        ({"optimizer_args": {"momentum": 0}}, {"optimizer_args": {"momentum": 0.0}}),
    ],
    ids=str,
)
def test_equal_recipes_have_equal_keys(one, other):
    """Cells are grouped by key: two keys of one recipe would train it twice."""
    assert Recipe(**one) == Recipe(**other)
    assert Recipe(**one).key == Recipe(**other).key


def test_transforms_may_be_plain_data():
    assert Recipe(gradient_transforms=({"object": CALL.object, "args": CALL.args},)) == Recipe(
        gradient_transforms=(CALL,)
    )


# Schedules

UPDATES, LR = 40, 0.25
TORCH = {
    ("constant", 0.0, 1.0): lambda o: torch.optim.lr_scheduler.ConstantLR(
        o, factor=1.0, total_iters=UPDATES
    ),
    ("linear", 0.0, 1.0): lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, UPDATES),
    ("linear", 0.1, 1.0): lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, UPDATES),
    ("cosine", 0.0, 1.0): lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, UPDATES),
    ("cosine", 0.2, 1.0): lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(
        o, UPDATES, eta_min=0.2 * LR
    ),
    ("polynomial", 0.0, 1.0): lambda o: torch.optim.lr_scheduler.PolynomialLR(
        o, UPDATES, power=1.0
    ),
    ("polynomial", 0.0, 2.5): lambda o: torch.optim.lr_scheduler.PolynomialLR(
        o, UPDATES, power=2.5
    ),
    ("polynomial", 0.0, 0.5): lambda o: torch.optim.lr_scheduler.PolynomialLR(
        o, UPDATES, power=0.5
    ),
}


@pytest.mark.parametrize("case", TORCH, ids=str)
def test_lr_factor_is_torchs_schedule(case):
    schedule, final, power = case
    recipe = Recipe(
        lr=LR, schedule=schedule, schedule_final=final, schedule_power=power, updates=UPDATES
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = TORCH[case](optimizer)
    for update in range(UPDATES + 1):
        assert LR * recipe.lr_factor(update) == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-9, abs=1e-12
        )
        optimizer.step()
        scheduler.step()


@given(
    st.sampled_from(SCHEDULES),
    st.floats(0, 1),
    st.floats(0.1, 5),
    st.integers(1, 200),
    st.integers(0, 400),
)
def test_lr_factor_falls_from_one_to_the_final_fraction(schedule, final, power, updates, update):
    recipe = Recipe(schedule=schedule, schedule_final=final, schedule_power=power, updates=updates)
    end = 1.0 if schedule == "constant" else final
    assert recipe.lr_factor(0) == pytest.approx(1)
    assert recipe.lr_factor(updates) == pytest.approx(end, abs=1e-12)
    assert recipe.lr_factor(updates + update) == recipe.lr_factor(updates)
    assert end - 1e-12 <= recipe.lr_factor(update) <= 1 + 1e-12
    assert recipe.lr_factor(update + 1) <= recipe.lr_factor(update) + 1e-12


# Objects by name


@pytest.mark.parametrize("decay", ["constant", "linear"])
def test_warmup_is_torchs_too(decay):
    """1 / 30 of lr at the first update, all of it from the 30th on, times what the schedule says."""
    recipe = Recipe(lr=LR, schedule=decay, schedule_warmup=0.3, updates=100)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 30, 1.0, 29)
    falling = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0 if decay == "linear" else 1.0, 100
    )
    for update in range(100):
        assert LR * recipe.lr_factor(update) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        rising.step()
        falling.step()


def test_recipes_without_a_warmup_keep_the_keys_of_earlier_versions():
    assert Recipe().key == "2109ac43a735"
    assert Recipe(lr=0.01, schedule="linear").key == "fd3cce8df46b"
    assert "schedule_warmup" not in Recipe().to_dict()
    warm = Recipe(schedule_warmup=0.1)
    assert warm.key != Recipe().key
    assert Recipe.from_dict(warm.to_dict()) == warm


def test_load_object():
    assert load_object("torch.optim:SGD") is torch.optim.SGD


@pytest.mark.parametrize(
    "path",
    ["nowhere.at.all:X", "torch.optim:Nope", "torch.optim", "torch.optim:", ":SGD", "", "a b:c"],
)
def test_load_object_says_what_is_wrong(path):
    with pytest.raises(StabError, match="expected module:Object"):
        load_object(path)
