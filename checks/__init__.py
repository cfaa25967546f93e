"""Conformance kit: small named checks that every stabilizer and task must pass, plug-ins too.

``yield_checks`` gives them, ``stab check NAME...`` and ``parametrize_with_checks`` (pytest) run
them. Nothing here needs
data or a network: averages see synthetic iterates, interventions train a toy task, tasks are rolled
out for a few steps.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stab.checks import averages, methods
from stab.checks import tasks as task_checks
from stab.checks.base import Check, CheckFailed, alone
from stab.checks.interventions import intervention_checks
from stab.checks.toy import Toy
from stab.recipe import load_object
from stab.registry import StabError, reason, suggest
from stab.stabilizers import Average, Intervention, Stabilizer, parse, stabilizers
from stab.stabilizers.none import NoStabilizer
from stab.tasks import Task, tasks

if TYPE_CHECKING:
    import pytest

__all__ = ["Check", "CheckFailed", "Toy", "parametrize_with_checks", "yield_checks"]


def yield_checks(obj: object) -> Iterator[Check]:
    """Yield the checks of a stabilizer or task, in order. None depends on another.

    Args:
        obj: a registered name (``ema``, ``hopper``), a stabilizer string
            (``lr_decay+ema:half_life=500``), a Minari dataset id, ``module:Object``, or such an
            object itself: an Average, Intervention or Task, its class, or a factory of tasks.
            Classes are made without arguments (tasks and factories with ``name``).

    Raises StabError when there is no such object or it cannot be made.

    >>> [check.name for check in yield_checks("none")][0]
    'is_a_frozen_dataclass'
    """
    label, made = _resolve(obj)
    parts: list[tuple[Callable[[Any], None], Any]] = []
    if isinstance(made, Stabilizer):
        if not made.methods:
            made = alone(label, NoStabilizer())  # a parsed string leaves it out
        parts += [(check, made) for check in methods.CHECKS]
        if made.interventions:
            parts += [(check, made) for check in intervention_checks(made)]
        if made.average is not None:
            parts += [
                (check, made.average)
                for check in averages.CHECKS
                if made.average.convex or check not in averages.CONVEX
            ]
    else:
        parts += [(check, made) for check in task_checks.CHECKS]
    for check, target in parts:
        doc = (inspect.getdoc(check) or "").splitlines()[0]
        yield Check(label, check.__name__.lstrip("_"), doc, partial(check, target))


def parametrize_with_checks(
    objects: Iterable[object], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Decorate a pytest function of one argument ``check``: one test per (object, check).

    Args:
        objects: each as for ``yield_checks``.
        expected_failures: check name, or test id, -> the reason why it fails. Strict: one that
        passes is an error.

    Raises StabError when a reason is empty or its check does not exist.

    >>> @parametrize_with_checks(["ema"])                       # doctest: +SKIP
    ... def test_conforms(check):
    ...     check.run()
    """
    import pytest

    excused = dict(expected_failures or {})
    checks = [check for obj in objects for check in yield_checks(obj)]
    known = {check.name for check in checks} | {check.id for check in checks}
    for name, excuse in excused.items():
        if name not in known:
            raise StabError(f"expected_failures: no check {name!r}.{suggest(name, known)}")
        if not excuse.strip():
            raise StabError(f"expected_failures: {name!r} needs a reason")
    parameters = []
    for check in checks:
        why = excused.get(check.id, excused.get(check.name))
        marks = [pytest.mark.xfail(reason=why, raises=CheckFailed, strict=True)] if why else []
        parameters.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _resolve(obj: object) -> tuple[str, Stabilizer | Task]:
    """Return the object's name for messages, and the object. Raises StabError if it is unknown."""
    if isinstance(obj, str):
        return _named(obj)
    if isinstance(obj, Average | Intervention):
        return repr(obj), alone(repr(obj), obj)
    if isinstance(obj, Stabilizer):
        return obj.string, obj
    if isinstance(obj, Task):
        return obj.name, obj
    label = getattr(obj, "__name__", type(obj).__name__)
    return label, _make(obj, label)


def _named(text: str) -> tuple[str, Stabilizer | Task]:
    if re.fullmatch(r"[\w.]+:[A-Za-z_]\w*", text):
        obj = load_object(text)
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
            f"Unknown stabilizer or task {text!r}.{suggest(text, known)} Known: {', '.join(known)};"
            " or module:Object"
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
        raise StabError(f"{label} cannot be made without arguments: {reason(e)}") from e
    if isinstance(made, Average | Intervention):
        return alone(label, made)
    if isinstance(made, Task):
        try:
            _ = made.demonstrations_id
        except StabError as e:
            raise StabError(
                f"task {label!r} has no dataset of its own: name the dataset instead, see:"
                " stab data list"
            ) from e
        return made
    raise StabError(
        f"{label} makes {made!r}, which is neither an Average, an Intervention nor a Task"
    )
