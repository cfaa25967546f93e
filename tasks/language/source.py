"""Where texts come from, and what says how likely one is: the grammar of stories, or a judge beside a dataset."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from stab.tasks.language import grammar
from stab.tasks.references import EXPERT_SEED, RANDOM_SEED, Curve, curve

REFERENCE_TEXTS = 200
END = 0  # the token that ends a text, and what a policy sees before its first; in every vocabulary


class Scorer(ABC):
    """Reads what is written after some prompts, one row each, and says what it is worth."""

    @abstractmethod
    def read(self, row: int, token: int) -> bool:
        """Take in the next token of a row; return whether its text has ended."""

    @abstractmethod
    def rewards(self) -> list[np.ndarray]:
        """Return each row's rewards so far, float64 (tokens,): the log-likelihood of each token in nats."""


class Source(ABC):
    """A distribution of texts over a closed vocabulary.

    Attributes:
        words: the vocabulary, as one reads it.
        about: what the references are, in words.
        longest: tokens that follow a prompt at most.
        context: tokens of a whole text at most, with the END it is begun with.
    """

    words: Sequence[str]
    about: str
    longest: int
    context: int

    @abstractmethod
    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Draw a true text: its opening, which serves as a prompt, and how it goes on."""

    @abstractmethod
    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        """Return what reads the continuations of these prompts."""

    def measures(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        """Return what is reported of a continuation beside its reward."""
        return {}

    @abstractmethod
    def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return what a reader sees of each token, white space before it included."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """What names the source: equal where texts and rewards are."""

    def references(self) -> tuple[Curve, Curve]:
        """Return the curves of tokens drawn uniformly and of true texts, over 200 prompts each."""
        found = []
        for first in (RANDOM_SEED, EXPERT_SEED):
            prompts, written = [], []
            for seed in range(first, first + REFERENCE_TEXTS):
                rng = np.random.default_rng(seed)
                prompt, rest = self.text(rng)
                prompts.append(prompt)
                uniform = rng.integers(len(self.words), size=self.longest).tolist()
                written.append(uniform if first == RANDOM_SEED else rest)
            cumulative, lengths = self.score(prompts, written)
            found.append(curve(cumulative, lengths, first))
        return found[0], found[1]

    def score(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cumulative rewards (texts, longest) and lengths (texts,) of continuations, up to where a text ends."""
        scorer = self.scorer(prompts)
        for row, tokens in enumerate(written):
            for token in tokens[: self.longest]:
                if scorer.read(row, int(token)):
                    break
        rewards = scorer.rewards()
        cumulative = np.array([np.pad(r, (0, self.longest - len(r))).cumsum() for r in rewards])
        return cumulative, np.array([len(r) for r in rewards])


class Stories(Source):
    """The grammar of children's stories (``stab.tasks.language.grammar``): its likelihood is exact."""

    words = grammar.WORDS
    about = "uniform tokens and fresh true stories"
    longest = grammar.LONGEST - 12  # of an opening, at most
    context = grammar.LONGEST

    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        story = grammar.story(rng)
        opening = grammar.opening(story)
        return story[:opening], story[opening:]

    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        return _Readers(prompts)

    def measures(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        return grammar.consistency([*prompt, *tokens], len(prompt))

    def spell(self, tokens: Sequence[int]) -> list[str]:
        words = [self.words[token] for token in tokens]
        return [word if word in ".," else f" {word}" for word in words]

    @functools.cached_property
    def sha256(self) -> str:
        told = [grammar.story(np.random.default_rng(seed)) for seed in range(100)]
        return hashlib.sha256(repr((grammar.WORDS, grammar.FLOOR, told)).encode()).hexdigest()


class _Readers(Scorer):
    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.readers = [grammar.Reader() for _ in prompts]
        self.found: list[list[float]] = [[] for _ in prompts]
        for reader, prompt in zip(self.readers, prompts, strict=True):
            for token in prompt:
                reader.read(token)

    def read(self, row: int, token: int) -> bool:
        self.found[row].append(self.readers[row].read(token))
        return self.readers[row].over

    def rewards(self) -> list[np.ndarray]:
        return [np.array(rewards) for rewards in self.found]


def source(name: str) -> Source:
    """Return a source by its name: ``stories``, or the id of a dataset that has a judge.

    Raises StabError when there is no such dataset, or no judge.
    """
    if name == "stories":
        return _stories()
    from stab.tasks.language.text import Judged

    return Judged(name)


@functools.cache
def _stories() -> Source:
    return Stories()
