"""Checks of tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import is_number
from stab.checks.base import (
    require,
    same,
)
from stab.recipe import Recipe
from stab.stabilizers.base import clone
from stab.tasks.base import Task

if TYPE_CHECKING:
    pass


STARTS, HORIZONS = (3, 5), (1, 7, 20)
RETURNED = ("returns", "lengths", "infos")  # of what a rollout gives


def _policies(task: Task, seeds: Sequence[int] = (0, 1, 2)) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a policy and the parameters of one a seed, stacked."""
    made = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            made.append(task.policy(_recipe(task)))
    states = [policy.state_dict() for policy in made]
    return made[0], {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _recipe(task: Task) -> Recipe:
    """Return the base recipe, as the task wants it."""
    return Recipe(**task.settings.get("train", {}))


def _first_batch(task: Task) -> Any:
    train_split = task.dataset().train
    return train_split.batch(np.arange(min(16, len(train_split))))


def shapes_and_dtypes(task: Task) -> None:
    """Splits are not empty, the loss is a finite scalar, ``rollout`` has its shapes and dtypes."""
    data = task.dataset()
    for name, split in (("training", data.train), ("validation", data.validation)):
        require(len(split) > 0, f"the {name} split is empty")
    policy, stacked = _policies(task)
    loss = task.loss(policy, _first_batch(task))
    require(
        loss.shape == () and loss.is_floating_point(),
        f"loss has shape {tuple(loss.shape)}, {loss.dtype}: expected a scalar",
    )
    returns, lengths, *more = task.rollout(policy, stacked, STARTS, HORIZONS)
    shape = (3, len(STARTS), len(HORIZONS))
    for name, array, expected, dtype in (
        ("returns", returns, shape, np.float64),
        ("lengths", lengths, shape[:2], np.int64),
    ):
        require(
            array.shape == expected and array.dtype == dtype,
            f"rollout's {name} have shape {array.shape} and {array.dtype}, expected {expected} and"
            f" {np.dtype(dtype)}",
        )
    require(bool(np.isfinite(returns).all()), "rollout's returns are not finite")
    for said in itertools.chain(*(more[0] if more else ())):
        measures = said.get("measures", {})
        require(
            set(said) <= {"measures", "text"}
            and all(is_number(value) for value in measures.values()),
            f"rollout's infos hold {said!r:.200}: expected measures, finite numbers by name, and"
            " text alone",
        )
    require(
        bool(((lengths >= 1) & (lengths <= HORIZONS[-1])).all()),
        f"rollout's lengths lie in {lengths.min()} to {lengths.max()}, expected 1 to the last"
        f" horizon {HORIZONS[-1]}",
    )


def dataset_is_the_same_on_each_call(task: Task) -> None:
    """``dataset`` gives the same demonstrations each time, from a fresh task too."""
    first = task.dataset()
    policy, _ = _policies(task)
    policy.eval()
    for who, again in (
        ("a second call", task.dataset()),
        ("a fresh task", replace(task).dataset()),
    ):
        for name in ("dataset_sha256", "dataset", "environment", "references"):
            require(
                getattr(again, name) == getattr(first, name),
                f"{name} of {who} of dataset() differs",
            )
        for name in ("train", "validation"):
            one, other = getattr(first, name), getattr(again, name)
            require(
                len(one) == len(other),
                f"{name} of {who} of dataset() has {len(other)} transitions, not {len(one)}",
            )
            everything = np.arange(min(len(one), 4096))
            same = torch.equal(
                task.loss(policy, one.batch(everything)), task.loss(policy, other.batch(everything))
            )
            require(
                same,
                f"{name} of {who} of dataset() holds other transitions: seed what draws or orders"
                " them",
            )


def same_seed_same_returns(task: Task) -> None:
    """The same starts give bitwise the same returns again, and the parameters are left alone."""
    policy, stacked = _policies(task)
    before = clone(stacked)
    first, again = (
        [np.asarray(part) for part in task.rollout(policy, stacked, STARTS, HORIZONS)]
        for _ in range(2)
    )
    for name, one, other in zip(RETURNED, first, again, strict=False):
        require(
            np.array_equal(one, other),
            f"two rollouts from the same starts differ in {name}: seed every reset",
        )
    require(same(stacked, before), "rollout changed the stacked parameters")


def policies_together_equal_each_alone(task: Task) -> None:
    """A policy's returns do not depend, bitwise, on the other policies in the call."""
    policy, stacked = _policies(task)
    together: Sequence[Any] = task.rollout(policy, stacked, STARTS, HORIZONS)
    for i in range(3):
        own = {name: value[i : i + 1] for name, value in stacked.items()}
        alone: Sequence[Any] = task.rollout(policy, own, STARTS, HORIZONS)
        for name, many, one in zip(RETURNED, together, alone, strict=False):
            require(
                np.array_equal(many[i], one[0]),
                f"{name} of policy {i} of 3 differ from the same policy's alone: policies share"
                " something (a generator,"
                " a batched product whose last bits depend on its size)",
            )


def loss_falls_on_one_batch(task: Task) -> None:
    """Thirty steps of Adam on one batch lower its loss, which stays finite."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy, batch = task.policy(_recipe(task)), _first_batch(task)
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = task.loss(policy, batch)
            losses.append(loss.item())
            require(
                bool(loss.isfinite()),
                f"the loss is {loss.item()} after {len(losses) - 1} steps on one batch",
            )
            require(
                loss.requires_grad,
                "the loss does not depend on the policy's parameters: it has no gradient",
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    require(
        losses[-1] < losses[0],
        f"thirty steps on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g}:"
        " expected it to fall"
        " (its sign? fresh noise in it?)",
    )


CHECKS: list[Callable[[Any], None]] = [
    shapes_and_dtypes,
    dataset_is_the_same_on_each_call,
    same_seed_same_returns,
    policies_together_equal_each_alone,
    loss_falls_on_one_batch,
]
