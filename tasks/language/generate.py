"""Generation: the closed loop of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stab.tasks.language.source import DRAWS, Scorer
from stab.tasks.policies import GPTStack
from stab.tasks.references import Progress, no_progress

SIDE_BY_SIDE, SMALL = 8, 500_000  # policies that generate together, of at most so many parameters


def side_by_side(policy: torch.nn.Module) -> int:
    """Return how many policies generate together: small ones, which share the cost of a step's Python.

    Batched products of larger ones are slower than one after the other (benchmarks/language.py). No number depends on it.
    """
    return SIDE_BY_SIDE if sum(p.numel() for p in policy.parameters()) <= SMALL else 1


@torch.inference_mode()
def generate(
    stack: GPTStack,
    prompts: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float,
    scorers: Sequence[Scorer],
    horizon: int,
    progress: Progress = no_progress,
) -> list[list[list[int]]]:
    """Let policies go on from prompts, until a text ends or has ``horizon`` new tokens; return these [policy][prompt].

    A token is the argmax of logits / temperature + g, where g are draws of a standard Gumbel distribution: a sample of the
    softmax (Gumbel-max). The draws are functions of the start and the position alone, the same for every policy, so that
    what differs between two texts comes from the policies. At temperature 0 it is the argmax of the logits.

    Args:
        stack: the policies.
        prompts: tokens, each beginning with END.
        starts: what seeds the draws of each prompt.
        scorers: of each policy; they read what is written, and say where a text ends.
    """
    written: list[list[list[int]]] = [[[] for _ in prompts] for _ in scorers]
    going = np.ones((len(scorers), len(prompts)), dtype=bool)
    latest = np.array([[prompt[0] for prompt in prompts]] * len(scorers))
    draws = [np.random.default_rng((seed, DRAWS)) for seed in starts]
    steps = max(map(len, prompts)) + horizon - 1
    for step in range(1, steps + 1):
        live = np.flatnonzero(going.any(1)).tolist()
        if not live:
            break
        logits = stack.step(torch.from_numpy(latest), live)
        writing = np.array([step >= len(prompt) for prompt in prompts])
        if temperature > 0:
            logits = logits / temperature
            for row in np.flatnonzero(writing & going.any(0)).tolist():
                logits[:, row] += torch.from_numpy(
                    draws[row].gumbel(size=logits.shape[-1]).astype(np.float32)
                )
        chosen = logits.argmax(-1).numpy()
        for row, prompt in enumerate(prompts):
            if not writing[row]:
                latest[:, row] = prompt[step]
                continue
            for k, i in enumerate(live):
                if going[i, row]:
                    token = latest[i, row] = int(chosen[k, row])
                    written[i][row].append(token)
                    ended = scorers[i].read(row, token)
                    going[i, row] = not ended and len(written[i][row]) < horizon
        if step % 10 == 0:
            progress(step / steps)
    progress(1.0)
    return written
