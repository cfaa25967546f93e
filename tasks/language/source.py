"""A source of texts, and the scorer that gives each token its reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from stab.tasks.references import EXPERT_SEED, RANDOM_SEED, Curve, curve

REFERENCE_TEXTS = 200
# Streams of random draws: of tokens, and of fresh texts. Last in a seed's key, where zeros vanish.
DRAWS, FRESH = 1, 2
END = 0  # ends a text, and is what a policy sees before its first token; in every vocabulary


class Scorer(ABC):
    """Reads the continuations of some prompts, one row each, and gives each token its reward."""

    @abstractmethod
    def read(self, row: int, token: int) -> bool:
        """Take in the next token of a row; return whether its text has ended."""

    @abstractmethod
    def rewards(self) -> list[np.ndarray]:
        """Return the rewards of each row so far, float64 (tokens,): log-likelihoods in nats."""


class Source(ABC):
    """A distribution of texts over a closed vocabulary.

    Attributes:
        words: the vocabulary, as it is read.
        about: what the references are, in words.
        longest: tokens that follow a prompt at most.
        context: tokens of a whole text at most, the END before it included.
        metrics: the names of what ``measure`` returns, with one line of explanation each.
    """

    words: Sequence[str]
    about: str
    longest: int
    context: int
    metrics: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Draw a true text: its opening, which serves as a prompt, and its continuation."""

    @abstractmethod
    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        """Return a scorer of continuations of these prompts."""

    def measure(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        """Return the metrics of a continuation; those that do not apply to it are left out."""
        return {}

    @abstractmethod
    def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token, white space before it included."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Names the source: equal if its texts and rewards are."""

    def references(self) -> tuple[Curve, Curve]:
        """Return the curves of tokens drawn uniformly and of true texts, over 200 prompts each."""
        curves = []
        for first in (RANDOM_SEED, EXPERT_SEED):
            prompts, written = [], []
            for seed in range(first, first + REFERENCE_TEXTS):
                rng = np.random.default_rng(seed)
                prompt, rest = self.text(rng)
                prompts.append(prompt)
                uniform = rng.integers(len(self.words), size=self.longest).tolist()
                written.append(uniform if first == RANDOM_SEED else rest)
            curves.append(curve(*self.score(prompts, written), first))
        return curves[0], curves[1]

    def score(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cumulative rewards (texts, longest) and lengths (texts,) of continuations.

        A continuation is read up to the end of its text.
        """
        scorer = self.scorer(prompts)
        for row, tokens in enumerate(written):
            for token in tokens[: self.longest]:
                if scorer.read(row, int(token)):
                    break
        rewards = scorer.rewards()
        cumulative = np.array([np.pad(r, (0, self.longest - len(r))).cumsum() for r in rewards])
        return cumulative, np.array([len(r) for r in rewards])
