"""Training experts: soft actor-critic by sbx, and the average of the actor's iterates."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors.numpy
import safetensors.torch

from stab.files import versions
from stab.registry import StabError, reason
from stab.tasks.control import experts
from stab.tasks.control.experts.folder import (
    REPLAY,
    Best,
    Files,
    TrainingState,
    finished,
    identify,
)
from stab.tasks.control.record import Record
from stab.tasks.environments import make
from stab.tasks.policies import Actor
from stab.tasks.references import RANDOM_SEED, Curve, References, curve, random_returns

# Environments stepped for each gradient step: physics is far cheaper than an update.
ENVIRONMENTS = 2
# Of the average, in gradient steps; it is updated every so many.
HALF_LIFE, AVERAGE_EVERY = 10_000, 20
GAMMA = 1 - 2 ** (-AVERAGE_EVERY / HALF_LIFE)
# Environment steps between evaluations (a tenth of a short training); reset seeds and number of
# their episodes.
EVALUATE_EVERY, EVALUATION_SEED, EVALUATION_EPISODES = 50_000, 10_000, 100
LEARNING_STARTS = 10_000
SHORTEST = 1_000
# fmt: off
PACKAGES = (
    "sbx-rl", "jax", "jaxlib", "flax", "optax", "stable_baselines3", "gymnasium", "mujoco", "numpy",
)
# fmt: on

# Called now and then with the stage ("Training" or "Measuring"), the fraction of it that is done,
# and the latest evaluation in words ("" before the first).
Report = Callable[[str, float, str], None]


def silent(stage: str, fraction: float, latest: str) -> None:
    """Report nothing."""


def train(
    record: Record,
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    report: Report = silent,
) -> dict[str, Any]:
    """Train an expert into ``folder`` (<task>.safetensors, <task>.json) and return its card.

    sbx trains the actor. Evaluated and exported is never the actor but the average of its iterates,

        average <- average + g (iterate - average),  g = max(1 - 2^(-20 / half_life), 1 / k),

    at the k-th multiple of 20 gradient steps, half_life 10,000 gradient steps: a plain mean until
    that memory is full. It removes the oscillation of the return from one checkpoint to the next,
    which is the effect that stab measures: at one checkpoint of ant the iterate returned 3699 +-
    1174 and the average 4356 +- 115, of humanoid 3597 +- 1764 and 5110 +- 21.

    Every 50,000 environment steps (a tenth of a training shorter than 500,000) the average is
    evaluated over 100 greedy episodes, and the best so far by mean - std is written out, with a
    card that says it is unfinished. At the end it is measured over 100 other episodes, and these
    are the returns on the card.

    At every evaluation <task>.checkpoint.npz is replaced (up to 0.5 GB: the replay buffer), and the
    same call resumes from it after an interruption or a kill; with more ``steps`` it resumes a
    finished training. Resuming is not bitwise identical: unfinished episodes are dropped. Every
    file is written under another name first and then renamed.

    Args:
        record: what to train and how.
        folder: created if missing; other tasks' experts may be in it.
        steps: environment steps, at least 1,000 (default: the record's).
        seed: of networks, environments and minibatches.
        report: called with the progress.

    Raises StabError when sbx is not installed, the folder holds another training of the task or one
    that cannot be resumed, or nothing finite was learned.
    """
    steps = record.steps if steps is None else steps
    if steps < SHORTEST:
        raise StabError(f"{steps} environment steps teach nothing: expected at least {SHORTEST:,}")
    done = finished(record, folder, steps, seed)
    if done:
        return done
    files = Files(folder, record.name)
    saved = TrainingState.read(files.checkpoint) if files.checkpoint.exists() else None
    if saved and saved.steps >= steps:  # killed while measuring, or more steps done than asked for
        best, steps = saved.best, saved.steps
    else:
        _import("sbx")
        files.make_folder()
        best = _learn(record, files, saved, steps, seed, report)
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


def _learn(
    record: Record, files: Files, saved: TrainingState | None, steps: int, seed: int, report: Report
) -> Best | None:
    """Train from the checkpoint, or the beginning, to ``steps``; return the best average."""
    starts = saved.learning_starts if saved else min(LEARNING_STARTS, steps // 10)
    model = _model(record, seed, starts)
    jax, to_bytes = _import("jax"), _import("flax.serialization").to_bytes
    average = model.policy.actor_state.params
    best = saved.best if saved else None
    random: Curve | None = None
    if saved:
        average = _restore(model, average, saved, seed, files.checkpoint)
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
        references = References(random=random, expert=best.curve)
        about = _about(record, best, steps, seed, model.num_timesteps)
        files.publish(best.weights, experts.make_card(record, best.weights, references, about))

    if best and not files.hold(best):
        unfinished(best)
    every = evaluate_every(steps)
    while model.num_timesteps < steps:
        until = min(every - model.num_timesteps % every, steps - model.num_timesteps)
        model.learn(until, callback=look, reset_num_timesteps=False, log_interval=None)
        report("Training", model.num_timesteps / steps, latest)
        evaluated = _evaluate(record, average, model.num_timesteps)
        latest = _words(evaluated.curve, evaluated.steps)
        better = math.isfinite(evaluated.score) and (best is None or evaluated.score > best.score)
        if better:
            best = evaluated
        buffer = model.replay_buffer
        TrainingState(
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
    """Environment steps between evaluations, a multiple of the environments."""
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
    """Return the environment of training: the task's, without the masked observations."""
    spec = gym.spec(record.environment)
    masked = {f"include_{part}_in_observation": False for part in record.masked}
    return replace(spec, kwargs={**spec.kwargs, **masked})


def export(params: Mapping[str, Any], observations: int) -> dict[str, np.ndarray]:
    """Return an expert's tensors from those of sbx's actor.

    Args:
        params: Dense_0, Dense_1 (two ReLU layers), Dense_2 (mean), Dense_3 (log of the standard
            deviation), each with kernel (in, out) and bias (out,).
        observations: size of the environment's own observations. Those the actor was trained
            without are the last of them, and the first layer gets zero columns there: weight (out,
            observations).
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
    """All that the next gradient step depends on, except the replay buffer."""
    policy = model.policy
    networks = {name: value for name, value in vars(policy).items() if name.endswith("_state")}
    keys = {"key": model.key, "policy.key": policy.key}
    return {**networks, "ent_coef_state": model.ent_coef_state, **keys, "average": average}


def _restore(model: Any, average: Any, saved: TrainingState, seed: int, path: Path) -> Any:
    """Put the model where the checkpoint was written; return the average."""
    # First, because it sets the keys as well. New episodes, not those of the beginning.
    model.set_random_seed(seed + saved.steps)
    try:
        state = _import("flax.serialization").from_bytes(_state(model, average), saved.state)
        model.key, model.ent_coef_state = state.pop("key"), state.pop("ent_coef_state")
        model.policy.key, average = state.pop("policy.key"), state.pop("average")
        vars(model.policy).update(state)
        buffer, filled = model.replay_buffer, len(saved.replay["rewards"])
        for name in REPLAY:
            getattr(buffer, name)[:filled] = saved.replay[name]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise StabError(
            f"checkpoint {path} does not fit the installed sbx, jax and flax"
            f" ({reason(e)}): resume with the versions on the card, or delete it to"
            " start from scratch"
        ) from e
    buffer.pos, buffer.full = saved.position, filled == buffer.buffer_size
    model.num_timesteps, model._n_updates = saved.steps, saved.updates
    return average


def _compact(array: np.ndarray) -> np.ndarray:
    # Gradients are computed in single precision, so nothing is lost.
    return array.astype(np.float32)


def _about(
    record: Record, best: Best, steps: int, seed: int, so_far: int | None = None
) -> dict[str, Any]:
    """Return what a card says about the training; ``so_far``: steps of an unfinished one."""
    unfinished = {} if so_far is None else {
        "unfinished": f"after {so_far:,} of {steps:,} steps; the returns are those of the episodes"
        " that it was chosen by, which flatter it; the same command resumes"
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
