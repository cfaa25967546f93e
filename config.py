"""Settings of a comparison: typed defaults, a YAML file, dotted overrides (through OmegaConf)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stab import gva
from stab.recipe import Recipe
from stab.registry import StabError
from stab.stabilizers.recipe import SETTINGS

LEAST_SEEDS = 3  # that a test needs


@dataclass(frozen=True)
class Data:
    """Which demonstrations.

    Args:
        dataset: Minari id; None for the task's own.
        train_episodes, validation_episodes: whole episodes for each, >= 1.
        infinite: draw every minibatch from fresh expert episodes, so that no sample repeats
            (``train_episodes`` per pool).
    """

    dataset: str | None = None
    train_episodes: int = 20
    validation_episodes: int = 5
    infinite: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Which checkpoints are rolled out, from where, how long.

    Args:
        checkpoint_every: updates between checkpoints, >= 1; the window is those in the second half
            of training.
        starts: initial states, >= 2, the same for every checkpoint, stabilizer and seed.
        horizon: steps of an episode at most, >= 1; it ends sooner if the environment ends it.
    """

    checkpoint_every: int = 150
    starts: int = 4
    horizon: int = 1000


@dataclass(frozen=True)
class Snapshots:
    """What is saved of training for post-hoc averages (``stab report RUN --averages ...``).

    Args:
        every: updates whose iterates are averaged into one snapshot, a divisor of
            ``eval.checkpoint_every``; None saves nothing. On disk: (updates / every + checkpoints)
            x parameters x 4 bytes per training run.
    """

    every: int | None = None


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a comparison.

    Args:
        tasks: names of registered tasks.
        stabilizers: stabilizer strings, with ``|`` between alternatives
            (``ema:half_life=100|300``); ``none`` is always run.
        seeds: training seeds 0 .. seeds - 1, >= 1.
        looks: numbers of seeds, rising, each >= 3 and < ``seeds``, at which the entries are tested
            before the last ones are trained (``reports.inference.sequential``).
        until_decided: train seeds beyond the first look of undecided entries alone.
        smoke: whether this is a smoke run (``--quick``), whose numbers are not meaningful.
        train: the base recipe. In a file or override, a setting may be a list: a sweep, see
            ``run.plan.cross``.
        eval: checkpoints, starts, horizon.
        data: demonstrations.
        snapshots: what is saved of training.

    Raises StabError when a value is out of range, or the window holds fewer than two checkpoints.
    """

    tasks: tuple[str, ...] = ()
    stabilizers: tuple[str, ...] = ()
    seeds: int = 4
    looks: tuple[int, ...] = ()
    until_decided: bool = False
    smoke: bool = False
    train: Recipe = field(default_factory=Recipe)
    eval: Evaluation = field(default_factory=Evaluation)
    data: Data = field(default_factory=Data)
    snapshots: Snapshots = field(default_factory=Snapshots)

    def __post_init__(self) -> None:
        limits = {
            "seeds": self.seeds,
            "eval.checkpoint_every": self.eval.checkpoint_every,
            "eval.horizon": self.eval.horizon,
            "data.train_episodes": self.data.train_episodes,
            "data.validation_episodes": self.data.validation_episodes,
        }
        for name, value in limits.items():
            if value < 1:
                raise StabError(f"{name}={value} is out of range: expected an integer >= 1")
        rising = itertools.pairwise((LEAST_SEEDS - 1, *self.tests))
        if self.looks and any(a >= b for a, b in rising):
            raise StabError(
                f"looks={list(self.looks)} with seeds={self.seeds} is out of range: expected rising"
                f" numbers of seeds, from {LEAST_SEEDS} to below seeds"
            )
        if self.until_decided and not self.looks:
            raise StabError(
                "until_decided=True needs looks, numbers of seeds below seeds at which to test:"
                " give --until-decided, which chooses them"
            )
        if self.eval.starts < 2:
            raise StabError(
                f"eval.starts={self.eval.starts} is out of range: expected an integer >= 2; with"
                " one start, a change between two checkpoints cannot be told from the noise of its"
                " episode"
            )
        every = self.snapshots.every
        if every is not None and (every < 1 or self.eval.checkpoint_every % every):
            raise StabError(
                f"snapshots.every={every} is out of range: expected a divisor of"
                f" eval.checkpoint_every ({self.eval.checkpoint_every}), so that snapshots end at"
                " checkpoints"
            )
        if len(self.window) < 2:
            raise StabError(
                "GVA needs at least two checkpoints in the second half of training, these settings"
                f" give {len(self.window)}: lower eval.checkpoint_every"
                f" ({self.eval.checkpoint_every}) or raise train.updates ({self.train.updates})"
            )

    @property
    def tests(self) -> tuple[int, ...]:
        """Every number of seeds at which the entries are tested, the last included."""
        return (*self.looks, self.seeds)

    @property
    def shared_seeds(self) -> int:
        """The number of seeds that every entry has."""
        return self.tests[0] if self.until_decided else self.seeds

    @property
    def window(self) -> list[int]:
        """The scored checkpoints."""
        return gva.window(self.train.updates, self.eval.checkpoint_every)

    @property
    def checkpoints(self) -> list[int]:
        """Every checkpoint that is rolled out: a few early ones for the curve, then the window."""
        return gva.curve_only(self.train.updates, self.eval.checkpoint_every) + self.window

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for YAML and JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return plain


# --quick: the whole pipeline at a size that ends within a minute or so.
QUICK: dict[str, Any] = {
    "seeds": 2,
    "smoke": True,
    "train": {"updates": 400},
    "eval": {"checkpoint_every": 50, "starts": 2, "horizon": 200},
}
# --preset: settings by name. paper: those our sources name for arXiv 2310.11428: 20 starts, horizon
# 1,000, and an EMA whose gamma is max(1e-4, (1 + t)^-0.67) after a burn-in (a smallest gamma of
# 1e-4 is a half-life of ln 2 / 1e-4 = 6,931 updates). They ask for training long after the loss is
# flat without a number that we could check: 100,000 updates are our choice.
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "stabilizers": [
            "ema:alpha=0.67,half_life=6931", "polyak", "swa", "accumulation", "lr_decay",
            "weight_decay", "dropout",
        ],
        "train": {"updates": 100_000},
        "eval": {"checkpoint_every": 1000, "starts": 20, "horizon": 1000},
    },
}
# fmt: on


def load(
    *layers: dict[str, Any] | Path,
    overrides: Sequence[str] = (),
    swept: dict[str, list[Any]] | None = None,
) -> Config:
    """Merge defaults, layers (plain data or YAML files, later ones win) and dotted overrides.

    If ``swept`` is given, settings of the recipe may be lists: it is filled with them
    (name -> values), and the recipe takes the first value.

    Raises StabError for an unknown key (with a suggestion), a value of the wrong type or out of
    range, or a file that cannot be read.
    """
    return _merged(layers, overrides, swept, to_config=True)  # type: ignore[no-any-return]


def names(
    *layers: dict[str, Any] | Path, overrides: Sequence[str] = ()
) -> tuple[list[str], str | None]:
    """Return the tasks and the dataset that layers and overrides name, before ``load``."""
    merged = _merged(layers, overrides, {}, to_config=False)
    return list(merged.tasks), merged.data.dataset


def _merged(
    layers: Sequence[dict[str, Any] | Path],
    overrides: Sequence[str],
    swept: dict[str, list[Any]] | None,
    to_config: bool,
) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    merged = OmegaConf.structured(Config)
    for node in (merged, merged.train, merged.eval, merged.data, merged.snapshots):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses are read-only, even to a merge
    what = "settings"
    try:
        for layer in layers:
            what = f"config {layer}" if isinstance(layer, Path) else "settings"
            given = OmegaConf.load(layer) if isinstance(layer, Path) else OmegaConf.create(layer)
            merged = OmegaConf.merge(merged, _first_of_lists(given, swept))
        for override in overrides:
            what = f"override {override!r}"
            if "=" not in override:
                raise StabError(f"{what} is not key=value, for example train.lr=3e-4")
            merged = OmegaConf.merge(
                merged, _first_of_lists(OmegaConf.from_dotlist([override]), swept)
            )
        return OmegaConf.to_object(merged) if to_config else merged
    except StabError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, TypeError, ValueError, RecursionError) as e:
        key, message = getattr(e, "full_key", None), str(e).strip() or type(e).__name__
        where = f" at {key if str(key).isprintable() else repr(key)}" if key else ""
        first = " ".join(message.splitlines()[0].split())
        raise StabError(f"{what} is not valid{where}: {first}") from e


def _first_of_lists(layer: Any, swept: dict[str, list[Any]] | None) -> Any:
    """Move the lists of a layer's recipe into ``swept``; return the layer with first values."""
    from omegaconf import DictConfig, OmegaConf

    recipe = layer.get("train") if isinstance(layer, DictConfig) else None
    if swept is None or not isinstance(recipe, DictConfig):
        return layer
    # Interpolations are resolved later, over all layers.
    given = OmegaConf.to_container(recipe, resolve=False)
    assert isinstance(given, dict)
    for name in [name for name in given if name in SETTINGS]:
        swept.pop(name, None)  # of an earlier layer
        values = given[name]
        if isinstance(values, list):
            if not values or any(isinstance(one, list | dict | None) for one in values):
                raise StabError(
                    f"train.{name}={values} is not a list of settings: expected values, such as"
                    " [1e-3, 3e-4]"
                )
            swept[name] = values
            recipe[name] = values[0]
    return layer


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested plain data by dotted keys; empty dictionaries stay values."""
    entries: dict[str, Any] = {}
    for key, value in data.items():
        nested = isinstance(value, dict) and value
        entries |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return entries
