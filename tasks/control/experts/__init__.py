"""Trained experts, each safetensors and a card: loading, checking and measuring them."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from stab import files
from stab.registry import StabError
from stab.tasks.control.episodes import make_episodes
from stab.tasks.control.record import Record
from stab.tasks.control.rollout import Recorder, rollout
from stab.tasks.environments import make
from stab.tasks.policies import Actor
from stab.tasks.references import (
    EXPERT_SEED,
    RANDOM_SEED,
    Progress,
    References,
    curve,
    no_progress,
    portion,
    random_returns,
    references_from,
)

# Reset seeds of the episodes behind a card, and how many there are of either policy.
EPISODES = 100
# The bits of a product depend on its number of rows: experts always act on this many.
ROWS = 25
PACKAGES = ("gymnasium", "mujoco", "torch", "numpy")


@dataclass(frozen=True)
class Expert:
    """A trained actor.

    Attributes:
        actor: acts greedily in the environment.
        card: who trained it, how, and what it returns; plain data.
        references: the expert's and a random policy's returns over 100 episodes each, from the
            card.
        sha256: of the weights' file.
    """

    actor: Actor
    card: dict[str, Any]
    references: References
    sha256: str


def load(record: Record, path: Path | None = None) -> Expert:
    """Load a task's shipped expert, or the one at ``path`` (.safetensors, card .json beside it).

    Raises StabError when a file is missing or truncated, or the expert is another task's.
    """
    shipped = resources.files("stab.tasks.control.experts") / f"{record.name}.safetensors"
    weights, card = read_weights(path or shipped), read_card(path or shipped)
    what = f"expert {path or record.name}"
    if card["environment"] != record.environment:
        raise StabError(
            f"{what} was trained in {card['environment']}, task {record.name!r} is"
            f" {record.environment}"
        )
    sha256 = hashlib.sha256((path or shipped).read_bytes()).hexdigest()
    if sha256 != card["weights_sha256"]:
        raise StabError(
            f"{what}: the weights are not those its card describes (SHA-256 differs); get both"
            " files again"
        )
    env = make(gym.spec(record.environment))
    try:
        references = references_from(card["references"])
    except StabError as e:
        raise StabError(f"{what}: {e} in its card") from e
    return Expert(make_actor(weights, env, what), card, references, sha256)


def read_weights(path: Any) -> dict[str, Tensor]:
    """Read an actor's tensors. Raises StabError if the file is missing or damaged."""
    try:
        return load_safetensors(path.read_bytes())
    except OSError as e:
        raise StabError(f"expert {path}: {e.strerror or e}; expected a .safetensors file") from e
    except (SafetensorError, ValueError) as e:
        raise StabError(
            f"expert {path} is truncated or not a safetensors file ({e}); get it again"
        ) from e


def read_card(path: Any) -> dict[str, Any]:
    """Read the card beside an actor's weights. Raises StabError if it is missing or not a card."""
    card = _beside(path)
    try:
        data = json.loads(card.read_text())
    except (OSError, ValueError) as e:
        raise StabError(
            f"expert {path}: cannot read its card {card}: {e}; expected the .json beside the"
            " weights"
        ) from e
    missing = {"environment", "weights_sha256", "references", "algorithm"} - set(
        data if isinstance(data, dict) else ()
    )
    if missing:
        raise StabError(f"expert {path}: its card {card} lacks {', '.join(sorted(missing))}")
    return dict(data)


def _beside(path: Any) -> Any:
    if isinstance(path, Path):
        return path.with_suffix(".json")
    return resources.files("stab.tasks.control.experts") / path.name.replace(
        ".safetensors", ".json"
    )


def make_actor(weights: dict[str, Tensor], env: gym.Env[Any, Any], what: str) -> Actor:
    """Return the greedy actor. Raises StabError if the tensors do not fit the environment."""
    assert isinstance(env.observation_space, gym.spaces.Box)
    assert isinstance(env.action_space, gym.spaces.Box)
    try:
        inputs, outputs = weights["trunk.0.weight"].shape[1], weights["mean.weight"].shape[0]
        actor = Actor(weights, env.action_space)
    except (KeyError, IndexError, RuntimeError) as e:
        raise StabError(
            f"{what} does not hold an expert's network: {' '.join(str(e).split())}"
        ) from e
    sizes = (env.observation_space.shape[0], env.action_space.shape[0])
    if (inputs, outputs) != sizes:
        raise StabError(
            f"{what} reads {inputs} observations and gives {outputs} actions, its environment has"
            f" {sizes[0]} and {sizes[1]}: it is an expert of another task"
        )
    return actor


def act(
    actor: Actor,
    spec: gym.envs.registration.EnvSpec,
    seeds: Sequence[int],
    progress: Progress = no_progress,
    record: Recorder | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Roll out an actor greedily from each reset seed, on all cores.

    Returns cumulative rewards (episodes, max_episode_steps) and lengths (episodes,). ``record``
    sees every step with the number of its episode; the steps of an episode come in order, different
    episodes from different threads.
    """
    horizon = spec.max_episode_steps or 1000
    stacked = {name: value[None] for name, value in actor.state_dict().items()}
    firsts = range(0, len(seeds), ROWS)
    done = dict.fromkeys(firsts, 0.0)
    stop = threading.Event()

    def block(first: int) -> tuple[np.ndarray, np.ndarray]:
        def tick(fraction: float) -> None:
            if stop.is_set():
                raise concurrent.futures.CancelledError
            done[first] = fraction * len(seeds[first : first + ROWS]) / len(seeds)
            progress(sum(done.values()))

        chosen = list(seeds[first : first + ROWS])
        # The last block is filled up, so that an episode's bits do not depend on how many are asked
        # for.
        filled = chosen + [chosen[-1]] * (ROWS - len(chosen))
        see = record and (lambda n, *step: record(first + n, *step) if n < len(chosen) else None)
        curves, lengths = rollout(
            make_episodes(spec), actor, stacked, filled, range(1, horizon + 1), tick, see
        )
        return curves[0, : len(chosen)], lengths[0, : len(chosen)]

    # Threads, because mj_step releases the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            blocks = list(pool.map(block, firsts))
        finally:
            stop.set()
    return np.concatenate([curves for curves, _ in blocks]), np.concatenate(
        [lengths for _, lengths in blocks]
    )


def measure(record: Record, actor: Actor, progress: Progress = no_progress) -> References:
    """Measure what a card says: 100 greedy episodes, and 100 of random actions."""
    spec = gym.spec(record.environment)
    seeds = range(EXPERT_SEED, EXPERT_SEED + EPISODES)
    expert = act(actor, spec, seeds, portion(progress, 0.0, 0.8))
    random = random_returns(
        make(spec),
        range(RANDOM_SEED, RANDOM_SEED + EPISODES),
        spec.max_episode_steps or 1000,
        portion(progress, 0.8, 0.2),
    )
    return References(random=curve(*random, RANDOM_SEED), expert=curve(*expert, EXPERT_SEED))


def make_card(
    record: Record, weights: bytes, references: References, about: dict[str, Any]
) -> dict[str, Any]:
    """Return the card of an actor: what it was measured to return, and ``about`` its training."""
    expert = references.expert
    mean = expert.cumulative[-1]
    short = (
        {}
        if mean >= record.target_return
        else {"falls_short": f"of a mean return of {record.target_return:.0f}"}
    )
    return {
        "task": record.name,
        "environment": record.environment,
        **about,
        "return_mean": round(mean, 1),
        "return_std": round(expert.std, 1),
        "length_mean": round(expert.length, 1),
        "goal": record.target_return,
        **short,
        "evaluation": f"{expert.episodes} greedy episodes, reset seeds {expert.first_seed} to"
        f" {expert.first_seed + expert.episodes - 1}",
        "evaluated_with": files.versions(PACKAGES),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "references": asdict(references),
    }
