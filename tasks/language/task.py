"""Next-token prediction: a text is an episode, the next token the action, generation the closed loop."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from stab.files import versions
from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import datasets, environments
from stab.tasks.base import Demonstrations, Remarks
from stab.tasks.catalog import LANGUAGE
from stab.tasks.control.scripted import Collected
from stab.tasks.environments import TOKENS
from stab.tasks.language.source import END, Scorer, Source, source
from stab.tasks.policies import GPT, GPTStack, build_language
from stab.tasks.references import Progress, References, no_progress, portion
from stab.tasks.speed import one_thread, seconds
from stab.tasks.transitions import Transitions

STORIES = 100  # in an episode of the dataset: Minari keeps a group of files an episode, and a text is short
SIDE_BY_SIDE, SMALL = 8, 500_000  # policies that generate together, of at most so many parameters
DRAWS, FRESH = (
    1,
    2,
)  # streams of random draws: those that choose tokens, and fresh texts; last in a key, as zeros there vanish

environments.register()


@dataclass(frozen=True)
class Windows:
    """Texts to draw minibatches from: a sample is a stretch of one, as long as a policy can see.

    Attributes:
        inputs: (tokens,) int64, what a policy sees.
        targets: (tokens,) int64, what comes next.
        firsts, lengths: (samples,) where each begins, and how long it is.
    """

    inputs: Tensor
    targets: Tensor
    firsts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.firsts)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (batch, longest); shorter samples end with inputs 0 and targets -100."""
        lengths = self.lengths[indices, None]
        steps = np.arange(lengths.max())
        at = torch.from_numpy(self.firsts[indices, None] + np.minimum(steps, lengths - 1))
        beyond = torch.from_numpy(steps >= lengths).to(self.inputs.device)
        return self.inputs[at].masked_fill(beyond, 0), self.targets[at].masked_fill(beyond, -100)

    def to(self, device: torch.device) -> Windows:
        """Return the same on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def windows(texts: Iterable[np.ndarray], context: int) -> Windows:
    """Cut texts, each (tokens,) after the END that it begins with, into samples of at most ``context`` tokens."""
    inputs, targets, lengths = [], [], []
    for text in texts:
        inputs.append(np.concatenate([[END], text[:-1]]))
        targets.append(text)
        whole, rest = divmod(len(text), context)
        lengths += [context] * whole + [rest] * (rest > 0)
    ends = np.cumsum(lengths)
    return Windows(
        torch.from_numpy(np.concatenate(inputs).astype(np.int64)),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        ends - lengths,
        np.array(lengths),
    )


class FreshStories:
    """Fresh texts for every epoch: none is ever drawn twice.

    Args:
        finite: the training texts of the ordinary regime; an epoch has as many.
    """

    def __init__(self, source: Source, finite: Windows) -> None:
        self.source, self.finite = source, finite
        self._kept: tuple[tuple[int, int], Windows] | None = None

    def __len__(self) -> int:
        return len(self.finite)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return texts of the ordinary regime (for what reads a few without training on them)."""
        return self.finite.batch(indices)

    def to(self, device: torch.device) -> FreshStories:
        """Return the same, whose texts come on a device."""
        return FreshStories(self.source, self.finite.to(device))

    def pool(self, seed: int, epoch: int) -> Windows:
        """Return the texts of one epoch."""
        if self._kept is None or self._kept[0] != (seed, epoch):
            rng = np.random.default_rng((seed, epoch, FRESH))
            drawn = (self.source.text(rng) for _ in range(len(self)))
            made = windows(
                (np.array([*opening, *rest]) for opening, rest in drawn), self.source.context
            )
            self._kept = (seed, epoch), made.to(self.finite.inputs.device)
        return self._kept[1]


def side_by_side(policy: torch.nn.Module) -> int:
    """Return how many policies generate together: small ones, which share the cost of a step's Python.

    Batched products of larger ones are slower than one after the other (benchmarks/language.py). No number depends on it.
    """
    return SIDE_BY_SIDE if sum(p.numel() for p in policy.parameters()) <= SMALL else 1


@torch.inference_mode()
def generate(
    stack: GPTStack,
    prompts: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float,
    scorers: Sequence[Scorer],
    horizon: int,
    progress: Progress = no_progress,
) -> list[list[list[int]]]:
    """Let policies go on from prompts, until a text ends or has ``horizon`` new tokens; return these [policy][prompt].

    A token is the argmax of logits / temperature + g, where g are draws of a standard Gumbel distribution: a sample of the
    softmax (Gumbel-max). The draws are functions of the start and the position alone, the same for every policy, so that
    what differs between two texts comes from the policies. At temperature 0 it is the argmax of the logits.

    Args:
        stack: the policies.
        prompts: tokens, each beginning with END.
        starts: what seeds the draws of each prompt.
        scorers: of each policy; they read what is written, and say where a text ends.
    """
    written: list[list[list[int]]] = [[[] for _ in prompts] for _ in scorers]
    going = np.ones((len(scorers), len(prompts)), dtype=bool)
    latest = np.array([[prompt[0] for prompt in prompts]] * len(scorers))
    draws = [np.random.default_rng((seed, DRAWS)) for seed in starts]
    steps = max(map(len, prompts)) + horizon - 1
    for step in range(1, steps + 1):
        live = np.flatnonzero(going.any(1)).tolist()
        if not live:
            break
        logits = stack.step(torch.from_numpy(latest), live)
        writing = np.array([step >= len(prompt) for prompt in prompts])
        if temperature > 0:
            logits = logits / temperature
            for row in np.flatnonzero(writing & going.any(0)).tolist():
                logits[:, row] += torch.from_numpy(
                    draws[row].gumbel(size=logits.shape[-1]).astype(np.float32)
                )
        chosen = logits.argmax(-1).numpy()
        for row, prompt in enumerate(prompts):
            if not writing[row]:
                latest[:, row] = prompt[step]
                continue
            for k, i in enumerate(live):
                if going[i, row]:
                    token = latest[i, row] = int(chosen[k, row])
                    written[i][row].append(token)
                    ended = scorers[i].read(row, token)
                    going[i, row] = not ended and len(written[i][row]) < horizon
        if step % 10 == 0:
            progress(step / steps)
    progress(1.0)
    return written


@dataclass(frozen=True)
class Language(Collected):
    """Texts of a source, cloned token by token. Subclasses give ``source`` and ``_episodes``; arguments as for ``Task``.

    The loss is the cross-entropy of the next token in nats, so that exp(validation loss) is the perplexity. A start is a
    prompt; the reward of a generated token is its log-likelihood under the source, with a floor.
    """

    settings = LANGUAGE
    environment: ClassVar[str] = TOKENS

    @property
    def source(self) -> Source:
        """What true texts are drawn from, and generated ones read by."""
        raise NotImplementedError

    @property
    def horizon(self) -> int:
        return self.source.longest

    def _load(self, progress: Progress) -> Demonstrations:
        if not self.ready():
            self.collect(progress)
        found = datasets.load(self.demonstrations_id)
        spec = found.env_spec
        if spec is None or spec.id != TOKENS:
            raise StabError(
                f"dataset {found.id!r} was recorded in {spec.id if spec else 'no environment'}, task {self.name!r} is"
                f" {TOKENS}: choose a dataset of texts, see: stab data list"
            )
        self._check(found)
        size = found.action_space.n
        if size != len(self.source.words) or found.observation_space != found.action_space:
            raise StabError(
                f"dataset {found.id!r} has {size} tokens, its vocabulary {len(self.source.words)} entries"
            )
        train, validation = (
            windows(self._texts(part), self.source.context)
            for part in datasets.split(found, self.train_episodes, self.validation_episodes)
        )
        sha = hashlib.sha256()
        for split in (train, validation):
            for array in (split.inputs.numpy(), split.targets.numpy(), split.lengths):
                sha.update(array.tobytes())
        return Demonstrations(
            FreshStories(self.source, train) if self.infinite else train,
            validation,
            References(*self.source.references(), self.source.about),
            found.id,
            sha.hexdigest(),
            self.source.sha256,
            TOKENS,
        )

    def _check(self, found: Any) -> None:
        """Raise StabError when a dataset is not of this task's source."""
        raise NotImplementedError

    def _texts(self, found: Transitions) -> Iterable[np.ndarray]:
        """Return the texts in some episodes, tokens (n,) each."""
        raise NotImplementedError

    def policy(self, recipe: Recipe) -> GPT:
        return build_language(recipe, len(self.source.words), self.source.context)

    def loss(self, policy: Any, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(*batch)
        return loss

    def rollout(
        self,
        policy: Any,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray, Remarks]:
        """Generate from the prompts that the starts draw; see ``Task.rollout``, horizons count generated tokens.

        A remark holds the text, and what the source measures of it.
        """
        source, horizon = self.source, min(horizons[-1], self.horizon)
        prompts = [source.text(np.random.default_rng(seed))[0] for seed in starts]
        count = len(next(iter(stacked.values())))
        cumulative, lengths = (
            np.zeros((count, len(starts), len(horizons))),
            np.zeros((count, len(starts)), np.int64),
        )
        remarks: list[list[dict[str, Any]]] = []
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
                remarks.append([self._remark(*pair) for pair in zip(prompts, texts, strict=True)])
        return cumulative, lengths, remarks

    def _remark(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
        return {
            "measures": self.source.measures(prompt, tokens),
            "text": {"prompt": self.source.spell(prompt), "tokens": self.source.spell(tokens)},
        }

    def speed(self, recipe: Recipe) -> tuple[float, float]:
        policy, device = self.policy(recipe), torch.device(recipe.device)
        rows, policies, steps = 8, 4, min(32, self.horizon)
        stacked = {
            name: torch.stack([value] * policies) for name, value in policy.state_dict().items()
        }
        trained = copy.deepcopy(policy).to(device)
        typical: Any = windows([np.ones(self.source.context)], self.source.context)
        if self.ready():
            typical = self.dataset().train
        batch = typical.to(device).batch(np.arange(recipe.batch_size) % len(typical))
        optimizer = torch.optim.AdamW(trained.parameters(), fused=True)

        def update() -> None:
            optimizer.zero_grad()
            loss = self.loss(trained, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device

        def write() -> None:
            scorers = [self.source.scorer([[]] * rows) for _ in range(policies)]
            generate(
                policy.stack(stacked, rows),
                [[END]] * rows,
                range(rows),
                policy.temperature,
                scorers,
                steps,
            )
            for scorer in scorers:
                scorer.rewards()

        with one_thread():  # as in the workers
            return seconds(update, 0.3), seconds(write, 0.2) / (rows * policies * steps)


@dataclass(frozen=True)
class Stories(Language):
    """Children's stories of a known grammar; see ``stab.tasks.language.grammar``. Arguments as for ``Task``."""

    has_fresh_episodes: ClassVar[bool] = True

    @functools.cached_property
    def source(self) -> Source:
        return source("stories")

    def collect(self, progress: Progress = no_progress, episodes: int | None = None) -> None:
        """Write fresh stories, ``STORIES`` an episode, those of episode n drawn with the seed n.

        A larger dataset begins with the smaller one. Raises StabError for a ``dataset_id`` that is there already.
        """
        count = self._count(episodes)
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
