"""What a stabilizer is: an average looks at the iterates, an intervention edits the recipe, a string spells both."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stab.arguments import Declared, parse_arguments
from stab.recipe import Recipe
from stab.registry import Registry, StabError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Params = dict[str, Tensor]

LONGEST = 120  # characters of a slug
LARGEST = 10_000  # stabilizers that one string with alternatives may spell


class State(Protocol):
    """What an average carries through training, counters included."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""


class Average(Declared):
    """Looks at the iterates of a run and never changes them. Subclasses are frozen dataclasses of hyper-parameters.

    ``Params`` is a dict of tensors; leaves may carry leading axes, one entry of them a run of its own.

    Attributes:
        convex: declares that the read-out is a convex combination of the iterates so far, with weights that do not
            depend on their values.
        averages_buffers: declares that floating-point buffers (BatchNorm's running statistics) are averaged like
            parameters. Otherwise every buffer of a read-out is a copy of the live policy's, so BatchNorm's statistics
            are those of the raw iterate; recompute them where that matters (torch.optim.swa_utils.update_bn).
    """

    convex: ClassVar[bool] = False
    averages_buffers: ClassVar[bool] = False

    def init(self, params: Params, total: int) -> Any:
        """Return the state at update 0 of ``total``. Raises StabError when a setting does not fit ``total``."""
        raise NotImplementedError

    def update(self, state: Any, params: Params, step: int) -> None:
        """Take in the iterate after optimizer step ``step`` = 1..total. Never called per micro-batch."""
        raise NotImplementedError

    def read(self, state: Any) -> Params:
        """Return the average as new tensors. Always defined: before the average begins it is the latest iterate."""
        raise NotImplementedError

    def notes(self, total: int) -> list[str]:
        """Return what a reader of the leaderboard should know of these settings at this length of training."""
        return []


class Intervention(Declared):
    """Edits the recipe. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        neutral: arguments for which ``apply`` is the identity.
    """

    neutral: ClassVar[dict[str, Any]] = {}

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the edited recipe; pure. May raise ``stab.registry.Incompatible`` with a reason."""
        raise NotImplementedError


@dataclass
class MeanState:
    """The running mean of ``count`` iterates, or the latest iterate while ``count`` is 0. ``start``: first to count."""

    mean: Params
    start: int
    count: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "start": self.start, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.start, self.count = (
            copy.deepcopy(state["mean"]),
            state["start"],
            state["count"],
        )


class GradientTransform:
    """Edits gradients between the backward pass and the optimizer's step; named by ``Recipe.gradient_transforms``.

    Only subclasses are called, whatever a recipe names: it may have come with a stranger's run folder. One that carries
    something from update to update gives it in ``state_dict`` and takes it back, so that interrupted runs can go on.
    """

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Edit ``.grad`` of the parameters in place. Random numbers of torch's global generator are the update's own."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""


def clone(params: Params) -> Params:
    """Return detached copies."""
    return {name: value.detach().clone() for name, value in params.items()}


def averaged(module: nn.Module, average: Average) -> Params:
    """Return the live tensors that an average looks at: the parameters, and the float buffers where it declares so."""
    # Tied parameters under each of their names, so that a read-out loads into the module whole.
    tensors: Params = {
        name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)
    }
    if average.averages_buffers:
        held = (
            module.state_dict().keys()
        )  # buffers that are not persistent are no part of a read-out
        tensors |= {
            name: b for name, b in module.named_buffers() if b.is_floating_point() and name in held
        }
    return tensors


def is_moment(value: object) -> bool:
    """A moment or length of training: an integer >= 0 (updates) or a fraction in [0, 1)."""
    return (isinstance(value, int) and value >= 0) or (isinstance(value, float) and 0 <= value < 1)


MOMENT = "an integer >= 0 (updates) or a fraction of training in [0, 1)"


def to_updates(value: float, total: int, name: str) -> int:
    """Convert a moment to updates. Raises StabError if it does not lie within training."""
    updates = value if isinstance(value, int) else round(value * total)
    if not 0 <= updates < total:
        raise StabError(
            f"{name}={value} does not fit {total} updates of training: expected fewer than {total}"
        )
    return updates


def memory(average: Average, total: int, steps: Iterable[int]) -> dict[int, np.ndarray]:
    """Return the weight that a convex average gives each iterate 1..t, for every t in ``steps``.

    Measured, not declared: the average is run over one-hot iterates (iterate t is the t-th unit vector, the initial
    parameters are 0), of which a convex read-out *is* the vector of weights.
    """
    import torch

    wanted = set(steps)
    iterate = torch.zeros(total, dtype=torch.float64)
    state = average.init({"w": iterate.clone()}, total)
    weights = {}
    for t in range(1, total + 1):
        iterate[t - 1] = 1
        average.update(state, {"w": iterate}, t)
        iterate[t - 1] = 0
        if t in wanted:
            weights[t] = average.read(state)["w"][:t].numpy()
    return weights


def effective_half_life(weights: np.ndarray) -> int:
    """Return the number of latest iterates that together hold half of the weight (``weights`` as from memory)."""
    import numpy as np

    return int(np.searchsorted(np.cumsum(weights[::-1]), 0.5 - 1e-12)) + 1


stabilizers: Registry[type[Average] | type[Intervention]] = Registry(
    "stabilizer",
    "stab.stabilizers",
    lambda obj: (
        isinstance(obj, type)
        and issubclass(obj, Average | Intervention)
        and "__dataclass_fields__" in vars(obj)
    ),  # its own decorator, not the one it inherits
)


@dataclass(frozen=True)
class Stabilizer:
    """What a stabilizer string stands for: interventions, applied left to right, then at most one average."""

    string: str
    interventions: tuple[Intervention, ...] = ()
    average: Average | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe as edited by the interventions."""
        for intervention in self.interventions:
            recipe = intervention.apply(recipe)
        return recipe

    @property
    def raw(self) -> str:
        """The string without its average."""
        return self.string.rpartition("+")[0] or "none" if self.average else self.string

    @property
    def arguments(self) -> dict[str, Any]:
        """Every hyper-parameter, as ``ema.half_life``, with its value; settings of the recipe aside."""
        methods = [*self.interventions, *([self.average] if self.average else [])]
        return {
            f"{name}.{f.name}": getattr(method, f.name)
            for name, method in zip(
                _names(self.string), methods, strict=False
            )  # of none there is no method
            if name != "recipe"
            for f in dataclasses.fields(method)
        }

    @property
    def slug(self) -> str:
        """The string as a file name: no ``:`` and no ``+``."""
        return slug(self.string)


def method(string: str) -> str:
    """Return a stabilizer string without arguments, and without settings of the recipe.

    >>> method("recipe:lr=0.0003+lr_decay+ema:half_life=300")
    'lr_decay+ema'
    """
    return "+".join(name for name in _names(string) if name != "recipe") or "none"


def slug(string: str) -> str:
    """Return a stabilizer string as a file name: ``lr_decay:final=0.1+ema`` becomes ``lr_decay-final=0.1--ema``.

    A long one is cut and ends in a hash, so that names of files stay within what file systems take (255 bytes).
    """
    name = re.sub(r"^\.|[^A-Za-z0-9_.,=-]", "_", string.replace(":", "-").replace("+", "--"))
    return (
        name
        if len(name) <= LONGEST
        else f"{name[: LONGEST - 9]}-{hashlib.sha256(string.encode()).hexdigest()[:8]}"
    )


def split(text: str) -> list[str]:
    """Split a list of stabilizer strings at its commas; a piece that begins with ``key=`` continues the one before.

    >>> split("none,ema:half_life=500,alpha=0.67,lr_decay+ema")
    ['none', 'ema:half_life=500,alpha=0.67', 'lr_decay+ema']
    """
    parts: list[str] = []
    for piece in text.split(","):
        if re.match(r"[^:+]*=", piece) and parts:
            parts[-1] += f",{piece.strip()}"
        else:
            parts.append(piece.strip())
    return parts


def expand(text: str) -> list[str]:
    """Return the canonical strings that a list with alternatives spells; ``|`` separates them, of one value or name.

    >>> expand("ema:half_life=100|300,alpha=0.67,none|lr_decay+polyak")
    ['ema:alpha=0.67,half_life=100', 'ema:alpha=0.67,half_life=300', 'polyak', 'lr_decay+polyak']

    Raises StabError for what is no stabilizer string, and for more than ``LARGEST`` of them.
    """
    found: list[str] = []
    for pattern in split(text):
        pieces = [piece.split("|") for piece in re.split(r"([=,:+])", pattern)]
        if math.prod(map(len, pieces)) > LARGEST:
            raise StabError(
                f"{pattern[:60]!r}... spells more than {LARGEST} stabilizers: make several runs of it"
            )
        found += [parse("".join(choice)).string for choice in itertools.product(*pieces)]
    return list(dict.fromkeys(found))


def fold(strings: Iterable[str]) -> list[str]:
    """Return fewer strings, with alternatives, that ``expand`` turns back into these; only whole products are folded.

    >>> fold(["none", "ema:half_life=100", "ema:half_life=300"])
    ['none', 'ema:half_life=100|300']
    """
    grouped: dict[str, list[list[str]]] = {}
    for string in strings:
        pieces = re.split(r"((?<==)[^=,:+;][^,+]*)", string)  # values at the odd places
        grouped.setdefault("\0".join(pieces[::2]), []).append(pieces[1::2])
    found = []
    for pattern, values in grouped.items():
        columns = [list(dict.fromkeys(column)) for column in zip(*values, strict=True)]
        whole = len(values) == math.prod(map(len, columns))
        whole = whole and not any(
            re.search("[:=]", value) for column in columns if len(column) > 1 for value in column
        )
        for chosen in [["|".join(column) for column in columns]] if whole else values:
            parts = pattern.split("\0")
            found.append("".join(map("".join, zip(parts, [*chosen, ""], strict=True))))
    return found


def parse(text: str) -> Stabilizer:
    """Return the stabilizer that a string spells, with its canonical string (non-default arguments, alphabetical).

    Raises StabError when it does not parse, a name or argument is unknown, a value is out of range, or an average is
    not the last part.

    >>> parse("lr_decay:shape=linear+ema:half_life=500").string
    'lr_decay+ema:half_life=500'
    """
    methods: list[Average | Intervention] = []
    strings: list[str] = []
    for atom in _atoms(text):
        method, string = _parse_atom(atom, text)
        if string != "none":  # in a composition it says nothing
            methods.append(method)
            strings.append(string)
    for method in methods[:-1]:
        if isinstance(method, Average):
            raise StabError(
                f"{text!r}: an average comes last and there is at most one (interventions+average)"
            )
    average = methods[-1] if methods and isinstance(methods[-1], Average) else None
    interventions = tuple(m for m in methods if isinstance(m, Intervention))
    return Stabilizer("+".join(strings) or "none", interventions, average)


def _atoms(text: str) -> list[str]:
    return re.split(r"\+(?=\s*[A-Za-z_])", text)  # not the + of 1e+3


def _names(text: str) -> list[str]:
    return [atom.partition(":")[0] for atom in _atoms(text)]


def _parse_atom(atom: str, text: str) -> tuple[Average | Intervention, str]:
    name, colon, rest = atom.strip().partition(":")
    if not name or (colon and not rest):
        raise StabError(
            f"{text!r} is no stabilizer: expected name or name:key=value,key=value, parts joined with +"
        )
    cls = stabilizers.get(name)
    args = parse_arguments(rest, cls, f"{stabilizers.noun} {name!r}")
    try:
        method = cls(**args)
    except Exception as e:  # a plug-in may raise anything
        what = e if isinstance(e, StabError) else f"{type(e).__name__}: {e}"
        raise StabError(f"{stabilizers.noun} {name!r}: {what}") from e
    changed = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    canonical = ",".join(
        f"{k}={changed[k]}" for k in sorted(changed) if changed[k] != _default(cls, k)
    )
    return method, f"{name}:{canonical}" if canonical else name


def _default(cls: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(cls) if f.name == name)
