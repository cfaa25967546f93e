"""Settings of the recipe, so that a sweep is a longer list of stabilizers."""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from stab.recipe import Recipe
from stab.stabilizers.base import Intervention, stabilizers


def _setting(doc: str, expected: str) -> Any:
    return field(default=None, metadata={"doc": doc, "expected": expected})


@stabilizers.register("recipe")
@dataclass(frozen=True)
class RecipeSettings(Intervention):
    """Settings of the recipe itself, for sweeps: ``recipe:lr=0.0003+lr_decay+ema``.

    ::

        recipe.<setting> = value,   for each that is given

    A list in a configuration file (``train: {lr: [1e-3, 3e-4]}``) becomes entries of this spelling: its first value is
    the base recipe's, every other one a ``recipe:`` in front of each stabilizer. A policy's commas are written as
    semicolons: ``policy=mlp:width=128;depth=3``.

    Suggested: nothing; no part of ``--all``.
    Cost: that of the settings.
    Conflicts: edits are made from left to right: ``weight_decay`` adds to the setting, ``accumulation`` multiplies it, the
    other built-ins replace it.
    Source: the 278 training interventions of arXiv 2310.11428 are such settings.
    """

    policy: str | None = _setting("the network", "a policy, with ; for its commas")
    optimizer: str | None = _setting(
        "a name in torch.optim, or module:Object", "a name, such as SGD"
    )
    lr: float | None = _setting("learning rate", "a number > 0")
    schedule: str | None = _setting(
        "shape of the learning rate", "constant, linear, cosine or polynomial"
    )
    schedule_power: float | None = _setting("power of the polynomial schedule", "a number > 0")
    schedule_final: float | None = _setting("fraction of lr left at the end", "a number in [0, 1]")
    weight_decay: float | None = _setting("passed to the optimizer", "a number >= 0")
    dropout: float | None = _setting("probability of dropping a hidden unit", "a number in [0, 1)")
    batch_size: int | None = _setting("transitions in a micro-batch", "an integer >= 1")
    accumulation: int | None = _setting("micro-batches a step", "an integer >= 1")
    neutral: ClassVar[dict[str, Any]] = dict.fromkeys(
        (
            *(
                "policy",
                "optimizer",
                "lr",
                "schedule",
                "schedule_power",
                "schedule_final",
                "weight_decay",
                "dropout",
            ),
            *("batch_size", "accumulation"),
        )
    )

    def __post_init__(self) -> None:
        self.apply(Recipe())  # which knows the ranges

    def apply(self, recipe: Recipe) -> Recipe:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if self.policy is not None:
            given["policy"] = self.policy.replace(";", ",")
        return replace(recipe, **given)


SETTINGS = tuple(RecipeSettings.neutral)
