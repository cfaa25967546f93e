"""Where texts come from, and what says how likely one is: the grammar of stories, or a judge beside a dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from stab.tasks.references import EXPERT_SEED, RANDOM_SEED, Curve, curve

REFERENCE_TEXTS = 200
# Streams of random draws: those that choose tokens, and fresh texts; last in a key, as zeros there vanish.
DRAWS, FRESH = 1, 2
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
