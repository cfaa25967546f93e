"""Conformance kit: small named checks that every stabilizer and every task must pass, plug-ins included.

``yield_checks`` gives them, ``stab check NAME...`` and ``parametrize_with_checks`` (pytest) run them. Nothing here needs
data or a network: averages see synthetic iterates, interventions train a toy task, tasks are rolled out for a few steps.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import itertools
import json
import pickle
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stab.arguments import is_number
from stab.recipe import Recipe, load_object
from stab.registry import Incompatible, StabError, suggest
from stab.stabilizers import Average, Intervention, Stabilizer, parse, stabilizers
from stab.stabilizers.base import clone
from stab.stabilizers.cards import card
from stab.stabilizers.none import NoStabilizer
from stab.tasks import Curve, Demonstrations, References, Task, tasks
from stab.tasks.references import Progress, no_progress
from stab.train import Diverged, train

if TYPE_CHECKING:
    import pytest

    from stab.stabilizers.base import Params

# Updates of a synthetic run: an average of every 100th iterate averages two or three. Longer where settings need it.
TOTALS = (300, 600, 3_000, 30_000)
F64 = torch.float64
# Of sums in another order or of moved iterates; a wrong rule is off by much more.
TOLERANCE = 1e-10
STARTS, HORIZONS = (3, 5), (1, 7, 20)
PARTS = ("returns", "lengths", "remarks")  # of what a rollout gives


class CheckFailed(AssertionError):
    """A check failed. The message is one line: what was expected, what came, the likely cause."""


@dataclass(frozen=True)
class Check:
    """One named check of one object.

    Attributes:
        object: what is checked, in words: a registered name, a string, a class's name.
        name: of the check.
        doc: what it asks for, in one line.
        function: does it, without arguments.
    """

    object: str
    name: str
    doc: str
    function: Callable[[], None]

    @property
    def id(self) -> str:
        """``ema-read_never_aliases``."""
        return f"{self.object}-{self.name}"

    def run(self) -> None:
        """Run the check. Raises CheckFailed, whatever the object raised."""
        try:
            self.function()
        except CheckFailed:
            raise
        except Exception as e:
            raise CheckFailed(f"{type(e).__name__} where none was expected: {e}") from e


def yield_checks(obj: object) -> Iterator[Check]:
    """Yield the checks of a stabilizer or task, in order. Running one does not depend on the others.

    Args:
        obj: a registered name (``ema``, ``hopper``), a stabilizer string (``lr_decay+ema:half_life=500``), a
            Minari dataset id, ``module:Object``, or such an object itself: an Average, Intervention or Task, its class,
            or a factory of tasks. Classes are made without arguments (tasks and factories with ``name``).

    Raises StabError when there is no such object or it cannot be made.

    >>> [check.name for check in yield_checks("none")][0]
    'is_a_frozen_dataclass'
    """
    label, made = _resolve(obj)
    parts: list[tuple[Callable[[Any], None], Any]] = []
    if isinstance(made, Stabilizer):
        if not _methods(made):
            made = _alone(label, NoStabilizer())  # a parsed string leaves it out
        parts += [(check, made) for check in BOTH]
        if made.interventions:
            parts += [(check, made) for check in _intervention_checks(made)]
        if made.average is not None:
            parts += [
                (check, made.average)
                for check in AVERAGE
                if made.average.convex or check not in CONVEX
            ]
    else:
        parts += [(check, made) for check in TASK]
    for check, target in parts:
        doc = (inspect.getdoc(check) or "").splitlines()[0]
        yield Check(label, check.__name__.lstrip("_"), doc, partial(check, target))


def parametrize_with_checks(
    objects: Iterable[object], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Decorate a pytest function of one argument ``check``: one test for every (object, check), ``ema-read_never_aliases``.

    Args:
        objects: each as for ``yield_checks``.
        expected_failures: check name, or test id, -> the reason why it fails. Strict: one that passes is an error.

    Raises StabError when a reason is empty or its check does not exist.

    >>> @parametrize_with_checks(["ema"])                       # doctest: +SKIP
    ... def test_conforms(check):
    ...     check.run()
    """
    import pytest

    excused = dict(expected_failures or {})
    checks = [check for obj in objects for check in yield_checks(obj)]
    known = {check.name for check in checks} | {check.id for check in checks}
    for name, reason in excused.items():
        if name not in known:
            raise StabError(f"expected_failures: no check {name!r}.{suggest(name, known)}")
        if not reason.strip():
            raise StabError(f"expected_failures: {name!r} needs a reason")
    parameters = []
    for check in checks:
        why = excused.get(check.id, excused.get(check.name))
        marks = [pytest.mark.xfail(reason=why, raises=CheckFailed, strict=True)] if why else []
        parameters.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)


# What is to be checked


def _resolve(obj: object) -> tuple[str, Stabilizer | Task]:
    """Return the object's name for messages, and the object. Raises StabError when it cannot be had."""
    if isinstance(obj, str):
        return _named(obj)
    if isinstance(obj, Average | Intervention):
        return repr(obj), _alone(repr(obj), obj)
    if isinstance(obj, Stabilizer):
        return obj.string, obj
    if isinstance(obj, Task):
        return obj.name, obj
    label = getattr(obj, "__name__", type(obj).__name__)
    return label, _make(obj, label)


def _named(text: str) -> tuple[str, Stabilizer | Task]:
    if re.fullmatch(r"[\w.]+:[A-Za-z_]\w*", text):
        try:
            obj = load_object(text)
        except StabError:
            raise
        except Exception as e:  # the module may raise anything
            raise StabError(f"cannot load {text!r}: {type(e).__name__}: {e}") from e
        return text, _resolve(obj)[1] if not callable(obj) else _make(obj, text.rpartition(":")[2])
    if text in tasks.names():
        return text, _make(tasks.get(text), text)
    if re.fullmatch(r"[^\s:+]+/[^\s:+]+-v\d+", text):
        from stab.tasks.catalog import task_for

        name = task_for(text)
        return text, _make(partial(tasks.get(name), dataset_id=text), name)
    known = [*stabilizers.names(), *tasks.names()]
    if re.fullmatch(r"\w+", text) and text not in known:
        raise StabError(
            f"Unknown stabilizer or task {text!r}.{suggest(text, known)} Known: {', '.join(known)}; or module:Object"
        )
    return text, parse(text)


def _make(obj: object, label: str) -> Stabilizer | Task:
    """Return what a class or a factory makes."""
    method = isinstance(obj, type) and issubclass(obj, Average | Intervention)
    if not callable(obj):
        raise StabError(
            f"{label} is neither an Average, an Intervention nor a Task, nor makes one: {obj!r}"
        )
    try:
        takes_name = not method and "name" in inspect.signature(obj).parameters
        made = obj(name=label) if takes_name else obj()
    except Exception as e:  # a plug-in may raise anything
        raise StabError(f"{label} cannot be made without arguments: {type(e).__name__}: {e}") from e
    if isinstance(made, Average | Intervention):
        return _alone(label, made)
    if isinstance(made, Task):
        try:
            _ = made.demonstrations_id
        except StabError as e:
            raise StabError(
                f"task {label!r} has no dataset of its own: name the dataset instead, see: stab data list"
            ) from e
        return made
    raise StabError(
        f"{label} makes {made!r}, which is neither an Average, an Intervention nor a Task"
    )


def _alone(label: str, method: Average | Intervention) -> Stabilizer:
    return (
        Stabilizer(label, average=method)
        if isinstance(method, Average)
        else Stabilizer(label, (method,))
    )


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise CheckFailed(message)


# Every stabilizer


def _methods(stabilizer: Stabilizer) -> list[Average | Intervention]:
    return [
        *stabilizer.interventions,
        *([stabilizer.average] if stabilizer.average is not None else []),
    ]


def is_a_frozen_dataclass(stabilizer: Stabilizer) -> None:
    """The class has its own @dataclass(frozen=True), and every hyper-parameter a default."""
    for method in _methods(stabilizer):
        name = type(method).__name__
        _require(
            "__dataclass_fields__" in vars(type(method)),
            f"{name} is no dataclass of its own, so the hyper-parameters it adds are not seen: add @dataclass(frozen=True)",
        )
        for f in dataclasses.fields(method):
            missing = f.default is dataclasses.MISSING
            _require(
                not missing,
                f"{name}.{f.name} has no default: give it one, as in hyper(default, doc, ...)",
            )


def has_a_card(stabilizer: Stabilizer) -> None:
    """The docstring has a first line, a formula, and paragraphs Suggested:, Cost: and Source: (``stabilizers.cards``)."""
    for method in _methods(stabilizer):
        missing = card(type(method)).missing
        _require(
            not missing,
            f"the docstring of {type(method).__name__}, which stab list -v and the docs show, lacks {', '.join(missing)}",
        )


def copies_and_pickles(stabilizer: Stabilizer) -> None:
    """A deep copy and a pickled copy equal the original: cells run in other processes."""
    for method in _methods(stabilizer):
        name = type(method).__name__
        _require(
            copy.deepcopy(method) == method, f"a deep copy of {name} does not equal it: {method!r}"
        )
        try:
            found = pickle.loads(pickle.dumps(method))
        except Exception as e:
            raise CheckFailed(
                f"{name} cannot be pickled ({e}): define the class at the top of a module, keep no functions in it"
            ) from e
        _require(
            found == method, f"{name} comes back from a pickle as {found!r}, expected {method!r}"
        )


# Averages. Iterates are float64, so that a rule which is off stands far above rounding.


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
    """Iterates 0..total (iterate 0: the initial parameters), independent normal ones, one exactly zero."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((total + 1, *shape))).to(
        dtype
    )
    drawn[total // 2] = 0
    return drawn


def _params(value: Tensor) -> Params:
    """Two leaves of one (..., 3) iterate."""
    return {"w": value.clone(), "b": value[..., :2] * 3}


def _states(average: Average, iterates: Tensor) -> Iterator[tuple[int, Any]]:
    """Feed iterates (total + 1, ...) as the training loop does; yield (step, state) for step 0..total."""
    total = len(iterates) - 1
    state = average.init(_params(iterates[0]), total)
    yield 0, state
    for step in range(1, total + 1):
        average.update(state, _params(iterates[step]), step)
        yield step, state


def _same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _apart(a: Params, b: Params) -> float:
    """Return the largest difference (infinite where either is not finite)."""
    return max(float((a[k] - b[k]).abs().nan_to_num(torch.inf, torch.inf).max()) for k in a)


def reads_from_the_start(average: Average) -> None:
    """A read-out has the parameters' names, shapes and dtypes at any time, at update 0 their values too."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    for step, state in _states(average, iterates):
        found, params = average.read(state), _params(iterates[step])
        for kind, of in (
            ("names", list),
            ("shapes and dtypes", lambda p: [(v.shape, v.dtype) for v in p.values()]),
        ):
            _require(
                of(found) == of(params),
                f"update {step}: read gives {kind} {of(found)}, expected {of(params)}",
            )
        if step == 0:
            _require(
                _same(found, params), "read before the first update is not the initial parameters"
            )


def update_leaves_parameters(average: Average) -> None:
    """``init``, ``update`` and ``read`` leave the parameters they look at bitwise unchanged."""
    iterates = _iterates(_total(average), dtype=torch.float32)
    params = _params(iterates[0])
    before, state = clone(params), average.init(params, len(iterates) - 1)
    _require(
        _same(params, before),
        "init changed the parameters: an average looks and never touches; clone them first",
    )
    for step in range(1, len(iterates)):
        params = _params(iterates[step])
        before = clone(params)
        average.update(state, params, step)
        _require(
            _same(params, before),
            f"update {step} changed the parameters: an average looks and never touches",
        )
        average.read(state)
        _require(
            _same(params, before),
            f"read at update {step} changed the parameters: its state holds them; clone",
        )


def read_never_aliases(average: Average) -> None:
    """Read-outs are new tensors: they share memory with neither the parameters nor the average nor one another."""
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
        _require(
            _same(average.read(state), kept),
            f"update {step}: the average changes with the live parameters: it keeps them instead of a copy; clone them",
        )
        for value in average.read(state).values():
            value.fill_(torch.nan)
        _require(
            _same(average.read(state), kept),
            f"update {step}: writing into a read-out changes the average: read returns its own tensors; clone them",
        )


def constant_iterates_give_that_constant(average: Average) -> None:
    """Iterates that never change are their own average, exact zeros included (to an ulp an update, zeros exactly)."""
    constant, total = torch.tensor([0.1, -1 / 3, 0.0], dtype=F64), _total(average)
    expected = _params(constant)
    for step, state in _states(average, constant.expand(total + 1, 3)):
        found = average.read(state)
        for name, value in found.items():
            slack = max(step, 1) * torch.finfo(F64).eps * expected[name].abs()
            _require(
                bool(((value - expected[name]).abs() <= slack).all()),
                f"update {step}: iterates are always {expected[name].tolist()}, the average is {value.tolist()}:"
                " its weights do not add up to 1 (started from zero without correction?)",
            )


def stays_in_the_hull(average: Average) -> None:
    """Where ``convex`` is declared, each element lies between the least and the greatest it has had (to an ulp)."""
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
                _require(
                    bool(inside.all()),
                    f"update {step}: {value.tolist()} lies outside the iterates so far, {low[name].tolist()} to"
                    f" {high[name].tolist()} ({kind} iterates): a weight is negative, or they do not add up to 1, so"
                    " convex=True is wrong",
                )


def commutes_with_affine_maps(average: Average) -> None:
    """Where ``convex`` is declared, the average of 3 - 2 theta is 3 - 2 times that of theta (to 1e-10)."""
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
        _require(
            apart <= TOLERANCE,
            f"update {step}: the average of 3 - 2 theta differs by {apart:.2g} from 3 - 2 average(theta): its weights"
            " depend on the iterates' values, so convex=True is wrong",
        )


def leading_axis_is_separate_runs(average: Average) -> None:
    """Three runs stacked along a leading axis are averaged as each alone (to 1e-10)."""
    total = _total(average)
    runs = [_iterates(total, seed) for seed in range(3)]
    alone = [_states(average, iterates) for iterates in runs]
    for (step, state), *ones in zip(_states(average, torch.stack(runs, 1)), *alone, strict=True):
        found = average.read(state)
        for i, (_, one) in enumerate(ones):
            apart = _apart({name: value[i] for name, value in found.items()}, average.read(one))
            _require(
                apart <= TOLERANCE,
                f"update {step}: run {i} of 3 stacked along a leading axis differs by {apart:.2g} from the same run alone:"
                " runs are mixed (a norm or mean over the whole tensor?)",
            )


def leaves_the_random_state(average: Average) -> None:
    """The global generators of torch, numpy and Python are as before."""
    iterates = _iterates(_total(average))
    before = _random_states()
    for _, state in _states(average, iterates):
        average.read(state)
    _unchanged(before, "the average")


def state_resumes_bit_for_bit(average: Average) -> None:
    """Saved in the middle of training, loaded into a fresh state, the average goes on bit for bit."""
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
        _require(
            _same(average.read(state), reads[at]),
            f"read after loading the state of update {at} differs: {lost}",
        )
        for step in range(at + 1, total + 1):
            average.update(state, _params(iterates[step]), step)
        _require(
            _same(average.read(state), final),
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
            _require(
                _same(average.read(state), value),
                f"update {step}: two runs with one object disturb each other: something is kept on the average or its"
                " class; keep it in the state that init returns",
            )
    _require(average == before, f"after a run the average is {average!r}, was {before!r}")


def counts_optimizer_steps(average: Average) -> None:
    """In a run of 3 micro-batches a step, the average is that of the iterates after each optimizer step."""
    total = _total(average)
    recipe = replace(TOY, updates=total, accumulation=3)
    points = _thirds(total)
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
            _require(
                _same(average.read(state), {name: in_run[step][name] for name in seen}),
                f"update {step} of a run with 3 micro-batches a step: the average is not that of the iterates after each"
                " optimizer step: it counts something else (micro-batches?); use the argument step",
            )


def leaves_the_raw_trajectory(average: Average) -> None:
    """Attached to a run, it leaves the raw iterates bitwise the same."""
    total = _total(average)
    recipe = replace(TOY, updates=total, dropout=0.2)
    for plain, point in zip(
        _plain_run(total, 0.2),
        train(Toy("toy"), recipe, 0, {"a": average}, _thirds(total)),
        strict=True,
    ):
        _require(
            _same(plain, point.raw),
            f"update {point.update}: the run's raw iterate is another with the average attached: update or read changed"
            " the live parameters, or the order of training",
        )


def _thirds(total: int) -> range:
    return range(total // 3, total + 1, total // 3)


@dataclass(frozen=True)
class Iterates(Average):
    """Every iterate: reads (update + 1, ...), from the initial parameters on. Shows a check what an average saw."""

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


# Interventions


def neutral_is_the_identity(stabilizer: Stabilizer) -> None:
    """With the arguments that ``neutral`` names (and with those alone), ``apply`` gives an equal recipe."""
    for method in stabilizer.interventions:
        cls = type(method)
        for base in copy.deepcopy(BASES):  # an impure apply must not spoil the next check
            found = cls(**cls.neutral).apply(base)
            _require(
                found == base,
                f"{cls.__name__} declares {cls.neutral} neutral, but apply changes {_changed(base, found)}:"
                " declare other arguments, or return the recipe as it is",
            )


def apply_is_pure(stabilizer: Stabilizer) -> None:
    """``apply`` gives a recipe, the same each time, that survives JSON; it changes neither its argument nor itself."""
    for base in copy.deepcopy(BASES):  # an impure apply must not spoil the next check
        before, itself, generators = (
            copy.deepcopy(base),
            copy.deepcopy(stabilizer),
            _random_states(),
        )
        try:
            first, second = stabilizer.apply(base), stabilizer.apply(base)
        except Incompatible:
            continue
        _require(
            isinstance(first, Recipe), f"apply returns {type(first).__name__}, expected a Recipe"
        )
        _require(
            base == before,
            f"apply changed the recipe it was given ({_changed(before, base)}): use replace()",
        )
        _require(
            first == second,
            f"apply gives another recipe the second time ({_changed(first, second)})",
        )
        _require(
            stabilizer == itself,
            f"apply changed the intervention itself: {stabilizer!r}, was {itself!r}",
        )
        _unchanged(generators, "apply")
        try:
            again = Recipe.from_dict(json.loads(json.dumps(first.to_dict())))
        except TypeError as e:
            raise CheckFailed(
                f"the recipe holds what JSON cannot ({e}): code by name (module:Object), data by value"
            ) from e
        _require(
            again.key == first.key,
            f"the recipe comes back from JSON changed ({_changed(first, again)}): use plain data",
        )
        _require(
            first.updates == base.updates,
            f"apply changes updates from {base.updates} to {first.updates}: every recipe takes the same number of steps",
        )


def training_stays_finite(stabilizer: Stabilizer) -> None:
    """A short training run of the edited recipe ends with finite parameters."""
    try:
        found = _train(stabilizer.apply(copy.deepcopy(TOY)))
    except (Diverged, Incompatible) as e:
        raise CheckFailed(
            f"a short run of the edited recipe on linear regression fails: {e}"
        ) from e
    for name, value in found.items():
        _require(
            bool(value.isfinite().all()),
            f"after {TOY.updates} updates of linear regression {name} is not finite",
        )


def has_an_effect(stabilizer: Stabilizer) -> None:
    """``apply`` changes the recipe, and a short run of it ends elsewhere (a new ``policy`` is taken on trust)."""
    found = stabilizer.apply(copy.deepcopy(TOY))
    _require(
        found != TOY,
        f"{stabilizer.string} had no effect: apply gives an equal recipe, so it would be compared with itself",
    )
    if found.policy == TOY.policy:
        _require(
            not _same(_train(found), _train(TOY)),
            f"{stabilizer.string} had no effect: it changes {_changed(TOY, found)}, but {TOY.updates} updates end at the"
            " same parameters bitwise",
        )


def _intervention_checks(stabilizer: Stabilizer) -> list[Callable[[Any], None]]:
    """Return those that apply: one that declares no ``neutral`` has none; one set to it has no effect."""
    declared = [m for m in stabilizer.interventions if m.neutral or isinstance(m, NoStabilizer)]
    at_rest = all(
        isinstance(m, NoStabilizer)
        or (m.neutral and all(getattr(m, k) == v for k, v in m.neutral.items()))
        for m in stabilizer.interventions
    )
    checks: list[Callable[[Any], None]] = [apply_is_pure, training_stays_finite]
    if len(declared) == len(stabilizer.interventions):
        checks = [neutral_is_the_identity, *checks]
    return checks if at_rest else [*checks, has_an_effect]


def _changed(a: Recipe, b: Recipe) -> str:
    """Return what differs between two recipes, in words."""
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return (
        ", ".join(f"{name} from {old!r} to {new!r}" for name, old, new in pairs if old != new)
        or "nothing"
    )


def _random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        (kind, np.asarray(keys).tolist(), *rest),
        random.getstate(),
    )


def _unchanged(before: tuple[Any, ...], who: str) -> None:
    for name, old, new in zip(("torch", "numpy", "random"), before, _random_states(), strict=True):
        _require(
            old == new,
            f"{who} moved the global random state of {name}: draw from a generator of its own",
        )


# Tasks


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
    """Splits are not empty, the loss is a finite scalar, ``rollout`` gives float64 sums and int64 lengths."""
    data = task.dataset()
    for name, split in (("training", data.train), ("validation", data.validation)):
        _require(len(split) > 0, f"the {name} split is empty")
    policy, stacked = _policies(task)
    loss = task.loss(policy, _first_batch(task))
    _require(
        loss.shape == () and loss.is_floating_point(),
        f"loss has shape {tuple(loss.shape)}, {loss.dtype}: expected a scalar",
    )
    returns, lengths, *more = task.rollout(policy, stacked, STARTS, HORIZONS)
    shape = (3, len(STARTS), len(HORIZONS))
    for name, array, expected, dtype in (
        ("returns", returns, shape, np.float64),
        ("lengths", lengths, shape[:2], np.int64),
    ):
        _require(
            array.shape == expected and array.dtype == dtype,
            f"rollout's {name} have shape {array.shape} and {array.dtype}, expected {expected} and {np.dtype(dtype)}",
        )
    _require(bool(np.isfinite(returns).all()), "rollout's returns are not finite")
    for said in itertools.chain(*(more[0] if more else ())):
        measures = said.get("measures", {})
        _require(
            set(said) <= {"measures", "text"}
            and all(is_number(value) for value in measures.values()),
            f"rollout's remarks hold {said!r:.200}: expected measures, finite numbers by name, and text alone",
        )
    _require(
        bool(((lengths >= 1) & (lengths <= HORIZONS[-1])).all()),
        f"rollout's lengths lie in {lengths.min()} to {lengths.max()}, expected 1 to the last horizon {HORIZONS[-1]}",
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
            _require(
                getattr(again, name) == getattr(first, name),
                f"{name} of {who} of dataset() differs",
            )
        for name in ("train", "validation"):
            one, other = getattr(first, name), getattr(again, name)
            _require(
                len(one) == len(other),
                f"{name} of {who} of dataset() has {len(other)} transitions, not {len(one)}",
            )
            everything = np.arange(min(len(one), 4096))
            same = torch.equal(
                task.loss(policy, one.batch(everything)), task.loss(policy, other.batch(everything))
            )
            _require(
                same,
                f"{name} of {who} of dataset() holds other transitions: seed what draws or orders them",
            )


def same_seed_same_returns(task: Task) -> None:
    """The same starts give bitwise the same returns again, and the parameters are left alone."""
    policy, stacked = _policies(task)
    before = clone(stacked)
    found, again = (
        [np.asarray(part) for part in task.rollout(policy, stacked, STARTS, HORIZONS)]
        for _ in range(2)
    )
    for name, one, other in zip(PARTS, found, again, strict=False):
        _require(
            np.array_equal(one, other),
            f"two rollouts from the same starts differ in {name}: seed every reset",
        )
    _require(_same(stacked, before), "rollout changed the stacked parameters")


def policies_together_equal_each_alone(task: Task) -> None:
    """A policy's returns do not depend, bitwise, on the other policies in the call."""
    policy, stacked = _policies(task)
    together: Sequence[Any] = task.rollout(policy, stacked, STARTS, HORIZONS)
    for i in range(3):
        own = {name: value[i : i + 1] for name, value in stacked.items()}
        alone: Sequence[Any] = task.rollout(policy, own, STARTS, HORIZONS)
        for name, many, one in zip(PARTS, together, alone, strict=False):
            _require(
                np.array_equal(many[i], one[0]),
                f"{name} of policy {i} of 3 differ from the same policy's alone: policies share something (a generator,"
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
            _require(
                bool(loss.isfinite()),
                f"the loss is {loss.item()} after {len(losses) - 1} steps on one batch",
            )
            _require(
                loss.requires_grad,
                "the loss does not depend on the policy's parameters: it has no gradient",
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    _require(
        losses[-1] < losses[0],
        f"thirty steps on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g}: expected it to fall"
        " (its sign? fresh noise in it?)",
    )


BOTH: list[Callable[[Any], None]] = [is_a_frozen_dataclass, has_a_card, copies_and_pickles]
CONVEX: list[Callable[[Any], None]] = [stays_in_the_hull, commutes_with_affine_maps]
AVERAGE: list[Callable[[Any], None]] = [
    reads_from_the_start,
    update_leaves_parameters,
    read_never_aliases,
    constant_iterates_give_that_constant,
    *CONVEX,
    leading_axis_is_separate_runs,
    leaves_the_random_state,
    state_resumes_bit_for_bit,
    one_object_serves_many_runs,
    counts_optimizer_steps,
    leaves_the_raw_trajectory,
]
TASK: list[Callable[[Any], None]] = [
    shapes_and_dtypes,
    dataset_is_the_same_on_each_call,
    same_seed_same_returns,
    policies_together_equal_each_alone,
    loss_falls_on_one_batch,
]


# The toy task: imitate a linear controller. Its closed loop is a linear system.

TOY = Recipe(batch_size=8, updates=6, optimizer_args={"betas": [0.9, 0.99]})
BASES = (
    TOY,
    Recipe(),
    Recipe(
        optimizer="SGD", lr=0.1, schedule="cosine", weight_decay=0.01, dropout=0.2, accumulation=2
    ),
)


@dataclass(frozen=True)
class Rows:
    """Observations (n, 3) and actions (n, 2)."""

    observations: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return len(self.observations)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.observations[chosen], self.actions[chosen]


class ToyPolicy(nn.Module):
    """Two linear layers with dropout between; ``seen`` is a running mean of the observations (it changes in training)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, observations: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(observations.mean(0).detach(), 0.1)
        out: Tensor = self.layers(observations)
        return out


@dataclass(frozen=True)
class Toy(Task):
    """Linear regression of actions on observations, 64 training rows; the closed loop is x' = 0.9 x + 0.1 (u, 0)."""

    def dataset(self, progress: Progress = no_progress) -> Demonstrations:
        def rows(seed: int, n: int) -> Rows:
            rng = np.random.default_rng(seed)
            x = torch.from_numpy(rng.standard_normal((n, 3))).float()
            return Rows(
                x, x[:, :2] * -0.5 + 0.1 * torch.from_numpy(rng.standard_normal((n, 2))).float()
            )

        low, high = (Curve([value] * 20, 0.0, 1, 0, 20.0) for value in (-20.0, 0.0))
        return Demonstrations(
            rows(0, 64), rows(1, 16), References(low, high), "toy", "0", None, "toy"
        )

    def ready(self) -> bool:
        return True

    def policy(self, recipe: Recipe) -> nn.Module:
        return ToyPolicy(recipe.dropout)

    def loss(self, policy: nn.Module, batch: Any) -> Tensor:
        observations, actions = batch
        return nn.functional.mse_loss(policy(observations), actions)

    def rollout(
        self,
        policy: nn.Module,
        stacked: dict[str, Tensor],
        starts: Sequence[int],
        horizons: Sequence[int],
        progress: Progress = no_progress,
    ) -> tuple[np.ndarray, np.ndarray]:
        number = len(next(iter(stacked.values())))
        rewards = np.zeros((number, len(starts), horizons[-1]))
        actor = copy.deepcopy(policy).eval()
        for p in range(number):
            # Storage of its own: a product's last bits depend on its operands' alignment.
            actor.load_state_dict({name: value[p].clone() for name, value in stacked.items()})
            for n, seed in enumerate(starts):
                x = torch.from_numpy(np.random.default_rng(seed).standard_normal(3)).float()
                for h in range(horizons[-1]):
                    with torch.no_grad():
                        x = 0.9 * x + 0.1 * nn.functional.pad(actor(x[None])[0], (0, 1))
                    rewards[p, n, h] = -float(x.square().sum())
        returns = rewards.cumsum(-1)[..., np.array(horizons) - 1]
        return returns, np.full((number, len(starts)), horizons[-1], dtype=np.int64)


def _train(recipe: Recipe) -> Params:
    """Return where a run on the toy task ends."""
    *_, last = train(Toy("toy"), recipe, 0, {}, [recipe.updates])
    return last.raw


@cache
def _plain_run(total: int, dropout: float) -> list[Params]:
    """Return the raw iterates of a run on the toy task with nothing attached."""
    recipe = replace(TOY, updates=total, dropout=dropout)
    return [point.raw for point in train(Toy("toy"), recipe, 0, {}, _thirds(total))]
