"""Checks of every stabilizer."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stab.checks.base import (
    CheckFailed,
    require,
)
from stab.stabilizers import Stabilizer
from stab.stabilizers.cards import card

if TYPE_CHECKING:
    pass


def is_a_frozen_dataclass(stabilizer: Stabilizer) -> None:
    """The class has its own @dataclass(frozen=True), and every hyper-parameter a default."""
    for method in stabilizer.methods:
        name = type(method).__name__
        require(
            "__dataclass_fields__" in vars(type(method)),
            f"{name} is not a dataclass of its own, so the hyper-parameters it adds are not seen:"
            " add @dataclass(frozen=True)",
        )
        for f in dataclasses.fields(method):
            missing = f.default is dataclasses.MISSING
            require(
                not missing,
                f"{name}.{f.name} has no default: give it one, as in hyper(default, doc, ...)",
            )


def has_a_card(stabilizer: Stabilizer) -> None:
    """The docstring has a first line, a formula, and the paragraphs of ``stabilizers.cards``."""
    for method in stabilizer.methods:
        missing = card(type(method)).missing
        require(
            not missing,
            f"the docstring of {type(method).__name__}, which stab list -v and the docs show, lacks"
            f" {', '.join(missing)}",
        )


def copies_and_pickles(stabilizer: Stabilizer) -> None:
    """A deep copy and a pickled copy equal the original: cells run in other processes."""
    for method in stabilizer.methods:
        name = type(method).__name__
        require(
            copy.deepcopy(method) == method, f"a deep copy of {name} does not equal it: {method!r}"
        )
        try:
            restored = pickle.loads(pickle.dumps(method))
        except Exception as e:
            raise CheckFailed(
                f"{name} cannot be pickled ({e}): define the class at the top of a module, keep no"
                " functions in it"
            ) from e
        require(
            restored == method,
            f"{name} comes back from a pickle as {restored!r}, expected {method!r}",
        )


CHECKS: list[Callable[[Any], None]] = [is_a_frozen_dataclass, has_a_card, copies_and_pickles]
