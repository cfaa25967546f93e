"""The locomotion tasks: what an expert is trained in, how, and how good it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """A locomotion task: one record here and an expert with its card make one.

    Args:
        name: of the task; the expert is ``tasks/control/experts/<name>.safetensors``, its card
            ``<name>.json``.
        environment: Gymnasium id.
        target_return: mean return over 100 greedy episodes that an expert should reach.
        algorithm: what ``stab expert train`` trains it with, a class of sbx.
        steps: for how many environment steps.
        masked: parts of the observation the expert is trained without (functions of the rest that
            slow learning down): names X of the environment's arguments
            ``include_X_in_observation``.
    """

    name: str
    environment: str
    target_return: float
    algorithm: str = "SAC"
    algorithm_args: dict[str, Any] = field(default_factory=dict)
    steps: int = 500_000
    masked: tuple[str, ...] = ()


HUMANOID = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
_ALL = [
    Record("hopper", "Hopper-v5", 3000, "TQC", {"top_quantiles_to_drop_per_net": 5}, 250_000),
    Record("walker2d", "Walker2d-v5", 3500),
    Record("halfcheetah", "HalfCheetah-v5", 7500, steps=250_000),
    Record("ant", "Ant-v5", 3500, steps=2_000_000, masked=("cfrc_ext",)),
    Record("humanoid", "Humanoid-v5", 4000, steps=2_000_000, masked=HUMANOID),
]
RECORDS = {record.name: record for record in _ALL}
