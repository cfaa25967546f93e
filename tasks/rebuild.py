"""The environment that a dataset was recorded in, rebuilt from the dataset's metadata."""

from __future__ import annotations

import copy

import gymnasium as gym
import minari
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from stab.registry import StabError, reason
from stab.tasks import environments
from stab.tasks.environments import make

# Wrappers that change neither observations, actions, rewards nor ends; Stable-Baselines3's Monitor
# among them.
# fmt: off
WATCHERS = {
    "Monitor", "RecordEpisodeStatistics", "RecordVideo", "PassiveEnvChecker", "OrderEnforcing",
}
# fmt: on


def environment(dataset: minari.MinariDataset) -> EnvSpec:
    """Return how to make the environment a dataset was recorded in, as it is registered here.

    Only registered ids and Gymnasium's own wrappers are taken from the metadata, so that a
    stranger's dataset names no code to run. Wrappers that only watch (Monitor,
    RecordEpisodeStatistics) are left out: they change nothing, and are often not installed. Raises
    StabError if the environment cannot be rebuilt, or its spaces are not the dataset's.
    """
    environments.register()
    recorded = dataset.env_spec
    if recorded is None:
        raise StabError(
            f"dataset {dataset.id!r} records no environment: there is nothing to roll out in"
        )
    try:
        spec = copy.deepcopy(gym.spec(recorded.id))
    except gym.error.Error as e:
        raise StabError(
            f"dataset {dataset.id!r} was recorded in {recorded.id}, which is not registered here"
            f" ({reason(e)}): write a task plug-in (entry point stab.tasks) whose module registers"
            " it"
        ) from e
    spec.kwargs = spec.kwargs | {k: v for k, v in recorded.kwargs.items() if k != "render_mode"}
    spec.max_episode_steps = recorded.max_episode_steps
    spec.additional_wrappers = tuple(
        w for w in recorded.additional_wrappers or () if not _watches(w)
    )
    for wrapper in spec.additional_wrappers:
        if (
            not wrapper.entry_point.startswith(("gymnasium.wrappers:", "gymnasium.wrappers."))
            or wrapper.kwargs is None
        ):
            raise StabError(
                f"dataset {dataset.id!r} was recorded in {recorded.id} through the wrapper"
                f" {wrapper.entry_point}, which cannot be rebuilt: record it in a registered"
                " environment that needs no wrapper"
            )
    try:
        env = make(spec)
    except Exception as e:
        raise StabError(
            f"dataset {dataset.id!r}: its environment {recorded.id} cannot be made: {reason(e)}"
        ) from e
    for what in ("observation_space", "action_space"):
        theirs, ours = getattr(dataset, what), getattr(env, what)
        if (
            type(theirs) is not type(ours)
            or theirs.shape != ours.shape
            or getattr(theirs, "n", 0) != getattr(ours, "n", 0)
        ):
            raise StabError(
                f"dataset {dataset.id!r} has the {what.replace('_', ' ')} {theirs}, {recorded.id}"
                f" has {ours}: the dataset was not recorded in this environment"
            )
    return spec


def _watches(wrapper: WrapperSpec) -> bool:
    return bool({wrapper.name, wrapper.entry_point.rpartition(":")[2]} & WATCHERS)


def rewards_differ(spec: EnvSpec) -> str:
    """Say how an environment differs from the registered one, observations aside.

    Arguments that choose the observations, and wrappers that watch, leave returns as they are.
    Empty if nothing differs.
    """
    registered = gym.spec(spec.id)
    kwargs = {k: v for k, v in spec.kwargs.items() if registered.kwargs.get(k, None) != v}
    differences = [
        f"{k}={v}"
        for k, v in kwargs.items()
        if not k.endswith("_observation") and k != "render_mode"
    ]
    if spec.max_episode_steps != registered.max_episode_steps:
        differences.append(f"max_episode_steps={spec.max_episode_steps}")
    differences += [f"wrapper {w.name}" for w in spec.additional_wrappers or () if not _watches(w)]
    return ", ".join(differences)
