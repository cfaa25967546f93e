"""Next-token prediction: the next token is the action, generation the closed loop."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import datasets, environments, own
from stab.tasks.base import Demonstrations, Infos, Task
from stab.tasks.catalog import LANGUAGE
from stab.tasks.environments import TOKENS
from stab.tasks.language.generation import generate, side_by_side
from stab.tasks.language.source import END, Source
from stab.tasks.language.windows import FreshTexts, windows
from stab.tasks.policies import GPT, build_language
from stab.tasks.references import Progress, References, no_progress, portion
from stab.tasks.speed import speeds
from stab.tasks.transitions import Transitions

environments.register()


@dataclass(frozen=True)
class Language(Task):
    """Texts of a source, cloned token by token; arguments as for ``Task``.

    The loss is the cross-entropy of the next token in nats: exp(validation loss) is the perplexity.
    A start is a prompt. The reward of a generated token is its log-likelihood under the source,
    with a floor. Subclasses give ``source``, ``_check`` and ``_texts``.
    """

    settings = LANGUAGE
    environment: ClassVar[str] = TOKENS
    has_fresh_episodes: ClassVar[bool] = False  # whether every minibatch can be of fresh texts
    metrics: ClassVar[Mapping[str, str]] = {
        "perplexity": "exp of the validation loss: one-step quality."
    }

    def __post_init__(self) -> None:
        own.check_fresh(self, self.has_fresh_episodes)

    @property
    def source(self) -> Source:
        """Source of the true texts; it scores the generated ones."""
        raise NotImplementedError

    @property
    def horizon(self) -> int:
        return self.source.longest

    def has_data(self) -> bool:
        return own.has_data(self)

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        return own.loaded(self, self._load, progress)

    def _load(self, progress: Progress) -> Demonstrations:
        if not self.has_data():
            self.collect(progress)
        dataset = datasets.load(self.demonstrations_id)
        spec = dataset.env_spec
        if spec is None or spec.id != TOKENS:
            raise StabError(
                f"dataset {dataset.id!r} was recorded in {spec.id if spec else 'no environment'},"
                f" task {self.name!r} is {TOKENS}: choose a dataset of texts, see: stab data list"
            )
        self._check(dataset)
        size, words = dataset.action_space.n, len(self.source.words)
        if size != words or dataset.observation_space != dataset.action_space:
            raise StabError(
                f"dataset {dataset.id!r} has {size} tokens, its vocabulary {words} entries"
            )
        train, validation = (
            windows(self._texts(split), self.source.context)
            for split in datasets.split(dataset, self.train_episodes, self.validation_episodes)
        )
        sha = hashlib.sha256()
        for split in (train, validation):
            for array in (split.inputs.numpy(), split.targets.numpy(), split.lengths):
                sha.update(array.tobytes())
        return Demonstrations(
            FreshTexts(self.source, train) if self.infinite else train,
            validation,
            References(*self.source.references(), self.source.about),
            dataset.id,
            sha.hexdigest(),
            self.source.sha256,
            TOKENS,
        )

    def _check(self, dataset: Any) -> None:
        """Raise StabError if a dataset is not of this task's source."""
        raise NotImplementedError

    def _texts(self, split: Transitions) -> Iterable[np.ndarray]:
        """Return the texts in some episodes, tokens (n,) each."""
        raise NotImplementedError

    def policy(self, recipe: Recipe) -> GPT:
        return build_language(recipe, len(self.source.words), self.source.context)

    def loss(self, policy: Any, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(*batch)
        return loss

    def parts(self, policy: Any, batch: Any) -> int:
        """Return how many tokens a batch's loss is the mean of; micro-batches are weighted so."""
        return policy.parts(*batch) if type(self).loss is Language.loss else 1

    def rollout(
        self,
        policy: Any,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray, Infos]:
        """Generate from the prompts that the starts draw; see ``Task.rollout``.

        Horizons count generated tokens. An info holds the text and its metrics.
        """
        source, horizon = self.source, min(horizons[-1], self.horizon)
        prompts = [source.text(np.random.default_rng(seed))[0] for seed in starts]
        count = len(next(iter(stacked.values())))
        cumulative = np.zeros((count, len(starts), len(horizons)))
        lengths = np.zeros((count, len(starts)), np.int64)
        infos: list[list[dict[str, Any]]] = []
        at = np.minimum(horizons, horizon) - 1
        most = side_by_side(policy)
        for first in range(0, count, most):
            block = {name: value[first : first + most] for name, value in stacked.items()}
            size = min(most, count - first)
            scorers = [source.scorer(prompts) for _ in range(size)]
            written = generate(
                policy.stack(block, len(starts)),
                [[END, *prompt] for prompt in prompts],
                starts,
                policy.temperature,
                scorers,
                horizon,
                portion(progress, first / count, size / count),
            )
            for i, (scorer, texts) in enumerate(zip(scorers, written, strict=True), first):
                for row, rewards in enumerate(scorer.rewards()):
                    cumulative[i, row] = np.pad(rewards, (0, horizon - len(rewards))).cumsum()[at]
                    lengths[i, row] = len(rewards)
                infos.append([self._info(*pair) for pair in zip(prompts, texts, strict=True)])
        return cumulative, lengths, infos

    def _info(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
        return {
            "measures": self.source.measure(prompt, tokens),
            "text": {"prompt": self.source.spell(prompt), "tokens": self.source.spell(tokens)},
        }

    def speed(self, recipe: Recipe) -> tuple[float, float]:
        policy, device = self.policy(recipe), torch.device(recipe.device)
        rows, policies, steps = 8, 4, min(32, self.horizon)
        state = policy.state_dict()
        stacked = {name: torch.stack([value] * policies) for name, value in state.items()}
        trained = copy.deepcopy(policy).to(device)
        typical: Any = windows([np.ones(self.source.context)], self.source.context)
        if self.has_data():
            typical = self.dataset().train
        batch = typical.to(device).batch(np.arange(recipe.batch_size) % len(typical))

        def write() -> None:
            scorers = [self.source.scorer([[]] * rows) for _ in range(policies)]
            stack, prompts = policy.stack(stacked, rows), [[END]] * rows
            generate(stack, prompts, range(rows), policy.temperature, scorers, steps)
            for scorer in scorers:
                scorer.rewards()

        count = rows * policies * steps
        return speeds(trained, lambda policy: self.loss(policy, batch), write, count)
