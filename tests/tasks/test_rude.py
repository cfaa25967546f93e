"""Tasks of a plug-in that raise in any of their hooks, print, or reseed: from outside, as installed distributions.

And environments that return other things than Gymnasium promises, or raise.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from stab import StabError
from stab.tasks.checked import Checked
from stab.tasks.control.episodes import make_episodes
from stab.tasks.control.rollout import rollout
from stab.tasks.environments import make
from stab.tasks.policies import Policy
from stab.tasks.references import random_returns

SOURCE = """
import os, random, sys
import numpy as np, torch
from dataclasses import dataclass
from stab.tasks.control.cliff import Cliff

class Rude(Cliff):
    at = ""

    def say(self, hook):
        print("hello from", hook)
        if hook in ("loss", "rollout"):
            os.write(1, b"and past Python\\n")
        if hook == self.at:
            raise RuntimeError(f"not {hook} today,\\nsorry")

    def has_data(self):
        self.say("has_data")
        return super().has_data()

    def speed(self, recipe):
        self.say("speed")
        return super().speed(recipe)

    def dataset(self, progress=lambda done: None):
        self.say("dataset")
        return super().dataset(progress)

    def policy(self, recipe):
        self.say("policy")
        return super().policy(recipe)

    def loss(self, policy, batch):
        self.say("loss")
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        return super().loss(policy, batch)

    def rollout(self, *args, **kwargs):
        self.say("rollout")
        random.seed(0); np.random.seed(0); torch.manual_seed(0)
        return super().rollout(*args, **kwargs)

def factory(**arguments):
    raise RuntimeError("not factory today,\\nsorry")
"""
HOOKS = ("has_data", "speed", "dataset", "policy", "loss", "rollout")
SIZES = ("--policy", "mlp:depth=0", "--seeds", 1, "--updates", 40, "eval.checkpoint_every=10", "eval.starts=2",
         "eval.horizon=30")  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder with a distribution of tasks, one a hook that raises, and one that is merely loud."""
    site = tmp_path_factory.mktemp("site")
    source = SOURCE + "".join(f"\nclass Rude_{hook}(Rude):\n    at = {hook!r}\n" for hook in HOOKS)
    (site / "rude_tasks.py").write_text(source)
    info = site / "rude_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude-tasks\nVersion: 1.0\n")
    points = {
        "loud": "Rude",
        "rude_factory": "factory",
        **{f"rude_{hook}": f"Rude_{hook}" for hook in HOOKS},
    }
    (info / "entry_points.txt").write_text(
        "[stab.tasks]\n"
        + "".join(f"{name} = rude_tasks:{value}\n" for name, value in points.items())
    )
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))


@pytest.mark.parametrize("hook", ["factory", "has_data", "speed", "dataset", "policy"])
def test_what_raises_before_anything_is_trained_is_refused_with_a_line(path, stab, tmp_path, hook):
    done = stab(
        "compare",
        "-t",
        "cliff",
        "-t",
        f"rude_{hook}",
        "-s",
        "ema",
        "--out",
        "run",
        *SIZES,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(
        f"stab: task 'rude_{hook}' raised RuntimeError: not {hook} today, sorry ("
    )
    assert "rude_tasks.py:" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_raises_in_training_or_rollouts_is_an_entry_and_stops_nobody_else(
    path, stab, tmp_path
):
    names = ("cliff", "loud", "rude_loss", "rude_rollout")
    tasks = [option for name in names for option in ("-t", name)]
    done = stab("compare", *tasks, "-s", "ema", "--out", "run", *SIZES, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hello" not in done.stdout
    assert "past Python" not in done.stdout + done.stderr
    for hook in ("loss", "rollout"):
        assert f"RuntimeError: not {hook} today, sorry" in " ".join(done.stderr.split())
    entries = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["entries"]
    statuses = {name: {e["status"] for e in entries if e["task"] == name} for name in names}
    assert "failed" not in statuses["cliff"] | statuses["loud"]
    assert statuses["rude_loss"] == statuses["rude_rollout"] == {"failed"}
    assert all("not loss today" in e["reason"] for e in entries if e["task"] == "rude_loss")
    # Printing and reseeding change no number.
    cells = {
        path.name.split("-")[0]: json.loads(path.read_text())
        for path in (tmp_path / "run" / "cells").iterdir()
    }
    assert cells.keys() == {"cliff", "loud"}
    assert cells["loud"]["rows"] == cells["cliff"]["rows"]
    # It is not taken for finished.
    done = stab(
        "compare",
        *tasks,
        "-s",
        "ema",
        "--out",
        "run",
        "--resume",
        "--dry-run",
        *SIZES,
        env={"PYTHONPATH": path},
    )
    assert "2 cells are finished already and kept" in " ".join(done.stdout.split())


class Odd(gym.Env):
    """Episodes of 3, 4, 5 and 6 steps for the reset seeds 0, 1, 2 and 3; every step pays 1.

    ``how`` says what is odd about what it returns.
    """

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, how="nothing"):
        self.how = how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.steps = 3 + seed % 4, 0
        if self.how == "reset raises" and seed == 2:
            raise ValueError("no\nlevel")
        bad = self.how == "reset is not finite" and seed == 2
        return self.shown(np.nan if bad else 0.0), {}

    def shown(self, value):
        if self.how == "a list":
            return [value, value]
        if self.how == "a column":
            return np.full((2, 1), value)
        return np.full(2, value, dtype=np.float32)

    def step(self, action):
        self.steps += 1
        over, now = self.steps == self.length, (self.length, self.steps) == (5, 4)
        observation, reward, terminated, truncated = self.shown(0.0), 1.0, over, False
        match self.how:
            case "integers":
                terminated, truncated = int(over), 0
            case "NumPy's":
                terminated, truncated = np.int64(over), np.bool_(False)
            case "floats":
                terminated, truncated = 0.0, float(over)
            case "arrays":
                terminated, reward = np.array([over]), np.array([1.0])
            case "tensors":
                terminated, reward = torch.tensor(over), torch.tensor([1.0])
            case "a reward of an integer":
                reward = 1
            case "step raises" if now:
                raise ZeroDivisionError("division by\nzero")
            case "step exits" if now:
                raise SystemExit(3)
            case "four values":
                return observation, reward, over, {}
            case "a flag of two" if now:
                terminated = 2
            case "a flag that is None" if now:
                truncated = None
            case "a reward of two" if now:
                reward = np.array([1.0, 2.0])
            case "a reward of text" if now:
                reward = "1.0"
            case "a reward that is not a number" if now:
                reward = float("nan")
            case "a reward without end" if now:
                reward = np.float32("inf")
            case "an observation that is not finite" if now:
                observation = np.array([0.0, np.inf], dtype=np.float32)
            case "an observation of three" if now:
                observation = np.zeros(3, dtype=np.float32)
            case "an observation of text" if now:
                observation = ["a", "b"]
        return observation, reward, terminated, truncated, {}


@pytest.fixture
def odd(monkeypatch):
    """Return how to make the environment that is odd in some way."""
    monkeypatch.setitem(
        gym.registry, "StabOdd-v0", gym.envs.registration.EnvSpec("StabOdd-v0", Odd)
    )
    return lambda how: replace(gym.spec("StabOdd-v0"), kwargs={"how": how})


class Still(Policy):
    """Never acts."""

    action_space = Odd.action_space

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, observations):
        return self.bias.expand(len(observations), 1)


FINE = ("nothing", "integers", "NumPy's", "floats", "arrays", "tensors", "a list", "a column",
        "a reward of an integer")  # fmt: skip


@pytest.mark.parametrize("how", FINE)
def test_whatever_flags_and_rewards_are_made_of_episodes_end_where_they_end(odd, how):
    stacked = {"bias": torch.tensor([[0.0], [0.5]])}
    cumulative, lengths = rollout(make_episodes(odd(how)), Still(), stacked, range(4), [2, 10])
    assert lengths.tolist() == [[3, 4, 5, 6]] * 2
    assert cumulative[:, :, 0].tolist() == [[2, 2, 2, 2]] * 2
    assert cumulative[:, :, 1].tolist() == [[3, 4, 5, 6]] * 2
    returns, lengths = random_returns(make(odd(how)), range(4), 10)
    assert lengths.tolist() == returns[:, -1].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("how", FINE)
def test_an_environment_returns_the_types_that_gymnasium_promises(odd, how):
    env = make(odd(how))
    observation, _ = env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert isinstance(observation, np.ndarray)
    assert observation.shape == (2,)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert (env.spec.id, env.spec.kwargs) == ("StabOdd-v0", {"how": how})
    assert not env.spec.additional_wrappers


ODD = {
    "reset raises": "the reset with reset seed 2 raised ValueError: no level (reset, ",
    "reset is not finite": "the reset with reset seed 2 returned an observation that is not finite",
    "step raises": "raised ZeroDivisionError: division by zero (step, ",
    "step exits": "raised SystemExit: 3 (step, ",
    "four values": "returned (array([0., 0.], dtype=float32), 1.0, False, {}), expected (observation,"
    " reward, terminated, truncated, info)",
    "a flag of two": "returned terminated=2, expected True or False",
    "a flag that is None": "returned None as truncated, expected numbers",
    "a reward of two": "returned a reward of shape (2,), expected one number",
    "a reward of text": "returned '1.0' as the reward, expected numbers",
    "a reward that is not a number": "returned a reward that is not finite",
    "a reward without end": "returned a reward that is not finite",
    "an observation that is not finite": "returned an observation that is not finite",
    "an observation of three": "returned an observation of shape (3,), its space has (2,)",
    "an observation of text": "returned ['a', 'b'] as the observation, expected numbers",
}  # fmt: skip


@pytest.mark.parametrize("how", ODD)
def test_what_else_it_returns_or_raises_is_named_with_its_episode_and_step(odd, how):
    step = 1 if how == "four values" else 4
    seed = 0 if how == "four values" else 2
    where = f"step {step} of the episode with reset seed {seed} "
    said = ODD[how] if how.startswith("reset") else where + ODD[how]
    for attempt in (
        lambda: rollout(
            make_episodes(odd(how)), Still(), {"bias": torch.zeros(1, 1)}, range(4), [10]
        ),
        lambda: random_returns(make(odd(how)), range(4), 10),
    ):
        with pytest.raises(StabError) as refused:
            attempt()
        assert str(refused.value).startswith(f"environment StabOdd-v0: {said}")
        assert "\n" not in str(refused.value)


def test_an_action_that_is_not_finite_shares_the_blame(odd):
    class Follows(Odd):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation + action, *rest

    env = Checked(Follows())
    env.reset(seed=0)
    with pytest.raises(StabError, match=r"not finite; the action was not finite, either"):
        env.step(np.array([np.nan], np.float32))


def test_a_reward_that_is_not_finite_is_refused_however_episodes_are_stepped(odd):
    class Fast:
        """As episodes of an environment that are stepped side by side."""

        def reset(self, seeds):
            return np.zeros((len(seeds), 2))

        def step(self, which, actions):
            rewards = np.where(np.array(which) == 3, np.nan, 1.0)
            none = np.zeros(len(which), dtype=bool)
            return np.zeros((len(which), 2)), rewards, none, none

    with pytest.raises(StabError, match=r"step 1 of the episode with reset seed 8 .* not finite"):
        rollout(Fast(), Still(), {"bias": torch.zeros(2, 1)}, [7, 8], [10])
