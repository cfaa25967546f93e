"""Real text: a folder of it, or a dataset of Hugging Face; what is generated is read by a judge."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from stab.files import versions
from stab.registry import StabError
from stab.tasks import datasets, own
from stab.tasks.environments import TOKENS
from stab.tasks.language import corpus
from stab.tasks.language import scorer_model as judges
from stab.tasks.language.source import END, Scorer, Source
from stab.tasks.language.task import Language
from stab.tasks.language.windows import Windows, windows
from stab.tasks.references import Curve, Progress, no_progress, references_from
from stab.tasks.transitions import Transitions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACK = 4096  # tokens of an episode
PACKS = 400  # episodes at most, where no more are asked for
HELD_OUT = 10  # one episode in so many is kept for prompts, and trains neither policy nor judge
PROMPT, CONTINUATION = 32, 96  # tokens
PROMPTS = 100  # beginnings of texts, at least, or prompts are taken from anywhere
VALIDATION = 5  # episodes that a judge's training is ended by, at most
SHUFFLE = 0  # seed of the order that texts are written in: training, validation and prompts are to be alike
CONTEXT = PROMPT + CONTINUATION


class Judged(Source):
    """The texts of a dataset that are held out, and its judge.

    Args:
        dataset_id: what ``Text.collect`` wrote.
        judge: another than the one beside the dataset.

    A text never ends before ``longest`` tokens: behind the END of one comes the next. So no policy gains by falling silent.
    Raises StabError when the dataset is of other making, or has no judge.
    """

    about = "uniform tokens and texts held out, read by the judge"
    longest = CONTINUATION
    context = CONTEXT

    def __init__(self, dataset_id: str, judge: judges.Judge | None = None) -> None:
        self.dataset_id = dataset_id
        self.tokenizer = tokenizer_of(dataset_id)
        self.words = corpus.pieces(self.tokenizer)
        self.card: dict[str, Any] = {} if judge else judges.read_card(dataset_id)
        if judge:
            self.judge = judge

    @functools.cached_property
    def judge(self) -> judges.Judge:
        """The judge, loaded where it is needed."""
        return judges.load(self.dataset_id, len(self.words), self.context, self.tokenizer)

    @functools.cached_property
    def beginnings(self) -> np.ndarray:
        """(texts, context) stretches of what is held out: where texts begin or, where they are few, from anywhere."""
        found = datasets.load(self.dataset_id)
        kept = datasets.read(found, found.episode_indices[-held_out(found) :])
        every = [np.lib.stride_tricks.sliding_window_view(pack, CONTEXT) for pack in _packs(kept)]
        begins = [np.flatnonzero(pack[:-CONTEXT] == END) + 1 for pack in _packs(kept)]
        chosen = np.concatenate([views[at] for views, at in zip(every, begins, strict=True)])
        return chosen if len(chosen) >= PROMPTS else np.concatenate(every)

    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        tokens = self.beginnings[rng.integers(len(self.beginnings))].tolist()
        return tokens[:PROMPT], tokens[PROMPT:]

    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        return _Judging(self.judge, prompts)

    def measures(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        """Return ``repetition``, the share of the 4-grams of the text that occurred in it before, and ``distinct_n``.

        distinct_n, n = 1 and 2: the number of different n-grams of the generated tokens over that of all, within the text.
        (Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv 1510.03055, count over
        all texts together.)
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
        """Return those on the judge's card: they were measured when it was trained."""
        found = references_from(self.card["references"])
        return found.random, found.expert

    def measure(self) -> tuple[Curve, Curve]:
        """Measure them: tokens drawn uniformly, and texts held out."""
        return super().references()


class _Judging(Scorer):
    def __init__(self, judge: judges.Judge, prompts: Sequence[Sequence[int]]) -> None:
        self.judge, self.prompts = judge, prompts
        self.written: list[list[int]] = [[] for _ in prompts]

    def read(self, row: int, token: int) -> bool:
        self.written[row].append(token)
        return False

    def rewards(self) -> list[np.ndarray]:
        return self.judge.log_likelihood(self.prompts, self.written)


def distinct(tokens: Sequence[int], n: int) -> float:
    """Return the number of different n-grams of a text over the number of all; 1 where there are none."""
    grams = Counter(zip(*(tokens[k:] for k in range(n)), strict=False))
    return len(grams) / max(1, grams.total()) if grams else 1.0


def held_out(found: Any) -> int:
    """Return how many of a dataset's episodes, its last ones, are kept for prompts."""
    return max(1, int(found.total_episodes) // HELD_OUT)


@dataclass(frozen=True)
class Text(Language):
    """Texts of a folder. Arguments as for ``Task``; ``dataset_id`` must be given.

    Args:
        folder: of .txt or .parquet files to write the dataset from; see ``corpus.read_folder``. For a task of the hub: a
            local copy of its repository.
        vocabulary: entries of the tokenizer that is trained on the texts.
    """

    folder: Path | None = None
    vocabulary: int = 2048
    hub: str | None = None

    @property
    def demonstrations_id(self) -> str:
        if self.dataset_id is None and self.hub is None:
            raise StabError(
                f"task {self.name!r} has no texts of its own: stab data prepare {self.name} --folder FOLDER --dataset"
                " my/prose-v0, then give --dataset my/prose-v0"
            )
        return super().demonstrations_id

    @functools.cached_property
    def source(self) -> Source:
        if not datasets.exists(self.demonstrations_id):
            how = "" if self.hub else " --folder FOLDER"
            how += f" --dataset {self.dataset_id}" if self.dataset_id else ""
            raise StabError(
                f"dataset {self.demonstrations_id!r} is not in {datasets.root()}: stab data prepare {self.name}{how}"
            )
        return Judged(self.demonstrations_id)

    def has_data(self) -> bool:
        return datasets.exists(self.demonstrations_id)

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Train a tokenizer on the texts and write them as episodes of 4,096 tokens, 400 at most where none are asked for.

        Raises StabError where there are no texts, or not enough of them, and for a ``dataset_id`` that is there already.
        """
        if datasets.exists(self.demonstrations_id):
            raise StabError(
                f"dataset {self.demonstrations_id!r} is already in {datasets.root()}; delete it first, with its judge:"
                f" stab data remove {self.demonstrations_id}"
            )
        most = episodes or max(PACKS, own.wanted(self) * HELD_OUT // (HELD_OUT - 1) + 1)
        texts = list(self._bounded(most))
        np.random.default_rng(SHUFFLE).shuffle(texts)
        progress(0.3)
        tokenizer = corpus.train_tokenizer(texts, self.vocabulary)
        progress(0.6)
        packs = corpus.pack(texts, tokenizer, PACK, most)
        if len(packs) < 3:
            raise StabError(
                f"{len(packs)} episodes of {PACK} tokens: three are the least (to train on, to validate on, and to prompt"
                " with); give more text"
            )
        size = tokenizer.get_vocab_size()
        spec = replace(gym.spec(TOKENS), kwargs={"vocabulary": size})
        made = []
        for seed, pack in enumerate(packs):
            steps = [(token, 0.0, False, n == PACK) for n, token in enumerate(pack.tolist(), 1)]
            made.append(datasets.episode(seed, [END, *pack.tolist()], steps))
        progress(0.8)
        where = (
            str(self.folder)
            if self.folder
            else corpus.HUBS[self.hub].repository
            if self.hub
            else ""
        )
        datasets.create(
            self.demonstrations_id,
            made,
            spec,
            None,
            {
                "tokenizer": corpus.tokenizer_json(tokenizer),
                "versions": versions(("stab-gva", "tokenizers", "numpy")),
            },
            evaluation=replace(
                spec,
                kwargs={"vocabulary": size, "source": self.demonstrations_id, "prompted": True},
                max_episode_steps=CONTINUATION,
            ),
            algorithm_name="people's texts",
            author="stab",
            description=f"{len(packs)} episodes of {PACK} tokens from {Path(where).name or where}.",
        )
        progress(1.0)

    def _bounded(self, episodes: int) -> Iterator[str]:
        """Yield texts until there are enough characters for the episodes: a token has fewer than eight, on average."""
        size = 0
        for text in self._read():
            yield text
            size += len(text)
            if size > 8 * PACK * episodes:
                return

    def _read(self) -> Iterator[str]:
        if self.hub is not None:
            return corpus.read_hub(corpus.HUBS[self.hub], str(self.folder) if self.folder else None)
        if self.folder is None:
            raise StabError(
                f"task {self.name!r} reads a folder of .txt or .parquet files: give --folder FOLDER"
            )
        return corpus.read_folder(self.folder)

    def _check(self, found: Any) -> None:
        if found.total_steps != PACK * found.total_episodes:
            raise StabError(
                f"dataset {found.id!r} does not have {PACK} tokens in every episode: it is not of stab's making"
            )
        kept = held_out(found)
        there = int(found.total_episodes) - kept
        if own.wanted(self) > there:
            raise StabError(
                f"dataset {found.id!r} has {there} episodes beside the {kept} that are held out,"
                f" {own.wanted(self)} are asked for: lower data.train_episodes ({self.train_episodes})"
                f" or data.validation_episodes ({self.validation_episodes})"
            )

    def _texts(self, found: Transitions) -> Iterable[np.ndarray]:
        return _packs(found)


def tokenizer_of(dataset_id: str) -> Tokenizer:
    """Return the tokenizer of a dataset of texts. Raises StabError when it is of other making."""
    about = datasets.stab_metadata(datasets.load(dataset_id))
    if "tokenizer" not in about:
        raise StabError(
            f"dataset {dataset_id!r} holds no texts with their tokenizer: stab data prepare text --help"
        )
    return corpus.tokenizer_from(str(about["tokenizer"]))


def corpus_windows(dataset_id: str) -> tuple[Windows, Windows, int]:
    """Return everything but what is held out, to train and to validate a judge on, and the vocabulary's size."""
    found = datasets.load(dataset_id)
    size = tokenizer_of(dataset_id).get_vocab_size()
    there = int(found.total_episodes) - held_out(found)
    if there < 2:
        raise StabError(
            f"dataset {dataset_id!r} has {there} episodes to train a judge on: two are the least"
        )
    validation = max(1, min(VALIDATION, there // 10))
    train, valid = (
        windows(_packs(part), CONTEXT)
        for part in datasets.split(found, there - validation, validation)
    )
    return train, valid, size


def _packs(found: Transitions) -> list[np.ndarray]:
    return np.split(found.actions.numpy(), np.flatnonzero(np.diff(found.episodes)) + 1)
