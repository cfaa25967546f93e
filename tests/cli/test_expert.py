"""``stab expert`` from outside: training, interruption, measuring again, and what bad input is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from stab.cli.expert import compare
from stab.cli.main import main
from stab.tasks.control import experts
from stab.tasks.control.experts import training
from stab.tasks.control.experts.folder import Best, Files, TrainingState
from stab.tasks.control.record import RECORDS
from stab.tasks.references import Curve, References, references_from

HOPPER = RECORDS["hopper"]


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def few_episodes(monkeypatch):
    monkeypatch.setattr(experts, "EPISODES", 3)


def run(monkeypatch, capsys, *arguments):
    """Run ``stab expert`` in this process; return exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["stab", "expert", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    return code, *capsys.readouterr()


def tensors(seed=0, observations=11, actions=3):
    rng = np.random.default_rng(seed)
    sizes = [(observations, 8), (8, 8), (8, actions), (8, actions)]
    params = {
        f"Dense_{i}": {"kernel": rng.normal(size=size) / 3, "bias": rng.normal(size=size[1])}
        for i, size in enumerate(sizes)
    }
    return training.export(params, observations)


def write_expert(folder, found=None, **card):
    """An untrained hopper expert of three episodes and its card; return the path of the weights."""
    weights = safetensors.numpy.save(found or tensors())
    actor = (
        experts.make_actor(safetensors.torch.load(weights), *_hopper()) if found is None else None
    )
    flat = Curve([0.0] * 1000, 0.0, 3, 0, 10.0)
    references = experts.measure(HOPPER, actor) if actor else References(flat, flat)
    about = training._about(HOPPER, Best(weights, 1_000, references.expert), 2_000, 0)
    files = Files(folder, "hopper")
    folder.mkdir(exist_ok=True)
    files.publish(weights, {**experts.make_card(HOPPER, weights, references, about), **card})
    return files.weights


def _hopper():
    import gymnasium as gym

    from stab.tasks.environments import make

    return make(gym.spec(HOPPER.environment)), "hopper"


def test_the_shipped_expert_returns_what_its_card_says(stab):
    done = stab("expert", "evaluate", "hopper")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(("equal to the last bit", "agrees"))
    assert max(map(len, done.stdout.splitlines())) <= 80
    card = experts.load(HOPPER).card
    assert f"{card['return_mean']:.1f} +- {card['return_std']:.1f}" in done.stdout


def test_measured_again_it_is_equal_to_the_last_bit(tmp_path, monkeypatch, capsys, few_episodes):
    path = write_expert(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "evaluate", "hopper", "--expert", path)
    assert (code, out.splitlines()[-1]) == (0, "equal to the last bit")
    for word in ("card", "measured", "expert return", "expert length", "random return", "+-"):
        assert word in out


def test_a_card_that_promises_more_is_found_out(tmp_path, monkeypatch, capsys, few_episodes):
    path = write_expert(tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    card["references"]["expert"]["cumulative"][-1] += 10_000
    path.with_suffix(".json").write_text(json.dumps(card))
    code, out, _ = run(monkeypatch, capsys, "evaluate", "hopper", "--expert", path)
    assert code == 1
    assert out.splitlines()[-1].startswith("differs: the expert policy's return by 10000.0")


def curve(mean, std=10.0, episodes=100):
    return Curve([mean], std, episodes, 0, 1.0)


def test_agreement_is_three_standard_errors_of_the_difference():
    card = References(curve(0.0), curve(100.0))
    limit = 3 * (10.0**2 / 100 + 10.0**2 / 100) ** 0.5
    assert compare(card, card) == ("equal to the last bit", True)
    assert compare(card, References(curve(0.0), curve(100.0 + 0.99 * limit)))[1]
    assert not compare(card, References(curve(0.0), curve(100.0 - 1.01 * limit)))[1]
    assert "random" in compare(card, References(curve(1.01 * limit), curve(100.0)))[0]
    assert compare(card, References(curve(0.0), curve(100.0, std=10.001)))[0].startswith("agrees")
    assert not compare(card, References(curve(0.0), curve(float("nan"))))[1]


def truncated(folder):
    path = write_expert(folder, tensors())
    path.write_bytes(path.read_bytes()[:200])
    return path


def without_card(folder):
    path = write_expert(folder, tensors())
    path.with_suffix(".json").unlink()
    return path


def malformed_card(folder):
    path = write_expert(folder, tensors())
    path.with_suffix(".json").write_text("{")
    return path


def card_without_references(folder):
    path = write_expert(folder, tensors())
    card = json.loads(path.with_suffix(".json").read_text())
    del card["references"]
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def altered(folder):
    path = write_expert(folder, tensors())
    path.write_bytes(safetensors.numpy.save(tensors(seed=1)))
    return path


def renamed_tensors(folder):
    return write_expert(folder, {f"x.{name}": tensor for name, tensor in tensors().items()})


def unfitting_layers(folder):
    return write_expert(folder, {**tensors(), "trunk.1.bias": np.zeros(5, np.float32)})


EVALUATE = {
    "missing": (lambda folder: folder / "none.safetensors", "No such file"),
    "a folder": (lambda folder: folder, "expected a .safetensors file"),
    "truncated": (truncated, "truncated"),
    "no card": (without_card, "cannot read its card"),
    "malformed card": (malformed_card, "cannot read its card"),
    "no references": (card_without_references, "lacks references"),
    "weights the card does not describe": (altered, "SHA-256 differs"),
    "another environment": (
        lambda folder: write_expert(folder, tensors(), environment="Ant-v5"),
        "trained in Ant-v5",
    ),
    "another task's shapes": (
        lambda folder: write_expert(folder, tensors(observations=17)),
        "reads 17 observations",
    ),
    "no actions": (lambda folder: write_expert(folder, tensors(actions=6)), "gives 6 actions"),
    "other tensors": (renamed_tensors, "not hold an expert's network"),
    "layers that do not fit": (unfitting_layers, "not hold an expert's network"),
}


@pytest.mark.parametrize("case", EVALUATE)
def test_a_bad_expert_is_one_clear_line(tmp_path, monkeypatch, capsys, case):
    write, said = EVALUATE[case]
    code, out, err = run(monkeypatch, capsys, "evaluate", "hopper", "--expert", write(tmp_path))
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("stab: ")
    assert said in line


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("hoper", "Did you mean 'hopper'? Experts: hopper, walker2d, halfcheetah, ant, humanoid"),
        ("recorded", "task 'recorded' has no expert. Experts: hopper"),
    ],
)
def test_only_catalogue_tasks_have_experts(tmp_path, monkeypatch, capsys, command, task, said):
    code, out, err = run(monkeypatch, capsys, command, task)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_sbx_training_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sbx", None)
    code, out, err = run(monkeypatch, capsys, "train", "hopper")
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].endswith("pip install 'stab-gva[experts]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/experts"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch, capsys, out):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        training, "_import", lambda module: None
    )  # it says so before it begins to train
    code, _, err = run(monkeypatch, capsys, "train", "hopper", "--out", out)
    assert code == 2
    assert err.strip().splitlines()[-1].startswith(f"stab: cannot write {out}")


def test_a_finished_folder_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sbx", None)
    path = write_expert(tmp_path / "experts", tensors())
    before = path.stat().st_mtime_ns
    code, out, err = run(monkeypatch, capsys, "train", "hopper", "--steps", 2_000)
    assert code == 0
    assert "finished already, at 2,000 steps" in err
    assert "TQC (top_quantiles_to_drop_per_net=5)" in out
    assert "3000 (not reached)" in out
    assert path.stat().st_mtime_ns == before


def test_interrupted_it_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = run(
        monkeypatch, capsys, "train", "hopper", "--out", "my experts", "--steps", 2_000
    )
    assert code == 130
    assert "nothing is saved yet" in err
    assert "Resume with: stab expert train hopper --out 'my experts' --seed 0 --steps 2000" in err


@pytest.mark.experts
def test_killed_it_goes_on_and_the_card_holds(stab, tmp_path):
    pytest.importorskip("sbx")
    arguments = ["expert", "train", "hopper", "--steps", "1000", "--seed", "1"]
    files = Files(tmp_path / "experts", "hopper")
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "stab"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
    ) as process:
        began = time.monotonic()
        while not files.card.exists() and process.poll() is None and time.monotonic() - began < 300:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    # Usable at once: an actor, and a card that says how far it is.
    left = experts.load(HOPPER, files.weights).card
    assert "of 1,000 steps" in left["unfinished"]
    kept = TrainingState.read(files.checkpoint)
    assert 0 < kept.steps < 1_000
    assert not any(
        name.startswith("\x80") or name.endswith((".pkl", ".pickle"))
        for name in os.listdir(files.folder)
    )

    other = stab("expert", "train", "hopper", "--steps", 1_000, "--seed", 2)
    assert other.returncode == 2
    assert "training seed 1, not 2" in other.stderr

    done = stab(*arguments, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    card = json.loads(files.card.read_text())
    assert "unfinished" not in card
    assert card["trained_steps"] == 1_000
    assert card["environment_steps"] <= 1_000
    assert card["training_seed"] == 1
    assert card["command"] == "stab expert train hopper --steps 1000 --seed 1"
    assert {"sbx-rl", "jax", "flax", "stable_baselines3"} <= set(card["trained_with"])
    assert f"{card['return_mean']:.1f} +- {card['return_std']:.1f}" in done.stdout
    assert {path.name for path in files.folder.iterdir()} == {
        "hopper.safetensors", "hopper.json", "hopper.checkpoint.npz",
    }  # fmt: skip

    again = stab("expert", "evaluate", "hopper", "--expert", files.weights)
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[-1] == "equal to the last bit"
    assert replace(experts.load(HOPPER, files.weights).references) == references_from(
        card["references"]
    )
