"""MuJoCo locomotion: a record, a trained expert, and a dataset collected from it on first use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import minari
import numpy as np
import torch

from stab.files import versions
from stab.registry import StabError
from stab.tasks import datasets, own, rebuild
from stab.tasks.base import Demonstrations
from stab.tasks.control import experts
from stab.tasks.control.record import RECORDS, Record
from stab.tasks.control.rollout import Recorder, rollout
from stab.tasks.control.task import Control
from stab.tasks.policies import Actor
from stab.tasks.references import Progress, References, no_progress
from stab.tasks.transitions import Batch, Transitions

FRESH_SEED = 1_000_000  # reset seeds of the infinite regime begin here, far from all others
FRESH_ROWS = 5  # episodes that are added at a time if the first ones ended early


@dataclass(frozen=True)
class Locomotion(Control):
    """A MuJoCo environment with an expert.

    Args:
        name: of the record in ``RECORDS``.
        expert: weights of another expert than the shipped one (its card beside it).
    Further arguments as for ``Task``. Returns are normalised by the references on the expert's
    card, whatever the dataset: they belong to the environment and its version. A dataset of the
    same environment that shows other parts of the state is welcome; one with other rewards, ends or
    time limit is refused.
    """

    expert: Path | None = None
    has_fresh_episodes: ClassVar[bool] = True

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write greedy episodes of the expert, reset seeds 0, 1, ..., into Minari's root.

        Existing episodes are collected again and come out the same: a larger dataset begins with
        the smaller one.
        """
        if self.dataset_id is not None and self.expert is None:
            raise StabError(
                f"{self.dataset_id!r} is not stab's to collect: leave out --dataset, or give"
                " --expert"
            )
        expert = experts.load(self.record, self.expert)
        count = own.count(self, episodes)
        spec = gym.spec(self.record.environment)
        steps: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
        experts.act(
            expert.actor, spec, range(count), progress, lambda n, *step: steps[n].append(step)
        )
        datasets.create(
            self.demonstrations_id,
            [
                datasets.episode(
                    seed,
                    [*(step[0] for step in episode), episode[-1][-1]],
                    [step[1:-1] for step in episode],
                )
                for seed, episode in enumerate(steps)
            ],
            spec,
            expert.references,
            {
                "expert_sha256": expert.sha256,
                "expert": {key: value for key, value in expert.card.items() if key != "references"},
                "versions": versions(experts.PACKAGES),
            },
            larger=self.dataset_id is None,
            algorithm_name=f"{expert.card['algorithm']} (greedy)",
            author="stab",
            description=f"{count} greedy episodes of stab's {self.name} expert in {spec.id}.",
            requirements=[
                f"{name}=={version}" for name, version in versions(("gymnasium", "mujoco")).items()
            ],
        )

    def _load(self, progress: Progress) -> Demonstrations:
        demonstrations = super()._load(progress)
        if (
            self.dataset_id is None
            and demonstrations.expert_sha256 != experts.load(self.record).sha256
        ):
            raise StabError(
                f"dataset {demonstrations.dataset!r} was collected from another expert than the"
                f" one shipped with this stab: delete it (stab data remove {self.name}) to collect"
                " it again"
            )
        if not self.infinite:
            return demonstrations
        if self.dataset_id is not None:
            raise StabError(
                "data.infinite draws fresh episodes from the task's expert: leave out --dataset"
            )
        assert isinstance(demonstrations.train, Transitions)
        return replace(demonstrations, train=Fresh(self, demonstrations.train))

    def record_episodes(self, actor: Actor, starts: Sequence[int], record: Recorder) -> None:
        """Roll out an actor from the given reset seeds and show every step to ``record``."""
        stacked = {name: value[None] for name, value in actor.state_dict().items()}
        rollout(self._episodes, actor, stacked, starts, [self.horizon], record=record)

    def _references(self, dataset: minari.MinariDataset, progress: Progress) -> References:
        return datasets.stated_references(dataset) or experts.load(self.record).references

    @property
    def record(self) -> Record:
        """What the expert was trained in, and how."""
        return RECORDS[self.name]

    @property
    def environment(self) -> str:
        """Gymnasium id."""
        return self.record.environment

    @functools.cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        own = gym.spec(self.record.environment)
        if not datasets.exists(self.demonstrations_id) and self.dataset_id is None:
            return own
        dataset = datasets.load(self.demonstrations_id)
        recorded = dataset.env_spec
        other = recorded.id if recorded else "no environment"
        if recorded is None or other != own.id:
            raise StabError(
                f"dataset {dataset.id!r} was recorded in {other}, task {self.name!r} is {own.id}:"
                " choose a dataset of the same environment and version"
            )
        differing = rebuild.rewards_differ(recorded)
        if differing:
            raise StabError(
                f"dataset {dataset.id!r} was recorded in {own.id} with {differing}: its returns"
                f" cannot be compared with those of task {self.name!r}. Compare on it alone: --task"
                f" recorded --dataset {dataset.id}"
            )
        return rebuild.environment(dataset)


class Fresh:
    """Fresh expert episodes for every epoch: no transition is ever drawn twice.

    Args:
        task: whose expert acts.
        finite: the training transitions of the ordinary regime; an epoch is as long, and
            observations are normalised by their statistics.
    """

    def __init__(self, task: Locomotion, finite: Transitions) -> None:
        self.task, self.finite, self.observations = task, finite, finite.observations
        self._kept: tuple[tuple[int, int], Transitions] | None = None

    def __len__(self) -> int:
        return len(self.finite)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return transitions of the ordinary regime (to read a few without training on them)."""
        return self.finite.batch(indices)

    def to(self, device: torch.device) -> Fresh:
        """Return the same, whose transitions come on a device."""
        return Fresh(self.task, self.finite.to(device))

    def pool(self, seed: int, epoch: int) -> Transitions:
        """Return one epoch's transitions: whole episodes except the last, of new reset seeds."""
        if self._kept is None or self._kept[0] != (seed, epoch):
            self._kept = (seed, epoch), self._collect(seed, epoch)
        return self._kept[1]

    def _collect(self, seed: int, epoch: int) -> Transitions:
        first = FRESH_SEED + (seed * 100_000 + epoch) * 10_000
        collected: list[list[tuple[Any, Any]]] = []
        while sum(map(len, collected)) < len(self):
            rows = FRESH_ROWS if collected else -(-len(self) // self.task.horizon)
            seeds = range(first + len(collected), first + len(collected) + rows)
            block: list[list[tuple[Any, Any]]] = [[] for _ in seeds]
            self.task.record_episodes(
                self._expert, seeds, lambda n, o, a, *_, block=block: block[n].append((o, a))
            )
            collected += block
        steps = [step for episode in collected for step in episode][: len(self)]
        episodes = np.repeat(np.arange(len(collected)), [len(episode) for episode in collected])[
            : len(self)
        ]
        observations, actions = (
            np.array(part, dtype=np.float32) for part in zip(*steps, strict=True)
        )
        fresh = Transitions(torch.from_numpy(observations), torch.from_numpy(actions), episodes)
        return fresh.to(self.observations.device)

    @functools.cached_property
    def _expert(self) -> Any:
        return experts.load(self.task.record, self.task.expert).actor
