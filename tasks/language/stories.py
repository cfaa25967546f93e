"""Children's stories of a known grammar: the source, and the task."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from stab.files import versions
from stab.registry import StabError
from stab.tasks import datasets, own
from stab.tasks.environments import TOKENS
from stab.tasks.language import grammar
from stab.tasks.language.source import END, Scorer, Source
from stab.tasks.language.task import Language
from stab.tasks.references import Progress, References, no_progress
from stab.tasks.transitions import Transitions

STORIES = 100  # in an episode of the dataset: Minari keeps a group of files per episode, and a text is short


class Grammar(Source):
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


@functools.cache
def stories() -> Source:
    """Return the source, made once."""
    return Grammar()


@dataclass(frozen=True)
class Stories(Language):
    """Children's stories of a known grammar; see ``stab.tasks.language.grammar``. Arguments as for ``Task``."""

    has_fresh_episodes: ClassVar[bool] = True

    @functools.cached_property
    def source(self) -> Source:
        return stories()

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write fresh stories, ``STORIES`` an episode, those of episode n drawn with the seed n.

        A larger dataset begins with the smaller one. Raises StabError for a ``dataset_id`` that is there already.
        """
        count = own.count(self, episodes)
        kwargs = {"vocabulary": len(self.source.words), "source": "stories"}
        spec = gym.spec(TOKENS)
        references = References(*self.source.references(), self.source.about)
        made = []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            observations, steps = [END], []
            for number in range(STORIES):
                opening, rest = self.source.text(rng)
                story = [*opening, *rest]
                scorer = self.source.scorer([[]])
                for token in story:
                    scorer.read(0, token)
                last = number == STORIES - 1
                ends = [last and n == len(story) for n in range(1, len(story) + 1)]
                steps += [(token, reward, end, False)
                          for token, reward, end in zip(story, scorer.rewards()[0], ends, strict=True)]  # fmt: skip
                observations += story
            made.append(datasets.episode(seed, observations, steps))
            progress((seed + 1) / (count + 1))
        datasets.create(
            self.demonstrations_id,
            made,
            replace(spec, kwargs={**kwargs, "texts": STORIES}),
            references,
            {
                "expert_sha256": self.source.sha256,
                "vocabulary": list(self.source.words),
                "versions": versions(("stab-gva", "gymnasium", "numpy")),
            },
            larger=self.dataset_id is None,
            evaluation=replace(
                spec, kwargs={**kwargs, "prompted": True}, max_episode_steps=self.source.longest
            ),
            algorithm_name="the source itself",
            author="stab",
            description=f"{count} episodes of {STORIES} stories each, from the grammar of task {self.name}.",
        )
        progress(1.0)

    def _check(self, found: Any) -> None:
        about = datasets.stab_metadata(found)
        if "tokenizer" in about:
            raise StabError(
                f"dataset {found.id!r} holds other texts than stories: give --task text"
            )
        if about.get("expert_sha256") != self.source.sha256:
            raise StabError(
                f"dataset {found.id!r} holds stories of another grammar than this stab's: delete it"
                f" (stab data remove {found.id}) and it is written anew"
            )

    def _texts(self, found: Transitions) -> Iterable[np.ndarray]:
        tokens = found.actions.numpy()
        return np.split(tokens, np.flatnonzero(tokens == END)[:-1] + 1)
