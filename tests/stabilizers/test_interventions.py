"""Interventions edit the recipe and nothing else."""

import copy
import dataclasses
import inspect
import re

import pytest

from stab.recipe import Recipe
from stab.registry import Incompatible, StabError
from stab.stabilizers import Intervention, parse, stabilizers
from stab.stabilizers.strings import Stabilizer

BUILT_IN = [n for n in stabilizers.names() if stabilizers.peek(n)]  # plug-ins are not loaded yet
NAMES = [n for n in BUILT_IN if issubclass(stabilizers.get(n), Intervention)]
OWN = {  # the recipe fields that are a built-in's business
    "none": set(),
    "accumulation": {"accumulation"},
    "lr_decay": {"schedule", "schedule_final", "schedule_power"},
    "weight_decay": {"weight_decay"},
    "dropout": {"dropout"},
    "recipe": set(),  # unless it is told what
}
BASES = [
    Recipe(),
    Recipe(
        policy="mlp:width=8",
        optimizer="SGD",
        optimizer_args={"momentum": 0.5},
        lr=0.1,
        schedule="cosine",
        schedule_final=0.25,
        schedule_power=3.0,
        weight_decay=0.3,
        dropout=0.2,
        batch_size=16,
        accumulation=3,
        updates=77,
    ),
]


def changed(before, after):
    return {
        f.name
        for f in dataclasses.fields(Recipe)
        if getattr(before, f.name) != getattr(after, f.name)
    }


@pytest.mark.parametrize("base", BASES, ids=["base", "other"])
@pytest.mark.parametrize("name", OWN)
def test_edits_its_own_fields_only(name, base):
    after = parse(name).apply(base)
    assert changed(base, after) <= OWN[name]
    assert bool(changed(base, after)) == bool(OWN[name])


@pytest.mark.parametrize("base", BASES, ids=["base", "other"])
@pytest.mark.parametrize("name", NAMES)
def test_pure(name, base):
    method = stabilizers.get(name)()
    before = copy.deepcopy(base)
    first = method.apply(base)
    assert base == before
    assert method.apply(base) == first
    assert method.apply(base).key == first.key


@pytest.mark.parametrize("base", BASES, ids=["base", "other"])
@pytest.mark.parametrize("name", NAMES)
def test_neutral_arguments_give_an_equal_recipe(name, base):
    cls = stabilizers.get(name)
    neutral = cls(**cls.neutral)
    assert neutral.apply(base) == base
    assert neutral.apply(base).key == base.key


@pytest.mark.parametrize("name", [n for n in OWN if n != "none"])
def test_every_intervention_declares_neutral_arguments(name):
    assert stabilizers.get(name).neutral


def test_what_each_does_to_the_base_recipe():
    base = Recipe()
    assert parse("none").apply(base) == base
    assert parse("accumulation").apply(base) == Recipe(accumulation=4)
    assert parse("accumulation:steps=2").apply(base).samples == 2 * base.samples
    assert parse("lr_decay").apply(base) == Recipe(schedule="linear", schedule_final=0.0)
    assert parse("lr_decay:shape=cosine,final=0.1").apply(base) == Recipe(
        schedule="cosine", schedule_final=0.1
    )
    assert parse("lr_decay:shape=polynomial,power=2").apply(base) == Recipe(
        schedule="polynomial", schedule_power=2.0
    )
    assert parse("weight_decay").apply(base) == Recipe(weight_decay=0.1)
    assert parse("weight_decay:coefficient=0.01").apply(base) == Recipe(weight_decay=0.01)
    assert parse("dropout").apply(base) == Recipe(dropout=0.1)
    assert parse("dropout:p=0.5").apply(base) == Recipe(dropout=0.5)


def test_accumulation_multiplies_and_weight_decay_adds():
    base = BASES[1]
    assert parse("accumulation:steps=5").apply(base).accumulation == 15
    assert parse("weight_decay:coefficient=0.1").apply(base).weight_decay == pytest.approx(
        0.3 + 0.1
    )
    assert parse("accumulation:steps=2+accumulation:steps=3").apply(Recipe()).accumulation == 6


def test_applied_left_to_right():
    assert parse("dropout:p=0.2+dropout:p=0.4").apply(Recipe()).dropout == 0.4
    assert parse("dropout:p=0.4+dropout:p=0.2").apply(Recipe()).dropout == 0.2
    assert parse("lr_decay:shape=cosine+lr_decay").apply(Recipe()).schedule == "linear"
    assert parse("lr_decay+lr_decay:shape=cosine").apply(Recipe()).schedule == "cosine"


def test_composition_is_application_in_turn():
    string = "accumulation:steps=2+lr_decay:final=0.1+weight_decay+dropout"
    recipe = Recipe()
    for part in string.split("+"):
        recipe = parse(part).apply(recipe)
    assert parse(string).apply(Recipe()) == recipe
    assert changed(Recipe(), recipe) == {
        "accumulation",
        "schedule",
        "schedule_final",
        "weight_decay",
        "dropout",
    }


def test_an_average_leaves_the_recipe_alone():
    """So that it rides on the very same trajectory."""
    for name in ("ema", "polyak", "swa"):
        assert parse(name).apply(Recipe()).key == Recipe().key
        assert (
            parse(f"lr_decay+{name}").apply(Recipe()).key == parse("lr_decay").apply(Recipe()).key
        )


def test_a_finished_recipe_is_checked_by_all_interventions():
    class NoSchedule(Intervention):
        def apply(self, recipe):
            return recipe

        def check(self, recipe):
            if recipe.schedule != "constant":
                raise Incompatible(f"no schedule, please: {recipe.schedule}")

    decay = parse("lr_decay").interventions
    for parts in ((NoSchedule(), *decay), (*decay, NoSchedule())):
        with pytest.raises(Incompatible, match="no schedule, please: linear"):
            Stabilizer("", parts).apply(Recipe())
    assert Stabilizer("", (NoSchedule(),)).apply(Recipe()) == Recipe()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "recipe"]
)  # whose ranges are the recipe's own
@pytest.mark.parametrize("value", [None, "x", True, float("nan"), -1, [1]], ids=str)
def test_a_value_outside_the_declared_range_is_refused(name, value):
    cls = stabilizers.get(name)
    for field in dataclasses.fields(cls):
        with pytest.raises(StabError, match=f"{field.name}=.*expected"):
            cls(**{field.name: value})


@pytest.mark.parametrize("name", BUILT_IN)
def test_methods_are_frozen_and_document_their_arguments(name):
    cls = stabilizers.get(name)
    assert cls.__doc__
    method = cls()
    for field in dataclasses.fields(cls):
        assert field.metadata["doc"]
        assert field.metadata["expected"]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, field.default)


@pytest.mark.parametrize("name", BUILT_IN)
def test_docstrings_give_formula_suggestions_cost_and_source(name):
    text = inspect.getdoc(stabilizers.get(name))
    assert all(item in text for item in ("Suggested: ", "Cost: ", "Source: "))
    assert re.search(r"[=<]|theta", text)


def test_a_power_without_the_polynomial_shape_is_an_error():
    with pytest.raises(StabError, match="add shape=polynomial"):
        parse("lr_decay:power=2")
