"""Training experts: soft actor-critic by sbx, of which the average of the actor's iterates is kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import gymnasium as gym
import numpy as np
import safetensors.numpy
import safetensors.torch

from stab.files import versions
from stab.registry import StabError
from stab.tasks.control import experts
from stab.tasks.control.record import Record
from stab.tasks.environments import make
from stab.tasks.policies import Actor
from stab.tasks.references import RANDOM_SEED, Curve, References, curve, random_returns

# Environments stepped for each gradient step: physics is far cheaper than an update.
ENVIRONMENTS = 2
# Of the average, in gradient steps; it is updated every so many.
HALF_LIFE, AVERAGE_EVERY = 10_000, 20
GAMMA = 1 - 2 ** (-AVERAGE_EVERY / HALF_LIFE)
# Environment steps between evaluations (a tenth of a short training); reset seeds and number of their episodes.
EVALUATE_EVERY, EVALUATION_SEED, EVALUATION_EPISODES = 50_000, 10_000, 20
LEARNING_STARTS = 10_000
SHORTEST = 1_000
PACKAGES = (
    "sbx-rl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "stable_baselines3",
    "gymnasium",
    "mujoco",
    "numpy",
)
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")

# Called now and then with the stage ("Training" or "Measuring"), the fraction of it that is done, and the latest
# evaluation in words ("" before the first).
Report = Callable[[str, float, str], None]


def silent(stage: str, fraction: float, latest: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Best:
    """The best average so far.

    Attributes:
        weights: safetensors, as experts are shipped.
        steps: environment steps at which it was read.
        curve: its evaluation.
    """

    weights: bytes
    steps: int
    curve: Curve

    @property
    def score(self) -> float:
        """Mean - standard deviation of the return: an expert is to be good every time."""
        return self.curve.cumulative[-1] - self.curve.std


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from: data only, in one file that is replaced whole.

    Attributes:
        identity: of the training, see ``identify``.
        steps, updates: environment and gradient steps so far.
        learning_starts: environment steps of random actions before the first gradient step.
        best: the best average so far, None before the first evaluation.
        state: networks, optimizers, average and random keys, as flax's msgpack.
        replay: filled part of the replay buffer, arrays (steps, environments, ...), and the position of the next write.
    """

    identity: dict[str, Any]
    steps: int
    updates: int
    learning_starts: int
    best: Best | None
    state: bytes
    replay: dict[str, np.ndarray]
    position: int

    def write(self, path: Path) -> None:
        """Replace the file at ``path``."""
        best = self.best and {"steps": self.best.steps, "curve": asdict(self.best.curve)}
        numbers = {
            name: getattr(self, name)
            for name in ("identity", "steps", "updates", "learning_starts", "position")
        }
        arrays = {
            "about": np.frombuffer(json.dumps({**numbers, "best": best}).encode(), np.uint8),
            "best": np.frombuffer(self.best.weights if self.best else b"", np.uint8),
            "state": np.frombuffer(self.state, np.uint8),
            **self.replay,
        }
        _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read one. Raises StabError when it is truncated or none."""

        def read(found: Any) -> Checkpoint:
            about = json.loads(found["about"].tobytes())
            best = about.pop("best")
            return cls(
                best=Best(found["best"].tobytes(), best["steps"], Curve(**best["curve"]))
                if best
                else None,
                state=found["state"].tobytes(),
                replay={name: found[name] for name in REPLAY},
                **about,
            )

        return _open(path, read)


T = TypeVar("T")


def _open(path: Path, read: Callable[[Any], T]) -> T:
    try:
        with np.load(path, allow_pickle=False) as found:
            return read(found)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise StabError(f"checkpoint {path} cannot be read ({e}): delete it to begin anew") from e


def train(
    record: Record,
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    report: Report = silent,
) -> dict[str, Any]:
    """Train an expert into ``folder`` and return its card, which is <task>.json beside <task>.safetensors.

    sbx trains the actor; what is evaluated and exported is never the actor but the average of its iterates,

        average <- average + g (iterate - average),  g = max(1 - 2^(-20 / half_life), 1 / k),

    at the k-th multiple of 20 gradient steps, half_life 10,000 gradient steps: a plain mean until that memory is full.
    It removes the oscillation of the return from one checkpoint to the next, which is the effect that stab measures:
    at one checkpoint of ant the iterate returned 3699 +- 1174 and the average 4356 +- 115, of humanoid 3597 +- 1764 and
    5110 +- 21.

    Every 50,000 environment steps (a tenth of a training shorter than 500,000) the average is evaluated over 20 greedy
    episodes, and the best so far by mean - std is written out, with a card that says it is unfinished. At the end it
    is measured over 100 other episodes, and these are the returns on the card.

    At every evaluation <task>.checkpoint.npz is replaced (up to 0.5 GB: the replay buffer), and the same call goes on
    from it after an interruption or a kill; with more ``steps`` it goes on from a finished training. Going on is not bit
    for bit what an uninterrupted training had been: the episodes under way are not kept, new ones are begun. Every
    file is written under another name first and then renamed.

    Args:
        record: what to train and how.
        folder: made if missing; other tasks' experts may be in it.
        steps: environment steps, at least 1,000 (default: the record's).
        seed: of networks, environments and minibatches.
        report: told of the progress.

    Raises StabError when sbx is not installed, the folder holds another training of the task or one that cannot be
    gone on with, or nothing finite was learned.
    """
    steps = record.steps if steps is None else steps
    if steps < SHORTEST:
        raise StabError(f"{steps} environment steps teach nothing: expected at least {SHORTEST:,}")
    done = finished(record, folder, steps, seed)
    if done:
        return done
    files = Files(folder, record.name)
    kept = Checkpoint.read(files.checkpoint) if files.checkpoint.exists() else None
    if (
        kept and kept.steps >= steps
    ):  # killed while measuring, or fewer steps asked for than were taken
        best, steps = kept.best, kept.steps
    else:
        _import("sbx")
        _make(folder)
        best = _learn(record, files, kept, steps, seed, report)
    if best is None:
        raise StabError(
            f"training {record.name} diverged: no evaluation gave a finite return; try another seed"
        )
    latest = _words(best.curve, best.steps)
    references = experts.measure(
        record, _actor(record, best.weights), lambda fraction: report("Measuring", fraction, latest)
    )
    return files.publish(
        best.weights,
        experts.make_card(record, best.weights, references, _about(record, best, steps, seed)),
    )


def finished(record: Record, folder: Path, steps: int, seed: int) -> dict[str, Any] | None:
    """Return the card where ``folder`` holds the finished training of at least so many steps, None where there is none.

    Raises StabError where it holds something that must not be overwritten: another training of this task, or an expert
    whose checkpoint is gone.
    """
    files, wanted = Files(folder, record.name), identify(record, seed)
    if files.checkpoint.exists():
        about = _open(
            files.checkpoint, lambda found: json.loads(found["about"].tobytes())["identity"]
        )
        _same(about, wanted, files.checkpoint)
    elif not files.weights.exists() and not files.card.exists():
        return None
    try:
        card = experts.load(record, files.weights).card
    except StabError:
        if (
            files.checkpoint.exists()
        ):  # killed between writing the weights and the card: both are in the checkpoint
            return None
        raise
    _same(card, wanted, files.weights)
    if "unfinished" not in card and card.get("trained_steps", 0) >= steps:
        return card
    if not files.checkpoint.exists():
        raise StabError(
            f"{files.weights} is there, trained for {card.get('trained_steps', 'unknown')} steps, but its checkpoint"
            f" {files.checkpoint.name} to go on from is not: choose another folder (--out), or move the expert away"
        )
    return None


def identify(record: Record, seed: int) -> dict[str, Any]:
    """Return what makes two trainings the same one, whatever their number of steps; part of the card."""
    return {
        "task": record.name,
        "environment": record.environment,
        "algorithm": record.algorithm,
        "algorithm_args": record.algorithm_args,
        "hidden": list(record.masked),
        "training_seed": seed,
    }


def _same(found: Mapping[str, Any], wanted: dict[str, Any], path: Path) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise StabError(
                f"{path} is of another training: {key.replace('_', ' ')} {found.get(key)}, not {value}; choose another"
                " folder (--out), or move it away"
            )


@dataclass(frozen=True)
class Files:
    """Where a training of one task keeps what it has."""

    folder: Path
    task: str

    @property
    def weights(self) -> Path:
        """The best actor so far."""
        return self.folder / f"{self.task}.safetensors"

    @property
    def card(self) -> Path:
        """Its card."""
        return self.folder / f"{self.task}.json"

    @property
    def checkpoint(self) -> Path:
        """What an interrupted training goes on from."""
        return self.folder / f"{self.task}.checkpoint.npz"

    def publish(self, weights: bytes, card: dict[str, Any]) -> dict[str, Any]:
        """Write an actor and its card; return the card."""
        lines = ",\n".join(
            f" {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items()
        )
        _write(self.weights, lambda file: file.write(weights))
        _write(self.card, lambda file: file.write(f"{{\n{lines}\n}}\n".encode()))
        return card

    def hold(self, best: Best) -> bool:
        """Whether weights and card on disk are these."""
        try:
            described = experts.read_card(self.weights)["weights_sha256"]
            return (
                self.weights.read_bytes() == best.weights
                and described == hashlib.sha256(best.weights).hexdigest()
            )
        except (OSError, StabError):
            return False


def _make(folder: Path) -> None:
    """Make the folder now: that it cannot be written is not to come out after an hour."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise StabError(f"cannot write {folder}: {e.strerror or e}") from e


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
        part.replace(path)
    except OSError as e:
        raise StabError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _learn(
    record: Record, files: Files, kept: Checkpoint | None, steps: int, seed: int, report: Report
) -> Best | None:
    """Train from the checkpoint, or the beginning, to ``steps``; return the best average."""
    starts = kept.learning_starts if kept else min(LEARNING_STARTS, steps // 10)
    model = _model(record, seed, starts)
    jax, to_bytes = _import("jax"), _import("flax.serialization").to_bytes
    average = model.policy.actor_state.params
    best = kept.best if kept else None
    random: Curve | None = None
    if kept:
        average = _restore(model, average, kept, seed, files.checkpoint)
    latest = _words(best.curve, best.steps) if best else ""
    blend = jax.jit(lambda old, new, g: jax.tree.map(lambda a, b: a + g * (b - a), old, new))

    def look(_locals: Any, _globals: Any) -> bool:
        nonlocal average
        updates = model._n_updates
        if updates and updates % AVERAGE_EVERY == 0:
            g = max(GAMMA, AVERAGE_EVERY / updates)
            average = blend(average, model.policy.actor_state.params, g)
        if model.num_timesteps % 100 == 0:
            report("Training", model.num_timesteps / steps, latest)
        return True

    def unfinished(best: Best) -> None:
        nonlocal random
        random = random or _random(record)
        found = References(random=random, expert=best.curve)
        about = _about(record, best, steps, seed, model.num_timesteps)
        files.publish(best.weights, experts.make_card(record, best.weights, found, about))

    if best and not files.hold(best):
        unfinished(best)
    every = evaluate_every(steps)
    while model.num_timesteps < steps:
        until = min(every - model.num_timesteps % every, steps - model.num_timesteps)
        model.learn(until, callback=look, reset_num_timesteps=False, log_interval=None)
        report("Training", model.num_timesteps / steps, latest)
        found = _evaluate(record, average, model.num_timesteps)
        latest = _words(found.curve, found.steps)
        better = math.isfinite(found.score) and (best is None or found.score > best.score)
        if better:
            best = found
        buffer = model.replay_buffer
        Checkpoint(
            identify(record, seed),
            model.num_timesteps,
            model._n_updates,
            starts,
            best,
            to_bytes(_state(model, average)),
            {name: _compact(getattr(buffer, name)[: buffer.size()]) for name in REPLAY},
            buffer.pos,
        ).write(files.checkpoint)
        if better and best:
            # After the checkpoint, which holds it too: a kill in between loses nothing.
            unfinished(best)
        report("Training", model.num_timesteps / steps, latest)
    return best


def evaluate_every(steps: int) -> int:
    """Environment steps between evaluations of a training of ``steps``; a multiple of the environments."""
    return min(EVALUATE_EVERY, steps // 10) // ENVIRONMENTS * ENVIRONMENTS


def _import(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their dependencies' deprecations are not the user's
            return importlib.import_module(module)
    except ImportError as e:
        raise StabError(
            f"training an expert needs sbx ({e}): pip install 'stab-gva[experts]'"
        ) from e


def _model(record: Record, seed: int, learning_starts: int) -> Any:
    sbx, vector = _import("sbx"), _import("stable_baselines3.common.vec_env")
    spec = visible(record)
    return getattr(sbx, record.algorithm)(
        "MlpPolicy",
        vector.DummyVecEnv([lambda: make(spec)] * ENVIRONMENTS),
        seed=seed,
        learning_starts=learning_starts,
        train_freq=1,
        gradient_steps=1,
        **record.algorithm_args,
    )


def visible(record: Record) -> gym.envs.registration.EnvSpec:
    """Return the environment an expert is trained in: the task's without the hidden parts of its observations."""
    spec = gym.spec(record.environment)
    return replace(
        spec,
        kwargs={
            **spec.kwargs,
            **{f"include_{part}_in_observation": False for part in record.masked},
        },
    )


def export(params: Mapping[str, Any], observations: int) -> dict[str, np.ndarray]:
    """Return an expert's tensors from those of sbx's actor.

    Args:
        params: Dense_0, Dense_1 (two ReLU layers), Dense_2 (mean), Dense_3 (log of the standard deviation), each with
            kernel (in, out) and bias (out,).
        observations: size of the environment's own observations. Those the actor was trained without are the last of
            them, and the first layer gets zero columns there: weight (out, observations).
    """
    tensors = {}
    for i, layer in enumerate(("trunk.0", "trunk.1", "mean", "log_std")):
        weight = np.asarray(params[f"Dense_{i}"]["kernel"], dtype=np.float32).T
        if i == 0:
            weight = np.pad(weight, ((0, 0), (0, observations - weight.shape[1])))
        tensors[f"{layer}.weight"] = np.ascontiguousarray(weight)
        tensors[f"{layer}.bias"] = np.asarray(params[f"Dense_{i}"]["bias"], dtype=np.float32)
    return tensors


def _actor(record: Record, weights: bytes) -> Actor:
    env = make(gym.spec(record.environment))
    return experts.make_actor(safetensors.torch.load(weights), env, f"expert {record.name}")


def _evaluate(record: Record, average: Any, steps: int) -> Best:
    """Evaluate the average with stab's own rollouts: what counts is the exported file."""
    spec = gym.spec(record.environment)
    space = make(spec).observation_space
    assert space.shape is not None
    weights = safetensors.numpy.save(export(average["params"], space.shape[0]))
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + EVALUATION_EPISODES)
    return Best(
        weights, steps, curve(*experts.act(_actor(record, weights), spec, seeds), EVALUATION_SEED)
    )


def _random(record: Record) -> Curve:
    """A random policy's returns for an unfinished card: fewer episodes than a finished one has."""
    spec = gym.spec(record.environment)
    seeds = range(RANDOM_SEED, RANDOM_SEED + EVALUATION_EPISODES)
    return curve(*random_returns(make(spec), seeds, spec.max_episode_steps or 1000), RANDOM_SEED)


def _state(model: Any, average: Any) -> dict[str, Any]:
    """Everything the next gradient step depends on but the replay buffer: networks, optimizers, keys."""
    networks = {
        name: value for name, value in vars(model.policy).items() if name.endswith("_state")
    }
    return {
        **networks,
        "ent_coef_state": model.ent_coef_state,
        "key": model.key,
        "policy.key": model.policy.key,
        "average": average,
    }


def _restore(model: Any, average: Any, kept: Checkpoint, seed: int, path: Path) -> Any:
    """Put the model where the checkpoint was written; return the average."""
    # First, because it sets the keys, too. New episodes, not those the training began with.
    model.set_random_seed(seed + kept.steps)
    try:
        state = _import("flax.serialization").from_bytes(_state(model, average), kept.state)
        model.key, model.ent_coef_state = state.pop("key"), state.pop("ent_coef_state")
        model.policy.key, average = state.pop("policy.key"), state.pop("average")
        vars(model.policy).update(state)
        buffer, filled = model.replay_buffer, len(kept.replay["rewards"])
        for name in REPLAY:
            getattr(buffer, name)[:filled] = kept.replay[name]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise StabError(
            f"checkpoint {path} does not fit the installed sbx, jax and flax"
            f" ({' '.join(str(e).split())}): go on with the versions on the card, or delete it to begin anew"
        ) from e
    buffer.pos, buffer.full = kept.position, filled == buffer.buffer_size
    model.num_timesteps, model._n_updates = kept.steps, kept.updates
    return average


def _compact(array: np.ndarray) -> np.ndarray:
    # Gradients are computed in single precision: what is dropped here would be dropped there.
    return array.astype(np.float32)


def _about(
    record: Record, best: Best, steps: int, seed: int, so_far: int | None = None
) -> dict[str, Any]:
    """Return what a card says about the training; ``so_far`` environment steps of an unfinished one."""
    unfinished = {} if so_far is None else {
        "unfinished": f"after {so_far:,} of {steps:,} steps; the returns are those of the episodes that it was chosen by,"
        " which flatter it; the command goes on"
    }  # fmt: skip
    return {
        **identify(record, seed),
        "environment_steps": best.steps,
        "trained_steps": steps if so_far is None else so_far,
        **unfinished,
        "exported": f"average of the actor's iterates (half-life {HALF_LIFE:,} gradient steps)",
        "selected": f"best of checkpoints every {evaluate_every(steps):,} steps by mean - std over"
        f" {EVALUATION_EPISODES} greedy episodes",
        "environments": ENVIRONMENTS,
        "command": f"stab expert train {record.name} --steps {steps} --seed {seed}",
        "trained_with": versions(PACKAGES),
    }


def _words(curve: Curve, steps: int) -> str:
    return f"{curve.cumulative[-1]:.0f} +- {curve.std:.0f} at {steps:,} steps"
