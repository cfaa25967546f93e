"""Text as a Gymnasium environment, and sources by name."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from stab.tasks.language.source import Scorer, Source


class TokensEnv(gym.Env[np.int64, np.int64]):
    """Text, token by token: the action is the next token, the observation is the last one.

    An episode is a text. Token 0 ends it, and is the observation before its first token. The reward
    is the token's log-likelihood under the source (``stab.tasks.language.source``), with a floor.
    Without a source it is 0, and an episode never ends.

    Args:
        vocabulary: number of tokens.
        source: ``stories``, or the id of a dataset that has a scorer model.
        prompted: whether reset draws a prompt from the source: the observation is its last token,
            ``info["prompt"]`` the whole of it. Otherwise an episode starts at the beginning.
        texts: number of texts, one after the other, before an episode ends.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self, vocabulary: int, source: str | None = None, prompted: bool = False, texts: int = 1
    ) -> None:
        self.observation_space = self.action_space = gym.spaces.Discrete(vocabulary)
        self.source, self.prompted, self.texts, self.ended = source, prompted, texts, 0
        self.scorer: Scorer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.ended, prompt = 0, [0]
        if self.prompted and self.source:
            prompt += self._source.text(self.np_random)[0]
        self._begin(prompt[1:])
        return np.int64(prompt[-1]), {"prompt": prompt}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if self.scorer is None:
            reward, over = 0.0, False
        else:
            over = self.scorer.read(0, int(action))
            reward = float(self.scorer.rewards()[0][-1])
        if over:
            self.ended += 1
            self._begin([])
        return np.int64(action), reward, self.ended == self.texts, False, {}

    def _begin(self, prompt: list[int]) -> None:
        self.scorer = self._source.scorer([prompt]) if self.source else None

    @functools.cached_property
    def _source(self) -> Source:
        assert self.source
        return source(self.source)


def source(name: str) -> Source:
    """Return a source by its name: ``stories``, or the id of a dataset that has a scorer model.

    Raises StabError if the dataset or its scorer model does not exist.
    """
    from stab.tasks.language.stories import stories  # imports torch, as the next
    from stab.tasks.language.text import HeldOutTexts

    return stories() if name == "stories" else HeldOutTexts(name)
