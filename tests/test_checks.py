"""The conformance kit: every built-in passes it, and for each check a plug-in that is wrong in that way fails it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

import stab
from stab.checks import CheckFailed, Toy, parametrize_with_checks, yield_checks
from stab.recipe import Call, Recipe
from stab.registry import Incompatible, StabError
from stab.stabilizers import Average, GradientTransform, Intervention, hyper
from stab.stabilizers.base import MeanState, clone
from stab.stabilizers.ema import EMA
from stab.stabilizers.polyak import Polyak
from stab.tasks.control.recorded import Recorded

BUILT_IN = ["none", "ema", "polyak", "swa", "accumulation", "lr_decay", "weight_decay", "dropout"]
COMPOSED = [
    "ema:half_life=500,alpha=0.67",
    "polyak:start=400",
    "lr_decay+ema",
    "accumulation:steps=2+dropout:p=0.3+swa:every=7",
    "dropout:p=0",
]


@parametrize_with_checks([*BUILT_IN, *COMPOSED])
def test_built_ins_conform(check):
    check.run()


def test_every_kind_of_object_is_taken():
    names = [c.name for c in yield_checks("ema")]
    assert len(names) == len(set(names)) > 10
    for obj in (EMA, EMA(half_life=3), "stab.stabilizers.ema:EMA"):
        assert [c.name for c in yield_checks(obj)] == names
    assert [c.name for c in yield_checks(Toy)] == [c.name for c in yield_checks(Toy("x"))]
    assert next(yield_checks(functools.partial(Toy, train_episodes=3))).object == "partial"
    check = next(yield_checks("ema"))
    assert (check.id, check.object) == ("ema-is_a_frozen_dataclass", "ema")
    for obj in ("ema", "lr_decay", Toy):
        assert all(c.doc and "\n" not in c.doc for c in yield_checks(obj))
    assert stab.checks.yield_checks is yield_checks


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("emma", "Unknown stabilizer or task 'emma'. Did you mean 'ema'"),
        ("hoper", "Did you mean 'hopper'"),
        ("ema:halflife=3", "Did you mean 'half_life'"),
        ("no_such_module:Thing", "cannot load 'no_such_module:Thing'"),
        ("math:pi", "neither an Average, an Intervention nor a Task"),
        ("math:sqrt", "cannot be made without arguments"),
        ("recorded", "has no dataset of its own: name the dataset instead"),
        ("no/such-v0", "no/such-v0"),
        (3, "neither an Average"),
        (lambda: 7, "makes 7, which is neither"),
    ],
)
def test_what_cannot_be_checked_is_said(obj, message):
    with pytest.raises(StabError) as caught:
        list(yield_checks(obj))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Wrong on purpose: one for each check. All are means of the tail, or edits of the recipe, but for one mistake.


@dataclass(frozen=True)
class Mean(Polyak):
    pass  # right


class NoDataclass(Polyak):
    pass


def local():
    @dataclass(frozen=True)
    class Local(Polyak):
        pass

    return Local()


@dataclass(frozen=True)
class NoCard(Polyak):
    """Mean of something.

    Source: hearsay.
    """


@dataclass(frozen=True)
class Late(Polyak):
    def read(self, state):
        return clone(state.mean) if state.count else {}


@dataclass(frozen=True)
class Meddler(Polyak):
    def update(self, state, params, step):
        super().update(state, params, step)
        for name, value in params.items():
            value.lerp_(state.mean[name], 0.5)


@dataclass(frozen=True)
class Alias(Polyak):
    def read(self, state):
        return state.mean


@dataclass(frozen=True)
class Keeper(Polyak):
    def init(self, params, total):
        return MeanState(dict(params), 75)

    def update(self, state, params, step):
        if step < state.start:
            state.mean = dict(params)
        else:
            state.mean = clone(state.mean)
            super().update(state, params, step)


@dataclass(frozen=True)
class FromZero(Polyak):
    convex: ClassVar[bool] = False

    def update(self, state, params, step):
        if step == state.start:
            for value in state.mean.values():
                value.zero_()
        super().update(state, params, step)
        if step == state.start:
            for value in state.mean.values():
                value.zero_()


@dataclass(frozen=True)
class Ahead(Polyak):
    """Looks ahead of the mean: constant iterates and affine maps are kept, the hull is not."""

    def init(self, params, total):
        state = super().init(params, total)
        state.latest = clone(params)
        return state

    def update(self, state, params, step):
        super().update(state, params, step)
        state.latest = clone(params)

    def read(self, state):
        return {
            name: value + 1.5 * (state.latest[name] - value) for name, value in state.mean.items()
        }


@dataclass(frozen=True)
class Smallest(Polyak):
    """The iterate of least magnitude: in the hull, but no fixed weights."""

    def update(self, state, params, step):
        for name, value in params.items():
            kept = state.mean[name]
            state.mean[name] = torch.where(value.abs() < kept.abs(), value, kept)


@dataclass(frozen=True)
class WholeNorm(Polyak):
    """Takes in steps that are small over the whole tensor."""

    convex: ClassVar[bool] = False

    def update(self, state, params, step):
        for name, value in params.items():
            step_ = value - state.mean[name]
            state.mean[name] = state.mean[name] + step_ / (1 + step_.norm())


@dataclass(frozen=True)
class ByPosition(Polyak):
    """Takes the tensors as they come."""

    def update(self, state, params, step):
        for kept, value in zip(state.mean.values(), params.values(), strict=True):
            if kept.shape == value.shape:
                kept.lerp_(value, 0.5)


@dataclass(frozen=True)
class Noisy(Polyak):
    def update(self, state, params, step):
        torch.rand(1)
        super().update(state, params, step)


@dataclass(frozen=True)
class NoisyPython(Polyak):
    def read(self, state):
        random.random()
        return super().read(state)


@dataclass
class Forgets(MeanState):
    def state_dict(self):
        return {"mean": dict(self.mean)}

    def load_state_dict(self, state):
        self.mean = copy.deepcopy(state["mean"])


@dataclass(frozen=True)
class Forgetful(Polyak):
    def init(self, params, total):
        state = super().init(params, total)
        return Forgets(state.mean, state.start)


@dataclass(frozen=True)
class Shared(Polyak):
    """Keeps the mean on the class."""

    mean: ClassVar[dict] = {}

    def update(self, state, params, step):
        super().update(state, params, step)
        Shared.mean = clone(state.mean)

    def read(self, state):
        return clone(Shared.mean if state.count else state.mean)


BACKWARDS = [0]


@dataclass(frozen=True)
class MicroBatches(Polyak):
    # Counts backward passes where there are any.

    def init(self, params, total):
        state = super().init(params, total)
        state.began = BACKWARDS[0]
        return state

    def update(self, state, params, step):
        super().update(state, params, max(step, BACKWARDS[0] - state.began))


@dataclass(frozen=True)
class Behind(Polyak):
    """Changes what it was given at the first update: the parameters themselves."""

    def init(self, params, total):
        state = super().init(params, total)
        state.live = params
        return state

    def update(self, state, params, step):
        super().update(state, params, step)
        for value in state.live.values():
            value.mul_(0.999)


@dataclass(frozen=True)
class Half(Intervention):
    """Right: half the learning rate.

    ::

        lr <- factor lr

    Suggested: nothing.
    Cost: none.
    Source: none.
    """

    factor: float = hyper(0.5, "of lr", lambda v: v > 0, "a number > 0")
    neutral: ClassVar[dict] = {"factor": 1.0}

    def apply(self, recipe):
        return replace(recipe, lr=recipe.lr * self.factor)


@dataclass(frozen=True)
class NotNeutral(Half):
    neutral: ClassVar[dict] = {"factor": 0.9}


@dataclass(frozen=True)
class Writes(Half):
    def apply(self, recipe):
        recipe.optimizer_args["eps"] = 1e-3
        return replace(recipe, lr=recipe.lr * self.factor)


@dataclass(frozen=True)
class Draws(Half):
    def apply(self, recipe):
        return replace(recipe, lr=recipe.lr * (self.factor + random.random()))


@dataclass(frozen=True)
class NotPlain(Half):
    def apply(self, recipe):
        return replace(recipe, optimizer_args={"betas": {0.9}})


@dataclass(frozen=True)
class Longer(Half):
    def apply(self, recipe):
        return replace(recipe, updates=2 * recipe.updates)


@dataclass(frozen=True)
class Explodes(Half):
    def apply(self, recipe):
        return replace(recipe, optimizer="SGD", optimizer_args={}, lr=1e30)


@dataclass(frozen=True)
class Refuses(Half):
    def apply(self, recipe):
        raise Incompatible("needs a Tuesday")


@dataclass(frozen=True)
class Idle(Half):
    def apply(self, recipe):
        return recipe


@dataclass(frozen=True)
class Float32(Toy):
    def rollout(self, *arguments, **more):
        returns, lengths = super().rollout(*arguments, **more)
        return returns.astype(np.float32), lengths


@dataclass(frozen=True)
class Vector(Toy):
    def loss(self, policy, batch):
        return (policy(batch[0]) - batch[1]).square()


@dataclass(frozen=True)
class Reshuffled(Toy):
    def dataset(self, *arguments):
        data = super().dataset()
        order = torch.from_numpy(np.random.default_rng().permutation(64))
        train = type(data.train)(
            data.train.observations[order][:40], data.train.actions[order][:40]
        )
        return replace(data, train=train)


@dataclass(frozen=True)
class Unseeded(Toy):
    def rollout(self, *arguments, **more):
        returns, lengths = super().rollout(*arguments, **more)
        return returns + np.random.default_rng().random(), lengths


@dataclass(frozen=True)
class Company(Toy):
    def rollout(self, policy, stacked, *arguments, **more):
        mean = {name: value + 1e-7 * value.sum(0) for name, value in stacked.items()}
        return super().rollout(policy, mean, *arguments, **more)


@dataclass(frozen=True)
class WrongSign(Toy):
    def loss(self, policy, batch):
        loss = super().loss(policy, batch)
        return 2 * loss.detach() - loss


@dataclass(frozen=True)
class Infinite(Toy):
    def loss(self, policy, batch):
        return super().loss(policy, batch) / 0


@dataclass(frozen=True)
class OneWay(Half):
    """Refuses a schedule that is there before it, and not one that comes after it."""

    def apply(self, recipe):
        if recipe.schedule != "constant":
            raise Incompatible("no schedules")
        return super().apply(recipe)


@dataclass(frozen=True)
class BothWays(Half):
    """Refuses a schedule, whenever it comes."""

    def check(self, recipe):
        if recipe.schedule != "constant":
            raise Incompatible("no schedules")


WRONG = [
    (NoDataclass, "is_a_frozen_dataclass", "add @dataclass(frozen=True)"),
    (NoCard, "has_a_card", "lacks a formula (a block after ::), Suggested:, Cost:"),
    (local, "copies_and_pickles", "define the class at the top of a module"),
    (Late, "reads_from_the_start", "read gives names []"),
    (Meddler, "update_leaves_parameters", "an average looks and never touches"),
    (Alias, "read_never_aliases", "read returns its own tensors; clone"),
    (Keeper, "read_never_aliases", "keeps them instead of a copy"),
    (FromZero, "constant_iterates_give_that_constant", "started from zero"),
    (Ahead, "stays_in_the_hull", "a weight is negative"),
    (Smallest, "commutes_with_affine_maps", "weights depend on the iterates' values"),
    (WholeNorm, "leading_axis_is_separate_runs", "runs are mixed"),
    (ByPosition, "matches_by_name", "matched by position"),
    (Noisy, "leaves_the_random_state", "global random state of torch"),
    (NoisyPython, "leaves_the_random_state", "global random state of random"),
    (Forgetful, "state_resumes_bit_for_bit", "leaves something out (a counter?)"),
    (Shared, "one_object_serves_many_runs", "keep it in the state"),
    (MicroBatches, "counts_optimizer_steps", "micro-batches?"),
    (Behind, "leaves_the_raw_trajectory", "changed the live parameters"),
    (
        NotNeutral,
        "neutral_is_the_identity",
        "declares {'factor': 0.9} neutral, but apply changes lr",
    ),
    (Writes, "apply_is_pure", "use replace()"),
    (Draws, "apply_is_pure", "another recipe the second time"),
    (NotPlain, "apply_is_pure", "data by value"),
    (Longer, "apply_is_pure", "the same number of steps"),
    (OneWay, "conflicts_in_any_order", "lr_decay+OneWay is refused, the other order is not"),
    (Explodes, "training_stays_finite", "loss is"),
    (Refuses, "training_stays_finite", "needs a Tuesday"),
    (Idle, "has_an_effect", "had no effect: apply gives an equal recipe"),
    (Float32, "shapes_and_dtypes", "float32, expected (3, 2, 3) and float64"),
    (Vector, "shapes_and_dtypes", "expected a scalar"),
    (Reshuffled, "dataset_is_the_same_on_each_call", "seed what draws or orders them"),
    (Unseeded, "same_seed_same_returns", "seed every reset"),
    (Company, "policies_together_equal_each_alone", "policies share something"),
    (WrongSign, "loss_falls_on_one_batch", "expected it to fall"),
    (Infinite, "loss_falls_on_one_batch", "the loss is inf"),
]


@pytest.fixture(autouse=True)
def count_backwards(monkeypatch):
    plain = torch.Tensor.backward

    def backward(self, *arguments, **more):
        BACKWARDS[0] += 1
        return plain(self, *arguments, **more)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.mark.parametrize(
    ("obj", "name", "message"), WRONG, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_wrong_plugin_fails_the_check_with_its_mistake(obj, name, message):
    (check,) = [c for c in yield_checks(obj) if c.name == name]
    with pytest.raises(CheckFailed) as caught:
        check.run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("obj", [NoDataclass, NoCard, local, Noisy, Forgetful, MicroBatches, NotNeutral, Idle,
                                 Reshuffled, Float32, Company, WrongSign], ids=lambda obj: obj.__name__)  # fmt: skip
def test_one_mistake_fails_one_check(obj):
    failed = []
    for check in yield_checks(obj):
        try:
            check.run()
        except CheckFailed:
            failed.append(check.name)
    assert failed == [name for wrong, name, _ in WRONG if wrong is obj]


def test_a_conflict_that_is_refused_in_any_order_is_none():
    (check,) = [c for c in yield_checks(BothWays) if c.name == "conflicts_in_any_order"]
    check.run()


@parametrize_with_checks([Mean, Half, Toy])
def test_what_the_wrong_ones_are_made_of_conforms(check):
    check.run()


def test_every_check_has_a_wrong_plugin():
    known = {c.name for obj in ("ema", Half, Toy) for c in yield_checks(obj)}
    assert {name for _, name, _ in WRONG} == known


class Nothing(GradientTransform):
    """A gradient transform that does nothing."""

    def __call__(self, parameters):
        pass


@dataclass(frozen=True)
class IdleTransform(Intervention):
    def apply(self, recipe):
        return replace(recipe, gradient_transforms=(Call("stab_test_nothing:Nothing"),))


def test_an_edit_that_training_does_not_show_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "stab_test_nothing", sys.modules[__name__])
    checks = {c.name: c for c in yield_checks(IdleTransform)}
    assert "neutral_is_the_identity" not in checks  # it declares no neutral arguments
    with pytest.raises(
        CheckFailed,
        match=r"had no effect: it changes gradient_transforms .* same parameters bitwise",
    ):
        checks["has_an_effect"].run()


def test_a_plugin_that_raises_fails_with_what_it_raised():
    @dataclass(frozen=True)
    class Raises(Average):
        def init(self, params, total):
            raise KeyError("lost")

    failed = {c.name: c for c in yield_checks(Raises)}["reads_from_the_start"]
    with pytest.raises(CheckFailed, match="KeyError where none was expected: 'lost'"):
        failed.run()


def test_checks_are_frozen_and_yielded_lazily():
    check = next(yield_checks("ema"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.name = "other"


# The decorator


def outcomes(tmp_path, source):
    (tmp_path / "test_it.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout


def test_expected_failures_are_strict_and_have_a_reason(tmp_path):
    said = outcomes(
        tmp_path,
        """
from dataclasses import dataclass
from stab.checks import parametrize_with_checks
from stab.stabilizers.polyak import Polyak

@dataclass(frozen=True)
class Alias(Polyak):
    def read(self, state):
        return state.mean

excused = {"read_never_aliases": "known", "polyak-copies_and_pickles": "not true"}
@parametrize_with_checks([Alias, "polyak"], expected_failures=excused)
def test_conforms(check):
    if check.name in ("read_never_aliases", "copies_and_pickles"):
        check.run()
""",
    )
    assert "XFAIL test_it.py::test_conforms[Alias-read_never_aliases] - known" in said
    assert "PASSED test_it.py::test_conforms[Alias-copies_and_pickles]" in said
    assert (
        "FAILED test_it.py::test_conforms[polyak-read_never_aliases] - [XPASS(strict)] known"
        in said
    )
    assert (
        "FAILED test_it.py::test_conforms[polyak-copies_and_pickles] - [XPASS(strict)] not true"
        in said
    )


def test_an_excuse_needs_a_check_and_a_reason():
    with pytest.raises(
        StabError, match=r"no check 'read_never_alias'\. Did you mean '.*read_never_aliases'"
    ):
        parametrize_with_checks(["ema"], {"read_never_alias": "typing error"})
    with pytest.raises(StabError, match="needs a reason"):
        parametrize_with_checks(["ema"], {"read_never_aliases": " "})


# A real task


@pytest.fixture(scope="module")
def pendulum(minari_root):
    """A recorded dataset of random swings, four short episodes."""
    dataset_id = "checks/pendulum-v0"
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    buffers = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        observations, steps = [env.reset(seed=seed)[0]], []
        for _ in range(30):
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
        columns = dict(
            zip(("actions", "rewards", "terminations", "truncations"), map(np.array, zip(*steps)))
        )
        buffers.append(EpisodeBuffer(seed=seed, observations=np.array(observations), **columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's, about authors and permalinks
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env,
            algorithm_name="random",
            ref_min_score=-300,
            ref_max_score=0,
        )
    return functools.partial(
        Recorded, dataset_id=dataset_id, train_episodes=3, validation_episodes=1
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_recorded_task_conforms(pendulum):
    checks = list(yield_checks(pendulum))
    assert len(checks) == 5
    assert [c.id for c in yield_checks("checks/pendulum-v0")] == [
        f"checks/pendulum-v0-{c.name}" for c in checks
    ]
    for check in checks:
        check.run()


def test_the_kit_leaves_no_trace():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for obj in ("lr_decay+ema", Toy):
        for check in yield_checks(obj):
            check.run()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_recipes_of_the_kit_are_left_alone():
    from stab.checks.toy import BASES

    before = copy.deepcopy(BASES)
    for check in yield_checks("weight_decay"):
        check.run()
    assert before == BASES
    assert BASES[1] == Recipe()


@dataclass(frozen=True)
class Outside(Polyak):
    """Two ulps above the greatest iterate."""

    def read(self, state):
        return {
            name: value * (1 + 2 * torch.finfo(value.dtype).eps)
            for name, value in state.mean.items()
        }


def test_the_hull_is_meant_to_an_ulp():
    (check,) = [c for c in yield_checks(Outside) if c.name == "stays_in_the_hull"]
    with pytest.raises(CheckFailed, match="lies outside the iterates so far"):
        check.run()
