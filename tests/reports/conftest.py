"""A run folder without a training run: cells of the shape that ``worker.work`` writes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stab import files, gva
from stab.config import Config, Evaluation
from stab.recipe import Recipe
from stab.run import rows
from stab.stabilizers import parse

CONFIG = Config(
    tasks=("toy",),
    stabilizers=("none", "ema", "lr_decay", "dropout", "accumulation"),
    seeds=3,
    train=Recipe(updates=80, batch_size=4),
    eval=Evaluation(checkpoint_every=10, starts=2, horizon=4),
)
SWING = {
    "none": 0.3,
    "ema": 0.02,
    "lr_decay": 0.1,
}  # of the returns: fixes the order of the leaderboard
LEVEL = {"none": 0.6, "ema": 0.8, "lr_decay": 0.7}  # of the returns
RANDOM, EXPERT = 5.0, 25.0


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run: none and ema on one trajectory, lr_decay on another, dropout failed, accumulation skipped."""
    return functools.partial(_make, tmp_path)


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain run, for tests that only read it."""
    return _make(tmp_path_factory.mktemp("shared"))


def _make(
    folder: Path,
    *,
    smoke: bool = False,
    level: dict[str, float] | None = None,
    static: str = "",
    learned: bool = True,
    seeds: dict[str, int] | None = None,
    looks: tuple[int, ...] = (),
) -> Path:
    """``seeds`` of each string, with ``looks``: a run until it was decided."""
    run, config = folder / "run", dataclasses.replace(CONFIG, smoke=smoke)
    if seeds:
        config = dataclasses.replace(
            config, seeds=max(seeds.values()), looks=looks, until_decided=True
        )
    files.write_text(run / "config.yaml", json.dumps(config.to_dict()))  # YAML contains JSON
    files.write_json(run / "run.json", {"command": "stab compare toy", "seconds": 1.0, "cores": 2})
    files.write_json(
        run / "skipped.json",
        [{"task": "toy", "stabilizer": "accumulation", "reason": "odd batch [see | docs]"}],
    )
    files.write_json(
        run / "failures" / "toy-dropout-seed1.json",
        {"task": "toy", "stabilizers": ["dropout"], "seed": 1, "reason": "ValueError: boom"},
    )
    levels = LEVEL | (level or {})
    if not learned:
        levels = {string: value - 0.55 for string, value in levels.items()}
    for riders in (("none", "ema"), ("lr_decay",)):
        for seed in range(seeds[riders[0]] if seeds else config.seeds):
            own = [string for string in riders if not seeds or seed < seeds[string]]
            _write_cell(run, config, own, seed, levels, static)
    return run


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """The plain run."""
    return make_run()


def _write_cell(
    run: Path,
    config: Config,
    riders: Sequence[str],
    seed: int,
    level: dict[str, Any],
    static: str,
) -> None:
    recipe = parse(riders[0]).apply(config.train)
    horizons, starts = gva.horizon_grid(config.eval.horizon), [50_000, 50_001]
    shares = [h / horizons[-1] for h in horizons]
    checkpoints: dict[str, list[dict[str, Any]]] = {}
    found = []
    for string in riders:
        generator = np.random.default_rng([seed, len(string)])
        checkpoints[string] = []
        for k, update in enumerate(config.checkpoints):
            content = string if string == static else f"{string} {seed} {update}"
            digest = hashlib.sha256(content.encode()).hexdigest()[:16]
            checkpoints[string].append(
                {"update": update, "val_loss": 0.1 / (k + 1), "weights": digest}
            )
            for start in starts:
                value = (
                    (level[string][seed] if isinstance(level[string], list) else level[string])
                    + SWING[string] * (1 if update % 20 == 0 else -1)
                    + 0.01 * generator.normal()
                )
                found.append(
                    {
                        "stabilizer": string,
                        "update": update,
                        "start": start,
                        "return": value,
                        "length": config.eval.horizon,
                        "cumulative": [
                            share * (RANDOM + value * (EXPERT - RANDOM)) for share in shares
                        ],
                    }
                )
    key = f"toy-{recipe.key}-seed{seed}"
    files.write_json(
        run / "timings" / f"{key}.json",
        {
            "train_seconds": 2.0 + seed,
            "average_seconds": {s: 0.1 for s in riders if parse(s).average},
            "average_bytes": {s: 100 for s in riders if parse(s).average},
            "rollout_seconds": 1.0,
            "rollout_steps": 10,
        },
    )
    files.write_json(
        run / "cells" / f"{key}.json",
        {
            "schema": rows.SCHEMA,
            "protocol": gva.PROTOCOL,
            "smoke": config.smoke,
            "task": "toy",
            "task_version": 1,
            "environment": "Toy-v0",
            "dataset": "toy/expert-v0",
            "dataset_sha256": "0" * 64,
            "expert_sha256": "1" * 64,
            "train_episodes": config.data.train_episodes,
            "validation_episodes": config.data.validation_episodes,
            "recipe": recipe.to_dict(),
            "seed": seed,
            "versions": {"stab": "0.1.0"},
            "horizons": horizons,
            "starts": starts,
            "references": {
                "random": [s * RANDOM for s in shares],
                "expert": [s * EXPERT for s in shares],
            },
            "references_source": "measured",
            "window": config.window,
            "stabilizers": list(riders),
            "raw": riders[0],
            "riders": {
                string: {
                    "average": string == "ema",
                    "half_life": [3, 4] if string == "ema" else None,
                    "notes": ["the half-life never comes into force"] if string == "ema" else [],
                }
                for string in riders
            },
            "trajectory": [
                {"update": u, "lr": 1e-3, "gradient_variance": 0.1, "gradient_norm2": 0.2}
                for u in config.checkpoints
            ],
            "checkpoints": checkpoints,
            "rows": found,
        },
    )
