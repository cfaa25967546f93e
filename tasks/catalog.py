"""The built-in tasks, one record each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stab.tasks.base import Task, tasks


@dataclass(frozen=True)
class Record:
    """A locomotion task: one record here and an expert with its card make one.

    Args:
        name: of the task; the expert is ``tasks/experts/<name>.safetensors``, its card ``<name>.json``.
        environment: Gymnasium id.
        goal: mean return over 100 greedy episodes that an expert should reach.
        algorithm: what ``stab expert train`` trains it with, a class of sbx.
        steps: for how many environment steps.
        hidden: parts of the observation the expert is trained without (functions of the rest that slow learning down):
            names X of the environment's arguments ``include_X_in_observation``.
    """

    name: str
    environment: str
    goal: float
    algorithm: str = "SAC"
    algorithm_args: dict[str, Any] = field(default_factory=dict)
    steps: int = 500_000
    hidden: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for lists."""
        return f"{self.environment}, demonstrations stab/{self.name}/expert-v0 (collected on first use)"

    def __call__(self, **settings: Any) -> Task:
        """Return the task with other than default settings (see ``Task``)."""
        from stab.tasks.control.locomotion import Locomotion

        return Locomotion(**{"name": self.name, "record": self, **settings})


HUMANOID = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
CATALOG = [
    Record("hopper", "Hopper-v5", 3000, "TQC", {"top_quantiles_to_drop_per_net": 5}, 250_000),
    Record("walker2d", "Walker2d-v5", 3500),
    Record("halfcheetah", "HalfCheetah-v5", 7500, steps=250_000),
    Record("ant", "Ant-v5", 3500, steps=2_000_000, hidden=("cfrc_ext",)),
    Record("humanoid", "Humanoid-v5", 4000, steps=2_000_000, hidden=HUMANOID),
]


class _Cliff:
    summary = "stab/Cliff-v0, linear and tiny: demonstrations stab/cliff/expert-v0 (collected on first use)"

    def __call__(self, **settings: Any) -> Task:
        from stab.tasks.control.cliff import Cliff

        return Cliff(**{"name": "cliff", **settings})


# What the tasks of texts want other than stab's defaults: a sample is a text.
LANGUAGE: dict[str, dict[str, Any]] = {
    "train": {"policy": "gpt", "lr": 3e-3, "batch_size": 16, "updates": 2400},
    "eval": {"checkpoint_every": 80, "starts": 16},
    "data": {"train_episodes": 100},
}


class _Stories:
    summary = "stab/Tokens-v0, children's stories of a known grammar: stab/stories/expert-v0 (written on first use)"
    settings = LANGUAGE

    def __call__(self, **settings: Any) -> Task:
        from stab.tasks.language.task import Stories

        return Stories(**{"name": "stories", **settings})


@dataclass(frozen=True)
class Prose:
    """A task of real text; ``hub`` names one of ``corpus.HUBS``, or nothing for a folder."""

    name: str
    summary: str
    hub: str | None = None
    settings = LANGUAGE

    def __call__(self, **settings: Any) -> Task:
        from stab.tasks.language.corpus import HUBS
        from stab.tasks.language.text import Text

        return Text(**{"name": self.name, "hub": HUBS[self.hub] if self.hub else None, **settings})


class _Recorded:
    summary = "your own dataset: stab compare --dataset my/pendulum-v0 (Box observations; Box or Discrete actions)"

    def __call__(self, **settings: Any) -> Task:
        from stab.tasks.control.recorded import Recorded

        return Recorded(**{"name": "recorded", **settings})


for record in CATALOG:
    tasks.register(record.name)(record)
tasks.register("cliff")(_Cliff())
tasks.register("stories")(_Stories())
tasks.register("text")(
    Prose(
        "text", "stab/Tokens-v0, a folder of text, read by a judge: stab data prepare text --help"
    )
)
for name in ("tinystories", "wikipedia"):
    tasks.register(name)(
        Prose(name, f"stab/Tokens-v0, text of Hugging Face: stab data prepare {name} --help", name)
    )
tasks.register("recorded")(_Recorded())
