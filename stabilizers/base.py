"""What a stabilizer is: an average looks at the iterates, an intervention edits the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stab.arguments import Declared
from stab.recipe import Recipe
from stab.registry import Registry, StabError
from stab.stabilizers.means import MeanState, clone

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Params = dict[str, Tensor]

__all__ = ["Average", "GradientTransform", "Intervention", "MeanState", "clone", "stabilizers"]


class State(Protocol):
    """What an average carries through training, counters included."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""


class Average(Declared):
    """Looks at the iterates of a run and never changes them.

    Subclasses are frozen dataclasses of hyper-parameters. ``Params`` is a dict of tensors; leaves
    may carry leading axes, one entry of them a run of its own. Whatever the module's dtype, an
    average is shown float32 at least, always in the same order; read-outs are cast back.

    Attributes:
        convex: declares that the read-out is a convex combination of the iterates so far, with
            weights that do not depend on their values.
        averages_buffers: declares that floating-point buffers (BatchNorm's running statistics) are
            averaged like parameters. Otherwise every buffer of a read-out is a copy of the live
            policy's, so BatchNorm's statistics are those of the raw iterate; recompute them if that
            matters (torch.optim.swa_utils.update_bn).
    """

    convex: ClassVar[bool] = False
    averages_buffers: ClassVar[bool] = False

    def init(self, params: Params, total: int) -> Any:
        """Return the state at update 0. Raises StabError if a setting does not fit ``total``.

        ``stab.attach`` gives None for ``total`` if nobody knows it: an average that needs it then
        raises (``to_updates`` does).
        """
        raise NotImplementedError

    def update(self, state: Any, params: Params, step: int) -> None:
        """Take in the iterate after optimizer step ``step`` = 1..total, never per micro-batch."""
        raise NotImplementedError

    def read(self, state: Any) -> Params:
        """Return the average as new tensors; before the average begins, the latest iterate."""
        raise NotImplementedError

    def items(self, state: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield what ``read`` returns, tensor by tensor, where that saves memory."""
        yield from self.read(state).items()

    def notes(self, total: int) -> list[str]:
        """Return what a reader of the leaderboard should know of these settings."""
        return []


class Intervention(Declared):
    """Edits the recipe. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        neutral: arguments for which ``apply`` is the identity.
    """

    neutral: ClassVar[dict[str, Any]] = {}

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the edited recipe; pure. May raise ``stab.registry.Incompatible``."""
        raise NotImplementedError

    def check(self, recipe: Recipe) -> None:
        """Raise ``Incompatible`` if this intervention cannot serve the finished recipe.

        It is asked after all interventions were applied: what conflicts is refused in any order.
        """


class GradientTransform:
    """Edits gradients between the backward pass and the optimizer's step.

    ``Recipe.gradient_transforms`` names it. Only subclasses are called, whatever a recipe names: it
    may have come with a stranger's run folder. One that carries something from update to update
    gives it in ``state_dict`` and takes it back, so that interrupted runs can resume.
    """

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Edit ``.grad`` in place. Draws of torch's global generator are the update's own."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""


def is_moment(value: object) -> bool:
    """A moment or length of training: an integer >= 0 (updates) or a fraction in [0, 1)."""
    return (isinstance(value, int) and value >= 0) or (isinstance(value, float) and 0 <= value < 1)


MOMENT = "an integer >= 0 (updates) or a fraction of training in [0, 1)"


def to_updates(value: float, total: int | None, name: str) -> int:
    """Convert a moment to updates. Raises StabError if it does not lie within training."""
    need_total(total, **{name: value})
    updates = value if isinstance(value, int) else round(value * (total or 0))
    if updates < 0 or (total is not None and updates >= total):
        raise StabError(
            f"{name}={value} does not fit {total} updates of training: expected fewer than {total}"
        )
    return updates


def need_total(total: int | None, **moments: float) -> None:
    """Raise StabError if there is no ``total`` and a moment is a fraction of it."""
    fractions = [f"{name}={v}" for name, v in moments.items() if isinstance(v, float)]
    if total is None and fractions:
        raise StabError(
            f"{' and '.join(fractions)}: fractions of training. Give total=, the number of"
            " optimizer steps, or integers (updates)"
        )


def weight_profile(average: Average, total: int, steps: Iterable[int]) -> dict[int, np.ndarray]:
    """Return the weight that a convex average gives each iterate 1..t, for every t in ``steps``.

    Measured, not declared: the average runs over one-hot iterates (iterate t is the t-th unit
    vector, the initial parameters are 0), of which a convex read-out *is* the vector of weights.
    """
    import torch

    read = set(steps)
    iterate = torch.zeros(total, dtype=torch.float64)
    state = average.init({"w": iterate.clone()}, total)
    weights = {}
    for t in range(1, total + 1):
        iterate[t - 1] = 1
        average.update(state, {"w": iterate}, t)
        iterate[t - 1] = 0
        if t in read:
            weights[t] = average.read(state)["w"][:t].numpy()
    return weights


def effective_half_life(weights: np.ndarray) -> int:
    """Return how many of the latest iterates hold half of the weight (of ``weight_profile``)."""
    import numpy as np

    return int(np.searchsorted(np.cumsum(weights[::-1]), 0.5 - 1e-12)) + 1


memory = weight_profile  # its name before, which plug-ins' tests use

stabilizers: Registry[type[Average] | type[Intervention]] = Registry(
    "stabilizer",
    "stab.stabilizers",
    # Its own decorator, not the one that it inherits.
    lambda obj: (
        isinstance(obj, type)
        and issubclass(obj, Average | Intervention)
        and "__dataclass_fields__" in vars(obj)
    ),
)
