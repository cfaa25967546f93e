"""Training the judge of a dataset of texts: a larger model of the same kind, until it gets no better."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from stab import files
from stab.files import versions
from stab.recipe import Recipe
from stab.registry import StabError
from stab.stabilizers.ema import EMA
from stab.tasks.language import scorer_model as judges
from stab.tasks.language import text
from stab.tasks.language.windows import Windows
from stab.tasks.policies import build_language
from stab.tasks.references import References, references_to
from stab.train import train

POLICY = "gpt:width=128,depth=4"  # eight times the default policy's parameters, embeddings aside
LR, BATCH = 2e-3, 16
UPDATES, EVERY, PATIENCE = 10_000, 100, 5
CHECKPOINT = "judge.checkpoint.safetensors"

Report = Callable[
    [float, str], None
]  # called with the fraction that is done at least, and the latest in words


def train_judge(
    dataset_id: str,
    policy: str = POLICY,
    updates: int = UPDATES,
    seed: int = 0,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a judge for a dataset of texts and put it beside it; return its card.

    AdamW at a constant learning rate of 0.002, batches of 16 windows of 128 tokens; what is kept is an EMA of the iterates
    (half-life 200) at its lowest validation loss. Ends when that was not lowered five times, looked at every 100 updates,
    or after ``updates``. What an interrupted training left is gone on with, and so is one that ended for want of updates.
    The references are measured with it: see ``Source.references``.

    Args:
        policy: a policy string of the language tasks, or ``huggingface:NAME`` for a causal language model there, which is
            not trained.

    Raises StabError where there is no such dataset, or no such model.
    """
    folder = judges.folder(dataset_id)
    if policy.startswith(judges.HUB):
        name = policy.removeprefix(judges.HUB)
        name = str(Path(name).resolve()) if Path(name).is_dir() else name
        named = judges.CausalLM(name, text.tokenizer_of(dataset_id), fetch=True)
        card: dict[str, Any] = {
            "judge": f"{judges.HUB}{name}",
            "revision": named.revision,
            "sha256": named.sha256,
        }
        return _write(dataset_id, named, card, None)
    training, validation, vocabulary = text.corpus_windows(dataset_id)
    recipe = Recipe(policy=policy, lr=LR, batch_size=BATCH, updates=updates)
    task = _Corpus(training, (vocabulary, text.CONTEXT))
    kept = {
        key: value for key, value in recipe.to_dict().items() if key != "updates"
    }  # on which nothing else depends
    about = {"recipe": kept, "seed": seed, "dataset": _digest(training)}
    best: dict[str, Tensor] = {}
    losses: list[list[float]] = []
    model: Any = task.policy(recipe).eval()
    everything = validation.batch(np.arange(len(validation)))
    before = _before(folder / CHECKPOINT, about)
    if before:
        best, losses = before["best"], before["losses"]
    points = range(EVERY, updates + 1, EVERY) or [updates]
    if not (before and _converged(losses)):
        averages = {"ema": EMA(half_life=200, burn_in=0)}
        for point in train(
            task, recipe, seed, averages, points, before["training"] if before else None
        ):
            model.load_state_dict(point.averages["ema"])
            with torch.inference_mode():
                loss = float(model.loss(*everything))
            losses.append([point.update, loss])
            if loss == min(value for _, value in losses):
                best = point.averages["ema"]
            if report:
                report(point.update / updates, f"validation loss {loss:.3f}")
            reached = {"about": about, "best": best, "losses": losses, "training": point.state()}
            files.save_tree(folder / CHECKPOINT, reached)
            if _converged(losses):
                break
    lowest = min(losses, key=lambda pair: pair[1])
    weights = save(best)
    card = {
        "judge": policy,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(value.numel() for value in best.values()),
        "updates": lowest[0],
        "validation_loss": lowest[1],
        "converged": _converged(losses),
        "trained": losses[-1][0],
        "losses": losses,
        "training": about,
    }
    judge = judges.GPTJudge(policy, vocabulary, text.CONTEXT, best)
    written = _write(dataset_id, judge, card, weights)
    if card["converged"]:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return written


def _converged(losses: list[list[float]]) -> bool:
    """Whether the validation loss was not lowered the last times."""
    values = [value for _, value in losses]
    return len(values) > PATIENCE and min(values[-PATIENCE:]) > min(values)


def _write(
    dataset_id: str, judge: judges.Judge, card: dict[str, Any], weights: bytes | None
) -> dict[str, Any]:
    """Measure the references with a judge, and put it and its card beside the dataset; return the card."""
    source = text.Judged(dataset_id, judge)
    measured = References(*source.measure(), source.about)
    whole = card | {
        "references": references_to(measured),
        "versions": versions(("stab-gva", "torch", "tokenizers", "transformers")),
    }
    folder = judges.folder(dataset_id)
    if weights is not None:
        with files.replacing(folder / judges.WEIGHTS) as temporary:
            temporary.write_bytes(weights)
    files.write_json(folder / judges.CARD, whole, indent=1)
    return whole


def _before(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an interrupted training of the same judge left."""
    try:
        found: dict[str, Any] = files.load_tree(path)
        return found if found["about"] == about else None
    except (StabError, KeyError, TypeError):
        return None


def _digest(windows: Windows) -> str:
    return hashlib.sha256(windows.targets.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class _Corpus:
    """Everything of a dataset but what is held out, as a problem for the training loop."""

    training: Windows
    sizes: tuple[int, int]

    def training_split(self) -> Windows:
        return self.training

    def policy(self, recipe: Recipe) -> nn.Module:
        return build_language(recipe, *self.sizes)

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(*batch)  # type: ignore[operator]
        return loss
