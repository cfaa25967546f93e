"""``stab compare --task hopper --all --seeds 1``, as a user would program it without stab.

    python benchmarks/straightforward.py --task hopper
    python benchmarks/straightforward.py --task hopper --quick     # smoke run: not meaningful

The reference for stab's speed: the same libraries, one training run per stabilizer, one Gymnasium
episode at a time, a policy that acts on one observation. From stab it takes the demonstrations, the
normalisation of returns, the list of checkpoints and the score.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from measure import bar, demonstrations, table
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch_ema import ExponentialMovingAverage

from stab import gva
from stab.tasks.references import Progress, no_progress
from stab.tasks.transitions import Transitions

STABILIZERS = [
    "none",
    "ema",
    "polyak",
    "swa",
    "accumulation",
    "lr_decay",
    "weight_decay",
    "dropout",
]
BATCH, LR = 256, 1e-3
START_SEED = 50_000
QUICK = {"updates": 100, "checkpoint_every": 25, "starts": 2, "horizon": 50}


class Policy(nn.Module):
    """Normalised observations, two hidden layers of 256 ReLU units, tanh into the action bounds."""

    def __init__(self, mean: Tensor, std: Tensor, space: gym.spaces.Box, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("low", torch.as_tensor(space.low))
        self.register_buffer("size", torch.as_tensor(space.high - space.low))
        layers: list[nn.Module] = []
        for inputs in (len(mean), 256):
            layers += [nn.Linear(inputs, 256), nn.ReLU()] + (
                [nn.Dropout(dropout)] if dropout else []
            )
        self.layers = nn.Sequential(*layers, nn.Linear(256, space.shape[0]))

    def forward(self, observations: Tensor) -> Tensor:
        out = self.layers((observations - self.mean) / self.std).tanh()
        return self.low + (out + 1) / 2 * self.size


def minibatches(count: int, size: int) -> Iterator[Tensor]:
    """Yield indices, epoch after epoch, each in an order of its own."""
    while True:
        order = torch.randperm(count)
        for first in range(0, count - size + 1, size):
            yield order[first : first + size]


@torch.inference_mode()
def episode(env: gym.Env[Any, Any], policy: nn.Module, seed: int, horizon: int) -> float:
    """Return the reward that the policy collects from one initial state."""
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(horizon):
        action = policy(torch.as_tensor(observation, dtype=torch.float32)[None])[0].numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            break
    return total


def train(
    stabilizer: str,
    env: gym.Env[Any, Any],
    training: Transitions,
    validation: Transitions,
    seed: int,
    updates: int,
    checkpoints: list[int],
    starts: int,
    horizon: int,
    progress: Progress,
) -> tuple[np.ndarray, list[float], float, float]:
    """Train with one stabilizer.

    Returns raw returns (checkpoints, starts), validation losses (checkpoints,), seconds of training
    and of rollouts.
    """
    torch.manual_seed(seed)
    observations, actions = training.observations, training.actions
    std, mean = torch.std_mean(observations, dim=0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)
    policy = Policy(mean, std, env.action_space, dropout=0.1 if stabilizer == "dropout" else 0.0)
    weight_decay = 0.1 if stabilizer == "weight_decay" else 0.0
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=weight_decay, fused=True)
    schedule = (
        LambdaLR(optimizer, lambda step: 1 - step / updates) if stabilizer == "lr_decay" else None
    )
    accumulation = 4 if stabilizer == "accumulation" else 1
    burn_in, slowest = round(0.1 * updates), 1 - 2 ** (-1 / (0.05 * updates))  # of the EMA
    tail, every = (
        round(0.25 * updates),
        100 if stabilizer == "swa" else 1,
    )  # of Polyak's mean and SWA
    ema, mean_policy = None, None

    batches = minibatches(len(observations), BATCH)
    returns: list[list[float]] = []
    losses: list[float] = []
    rollout_seconds = 0.0
    began = time.perf_counter()
    for step in range(1, updates + 1):
        optimizer.zero_grad()
        for _ in range(accumulation):
            rows = next(batches)
            loss = nn.functional.mse_loss(policy(observations[rows]), actions[rows]) / accumulation
            loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        if stabilizer == "ema" and step == burn_in:
            ema = ExponentialMovingAverage(policy.parameters(), decay=0.0, use_num_updates=False)
        elif ema:
            ema.decay = 1 - max(slowest, 1 / (1 + step - burn_in))
            ema.update()
        if stabilizer in ("polyak", "swa") and step >= tail and (step - tail) % every == 0:
            mean_policy = mean_policy or AveragedModel(policy)
            mean_policy.update_parameters(policy)
        if step in checkpoints:
            paused = time.perf_counter()
            policy.eval()
            with torch.inference_mode(), ema.average_parameters() if ema else nullcontext():
                acting = mean_policy or policy
                losses.append(
                    nn.functional.mse_loss(
                        acting(validation.observations), validation.actions
                    ).item()
                )
                returns.append(
                    [episode(env, acting, START_SEED + n, horizon) for n in range(starts)]
                )
            policy.train()
            rollout_seconds += time.perf_counter() - paused
            progress(step / updates)
    return np.array(returns), losses, time.perf_counter() - began - rollout_seconds, rollout_seconds


def run(
    task: str = "hopper",
    seed: int = 0,
    updates: int = 6000,
    checkpoint_every: int = 150,
    starts: int = 4,
    horizon: int = 1000,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Return per stabilizer ``returns`` (checkpoints, starts; normalised), ``val_loss``
    (checkpoints,), ``gva``, ``train_seconds`` and ``rollout_seconds``.
    """
    data = demonstrations(task, progress)
    env = gym.make(data.environment)
    window = gva.window(updates, checkpoint_every)
    checkpoints = gva.curve_only(updates, checkpoint_every) + window
    found = {}
    for n, name in enumerate(STABILIZERS):

        def part(fraction: float, n: int = n) -> None:
            progress((n + fraction) / len(STABILIZERS))

        raw, losses, train_seconds, rollout_seconds = train(
            name,
            env,
            data.train,
            data.validation,
            seed,
            updates,
            checkpoints,
            starts,
            horizon,
            part,
        )
        J = data.references.normalise(raw[..., None], [horizon])[..., 0]
        found[name] = {
            "returns": J,
            "val_loss": np.array(losses),
            "gva": gva.gva(J[-len(window) :]),
            "train_seconds": train_seconds,
            "rollout_seconds": rollout_seconds,
        }
    env.close()
    return found


def open_loop(
    spec: gym.envs.registration.EnvSpec, seeds: list[int], actions: np.ndarray
) -> np.ndarray:
    """Return the returns (episodes,) of actions (steps, episodes, act_dim)."""
    env = gym.make(spec)
    returns = np.zeros(len(seeds))
    for n, seed in enumerate(seeds):
        env.reset(seed=seed)
        for action in actions[:, n]:
            _, reward, terminated, truncated, _ = env.step(action)
            returns[n] += reward
            if terminated or truncated:
                break
    env.close()
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="hopper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--checkpoint-every", type=int, default=150)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--quick", action="store_true", help=f"the sizes {QUICK}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = QUICK if given.quick else {name: getattr(given, name) for name in QUICK}
    with bar(f"{given.task}, straightforward") as report:
        found = run(given.task, given.seed, **sizes, progress=report)
    window = len(gva.window(sizes["updates"], sizes["checkpoint_every"]))
    rows = [
        [
            name,
            f"{one['gva']:.3f}",
            f"{one['returns'][-window:].mean():.2f}",
            f"{one['returns'][-window:].mean(1).min():.2f}",
            f"{one['val_loss'][-window:].mean():.5f}",
            f"{one['train_seconds']:.1f}",
            f"{one['rollout_seconds']:.1f}",
        ]
        for name, one in found.items()
    ]
    totals = [
        sum(one[what] for one in found.values()) for what in ("train_seconds", "rollout_seconds")
    ]
    print(
        table(
            ["stabilizer", "GVA", "return", "worst", "val loss", "training s", "rollouts s"], rows
        )
    )
    print(
        f"\n{given.task}: training {totals[0]:.1f} s, rollouts {totals[1]:.1f} s,"
        " one after the other."
    )


if __name__ == "__main__":
    main()
