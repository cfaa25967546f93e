"""Settings: layers, overrides, and one clear line for everything that is wrong."""

import json

import pytest

from stab import files
from stab.arguments import parse_arguments
from stab.config import QUICK, Config, Data, Evaluation, load, recorded
from stab.recipe import Call, Recipe
from stab.registry import StabError
from stab.run.plan import make_config, make_plan
from stab.tasks.policies import MLPArguments


def test_the_defaults():
    config = load()
    assert config == Config()
    assert config.seeds == 4
    assert config.eval == Evaluation(checkpoint_every=150, starts=4, horizon=1000)
    assert config.data == Data(dataset=None, train_episodes=20, validation_episodes=5)
    assert config.train == Recipe()
    assert config.window == list(range(3000, 6001, 150))
    assert config.checkpoints == [600, 1800, *range(3000, 6001, 150)]


def test_later_layers_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "seeds: 5\ntrain:\n  lr: 1e-4\n  batch_size: 64\neval: {starts: 3}\ntasks: [hopper, other]\n"
    )
    config = load(
        {"seeds": 4, "train": {"lr": 0.5, "updates": 3000}},
        file,
        {"eval": {"starts": 2}},
        overrides=["seeds=7"],
    )
    assert config.seeds == 7
    assert config.train == Recipe(lr=1e-4, batch_size=64, updates=3000)
    assert config.eval == Evaluation(starts=2)
    assert config.tasks == ("hopper", "other")


def test_the_order_of_layers_is_the_order_given(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seeds: 5\n")
    assert load({"seeds": 4}, file).seeds == 5
    assert load(file, {"seeds": 4}).seeds == 4
    assert load(overrides=["seeds=8", "seeds=9"]).seeds == 9


def test_overrides_reach_every_depth():
    config = load(
        overrides=[
            "train.optimizer=SGD",
            "train.optimizer_args.momentum=0.9",
            "train.lr=3e-4",
            "eval.horizon=250",
            "data.dataset=some/thing-v0",
            "tasks=[a,b]",
        ]
    )
    assert config.train == Recipe(
        optimizer="torch.optim:SGD", optimizer_args={"momentum": 0.9}, lr=3e-4
    )
    assert config.eval.horizon == 250
    assert config.data.dataset == "some/thing-v0"
    assert config.tasks == ("a", "b")
    assert load(overrides=["data.dataset=null"]).data.dataset is None


def test_quick_is_valid_and_small():
    config = load(QUICK)
    assert config.smoke
    assert config.train.updates < 1000
    assert len(config.window) >= 2


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("train.updatess=5", "updates"),
        ("train.lrr=5", "lr"),
        ("trian.lr=3", "train"),
        ("eval.start=3", "starts"),
        ("data.datset=x", "dataset"),
        ("seed=3", "seeds"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(override, suggestion):
    key = override.partition("=")[0]
    with pytest.raises(StabError) as caught:
        load(overrides=[override])
    message = str(caught.value)
    assert repr(override) in message
    assert key.rpartition(".")[2] in message
    assert f"'{suggestion}'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=abc",
        "train.lr=[1,2]",
        "train.updates=2.5",
        "seeds=three",
        "eval.horizon=null",
        "train=3",
        "smoke=maybe",
        "tasks=3",
        "train.optimizer_args=3",
        "train.gradient_transforms=[3]",
        "train.gradient_transforms=[{obj: x}]",
    ],
)
def test_a_value_of_the_wrong_type(override):
    with pytest.raises(StabError) as caught:
        load(overrides=[override])
    assert override.partition("=")[0].split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=0", "train.lr=0"),
        ("train.dropout=1", "train.dropout=1.0"),
        ("train.schedule=steps", "train.schedule='steps'"),
        ("seeds=0", "seeds=0"),
        ("eval.checkpoint_every=0", "eval.checkpoint_every=0"),
        ("eval.starts=-1", "eval.starts=-1"),
        ("eval.starts=1", "cannot be told from the noise of its episode"),
        ("eval.horizon=0", "eval.horizon=0"),
        ("data.train_episodes=0", "data.train_episodes=0"),
        ("data.validation_episodes=0", "data.validation_episodes=0"),
    ],
)
def test_out_of_range(override, message):
    with pytest.raises(StabError) as caught:
        load(overrides=[override])
    assert message in str(caught.value)
    assert "out of range: expected" in str(caught.value)


@pytest.mark.parametrize("override", ["train.lr", "", "train lr 3", "=3", "train..lr=3"])
def test_an_override_is_key_equals_value(override):
    with pytest.raises(StabError):
        load(overrides=[override])


@pytest.mark.parametrize(("updates", "every"), [(200, 200), (100, 200), (200, 101), (1, 1)])
def test_one_checkpoint_is_refused(updates, every):
    with pytest.raises(StabError, match=r"at least two checkpoints.*these settings give 1"):
        load({"train": {"updates": updates}, "eval": {"checkpoint_every": every}})


def test_two_checkpoints_are_enough():
    assert load({"train": {"updates": 200}, "eval": {"checkpoint_every": 100}}).window == [100, 200]


# Files


FILES = {
    "syntax.yaml": "train: {lr: 1e-3",
    "tabs.yaml": "train:\n\tlr: 1\n",
    "list.yaml": "- 1\n- 2\n",
    "text.yaml": "just a sentence\n",
    "number.yaml": "3\n",
    "key.yaml": "train: {learning_rate: 3}\n",
    "type.yaml": "seeds: many\n",
    "interpolation.yaml": "seeds: ${nowhere}\n",
    "duplicate.yaml": "seeds: 2\nseeds: 3\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file(tmp_path, name):
    file = tmp_path / name
    file.write_text(FILES[name])
    with pytest.raises(StabError) as caught:
        load(file)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(StabError, match=r"binary\.yaml"):
        load(file)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(StabError, match=r"nothere\.yaml"):
        load(tmp_path / "nothere.yaml")
    with pytest.raises(StabError):
        load(tmp_path)


def test_an_empty_file_changes_nothing(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert load(file) == Config()


# Round trip

CONFIGS = [
    Config(),
    Config(
        stabilizers=("none", "lr_decay:final=0.1+ema:half_life=500"),
        tasks=("a", "b"),
        seeds=1,
        smoke=True,
    ),
    Config(
        train=Recipe(
            optimizer="SGD",
            optimizer_args={"momentum": 0.9, "nesterov": True},
            gradient_transforms=(
                Call("my.module:Clip", {"norm": 1.0, "names": ["a", "b"]}),
                Call("other:Thing"),
            ),
            schedule="cosine",
        ),
        data=Data(dataset="x/y-v0", train_episodes=2, validation_episodes=1),
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_through_plain_data_and_yaml(config, tmp_path):
    from omegaconf import OmegaConf

    assert load(config.to_dict()) == config
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))
    again = load(file)
    assert again == config
    assert again.train.key == config.train.key


def test_loading_leaves_its_layers_alone():
    layer = {"train": {"lr": 0.5}, "seeds": 2}
    load(layer, {"train": {"updates": 3000}}, overrides=["train.lr=0.1"])
    assert layer == {"train": {"lr": 0.5}, "seeds": 2}
    assert load() == Config()


def test_lists_of_recipe_settings_are_taken_out_where_a_sweep_is_wanted(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "tasks: [hopper]\ntrain:\n  lr: [1e-3, 3e-4]\n  policy: [mlp, 'mlp:width=128,depth=3']\n  updates: 900\n"
    )
    swept = {}
    config = load(file, swept=swept)
    assert swept == {"lr": [1e-3, 3e-4], "policy": ["mlp", "mlp:width=128,depth=3"]}
    assert config.train == Recipe(lr=1e-3, policy="mlp", updates=900)
    swept = {}
    assert (
        load(file, {"train": {"lr": 0.5}}, overrides=["train.policy=[mlp]"], swept=swept).train.lr
        == 0.5
    )
    assert swept == {"policy": ["mlp"]}  # a later layer wins, list or not
    swept = {}
    assert (
        load(
            {"seeds": 4, "train": {"schedule_power": "${seeds}"}}, swept=swept
        ).train.schedule_power
        == 4
    )
    assert load({"train": {"schedule_power": "${seeds}"}}, swept=swept).train.schedule_power == 4
    with pytest.raises(StabError, match=r"is not valid at train\.lr"):
        load(file)  # a run's config.yaml holds none


@pytest.mark.parametrize(
    "override",
    ["train.lr=[]", "train.lr=[[1]]", "train.lr=[{a: 1}]", "train.lr=[null]", "train.updates=[100,200]",
     "train.device=[cpu]", "eval.starts=[2,4]", "seeds=[1,2]", "data.dataset=[a/b-v0]", "train.lr=[fast]", "train=[1]"],
)  # fmt: skip
def test_other_lists_are_refused(override):
    with pytest.raises(StabError) as caught:
        load(overrides=[override], swept={})
    assert override.split("=")[0].split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


# What a file or an override may not do


@pytest.mark.parametrize(
    "text",
    ["${oc.env:STAB_SECRET}", "a${oc.env:STAB_SECRET}b", "${oc.decode:${oc.env:STAB_SECRET}}", "\\${oc.env:STAB_SECRET}",
     "${oc.env:NOWHERE,${oc.env:STAB_SECRET}}", "${${oc.env:STAB_SECRET}}", "${oc.create:1}", "${"],
)  # fmt: skip
def test_nothing_but_names_of_settings_is_interpolated(tmp_path, monkeypatch, text):
    monkeypatch.setenv("STAB_SECRET", "seeds")
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"data": {"dataset": text}}))
    for given in (
        lambda: load(file),
        lambda: load({"data": {"dataset": text}}),
        lambda: load(overrides=[f"data.dataset={text}"]),
        lambda: recorded(file),
    ):
        with pytest.raises(StabError, match=r"data\.dataset") as caught:
            given()
        assert "\n" not in str(caught.value)
    if text != "${":
        with pytest.raises(StabError, match=r"where the shell fills it in: --dataset"):
            load(file)


def test_a_setting_may_be_the_name_of_another_but_not_in_a_run_folder(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seeds: 3\neval: {starts: '${seeds}'}\n")
    assert load(file).eval.starts == 3
    with pytest.raises(StabError, match=r"does not follow in a run folder"):
        recorded(file)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1e-3,3e-4", "'train.lr=[1e-3,3e-4]'"),
        ("train.batch_size=64,128", "'train.batch_size=[64,128]'"),
        ("tasks=hopper,cliff", "'tasks=[hopper,cliff]'"),
        ("lr=1", "Did you mean 'train.lr'?"),
        ("updates=900", "Did you mean 'train.updates'?"),
        ("starts=3", "Did you mean 'eval.starts'?"),
    ],
)
def test_what_was_probably_meant(override, said):
    with pytest.raises(StabError) as caught:
        load(overrides=[override], swept={})
    assert str(caught.value).endswith(said)


def test_1e3_is_an_integer_where_one_is_expected(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {updates: 1e3, lr: 1e-3}\nsnapshots: {every: 5e1}\n")
    config = load(file, overrides=["seeds=1e1", "train.batch_size=[1e2, 64]"], swept=(swept := {}))
    assert (config.train.updates, config.seeds, config.snapshots.every) == (1000, 10, 50)
    assert (config.train.lr, swept["batch_size"]) == (1e-3, [100, 64])
    assert isinstance(config.train.updates, int)
    assert parse_arguments("width=1e3", MLPArguments, "policy")["width"] == 1000
    for bad in ("train.updates=2.5e0", "seeds=1e400", "seeds=nan"):
        with pytest.raises(StabError, match="is not valid at"):
            load(overrides=[bad])


DEEP = 100_000  # at which libyaml's stack overflows


@pytest.mark.parametrize(
    "text",
    ["[" * DEEP + "]" * DEEP, "{a: " * DEEP + "1" + "}" * DEEP, "- " * DEEP + "1",
     "\n".join(" " * n + "a:" for n in range(1000))],
    ids=["lists", "dictionaries", "compact lists", "indented"],
)  # fmt: skip
def test_deep_nesting_is_one_line(tmp_path, text):
    file = tmp_path / "deep.yaml"
    file.write_text(text)
    for function in (load, recorded):
        with pytest.raises(StabError, match=r"deep\.yaml is nested more than 20 levels deep"):
            function(file)
    if "\n" not in text:
        with pytest.raises(StabError, match=r"nested more than 20 levels deep"):
            load(overrides=[f"train.optimizer_args.x={text}"])
    with pytest.raises(StabError, match=r"nested more than 20 levels deep"):
        load(overrides=["train.optimizer_args" + ".a" * DEEP + "=1"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seeds=1e12"], "seeds=1000000000000 is out of range: expected 1,000,000,000 at most"),
        (["train.updates=1e12"], "train.updates=1000000000000 is out of range"),
        (["train.updates=1e9"], "more than 10,000 checkpoints"),
        (["seeds=1e9"], "the plan has 1,000,000,000 training runs"),
        (["eval.starts=1e9"], "episodes to roll out, expected 10,000,000 at most"),
        (["train.batch_size=1e12"], "train.batch_size=1000000000000 is out of range"),
    ],
)
def test_a_plan_is_bounded_before_it_is_laid_out(overrides, said):
    with pytest.raises(StabError) as caught:
        make_plan(make_config("cliff", ["ema"], overrides=overrides)[0])
    assert said in str(caught.value)


def test_a_changed_config_of_a_run_folder_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    files.write_record_text(path, "seeds: 3\n")
    assert recorded(path).seeds == load(path).seeds == 3
    path.write_text(path.read_text().replace("seeds: 3", "seeds: 4"))
    with pytest.raises(StabError, match=r"config\.yaml is not as stab wrote it"):
        recorded(path)
    assert load(path).seeds == 4  # as --config it is the user's own
    path.write_text("seeds: 4\n")
    assert recorded(path).seeds == 4  # of an earlier version
