"""What an environment returns, brought to its type and shape, or refused by name."""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium as gym
import numpy as np

from stab.registry import StabError, reason


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose returns have the types and shapes of Gymnasium's interface.

    Observations of a Box come as arrays in its shape, their dtype kept; rewards as floats; end
    flags as bools, given 0 and 1 or arrays of one element, too: an integer that is used as a mask
    would index instead.

    Raises StabError for anything else, for observations and rewards that are not finite, and for
    what ``reset`` and ``step`` raise. It names the environment, the reset seed and the step.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.name = env.spec.id if env.spec else type(env.unwrapped).__name__
        self.seed: int | None = None
        self.taken = 0

    @property
    def spec(self) -> gym.envs.registration.EnvSpec | None:  # type: ignore[override]
        """How to make the environment; this wrapper comes by itself."""
        return self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.seed, self.taken = seed, 0
        try:
            returned = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as e:
            raise self._raised(e) from e
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise self._refusal(f"returned {_shown(returned)}, expected (observation, info)")
        return self._observation(returned[0], None), returned[1]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        try:
            returned = self.env.step(action)
        except (Exception, SystemExit) as e:
            raise self._raised(e) from e
        if not (isinstance(returned, tuple) and len(returned) == 5):
            raise self._refusal(
                f"returned {_shown(returned)}, expected (observation, reward, terminated,"
                " truncated, info)"
            )
        observation, reward, terminated, truncated, info = returned
        return (
            self._observation(observation, action),
            self._reward(reward, action),
            self._flag("terminated", terminated),
            self._flag("truncated", truncated),
            info,
        )

    def _observation(self, value: Any, action: Any) -> Any:
        space = self.env.observation_space
        if not isinstance(space, gym.spaces.Box):
            return value
        array = self._numbers("the observation", value)
        if array.size != np.prod(space.shape, dtype=int):
            raise self._refusal(
                f"returned an observation of shape {array.shape}, its space has {space.shape}"
            )
        self._check_finite("an observation", array, action)
        return array.reshape(space.shape)

    def _reward(self, value: Any, action: Any) -> float:
        array = self._numbers("the reward", value)
        if array.size != 1:
            raise self._refusal(f"returned a reward of shape {array.shape}, expected one number")
        self._check_finite("a reward", array, action)
        return float(array.item())

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        array = self._numbers(name, value)
        if array.size != 1 or array.item() not in (0, 1):
            raise self._refusal(f"returned {name}={_shown(value)}, expected True or False")
        return bool(array.item())

    def _numbers(self, what: str, value: Any) -> np.ndarray:
        try:
            array = np.asarray(value)
        except Exception:  # ragged lists, tensors on other devices
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise self._refusal(f"returned {_shown(value)} as {what}, expected numbers")
        return array

    def _check_finite(self, what: str, array: np.ndarray, action: Any) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            chosen = np.asarray(action)
            blame = ""
            if chosen.dtype.kind == "f" and not np.isfinite(chosen).all():
                blame = "; the action was not finite, either"
            raise self._refusal(f"returned {what} that is not finite{blame}")

    def _raised(self, error: BaseException) -> StabError:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return self._refusal(f"raised {reason(error)} ({at.name}, {at.filename}:{at.lineno})")

    def _refusal(self, what: str) -> StabError:
        which = f"step {self.taken} of the episode with" if self.taken else "the reset with"
        return StabError(f"environment {self.name}: {which} reset seed {self.seed} {what}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
