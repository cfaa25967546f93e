"""Averages that follow a module: updates, read-outs, swapping, state."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stab.registry import StabError, reason
from stab.stabilizers.base import Average, MeanState
from stab.stabilizers.ema import SMALL
from stab.stabilizers.strings import parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from stab.stabilizers.base import Params
    from stab.stabilizers.live import Slot


class Attached:
    """Averages that follow a module; made by :func:`stab.attach`.

    Attributes:
        module: the module.
        averages: the averages, by their canonical strings.
        total: optimizer steps that training will take, or None.
        step: optimizer steps so far.
        skipped: how many of them were not averaged because a weight was not finite.
        unreturned: raw weights that the last ``swapped()`` could not give back, by name.
    """

    def __init__(
        self,
        module: nn.Module,
        averages: Mapping[str, Average],
        total: int | None,
        optimizer: torch.optim.Optimizer | None = None,
        frozen: bool = False,
    ) -> None:
        from stab.stabilizers.live import Live

        self.module, self.averages, self.total = module, dict(averages), total
        self.step = self.skipped = 0
        self.unreturned: Params = {}
        buffers = any(average.averages_buffers for average in self.averages.values())
        self._live = Live(module, buffers, frozen)
        # What an average looks at that does not declare buffers, beside one that does.
        self._without_buffers = Live(module, False, frozen).names if buffers else None
        self._states = self._begin()
        self._large = self._live.size() > SMALL and all(
            isinstance(state, MeanState) for state in self._states.values()
        )
        self._open = all(map(_without_total, self.averages.values()))
        self._raw: dict[str, tuple[Slot, Tensor]] | None = None  # within swapped()
        self._optimizer = optimizer
        self._hook()

    def update(self) -> None:
        """Take in the module's present parameters. Call once after each ``optimizer.step()``.

        If one of them is not finite, the averages stay as they are: ``skipped`` counts it, and the
        first time warns.

        Raises StabError when called more than ``total`` times and a setting is a fraction of it,
        within ``swapped()``, if the optimizer calls it, and if the module has changed.
        """
        if self._optimizer is not None:
            raise StabError("update() is called by the optimizer's step: leave it out")
        self._update()

    def read(self, name: str | None = None) -> Params:
        """Return the module's parameters with the average in place of theirs, as new tensors.

        Args:
            name: the average's string, if several are attached.
        """
        from torch.nn import Parameter

        from stab.stabilizers.live import plain

        with plain():
            if self._raw is None:
                self._mend()
            average = dict(self._read(self._known(name)))
            left = {
                name: slot.tensor.detach().clone()
                for name, slot in self._live.slots().items()
                if name not in average and isinstance(slot.tensor, Parameter)
            }
            return self._live.fitted(average | left)

    @contextmanager
    def swapped(self, name: str | None = None) -> Iterator[nn.Module]:
        """Put an average into the module within the block; afterwards the raw weights return.

        They return bitwise, whatever happened to the parameters within the block. It takes memory
        for one copy of the parameters. ``module.state_dict()`` is the average's within the block;
        ``update``, ``state_dict`` and ``load_state_dict`` of this object are refused there.

        Args:
            name: the average's string, if several are attached.

        Raises StabError at the end of the block if weights cannot be given back, because their
        parameter is gone or has another shape or dtype. They are then in ``unreturned``, by name.
        """
        from stab.stabilizers.live import plain, write

        name = self._known(name)
        self._outside("swapped()")
        raw: dict[str, tuple[Slot, Tensor]] = {}
        self._raw = raw
        try:
            with plain():
                self._mend()
                slots = self._live.chosen()
                for key, value in self._read(name):
                    raw[key] = slots[key], slots[key].local.clone()
                    write(slots[key].local, value)
            yield self.module
        finally:
            self._raw = None
            with plain():
                self._give_back(raw)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after an interruption, but for the module's own state.

        Tensors are those that the averages go on with, as in ``torch.nn.Module.state_dict``.
        """
        from stab.stabilizers.live import plain

        self._outside("state_dict()")
        with plain():
            self._mend()
        return {
            "step": self.step,
            "total": self.total,
            "skipped": self.skipped,
            "parameters": self._live.forms(),
            "settings": {name: _settings(average) for name, average in self.averages.items()},
            "averages": {
                name: self._live.export(state.state_dict()) for name, state in self._states.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of state_dict; tensors go to the devices of the module's parameters.

        Another ``total`` extends training: settings that are fractions stay what they were, and a
        warning says so.

        Raises StabError, and changes nothing, if the state is of other averages, settings, names,
        shapes or dtypes.
        """
        from stab.stabilizers.live import plain

        self._outside("load_state_dict()")
        if not _is_state(state):
            raise StabError("this is not a state of stab.attach: expected what state_dict() gave")
        self._compare(state)
        with plain():
            states = self._begin()
            for name, new in states.items():
                try:
                    new.load_state_dict(self._live.local(state["averages"][name]))
                except (KeyError, TypeError, AttributeError) as e:
                    raise StabError(f"the state of {name!r} cannot be read: {reason(e)}") from e
        self._states = states
        self.step, self.skipped = state["step"], state["skipped"]

    def _begin(self) -> dict[str, Any]:
        """Return the states at update 0."""
        from stab.stabilizers.live import plain

        with plain():
            params = self._live.look()
            states = {}
            for name, average in self.averages.items():
                try:
                    total: Any = self.total  # may be None
                    states[name] = average.init(self._part(name, params), total)
                except StabError as e:
                    raise StabError(f"{name}: {e}") from e
                except Exception as e:  # a plug-in may raise anything
                    remedy = "; give total=, the number of optimizer steps"
                    hint = remedy if self.total is None else ""
                    raise StabError(f"{name} could not begin: {reason(e)}{hint}") from e
            return states

    def _update(self) -> None:
        from stab.stabilizers.live import plain

        self._outside("update()")
        if self.step == self.total and not self._open:
            raise StabError(
                f"update() was called more than total={self.total} times, and settings are"
                " fractions of it: attach with the right total, or give them in updates"
            )
        with plain():
            before = self._live.devices
            params = self._live.look()
            if self._live.devices != before:
                for state in self._states.values():
                    state.load_state_dict(self._live.local(state.state_dict()))
            self.step += 1
            if self._live.spoiled(params, sample=self._large):
                self._report(
                    f"{self._live.which()} is not finite after update {self.step}: averages"
                )
                return
            for name, average in self.averages.items():
                average.update(self._states[name], self._part(name, params), self.step)
            if self._large and self.step % 64 == 0:
                self._mend()

    def _mend(self) -> None:
        """Look for what a sample of each update may have missed, in averages of large modules."""
        if not self._large:
            return
        params = self._live.look()
        for name, state in self._states.items():
            if mended := state.mend(self._part(name, params)):
                self._report(
                    f"{', '.join(map(repr, mended[:3]))} was not finite before update {self.step}:"
                    " such numbers begin again, averages"
                )

    def _report(self, what: str) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"{what} leave such updates out, and count them in .skipped", stacklevel=4
            )

    def _part(self, name: str, params: Params) -> Params:
        """Return what one average looks at: buffers only if it declares that."""
        if self._without_buffers is None or self.averages[name].averages_buffers:
            return params
        return {key: params[key] for key in self._without_buffers}

    def _read(self, name: str) -> Iterator[tuple[str, Tensor]]:
        return self.averages[name].items(self._states[name])

    def _give_back(self, raw: dict[str, tuple[Slot, Tensor]]) -> None:
        from stab.stabilizers.live import write

        slots = self._live.slots()
        self.unreturned = {}
        for name, (before, value) in raw.items():
            slot = slots.get(name)
            if slot is not None and slot.tensor is not before.tensor:
                for holder, key in slot.holders:
                    holder[key] = before.tensor  # the one that the optimizer knows
                slot = before
            local = None if slot is None else slot.local
            if local is None or (local.shape, local.dtype) != (value.shape, value.dtype):
                self.unreturned[name] = value
                continue
            write(local, value)
        if self.unreturned:
            name, value = next(iter(self.unreturned.items()))
            now = f"{slots[name].local.dtype} now" if name in slots else "gone"
            raise StabError(
                f"the raw weights of {', '.join(self.unreturned)} could not be given back at the"
                f" end of swapped(): {name!r} was {value.dtype}, is {now}. They are in .unreturned"
            )

    def _outside(self, what: str) -> None:
        if self._raw is not None:
            raise StabError(
                f"{what} within swapped(): the raw weights are not in the module there; call it"
                " after the block"
            )

    def _known(self, name: str | None) -> str:
        names = list(self.averages)
        if name is None and len(names) == 1:
            return names[0]
        if name is None:
            raise StabError(f"which average? Several are attached: {', '.join(names)}")
        name = name if name in names else parse(name).string
        if name not in names:
            raise StabError(f"{name!r} is not attached; attached: {', '.join(names)}")
        return name

    def _compare(self, state: Mapping[str, Any]) -> None:
        """Raise StabError if a state is of other averages or parameters; warn of another total."""
        saved, own = state["settings"], {name: _settings(a) for name, a in self.averages.items()}
        if saved.keys() != own.keys():
            different = ""
            if len(saved) == len(own) == 1:
                different = _differences(*saved.values(), *own.values())
            raise StabError(
                f"this state is of {', '.join(saved)}; attached: {', '.join(own)}{different}"
            )
        for name, settings in own.items():
            if different := _differences(saved[name], settings):
                raise StabError(f"this state is of another {name}{different}")
        forms = self._live.forms()
        for name in dict.fromkeys([*forms, *state["parameters"]]):
            there, here = state["parameters"].get(name), forms.get(name)
            if there != here:
                raise StabError(
                    f"parameter {name!r} is {there or 'not there'} in the state, and"
                    f" {here or 'not there'} in the module"
                )
        if state["total"] == self.total or self._open:
            return
        if self.total is not None and state["step"] > self.total:
            raise StabError(
                f"this state is of step {state['step']}, beyond total={self.total}: attach with the"
                " right total"
            )
        warnings.warn(
            f"this state began with total={state['total']}, now it is {self.total}: settings that"
            f" are fractions stay fractions of {state['total']}",
            stacklevel=3,
        )

    def _hook(self) -> None:
        if self._optimizer is not None:
            self._optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A gradient scaler calls fused optimizers even if they are to skip, and says so here.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not float(found_inf):
            self._update()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hook()  # optimizers are pickled and copied without their hooks


def _is_state(state: object) -> bool:
    """Whether an object has the form of a state; what its averages hold, they check."""
    kinds = {"step": int, "skipped": int, "parameters": Mapping, "averages": Mapping}
    return (
        isinstance(state, Mapping)
        and "total" in state
        and all(isinstance(state.get(key), kind) for key, kind in kinds.items())
        and isinstance(state.get("settings"), Mapping)
        and all(isinstance(settings, Mapping) for settings in state["settings"].values())
    )


def _without_total(average: Average) -> bool:
    """Whether an average can do without knowing how long training will be."""
    nothing: Any = None
    try:
        average.init({}, nothing)
    except Exception:  # whatever a plug-in does without it
        return False
    return True


def _settings(average: Average) -> dict[str, Any]:
    return {f.name: getattr(average, f.name) for f in dataclasses.fields(average)}


def _differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return the settings that differ, in words; nothing if none does or they are of two kinds."""
    if saved.keys() != own.keys():
        return ""
    differences = [
        f"{key}={saved[key]!r} in the state, {own[key]!r} here"
        for key in own
        if saved[key] != own[key]
    ]
    return f": {'; '.join(differences)}" if differences else ""
