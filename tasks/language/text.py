"""Real text: a folder of it, or a dataset of Hugging Face; a scorer model gives its likelihood."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np

from stab.files import versions
from stab.registry import StabError
from stab.tasks import datasets, own
from stab.tasks.environments import TOKENS
from stab.tasks.language import readers, scorer_model
from stab.tasks.language.scorer_model import ScorerModel
from stab.tasks.language.source import END, Scorer, Source
from stab.tasks.language.task import Language
from stab.tasks.language.tokens import pack, pieces, tokenizer_from, train_tokenizer
from stab.tasks.language.windows import Windows, windows
from stab.tasks.references import Curve, Progress, no_progress, references_from
from stab.tasks.transitions import Transitions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACK = 4096  # tokens of an episode
PACKS = 400  # episodes at most, unless more are asked for
HELD_OUT = 10  # one episode in so many is kept for prompts; neither policy nor scorer trains on it
PROMPT, CONTINUATION = 32, 96  # tokens
PROMPTS = 100  # beginnings of texts that suffice; with fewer, prompts are taken from anywhere
VALIDATION = 5  # validation episodes of a scorer model, at most
SHUFFLE = 0  # seed of the order of the texts, so that training, validation and prompts are alike
CONTEXT = PROMPT + CONTINUATION


class HeldOutTexts(Source):
    """The held-out texts of a dataset, and its scorer model.

    Args:
        dataset_id: of a dataset that ``Text.collect`` wrote.
        model: a scorer model instead of the one beside the dataset.

    A text never ends before ``longest`` tokens: after the END of one comes the next. So no policy
    gains by stopping early. Raises StabError if stab did not write the dataset, or if it has no
    scorer model.
    """

    about = "uniform tokens and texts held out, read by the judge"  # is in cards on disk
    longest = CONTINUATION
    context = CONTEXT
    metrics: ClassVar[Mapping[str, str]] = {
        "repetition": "share of 4-grams that occurred before in the text.",
        "distinct_1": "distinct tokens over all, within a text.",
        "distinct_2": "distinct pairs of tokens over all, within a text.",
    }

    def __init__(self, dataset_id: str, model: ScorerModel | None = None) -> None:
        self.dataset_id = dataset_id
        self.tokenizer = tokenizer_of(dataset_id)
        self.words = pieces(self.tokenizer)
        self.card: dict[str, Any] = {} if model else scorer_model.read_card(dataset_id)
        if model:
            self.model = model

    @functools.cached_property
    def model(self) -> ScorerModel:
        """The scorer model, loaded on first use."""
        return scorer_model.load(self.dataset_id, len(self.words), self.context, self.tokenizer)

    @functools.cached_property
    def beginnings(self) -> np.ndarray:
        """(texts, context) held-out tokens, from the beginnings of texts or, if few, anywhere."""
        dataset = datasets.load(self.dataset_id)
        split = datasets.read(dataset, dataset.episode_indices[-held_out(dataset) :])
        every = [np.lib.stride_tricks.sliding_window_view(row, CONTEXT) for row in _packs(split)]
        begins = [np.flatnonzero(row[:-CONTEXT] == END) + 1 for row in _packs(split)]
        chosen = np.concatenate([views[at] for views, at in zip(every, begins, strict=True)])
        return chosen if len(chosen) >= PROMPTS else np.concatenate(every)

    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        text = self.beginnings[rng.integers(len(self.beginnings))].tolist()
        return text[:PROMPT], text[PROMPT:]

    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        return _ModelScorer(self.model, prompts)

    def measure(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        """Return ``repetition`` and ``distinct_n``, n = 1 and 2, of the generated tokens.

        repetition: the share of 4-grams that occurred before. distinct_n: the number of different
        n-grams over that of all, within the text. (Li et al., "A Diversity-Promoting Objective
        Function for Neural Conversation Models", arXiv 1510.03055, count over all texts together.)
        """
        return {
            "repetition": 1 - distinct(tokens, 4),
            "distinct_1": distinct(tokens, 1),
            "distinct_2": distinct(tokens, 2),
        }

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return [self.words[token] for token in tokens]

    @property
    def sha256(self) -> str:
        return str(self.card["sha256"])

    def references(self) -> tuple[Curve, Curve]:
        """Return those on the scorer model's card: they were measured when it was trained."""
        references = references_from(self.card["references"])
        return references.random, references.expert

    def measured_references(self) -> tuple[Curve, Curve]:
        """Measure them: tokens drawn uniformly, and held-out texts."""
        return super().references()


class _ModelScorer(Scorer):
    def __init__(self, model: ScorerModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.prompts = model, prompts
        self.written: list[list[int]] = [[] for _ in prompts]

    def read(self, row: int, token: int) -> bool:
        self.written[row].append(token)
        return False

    def rewards(self) -> list[np.ndarray]:
        return self.model.log_likelihood(self.prompts, self.written)


def distinct(tokens: Sequence[int], n: int) -> float:
    """Number of different n-grams of a text over the number of all; 1 if there are none."""
    grams = Counter(zip(*(tokens[k:] for k in range(n)), strict=False))
    return len(grams) / max(1, grams.total()) if grams else 1.0


def held_out(dataset: Any) -> int:
    """Number of a dataset's last episodes that are kept for prompts."""
    return max(1, int(dataset.total_episodes) // HELD_OUT)


@dataclass(frozen=True)
class Text(Language):
    """Texts of a folder or of Hugging Face; arguments as for ``Task``.

    Args:
        folder: of the .txt or .parquet files to write the dataset from, see
            ``readers.read_folder``. With ``hub``: a local copy of the repository.
        vocabulary: entries of the tokenizer that is trained on the texts.
        hub: one of ``readers.HUBS``; without it ``dataset_id`` must be given.
    """

    metrics: ClassVar[Mapping[str, str]] = {**Language.metrics, **HeldOutTexts.metrics}

    folder: Path | None = None
    vocabulary: int = 2048
    hub: str | None = None

    @property
    def demonstrations_id(self) -> str:
        if self.dataset_id is None and self.hub is None:
            raise StabError(
                f"task {self.name!r} has no texts of its own: stab data prepare {self.name}"
                " --folder FOLDER --dataset my/prose-v0, then give --dataset my/prose-v0"
            )
        return super().demonstrations_id

    @functools.cached_property
    def source(self) -> Source:
        if not datasets.exists(self.demonstrations_id):
            how = "" if self.hub else " --folder FOLDER"
            how += f" --dataset {self.dataset_id}" if self.dataset_id else ""
            raise StabError(
                f"dataset {self.demonstrations_id!r} is not in {datasets.root()}: stab data prepare"
                f" {self.name}{how}"
            )
        return HeldOutTexts(self.demonstrations_id)

    def has_data(self) -> bool:
        return datasets.exists(self.demonstrations_id)

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Train a tokenizer on the texts and write them as episodes of 4,096 tokens.

        At most ``episodes`` of them are written, by default 400 or as many as the task uses. Raises
        StabError if there are not enough texts, or if the dataset exists already.
        """
        if datasets.exists(self.demonstrations_id):
            raise StabError(
                f"dataset {self.demonstrations_id!r} is already in {datasets.root()}; delete it"
                f" first, with its scorer model: stab data remove {self.demonstrations_id}"
            )
        most = episodes or max(PACKS, own.wanted(self) * HELD_OUT // (HELD_OUT - 1) + 1)
        texts = list(self._bounded(most))
        np.random.default_rng(SHUFFLE).shuffle(texts)
        progress(0.3)
        tokenizer = train_tokenizer(texts, self.vocabulary)
        progress(0.6)
        packs = pack(texts, tokenizer, PACK, most)
        if len(packs) < 3:
            raise StabError(
                f"{len(packs)} episodes of {PACK} tokens: expected at least three (to train, to"
                " validate and to prompt with); give more text"
            )
        size = tokenizer.get_vocab_size()
        spec = replace(gym.spec(TOKENS), kwargs={"vocabulary": size})
        written = []
        for seed, row in enumerate(packs):
            steps = [(token, 0.0, False, n == PACK) for n, token in enumerate(row.tolist(), 1)]
            written.append(datasets.episode(seed, [END, *row.tolist()], steps))
        progress(0.8)
        repository = readers.HUBS[self.hub].repository if self.hub else ""
        origin = Path(self.folder or repository)
        datasets.create(
            self.demonstrations_id,
            written,
            spec,
            None,
            {
                "tokenizer": tokenizer.to_str(),
                "versions": versions(("stab-gva", "tokenizers", "numpy")),
            },
            evaluation=replace(
                spec,
                kwargs={"vocabulary": size, "source": self.demonstrations_id, "prompted": True},
                max_episode_steps=CONTINUATION,
            ),
            algorithm_name="people's texts",
            author="stab",
            description=f"{len(packs)} episodes of {PACK} tokens from {origin.name or origin}.",
        )
        progress(1.0)

    def _bounded(self, episodes: int) -> Iterator[str]:
        """Yield texts until they suffice: a token has fewer than eight characters on average."""
        size = 0
        for text in self._read():
            yield text
            size += len(text)
            if size > 8 * PACK * episodes:
                return

    def _read(self) -> Iterator[str]:
        if self.hub is not None:
            copy = str(self.folder) if self.folder else None
            return readers.read_hub(readers.HUBS[self.hub], copy)
        if self.folder is None:
            raise StabError(
                f"task {self.name!r} reads a folder of .txt or .parquet files: give --folder FOLDER"
            )
        return readers.read_folder(self.folder)

    def _check(self, dataset: Any) -> None:
        if dataset.total_steps != PACK * dataset.total_episodes:
            raise StabError(
                f"dataset {dataset.id!r} does not have {PACK} tokens in every episode: stab did not"
                " write it"
            )
        reserved = held_out(dataset)
        rest, wanted = int(dataset.total_episodes) - reserved, own.wanted(self)
        if wanted > rest:
            raise StabError(
                f"dataset {dataset.id!r} has {rest} episodes beside the {reserved} that are held"
                f" out, {wanted} are asked for: lower data.train_episodes ({self.train_episodes})"
                f" or data.validation_episodes ({self.validation_episodes})"
            )

    def _texts(self, split: Transitions) -> Iterable[np.ndarray]:
        return _packs(split)


def tokenizer_of(dataset_id: str) -> Tokenizer:
    """Return the tokenizer of a dataset of texts. Raises StabError if the dataset has none."""
    about = datasets.stab_metadata(datasets.load(dataset_id))
    if "tokenizer" not in about:
        raise StabError(
            f"dataset {dataset_id!r} holds no texts with their tokenizer: stab data prepare text"
            " --help"
        )
    return tokenizer_from(str(about["tokenizer"]))


def corpus_windows(dataset_id: str) -> tuple[Windows, Windows, int]:
    """Return training and validation windows of a scorer model, and the vocabulary's size.

    They cover all episodes that are not held out. Raises StabError if these are fewer than two.
    """
    dataset = datasets.load(dataset_id)
    size = tokenizer_of(dataset_id).get_vocab_size()
    rest = int(dataset.total_episodes) - held_out(dataset)
    if rest < 2:
        raise StabError(
            f"dataset {dataset_id!r} has {rest} episodes to train a scorer model on: expected at"
            " least two"
        )
    validation = max(1, min(VALIDATION, rest // 10))
    train, valid = (
        windows(_packs(split), CONTEXT)
        for split in datasets.split(dataset, rest - validation, validation)
    )
    return train, valid, size


def _packs(split: Transitions) -> list[np.ndarray]:
    return np.split(split.actions.numpy(), np.flatnonzero(np.diff(split.episodes)) + 1)
