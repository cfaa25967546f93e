"""What averages look at: the trainable tensors of a module, by name, in float32 at least."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from stab.registry import StabError
from stab.stabilizers.means import finite, form, short

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stab.stabilizers.base import Params

# What torch.compile and torch.distributed call the module that they wrap.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass
class Slot:
    """A parameter or buffer of a module.

    Attributes:
        tensor: itself.
        names: of it in the module without wrappers; tied ones have several.
        paths: the same in the module as it is (``_orig_mod.weight``), as its ``state_dict`` has it.
        holders: the dictionaries that hold it, with its key in each.
    """

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    holders: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first name in alphabetical order, whatever the order of registration."""
        return min(self.names)

    @property
    def local(self) -> Tensor:
        """This process's part, detached: all of it, but for sharded tensors."""
        return _part(self.tensor.detach())


class Live:
    """The tensors of a module that averages look at.

    They are the parameters that are trainable now (all of them with ``frozen``), and with
    ``buffers`` the persistent ones; of both the floating-point and complex ones. Of sharded tensors
    (FSDP2) each process looks at its part. Tied parameters are one tensor.

    Raises StabError if there are none, or one has no value to average.
    """

    def __init__(self, module: nn.Module, buffers: bool = False, frozen: bool = False) -> None:
        self.module, self.buffers, self.frozen = module, buffers, frozen
        slots = self.slots()
        self.names = [name for name, slot in slots.items() if self._wanted(slot.tensor)]
        self._left = slots.keys() - set(self.names)
        if not self.names:
            raise StabError(
                "the module has no trainable parameters to average: attach before freezing, or with"
                " frozen=True"
            )
        for name in self.names:
            _check(name, slots[name].tensor)
        local = [slots[name].local for name in self.names]
        self._forms = [(tensor.shape, _wide(tensor.dtype)) for tensor in local]
        self.devices = [tensor.device for tensor in local]
        self._kinds: list[Any] = []  # shape, dtype and device of each at the last look
        self._cast = True
        self._known = _Known(module, slots, self.names, buffers)

    def slots(self) -> dict[str, Slot]:
        """Return every parameter, and persistent buffer if wanted, by name; tied ones once."""
        by_id: dict[int, Slot] = {}
        for parent, name, path in _modules(self.module):
            for key, holder in _tensors(parent, self.buffers):
                slot = by_id.setdefault(id(holder[key]), Slot(holder[key]))
                slot.names.append(name + key)
                slot.paths.append(path + key)
                slot.holders.append((holder, key))
        slots = {slot.name: slot for slot in by_id.values()}
        if len(slots) < len(by_id):
            raise StabError("two parameters of the module have one name without its wrappers")
        return slots

    def chosen(self) -> dict[str, Slot]:
        """Return the slots that averages look at, in the order of the beginning.

        Raises StabError if the module is not what it was then.
        """
        slots = self.slots()
        gone = [name for name in self.names if name not in slots]
        known = self._left.union(self.names)
        new = [
            name
            for name, slot in slots.items()
            if (name not in known and (self.frozen or slot.tensor.requires_grad))
            or (name in self._left and _trainable(slot.tensor))
        ]
        if gone or new:
            what = f"{gone[0]!r} is gone" if gone else f"{new[0]!r} is new, or trainable now"
            raise StabError(
                f"the module has changed since averaging began: {what}. Attach again after the last"
                " change (frozen=True also averages what is frozen at first)"
            )
        return {name: slots[name] for name in self.names}

    def look(self) -> Params:
        """Return the present tensors, in float32 at least: not copies where that is their dtype.

        Raises StabError if the module is not what it was at the beginning.
        """
        if not self._known.unchanged():
            self.chosen()
            self._known = _Known(self.module, self.slots(), self.names, self.buffers)
        if self._known.sharded:
            found = [slot.local for slot in self._known.slots]
        else:
            found = [slot.tensor.detach() for slot in self._known.slots]
        kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in found]
        if kinds != self._kinds:
            self._compare(found)
            self._kinds, self.devices = kinds, [tensor.device for tensor in found]
            self._cast = any(
                t.dtype != wide for t, (_, wide) in zip(found, self._forms, strict=True)
            )
        if self._cast:
            found = [t.to(wide) for t, (_, wide) in zip(found, self._forms, strict=True)]
        return dict(zip(self.names, found, strict=True))

    def _compare(self, found: list[Tensor]) -> None:
        """Raise StabError if tensors have another shape than at the beginning, or a wider dtype."""
        for name, tensor, (shape, wide) in zip(self.names, found, self._forms, strict=True):
            if (tensor.shape, _wide(tensor.dtype)) != (shape, wide):
                raise StabError(
                    f"{name!r} is {form(tensor)} now, its average is {short(wide)} {list(shape)}:"
                    " attach again"
                )

    def spoiled(self, params: Params, sample: bool = False) -> bool:
        """Whether there is an infinity or NaN, on any process if tensors are sharded.

        With ``sample``, look at one number in 64 of each tensor: a loss that is NaN spoils all.
        """
        tensors = list(params.values())
        if sample:
            tensors = [value if value.dim() == 0 else value[::64] for value in tensors]
        spoiled = not finite(tensors)
        if self._known.sharded:
            some = torch.tensor(float(spoiled), device=self.devices[0])
            torch.distributed.all_reduce(some)
            spoiled = bool(some)
        return spoiled

    def which(self) -> str:
        """Return which tensors are not finite, for a message."""
        names = [name for name, slot in self.chosen().items() if not _finite(slot.tensor)]
        return ", ".join(map(repr, names[:3])) or "a parameter on another process"

    def fitted(self, read: Params, paths: bool = False) -> Params:
        """Return a read-out as the module would hold it.

        In its dtypes, tied tensors under each of their names; sharded ones whole again. Keys are
        names, or with ``paths`` the keys of the module's ``state_dict``. ``kind/name`` goes as
        ``name`` does; other keys stay.
        """
        slots, fitted = self.slots(), {}
        for key, value in read.items():
            kind, slash, name = ("", "", key) if key in slots else key.rpartition("/")
            slot = slots.get(name)
            if slot is None:
                fitted[key] = value
                continue
            whole = _whole(slot.tensor, value if slash else value.to(slot.tensor.dtype))
            for n, own in enumerate(slot.paths if paths else slot.names):
                fitted[f"{kind}{slash}{own}"] = whole.clone() if n else whole
        return fitted

    def export(self, state: Any) -> Any:
        """Return an average's state for a checkpoint: local parts become sharded tensors."""
        slots = self.slots()
        return _mapped(
            state, lambda name, value: _whole(slots[name].tensor, value) if name in slots else value
        )

    def local(self, state: Any) -> Any:
        """Inverse of ``export``; tensors are put on the device of the parameter of their name."""
        devices = dict(zip(self.names, self.devices, strict=True))

        def place(name: str, value: Tensor) -> Tensor:
            return _part(value).to(devices.get(name, self.devices[0]))

        return _mapped(state, place)

    def size(self) -> int:
        """Return how many numbers this process looks at."""
        return sum(shape.numel() for shape, _ in self._forms)

    def forms(self) -> dict[str, str]:
        """Return dtype and shape of each tensor, in words."""
        return {name: form(slot.tensor) for name, slot in self.chosen().items()}

    def _wanted(self, tensor: Tensor) -> bool:
        """Whether to average it. What cannot move and is not finite (ALiBi) is a constant."""
        if _trainable(tensor):
            return True
        asked = self.frozen if isinstance(tensor, torch.nn.Parameter) else self.buffers
        return asked and _averages(tensor) and _finite(tensor)


def plain() -> AbstractContextManager[None]:
    """Within the block tensors are made as usual, whatever inference mode the caller is in."""
    return _plain() if torch.is_inference_mode_enabled() else torch.no_grad()


@contextmanager
def _plain() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


class _Known:
    """A module's structure at one time; comparing it is much faster than walking through it."""

    def __init__(
        self, module: nn.Module, slots: Mapping[str, Slot], names: list[str], buffers: bool
    ) -> None:
        parents = [parent for parent, _, _ in _modules(module)]
        self._holders: list[dict[str, Any]] = []
        for parent in parents:
            self._holders += [parent._modules, parent._parameters]
            self._holders += [parent._buffers] if buffers else []
        self._fsdp: list[Any] = [parent for parent in parents if _is_fsdp(parent)]
        self._left = [slot.tensor for name, slot in slots.items() if name not in names]
        self.slots = [slots[name] for name in names]
        self.sharded = any(_sharded(slot.tensor) for slot in self.slots)
        self._before = [one for holder in self._holders for one in holder.values()]
        self._ids = list(map(id, self._before))  # unique as long as ``_before`` keeps them

    def unchanged(self) -> bool:
        """Whether the module consists of the same objects, and the same are trainable."""
        for parent in self._fsdp:
            parent.reshard()
        ids = [id(one) for holder in self._holders for one in holder.values()]
        return ids == self._ids and not any(tensor.requires_grad for tensor in self._left)


def write(tensor: Tensor, value: Tensor) -> None:
    """Copy into a tensor, even if it was made in inference mode."""
    with torch.inference_mode():
        tensor.copy_(value)


def _modules(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield every module with the beginning of its tensors' names, and of their paths."""
    stack = [(module, "", "")]
    while stack:
        parent, name, path = stack.pop()
        if _is_fsdp(parent):
            parent.reshard()  # type: ignore[operator]  # it may hold whole copies after a forward pass
        yield parent, name, path
        for key, child in reversed(parent._modules.items()):
            if child is not None:
                inner = name if _is_wrapper(parent, key) else f"{name}{key}."
                stack.append((child, inner, f"{path}{key}."))


def _tensors(module: nn.Module, buffers: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield keys of a module's own parameters and persistent buffers, and what holds them."""
    yield from ((key, module._parameters) for key, p in module._parameters.items() if p is not None)
    if buffers:
        lost = module._non_persistent_buffers_set  # no part of a read-out
        named = module._buffers.items()
        yield from ((key, module._buffers) for key, b in named if b is not None and key not in lost)


def _is_wrapper(module: nn.Module, key: str) -> bool:
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return key in WRAPPED or (key == "module" and isinstance(module, parallel))


def _is_fsdp(module: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # before that, nothing is sharded
    if fsdp is None:
        return False
    if isinstance(module, fsdp.FullyShardedDataParallel):
        raise StabError(
            "averages do not follow FullyShardedDataParallel: use torch.distributed.fsdp."
            "fully_shard (FSDP2)"
        )
    return isinstance(module, getattr(fsdp, "FSDPModule", ()))


def _check(name: str, tensor: Tensor) -> None:
    """Raise StabError if a tensor has no value to average."""
    if is_lazy(tensor):
        raise StabError(f"{name!r} has no shape yet: attach after the first forward pass")
    if tensor.is_meta:
        raise StabError(f"{name!r} is on the meta device: attach when the module has its weights")
    if tensor.layout != torch.strided:
        raise StabError(f"{name!r} is sparse: averages take dense tensors")
    if not _finite(tensor):
        raise StabError(
            f"{name!r} holds an infinity or NaN, whose average is not defined: freeze it"
            " (requires_grad_(False)) if it is a constant"
        )


def _trainable(tensor: Tensor) -> bool:
    return tensor.requires_grad and _averages(tensor)


def _averages(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def _part(tensor: Any) -> Tensor:
    """Return this process's part of a sharded tensor; others whole."""
    part: Tensor = tensor.to_local() if _sharded(tensor) else tensor
    return part


def _whole(live: Any, part: Tensor) -> Tensor:
    """Inverse of ``_part``, for a tensor like ``live``."""
    if not _sharded(live) or part.shape != live.to_local().shape:
        return part
    whole: Tensor = type(live.detach()).from_local(
        part, live.device_mesh, live.placements, shape=live.shape, stride=live.stride()
    )
    return whole


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that averages are kept in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _finite(tensor: Tensor) -> bool:
    local = _part(tensor)
    return finite([local.detach().to(_wide(local.dtype))])


def _mapped(tree: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """Return plain data with its tensors changed; ``name`` is the key of the innermost dict."""
    if isinstance(tree, torch.Tensor):
        return change(name, tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change, str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, change, name) for value in tree)
    return tree
