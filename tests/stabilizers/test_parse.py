"""The grammar of stabilizer strings."""

import dataclasses
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stab.recipe import Recipe
from stab.registry import StabError
from stab.stabilizers import Average, expand, parse, split, stabilizers
from stab.stabilizers.accumulation import Accumulation
from stab.stabilizers.ema import EMA
from stab.stabilizers.lr_decay import LRDecay
from stab.stabilizers.polyak import Polyak
from stab.stabilizers.recipe import SETTINGS
from stab.stabilizers.strings import fold, method, slug
from stab.stabilizers.swa import SWA
from stab.stabilizers.weight_decay import WeightDecay

CANONICAL = {
    "none": "none",
    "ema": "ema",
    "  ema  ": "ema",
    "ema:half_life=500,alpha=0.67": "ema:alpha=0.67,half_life=500",
    "ema: alpha = 0.67 , half_life = 500 ": "ema:alpha=0.67,half_life=500",
    "ema:half_life=0.05": "ema",
    "ema:half_life=0.05,burn_in=0.1,alpha=1": "ema",
    "ema:burn_in=0": "ema:burn_in=0",
    "lr_decay+ema": "lr_decay+ema",
    "lr_decay + ema": "lr_decay+ema",
    "lr_decay:shape=linear+ema:half_life=500": "lr_decay+ema:half_life=500",
    "lr_decay:final=1e-1+swa:every=50": "lr_decay:final=0.1+swa:every=50",
    "weight_decay:coefficient=1e+3+ema": "weight_decay:coefficient=1000.0+ema",
    "weight_decay:coefficient=1e+30+ema": "weight_decay:coefficient=1e+30+ema",
    "accumulation:steps=4": "accumulation",
    "none+ema": "ema",
    "none+none": "none",
    "accumulation+none+dropout": "accumulation+dropout",
    "dropout+lr_decay+weight_decay": "dropout+lr_decay+weight_decay",
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_form(text):
    assert parse(text).string == CANONICAL[text]


def test_what_a_string_stands_for():
    found = parse(
        "accumulation:steps=2+lr_decay:shape=cosine,final=0.1+ema:half_life=500,alpha=0.67"
    )
    assert found.interventions == (Accumulation(2), LRDecay("cosine", 0.1))
    assert found.average == EMA(half_life=500, alpha=0.67)
    assert found.raw == "accumulation:steps=2+lr_decay:final=0.1,shape=cosine"
    assert parse("polyak:start=0.5").average == Polyak(0.5)
    assert parse("polyak:start=5").average == Polyak(5)
    assert parse("swa").average == SWA(0.25, 100)
    assert parse("weight_decay").average is None
    assert parse("weight_decay").interventions == (WeightDecay(0.1),)


@pytest.mark.parametrize(
    ("text", "raw"),
    [("ema", "none"), ("none", "none"), ("lr_decay", "lr_decay"), ("none+swa", "none")],
)
def test_raw_is_the_string_without_its_average(text, raw):
    assert parse(text).raw == raw


@pytest.mark.parametrize("name", stabilizers.names())
def test_every_name_is_its_own_canonical_form(name):
    found = parse(name)
    assert found.string == name
    assert (found.average is not None) == issubclass(stabilizers.get(name), Average)


def test_an_integer_means_updates_and_a_fraction_a_fraction():
    assert type(parse("ema:half_life=500").average.half_life) is int
    assert type(parse("ema:half_life=0.5").average.half_life) is float
    assert parse("ema:half_life=500") != parse("ema:half_life=501")


@pytest.mark.parametrize(
    ("text", "same"), [("none+ema", "ema"), ("none+lr_decay", "lr_decay"), ("none+none", "none")]
)
def test_none_in_a_composition_is_nothing(text, same):
    assert parse(text) == parse(same)


# Lists


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("none", ["none"]),
        ("none,ema", ["none", "ema"]),
        ("none, ema , swa", ["none", "ema", "swa"]),
        (
            "none,ema:half_life=500,alpha=0.67,lr_decay+ema",
            ["none", "ema:half_life=500,alpha=0.67", "lr_decay+ema"],
        ),
        ("ema:half_life=500,alpha=0.67", ["ema:half_life=500,alpha=0.67"]),
        (
            "lr_decay:shape=cosine,final=0.1+ema:half_life=5,burn_in=0,swa",
            ["lr_decay:shape=cosine,final=0.1+ema:half_life=5,burn_in=0", "swa"],
        ),
        ("lr_decay:shape=cosine,final=0.1+ema,swa", ["lr_decay:shape=cosine,final=0.1+ema", "swa"]),
        (
            "weight_decay:coefficient=1e+3,lr_decay:final=0.1,ema",
            ["weight_decay:coefficient=1e+3", "lr_decay:final=0.1", "ema"],
        ),
        ("ema:alpha=0.5,half_life=3,ema:alpha=0.6", ["ema:alpha=0.5,half_life=3", "ema:alpha=0.6"]),
    ],
)
def test_split(text, parts):
    assert split(text) == parts
    for part in parts:
        parse(part)


@pytest.mark.parametrize("text", ["", ",", "none,,ema", "none,", ",ema", "alpha=0.5,ema"])
def test_an_empty_or_dangling_piece_of_a_list_is_an_error_not_a_surprise(text):
    with pytest.raises(StabError):
        [parse(part) for part in split(text)]


atoms = st.one_of(
    st.sampled_from(["lr_decay", "dropout", "accumulation"]),
    st.builds(
        "lr_decay:final={},shape={}".format,
        st.floats(0, 1),
        st.sampled_from(["linear", "cosine", "polynomial"]),
    ),
    st.builds("weight_decay:coefficient={}".format, st.floats(0, 1e40)),
    st.builds("accumulation:steps={}".format, st.integers(1, 99)),
    st.builds("dropout:p={}".format, st.floats(0, 0.999)),
)
moments = st.one_of(st.integers(0, 10**7), st.floats(0, 1, exclude_max=True, allow_subnormal=False))
lengths = moments.filter(lambda m: m > 0)
averages = st.one_of(
    st.sampled_from(["ema", "polyak", "swa"]),
    st.builds(
        "ema:half_life={},burn_in={},alpha={}".format,
        lengths,
        moments,
        st.floats(0, 1, exclude_min=True),
    ),
    st.builds("polyak:start={}".format, moments),
    st.builds("swa:every={},start={}".format, st.integers(1, 10**6), moments),
)
strings = st.builds(
    lambda parts, last: "+".join([*parts, last]), st.lists(atoms, max_size=3), averages
)


@settings(max_examples=150, deadline=None)
@given(strings)
def test_the_canonical_form_parses_to_the_same(text):
    first = parse(text)
    again = parse(first.string)
    assert again == first
    assert again.string == first.string
    assert again.apply(Recipe()) == first.apply(Recipe())


@settings(max_examples=80, deadline=None)
@given(st.lists(strings, min_size=1, max_size=4), st.sampled_from([",", ", ", " , "]))
def test_a_list_of_strings_splits_into_them(texts, comma):
    assert [parse(part) for part in split(comma.join(texts))] == [parse(text) for text in texts]


@settings(max_examples=80, deadline=None)
@given(strings, strings)
def test_slugs_are_file_names_and_differ_where_strings_do(text, other):
    one, two = parse(text), parse(other)
    assert not set(slug(one.string)) & set(":+/\\ ")
    assert (slug(one.string) == slug(two.string)) == (one.string == two.string)


# Errors


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("emma", ["Unknown stabilizer 'emma'", "Did you mean 'ema'", "polyak"]),
        (
            "ema:half_live=5",
            ["no argument 'half_live'", "Did you mean 'half_life'", "burn_in", "alpha"],
        ),
        ("ema:beta=5", ["no argument 'beta'", "half_life", "burn_in", "alpha"]),
        ("none:x=1", ["no argument 'x'", "it takes none"]),
        ("ema:alpha=0", ["alpha=0.0", "out of range", "(0, 1]", "'ema'"]),
        ("ema:alpha=1.5", ["alpha=1.5", "(0, 1]"]),
        ("ema:alpha=nan", ["alpha=nan", "(0, 1]"]),
        ("ema:half_life=0", ["half_life=0", "(0, 1)"]),
        ("ema:half_life=-3", ["half_life=-3"]),
        ("ema:half_life=1.0", ["half_life=1.0"]),
        ("ema:burn_in=1.5", ["burn_in=1.5", "[0, 1)"]),
        ("ema:half_life=abc", ["half_life=abc", "(0, 1)"]),
        ("swa:every=0", ["every=0", "integer >= 1"]),
        ("swa:every=2.5", ["every=2.5", "integer >= 1"]),
        ("accumulation:steps=0", ["steps=0", "integer >= 1"]),
        ("accumulation:steps=1.5", ["steps=1.5", "integer >= 1"]),
        ("dropout:p=1", ["p=1", "[0, 1)"]),
        ("weight_decay:coefficient=-1", ["coefficient=-1", ">= 0"]),
        ("weight_decay:coefficient=inf", ["coefficient=inf", ">= 0"]),
        ("lr_decay:shape=step", ["shape='step'", "linear, cosine or polynomial"]),
        ("lr_decay:final=2", ["final=2", "[0, 1]"]),
        ("lr_decay:power=0", ["power=0", "> 0"]),
        ("ema:alpha=0.5,alpha=0.6", ["'alpha' is given twice"]),
        ("ema:half_life=5,half_life=5", ["'half_life' is given twice"]),
        ("ema+lr_decay", ["an average comes last"]),
        ("ema+swa", ["only one"]),
        ("ema:half_life", ["is not key=value", "half_life"]),
        ("ema:half_life=", ["is not key=value", "half_life"]),
        ("ema:5", ["is not key=value", "half_life"]),
        ("ema:", ["expected name or name:key=value"]),
        ("", ["expected name or name:key=value"]),
        ("   ", ["expected name or name:key=value"]),
        (":alpha=1", ["expected name or name:key=value"]),
        ("+ema", []),
        ("ema+", []),
        ("lr_decay++ema", []),
        ("EMA", ["Unknown stabilizer 'EMA'"]),
        ("ema;swa", ["Unknown stabilizer"]),
        ("__class__", ["Unknown stabilizer"]),
    ],
)
def test_errors_say_what_is_wrong_and_what_would_be_right(text, parts):
    with pytest.raises(StabError) as caught:
        parse(text)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


alphabet = st.text(alphabet="ema:=+,. _0159-swlr_decay\t\né%", max_size=30)


def never_another_error(text):
    for function in (parse, split):
        said = "parsed"
        try:
            function(text)
        except StabError as e:
            said = str(e)
        assert said.strip()


@settings(max_examples=300, deadline=None)
@given(st.one_of(alphabet, st.text(max_size=20)))
@example("ema:half_life=" + "9" * 5000)
@example("ema:alpha=" + "9" * 500)
@example("weight_decay:coefficient=1e999")
@example("ema:half_life=1_0")
@example("ema:half_life=\u0663")
@example("none" + "+none" * 200)
@example("\x00")
def test_any_text_parses_or_is_a_stab_error(text):
    never_another_error(text)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["ema", "polyak", "swa", "lr_decay", "dropout", "accumulation"]),
    st.sampled_from(
        ["half_life", "burn_in", "alpha", "start", "every", "shape", "final", "power", "p", "steps"]
    ),
    st.one_of(st.text(max_size=6), st.floats().map(str), st.integers().map(str)),
)
def test_any_value_is_taken_or_is_a_stab_error(name, key, value):
    never_another_error(f"{name}:{key}={value}")


def test_numbers_that_no_float_holds_are_out_of_range():
    for make in (lambda: EMA(alpha=10**400), lambda: WeightDecay(coefficient=10**400)):
        with pytest.raises(StabError, match="out of range"):
            make()


def test_canonical_arguments_are_in_alphabetical_order():
    arguments = re.findall(r"(\w+)=", parse("ema:half_life=7,burn_in=3,alpha=0.5").string)
    assert arguments == ["alpha", "burn_in", "half_life"]


def test_alternatives_are_spelled_with_bars():
    assert expand("ema:half_life=100|300") == ["ema:half_life=100", "ema:half_life=300"]
    assert expand("ema:half_life=100|300,alpha=0.67,polyak") == [
        "ema:alpha=0.67,half_life=100",
        "ema:alpha=0.67,half_life=300",
        "polyak",
    ]
    assert expand("ema:half_life=100|300,alpha=0.5|1") == [
        "ema:alpha=0.5,half_life=100",
        "ema:half_life=100",
        "ema:alpha=0.5,half_life=300",
        "ema:half_life=300",
    ]
    assert expand("lr_decay:final=0.1|0.2+ema|polyak") == [
        "lr_decay:final=0.1+ema",
        "lr_decay:final=0.1+polyak",
        "lr_decay:final=0.2+ema",
        "lr_decay:final=0.2+polyak",
    ]
    assert expand("ema,ema:half_life=0.05") == ["ema"]


@pytest.mark.parametrize(
    "text", ["ema:half_life=100|", "ema:half_life=|100", "ema||polyak", "emma", "ema:half_live=1|2"]
)
def test_what_spells_nothing_is_refused(text):
    with pytest.raises(StabError):
        expand(text)


def test_alternatives_of_names_compose_with_those_of_values():
    assert expand("none|lr_decay+ema:half_life=30|40") == [
        "ema:half_life=30",
        "ema:half_life=40",
        "lr_decay+ema:half_life=30",
        "lr_decay+ema:half_life=40",
    ]


@pytest.mark.parametrize(
    "text", ["none|lr_decay+" * 14 + "ema", "ema:half_life=" + "|".join(map(str, range(10_001)))]
)
def test_too_many_alternatives_are_refused(text):
    with pytest.raises(StabError, match="spells more than 10000 stabilizers"):
        expand(text)


SPELLED = [
    "none",
    "ema",
    "ema:half_life=100|300",
    "recipe:lr=0.0003|0.003+lr_decay+ema:half_life=100|300,alpha=0.5|0.67",
    "recipe:lr=0.1|0.2,policy=mlp:width=128;depth=3+polyak",
    "recipe:lr=0.1|0.2+polyak",
    "recipe:lr=0.1|0.2,policy=mlp:width=64+polyak",
    "lr_decay:shape=cosine|linear",
]


@given(st.lists(st.sampled_from(SPELLED), max_size=6), st.randoms())
def test_folding_loses_nothing(lists, rng):
    strings = list(dict.fromkeys(s for text in lists for s in expand(text)))
    rng.shuffle(strings)
    kept = strings[: rng.randint(0, len(strings))]
    folded = fold(kept)
    assert sorted(s for text in folded for s in expand(text)) == sorted(kept)
    assert len(folded) <= len(kept)


def test_folding_is_short():
    assert fold(expand("ema:half_life=100|300,recipe:lr=0.1|0.2+swa,polyak")) == [
        "ema:half_life=100|300",
        "recipe:lr=0.1|0.2+swa",
        "polyak",
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("none", "none"),
        ("recipe:lr=0.1", "none"),
        ("recipe:policy=mlp:width=128;depth=3+ema:half_life=3", "ema"),
        ("recipe:lr=0.1+lr_decay:final=0.1+ema", "lr_decay+ema"),
        ("gone:away=1+ema", "gone+ema"),  # a plug-in that was uninstalled
    ],
)
def test_the_method_is_what_is_left_without_numbers(text, kind):
    assert method(text) == kind


def test_arguments_by_name():
    found = parse("recipe:lr=0.1+lr_decay:final=0.1+ema:half_life=3").arguments
    assert found == {
        "lr_decay.shape": "linear",
        "lr_decay.final": 0.1,
        "lr_decay.power": 1.0,
        "ema.half_life": 3,
        "ema.burn_in": 0.1,
        "ema.alpha": 1.0,
    }
    assert parse("none").arguments == parse("recipe:lr=0.1").arguments == {}


def test_recipe_settings_edit_what_they_name_and_nothing_else():
    base = Recipe(updates=77, weight_decay=0.2)
    found = parse("recipe:lr=3e-4,batch_size=64,policy=mlp:width=128;depth=3,optimizer=SGD").apply(
        base
    )
    assert found == Recipe(
        updates=77,
        weight_decay=0.2,
        lr=3e-4,
        batch_size=64,
        policy="mlp:width=128,depth=3",
        optimizer="SGD",
    )
    assert parse("recipe").apply(base) == base
    # Left to right: the last one wins.
    assert parse("recipe:dropout=0.3+dropout").apply(base).dropout == 0.1
    assert parse("dropout+recipe:dropout=0.3").apply(base).dropout == 0.3


def test_recipe_settings_are_all_that_may_differ_between_entries():
    every = {f.name for f in dataclasses.fields(Recipe)}
    assert every - set(SETTINGS) == {"optimizer_args", "gradient_transforms", "updates", "device"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe:lr=-1", "train.lr=-1.0 is out of range: expected a number > 0"),
        ("recipe:lr=fast", "lr=fast is not valid: expected a number > 0"),
        ("recipe:updates=3", "has no argument 'updates'"),
        ("recipe:batch_size=0", "train.batch_size=0 is out of range"),
        ("recipe:schedule=steps", "train.schedule='steps' is out of range"),
    ],
)
def test_recipe_settings_out_of_range_are_refused(text, said):
    with pytest.raises(StabError, match=re.escape(said)):
        parse(text)


def test_a_list_may_hold_a_policy_s_colon_behind_its_key():
    assert split("recipe:lr=0.1,policy=mlp:width=8,ema") == [
        "recipe:lr=0.1,policy=mlp:width=8",
        "ema",
    ]


@given(
    st.lists(
        st.sampled_from(
            ["ema", "lr_decay", "recipe", ":", "+", "=", ",", "|", ";", "lr", "0.1", "mlp"]
        ),
        max_size=14,
    )
)
def test_any_list_with_alternatives_expands_or_is_a_stab_error(pieces):
    said = "expanded"
    try:
        expand("".join(pieces))
    except StabError as e:
        said = str(e)
    assert said.strip()
    assert "\n" not in said


def test_long_strings_have_short_file_names_of_their_own():
    long = [f"recipe:lr=0.1,optimizer={'a' * 200}{n}+ema" for n in (1, 2)]
    assert len({slug(one) for one in long}) == 2
    assert all(len(slug(one)) <= 120 for one in long)
    assert slug("lr_decay:final=0.1+ema") == "lr_decay-final=0.1--ema"
