"""Arithmetic of averages: a mean of iterates that no length of training wears out."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stab.registry import StabError

if TYPE_CHECKING:
    from torch import Tensor

    Params = dict[str, Tensor]
    Lerp = Callable[[list[Tensor], list[Tensor], float], None]

# Rates below which float32 is not enough. An average that moves by ``rate`` of its distance to the
# iterate stands still when that is under half an ulp: it is then off by up to 2^-24 / rate of its
# size, which is 6e-5 for the first of these and 4e-6 for the second.
LONG = 2.0**-10
BLOCK = 2.0**-6


def clone(params: Params) -> Params:
    """Return detached copies."""
    return {name: value.detach().clone() for name, value in params.items()}


@dataclass
class MeanState:
    """An average of iterates, from ``start`` on; while ``count`` is 0, the latest iterate.

    ::

        average = older + weight (mean - older)

    ``older`` is None, and ``weight`` 1, as long as rates are at least 2^-10. From then on ``mean``
    (float32) takes in about 64 iterates at a time, and is folded into ``older`` (float64). So a
    long average costs two more copies of the parameters (8 bytes instead of 4 each) and, every 64
    updates, one more pass over them. Parameters in float64 need neither.

    Raises StabError for tensors that are not float32, float64, complex64 or complex128.
    """

    mean: Params
    start: int
    count: int = 0
    weight: float = 1.0
    older: Params | None = None

    def __post_init__(self) -> None:
        import torch

        for name, value in self.mean.items():
            if value.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
                raise StabError(
                    f"{name!r} is {short(value.dtype)}: averages take float32 at least"
                    " (stab.attach converts)"
                )

    def restart(self, params: Params) -> None:
        """Become the iterate ``params``, bitwise."""
        import torch

        with torch.no_grad():
            torch._foreach_copy_(list(self.mean.values()), self._matched(params))
        self.weight, self.older = 1.0, None

    def take(self, params: Params, rate: float, lerp: Lerp | None = None) -> None:
        """Take in an iterate: ``average <- average + rate (params - average)``, 0 < rate <= 1.

        ``lerp(mean, params, rate)`` does that in place as long as the average is not a long one;
        by default ``torch._foreach_lerp_`` does.
        """
        import torch

        if rate == 1:
            self.restart(params)
            return
        weight, own = self._weights(rate)
        if own < (LONG if self.older is None else BLOCK) and self._coarse:
            self._fold()
            weight, own = rate, 1.0
        mean, matched = list(self.mean.values()), self._matched(params)
        with torch.no_grad():
            if own == 1:
                torch._foreach_copy_(mean, matched)
            elif lerp is not None and self.older is None:
                lerp(mean, matched, own)
            else:
                torch._foreach_lerp_(mean, matched, own)
        self.weight = weight

    def mend(self, params: Params) -> list[str]:
        """Restart numbers that are not finite with those of an iterate; return their tensors."""
        mended = []
        for name, value in self.mean.items():
            kept = [value] if self.older is None else [value, self.older[name]]
            if not finite(kept):
                mended.append(name)
                for one in kept:
                    bad = ~one.isfinite()
                    one[bad] = params[name].to(one.dtype)[bad]
        return mended

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the average as new tensors, one by one."""
        for name, value in self.mean.items():
            if self.older is None:
                yield name, value.detach().clone()
            else:
                old = self.older[name]
                yield name, old.lerp(value.to(old.dtype), self.weight).to(value.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": dict(self.mean),
            "start": self.start,
            "count": self.count,
            "weight": self.weight,
            "older": None if self.older is None else dict(self.older),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of state_dict. Raises StabError if names, shapes or dtypes are not these."""
        mean = self._fitting(state["mean"])
        older = state.get("older")
        if older is not None:
            doubled = {name: _doubled(value) for name, value in mean.items()}
            older = MeanState(doubled, 0)._fitting(older)
        self.older = older
        self.mean, self.count = mean, state["count"]
        self.start, self.weight = state.get("start", self.start), state.get("weight", 1.0)

    def _weights(self, rate: float) -> tuple[float, float]:
        """Return the weight of ``mean`` after an update, and the update's share of it."""
        if self.older is None:
            return 1.0, rate
        weight = (1 - rate) * self.weight + rate
        return weight, rate / weight

    @property
    def _coarse(self) -> bool:
        import torch

        return any(v.dtype in (torch.float32, torch.complex64) for v in self.mean.values())

    def _fold(self) -> None:
        import torch

        with torch.no_grad():
            if self.older is None:
                self.older = {name: _doubled(value).clone() for name, value in self.mean.items()}
            else:
                for name, value in self.mean.items():
                    self.older[name].lerp_(_doubled(value), self.weight)
        self.weight = 0.0

    def _matched(self, params: Params) -> list[Tensor]:
        """Return the tensors of ``params`` in the order of ``mean``; by name."""
        if params.keys() != self.mean.keys():
            raise StabError(
                f"the average is of {_listed(self.mean.keys())}; it was shown"
                f" {_listed(params.keys())}"
            )
        return [params[name] for name in self.mean]

    def _fitting(self, saved: Params) -> Params:
        """Return copies of the tensors of a saved mean, in the order of this one."""
        if saved.keys() != self.mean.keys():
            raise StabError(
                f"the state is of {_listed(saved.keys())}; the average is of"
                f" {_listed(self.mean.keys())}"
            )
        for name, value in self.mean.items():
            there = saved[name]
            if (there.shape, there.dtype) != (value.shape, value.dtype):
                raise StabError(f"{name!r} is {form(there)} in the state, {form(value)} here")
        return {name: saved[name].detach().clone() for name in self.mean}


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor holds an infinity or NaN; of those on a device, with one look at it."""
    import torch

    # The sum of finite numbers is finite, unless it overflows: then look at each.
    if all(tensor.is_cpu for tensor in tensors):
        total = sum([tensor.sum().item() for tensor in tensors])
    else:
        sums = [tensor.sum().to(tensors[0].device) for tensor in tensors]
        total = torch.stack(sums).sum().item()
    return cmath.isfinite(total) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def form(tensor: Tensor) -> str:
    """Return dtype and shape in words: ``float32 [3, 4]``."""
    return f"{short(tensor.dtype)} {list(tensor.shape)}"


def short(dtype: object) -> str:
    """Return a dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def _listed(names: Any) -> str:
    """Return the first names of several, for a message."""
    few = ", ".join(list(names)[:4])
    return f"{few}, ... ({len(names)} tensors)" if len(names) > 4 else few or "nothing"


def _doubled(value: Tensor) -> Tensor:
    import torch

    return value.to(torch.complex128 if value.is_complex() else torch.float64)
