"""Environments: stab's own by id, and how one is made."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import register as register_environment
from gymnasium.envs.registration import registry

from stab.tasks.checked import Checked

CLIFF = "stab/Cliff-v0"
TOKENS = "stab/Tokens-v0"
CLIFF_HORIZON = 400
# Datasets name these classes as parts of this module. They are imported when they are asked for.
CLASSES = {
    "CliffEnv": "stab.tasks.control.cliff_env",
    "TokensEnv": "stab.tasks.language.environment",
}


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(importlib.import_module(CLASSES[name]), name)
    raise AttributeError(f"module 'stab.tasks.environments' has no attribute {name!r}")


def register() -> None:
    """Register stab's environments with Gymnasium, once."""
    if CLIFF not in registry:
        register_environment(
            CLIFF, entry_point="stab.tasks.environments:CliffEnv", max_episode_steps=CLIFF_HORIZON
        )
        register_environment(TOKENS, entry_point="stab.tasks.environments:TokensEnv")


def make(spec: gym.envs.registration.EnvSpec) -> gym.Env[Any, Any]:
    """Make one environment, ``Checked``, without the libraries' warnings.

    (MuJoCo also logs into the current folder.)
    """
    gym.logger.min_level = gym.logger.ERROR
    if "mujoco" in str(spec.entry_point):
        import mujoco

        mujoco.set_mju_user_warning(_ignore)
    return Checked(gym.make(spec, disable_env_checker=True))


def _ignore(message: str) -> None:
    """Ignore it: a simulation that blows up shows in its rewards."""
