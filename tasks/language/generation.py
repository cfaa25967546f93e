"""Generation: the closed loop of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stab.tasks.language.source import DRAWS, Scorer
from stab.tasks.policies import GPTStack
from stab.tasks.references import Progress, no_progress

SIDE_BY_SIDE, SMALL = 8, 500_000  # policies that generate together, and their parameters at most


def side_by_side(policy: torch.nn.Module) -> int:
    """Number of policies that generate together; no result depends on it.

    Small policies share the cost of a step's Python. Batched products of larger ones are slower
    than one policy after the other (benchmarks/language.py).
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
    """Continue prompts until a text ends or has ``horizon`` new tokens.

    A token is argmax(logits / temperature + g) with g from a standard Gumbel distribution: a sample
    of the softmax (Gumbel-max). The draws depend on the start and the position alone and are the
    same for every policy, so two texts differ only if policies do. At temperature 0 a token is the
    argmax of the logits.

    Args:
        stack: the policies.
        prompts: tokens, each beginning with END.
        starts: seeds of the draws, one per prompt.
        scorers: one per policy; they read the new tokens and tell when a text ends.

    Returns the new tokens [policy][prompt].
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
