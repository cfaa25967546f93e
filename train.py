"""The training loop: a generator of checkpoints, ignorant of tasks, rollouts and rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from stab.recipe import Recipe
from stab.registry import StabError
from stab.stabilizers.base import Average, clone
from stab.stabilizers.optimizers import make_optimizer, make_transforms
from stab.stabilizers.riders import Riders, clock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stab.stabilizers.base import Params

# Draws of one update come from (seed, stream, update), so that they depend on nothing that happened
# before.
INDICES, DROPOUT, GRADIENT = 0, 1, 2
GRADIENT_SAMPLES = 4
KEPT = 31 * 2**20  # bytes


class Split(Protocol):
    """Demonstrations to draw minibatches from, in samples: transitions, or whole texts."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: np.ndarray) -> Any:
        """Return the samples of an integer array (batch,), in the form that the loss takes."""


@runtime_checkable
class Movable(Split, Protocol):
    """Demonstrations that training can take to another device than the processor."""

    def to(self, device: torch.device) -> Split:
        """Return the same on a device, where ``batch`` then gives its tensors."""


@runtime_checkable
class Fresh(Split, Protocol):
    """Demonstrations that never repeat: every epoch is made of fresh ones."""

    def pool(self, seed: int, epoch: int) -> Split:
        """Return the ``len(self)`` samples of one epoch; a function of seed and epoch."""


class Problem(Protocol):
    """What training needs: samples, a policy and a loss. Every task is one."""

    def training_split(self) -> Split:
        """Return what minibatches are drawn from."""

    def policy(self, recipe: Recipe) -> nn.Module:
        """Return a freshly initialised policy, drawn from torch's global generator."""

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        """Return the scalar one-step loss of a batch from ``Split.batch``."""


@runtime_checkable
class Additive(Protocol):
    """Problems that know when micro-batches may be computed as one batch."""

    def additive(self, policy: nn.Module) -> bool:
        """Whether a batch's loss is the mean of its samples' losses, independent of each other."""


@runtime_checkable
class Uneven(Protocol):
    """Problems whose samples count differently: a loss is the mean over their parts, as tokens."""

    def parts(self, policy: nn.Module, batch: Any) -> int:
        """Return how many parts a batch's loss is the mean of."""


class Diverged(RuntimeError):
    """Training reached a loss that is not finite."""


@dataclass(frozen=True)
class Checkpoint:
    """The raw iterate and the read-out of every average riding on it, at one update.

    Attributes:
        update: completed optimizer steps.
        raw: parameters and buffers of the live policy, as new tensors.
        averages: the same for each average, by the caller's name for it.
        gradient_variance: trace of the covariance of the gradient that one optimizer step takes
            (accumulation included), estimated without bias from independent minibatches at this
            iterate; dropout's noise is part of it.
        gradient_norm2: squared norm of the mean gradient, without bias (so it can come out
            negative).
        lr: learning rate of the last step.
        train_seconds: wall time spent training so far, averages and the gradient's variance not
            included.
        average_seconds: wall time spent in each average so far.
        average_bytes: memory of each average's state.
        failed: why averages that raised are no longer riding, by name.
        state: returns everything that the rest of training depends on, as plain data and tensors,
            for ``train`` to resume from in another process; call it before the next checkpoint
            is asked for.
    """

    update: int
    raw: Params
    averages: dict[str, Params]
    gradient_variance: float
    gradient_norm2: float
    lr: float
    train_seconds: float
    average_seconds: dict[str, float]
    average_bytes: dict[str, int]
    failed: dict[str, str]
    state: Callable[[], dict[str, Any]]


def train(
    problem: Problem,
    recipe: Recipe,
    seed: int,
    averages: Mapping[str, Average],
    checkpoints: Collection[int],
    state: Mapping[str, Any] | None = None,
) -> Iterator[Checkpoint]:
    """Train one trajectory and yield its checkpoints in order.

    Initial weights, minibatches and dropout masks are functions of the seed and the update:
    attaching averages, asking for other checkpoints, or what the consumer does between two of them
    change nothing. The global generators of torch are left as found. Training runs on
    ``recipe.device``; checkpoints are on the processor.

    Args:
        problem: gives samples, policy and loss; any task.
        recipe: everything else that decides the trajectory.
        seed: of the trajectory.
        averages: of the iterates, by a name of the caller's choice. One that raises is dropped,
            and the others stay.
        checkpoints: updates in 1..recipe.updates at which to yield.
        state: what ``Checkpoint.state`` returned, with the same other arguments, to resume: the
            checkpoints that follow have the same bits as without the interruption.

    Raises Diverged if the loss is not finite; StabError if the optimizer does not fit the
    recipe, or there is no such device.
    """
    device = make_device(recipe)
    # Freed at once: having seen so large a block, glibc keeps what updates free instead of giving
    # it back to the system and taking it again, a page fault every 4 kB (malloc's dynamic
    # threshold, 32 MiB at most).
    torch.empty(KEPT, dtype=torch.uint8)
    data = problem.training_split()
    with _own_random_state(device):
        torch.default_generator.manual_seed(_entropy(seed, DROPOUT, 0))
        policy = problem.policy(recipe)
    if device.type != "cpu":
        data, policy = _moved(data, device), policy.to(device)
    policy.train()
    parameters = list(policy.parameters())
    optimizer = make_optimizer(recipe, parameters)
    _switch(optimizer, "train")
    full = [group["lr"] for group in optimizer.param_groups]
    transforms = make_transforms(recipe)
    riders = Riders(averages, policy, recipe.updates)
    # The mean of the micro-batches' gradients is then that of one large batch, which takes less
    # time. In floating point the sums differ in their last bits; dropout draws other masks.
    as_one = isinstance(problem, Additive) and problem.additive(policy)
    train_seconds, done = 0.0, 0
    if state is not None:
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        riders.load_state_dict(state["riders"])
        for transform, its in zip(transforms, state["transforms"], strict=True):
            transform.load_state_dict(its)
        train_seconds, done = state["train_seconds"], state["update"]

    def schedule(update: int) -> None:
        if recipe.scheduled:
            for group, whole in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = whole * recipe.lr_factor(update)

    schedule(done)

    def everything() -> dict[str, Any]:
        return {
            "update": done,
            "policy": policy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "riders": riders.state_dict(),
            "transforms": [transform.state_dict() for transform in transforms],
            "train_seconds": train_seconds,
        }

    for update in range(done + 1, recipe.updates + 1):
        began = clock(device)
        lr = optimizer.param_groups[0]["lr"]
        source, indices = minibatches(data, recipe, seed, update)
        if as_one:
            indices = indices.reshape(1, -1)

        def closure(
            update: int = update, source: Split = source, indices: np.ndarray = indices
        ) -> float:
            # An optimizer that calls this more than once (SAM, LBFGS) sees the same minibatches and
            # dropout masks.
            _seed(device, _entropy(seed, DROPOUT, update))
            for parameter in parameters:
                parameter.grad = None
            total = 0.0
            batches = [source.batch(micro) for micro in indices]
            for batch, share in zip(batches, _shares(problem, policy, batches), strict=True):
                loss = problem.loss(policy, batch)
                if len(batches) > 1:
                    loss = loss / share
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            for transform in transforms:
                transform(parameters)
            return total

        with _own_random_state(device):
            loss = optimizer.step(closure)
        if not math.isfinite(loss):
            raise Diverged(f"training diverged: loss is {loss} at update {update}")
        schedule(update)
        ended = clock(device)
        train_seconds += ended - began
        riders.update(update, device, ended)
        if update in checkpoints:
            # Optimizers that deploy other weights than they train (schedule-free) move them in
            # place, and not back to the last bit; measuring the gradient's variance moves
            # BatchNorm's statistics. Both must leave no trace.
            live_state = clone(policy.state_dict())
            _switch(optimizer, "eval")
            raw = clone(policy.state_dict())
            read, memory = riders.read(raw)
            _switch(optimizer, "train")
            policy.load_state_dict(live_state)
            variance, norm2 = gradient_noise(
                problem, policy, recipe, (seed, GRADIENT, update), data
            )
            policy.load_state_dict(live_state)
            if device.type != "cpu":
                raw, read = _to_cpu(raw), {name: _to_cpu(params) for name, params in read.items()}
            done = update
            yield Checkpoint(
                update=update,
                raw=raw,
                averages=read,
                gradient_variance=variance,
                gradient_norm2=norm2,
                lr=lr,
                train_seconds=train_seconds,
                average_seconds={name: riders.seconds[name] for name in read},
                average_bytes=memory,
                failed=dict(riders.failed),
                state=everything,
            )


def _shares(problem: Problem, policy: nn.Module, batches: list[Any]) -> list[float]:
    """Return what divides each micro-batch's loss, so that they add up to that of one batch.

    That is their number, or all parts over its own ones.
    """
    if len(batches) == 1 or not isinstance(problem, Uneven):
        return [len(batches)] * len(batches)
    parts = [problem.parts(policy, batch) for batch in batches]
    return [sum(parts) / one for one in parts]


def minibatches(data: Split, recipe: Recipe, seed: int, update: int) -> tuple[Split, np.ndarray]:
    """Return the split of an update's micro-batches, and indices (accumulation, batch_size) in it.

    Training reads epoch after epoch, each a permutation of all transitions (a minibatch may
    straddle two). Epochs are functions of seed and number, so that any update's minibatches are
    known without the ones before. Of endless data each epoch has a pool of its own, and ends before
    the minibatch that would straddle.

    Raises StabError as ``check_pool`` does.
    """
    transitions, size = len(data), recipe.accumulation * recipe.batch_size
    draw = getattr(
        data, "pool", None
    )  # of endless data; asking its protocol would cost more than the rest of this
    if draw is not None:
        check_pool(data, recipe)
        number, step = divmod(update - 1, transitions // size)
        data, stream, first = draw(seed, number), _epoch(transitions, seed, number), step * size
    else:
        number, first = divmod((update - 1) * size, transitions)
        stream = _epoch(transitions, seed, number)
        if first + size > transitions:
            later = range(number + 1, number + 1 + -(-(first + size - transitions) // transitions))
            stream = np.concatenate([stream, *(_epoch(transitions, seed, n) for n in later)])
    return data, stream[first : first + size].reshape(recipe.accumulation, recipe.batch_size)


def check_pool(data: Split, recipe: Recipe) -> None:
    """Raise StabError when an endless epoch is shorter than one step's samples."""
    size = recipe.accumulation * recipe.batch_size
    if size > len(data):
        raise StabError(
            f"an epoch of {len(data)} fresh transitions is shorter than one step's {size} samples:"
            " raise data.train_episodes, or lower train.batch_size or train.accumulation"
        )


@functools.lru_cache(maxsize=4)
def _epoch(transitions: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(_entropy(seed, INDICES, epoch)).permutation(transitions)


def make_device(recipe: Recipe) -> torch.device:
    """Return the recipe's device. Raises StabError when this torch cannot use it."""
    kind, _, index = recipe.device.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise StabError(
            f"train.device={recipe.device}: torch {torch.__version__} sees"
            f" {torch.cuda.device_count()} GPUs here; leave out --device, or install a build of"
            " torch for CUDA"
        )
    return torch.device(kind, int(index or 0))


def _moved(data: Split, device: torch.device) -> Split:
    if not isinstance(data, Movable):
        raise StabError(
            f"this task cannot train on {device}: its demonstrations have no method to(device);"
            " leave out --device"
        )
    return data.to(device)


def _to_cpu(params: Params) -> Params:
    return {name: value.cpu() for name, value in params.items()}


def gradient_noise(
    problem: Problem,
    policy: nn.Module,
    recipe: Recipe,
    stream: tuple[int, ...],
    data: Split | None = None,
) -> tuple[float, float]:
    """Return a step's gradient noise: trace of the covariance, and squared norm of the mean.

    From n = 4 independent minibatches (drawn with replacement) with gradients g_i and mean m: the
    trace of the covariance of one minibatch's gradient is sum_i |g_i - m|^2 / (n - 1), that of a
    step's is 1 / accumulation of it; |m|^2 - trace / n is free of bias.
    """
    data = problem.training_split() if data is None else data
    rng = np.random.default_rng(_entropy(*stream))
    gradients = []
    device = make_device(recipe)
    with _own_random_state(device):
        _seed(device, _entropy(*stream))
        for _ in range(GRADIENT_SAMPLES):
            loss = problem.loss(policy, data.batch(rng.integers(len(data), size=recipe.batch_size)))
            parts = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
            gradients.append(torch.cat([g.flatten() for g in parts if g is not None]))
    stacked = torch.stack(gradients)
    mean = stacked.mean(0)
    trace = float((stacked - mean).square().sum() / (GRADIENT_SAMPLES - 1))
    return trace / recipe.accumulation, float(mean.square().sum()) - trace / GRADIENT_SAMPLES


def _entropy(*key: int) -> int:
    """Mix integers into 63 bits (splitmix64's finalizer over each), to seed generators."""
    mixed = 0x9E3779B97F4A7C15
    for part in key:
        mixed = (mixed ^ (part + 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def _switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Call the optimizer's train() or eval() if it has one (schedule-free methods)."""
    switch: Callable[[], Any] | None = getattr(optimizer, mode, None)
    if switch:
        switch()


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
