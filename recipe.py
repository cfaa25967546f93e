"""The recipe: the frozen record of everything that decides a training trajectory, seed and task aside."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stab.registry import StabError

SCHEDULES = ("constant", "linear", "cosine", "polynomial")


def load_object(path: str) -> Any:
    """Import ``module:Object``. Raises StabError when the module or the object does not exist."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as e:  # importing runs the module
        raise StabError(
            f"cannot load {path!r}: {e}; expected module:Object, for example torch.optim:SGD"
        ) from e


@dataclass(frozen=True)
class Call:
    """An object by ``module:Object`` and the keyword arguments it is called with: code by name, data by value."""

    object: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trajectory. Equal recipes (and task, and seed) share one training run.

    Args:
        policy: the network, spelled as in ``stab.tasks.policies`` (``mlp``, ``mlp:width=128,depth=3``).
        optimizer: a name in ``torch.optim`` or ``module:Object``; called with the parameters, ``lr``, ``weight_decay``
            where it has one, ``optimizer_args``, and ``fused=True`` where it has that and ``optimizer_args`` does not say.
        optimizer_args: further keyword arguments of the optimizer.
        lr: learning rate at update 0, > 0.
        schedule: learning rate over training: with s = t / updates the factor of ``lr`` is 1 (constant),
            f + (1 - f)(1 - s) (linear), f + (1 - f)(1 + cos(pi s)) / 2 (cosine), f + (1 - f)(1 - s)^power (polynomial).
        schedule_power: the power of the polynomial schedule, > 0.
        schedule_final: f above, the fraction of ``lr`` that is left at the end, in [0, 1].
        weight_decay: passed to the optimizer, >= 0 (decoupled for AdamW).
        dropout: probability of dropping a hidden unit during training, in [0, 1).
        batch_size: transitions in one micro-batch, >= 1.
        accumulation: micro-batches averaged into the gradient of one optimizer step, >= 1.
        gradient_transforms: each names a subclass of ``stab.stabilizers.GradientTransform``; ``object(**args)`` is called,
            in order, between the backward pass and the step, with the list of parameters, whose ``.grad`` it edits in place.
        updates: optimizer steps, >= 1.
        device: where training runs, cpu, cuda or cuda:N; rollouts run on the processor's cores. Devices round differently,
            so this decides the trajectory, too.

    Raises StabError when a value is out of its range.
    """

    policy: str = "mlp"
    optimizer: str = "AdamW"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    schedule: str = "constant"
    schedule_power: float = 1.0
    schedule_final: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    batch_size: int = 256
    accumulation: int = 1
    gradient_transforms: tuple[Call, ...] = ()
    updates: int = 6000
    device: str = "cpu"

    def __post_init__(self) -> None:
        transforms = [c if isinstance(c, Call) else Call(**c) for c in self.gradient_transforms]
        object.__setattr__(self, "gradient_transforms", tuple(transforms))
        _require("policy", self.policy, isinstance(self.policy, str), "a name, such as mlp")
        _require(
            "optimizer", self.optimizer, isinstance(self.optimizer, str), "a name, such as AdamW"
        )
        _require(
            "optimizer_args",
            self.optimizer_args,
            isinstance(self.optimizer_args, dict),
            "names and values",
        )
        if ":" not in self.optimizer:  # one spelling, so that equal recipes compare equal
            object.__setattr__(self, "optimizer", f"torch.optim:{self.optimizer}")
        _require("lr", self.lr, math.isfinite(self.lr) and self.lr > 0, "a number > 0")
        _require(
            "schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"
        )
        _require(
            "schedule_power",
            self.schedule_power,
            0 < self.schedule_power < math.inf,
            "a number > 0",
        )
        _require(
            "schedule_final",
            self.schedule_final,
            0 <= self.schedule_final <= 1,
            "a number in [0, 1]",
        )
        _require(
            "weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number >= 0"
        )
        _require("dropout", self.dropout, 0 <= self.dropout < 1, "a number in [0, 1)")
        known = isinstance(self.device, str) and re.fullmatch(
            r"cpu|cuda(:(0|[1-9][0-9]?))?", self.device
        )
        _require("device", self.device, bool(known), "cpu, cuda or cuda:N")
        for name in ("batch_size", "accumulation", "updates"):
            value = getattr(self, name)
            _require(
                name,
                value,
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                "an integer >= 1",
            )

    @property
    def samples(self) -> int:
        """Transitions drawn over the whole of training."""
        return self.updates * self.batch_size * self.accumulation

    def lr_factor(self, update: int) -> float:
        """The factor of ``lr`` in force at the given number of completed updates."""
        s = min(update / self.updates, 1.0)
        rest: float = {
            "constant": 1.0,
            "linear": 1 - s,
            "cosine": (1 + math.cos(math.pi * s)) / 2,
            "polynomial": (1 - s) ** self.schedule_power,
        }[self.schedule]
        return (
            rest
            if self.schedule == "constant"
            else self.schedule_final + (1 - self.schedule_final) * rest
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of to_dict. Raises StabError when a value is out of range."""
        return cls(**data)

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name this recipe in file names: SHA-256 of its canonical JSON."""
        text = json.dumps(_canonical(self.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """Return the same data with every number a float: 0 and 0.0 are equal, and so must be the keys made of them."""
    if isinstance(value, dict):
        return {key: _canonical(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _require(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise StabError(f"train.{name}={value!r} is out of range: expected {expected}")
