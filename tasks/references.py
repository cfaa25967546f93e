"""Reference returns: the 0 and the 1 of the normalised return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from stab.registry import StabError, reason

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

# Reset seeds of the episodes behind references.
EXPERT_SEED, RANDOM_SEED = 20_000, 30_000

# Called now and then with the fraction of the work that is done.
Progress = Callable[[float], None]


def no_progress(fraction: float) -> None:
    """Report nothing."""


def portion(progress: Progress, begin: float, share: float) -> Progress:
    """Return the progress of one part of the work: ``share`` of the whole, from ``begin`` on."""
    return lambda fraction: progress(begin + fraction * share)


@dataclass(frozen=True)
class Curve:
    """Reference returns of one policy: the mean cumulative reward after each step.

    Attributes:
        cumulative: (horizon,) mean over episodes of the reward collected up to and including each
            step; an ended episode keeps its sum.
        std: standard deviation over episodes of the whole return.
        episodes: how many episodes were averaged.
        first_seed: their reset seeds are first_seed, first_seed + 1, ...
        length: mean episode length in steps.
    """

    cumulative: list[float]
    std: float
    episodes: int
    first_seed: int
    length: float

    def at(self, horizon: int) -> float:
        """Mean return of the first ``horizon`` >= 1 steps; after the last one all have ended."""
        return self.cumulative[min(horizon, len(self.cumulative)) - 1]


@dataclass(frozen=True)
class References:
    """Returns of a random and of the expert policy: the 0 and the 1 of the normalised return.

    Attributes:
        random, expert: the two policies.
        source: where they come from, in words.
        known: steps up to which the expert's episodes were recorded, if one was cut there before
            its end.
    """

    random: Curve
    expert: Curve
    source: str = "measured with the shipped expert"
    known: int | None = None

    def normalise(self, returns: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
        """Return (returns - random) / (expert - random), with horizons as the last axis.

        Raises StabError if the expert's return is not above the random policy's, or not known.
        """
        import numpy as np

        if self.known is not None and horizons[-1] > self.known:
            raise StabError(
                f"what the expert returns in {horizons[-1]} steps is not known: the dataset has an"
                f" episode that was cut after {self.known}, before its end; give the dataset's"
                f" ref_min_score and ref_max_score, or set eval.horizon={self.known} or less"
            )
        low = np.array([self.random.at(h) for h in horizons])
        high = np.array([self.expert.at(h) for h in horizons])
        if not high[-1] > low[-1]:
            raise StabError(
                f"the expert's reference return ({high[-1]:.4g}) is not above the random policy's"
                f" ({low[-1]:.4g}) over {horizons[-1]} steps: returns cannot be normalised; choose"
                " a longer eval.horizon, or check the dataset's reference scores"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((returns - low) / (high - low))


def curve(cumulative: np.ndarray, lengths: np.ndarray, first_seed: int) -> Curve:
    """Summarise episodes: cumulative rewards (episodes, horizon) and lengths (episodes,)."""
    return Curve(
        cumulative=cumulative.mean(0).tolist(),
        std=float(cumulative[:, -1].std(ddof=1)) if len(cumulative) > 1 else 0.0,
        episodes=len(cumulative),
        first_seed=first_seed,
        length=float(lengths.mean()),
    )


def references_from(data: dict[str, Any]) -> References:
    """Read references as written by ``references_to``. Raises StabError when they are not."""
    try:
        return References(
            _curve(data["random"]),
            _curve(data["expert"]),
            str(data.get("source", References.source)),
            data.get("known"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise StabError(f"malformed reference returns: {reason(e)}") from e


def _curve(data: dict[str, Any]) -> Curve:
    """Return a curve of finite numbers. Raises ValueError or TypeError if they are not."""
    found = Curve(**data)
    numbers = [*found.cumulative, found.std, found.length, found.episodes]
    if not found.cumulative or not all(type(n) in (int, float) and isfinite(n) for n in numbers):
        raise ValueError("a curve is not of finite numbers")
    return found


def references_to(references: References) -> dict[str, Any]:
    """Plain data, for JSON."""
    data = asdict(references)
    return data if references.known is not None else {k: data[k] for k in data if k != "known"}


def random_returns(
    env: gym.Env[Any, Any], starts: Sequence[int], horizon: int, progress: Progress = no_progress
) -> tuple[np.ndarray, np.ndarray]:
    """Return cumulative rewards (starts, horizon) and lengths (starts,) of random actions.

    Actions are drawn from the action space. Start s seeds it and the environment with s.
    """
    import numpy as np

    cumulative = np.zeros((len(starts), horizon))
    lengths = np.zeros(len(starts), dtype=np.int64)
    for n, seed in enumerate(starts):
        env.reset(seed=int(seed))
        env.action_space.seed(int(seed))
        rewards = np.zeros(horizon)
        for step in range(horizon):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            rewards[step] = reward
            if terminated or truncated:
                break
        cumulative[n], lengths[n] = rewards.cumsum(), step + 1
        progress((n + 1) / len(starts))
    return cumulative, lengths
