"""Datasets of other people: what is taken from them, what is refused, and that they run no code.

Imitations of the hub's datasets, made here: what theirs say in metadata.json is written into datasets of a few random
episodes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from stab import StabError
from stab.cli.main import main
from stab.recipe import Recipe
from stab.run.plan import make_config
from stab.tasks import datasets, rebuild, tasks
from stab.tasks.catalog import task_for
from stab.tasks.control import experts
from stab.tasks.control.record import RECORDS

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Minari's, about authors and permalinks
STEPS = 8
MONITOR = {"name": "Monitor", "entry_point": "no_such_package.monitor:Monitor", "kwargs": None}
TINY = ("train.updates=40", "eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=30", "train.batch_size=16",
        "data.train_episodes=2", "data.validation_episodes=1", "--seeds", "1", "--out", "run")  # fmt: skip
# Of a module that must not be imported.
FOREIGN = {"name": "Reward", "entry_point": "stranger:Reward", "kwargs": {}}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A Minari root and a cache of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "minari"


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """An importable module that leaves a file where it is imported; that file."""
    (tmp_path / "code").mkdir()
    trace = tmp_path / "imported"
    (tmp_path / "code" / "stranger.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
        "import gymnasium\n"
        "from gymnasium.envs.mujoco.hopper_v5 import HopperEnv as Env\n"
        "class Reward(gymnasium.Wrapper): pass\nMonitor = Reward\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return trace


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run ``stab`` with the given arguments in this process; return exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(
            "stab.run.estimate.seconds", lambda plan, cells: None
        )  # the plan's measurement takes a second
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["stab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(command, tmp_path):
    """Run ``stab compare`` with the given arguments; return the line that refuses them."""

    def run(*arguments: str) -> str:
        code, out, err = command("compare", *arguments)
        assert (code, out) == (2, "")
        assert not list(tmp_path.glob("run*"))
        *_, line = err.strip().splitlines()
        assert line.startswith("stab: ")
        return line

    return run


def imitate(dataset_id, env="Hopper-v5", episodes=3, change=None, remove=(), more=None, **options):
    """Record random actions; then put ``change`` into the recorded spec and ``more`` into metadata.json."""
    made = gym.make(env, **options.pop("kwargs", {}))
    buffers = []
    for seed in range(episodes):
        made.action_space.seed(seed)
        observation, _ = made.reset(seed=seed)
        observations, actions, rewards = [observation], [], []
        for _ in range(STEPS):
            actions.append(made.action_space.sample())
            observation, reward, *_ = made.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        ends = {"terminations": [False] * STEPS, "truncations": [False] * (STEPS - 1) + [True]}
        buffers.append(EpisodeBuffer(seed=seed, observations=np.array(observations), actions=np.array(actions),
                                     rewards=rewards, **ends))  # fmt: skip
    minari.create_dataset_from_buffers(dataset_id, buffers, env=made, **options)
    path = datasets.root() / dataset_id / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | (change or {}))
    path.write_text(
        json.dumps({k: v for k, v in (metadata | (more or {})).items() if k not in remove})
    )
    return made, buffers


def hopper(dataset_id, **settings):
    return tasks.get("hopper")(
        dataset_id=dataset_id, **{"train_episodes": 2, "validation_episodes": 1, **settings}
    )


def recorded(dataset_id, **settings):
    return tasks.get("recorded")(
        dataset_id=dataset_id, **{"train_episodes": 2, "validation_episodes": 1, **settings}
    )


def data_file(dataset_id: str) -> Path:
    return datasets.root() / dataset_id / "data" / "main_data.hdf5"


def test_episodes_come_whole_and_in_the_datasets_own_bits():
    _, buffers = imitate("mujoco/hopper/some-v0", episodes=5)
    data = hopper("mujoco/hopper/some-v0", train_episodes=3, validation_episodes=2).dataset()
    seen = set()
    for part in (data.train, data.validation):
        for number in np.unique(part.episodes):
            rows = torch.from_numpy(part.episodes == number)
            expected = np.asarray(
                buffers[number].observations[:STEPS], dtype=np.float32
            )  # the last is not acted on
            assert np.array_equal(part.observations[rows].numpy(), expected)
            assert np.array_equal(part.actions[rows].numpy(), buffers[number].actions)
            seen.add(int(number))
    assert seen == set(range(5))


def test_which_episodes_validate_is_always_the_same_and_not_the_first_or_last_ones():
    imitate("mujoco/hopper/some-v0", episodes=12)
    splits = [
        hopper("mujoco/hopper/some-v0", train_episodes=t, validation_episodes=4).dataset()
        for t in (4, 8, 8)
    ]
    validating = [set(data.validation.episodes) for data in splits]
    assert validating[0] == validating[1] == validating[2]
    assert validating[0] not in (
        {0, 1, 2, 3},
        {8, 9, 10, 11},
    )  # a dataset may be ordered by how good its policy was
    assert set(splits[0].train.episodes) < set(splits[1].train.episodes)
    assert splits[1].dataset_sha256 == splits[2].dataset_sha256 != splits[0].dataset_sha256


def test_a_hub_dataset_without_reference_scores_is_normalised_by_the_card():
    imitate("mujoco/hopper/some-v0")
    data = hopper("mujoco/hopper/some-v0").dataset()
    assert data.references == experts.load(RECORDS["hopper"]).references
    assert (data.dataset, data.environment, data.expert_sha256) == (
        "mujoco/hopper/some-v0",
        "Hopper-v5",
        None,
    )


def test_reference_scores_of_a_stranger_do_not_replace_the_cards():
    imitate("mujoco/hopper/some-v0", more={"ref_min_score": -5.0, "ref_max_score": 12.0})
    assert (
        hopper("mujoco/hopper/some-v0").dataset().references
        == experts.load(RECORDS["hopper"]).references
    )


def test_a_monitor_that_is_not_installed_is_left_out(stab, command, tmp_path):
    """As Stable-Baselines3 leaves it in the hub's specs; from the command line, without naming the task."""
    imitate("mujoco/hopper/watched-v0", change={"additional_wrappers": [MONITOR]})
    assert task_for("mujoco/hopper/watched-v0") == "hopper"
    done = stab("compare", "--dataset", "mujoco/hopper/watched-v0", "-s", "ema", *TINY)
    assert done.returncode == 0, done.stderr
    assert "hopper (Hopper-v5, mujoco/hopper/watched-v0)" in " ".join(done.stdout.split())
    (cell,) = (json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").iterdir())
    references = experts.load(RECORDS["hopper"]).references
    assert cell["references"]["expert"] == [references.expert.at(h) for h in cell["horizons"]]
    assert cell["dataset"] == "mujoco/hopper/watched-v0"
    code, out, err = command("data", "verify", "mujoco/hopper/watched-v0")
    assert code == 0, err
    assert "equal bit for bit; 3 episodes, 24 steps" in out


def test_ant_without_contact_forces_is_accepted_as_it_is():
    without = {"include_cfrc_ext_in_observation": False}
    imitate("mujoco/ant/small-v0", env="Ant-v5", kwargs=without)
    task = tasks.get("ant")(
        dataset_id="mujoco/ant/small-v0", train_episodes=2, validation_episodes=1
    )
    data = task.dataset()
    assert data.train.observations.shape == (2 * STEPS, 27)
    assert data.references == experts.load(RECORDS["ant"]).references
    policy = task.policy(Recipe())
    stacked = {name: value[None] for name, value in policy.state_dict().items()}
    cumulative, lengths = task.rollout(
        policy, stacked, [7], [5]
    )  # in the environment that shows 27
    env = gym.make("Ant-v5", **without)
    observation, _ = env.reset(seed=7)
    total = 0.0
    for _ in range(5):
        with torch.inference_mode():
            action = (
                policy(torch.tensor(observation, dtype=torch.float32)[None])[0].clip(-1, 1).numpy()
            )
        observation, reward, *_ = env.step(action)
        total += reward
    assert cumulative[0, 0, 0] == pytest.approx(total, rel=1e-4)
    assert lengths[0, 0] == 5
    assert task_for("mujoco/ant/small-v0") == "ant"


def test_ant_with_all_observations_and_no_kwargs_is_accepted():
    imitate("mujoco/ant/full-v0", env="Ant-v5", change={"kwargs": {}})
    task = tasks.get("ant")(
        dataset_id="mujoco/ant/full-v0", train_episodes=2, validation_episodes=1
    )
    assert task.dataset().train.observations.shape == (2 * STEPS, 105)


@pytest.mark.parametrize(
    ("recorded_in", "said"),
    [
        ({"include_cfrc_ext_in_observation": False}, {}),
        ({}, {"include_cfrc_ext_in_observation": False}),
    ],
    ids=["fewer than said", "more than said"],
)
def test_observations_of_another_size_than_the_spec_says_are_refused(recorded_in, said):
    imitate("mujoco/ant/odd-v0", env="Ant-v5", kwargs=recorded_in, change={"kwargs": said})
    task = tasks.get("ant")(dataset_id="mujoco/ant/odd-v0", train_episodes=2, validation_episodes=1)
    with pytest.raises(
        StabError, match=r"mujoco/ant/odd-v0.* observation space .*not recorded in this environment"
    ):
        task.dataset()


# What the spec says -> what the refusal says.
OTHER = {
    "version": ({"id": "Hopper-v4"}, "recorded in Hopper-v4, task 'hopper' is Hopper-v5"),
    "environment": ({"id": "Walker2d-v5"}, "recorded in Walker2d-v5, task 'hopper' is Hopper-v5"),
    "longer": ({"max_episode_steps": 2000}, "max_episode_steps=2000"),
    "shorter": ({"max_episode_steps": 100}, "max_episode_steps=100"),
    "unlimited": ({"max_episode_steps": None}, "max_episode_steps=None"),
    "rewards": ({"kwargs": {"forward_reward_weight": 50.0}}, "forward_reward_weight=50.0"),
    "ends": ({"kwargs": {"terminate_when_unhealthy": False}}, "terminate_when_unhealthy=False"),
    "starts": ({"kwargs": {"reset_noise_scale": 0.5}}, "reset_noise_scale=0.5"),
    "wrapper": (
        {"additional_wrappers": [{"name": "ClipReward", "entry_point": "gymnasium.wrappers:ClipReward",
                                  "kwargs": {"min_reward": 0.0, "max_reward": 1.0}}]},
        "wrapper ClipReward",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_returns_that_cannot_be_compared_are_refused(case):
    change, said = OTHER[case]
    imitate("mujoco/hopper/other-v0", change=change)
    with pytest.raises(StabError) as refused:
        hopper("mujoco/hopper/other-v0").dataset()
    assert said in str(refused.value)
    if "id" not in change:
        assert "--task recorded --dataset mujoco/hopper/other-v0" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_task_of_ours_is_compared_alone(root):
    """The hint of the refusal works: without a task named, the dataset is one of its own."""
    imitate(
        "my/short-v0",
        change={"max_episode_steps": 6},
        more={"ref_min_score": 0.0, "ref_max_score": 10.0},
    )
    assert task_for("my/short-v0") == "recorded"
    assert make_config(dataset="my/short-v0", stabilizers="ema")[0].tasks == ("recorded",)
    assert recorded("my/short-v0").horizon == 6


def test_hopper_v4_is_refused_from_the_command_line(refused):
    imitate("mujoco/hopper/four-v0", change={"id": "Hopper-v4"})
    line = refused("-t", "hopper", "--dataset", "mujoco/hopper/four-v0", "-s", "ema", *TINY)
    assert "recorded in Hopper-v4, task 'hopper' is Hopper-v5" in line


def test_a_wrapper_of_gymnasium_is_rebuilt_when_the_dataset_stands_alone():
    clip = OTHER["wrapper"][0]["additional_wrappers"]
    imitate(
        "my/clipped-v0",
        change={"additional_wrappers": clip},
        more={"ref_min_score": 0.0, "ref_max_score": 10.0},
    )
    task = recorded("my/clipped-v0")
    policy = task.policy(Recipe())
    cumulative, lengths = task.rollout(
        policy, {k: v[None] for k, v in policy.state_dict().items()}, [1, 2], [5]
    )
    assert (cumulative > 0).all()
    assert (cumulative[..., -1] <= lengths).all()  # rewards of at most 1


@pytest.mark.parametrize("make", [hopper, recorded])
def test_a_foreign_wrapper_is_refused_without_importing_it(stranger, make):
    imitate("my/wrapped-v0", change={"additional_wrappers": [FOREIGN]})
    with pytest.raises(StabError, match="wrapper"):
        make("my/wrapped-v0").dataset()
    assert not stranger.exists()


def test_a_foreign_wrapper_with_a_harmless_name_is_not_imported_either(stranger):
    imitate("my/wrapped-v0", change={"additional_wrappers": [FOREIGN | {"name": "Monitor"}]})
    assert len(hopper("my/wrapped-v0").dataset().train) == 2 * STEPS
    assert not stranger.exists()


def test_commands_run_no_code_of_a_dataset(stranger, command):
    code = {
        "entry_point": "stranger:Env",
        "vector_entry_point": "stranger:Env",
        "additional_wrappers": [FOREIGN],
    }
    imitate("my/stranger-v0", change=code)
    status, out, err = command("data", "show", "my/stranger-v0")
    assert status == 0, err
    assert "Hopper-v5" in out
    status, out, err = command("data", "list")
    assert status == 0, err
    assert "my/stranger-v0" in out
    status, out, err = command("data", "verify", "my/stranger-v0")
    assert (status, out) == (2, "")
    assert "stranger:Reward" in err
    assert not stranger.exists()


@pytest.mark.parametrize("spaces", ["recorded", "left out"])
@pytest.mark.parametrize(
    "change",
    [
        {"entry_point": "stranger:Env"},
        {"id": "stranger:Env-v0"},
        {"additional_wrappers": [FOREIGN]},
    ],
    ids=["entry point", "id", "wrapper"],
)
def test_an_entry_point_of_a_dataset_is_not_executed(stranger, change, spaces):
    """Minari makes the environment of the spec, as it is there, to learn spaces that the metadata leaves out."""
    imitate(
        "my/stranger-v0",
        change=change,
        remove=() if spaces == "recorded" else ("observation_space",),
    )
    attempts = (
        lambda: hopper("my/stranger-v0").dataset(),
        lambda: recorded("my/stranger-v0").dataset(),
        lambda: task_for("my/stranger-v0"),
        lambda: datasets.replay(datasets.load("my/stranger-v0")),
    )
    for attempt in attempts:
        try:
            attempt()
        except StabError as e:
            said = str(e)
        else:
            said = "my/stranger-v0"  # the registered environment was taken, whatever the spec names
        assert "my/stranger-v0" in said
        assert "\n" not in said
    assert not stranger.exists()
    assert "stranger" not in sys.modules


def test_an_entry_point_that_names_other_code_is_replaced_by_the_registered_one(stranger):
    imitate("my/stranger-v0", change={"entry_point": "stranger:Env"})
    assert len(hopper("my/stranger-v0").dataset().train) == 2 * STEPS
    assert (
        rebuild.environment(datasets.load("my/stranger-v0")).entry_point
        == gym.spec("Hopper-v5").entry_point
    )
    assert not stranger.exists()


def test_arrow_gives_the_same_as_hdf5():
    pytest.importorskip("pyarrow")
    for kind in ("hdf5", "arrow"):
        imitate(f"my/{kind}-v0", data_format=kind)
    one, other = hopper("my/hdf5-v0").dataset(), hopper("my/arrow-v0").dataset()
    assert one.dataset_sha256 == other.dataset_sha256
    assert datasets.replay(datasets.load("my/arrow-v0")).exact
    assert datasets.replay(datasets.load("my/arrow-v0")).steps == 3 * STEPS


def test_arrow_without_pyarrow_says_what_to_install(monkeypatch):
    imitate("my/arrow-v0", more={"data_format": "arrow"})
    monkeypatch.delitem(sys.modules, "minari.dataset._storages.arrow_storage", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        StabError, match=r"my/arrow-v0.*cannot be read.*pip install .*minari\[arrow\]"
    ):
        hopper("my/arrow-v0").dataset()


def test_one_episode_is_too_few_to_train_and_to_validate_on():
    imitate("my/one-v0", episodes=1)
    for settings in ({}, {"train_episodes": 1, "validation_episodes": 1}):
        with pytest.raises(
            StabError, match=r"my/one-v0' has 1 episode, .* one to train on and one to validate on"
        ):
            hopper("my/one-v0", **settings).dataset()


def test_two_episodes_are_enough():
    imitate("my/two-v0", episodes=2)
    data = hopper("my/two-v0", train_episodes=1, validation_episodes=1).dataset()
    assert (len(data.train), len(data.validation)) == (STEPS, STEPS)
    assert set(data.train.episodes) != set(data.validation.episodes)


def test_too_few_episodes_name_the_settings(refused):
    imitate("my/few-v0", episodes=3)
    line = refused(
        "--dataset", "my/few-v0", "-s", "ema", "train.updates=40", "eval.checkpoint_every=10"
    )
    assert "'my/few-v0' has 3 episodes, 25 are asked for" in line
    assert "data.train_episodes (20)" in line
    assert "data.validation_episodes (5)" in line


@pytest.mark.parametrize("what", ["observations", "actions"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_episode(what, bad):
    imitate("my/bad-v0")
    with h5py.File(data_file("my/bad-v0"), "r+") as file:
        file[f"episode_1/{what}"][3, 2] = bad
    with pytest.raises(
        StabError, match=rf"my/bad-v0' has {what} that are not finite, first in episode 1$"
    ):
        hopper("my/bad-v0").dataset()


def test_a_truncated_file_is_one_clear_line():
    imitate("my/cut-v0")
    path = data_file("my/cut-v0")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StabError, match=r"dataset 'my/cut-v0' in .* cannot be read") as refused:
        hopper("my/cut-v0").dataset()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}"], ids=["empty", "cut", "list", "nothing said"]
)
def test_metadata_that_is_none_is_one_clear_line(text):
    imitate("my/cut-v0")
    (datasets.root() / "my/cut-v0/data/metadata.json").write_text(text)
    with pytest.raises(StabError, match=r"dataset 'my/cut-v0' in .* cannot be read") as refused:
        hopper("my/cut-v0").dataset()
    assert "\n" not in str(refused.value)


def test_observations_of_another_environment_under_its_name_are_refused():
    imitate("my/walker-v0", env="Walker2d-v5", change={"id": "Hopper-v5"})
    with pytest.raises(
        StabError, match=r"observation space Box.*\(17,\).*Hopper-v5 has Box.*\(11,\)"
    ):
        hopper("my/walker-v0").dataset()


def test_an_environment_that_is_not_registered_names_the_cure():
    imitate("my/robot-v0", change={"id": "SomeRobot-v3"})
    for make in (hopper, recorded):
        with pytest.raises(StabError, match=r"SomeRobot-v3") as refused:
            make("my/robot-v0").dataset()
    assert "entry point stab.tasks" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_kwargs_that_the_environment_does_not_take_are_one_clear_line():
    imitate("my/odd-v0", change={"kwargs": {"gravity_of_jupiter": True}})
    with pytest.raises(
        StabError, match=r"environment Hopper-v5 cannot be made: .*gravity_of_jupiter"
    ):
        recorded("my/odd-v0").dataset()


def test_a_hub_dataset_that_cannot_be_downloaded_is_one_clear_line(monkeypatch):
    asked = []

    def download(dataset_id, *args, **kwargs):
        asked.append(dataset_id)
        raise ConnectionError("no\nnetwork")

    for name in ("minari.storage.hosting.download_dataset", "minari.download_dataset"):
        monkeypatch.setattr(name, download)
    with pytest.raises(
        StabError,
        match="'mujoco/hopper/expert-v0' could not be downloaded: ConnectionError: no network",
    ):
        hopper("mujoco/hopper/expert-v0").dataset()
    with pytest.raises(
        StabError, match=r"dataset 'my/nowhere-v0' is not in .*Local datasets: none"
    ):
        hopper("my/nowhere-v0").dataset()
    assert asked == ["mujoco/hopper/expert-v0"]  # one's own is never looked for on the net


def test_what_is_on_disk_is_not_downloaded(monkeypatch):
    imitate("mujoco/hopper/expert-v0")
    for name in ("minari.storage.hosting.download_dataset", "minari.download_dataset"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("downloads"))
    assert len(hopper("mujoco/hopper/expert-v0").dataset().train) == 2 * STEPS


def test_a_strangers_dataset_is_never_overwritten():
    imitate("my/own-v0")
    before = data_file("my/own-v0").read_bytes()
    with pytest.raises(StabError, match="not stab's to collect"):
        hopper("my/own-v0").collect(episodes=1)
    assert data_file("my/own-v0").read_bytes() == before
