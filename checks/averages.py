"""Checks of averages. Iterates are float64, so that a wrong rule stands far above rounding."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stab.checks.base import (
    CheckFailed,
    random_states,
    require,
    same,
    unchanged,
)
from stab.checks.toy import TOY, Toy, plain_run, thirds
from stab.registry import StabError
from stab.stabilizers import Average
from stab.stabilizers.base import clone
from stab.train import train

if TYPE_CHECKING:
    from stab.stabilizers.base import Params


# Updates of a synthetic run: an average of every 100th iterate averages two or three. It is longer
# if settings need it.
TOTALS = (300, 600, 3_000, 30_000)
F64 = torch.float64
# Of sums in another order or of moved iterates; a wrong rule is off by much more.
TOLERANCE = 1e-10


def _total(average: Average) -> int:
    """Return the shortest run that the settings fit (``start=500`` needs more than 300 updates)."""
    for total in TOTALS[:-1]:
        try:
            average.init(_params(torch.zeros(3)), total)
        except StabError:
            continue
        return total
    return TOTALS[-1]


def _iterates(
    total: int, seed: int = 0, shape: Sequence[int] = (3,), dtype: torch.dtype = F64
) -> Tensor:
    """Iterates 0..total (0: the initial parameters), independent and normal, one exactly zero."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((total + 1, *shape))).to(
        dtype
    )
    drawn[total // 2] = 0
    return drawn


def _params(value: Tensor) -> Params:
    """Two leaves of one (..., 3) iterate."""
    return {"w": value.clone(), "b": value[..., :2] * 3}


def _states(average: Average, iterates: Tensor) -> Iterator[tuple[int, Any]]:
    """Feed iterates (total + 1, ...) as the training loop does; yield (step, state)."""
    total = len(iterates) - 1
    state = average.init(_params(iterates[0]), total)
    yield 0, state
    for step in range(1, total + 1):
        average.update(state, _params(iterates[step]), step)
        yield step, state


def _apart(a: Params, b: Params) -> float:
    """Return the largest difference (infinite where either is not finite)."""
    return max(float((a[k] - b[k]).abs().nan_to_num(torch.inf, torch.inf).max()) for k in a)


def reads_from_the_start(average: Average) -> None:
    """A read-out has the parameters' names, shapes, dtypes; at update 0 their values, too."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    for step, state in _states(average, iterates):
        read_out, params = average.read(state), _params(iterates[step])
        for kind, of in (
            ("names", list),
            ("shapes and dtypes", lambda p: [(v.shape, v.dtype) for v in p.values()]),
        ):
            require(
                of(read_out) == of(params),
                f"update {step}: read gives {kind} {of(read_out)}, expected {of(params)}",
            )
        if step == 0:
            require(
                same(read_out, params), "read before the first update is not the initial parameters"
            )


def update_leaves_parameters(average: Average) -> None:
    """``init``, ``update`` and ``read`` leave the parameters they look at bitwise unchanged."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    params = _params(iterates[0])
    before, state = clone(params), average.init(params, len(iterates) - 1)
    require(
        same(params, before),
        "init changed the parameters: an average looks and never touches; clone them first",
    )
    for step in range(1, len(iterates)):
        params = _params(iterates[step])
        before = clone(params)
        average.update(state, params, step)
        require(
            same(params, before),
            f"update {step} changed the parameters: an average looks and never touches",
        )
        average.read(state)
        require(
            same(params, before),
            f"read at update {step} changed the parameters: its state holds them; clone",
        )


def read_never_aliases(average: Average) -> None:
    """Read-outs are new tensors: they share no memory with parameters, average or each other."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    params = _params(iterates[0])
    state = average.init(params, len(iterates) - 1)
    for step in range(len(iterates)):
        for name, value in _params(iterates[step]).items():
            params[name].copy_(value)  # in place, as an optimizer does
        if step:
            average.update(state, params, step)
        kept = clone(average.read(state))
        for value in params.values():
            value.fill_(torch.nan)
        require(
            same(average.read(state), kept),
            f"update {step}: the average changes with the live parameters: it keeps them instead of"
            " a copy; clone them",
        )
        for value in average.read(state).values():
            value.fill_(torch.nan)
        require(
            same(average.read(state), kept),
            f"update {step}: writing into a read-out changes the average: read returns its own"
            " tensors; clone them",
        )


def constant_iterates_give_that_constant(average: Average) -> None:
    """Iterates that never change are their own average (to an ulp per update, zeros exactly)."""
    constant, total = torch.tensor([0.1, -1 / 3, 0.0], dtype=F64), _total(average)
    expected = _params(constant)
    for step, state in _states(average, constant.expand(total + 1, 3)):
        read_out = average.read(state)
        for name, value in read_out.items():
            slack = max(step, 1) * torch.finfo(F64).eps * expected[name].abs()
            require(
                bool(((value - expected[name]).abs() <= slack).all()),
                f"update {step}: iterates are always {expected[name].tolist()}, the average is"
                f" {value.tolist()}:"
                " its weights do not add up to 1 (started from zero without correction?)",
            )


def stays_in_the_hull(average: Average) -> None:
    """If ``convex`` is declared, elements lie between their least and greatest (to an ulp)."""
    total = _total(average)
    ramp = torch.linspace(1, 2, total + 1, dtype=F64)[:, None].expand(-1, 3) * torch.tensor(
        [1, -1, 3]
    )
    for kind, iterates in (("independent", _iterates(total)), ("steadily moving", ramp)):
        low, high = _params(iterates[0]), _params(iterates[0])
        for step, state in _states(average, iterates):
            for name, value in average.read(state).items():
                latest = _params(iterates[step])[name]
                low[name], high[name] = (
                    torch.minimum(low[name], latest),
                    torch.maximum(high[name], latest),
                )
                slack = torch.finfo(F64).eps * torch.maximum(low[name].abs(), high[name].abs())
                inside = (value >= low[name] - slack) & (value <= high[name] + slack)
                require(
                    bool(inside.all()),
                    f"update {step}: {value.tolist()} lies outside the iterates so far,"
                    f" {low[name].tolist()} to"
                    f" {high[name].tolist()} ({kind} iterates): a weight is negative, or they do"
                    " not add up to 1, so"
                    " convex=True is wrong",
                )


def commutes_with_affine_maps(average: Average) -> None:
    """If ``convex`` is declared, the average of 3 - 2 theta is 3 - 2 that of theta (to 1e-10)."""
    iterates = _iterates(_total(average), seed=1)
    for (step, state), (_, moved) in zip(
        _states(average, iterates), _states(average, 3 - 2 * iterates), strict=True
    ):
        # Leaf b is 3 times its part of w, so 3 becomes 9 there.
        expected = {
            name: 3 * (3 if name == "b" else 1) - 2 * value
            for name, value in average.read(state).items()
        }
        apart = _apart(average.read(moved), expected)
        require(
            apart <= TOLERANCE,
            f"update {step}: the average of 3 - 2 theta differs by {apart:.2g} from"
            " 3 - 2 average(theta): its weights"
            " depend on the iterates' values, so convex=True is wrong",
        )


def leading_axis_is_separate_runs(average: Average) -> None:
    """Three runs stacked along a leading axis are averaged as each alone (to 1e-10)."""
    total = _total(average)
    runs = [_iterates(total, seed) for seed in range(3)]
    alone = [_states(average, iterates) for iterates in runs]
    for (step, state), *ones in zip(_states(average, torch.stack(runs, 1)), *alone, strict=True):
        read_out = average.read(state)
        for i, (_, one) in enumerate(ones):
            apart = _apart({name: value[i] for name, value in read_out.items()}, average.read(one))
            require(
                apart <= TOLERANCE,
                f"update {step}: run {i} of 3 stacked along a leading axis differs by {apart:.2g}"
                " from the same run alone:"
                " runs are mixed (a norm or mean over the whole tensor?)",
            )


def matches_by_name(average: Average) -> None:
    """Parameters in another order are the same parameters (bitwise)."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    state = average.init(_params(iterates[0]), len(iterates) - 1)
    for step, expected in _states(average, iterates):
        if step:
            turned = dict(reversed(_params(iterates[step]).items()))
            average.update(state, turned, step)
        require(
            same(average.read(state), average.read(expected)),
            f"update {step}: parameters in another order give another average: they are matched by"
            " position; look them up by name",
        )


def leaves_the_random_state(average: Average) -> None:
    """The global generators of torch, numpy and Python are as before."""
    iterates = _iterates(_total(average))
    before = random_states()
    for _, state in _states(average, iterates):
        average.read(state)
    unchanged(before, "the average")


def state_resumes_bit_for_bit(average: Average) -> None:
    """Saved in the middle of training and loaded again, the average continues bit for bit."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    total = len(iterates) - 1
    saved, reads, final = {}, {}, {}
    for step, state in _states(average, iterates):
        if step in {0, 1, total // 7, total // 2, total - 1}:
            file = io.BytesIO()
            torch.save(state.state_dict(), file)
            saved[step], reads[step] = file.getvalue(), average.read(state)
        final = average.read(state) if step == total else {}
    for at, data in saved.items():
        state = average.init(_params(torch.full((3,), 9.0)), total)
        try:
            state.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
        except pickle.UnpicklingError as e:
            raise CheckFailed(
                f"state_dict holds more than plain data and tensors: {str(e).splitlines()[0]}"
            ) from e
        lost = "state_dict or load_state_dict leaves something out (a counter?)"
        require(
            same(average.read(state), reads[at]),
            f"read after loading the state of update {at} differs: {lost}",
        )
        for step in range(at + 1, total + 1):
            average.update(state, _params(iterates[step]), step)
        require(
            same(average.read(state), final),
            f"interrupted at update {at}, the end of training differs: {lost}",
        )


def one_object_serves_many_runs(average: Average) -> None:
    """Two runs in turns with one object give what each gives alone: all state is in the state."""
    total, before = _total(average), copy.deepcopy(average)
    first, second = _iterates(total, 1), _iterates(total, 2)
    alone = [
        [average.read(s) for _, s in _states(copy.deepcopy(average), iterates)]
        for iterates in (first, second)
    ]
    turns = zip(_states(average, first), _states(average, second), strict=True)
    for step, (states, expected) in enumerate(zip(turns, zip(*alone, strict=True), strict=True)):
        for (_, state), value in zip(states, expected, strict=True):
            require(
                same(average.read(state), value),
                f"update {step}: two runs with one object disturb each other: something is kept on"
                " the average or its"
                " class; keep it in the state that init returns",
            )
    require(average == before, f"after a run the average is {average!r}, was {before!r}")


def counts_optimizer_steps(average: Average) -> None:
    """With 3 micro-batches per step, the average is of the iterates after each optimizer step."""
    total = _total(average)
    recipe = replace(TOY, updates=total, accumulation=3)
    points = thirds(total)
    *_, last = checkpoints = list(
        train(Toy("toy"), recipe, 0, {"a": average, "all": Iterates()}, points)
    )
    in_run = {point.update: point.averages["a"] for point in checkpoints}
    seen = [name for name in last.averages["all"] if name != "seen" or average.averages_buffers]
    iterates = [
        {name: last.averages["all"][name][step] for name in seen} for step in range(total + 1)
    ]
    state = average.init(clone(iterates[0]), total)
    for step in range(1, total + 1):
        average.update(state, clone(iterates[step]), step)
        if step in in_run:
            require(
                same(average.read(state), {name: in_run[step][name] for name in seen}),
                f"update {step} of a run with 3 micro-batches per step: the average is not that of"
                " the iterates after each"
                " optimizer step: it counts something else (micro-batches?); use the argument step",
            )


def leaves_the_raw_trajectory(average: Average) -> None:
    """Attached to a run, it leaves the raw iterates bitwise the same."""
    total = _total(average)
    recipe = replace(TOY, updates=total, dropout=0.2)
    for plain, point in zip(
        plain_run(total, 0.2),
        train(Toy("toy"), recipe, 0, {"a": average}, thirds(total)),
        strict=True,
    ):
        require(
            same(plain, point.raw),
            f"update {point.update}: the run's raw iterate is another with the average attached:"
            " update or read changed"
            " the live parameters, or the order of training",
        )


@dataclass(frozen=True)
class Iterates(Average):
    """Every iterate: reads (update + 1, ...), from the initial parameters on."""

    averages_buffers: ClassVar[bool] = True

    def init(self, params: Params, total: int) -> Seen:
        return Seen([clone(params)])

    def update(self, state: Seen, params: Params, step: int) -> None:
        state.iterates.append(clone(params))

    def read(self, state: Seen) -> Params:
        return {name: torch.stack([i[name] for i in state.iterates]) for name in state.iterates[0]}


@dataclass
class Seen:
    """Iterates, the initial parameters first."""

    iterates: list[Params]

    def state_dict(self) -> dict[str, Any]:
        return {"iterates": self.iterates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iterates = [clone(params) for params in state["iterates"]]


CONVEX: list[Callable[[Any], None]] = [stays_in_the_hull, commutes_with_affine_maps]
CHECKS: list[Callable[[Any], None]] = [
    reads_from_the_start,
    update_leaves_parameters,
    read_never_aliases,
    constant_iterates_give_that_constant,
    *CONVEX,
    leading_axis_is_separate_runs,
    matches_by_name,
    leaves_the_random_state,
    state_resumes_bit_for_bit,
    one_object_serves_many_runs,
    counts_optimizer_steps,
    leaves_the_raw_trajectory,
]
