"""Checks of interventions."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from stab.checks.base import (
    CheckFailed,
    random_states,
    require,
    same,
    unchanged,
)
from stab.checks.toy import BASES, TOY, run_toy
from stab.recipe import Recipe
from stab.registry import Incompatible
from stab.stabilizers import Intervention, Stabilizer, parse
from stab.stabilizers.none import NoStabilizer
from stab.train import Diverged

OTHERS = ("lr_decay", "weight_decay", "dropout", "accumulation")


def neutral_is_the_identity(stabilizer: Stabilizer) -> None:
    """With the arguments that ``neutral`` names, and only them, ``apply`` gives an equal recipe."""
    for method in stabilizer.interventions:
        cls = type(method)
        for base in copy.deepcopy(BASES):  # an impure apply must not spoil the next check
            edited = cls(**cls.neutral).apply(base)
            require(
                edited == base,
                f"{cls.__name__} declares {cls.neutral} neutral, but apply changes"
                f" {_changed(base, edited)}:"
                " declare other arguments, or return the recipe as it is",
            )


def apply_is_pure(stabilizer: Stabilizer) -> None:
    """``apply`` gives the same recipe each time, which survives JSON, and changes nothing else."""
    for base in copy.deepcopy(BASES):  # an impure apply must not spoil the next check
        before, itself, generators = (
            copy.deepcopy(base),
            copy.deepcopy(stabilizer),
            random_states(),
        )
        try:
            first, second = stabilizer.apply(base), stabilizer.apply(base)
        except Incompatible:
            continue
        require(
            isinstance(first, Recipe), f"apply returns {type(first).__name__}, expected a Recipe"
        )
        require(
            base == before,
            f"apply changed the recipe it was given ({_changed(before, base)}): use replace()",
        )
        require(
            first == second,
            f"apply gives another recipe the second time ({_changed(first, second)})",
        )
        require(
            stabilizer == itself,
            f"apply changed the intervention itself: {stabilizer!r}, was {itself!r}",
        )
        unchanged(generators, "apply")
        try:
            again = Recipe.from_dict(json.loads(json.dumps(first.to_dict())))
        except TypeError as e:
            raise CheckFailed(
                f"the recipe holds what JSON cannot ({e}): code by name (module:Object), data by"
                " value"
            ) from e
        require(
            again.key == first.key,
            f"the recipe comes back from JSON changed ({_changed(first, again)}): use plain data",
        )
        require(
            first.updates == base.updates,
            f"apply changes updates from {base.updates} to {first.updates}: every recipe takes the"
            " same number of steps",
        )


def conflicts_in_any_order(stabilizer: Stabilizer) -> None:
    """What cannot be combined with a built-in intervention is refused before and after it."""
    for name in OTHERS:
        own, others = stabilizer.interventions, parse(name).interventions
        orders = {
            f"{stabilizer.string}+{name}": (*own, *others),
            f"{name}+{stabilizer.string}": (*others, *own),
        }
        refused = [order for order, parts in orders.items() if _refused(parts)]
        require(
            len(refused) != 1,
            f"{' '.join(refused)} is refused, the other order is not: refuse the finished recipe in"
            " check()",
        )


def _refused(interventions: tuple[Intervention, ...]) -> bool:
    try:
        Stabilizer("", interventions).apply(copy.deepcopy(TOY))
    except Incompatible:
        return True
    return False


def training_stays_finite(stabilizer: Stabilizer) -> None:
    """A short training run of the edited recipe ends with finite parameters."""
    try:
        weights = run_toy(stabilizer.apply(copy.deepcopy(TOY)))
    except (Diverged, Incompatible) as e:
        raise CheckFailed(
            f"a short run of the edited recipe on linear regression fails: {e}"
        ) from e
    for name, value in weights.items():
        require(
            bool(value.isfinite().all()),
            f"after {TOY.updates} updates of linear regression {name} is not finite",
        )


def has_an_effect(stabilizer: Stabilizer) -> None:
    """``apply`` changes the recipe, and a short run of it ends elsewhere (except a policy's)."""
    edited = stabilizer.apply(copy.deepcopy(TOY))
    require(
        edited != TOY,
        f"{stabilizer.string} had no effect: apply gives an equal recipe, so it would be compared"
        " with itself",
    )
    if edited.policy == TOY.policy:
        require(
            not same(run_toy(edited), run_toy(TOY)),
            f"{stabilizer.string} had no effect: it changes {_changed(TOY, edited)}, but"
            f" {TOY.updates} updates end at the"
            " same parameters bitwise",
        )


def intervention_checks(stabilizer: Stabilizer) -> list[Callable[[Any], None]]:
    """Return the checks that apply: one without ``neutral``, or set to it, lacks some."""
    declared = [m for m in stabilizer.interventions if m.neutral or isinstance(m, NoStabilizer)]
    at_rest = all(
        isinstance(m, NoStabilizer)
        or (m.neutral and all(getattr(m, k) == v for k, v in m.neutral.items()))
        for m in stabilizer.interventions
    )
    checks: list[Callable[[Any], None]] = [
        apply_is_pure,
        conflicts_in_any_order,
        training_stays_finite,
    ]
    if len(declared) == len(stabilizer.interventions):
        checks = [neutral_is_the_identity, *checks]
    return checks if at_rest else [*checks, has_an_effect]


def _changed(a: Recipe, b: Recipe) -> str:
    """Return what differs between two recipes, in words."""
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return (
        ", ".join(f"{name} from {old!r} to {new!r}" for name, old, new in pairs if old != new)
        or "nothing"
    )
