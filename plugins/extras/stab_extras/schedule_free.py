"""Schedule-free optimization, by the library of its authors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stab.recipe import Recipe
from stab.registry import Incompatible
from stab.stabilizers import Intervention, hyper

# What a recipe's optimizer becomes, and the arguments of it that carry over.
FOUND = {
    "torch.optim:AdamW": ("schedulefree:AdamWScheduleFree", {"betas", "eps"}),
    "torch.optim:SGD": ("schedulefree:SGDScheduleFree", set[str]()),
}


@dataclass(frozen=True)
class ScheduleFree(Intervention):
    """Replace the learning-rate schedule by an average inside the optimizer: gradients are taken near it, it is deployed.

    ::

        y = (1 - beta) z + beta x
        z <- z - lr g(y)
        x <- x + (z - x) / t

    z is the raw sequence, x its running mean, which is evaluated; y is where gradients are taken. For AdamW the step of z is
    divided by the root of Adam's second moment. ``warmup`` raises the learning rate linearly at the start.

    Suggested: beta 0.9 to 0.98; warmup 0.05 of training; AdamW's lr 1 to 10 times the usual (``lr_factor``).
    Cost: AdamW: none over AdamW's (z in the place of the first moment); SGD: one copy of the parameters.
    Conflicts: learning-rate schedules (``lr_decay``), refused; averages see y, not x.
    Source: Defazio et al., "The road less scheduled", arXiv 2405.15682, equations 1 to 3 and algorithm 1; computed by the
    authors' package ``schedulefree``.
    """

    beta: float = hyper(
        0.9,
        "how near to the average gradients are taken",
        lambda v: 0 < v < 1,
        "a number in (0, 1)",
    )
    warmup: float = hyper(
        0.0, "fraction of training that raises lr", lambda v: 0 <= v < 1, "a number in [0, 1)"
    )
    lr_factor: float = hyper(
        1.0, "factor of the recipe's lr", lambda v: 0 < v < float("inf"), "a number > 0"
    )

    def check(self, recipe: Recipe) -> None:
        if recipe.schedule != "constant":
            raise Incompatible(
                f"schedule_free replaces the schedule, the recipe has one: {recipe.schedule}"
            )
        if recipe.schedule_warmup:
            raise Incompatible("schedule_free has a warm-up of its own: schedule_free:warmup=")

    def apply(self, recipe: Recipe) -> Recipe:
        self.check(recipe)
        if recipe.optimizer not in FOUND:
            raise Incompatible(
                f"schedule_free is for AdamW and SGD, the recipe's optimizer is {recipe.optimizer}"
            )
        optimizer, kept = FOUND[recipe.optimizer]
        lost = sorted(recipe.optimizer_args.keys() - kept)
        if lost:
            raise Incompatible(
                f"schedule_free's {optimizer} has no {lost[0]}, which the recipe sets"
            )
        args: dict[str, Any] = {
            **recipe.optimizer_args,
            "warmup_steps": round(self.warmup * recipe.updates),
        }
        if optimizer.endswith("AdamWScheduleFree"):
            args["betas"] = [self.beta, recipe.optimizer_args.get("betas", (0.9, 0.999))[1]]
        else:
            args["momentum"] = self.beta
        return replace(
            recipe, optimizer=optimizer, optimizer_args=args, lr=recipe.lr * self.lr_factor
        )
