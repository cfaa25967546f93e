"""Speed of environment steps against the bare physics: stab's episodes and Gymnasium's ways.

    python benchmarks/rollouts.py                       # all five tasks, two to three minutes
    python benchmarks/rollouts.py --task hopper --quick

All replay the actions of the same episodes of the expert, so they reach the same states (a fallen
robot has other contacts than a walking one). There is no policy in the loop.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
from measure import EPISODES, STEPS, Bare, Replay, bar, least_seconds, replay, table

from stab.tasks.control.episodes import Episodes, GymEpisodes, make_episodes
from stab.tasks.references import Progress, no_progress

TASKS = ["hopper", "walker2d", "halfcheetah", "ant", "humanoid"]
PROCESSES = 2  # of the asynchronous vector environment, which has one environment in each


def stepped(episodes: Episodes, over: Replay) -> Callable[[], list[float]]:
    """Return a function that steps episodes of stab's interface, for ``least_seconds``."""
    which = list(range(len(over.seeds)))

    def once() -> list[float]:
        episodes.reset(over.seeds)
        seconds = []
        for actions in over.actions:
            began = time.perf_counter()
            episodes.step(which, actions)
            seconds.append(time.perf_counter() - began)
        return seconds

    return once


def vectorized(
    envs: gym.vector.VectorEnv[Any, Any, Any], over: Replay
) -> Callable[[], list[float]]:
    """Return a function that steps a vector environment, for ``least_seconds``."""
    actions = over.actions[:, : envs.num_envs].copy()

    def once() -> list[float]:
        envs.reset(seed=over.seeds[: envs.num_envs])
        seconds = []
        for together in actions:
            began = time.perf_counter()
            envs.step(together)
            seconds.append(time.perf_counter() - began)
        return seconds

    return once


def throughput(
    task: str, steps: int, rounds: int, report: Progress = no_progress
) -> dict[str, float]:
    """Return environment steps per second of each way."""
    over = replay(task, steps=steps, report=report)
    with ExitStack() as stack:
        sync = gym.make_vec(over.spec, EPISODES, vectorization_mode="sync")
        stack.callback(sync.close)
        parallel = gym.make_vec(over.spec, PROCESSES, vectorization_mode="async")
        stack.callback(parallel.close)
        work = {
            "bare": Bare(over),
            "stab": stepped(make_episodes(over.spec), over),
            "gymnasium": stepped(GymEpisodes(over.spec), over),
            "sync": vectorized(sync, over),
            "async": vectorized(parallel, over),
        }
        seconds = least_seconds(work, rounds, report)
    return {way: steps * (PROCESSES if way == "async" else EPISODES) / seconds[way] for way in work}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task", action="append", help="may be given more than once (default: all five)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each step the fastest counts")
    parser.add_argument("--quick", action="store_true", help="two rounds of 20 steps")
    given = parser.parse_args()
    steps, rounds = (20, 2) if given.quick else (STEPS, given.rounds)
    rows = []
    for task in given.task or TASKS:
        with bar(f"{task}, steps") as report:
            rates = throughput(task, steps, rounds, report)
        shares = [
            f"{rates[way] / rates['bare']:.2f}" for way in ("stab", "gymnasium", "sync", "async")
        ]
        rows.append([task, f"{rates['bare']:,.0f}", *shares])
    header = [
        "task",
        "bare steps / s",
        "stab",
        "one by one",
        "vector, sync",
        f"vector, async ({PROCESSES} processes)",
    ]
    print(table(header, rows))
    print("\nAs shares of the bare rate on one core: 1 is the limit of one core.")


if __name__ == "__main__":
    main()
