"""MuJoCo locomotion: a task is a catalogue record, a trained expert, and a dataset collected from it on first use."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from safetensors.torch import load as load_safetensors
from torch import Tensor

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import datasets
from stab.tasks.base import Curve, Demonstrations, Progress, References, Task, no_progress
from stab.tasks.catalog import CATALOG, Record
from stab.tasks.episodes import Episodes, make, make_episodes
from stab.tasks.policies import Actor, Policy, build, output_size
from stab.tasks.rollout import random_returns, rollout

# Reset seeds: the dataset's episodes are the first of the expert's reference episodes.
EXPERT_SEED, RANDOM_SEED, REFERENCE_EPISODES = 0, 30_000, 100
COLLECT_ROWS = 25
PACKAGES = ("gymnasium", "mujoco", "torch", "numpy")


@dataclass(frozen=True)
class Locomotion(Task):
    """A MuJoCo environment with a shipped expert.

    Args:
        record: the catalogue's record.
    Further arguments as for ``Task``. A dataset without reference returns of stab's making is normalised by those of the
    task's own dataset, measured in the same environment (and collected for that, if need be).

    The loss is the mean squared error of the action; Box actions stay
    within the action space.
    """

    record: Record = CATALOG[0]

    def ready(self) -> bool:
        return datasets.exists(self.demonstrations_id)

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write the task's own dataset into Minari's root from greedy episodes of the shipped expert.

        Reference returns are measured on the way: the expert's over at least 100 episodes, of which the first are the
        dataset's; the random policy's over 100.
        """
        episodes = self.record.episodes if episodes is None else episodes
        expert, card, sha256 = self._expert()
        count = max(REFERENCE_EPISODES, episodes)
        seeds = list(range(EXPERT_SEED, EXPERT_SEED + count))
        stacked = {name: value[None] for name, value in expert.state_dict().items()}
        steps: list[list[tuple[Any, ...]]] = [[] for _ in seeds]
        blocks = [seeds[first : first + COLLECT_ROWS] for first in range(0, count, COLLECT_ROWS)]
        done = [0.0] * len(blocks)
        stop = threading.Event()

        def collect_block(number: int) -> tuple[np.ndarray, np.ndarray]:
            def tick(fraction: float) -> None:
                if stop.is_set():
                    raise concurrent.futures.CancelledError
                done[number] = fraction * len(blocks[number]) / count
                progress(sum(done))

            first = number * COLLECT_ROWS
            return rollout(
                make_episodes(self._spec),
                expert,
                stacked,
                blocks[number],
                range(1, self.horizon + 1),
                tick,
                record=lambda n, *step: steps[first + n].append(step),
            )

        # Threads, because mj_step releases the interpreter's lock.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                found = list(pool.map(collect_block, range(len(blocks))))
            finally:
                stop.set()
        curves = np.concatenate([cumulative[0] for cumulative, _ in found])
        lengths = np.concatenate([length[0] for _, length in found])
        random_curves, random_lengths = random_returns(
            self._env, range(RANDOM_SEED, RANDOM_SEED + REFERENCE_EPISODES), self.horizon
        )
        references = References(
            random=_curve(random_curves, random_lengths, RANDOM_SEED),
            expert=_curve(curves, lengths, EXPERT_SEED),
        )
        datasets.create(
            replace(self, dataset_id=None).demonstrations_id,
            [_buffer(steps[i], seed) for i, seed in enumerate(seeds[:episodes])],
            self._spec,
            references,
            {"expert_sha256": sha256, "expert": card, "versions": {p: version(p) for p in PACKAGES}},
            algorithm_name=f"{card['algorithm']} (greedy)",
            author="stab",
            description=f"{episodes} greedy episodes of stab's {self.name} expert in {self.record.environment}.",
            requirements=[f"{package}=={version(package)}" for package in ("gymnasium", "mujoco")],
        )

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        if "_demonstrations" not in self.__dict__:
            self.__dict__["_demonstrations"] = self._load(progress)
        found: Demonstrations = self.__dict__["_demonstrations"]
        return found

    def _load(self, progress: Progress) -> Demonstrations:
        if self.dataset_id is None and not self.ready():
            self.collect(progress)
        found = datasets.load(self.demonstrations_id)
        self._check_environment(found)
        about = datasets.stab_metadata(found)
        if "references" not in about:
            # Somebody else's dataset of this environment: what random and expert return is the environment's, not its own.
            own = replace(self, dataset_id=None)
            if not own.ready():
                own.collect(progress)
            about |= {"references": datasets.stab_metadata(datasets.load(own.demonstrations_id))["references"]}
        train, validation = datasets.split(found, self.train_episodes, self.validation_episodes)
        return Demonstrations(
            train,
            validation,
            datasets.references_from(about["references"]),
            found.id,
            datasets.digest(train, validation),
            about.get("expert_sha256"),
            self.record.environment,
        )

    def _check_environment(self, found: minari.MinariDataset) -> None:
        """Raise StabError unless the dataset was recorded in this task's environment, arguments and wrappers included."""
        spec = found.env_spec
        environment = spec.id if spec else "no environment"
        if environment != self.record.environment:
            raise StabError(
                f"dataset {found.id!r} was recorded in {environment}, task {self.name!r} is {self.record.environment}:"
                " choose a dataset of the same environment"
            )
        for what in ("kwargs", "additional_wrappers", "max_episode_steps"):
            theirs, ours = getattr(spec, what), getattr(self._spec, what)
            if theirs != ours:
                raise StabError(
                    f"dataset {found.id!r} was recorded in {environment} with {what}={theirs}, task {self.name!r} has"
                    f" {what}={ours}: choose a dataset of the same environment"
                )

    def policy(self, recipe: Recipe) -> Policy:
        mean, std = self._statistics
        return build(recipe, mean, std, self._env.action_space)

    def loss(self, policy: Any, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(batch)
        return loss

    def rollout(
        self,
        policy: Any,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        return rollout(self._episodes, policy, stacked, starts, horizons, progress)

    def speed(self, recipe: Recipe) -> tuple[float, float]:
        env = self._env
        assert isinstance(env.observation_space, gym.spaces.Box)
        size = math.prod(env.observation_space.shape)
        policy = build(recipe, torch.zeros(size), torch.ones(size), env.action_space)
        outputs = output_size(env.action_space)
        batch = {
            "observations": torch.randn(recipe.batch_size, size),
            "actions": torch.zeros(recipe.batch_size, outputs),
        }
        optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

        def update() -> None:
            optimizer.zero_grad()
            policy.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        # Where random actions fall at once, a reset is a good part of the cost: step on.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers
        self._episodes.reset([0] * 8)
        action = np.zeros((8, outputs), dtype=np.float32)

        def step() -> None:
            self._episodes.step(range(8), action)

        try:
            return _seconds(update, 0.4), _seconds(step, 0.4) / 8
        finally:
            torch.set_num_threads(threads)

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        return gym.spec(self.record.environment)

    @functools.cached_property
    def _env(self) -> gym.Env[Any, Any]:
        return make(self._spec)

    @functools.cached_property
    def _episodes(self) -> Episodes:
        return make_episodes(self._spec)

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        train = self.dataset().train
        assert isinstance(train, datasets.Transitions)
        std, mean = torch.std_mean(train.observations.double(), dim=0, correction=0)
        # A constant observation carries nothing: leave its scale alone.
        return mean.float(), torch.where(std > 1e-6, std, 1.0).float()

    def _expert(self) -> tuple[Actor, dict[str, Any], str]:
        """Return the shipped expert, its card and the SHA-256 of its weights."""
        folder = resources.files("stab.tasks.experts")
        weights = (folder / f"{self.name}.safetensors").read_bytes()
        card = json.loads((folder / f"{self.name}.json").read_text())
        space = self._env.action_space
        assert isinstance(space, gym.spaces.Box)
        return Actor(load_safetensors(weights), space), card, hashlib.sha256(weights).hexdigest()


def _seconds(function: Callable[[], None], budget: float) -> float:
    """Return the mean wall seconds of a call, measured for about ``budget`` seconds after a short warm-up."""
    for _ in range(10):
        function()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < budget:
        function()
        calls += 1
    return (time.perf_counter() - began) / calls


def _curve(cumulative: np.ndarray, lengths: np.ndarray, first_seed: int) -> Curve:
    return Curve(
        cumulative=cumulative.mean(0).tolist(),
        std=float(cumulative[:, -1].std(ddof=1)),
        episodes=len(cumulative),
        first_seed=first_seed,
        length=float(lengths.mean()),
    )


def _buffer(steps: list[tuple[Any, ...]], seed: int) -> EpisodeBuffer:
    observations, actions, rewards, terminations, truncations, following = zip(*steps, strict=True)
    return EpisodeBuffer(
        seed=seed,
        observations=np.array([*observations, following[-1]]),
        actions=np.array(actions),
        rewards=np.array(rewards),
        terminations=np.array(terminations),
        truncations=np.array(truncations),
    )
