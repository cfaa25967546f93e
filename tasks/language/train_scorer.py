"""Training the scorer model of a dataset of texts."""

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
from stab.tasks.language import scorer_model, text
from stab.tasks.language.scorer_model import HUB, CausalLM, GPTScorer, ScorerModel
from stab.tasks.language.windows import Windows
from stab.tasks.policies import build_language
from stab.tasks.references import References, references_to
from stab.train import train

POLICY = "gpt:width=128,depth=4"  # eight times the default policy's parameters, without embeddings
LR, BATCH = 2e-3, 16
UPDATES, EVERY, PATIENCE = 10_000, 100, 5
CHECKPOINT = "judge.checkpoint.safetensors"  # name on disk

Report = Callable[[float, str], None]  # called with the fraction done at least, and the news


def train_scorer(
    dataset_id: str,
    policy: str = POLICY,
    updates: int = UPDATES,
    seed: int = 0,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a scorer model, write it and its card beside its dataset, and return the card.

    AdamW at a constant learning rate of 0.002, batches of 16 windows of 128 tokens. The result is
    an EMA of the iterates (half-life 200) at its lowest validation loss, computed every 100
    updates. Training ends if five values in a row are not lower, or after ``updates``. It resumes
    a training that was interrupted or ran out of updates. The references are measured with the
    result, see ``Source.references``.

    Args:
        policy: a policy string of the language tasks; or ``huggingface:NAME`` for a causal language
            model of Hugging Face, which is downloaded and not trained.

    Raises StabError if the dataset or the model does not exist.
    """
    if policy.startswith(HUB):
        return _take_from_hub(dataset_id, policy.removeprefix(HUB))
    training, validation, vocabulary = text.corpus_windows(dataset_id)
    recipe = Recipe(policy=policy, lr=LR, batch_size=BATCH, updates=updates)
    settings = recipe.to_dict()
    del settings["updates"]  # nothing else depends on it: training may resume with more
    about = {"recipe": settings, "seed": seed, "dataset": _digest(training)}
    problem = _Corpus(training, (vocabulary, text.CONTEXT))
    path = scorer_model.folder(dataset_id) / CHECKPOINT
    best, losses = _learn(problem, validation, recipe, seed, about, path, report)
    weights = save(best)
    update, loss = min(losses, key=lambda pair: pair[1])
    card = {
        "judge": policy,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(value.numel() for value in best.values()),
        "updates": update,
        "validation_loss": loss,
        "converged": _converged(losses),
        "trained": losses[-1][0],
        "losses": losses,
        "training": about,
    }
    model = GPTScorer(policy, vocabulary, text.CONTEXT, best)
    written = _write(dataset_id, model, card, weights)
    if card["converged"]:
        path.unlink(missing_ok=True)
    return written


train_judge = train_scorer  # its name before


def _take_from_hub(dataset_id: str, name: str) -> dict[str, Any]:
    """Take a model of Hugging Face, or of a folder, as it is."""
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    model = CausalLM(name, text.tokenizer_of(dataset_id), fetch=True)
    card = {"judge": f"{HUB}{name}", "revision": model.revision, "sha256": model.sha256}
    return _write(dataset_id, model, card, None)


def _learn(
    problem: _Corpus,
    validation: Windows,
    recipe: Recipe,
    seed: int,
    about: dict[str, Any],
    path: Path,
    report: Report | None,
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Train from scratch or from the checkpoint; return the best weights and all (update, loss)."""
    best: dict[str, Tensor] = {}
    losses: list[list[float]] = []
    model: Any = problem.policy(recipe).eval()
    everything = validation.batch(np.arange(len(validation)))
    before = _read_checkpoint(path, about)
    if before:
        best, losses = before["best"], before["losses"]
        if _converged(losses):
            return best, losses
    points = range(EVERY, recipe.updates + 1, EVERY) or [recipe.updates]
    averages = {"ema": EMA(half_life=200, burn_in=0)}
    start = before["training"] if before else None
    for point in train(problem, recipe, seed, averages, points, start):
        model.load_state_dict(point.averages["ema"])
        with torch.inference_mode():
            loss = float(model.loss(*everything))
        losses.append([point.update, loss])
        if loss == min(value for _, value in losses):
            best = point.averages["ema"]
        if report:
            report(point.update / recipe.updates, f"validation loss {loss:.3f}")
        reached = {"about": about, "best": best, "losses": losses, "training": point.state()}
        files.save_tree(path, reached)
        if _converged(losses):
            break
    return best, losses


def _converged(losses: list[list[float]]) -> bool:
    """Whether the last ``PATIENCE`` values did not lower the validation loss."""
    values = [value for _, value in losses]
    return len(values) > PATIENCE and min(values[-PATIENCE:]) > min(values)


def _write(
    dataset_id: str, model: ScorerModel, card: dict[str, Any], weights: bytes | None
) -> dict[str, Any]:
    """Measure the references, write weights and card beside the dataset, and return the card."""
    source = text.HeldOutTexts(dataset_id, model)
    references = References(*source.measured_references(), source.about)
    whole = card | {
        "references": references_to(references),
        "versions": versions(("stab-gva", "torch", "tokenizers", "transformers")),
    }
    folder = scorer_model.folder(dataset_id)
    if weights is not None:
        with files.replacing(folder / scorer_model.WEIGHTS) as temporary:
            temporary.write_bytes(weights)
    files.write_json(folder / scorer_model.CARD, whole, indent=1)
    return whole


def _read_checkpoint(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint of an interrupted training of the same model, if there is one."""
    try:
        checkpoint: dict[str, Any] = files.load_tree(path)
        return checkpoint if checkpoint["about"] == about else None
    except (StabError, KeyError, TypeError):
        return None


def _digest(windows: Windows) -> str:
    return hashlib.sha256(windows.targets.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class _Corpus:
    """The training windows of a dataset as a problem for the training loop."""

    training: Windows
    sizes: tuple[int, int]

    def training_split(self) -> Windows:
        return self.training

    def policy(self, recipe: Recipe) -> nn.Module:
        return build_language(recipe, *self.sizes)

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(*batch)  # type: ignore[operator]
        return loss
