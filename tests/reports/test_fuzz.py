"""Whatever a run folder, a configuration or an override holds: a result, or one clear line.

``STAB_FUZZ=10000 pytest -m fuzz`` tries that many of each, other ones every time; each must end
within 10 seconds, and all of them in 1 GB.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stab import StabError
from stab.config import Config, load
from stab.recipe import Recipe
from stab.reports import sheets, statistics, sweep, table
from stab.run.plan import make_config, make_plan
from stab.stabilizers import parse

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "",
            "..",
            "../../x",
            "${oc.env:HOME}",
            "${x}",
            "none",
            "ema",
            "os:system",
            "0x1",
            "1e999",
            "\x00",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
pytestmark = pytest.mark.fuzz
EXTENDED = "STAB_FUZZ" in os.environ
EXAMPLES = int(os.environ.get("STAB_FUZZ", "150"))  # of each; more by hand
many = settings(
    max_examples=EXAMPLES,
    derandomize=not EXTENDED,  # the same ones every time
    deadline=timedelta(seconds=10) if EXTENDED else None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Of the whole process, libraries included."""
    yield
    if EXTENDED:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
        assert peak < 1, f"{peak:.2f} GB"


@pytest.fixture
def results(run):
    return statistics.read(run)


def clean(function, *arguments, also=()):
    """Return a result, or None after one clear line."""
    said = "said"
    try:
        return function(*arguments)
    except StabError as e:
        said = str(e)
    except also:
        pass
    assert said.strip()
    assert "\n" not in said
    return None


def changed(data, rng, value):
    """Return data with one thing in it replaced by ``value``, deleted, repeated or cut off, anywhere."""
    data = copy.deepcopy(data)
    at, steps = data, rng.randrange(1, 7)
    for step in range(steps):
        keys = (
            list(at)
            if isinstance(at, dict)
            else list(range(len(at)))
            if isinstance(at, list)
            else []
        )
        if not keys:
            return value
        key = rng.choice(keys)
        if step == steps - 1 or not isinstance(at[key], dict | list):
            how = rng.random()
            if how < 0.7:
                at[key] = value
            elif how < 0.85:
                del at[key]
            elif isinstance(at, list):
                at.append(at[key])
            return data
        at = at[key]
    return data


FILES = ["cells/*.json", "timings/*.json", "run.json", "skipped.json", "failures/*.json"]


@many
@given(value=junk, seed=st.integers(0, 2**32), which=st.sampled_from(FILES))
def test_a_run_folder_with_anything_in_it(run, value, seed, which):
    rng = random.Random(seed)
    path = sorted(run.glob(which))[0]
    whole = path.read_text()
    try:
        path.write_text(json.dumps(changed(json.loads(whole), rng, value)))
        results = clean(statistics.read, run)
        if results is not None:
            leaderboard = clean(statistics.leaderboard, results)
            if leaderboard is not None:
                json.dumps(leaderboard, allow_nan=False)
                table.to_csv(leaderboard)
                sheets.markdown(table.sheets(leaderboard))
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("which", FILES)
def test_a_truncated_file_is_named(run, which):
    path = sorted(run.glob(which))[0]
    whole = path.read_bytes()
    try:
        for content in (b"", whole[: len(whole) // 2], b"\xff\xfe\x00", b"[" * 100_000):
            path.write_bytes(content)
            with pytest.raises(StabError, match=path.name):
                statistics.read(run)
    finally:
        path.write_bytes(whole)


@many
@given(value=junk)
def test_settings_from_anything(value):
    found = clean(load, value if isinstance(value, dict) else {"train": value})
    assert found is None or isinstance(found, Config)


@many
@given(value=junk, seed=st.integers(0, 2**32))
def test_settings_with_anything_in_them(value, seed):
    found = clean(
        load,
        changed(
            Config(tasks=("hopper",), stabilizers=("ema",)).to_dict(), random.Random(seed), value
        ),
    )
    assert found is None or isinstance(found, Config)


@many
@given(
    text=st.text(max_size=60)
    | st.from_regex(
        r"(train|eval|data|tasks|seeds)(\.[a-z_]{1,8})?[:=] ?[-\[\]{}&*!0-9a-z.,\n]{0,20}"
    )
)
def test_a_configuration_file_of_any_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = clean(load, path)
    assert found is None or isinstance(found, Config)


@many
@given(
    text=st.text(max_size=40)
    | st.from_regex(r"(train|eval|data)\.(lr|updates|starts|policy|optimizer_args)=.{0,20}")
)
def test_any_override(text):
    found = clean(lambda: load(overrides=[text]))
    assert found is None or isinstance(found, Config)


COUNTS = [
    "seeds", "train.updates", "train.batch_size", "train.accumulation", "eval.checkpoint_every", "eval.starts",
    "eval.horizon", "data.train_episodes", "data.validation_episodes", "snapshots.every",
]  # fmt: skip


@many
@given(
    sizes=st.dictionaries(
        st.sampled_from(COUNTS),
        st.integers(-2, 2**80)
        | st.floats()
        | st.sampled_from(
            ["1e3", "1e12", "1e400", "9" * 5000, "[1e9,2]", "null", "", "0x7f", "1_0"]
        ),
        max_size=3,
    )
)
def test_a_plan_of_any_size(sizes):
    overrides = [f"{key}={value}" for key, value in sizes.items()]
    clean(lambda: make_plan(make_config("cliff", ["ema"], overrides=overrides)[0]))


@many
@given(value=junk, seed=st.integers(0, 2**32))
def test_a_recipe_of_anything(value, seed):
    data = changed(Recipe().to_dict(), random.Random(seed), value)
    found = clean(Recipe.from_dict, data if isinstance(data, dict) else {}, also=(TypeError,))
    assert (
        found is None or found.key == Recipe.from_dict(json.loads(json.dumps(found.to_dict()))).key
    )


@many
@given(
    text=st.text(max_size=30)
    | st.from_regex(
        r"(ema|swa|none|lr_decay)(:[a-z_]{1,9}=[-+0-9.einfa]{0,6})?(\+(ema|swa|polyak))?"
    )
)
def test_any_stabilizer_string(text):
    found = clean(parse, text)
    assert found is None or parse(found.string).string == found.string


@many
@given(
    lists=st.dictionaries(
        st.sampled_from(
            [
                "lr",
                "policy",
                "batch_size",
                "schedule",
                "dropout",
                "updates",
                "optimizer_args",
                "nothing",
            ]
        ),
        st.lists(
            junk | st.sampled_from([1e-3, 0.5, 64, "mlp", "mlp:width=8,depth=1", "linear", "3e-4"]),
            max_size=4,
        )
        | junk,
        max_size=3,
    ),
    names=st.lists(
        st.sampled_from(
            ["none", "ema", "ema:half_life=5|7", "none|lr_decay+ema", "a|b", "|", "ema:|"]
        ),
        max_size=3,
    ),
)
def test_a_sweep_of_anything(tmp_path_factory, lists, names):
    path = tmp_path_factory.getbasetemp() / "swept.yaml"
    try:
        path.write_text(
            json.dumps({"tasks": ["hopper"], "stabilizers": ["ema", *names], "train": lists})
        )
    except ValueError:  # surrogates
        return
    found = clean(lambda: make_config(file=path))
    if found is not None:
        strings = found[0].stabilizers
        assert [parse(string).string for string in strings] == list(strings)
        assert strings[0] == "none"


@many
@given(
    text=st.text(max_size=20)
    | st.from_regex(r"(lr|method|task|ema\.half_life|status)=[-+0-9a-z.|]{0,12}"),
    by=st.lists(
        st.text(max_size=6) | st.sampled_from(["lr", "method", "task", "ema.half_life"]), max_size=3
    ),
)
def test_any_filter_and_group(results, text, by):
    leaderboard = statistics.leaderboard(results)
    found = clean(sweep.select, leaderboard, [text])
    clean(sweep.groups, found or leaderboard, "toy", by)
