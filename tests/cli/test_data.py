"""``stab data`` from outside: what a user types, sees and finds on disk."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from stab.cli.main import main
from stab.tasks import datasets, tasks
from stab.tasks.catalog import task_for
from stab.tasks.control.record import RECORDS

STAB = str(Path(sys.executable).parent / "stab")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a root of three hopper and two halfcheetah episodes, each collected by a command in ``cwd``."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cwd").mkdir()
    env = {**os.environ, "COLUMNS": "80", "MINARI_DATASETS_PATH": str(folder / "minari")}
    started = {
        task: subprocess.Popen(
            [STAB, "data", "prepare", task, "--episodes", episodes], cwd=folder / "cwd", env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for task, episodes in (("hopper", "3"), ("halfcheetah", "2"))
    }  # fmt: skip
    for task, process in started.items():
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        (folder / f"{task}.out").write_text(out)
        (folder / f"{task}.err").write_text(err)
    return folder


@pytest.fixture
def root(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of that root, to change."""
    shutil.copytree(prepared / "minari", tmp_path / "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def stab_data(monkeypatch, capsys):
    """Run ``stab data`` in this process, at 80 columns; return exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stab", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return run


def main_data(root: Path, dataset_id: str = "stab/hopper/expert-v0") -> Path:
    return root / dataset_id / "data" / "main_data.hdf5"


def episodes(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every array of every episode, and its seed, in bytes."""
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        found = {}
        for name, group in file.items():
            found[name] = {
                key: part[()].tobytes()
                for key, part in group.items()
                if isinstance(part, h5py.Dataset)
            }
            found[name]["seed"] = bytes(str(int(group.attrs["seed"])), "ascii")
    return found


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def make_own(dataset_id: str, env_id: str = "CartPole-v1", kwargs=None, **metadata: object) -> None:
    """Somebody's dataset: two short random episodes."""
    env = gym.make(env_id, **(kwargs or {}))
    buffers = []
    for seed in (0, 1):
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed)
        seen, actions, rewards = [observation], [], []
        for _ in range(5):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
        ends = {"terminations": [False] * 5, "truncations": [False] * 4 + [True]}
        buffers.append(EpisodeBuffer(seed=seed, observations=np.array(seen), actions=np.array(actions),
                                     rewards=rewards, **ends))  # fmt: skip
    minari.create_dataset_from_buffers(dataset_id, buffers, env=env, **metadata)


def test_prepare_says_what_it_collected(prepared):
    out = (prepared / "hopper.out").read_text()
    said = " ".join(out.split())
    assert "stab/hopper/expert-v0" in said
    assert "environment Hopper-v5" in said
    assert "episodes, steps 3, 3000" in said
    assert "TQC (greedy)" in said
    assert "reset seeds 20000 to 20099" in said
    assert widest(out) <= 80
    with h5py.File(main_data(prepared / "minari")) as file:
        assert [int(file[f"episode_{n}"].attrs["seed"]) for n in range(3)] == [0, 1, 2]


def test_halfcheetah_leaves_no_log_and_no_warning(prepared, tmp_path):
    """MuJoCo's own way of telling of an outdated XML attribute: a line on stderr and a file where it is run."""
    settings = ("--workers", "1", "--seeds", "1", "--out", "run", "train.policy=mlp:width=32", "train.updates=40", "eval.checkpoint_every=10",
                "eval.starts=2", "eval.horizon=20", "data.train_episodes=1", "data.validation_episodes=1")  # fmt: skip
    env = {"MINARI_DATASETS_PATH": str(prepared / "minari")}
    out, err = ((prepared / f"halfcheetah.{stream}").read_text() for stream in ("out", "err"))
    for command in (
        ("data", "verify", "halfcheetah"),
        ("compare", "-t", "halfcheetah", "-s", "ema", *settings),
    ):
        done = forked.stab(*command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        out, err = out + done.stdout, err + done.stderr
    assert "equal bit for bit; 2 episodes, 2000 steps replayed" in out
    assert widest(out) <= 80
    assert "settotalmass" not in out + err
    assert "warn" not in err.lower()
    assert "mujoco" not in err.lower()
    assert list((prepared / "cwd").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not [path for path in (tmp_path / "run").rglob("*") if "MUJOCO" in path.name]


def test_prepare_twice_says_it_is_there(root, stab_data):
    before = episodes(root / "stab/hopper/expert-v0")
    stamp = main_data(root).stat().st_mtime_ns
    for asked in (3, 2):  # as many, and fewer: nothing is thrown away
        code, out, err = stab_data("prepare", "hopper", "--episodes", asked)
        assert (code, out) == (0, "")
        assert "stab/hopper/expert-v0 is there already, 3 episodes" in " ".join(err.split())
        assert main_data(root).stat().st_mtime_ns == stamp
    assert episodes(root / "stab/hopper/expert-v0") == before


def test_a_larger_dataset_begins_with_the_smaller_one(hopper, prepared, root, stab_data):
    def in_use(**settings):
        return tasks.get("hopper")(
            **{"train_episodes": 1, "validation_episodes": 2, **settings}
        ).dataset()

    before = in_use()
    assert not tasks.get("hopper")().has_data()  # 25 are asked for by default
    code, out, err = stab_data("prepare", "hopper", "--episodes", 26)
    assert code == 0, err
    assert "episodes, steps 26, 26000" in " ".join(out.split())
    small, larger = (
        episodes(folder / "stab/hopper/expert-v0") for folder in (prepared / "minari", root)
    )
    default = episodes(hopper)
    assert (len(small), len(default), len(larger)) == (3, 25, 26)
    assert small.items() < default.items() < larger.items()
    # What a comparison uses stays the same when more are collected.
    assert in_use().dataset_sha256 == before.dataset_sha256
    assert set(in_use(train_episodes=20).validation.episodes) == set(before.validation.episodes)
    assert set(before.train.episodes) < set(in_use(train_episodes=20).train.episodes)
    assert tasks.get("hopper")().has_data()
    assert [p for p in root.rglob("*") if p.name.startswith(".")] == []  # the smaller one is gone


def test_verify_equal_bit_for_bit(root, stab_data):
    code, out, err = stab_data("verify", "hopper")
    assert code == 0, err
    assert "stab/hopper/expert-v0: equal bit for bit; 3 episodes, 3000 steps replayed" in out
    assert "observations 0, of rewards 0\n" in out
    assert widest(out) <= 80


def test_verify_reports_an_altered_reward(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        file["episode_1/rewards"][400] += 0.25
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert "stab/hopper/expert-v0: not equal; 3 episodes, 3000 steps replayed" in out
    assert "observations 0, of rewards 0.25" in out


def test_verify_reports_an_altered_observation(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        file["episode_2/observations"][1000, 3] += 0.5  # the last one: nobody acts on it
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert "observations 0.5, of rewards 0\n" in out


def test_verify_reports_the_last_bit_of_an_observation(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        value = file["episode_0/observations"][7, 0]
        file["episode_0/observations"][7, 0] = np.nextafter(value, 2.0)
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert "e-16, of rewards 0\n" in out


def test_verify_reports_an_altered_action(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        file["episode_0/actions"][990, 0] *= -0.5
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert "observations 0," not in out
    assert "rewards 0\n" not in out


@pytest.mark.parametrize("what", ["rewards", "observations"])
def test_verify_reports_what_is_no_number(root, stab_data, what):
    with h5py.File(main_data(root), "r+") as file:
        file[f"episode_0/{what}"][5] = np.nan
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert f"{what} inf" in out


def test_verify_reports_another_end(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        file["episode_1/terminations"][-1] = True
    code, out, _ = stab_data("verify", "hopper")
    assert code == 1
    assert "1 episodes end differently" in out


def test_verify_says_which_episodes_have_no_seed(root, stab_data):
    with h5py.File(main_data(root), "r+") as file:
        del file["episode_1"].attrs["seed"]
    code, out, _ = stab_data("verify", "hopper")
    assert code == 0
    assert "2 episodes, 2000 steps replayed" in out
    assert "1 episodes have no reset seed and were not replayed" in out
    with h5py.File(main_data(root), "r+") as file:
        del file["episode_0"].attrs["seed"], file["episode_2"].attrs["seed"]
    code, out, err = stab_data("verify", "hopper")
    assert (code, out) == (2, "")
    assert "no episode has a reset seed" in err.strip().splitlines()[-1]


def test_remove_asks_and_leaves_the_others(root, stab_data):
    code, out, err = stab_data("remove", "hopper")  # nobody there to ask
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line == "stab: deleting stab/hopper/expert-v0 needs a yes: add --yes"
    assert main_data(root).exists()
    other = episodes(root / "stab/halfcheetah/expert-v0")
    code, out, err = stab_data("remove", "hopper", "--yes")
    assert code == 0
    assert "stab/hopper/expert-v0 is deleted" in err
    assert not (root / "stab/hopper/expert-v0").exists()
    assert episodes(root / "stab/halfcheetah/expert-v0") == other
    assert list(minari.list_local_datasets()) == ["stab/halfcheetah/expert-v0"]
    assert [p for p in root.rglob("*") if p.name.startswith(".")] == []
    code, _, err = stab_data("remove", "hopper", "--yes")
    assert code == 2
    assert "'stab/hopper/expert-v0' is not in" in err


def test_remove_asks_at_a_terminal(root):
    """Whether an answer of yes deletes is seen with --yes; that one of no keeps, needs a terminal."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [STAB, "data", "remove", "hopper"], stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    os.write(terminal, b"n\n")
    out, err = process.communicate(timeout=120)
    os.close(terminal)
    os.close(end)
    assert process.returncode == 1, err
    assert "stab/hopper/expert-v0" in err
    assert "?" in err
    assert out.strip() == ""  # the question is on stderr
    assert main_data(root).exists()


UNKNOWN = {
    "show a task not collected": (("show", "walker2d"), "collect it: stab data prepare walker2d"),
    "verify a task not collected": (("verify", "ant"), "collect it: stab data prepare ant"),
    "remove a task not collected": (("remove", "ant", "--yes"), "'stab/ant/expert-v0' is not in"),
    "show an unknown id": (("show", "my/nowhere-v0"), "Local datasets: stab/halfcheetah/expert-v0, stab/hopper/exp"),
    "verify an unknown id": (("verify", "my/nowhere-v0"), "'my/nowhere-v0' is not in"),
    "remove an unknown id": (("remove", "my/nowhere-v0", "--yes"), "'my/nowhere-v0' is not in"),
    "show no id": (("show", "nope"), "Unknown task 'nope'"),
    "remove another folder": (("remove", "../../etc-v0", "--yes"), "not a Minari dataset id"),
    "remove everything": (("remove", "stab/", "--yes"), "not a Minari dataset id"),
    "prepare an unknown task": (("prepare", "hoper"), "Did you mean 'hopper'?"),
    "prepare a dataset": (("prepare", "my/nowhere-v0"), "my/nowhere-v0"),
    "prepare what has no expert": (("prepare", "recorded"), "'recorded' has no dataset of its own"),
    "show what has no dataset": (("show", "recorded"), "'recorded' has no dataset of its own"),
    "an expert without an id": (("prepare", "hopper", "--expert", "x.safetensors"), "go together"),
    "an id without an expert": (("prepare", "hopper", "--dataset", "my/x-v0"), "go together"),
    "an expert that is not there": (
        ("prepare", "hopper", "--expert", "x.safetensors", "--dataset", "my/x-v0"), "x.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_there_is_one_clear_line(root, stab_data, case):
    arguments, said = UNKNOWN[case]
    before = sorted(root.rglob("*"))
    code, out, err = stab_data(*arguments)
    assert (code, out) == (2, "")
    *_, line = err.strip().splitlines()
    assert line.startswith("stab: ")
    assert said in line
    assert sorted(root.rglob("*")) == before


def test_a_single_episode_is_too_few_to_ask_for(stab_data):
    code, out, err = stab_data("prepare", "hopper", "--episodes", 1)
    assert code == 2
    assert out == ""
    assert "--episodes" in err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_list_shows_what_is_there_and_what_is_not(root, stab_data):
    make_own("my/cartpole-v0")
    code, out, _ = stab_data("list")
    assert code == 0
    assert widest(out) <= 80
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "-v0" in line}
    assert lines["stab/hopper/expert-v0"][:3] == ["Hopper-v5", "3", "3000"]
    assert lines["stab/hopper/expert-v0"][-1] == "hopper"
    assert lines["my/cartpole-v0"][:3] == ["CartPole-v1", "2", "10"]
    assert lines["my/cartpole-v0"][-1] == "recorded"
    for record in [*RECORDS.values()][1:2] + [*RECORDS.values()][3:]:
        assert lines[f"stab/{record.name}/expert-v0"] == [
            record.environment,
            "–",
            "–",
            "–",
            record.name,
        ]
    assert "stab data prepare TASK" in out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_list_names_the_task_that_compare_would_choose(root, stab_data):
    make_own("my/plain-v0", "Hopper-v5")
    make_own("my/fast-v0", "Hopper-v5", kwargs={"forward_reward_weight": 50.0})
    _, out, _ = stab_data("list")
    named = {
        line.split()[0]: line.split()[-1] for line in out.splitlines() if line.startswith("my/")
    }
    assert named == {name: task_for(name) for name in ("my/plain-v0", "my/fast-v0")}
    assert named == {"my/plain-v0": "hopper", "my/fast-v0": "recorded"}


def test_list_of_an_empty_root(tmp_path, monkeypatch, stab_data):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    code, out, _ = stab_data("list")
    assert code == 0
    for record in RECORDS.values():
        assert f"stab/{record.name}/expert-v0" in out


@pytest.mark.parametrize("name", ["my [data]", "ends[/]here"])
def test_list_tells_the_folder_as_it_is_named(tmp_path, monkeypatch, stab_data, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / name))
    code, out, err = stab_data("list")
    assert code == 0, err
    assert name.replace(" ", "") in "".join(out.split())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_broken_dataset_hides_no_other(root, stab_data):
    make_own("my/broken-v0")
    (root / "my/broken-v0/data/main_data.hdf5").unlink()
    code, out, _ = stab_data("list")
    assert code == 0
    assert "my/broken-v0" in out
    assert "cannot be read" in " ".join(out.split())
    assert "Hopper-v5" in out
    assert widest(out) <= 80


def test_a_truncated_dataset_can_be_removed(root, stab_data):
    main_data(root).write_bytes(main_data(root).read_bytes()[:40_000])
    for command in ("show", "verify"):
        code, _, err = stab_data(command, "hopper")
        assert code == 2
        assert "'stab/hopper/expert-v0'" in err.strip().splitlines()[-1]
        assert "cannot be read" in err.strip().splitlines()[-1]
    code, _, err = stab_data("remove", "hopper", "--yes")
    assert code == 0, err
    assert not (root / "stab/hopper/expert-v0").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_show_of_somebodys_dataset(root, stab_data):
    make_own("my/cartpole-v0", ref_min_score=9.0, ref_max_score=500.0, algorithm_name="by hand")
    code, out, _ = stab_data("show", "my/cartpole-v0")
    said = " ".join(out.split())
    assert code == 0
    assert widest(out) <= 80
    assert "environment CartPole-v1" in said
    assert "episodes, steps 2, 10" in said
    assert "returns 5.0 (from 5.0 to 5.0)" in said
    assert "actions Discrete(2)" in said
    assert "random 9.0, expert 500.0 (metadata)" in said
    assert "algorithm by hand" in said


def test_a_dataset_of_another_expert_is_not_used_in_silence(root):
    path = root / "stab/hopper/expert-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["stab"]["expert_sha256"] = "0" * 64
    path.write_text(json.dumps(metadata))
    with pytest.raises(datasets.StabError, match="stab data remove hopper"):
        tasks.get("hopper")(train_episodes=1, validation_episodes=2).dataset()
