"""The folder of an expert's training: the best actor, its card, and the state to resume from."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stab.files import replacing
from stab.registry import StabError
from stab.tasks.control import experts
from stab.tasks.control.record import Record
from stab.tasks.references import Curve

REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
T = TypeVar("T")


@dataclass(frozen=True)
class Best:
    """The best average so far.

    Attributes:
        weights: safetensors, as experts are shipped.
        steps: environment steps at which it was read.
        curve: its evaluation.
    """

    weights: bytes
    steps: int
    curve: Curve

    @property
    def score(self) -> float:
        """Mean - standard deviation of the return: an expert should be good every time."""
        return self.curve.cumulative[-1] - self.curve.std


@dataclass(frozen=True)
class TrainingState:
    """What a training resumes from: data only, in one file.

    Attributes:
        identity: of the training, see ``identify``.
        steps, updates: environment and gradient steps so far.
        learning_starts: environment steps of random actions before the first gradient step.
        best: the best average so far, None before the first evaluation.
        state: networks, optimizers, average and random keys, as flax's msgpack.
        replay: filled part of the replay buffer, arrays (steps, environments, ...).
        position: of the next write into the replay buffer.
    """

    identity: dict[str, Any]
    steps: int
    updates: int
    learning_starts: int
    best: Best | None
    state: bytes
    replay: dict[str, np.ndarray]
    position: int

    def write(self, path: Path) -> None:
        """Replace the file at ``path``. Raises StabError if the disk does not take it."""
        best = self.best and {"steps": self.best.steps, "curve": asdict(self.best.curve)}
        numbers = ("identity", "steps", "updates", "learning_starts", "position")
        about = {name: getattr(self, name) for name in numbers} | {"best": best}
        contents = {
            "about": json.dumps(about).encode(),
            "best": self.best.weights if self.best else b"",
            "state": self.state,
        }
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in contents.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **(arrays | self.replay))

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Read the file at ``path``. Raises StabError if it is damaged or something else."""

        def read(arrays: Any) -> TrainingState:
            about = json.loads(arrays["about"].tobytes())
            best = about.pop("best")
            if best:
                best = Best(arrays["best"].tobytes(), best["steps"], Curve(**best["curve"]))
            replay = {name: arrays[name] for name in REPLAY}
            return cls(best=best, state=arrays["state"].tobytes(), replay=replay, **about)

        return _open(path, read)


def _open(path: Path, read: Callable[[Any], T]) -> T:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return read(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise StabError(
            f"checkpoint {path} cannot be read ({e}): delete it to start from scratch"
        ) from e


@dataclass(frozen=True)
class Files:
    """The files of a task's training."""

    folder: Path
    task: str

    @property
    def weights(self) -> Path:
        """The best actor so far."""
        return self.folder / f"{self.task}.safetensors"

    @property
    def card(self) -> Path:
        """Its card."""
        return self.folder / f"{self.task}.json"

    @property
    def checkpoint(self) -> Path:
        """The state that an interrupted training resumes from."""
        return self.folder / f"{self.task}.checkpoint.npz"

    def make_folder(self) -> None:
        """Make the folder. If it is not writable, a user should learn it now, not after an hour."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as e:
            raise StabError(f"cannot write {self.folder}: {e.strerror or e}") from e

    def publish(self, weights: bytes, card: dict[str, Any]) -> dict[str, Any]:
        """Write an actor and its card; return the card."""
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(card[key])}" for key in card)
        with replacing(self.weights) as temporary:
            temporary.write_bytes(weights)
        with replacing(self.card) as temporary:
            temporary.write_text(f"{{\n{lines}\n}}\n")
        return card

    def hold(self, best: Best) -> bool:
        """Whether weights and card on disk are these."""
        try:
            described = experts.read_card(self.weights)["weights_sha256"]
            return (
                self.weights.read_bytes() == best.weights
                and described == hashlib.sha256(best.weights).hexdigest()
            )
        except (OSError, StabError):
            return False


def finished(record: Record, folder: Path, steps: int, seed: int) -> dict[str, Any] | None:
    """Return the card of a finished training of at least ``steps`` steps; None if there is none.

    Raises StabError if the folder has something that must not be overwritten: another training of
    this task, or an expert without its checkpoint.
    """
    files, identity = Files(folder, record.name), identify(record, seed)
    if files.checkpoint.exists():
        other = _open(files.checkpoint, lambda a: json.loads(a["about"].tobytes())["identity"])
        _same(other, identity, files.checkpoint)
    elif not files.weights.exists() and not files.card.exists():
        return None
    try:
        card = experts.load(record, files.weights).card
    except StabError:
        if files.checkpoint.exists():
            return None  # killed between writing weights and card: the checkpoint has both
        raise
    _same(card, identity, files.weights)
    if "unfinished" not in card and card.get("trained_steps", 0) >= steps:
        return card
    if not files.checkpoint.exists():
        raise StabError(
            f"{files.weights} was trained for {card.get('trained_steps', 'unknown')} steps, but its"
            f" checkpoint {files.checkpoint.name} to resume from is missing: choose another folder"
            " (--out), or move the expert away"
        )
    return None


def identify(record: Record, seed: int) -> dict[str, Any]:
    """Return what two trainings of any number of steps share if they are the same; on the card."""
    return {
        "task": record.name,
        "environment": record.environment,
        "algorithm": record.algorithm,
        "algorithm_args": record.algorithm_args,
        "hidden": list(record.masked),
        "training_seed": seed,
    }


def _same(other: Mapping[str, Any], identity: dict[str, Any], path: Path) -> None:
    for key, value in identity.items():
        if other.get(key) != value:
            raise StabError(
                f"{path} is of another training: {key.replace('_', ' ')} {other.get(key)}, not"
                f" {value}; choose another folder (--out), or move it away"
            )
