"""Settings of the recipe, so that a sweep is a longer list of stabilizers."""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


def _setting(name: str, **given: str) -> Any:
    metadata = {key: Recipe.__dataclass_fields__[name].metadata[key] for key in ("doc", "expected")}
    return field(default=None, metadata=metadata | given)


@stabilizers.register("recipe")
@dataclass(frozen=True)
class RecipeSettings(Intervention):
    """Settings of the recipe itself, for sweeps: ``recipe:lr=0.0003+lr_decay+ema``.

    ::

        recipe.<setting> = value,   for each that is given

    A list in a configuration file (``train: {lr: [1e-3, 3e-4]}``) becomes entries of this spelling:
    its first value is the base recipe's, every other one a ``recipe:`` in front of each stabilizer.
    A policy's commas are written as semicolons: ``policy=mlp:width=128;depth=3``.

    Suggested: nothing; not in ``--all``.
    Cost: that of the settings.
    Conflicts: edits are made from left to right: ``weight_decay`` adds to the setting,
    ``accumulation`` multiplies it, the other built-ins replace it.
    Source: the 278 training interventions of arXiv 2310.11428 are such settings.
    """

    policy: str | None = _setting("policy", expected="a policy, with ; for its commas")
    optimizer: str | None = _setting("optimizer")
    lr: float | None = _setting("lr")
    schedule: str | None = _setting("schedule")
    schedule_power: float | None = _setting("schedule_power")
    schedule_final: float | None = _setting("schedule_final")
    schedule_warmup: float | None = _setting("schedule_warmup")
    weight_decay: float | None = _setting("weight_decay")
    dropout: float | None = _setting("dropout")
    batch_size: int | None = _setting("batch_size")
    accumulation: int | None = _setting("accumulation")

    def __post_init__(self) -> None:
        self.apply(Recipe())  # which knows the ranges

    def apply(self, recipe: Recipe) -> Recipe:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if self.policy is not None:
            given["policy"] = self.policy.replace(";", ",")
        return replace(recipe, **given)


SETTINGS = tuple(f.name for f in dataclasses.fields(RecipeSettings))
RecipeSettings.neutral = dict.fromkeys(SETTINGS)
