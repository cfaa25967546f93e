"""Speed of training and generation of language models by size, and the cost of the paper's size.

    python benchmarks/language.py            # about three minutes
    python benchmarks/language.py --quick

Training: the operations of an update over its wall time, and that as a share of the rate of the
processor's matrix products (the physical limit; measured on the largest product of the policy, in
the same run). Generation: tokens per second of eight policies; their gain from generating together
instead of one after the other (large ones lose, so stab does not do it there); the gain of the
cache over reading the whole text again for every token. Data: the cost of one text or many per
episode.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from measure import bar, least_seconds, product_rates, table

from stab.recipe import Recipe
from stab.tasks import datasets, environments
from stab.tasks.language import grammar
from stab.tasks.language.environment import source as make_source
from stab.tasks.language.generation import side_by_side
from stab.tasks.policies import GPT, build_language

SIZES = [
    "gpt",
    "gpt:width=128,depth=4",
    "gpt:width=256,depth=6,heads=8",
    "gpt:width=512,depth=8,heads=8",
]
VOCABULARY, CONTEXT, CONTINUATION = 2048, 128, 96
BATCH, ROWS, POLICIES, STEPS = 16, 16, 8, 32
PAPER = 270e6  # parameters of the language models in arXiv 2310.11428
# A comparison of all stabilizers: entries, seeds, checkpoints, training runs (accumulation: four).
ENTRIES, SEEDS, CHECKPOINTS, RUNS = 8, 3, 18, 24


def operations(policy: GPT) -> int:
    """Multiplications and additions of an update: 6 per weight and token, plus the attention's."""
    weights = sum(p.numel() for p in policy.parameters()) - policy.positions.numel()
    attention = (
        len(policy.blocks) * 12 * policy.width * CONTEXT
    )  # scores and sums, forward and twice backward
    return BATCH * CONTEXT * (6 * weights + attention)


def timed(function: Callable[[], object]) -> Callable[[], list[float]]:
    def once() -> list[float]:
        began = time.perf_counter()
        function()
        return [time.perf_counter() - began]

    return once


def update(policy: GPT) -> Callable[[], object]:
    """Return a function that makes one update."""
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT))
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

    def once() -> None:
        optimizer.zero_grad()
        policy.loss(tokens, tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return once


def generation(policy: GPT, policies: int) -> Callable[[], object]:
    """Return a function that generates ``STEPS`` likeliest tokens in ``ROWS`` texts per policy."""
    stacked = {name: torch.stack([value] * policies) for name, value in policy.state_dict().items()}

    @torch.inference_mode()
    def once() -> None:
        stack, live = policy.stack(stacked, ROWS), list(range(policies))
        latest = torch.zeros(policies, ROWS, dtype=torch.int64)
        for _ in range(STEPS):
            latest = stack.step(latest, live).argmax(-1)

    return once


def uncached(policy: GPT) -> Callable[[], object]:
    """Return a function that generates as many tokens, reading the whole text for each."""

    @torch.inference_mode()
    def once() -> None:
        texts = torch.zeros(ROWS, 1, dtype=torch.int64)
        for _ in range(STEPS):
            texts = torch.cat([texts, policy(texts)[:, -1:].argmax(-1)], 1)

    return once


def packing(stories: int, each: int) -> list[str]:
    """Return the costs of a Minari dataset of stories: megabytes, seconds to write and to read."""
    rng = np.random.default_rng(0)
    source = make_source("stories")
    texts = [np.concatenate(source.text(rng)) for _ in range(stories)]
    packs = [np.concatenate(texts[n : n + each]).tolist() for n in range(0, stories, each)]
    episodes = [
        datasets.episode(n, [0, *pack], [(token, 0.0, False, False) for token in pack])
        for n, pack in enumerate(packs)
    ]
    environments.register()
    spec = replace(gym.spec(environments.TOKENS), kwargs={"vocabulary": len(source.words)})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        began = time.perf_counter()
        datasets.create("bench/stories-v0", episodes, spec, None, {})
        written = time.perf_counter()
        dataset = datasets.load("bench/stories-v0")
        datasets.read(dataset, list(dataset.episode_indices))
        ended = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return [f"{each}", f"{size / 1e6:.1f}", f"{written - began:.1f}", f"{ended - written:.2f}"]


class Speed(NamedTuple):
    """A policy's line of the table, operations and tokens per second, and its parameters."""

    line: list[str]
    operations: float
    tokens: float
    parameters: int


def measured(size: str, rounds: int) -> Speed:
    """Measure a policy: an update, and generation by four policies together, alone, uncached."""
    policy = build_language(Recipe(policy=size), VOCABULARY, CONTEXT)
    with bar(size) as report:
        work = {
            "update": timed(update(policy)),
            "together": timed(generation(policy, POLICIES)),
            "alone": timed(generation(policy, 1)),
            "uncached": timed(uncached(policy)),
        }
        seconds = least_seconds(work, rounds, report)
        limit = max(product_rates(policy, BATCH * CONTEXT).values())
    rate = operations(policy) / seconds["update"]
    ways = {1: POLICIES * seconds["alone"], POLICIES: seconds["together"]}
    tokens = POLICIES * ROWS * STEPS / ways[side_by_side(policy)]
    parameters = sum(p.numel() for p in policy.parameters())
    line = [
        size,
        f"{parameters / 1e6:.2f}",
        f"{1000 * seconds['update']:.0f}",
        f"{rate / 1e9:.0f}",
        f"{rate / limit:.2f}",
        f"{tokens:,.0f}",
        f"{ways[1] / ways[POLICIES]:.1f}",
        f"{tokens * seconds['uncached'] / (ROWS * STEPS):.1f}",
    ]
    return Speed(line, rate, tokens, parameters)


def paper_scale(best: float, largest: Speed) -> str:
    """Return what the paper's model would take, at these rates."""
    days = 6 * PAPER * 1e9 / best / 86400
    scaled = largest.tokens * largest.parameters / PAPER
    episodes = ENTRIES * SEEDS * CHECKPOINTS * ROWS
    hours = episodes * CONTINUATION / scaled / 3600
    gigabytes = 4 * PAPER / 1e9
    return (
        f"\n{PAPER / 1e6:.0f} million parameters, from these rates:\n\n"
        f"- training on a billion tokens, at the best rate ({best / 1e9:.0f} GFLOP/s):"
        f" {days:.0f} days of one core\n"
        f"- all stabilizers, three seeds, {RUNS} such runs' worth:"
        f" {RUNS * days / 365:.1f} years of one core\n"
        f"- {episodes:,} texts of {CONTINUATION} tokens, at the largest size's rate over the"
        f" parameters ({scaled:.0f} tokens/s): {hours:.0f} hours of one core\n"
        f"- memory: {4 * gigabytes:.1f} GB to train (weights, gradients, two moments),"
        f" {gigabytes:.1f} GB for every average trained along,"
        f" {8 * gigabytes:.1f} GB for the eight read-outs of a shard"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    parser.add_argument("--quick", action="store_true", help="one round of the two smallest sizes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, rounds = (SIZES[:2], 1) if given.quick else (SIZES, given.rounds)
    speeds = [measured(size, rounds) for size in sizes]
    header = ["policy", "million parameters", "ms per update", "GFLOP/s", "of the limit",
              "tokens/s", "together", "cached"]  # fmt: skip
    print(table(header, [speed.line for speed in speeds]))
    print(
        f"\nOne thread; {BATCH} texts of {CONTEXT} tokens, vocabulary {VOCABULARY};"
        f" generation of {ROWS} texts per policy."
    )
    stories = 200 if given.quick else 2000
    print(f"\n{stories:,} stories as a Minari dataset:\n")
    header = ["stories per episode", "MB", "seconds to write", "seconds to read"]
    print(table(header, [packing(stories, each) for each in (1, 10, 100)]))
    rng = np.random.default_rng(0)
    texts = [grammar.story(rng) for _ in range(stories)]
    nats = -np.mean([reward for text in texts for reward in grammar.log_likelihood(text)])
    print(
        f"\nTrue stories: {nats:.3f} nats per token by their source,"
        f" a perplexity of {np.exp(nats):.2f}."
    )
    print(paper_scale(max(speed.operations for speed in speeds), speeds[-1]))


if __name__ == "__main__":
    main()
