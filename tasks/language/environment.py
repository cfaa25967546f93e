"""Text as a Gymnasium environment, and the source that a name stands for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from stab.tasks.language.source import Scorer, Source


class TokensEnv(gym.Env[np.int64, np.int64]):
    """Text, token by token: the action is the next token, the observation the last one, an episode a text.

    Token 0 ends a text, and is what one sees before its first token. The reward is the token's
    log-likelihood under the source (``stab.tasks.language.source``), with a floor. Without a source it is 0, and an episode
    never ends.

    Args:
        vocabulary: number of tokens.
        source: what draws prompts and says how likely a token is: ``stories``, or a dataset with a judge.
        prompted: whether reset gives a prompt that the source draws; ``info["prompt"]`` is the whole of it, the observation
            its last token. Without, a text begins at its beginning.
        texts: how many texts are told one after the other before an episode ends.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self, vocabulary: int, source: str | None = None, prompted: bool = False, texts: int = 1
    ) -> None:
        self.observation_space = self.action_space = gym.spaces.Discrete(vocabulary)
        self.source, self.prompted, self.texts, self.told = source, prompted, texts, 0
        self.scorer: Scorer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.told, prompt = 0, [0]
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
            self.told += 1
            self._begin([])
        return np.int64(action), reward, self.told == self.texts, False, {}

    def _begin(self, prompt: list[int]) -> None:
        self.scorer = self._source.scorer([prompt]) if self.source else None

    @functools.cached_property
    def _source(self) -> Source:
        assert self.source
        return source(self.source)


def source(name: str) -> Source:
    """Return a source by its name: ``stories``, or the id of a dataset that has a judge.

    Raises StabError when there is no such dataset, or no judge.
    """
    from stab.tasks.language.stories import stories  # imports torch, as the next
    from stab.tasks.language.text import Judged

    return stories() if name == "stories" else Judged(name)
