"""Shared by the benchmarks: timing, bare physics, products of an update, tables, progress bars."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from rich.console import Console
from torch import nn

from stab.cli.progress import bars
from stab.tasks import Task, tasks
from stab.tasks.base import Demonstrations
from stab.tasks.environments import make
from stab.tasks.policies.kernels.onednn import has_onednn, product
from stab.tasks.references import Progress, no_progress

# Their observations or rewards hold contact forces, which ``mj_step`` alone does not compute.
READ_CONTACT_FORCES = {"Ant-v5", "Humanoid-v5"}
EPISODES, STEPS = 32, 200  # side by side, for this many steps


def make_task(name: str) -> Task:
    """Return a task with its own dataset and the default number of episodes."""
    return tasks.get(name)(name=name)


def demonstrations(name: str, report: Progress) -> Demonstrations:
    """Load the demonstrations of a task; they are collected on first use, which takes a while."""
    return make_task(name).dataset(report)


@dataclass(frozen=True)
class Replay:
    """Episodes of the expert to step again: the states of a closed loop without its policy.

    Attributes:
        spec: their environment.
        seeds: reset seeds (episodes,).
        actions: (steps, episodes, act_dim) float32; no episode ends within these steps.
    """

    spec: gym.envs.registration.EnvSpec
    seeds: list[int]
    actions: np.ndarray


def replay(
    name: str, episodes: int = EPISODES, steps: int = STEPS, report: Progress = no_progress
) -> Replay:
    """Return demonstrations as recorded; some repeat if there are fewer than ``episodes``."""
    data: Any = demonstrations(name, report)
    numbers, counts = np.unique(data.train.episodes, return_counts=True)
    chosen = np.resize(numbers[counts > steps], episodes)  # an episode's number is its reset seed
    actions = [
        data.train.actions[data.train.episodes == number][:steps].numpy() for number in chosen
    ]
    return Replay(gym.spec(data.environment), chosen.tolist(), np.stack(actions, 1))


class Bare:
    """The physics of the episodes and nothing else, each with an ``MjData`` of its own."""

    def __init__(self, episodes: Replay) -> None:
        env: Any = make(episodes.spec)
        self.env, self.model, self.actions = env.unwrapped, env.unwrapped.model, episodes.actions
        self.forces = episodes.spec.id in READ_CONTACT_FORCES
        self.starts, self.data = [], []
        for seed in episodes.seeds:
            env.reset(seed=seed)
            for kept in (self.starts, self.data):
                kept.append(mujoco.MjData(self.model))
                mujoco.mj_copyData(kept[-1], self.model, self.env.data)

    def __call__(self) -> list[float]:
        """Step all episodes from their starts; return the seconds of each step of all."""
        for data, start in zip(self.data, self.starts, strict=True):
            mujoco.mj_copyData(data, self.model, start)
        model, skip, forces = self.model, self.env.frame_skip, self.forces
        pairs = [(data, data.ctrl) for data in self.data]
        seconds = []
        for actions in self.actions:
            began = time.perf_counter()
            for (data, ctrl), action in zip(pairs, actions, strict=True):
                ctrl[:] = action
                mujoco.mj_step(model, data, nstep=skip)
                if forces:
                    mujoco.mj_rnePostConstraint(model, data)
            seconds.append(time.perf_counter() - began)
        return seconds


def least_seconds(
    work: Mapping[str, Callable[[], list[float]]], rounds: int, report: Progress = no_progress
) -> dict[str, float]:
    """Return the least seconds per kind of work. A call returns the seconds of each of its parts.

    The kinds take turns, so that other load of the machine affects them all. The fastest round of
    each part counts, as the least affected one.
    """
    least: dict[str, np.ndarray] = {}
    for n in range(rounds):
        for name, once in work.items():
            seconds = np.array(once())
            least[name] = np.minimum(least.get(name, seconds), seconds)
        report((n + 1) / rounds)
    return {name: float(seconds.sum()) for name, seconds in least.items()}


def update_operations(policy: nn.Module, batch: int) -> int:
    """Return the floating-point operations of the products in one forward and backward pass.

    A layer has three products of equal size: its outputs, the gradient of its weights and that of
    its inputs. The first layer does not need the last one: its inputs are observations.
    """
    sizes = [layer.weight.numel() for layer in policy.modules() if isinstance(layer, nn.Linear)]
    return 2 * batch * (3 * sum(sizes) - sizes[0])


def product_rates(policy: nn.Module, batch: int, rounds: int = 200) -> dict[str, float]:
    """Return floating-point operations per second of a product of the largest layer, on one thread.

    ``torch.mm`` is the rate of a plain PyTorch program; ``fastest`` is the better one of that and
    oneDNN's.
    """
    largest = max(
        (m for m in policy.modules() if isinstance(m, nn.Linear)),
        key=lambda layer: layer.weight.numel(),
    )
    a, b = (
        torch.randn(batch, largest.in_features),
        torch.randn(largest.in_features, largest.out_features),
    )
    weight, out, repeats = (
        torch.randn(largest.weight.shape),
        torch.empty(batch, largest.out_features),
        10,
    )

    def timed(once: Callable[[], object]) -> Callable[[], list[float]]:
        def products() -> list[float]:
            began = time.perf_counter()
            for _ in range(repeats):
                once()
            return [time.perf_counter() - began]

        return products

    work = {"torch.mm": timed(lambda: torch.mm(a, b, out=out))}
    if has_onednn(a):
        work["oneDNN"] = timed(lambda: product(a, weight))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = least_seconds(work, rounds)
    finally:
        torch.set_num_threads(threads)
    operations = repeats * 2 * batch * largest.weight.numel()
    return {
        "torch.mm": operations / seconds["torch.mm"],
        "fastest": operations / min(seconds.values()),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """Show a progress bar on stderr; yields a function that takes the fraction that is done."""
    progress = bars(Console(stderr=True))
    progress.disable = not progress.console.is_terminal
    with progress:
        line = progress.add_task(what, total=1.0)
        yield lambda fraction: progress.update(line, completed=fraction)
