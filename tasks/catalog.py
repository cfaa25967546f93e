"""The built-in tasks: a table. A task's module is imported when the task is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stab.tasks.base import Task, tasks


@dataclass(frozen=True)
class Entry:
    """A built-in task.

    Args:
        name: of the task.
        target: its class, as ``module:Class``.
        summary: one line for lists.
        settings: other defaults than stab's, as ``Task.settings``.
        environment: Gymnasium id; datasets that were recorded in it belong to this task.
        arguments: of the class, beside the name.
    """

    name: str
    target: str
    summary: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    environment: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **settings: Any) -> Task:
        """Return the task with other than default settings (see ``Task``)."""
        module, _, cls = self.target.partition(":")
        made: Task = getattr(importlib.import_module(module), cls)(
            **{"name": self.name, **self.arguments, **settings}
        )
        return made


# What the tasks of texts want other than stab's defaults: a sample is a text.
LANGUAGE: dict[str, dict[str, Any]] = {
    "train": {"policy": "gpt", "lr": 3e-3, "batch_size": 16, "updates": 2400},
    "eval": {"checkpoint_every": 80, "starts": 16},
    "data": {"train_episodes": 100},
}

LOCOMOTION = "stab.tasks.control.locomotion:Locomotion"
TEXT = "stab.tasks.language.text:Text"


def _locomotion(name: str, environment: str) -> Entry:
    summary = f"{environment}, demonstrations stab/{name}/expert-v0 (collected on first use)"
    return Entry(name, LOCOMOTION, summary, environment=environment)


def _hub(name: str) -> Entry:
    summary = f"stab/Tokens-v0, text of Hugging Face: stab data prepare {name} --help"
    return Entry(name, TEXT, summary, LANGUAGE, arguments={"hub": name})


ENTRIES = [
    _locomotion("hopper", "Hopper-v5"),
    _locomotion("walker2d", "Walker2d-v5"),
    _locomotion("halfcheetah", "HalfCheetah-v5"),
    _locomotion("ant", "Ant-v5"),
    _locomotion("humanoid", "Humanoid-v5"),
    Entry(
        "cliff",
        "stab.tasks.control.cliff:Cliff",
        "stab/Cliff-v0, linear and tiny: demonstrations stab/cliff/expert-v0 (collected on first"
        " use)",
    ),
    Entry(
        "stories",
        "stab.tasks.language.stories:Stories",
        "stab/Tokens-v0, children's stories of a known grammar: stab/stories/expert-v0 (written on"
        " first use)",
        LANGUAGE,
    ),
    Entry(
        "text",
        TEXT,
        "stab/Tokens-v0, a folder of text, scored by a model: stab data prepare text --help",
        LANGUAGE,
    ),
    _hub("tinystories"),
    _hub("wikipedia"),
    Entry(
        "recorded",
        "stab.tasks.control.recorded:Recorded",
        "your own dataset: stab compare --dataset my/pendulum-v0 (Box observations; Box or Discrete"
        " actions)",
    ),
]

for entry in ENTRIES:
    tasks.register(entry.name)(entry)


def is_text(name: str) -> bool:
    """Whether a task reads text that has no known source, so that a model scores it."""
    return any(entry.name == name and entry.target == TEXT for entry in ENTRIES)


def task_for(dataset_id: str) -> str:
    """Return a dataset's task: its collector, that of its environment, or ``recorded``."""
    from stab.tasks import datasets, rebuild
    from stab.tasks.environments import TOKENS

    for name in tasks.names():
        if dataset_id == f"stab/{name}/expert-v0":
            return name
    spec = datasets.load(dataset_id).env_spec
    if spec is not None and spec.id == TOKENS:
        return "stories" if spec.kwargs.get("source") == "stories" else "text"
    for entry in ENTRIES:
        if spec is not None and spec.id == entry.environment:
            return "recorded" if rebuild.rewards_differ(spec) else entry.name
    return "recorded"
