"""The recipe: the frozen record of all that decides a trajectory, seed and task aside."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from stab.arguments import Declared, choice, hyper, integer, number
from stab.registry import StabError

NEWER = {"schedule_warmup": 0.0}  # so that keys, and files named after them, stay the same
SCHEDULES = ("constant", "linear", "cosine", "polynomial")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_device(value: str) -> bool:
    return re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]?))?", value) is not None


def load_object(path: str) -> Any:
    """Import ``module:Object``. Raises StabError if the module or the object does not exist."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as e:  # importing runs the module
        raise StabError(
            f"cannot load {path!r}: {e}; expected module:Object, for example torch.optim:SGD"
        ) from e


@dataclass(frozen=True)
class Call:
    """An object by ``module:Object``, and the keyword arguments it is called with."""

    object: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(Declared):
    """Everything that decides a trajectory. Equal recipes, tasks and seeds share one training.

    ``policy`` is spelled as in ``stab.tasks.policies`` (``mlp:width=128,depth=3``). ``optimizer``
    is a name in ``torch.optim`` or ``module:Object``; it is called with the parameters, ``lr``,
    ``weight_decay`` if it has one, ``optimizer_args``, and ``fused=True`` if it has that and
    ``optimizer_args`` does not say.

    With s = t / updates and f = ``schedule_final`` the factor of ``lr`` is 1 (constant),
    f + (1 - f)(1 - s) (linear), f + (1 - f)(1 + cos(pi s)) / 2 (cosine) or
    f + (1 - f)(1 - s)^schedule_power (polynomial). With w = ``schedule_warmup`` times ``updates``,
    rounded, the first w updates take u / w of that (u = 1, 2, ...).

    Each of ``gradient_transforms`` names a subclass of ``stab.stabilizers.GradientTransform``;
    ``object(**args)`` is called, in order, between the backward pass and the step, with the list of
    parameters, whose ``.grad`` it edits in place.

    Training runs on ``device``, rollouts on the processor's cores. Devices round differently, so it
    decides the trajectory, too.

    Raises StabError if a value is out of its range.
    """

    prefix: ClassVar[str] = "train."
    policy: str = hyper("mlp", "the network", _is_text, "a name, such as mlp")
    optimizer: str = hyper(
        "AdamW", "a name in torch.optim, or module:Object", _is_text, "a name, such as AdamW"
    )
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float = hyper(1e-3, "learning rate", number("(0, inf)"))
    schedule: str = hyper("constant", "shape of the learning rate", choice(*SCHEDULES))
    schedule_power: float = hyper(1.0, "power of the polynomial schedule", number("(0, inf)"))
    schedule_final: float = hyper(0.0, "fraction of lr left at the end", number("[0, 1]"))
    schedule_warmup: float = hyper(
        0.0, "fraction of training over which lr rises from 0", number("[0, 1)")
    )
    weight_decay: float = hyper(0.0, "passed to the optimizer", number("[0, inf)"))
    dropout: float = hyper(0.0, "probability of dropping a hidden unit", number("[0, 1)"))
    batch_size: int = hyper(256, "transitions in a micro-batch", integer(1))
    accumulation: int = hyper(1, "micro-batches per step", integer(1))
    gradient_transforms: tuple[Call, ...] = ()
    updates: int = hyper(6000, "optimizer steps", integer(1))
    device: str = hyper("cpu", "where training runs", _is_device, "cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.optimizer_args, dict):
            raise StabError(
                f"train.optimizer_args={self.optimizer_args!r} is out of range: expected names and"
                " values"
            )
        transforms = [c if isinstance(c, Call) else Call(**c) for c in self.gradient_transforms]
        object.__setattr__(self, "gradient_transforms", tuple(transforms))
        if ":" not in self.optimizer:  # one spelling, so that equal recipes compare equal
            object.__setattr__(self, "optimizer", f"torch.optim:{self.optimizer}")

    @property
    def samples(self) -> int:
        """Transitions drawn over the whole of training."""
        return self.updates * self.batch_size * self.accumulation

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate changes."""
        return self.schedule != "constant" or self.schedule_warmup > 0

    def lr_factor(self, update: int) -> float:
        """The factor of ``lr`` in force at the given number of completed updates."""
        warmup = round(self.schedule_warmup * self.updates)
        rising = (update + 1) / warmup if update < warmup else 1.0
        return rising * self._falling(update)

    def _falling(self, update: int) -> float:
        s = min(update / self.updates, 1.0)
        rest: float = {
            "constant": 1.0,
            "linear": 1 - s,
            "cosine": (1 + math.cos(math.pi * s)) / 2,
            "polynomial": (1 - s) ** self.schedule_power,
        }[self.schedule]
        if self.schedule == "constant":
            return rest
        return self.schedule_final + (1 - self.schedule_final) * rest

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON. What earlier versions did not know is left out at its default."""
        data = asdict(self)
        return {k: v for k, v in data.items() if k not in NEWER or v != NEWER[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of to_dict. Raises StabError if a value is out of range."""
        return cls(**data)

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name the recipe in file names: SHA-256 of its JSON."""
        text = json.dumps(_canonical(self.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """Return the data with every number a float: 0 equals 0.0, and so must the keys of both."""
    if isinstance(value, dict):
        return {key: _canonical(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
