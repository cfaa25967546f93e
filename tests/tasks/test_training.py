"""Training an expert: what is exported, what a folder may hold, and what it goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
import torch

from stab.registry import StabError
from stab.tasks.control import experts
from stab.tasks.control.experts import training
from stab.tasks.control.experts.folder import REPLAY, Best, Files, TrainingState, identify
from stab.tasks.control.record import RECORDS
from stab.tasks.environments import make
from stab.tasks.references import EXPERT_SEED, Curve, References

HOPPER = RECORDS["hopper"]
CURVE = Curve([1.0, 2.0], std=0.5, episodes=20, first_seed=10_000, length=2.0)


def params(observations, actions, width=8, seed=0):
    """An untrained actor as sbx keeps them: kernels (in, out)."""
    rng = np.random.default_rng(seed)
    sizes = [(observations, width), (width, width), (width, actions), (width, actions)]
    return {
        f"Dense_{i}": {
            "kernel": rng.normal(size=size).astype(np.float32) / 3,
            "bias": rng.normal(size=size[1]),
        }
        for i, size in enumerate(sizes)
    }


def weights(seed=0):
    """An untrained hopper expert's file."""
    return safetensors.numpy.save(training.export(params(11, 3, seed=seed), 11))


def checkpoint(record=HOPPER, seed=0, steps=2_000, best=True):
    return TrainingState(
        identify(record, seed),
        steps=steps,
        updates=800,
        learning_starts=200,
        best=Best(weights(), 1_500, CURVE) if best else None,
        state=b"state",
        replay={name: np.arange(6, dtype=np.float32).reshape(3, 2) for name in REPLAY},
        position=3,
    )


def publish(path, *, steps=2_000, seed=0, so_far=None):
    """What a training leaves: an actor and its card."""
    files = Files(path, "hopper")
    about = training._about(HOPPER, Best(weights(), 1_500, CURVE), steps, seed, so_far)
    return files.publish(
        weights(), experts.make_card(HOPPER, weights(), References(CURVE, CURVE), about)
    )


def tree(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture
def no_sbx(monkeypatch):
    monkeypatch.setitem(sys.modules, "sbx", None)


@pytest.fixture
def few_episodes(monkeypatch):
    monkeypatch.setattr(experts, "EPISODES", 3)


@pytest.mark.parametrize("name", [record.name for record in RECORDS.values() if record.masked])
def test_visible_observations_come_first(name):
    full, reduced = make(gym.spec(RECORDS[name].environment)), make(training.visible(RECORDS[name]))
    size = reduced.observation_space.shape[0]
    assert size < full.observation_space.shape[0]
    full.action_space.seed(0)
    pairs = [(full.reset(seed=5)[0], reduced.reset(seed=5)[0])]
    for _ in range(20):
        action = full.action_space.sample()
        pairs.append((full.step(action)[0], reduced.step(action)[0]))
    for whole, part in pairs:
        assert np.array_equal(whole[:size], part)
    assert any(whole[size:].any() for whole, _ in pairs)


@pytest.mark.parametrize("name", [record.name for record in RECORDS.values() if record.masked])
def test_exported_actor_reads_ordinary_observations_as_it_read_the_visible_ones(name):
    full, reduced = make(gym.spec(RECORDS[name].environment)), make(training.visible(RECORDS[name]))
    size, inner = full.observation_space.shape[0], reduced.observation_space.shape[0]
    trained = params(inner, full.action_space.shape[0])

    def actor(size, env):
        tensors = safetensors.torch.load(safetensors.numpy.save(training.export(trained, size)))
        return experts.make_actor(tensors, env, name)

    observations = torch.tensor(
        np.array([full.reset(seed=seed)[0] for seed in range(4)]), dtype=torch.float32
    )
    observations += torch.randn(observations.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = (
            actor(size, full)(observations),
            actor(inner, reduced)(observations[:, :inner]),
        )
    assert torch.allclose(whole, part, atol=1e-6)
    assert whole.std() > 0


def test_export_is_the_transpose():
    trained = params(11, 3)
    tensors = training.export(trained, 11)
    assert np.array_equal(tensors["mean.weight"], trained["Dense_2"]["kernel"].T)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_without_sbx_it_says_what_to_install(tmp_path, no_sbx):
    with pytest.raises(StabError, match=r"pip install 'stab-gva\[experts\]'") as said:
        training.train(HOPPER, tmp_path / "experts", steps=1_000)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "experts").exists()


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(StabError, match="at least 1,000"):
        training.train(HOPPER, tmp_path, steps=10)


@pytest.mark.parametrize(
    ("steps", "every"), [(2_000_000, 50_000), (250_000, 25_000), (1_000, 100), (1_011, 100)]
)
def test_evaluations_fall_on_a_step_that_is_reached(steps, every):
    assert training.evaluate_every(steps) == every
    assert every % training.ENVIRONMENTS == 0


def test_a_checkpoint_comes_back_and_is_data_only(tmp_path):
    path = tmp_path / "hopper.checkpoint.npz"
    for written in (checkpoint(), checkpoint(best=False)):
        written.write(path)
        read = TrainingState.read(path)
        assert dataclasses.replace(read, replay={}) == dataclasses.replace(written, replay={})
        for name in REPLAY:
            assert np.array_equal(read.replay[name], written.replay[name])
        with np.load(path, allow_pickle=False) as found:
            assert not any(found[name].dtype.hasobject for name in found.files)
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_checkpoint_is_one_clear_line(tmp_path):
    path = tmp_path / "hopper.checkpoint.npz"
    checkpoint().write(path)
    for content in (path.read_bytes()[:-100], path.read_bytes()[:50], b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(StabError, match="delete it to start from scratch"):
            training.train(HOPPER, tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "hopper.checkpoint.npz"
    checkpoint().write(path)
    before = tree(tmp_path)
    for error, raised, said in (
        (RuntimeError("oops"), RuntimeError, "oops"),
        (OSError(28, "No space left on device"), StabError, "No space left"),
    ):

        def full(file, error=error, **arrays):
            file.write(b"a part")
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", full)
            with pytest.raises(raised, match=said):
                checkpoint(steps=3_000).write(path)
        assert tree(tmp_path) == before
    with pytest.raises(StabError, match="cannot write"):
        checkpoint().write(path / "below a file")


OTHERS = {
    "seed": (dataclasses.replace(HOPPER), 1, "training seed 0, not 1"),
    "algorithm": (dataclasses.replace(HOPPER, algorithm="SAC"), 0, "algorithm TQC, not SAC"),
    "arguments": (dataclasses.replace(HOPPER, algorithm_args={}), 0, "algorithm args"),
    "hidden": (dataclasses.replace(HOPPER, masked=("x",)), 0, "hidden"),
}


@pytest.mark.parametrize("left", ["checkpoint", "expert"])
@pytest.mark.parametrize("case", OTHERS)
def test_another_trainings_folder_is_refused_and_kept(tmp_path, case, left):
    record, seed, said = OTHERS[case]
    if left == "checkpoint":
        checkpoint().write(Files(tmp_path, "hopper").checkpoint)
    else:
        publish(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(StabError, match=said):
        training.train(record, tmp_path, steps=1_000, seed=seed)
    assert tree(tmp_path) == before


def test_a_renamed_checkpoint_of_another_task_is_refused(tmp_path):
    checkpoint(RECORDS["ant"]).write(Files(tmp_path, "hopper").checkpoint)
    with pytest.raises(StabError, match="task ant, not hopper"):
        training.train(HOPPER, tmp_path)


def test_a_finished_training_is_left_alone(tmp_path, no_sbx):
    card = publish(tmp_path)
    before = tree(tmp_path)
    assert training.train(HOPPER, tmp_path, steps=2_000) == card
    assert training.train(HOPPER, tmp_path, steps=1_500) == card
    checkpoint().write(Files(tmp_path, "hopper").checkpoint)
    assert training.train(HOPPER, tmp_path, steps=2_000) == card
    assert {name: content for name, content in tree(tmp_path).items() if name in before} == before
    with pytest.raises(StabError, match="needs sbx"):  # that is, it goes on
        training.train(HOPPER, tmp_path, steps=3_000)


def test_an_expert_without_checkpoint_is_not_overwritten(tmp_path):
    publish(tmp_path)
    with pytest.raises(StabError, match="choose another folder"):
        training.train(HOPPER, tmp_path, steps=3_000)
    publish(tmp_path, so_far=1_000)
    with pytest.raises(StabError, match="choose another folder"):
        training.train(HOPPER, tmp_path, steps=2_000)
    (tmp_path / "hopper.json").unlink()
    with pytest.raises(StabError, match="cannot read its card"):
        training.train(HOPPER, tmp_path, steps=2_000)


def test_another_tasks_expert_in_the_folder_does_no_harm(tmp_path, no_sbx):
    publish(tmp_path)
    with pytest.raises(StabError, match="needs sbx"):
        training.train(RECORDS["ant"], tmp_path)


def test_killed_while_measuring_it_measures(tmp_path, no_sbx, few_episodes):
    files = Files(tmp_path, "hopper")
    checkpoint().write(files.checkpoint)
    stages = []
    for torn in (False, True):
        publish(tmp_path, so_far=1_500)
        if torn:  # killed between the weights and the card
            files.weights.write_bytes(weights(seed=1))
        card = training.train(
            HOPPER,
            tmp_path,
            steps=2_000,
            report=lambda stage, fraction, latest: stages.append((stage, latest)),
        )
        assert set(stages) == {("Measuring", "2 +- 0 at 1,500 steps")}
        assert card == json.loads(files.card.read_text())
        assert "unfinished" not in card
        assert (card["environment_steps"], card["trained_steps"]) == (1_500, 2_000)
        assert card["references"]["expert"]["first_seed"] == EXPERT_SEED
        assert card["falls_short"]
        assert card["weights_sha256"] == hashlib.sha256(files.weights.read_bytes()).hexdigest()
        assert experts.load(HOPPER, files.weights).references.expert.episodes == 3


def test_an_unfinished_card_says_so_and_can_be_used(tmp_path):
    publish(tmp_path, so_far=1_000)
    card = experts.load(HOPPER, tmp_path / "hopper.safetensors").card
    assert "1,000 of 2,000 steps" in card["unfinished"]
    assert card["evaluation"] == "20 greedy episodes, reset seeds 10000 to 10019"


def test_nothing_finite_is_an_error(tmp_path):
    checkpoint(best=False).write(Files(tmp_path, "hopper").checkpoint)
    with pytest.raises(StabError, match="diverged"):
        training.train(HOPPER, tmp_path, steps=2_000)


@pytest.mark.experts
@pytest.mark.parametrize("name", ["hopper", "humanoid"])
def test_exported_actor_acts_as_sbx_does(name):
    pytest.importorskip("sbx")
    record = RECORDS[name]
    model = training._model(record, 0, 100)
    full, reduced = make(gym.spec(record.environment)), make(training.visible(record))
    tensors = training.export(
        model.policy.actor_state.params["params"], full.observation_space.shape[0]
    )
    actor = experts.make_actor(safetensors.torch.load(safetensors.numpy.save(tensors)), full, name)
    for seed in range(3):
        wanted, _ = model.predict(reduced.reset(seed=seed)[0], deterministic=True)
        with torch.no_grad():
            got = actor(torch.tensor(full.reset(seed=seed)[0], dtype=torch.float32))
        assert np.allclose(got.numpy(), wanted, atol=1e-5)


@pytest.mark.experts
def test_going_on_from_a_checkpoint_restores_everything(tmp_path, few_episodes):
    pytest.importorskip("sbx")
    record = RECORDS["humanoid"]  # SAC, hidden observations, short episodes
    fractions = []
    card = training.train(
        record,
        tmp_path,
        steps=1_000,
        report=lambda stage, fraction, latest: fractions.append((stage, fraction)),
    )
    assert fractions == sorted(fractions, key=lambda found: (found[0] == "Measuring", found[1]))
    files = Files(tmp_path, "humanoid")
    assert card["trained_steps"] == 1_000
    assert card["trained_with"]["sbx-rl"]
    assert experts.load(record, files.weights).card == card
    kept = TrainingState.read(files.checkpoint)
    assert (kept.steps, kept.updates, kept.learning_starts) == (1_000, 450, 100)
    assert kept.replay["observations"].shape == (500, training.ENVIRONMENTS, 45)

    import jax
    from flax.serialization import msgpack_restore, to_bytes

    model = training._model(record, 0, kept.learning_starts)
    average = training._restore(model, model.policy.actor_state.params, kept, 0, files.checkpoint)
    restored, written = (
        msgpack_restore(state) for state in (to_bytes(training._state(model, average)), kept.state)
    )
    assert jax.tree.structure(restored) == jax.tree.structure(written)
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(written)))
    assert (model.num_timesteps, model._n_updates, model.replay_buffer.pos) == (1_000, 450, 500)
    for field in REPLAY:
        assert np.array_equal(
            training._compact(getattr(model.replay_buffer, field)[:500]), kept.replay[field]
        )
    # The average is not the iterate.
    tensors = training.export(model.policy.actor_state.params["params"], 348)
    assert not np.array_equal(
        tensors["mean.weight"], training.export(average["params"], 348)["mean.weight"]
    )

    dataclasses.replace(kept, state=kept.state[:-7]).write(files.checkpoint)
    with pytest.raises(StabError, match="does not fit"):
        training.train(record, tmp_path, steps=2_000)
