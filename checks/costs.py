"""What a stabilizer costs, measured: time of an update, and memory that is kept between updates."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from stab import files
from stab.recipe import Recipe
from stab.registry import Incompatible, StabError, reason
from stab.stabilizers import parse, stabilizers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stab.train import Split

SETTING = "MLP of two layers of 256 units, 11 observations, 3 actions, batch 256"
WARM_UP, UPDATES, ROUNDS = 10, 30, 5


@dataclass(frozen=True)
class Cost:
    """What a stabilizer adds to training with the base recipe.

    Attributes:
        time: seconds of an update over those of the base recipe's (1 for nothing).
        memory: bytes kept between updates beyond the base recipe's, in copies of the parameters.
    """

    time: float
    memory: float

    def __str__(self) -> str:
        copies = round(self.memory, 1)
        noun = "copy" if abs(copies) == 1 else "copies"
        memory = (
            f"{abs(copies):g} {'more' if copies > 0 else 'fewer'} {noun} of the parameters"
            if copies
            else "no more memory"
        )
        return f"x{self.time:.2f} time, {memory}"


def measure(
    names: Sequence[str], progress: Callable[[float], None] | None = None
) -> dict[str, Cost | str]:
    """Return the cost of each stabilizer string with default arguments, or why it has none.

    Runs of the base recipe and of the edited one alternate, five of each, 30 updates after a
    warm-up of 10; the ratio is that of the shortest, which a busy machine disturbs least. The time
    of an average is its own, over that of the training it rides on. Takes one to three seconds a
    stabilizer; expect an error of a few hundredths. Memory is counted, not sampled: the optimizer's
    and the average's state, and the parameters.
    """
    costs: dict[str, Cost | str] = {}
    for n, name in enumerate(names):
        if progress:
            progress(n / len(names))
        try:
            costs[name] = _measure(name)
        except (StabError, Incompatible) as e:
            costs[name] = str(e)
        except Exception as e:  # a plug-in may raise anything
            costs[name] = reason(e)
    return costs


def cached(
    names: Sequence[str], progress: Callable[[float], None] | None = None
) -> dict[str, Cost | str]:
    """Return ``measure(names)``; results are cached by the version of a stabilizer's module."""
    path = files.cache_folder() / "costs.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError):
        saved = {}
    keys = {name: _key(name) for name in names}
    costs: dict[str, Cost | str] = {
        name: Cost(**saved[key]) for name, key in keys.items() if key in saved
    }
    missing = [name for name in names if name not in costs]
    costs |= measure(missing, progress)
    new = {keys[name]: asdict(cost) for name in missing if isinstance(cost := costs[name], Cost)}
    if new:
        files.write_cache(path, json.dumps(saved | new))
    return {name: costs[name] for name in names}


def _key(name: str) -> str:
    try:
        module = inspect.getmodule(stabilizers.get(name))
        source = inspect.getsource(module)  # type: ignore[arg-type]
    except (StabError, OSError, TypeError):
        source = ""
    sha = hashlib.sha256(source.encode()).hexdigest()[:12]
    return f"{name} {sha} stab {version('stab-gva')} torch {version('torch')}"


def _measure(name: str) -> Cost:
    import torch

    from stab.stabilizers.optimizers import make_optimizer
    from stab.stabilizers.riders import nbytes
    from stab.train import Checkpoint, train

    stabilizer, task = parse(name), _Synthetic()
    base = Recipe(updates=WARM_UP + UPDATES)
    edited = stabilizer.apply(base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(recipe: Recipe) -> tuple[float, Checkpoint]:
        averages = {name: stabilizer.average} if stabilizer.average else {}
        first, last = train(task, recipe, 0, averages, [WARM_UP, WARM_UP + UPDATES])
        own = sum(last.average_seconds.values()) - sum(first.average_seconds.values())
        seconds = last.train_seconds - first.train_seconds
        return (1 + own / seconds if averages else seconds), last

    def held(recipe: Recipe) -> int:
        policy = task.policy(recipe)
        optimizer = make_optimizer(recipe, list(policy.parameters()))
        batch = task.training_split().batch(np.arange(8))

        def closure() -> float:
            optimizer.zero_grad()
            loss = task.loss(policy, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        for mode in ("train", "eval", "train"):
            getattr(optimizer, mode, lambda: None)()
        optimizer.step(closure)
        return nbytes(optimizer.state_dict()) + sum(p.nbytes for p in policy.parameters())

    try:
        size = sum(p.nbytes for p in task.policy(base).parameters())
        _, last = run(edited)
        if stabilizer.average:
            time = min(run(edited)[0] for _ in range(ROUNDS))
        elif edited == base:
            time = 1.0
        else:  # the two alternate; of each its least disturbed run
            pairs = [(run(edited)[0], run(base)[0]) for _ in range(ROUNDS)]
            time = min(seconds for seconds, _ in pairs) / min(seconds for _, seconds in pairs)
        memory = (held(edited) - held(base) + sum(last.average_bytes.values())) / size
    finally:
        torch.set_num_threads(threads)
    return Cost(time, memory)


class _Synthetic:
    """Regression of random actions on random observations, with the policies of the real tasks."""

    def training_split(self) -> Split:
        import torch

        from stab.tasks.transitions import Transitions

        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((4096, 14))).float()
        return Transitions(drawn[:, :11], drawn[:, 11:].tanh(), np.zeros(4096, dtype=np.int64))

    def policy(self, recipe: Recipe) -> nn.Module:
        import gymnasium as gym
        import torch

        from stab.tasks.policies import build

        return build(recipe, torch.zeros(11), torch.ones(11), gym.spaces.Box(-1.0, 1.0, (3,)))

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = policy.loss(batch)  # type: ignore[operator]
        return loss
