"""Scorer models give the likelihood of a text whose source is not known.

A scorer model lies beside its dataset. It is a larger GPT of this package, trained on the same
tokens (``train_scorer``), or a causal language model of Hugging Face by name.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stab.recipe import Recipe
from stab.registry import StabError, reason
from stab.tasks import datasets
from stab.tasks.language.tokens import token_bytes
from stab.tasks.policies import GPT, build_language

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CARD, WEIGHTS = "judge.json", "judge.safetensors"  # names on disk
HUB = "huggingface:"  # before the name of a model there
ROWS = 8  # texts that are read together


class ScorerModel(ABC):
    """Gives the likelihood of texts."""

    @abstractmethod
    def log_likelihood(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Return the log-likelihood (nats) of each token after its prompt, float64 (tokens,) each.

        The values of a text do not depend, bitwise, on the texts beside it.
        """


class GPTScorer(ScorerModel):
    """A GPT over the dataset's own tokens.

    Args:
        policy: its policy string.
        vocabulary, context: its sizes.
        weights: its parameters.
    """

    def __init__(
        self, policy: str, vocabulary: int, context: int, weights: dict[str, Tensor]
    ) -> None:
        model = build_language(Recipe(policy=policy), vocabulary, context)
        self.model: GPT = model.eval().requires_grad_(False)
        self.model.load_state_dict(weights)

    def log_likelihood(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        # Always as many rows, as long as the context: a product's last bits depend on its size.
        inputs = np.zeros((-(-len(prompts) // ROWS) * ROWS, self.model.context + 1), dtype=np.int64)
        for row, (prompt, tokens) in enumerate(zip(prompts, written, strict=True)):
            inputs[row, 1 : 1 + len(prompt) + len(tokens)] = [*prompt, *tokens]
        nats = np.concatenate([self._of(inputs[n : n + ROWS]) for n in range(0, len(inputs), ROWS)])
        pairs = zip(nats, prompts, written, strict=False)  # the last rows are padding
        return [row[len(prompt) : len(prompt) + len(tokens)] for row, prompt, tokens in pairs]

    @torch.inference_mode()
    def _of(self, texts: np.ndarray) -> np.ndarray:
        log_p = torch.log_softmax(self.model(torch.from_numpy(texts[:, :-1])), -1)
        chosen = log_p.gather(-1, torch.from_numpy(texts[:, 1:, None]))[..., 0]
        return np.asarray(chosen.double().numpy())


class CausalLM(ScorerModel):
    """A causal language model of Hugging Face. It reads the text that our tokens spell.

    It has a tokenizer of its own. The log-likelihood of one of its tokens counts for the token of
    ours that holds its last character; our end of a text is its own.

    Args:
        name: of a model there, or a folder that holds one. Weights are read from safetensors only,
            and no code of the repository is run.
        tokenizer: the dataset's.
        revision: the commit; None for the newest.
        fetch: whether it may be downloaded.

    Attributes:
        revision: the commit; None for a folder.
        sha256: of its weights.

    Raises StabError if it cannot be loaded.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, revision: str | None = None, fetch: bool = False
    ) -> None:
        try:
            import transformers

            log: Any = transformers.logging
            log.set_verbosity_error()
            log.disable_progress_bar()
            how = {
                "trust_remote_code": False,
                "revision": revision or "main",
                "local_files_only": not fetch,
            }
            self.words: Any = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, **how)
            # The model comes in evaluation mode.
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, **how
            )
        except ImportError as e:
            raise StabError(
                f"the scorer model {name!r} needs transformers ({e}): pip install 'stab-gva[text]'"
            ) from e
        except Exception as e:
            raise StabError(f"the scorer model {name!r} cannot be loaded: {reason(e)}") from e
        if self.words.eos_token_id is None or not self.words.is_fast:
            raise StabError(
                f"the scorer model {name!r} has no fast tokenizer with an end-of-text token: choose"
                " another model"
            )
        self.limit = int(getattr(self.model.config, "max_position_embeddings", 0) or 10**9)
        self.bytes = token_bytes(tokenizer)
        self.revision: str | None = getattr(self.model.config, "_commit_hash", None)
        sha = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            sha.update(key.encode() + value.contiguous().numpy().tobytes())
        self.sha256 = sha.hexdigest()

    def log_likelihood(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        pairs = zip(prompts, written, strict=True)
        return [self._of([*prompt, *tokens])[len(prompt) :] for prompt, tokens in pairs]

    @torch.inference_mode()
    def _of(self, tokens: list[int]) -> np.ndarray:
        """Return the log-likelihood of each of our tokens, (tokens,)."""
        # The model's tokens, and the index of the token of ours that each counts for.
        theirs, owners = [self.words.eos_token_id], [0]
        begin = 0
        for end in [*(k for k, token in enumerate(tokens) if token == 0), len(tokens)]:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            text, owner = "", list[int]()
            for k in range(begin, end):
                piece = decoder.decode(self.bytes[tokens[k]], final=k == end - 1)
                text, owner = text + piece, owner + [k] * len(piece)
            # Special tokens are split: an end-of-text token spelled in a text is not an end.
            encoded = self.words(
                text,
                return_offsets_mapping=True,
                add_special_tokens=False,
                split_special_tokens=True,
            )
            theirs += encoded["input_ids"]
            owners += [owner[stop - 1] if stop else begin for _, stop in encoded["offset_mapping"]]
            if end < len(tokens):
                theirs, owners, begin = [*theirs, self.words.eos_token_id], [*owners, end], end + 1
        if len(theirs) > self.limit:
            raise StabError(
                f"the scorer model reads at most {self.limit} of its tokens, a text has"
                f" {len(theirs)}"
            )
        log_p = torch.log_softmax(self.model(torch.tensor([theirs])).logits[0, :-1], -1)
        nats = log_p.gather(-1, torch.tensor(theirs[1:])[:, None])[:, 0].double().numpy()
        return np.bincount(owners[1:], weights=nats, minlength=len(tokens))


def folder(dataset_id: str) -> Path:
    """The dataset's folder, which holds its scorer model. Raises StabError for a malformed id."""
    datasets.check_id(dataset_id)
    return datasets.root() / dataset_id


def read_card(dataset_id: str) -> dict[str, Any]:
    """Return the card of a dataset's scorer model.

    Raises StabError if there is none, or if it cannot be read.
    """
    path = folder(dataset_id) / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        return {key: card[key] for key in ("judge", "sha256", "references")} | card
    except FileNotFoundError:
        raise StabError(
            f"dataset {dataset_id!r} has no scorer model to give the likelihood of a text: stab"
            f" scorer train text --dataset {dataset_id}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StabError(
            f"{path} is not the card of a scorer model ({reason(e)}): train it again"
        ) from e


def load(dataset_id: str, vocabulary: int, context: int, tokenizer: Tokenizer) -> ScorerModel:
    """Return a dataset's scorer model.

    Raises StabError if there is none, or if its files differ from its card.
    """
    card = read_card(dataset_id)
    name = str(card["judge"])
    if name.startswith(HUB):
        model = CausalLM(name.removeprefix(HUB), tokenizer, card.get("revision"))
        if model.sha256 != card["sha256"]:
            raise StabError(
                f"{name} is not the scorer model that {folder(dataset_id) / CARD} was written for:"
                " train it again"
            )
        return model
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    path = folder(dataset_id) / WEIGHTS
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise StabError(f"{path} is not the scorer model of the card beside it: train it again")
        return GPTScorer(name, vocabulary, context, read(content))
    except (OSError, SafetensorError, RuntimeError) as e:
        raise StabError(f"{path} cannot be read ({reason(e)}): train the scorer model again") from e
