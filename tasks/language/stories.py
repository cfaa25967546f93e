"""Children's stories of a known grammar: the source, and the task."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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

STORIES = 100  # per episode: Minari keeps a group of files per episode, and a text is short


class Grammar(Source):
    """The grammar of children's stories (``language.grammar``); its likelihood is exact."""

    words = grammar.WORDS
    about = "uniform tokens and fresh true stories"
    longest = grammar.LONGEST - 12  # of an opening, at most
    context = grammar.LONGEST
    metrics: ClassVar[Mapping[str, str]] = {
        "sentences": "share of generated sentences that parse.",
        "facts": "share of mentions of known facts that repeat them.",
        "until": "generated tokens before the first that the source cannot have written.",
    }

    def text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        story = grammar.story(rng)
        opening = grammar.opening(story)
        return story[:opening], story[opening:]

    def scorer(self, prompts: Sequence[Sequence[int]]) -> Scorer:
        return _Readers(prompts)

    def measure(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
        return grammar.consistency([*prompt, *tokens], len(prompt))

    def spell(self, tokens: Sequence[int]) -> list[str]:
        words = [self.words[token] for token in tokens]
        return [word if word in ".," else f" {word}" for word in words]

    @functools.cached_property
    def sha256(self) -> str:
        texts = [grammar.story(np.random.default_rng(seed)) for seed in range(100)]
        return hashlib.sha256(repr((grammar.WORDS, grammar.FLOOR, texts)).encode()).hexdigest()


class _Readers(Scorer):
    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.readers = [grammar.Reader() for _ in prompts]
        self.nats: list[list[float]] = [[] for _ in prompts]
        for reader, prompt in zip(self.readers, prompts, strict=True):
            for token in prompt:
                reader.read(token)

    def read(self, row: int, token: int) -> bool:
        self.nats[row].append(self.readers[row].read(token))
        return self.readers[row].over

    def rewards(self) -> list[np.ndarray]:
        return [np.array(nats) for nats in self.nats]


@functools.cache
def stories() -> Source:
    """The source, one for all tasks and environments."""
    return Grammar()


@dataclass(frozen=True)
class Stories(Language):
    """Children's stories of a known grammar (``language.grammar``); arguments as for ``Task``."""

    has_fresh_episodes: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, str]] = {**Language.metrics, **Grammar.metrics}

    @functools.cached_property
    def source(self) -> Source:
        return stories()

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write fresh stories, ``STORIES`` per episode; episode n is drawn with the seed n.

        A larger dataset begins with the smaller one. Raises StabError if ``dataset_id`` is given
        and exists already.
        """
        count = own.count(self, episodes)
        kwargs = {"vocabulary": len(self.source.words), "source": "stories"}
        spec = gym.spec(TOKENS)
        references = References(*self.source.references(), self.source.about)
        written = []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            observations, steps = [END], []
            for _ in range(STORIES):
                opening, rest = self.source.text(rng)
                story = [*opening, *rest]
                scorer = self.source.scorer([[]])
                for token in story:
                    scorer.read(0, token)
                rewards = scorer.rewards()[0]
                steps += [(*pair, False, False) for pair in zip(story, rewards, strict=True)]
                observations += story
            steps[-1] = (*steps[-1][:2], True, False)  # the episode ends with its last story
            written.append(datasets.episode(seed, observations, steps))
            progress((seed + 1) / (count + 1))
        datasets.create(
            self.demonstrations_id,
            written,
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
            description=f"{count} episodes of {STORIES} stories each, from the grammar of task"
            f" {self.name}.",
        )
        progress(1.0)

    def _check(self, dataset: Any) -> None:
        about = datasets.stab_metadata(dataset)
        if "tokenizer" in about:
            raise StabError(
                f"dataset {dataset.id!r} holds other texts than stories: give --task text"
            )
        if about.get("expert_sha256") != self.source.sha256:
            raise StabError(
                f"dataset {dataset.id!r} holds stories of another grammar than this stab's: delete"
                f" it (stab data remove {dataset.id}) and it is written again"
            )

    def _texts(self, split: Transitions) -> Iterable[np.ndarray]:
        tokens = split.actions.numpy()
        return np.split(tokens, np.flatnonzero(tokens == END)[:-1] + 1)
