"""The Transformer: against numpy, against a slow loop over windows, and in the closed loop."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks.control.rollout import rollout
from stab.tasks.policies import Stack, Transformer, build, transformer
from stab.tasks.transitions import Transitions

OBS = 3
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
SHAPED = gym.spaces.Box(-2.0, 1.0, (2, 1), np.float64)
DISCRETE = gym.spaces.Discrete(4, start=2)
SPACES = {"box": BOX, "shaped": SHAPED, "discrete": DISCRETE}
KINDS = [("box", False), ("box", True), ("shaped", False), ("shaped", True), ("discrete", False)]


def make(
    space=BOX,
    seed=0,
    context=5,
    width=16,
    depth=2,
    heads=4,
    dropout=0.0,
    obs=OBS,
    squashed=None,
    gaussian=False,
):
    torch.manual_seed(seed)
    squashed = isinstance(space, gym.spaces.Box) if squashed is None else squashed
    policy = Transformer(
        torch.randn(obs),
        torch.rand(obs) + 0.5,
        space,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        dropout=dropout,
        squashed=squashed,
        gaussian=gaussian,
    )
    for name, parameter in policy.named_parameters():
        if "norm" in name:  # otherwise all scales are 1 and shifts 0
            torch.nn.init.normal_(parameter)
    if isinstance(space, gym.spaces.Discrete):  # otherwise one choice wins everywhere
        torch.nn.init.normal_(policy.head[1].weight)
    return policy.eval()


def family(count, **settings):
    states = [make(seed=i, **settings).state_dict() for i in range(count)]
    return make(**settings), {name: torch.stack([s[name] for s in states]) for name in states[0]}


def alone(stacked, i):
    return {name: value[i : i + 1].clone() for name, value in stacked.items()}


def demonstrations(space, lengths, seed=0, obs=OBS):
    """Random transitions of episodes of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    if isinstance(space, gym.spaces.Discrete):
        actions = torch.randint(int(space.n), (n,), generator=generator)
    else:
        actions = torch.rand(n, math.prod(space.shape), generator=generator)
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    return Transitions(torch.randn(n, obs, generator=generator), actions, episodes)


def window(policy, data, at):
    """Outputs (steps, out) of the window that ends at a transition, of the steps within the episode alone."""
    first = int(data.firsts[at])
    begin = max(first, at + 1 - policy.context)
    observations = data.observations[None, begin : at + 1]
    steps = observations.shape[1]
    previous = torch.zeros_like(data.actions[None, begin : at + 1])
    known = torch.ones(1, steps, dtype=torch.bool)
    if begin == first:
        known[0, 0] = False
        previous[0, 1:] = data.actions[begin:at]
    else:
        previous[0] = data.actions[begin - 1 : at]
    return policy(observations, previous, known, torch.ones_like(known))[0]


# The network


def by_hand(policy, observations, previous, known):
    """One window (steps, ...) in numpy, double precision, one step and one head at a time."""
    w = {name: value.numpy().astype(np.float64) for name, value in policy.state_dict().items()}
    steps, heads = len(observations), policy.blocks[0].heads

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = linear((observations - w["mean"]) / w["std"], "observation")
    for i in range(steps):
        if known[i]:
            embedding = w["previous.weight"]
            x[i] += embedding[previous[i]] if policy.discrete else embedding @ previous[i]
        x[i] += w["positions"][policy.context - steps + i]
    for b in range(len(policy.blocks)):
        query, key, value = np.split(
            linear(norm(x, f"blocks.{b}.norm_attention"), f"blocks.{b}.qkv"), 3, axis=-1
        )
        size = query.shape[-1] // heads
        seen = np.zeros_like(x)
        for i in range(steps):
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                scores = key[: i + 1, part] @ query[i, part] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                seen[i, part] = weights @ value[: i + 1, part] / weights.sum()
        x = x + linear(seen, f"blocks.{b}.project")
        hidden = linear(norm(x, f"blocks.{b}.norm_mlp"), f"blocks.{b}.mlp.0")
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        x = x + linear(hidden, f"blocks.{b}.mlp.2")
    return linear(norm(x, "head.0"), "head.1")


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=str)
def test_the_network_by_hand(space, steps):
    policy = make(space, squashed=False)
    data = demonstrations(space, [steps], seed=steps)
    previous, known = data.actions.roll(1, 0), np.arange(steps) > 0
    expected = by_hand(
        policy, data.observations.numpy().astype(np.float64), previous.numpy(), known
    )
    with torch.no_grad():
        found = window(policy, data, steps - 1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("space", "gaussian"), KINDS)
def test_the_loss_is_the_mean_over_all_steps_of_all_windows(space, gaussian):
    """Against one window at a time, without padding; in evaluation the last step alone. Short episodes included."""
    policy = make(SPACES[space], gaussian=gaussian)
    data = demonstrations(SPACES[space], [12, 1, 3, 7])
    indices = np.random.default_rng(0).permutation(len(data))[:17]
    outputs, actions = [], []
    for at in indices:
        outputs.append(window(policy, data, int(at)))
        actions.append(data.actions[at + 1 - len(outputs[-1]) : at + 1])
    expected = policy.error(torch.cat(outputs), torch.cat(actions))
    assert policy.train().loss(data.batch(indices)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    last = policy.error(torch.cat([o[-1:] for o in outputs]), torch.cat([a[-1:] for a in actions]))
    assert policy.eval().loss(data.batch(indices)).item() == pytest.approx(last.item(), rel=1e-5)


def test_without_gradients_the_loss_is_computed_in_chunks(monkeypatch):
    policy, data = make(), demonstrations(BOX, [12, 1, 3, 40])
    batch = data.batch(np.arange(len(data)))
    plain = policy.loss(batch)
    assert plain.requires_grad
    seen = []
    forward = policy.forward
    monkeypatch.setattr(policy, "forward", lambda *a: seen.append(len(a[0])) or forward(*a))
    monkeypatch.setattr(transformer, "CHUNK", 9)
    with torch.inference_mode():
        values = [policy.loss(batch).item() for _ in range(2)]
    assert values[0] == values[1] == pytest.approx(plain.item(), rel=1e-6)
    assert seen == 2 * [9, 9, 9, 9, 9, 9, 2]
    assert policy.loss(data.batch(np.arange(12))).item() != pytest.approx(plain.item(), rel=1e-3)


def test_no_step_sees_a_later_one():
    policy, data = make(), demonstrations(BOX, [30])
    steps = policy.context
    observations, previous = data.observations[:steps][None], data.actions[:steps][None]
    there = torch.ones(1, steps, dtype=torch.bool)
    with torch.no_grad():
        before = policy(observations, previous, there, there)
        for i in range(steps):
            for changed in (observations, previous):
                other = changed.clone()
                other[0, i] += 10
                inputs = (other, previous) if changed is observations else (observations, other)
                after = policy(*inputs, there, there)
                torch.testing.assert_close(after[:, :i], before[:, :i], rtol=1e-5, atol=1e-6)
                assert (
                    (after - before)[0, i:].abs().amax(-1) > 1e-4
                ).all()  # all later ones do see it


@pytest.mark.parametrize("huge", [1e30, torch.inf, torch.nan])
def test_padding_has_no_influence(huge):
    policy, data = make(gaussian=True), demonstrations(BOX, [2, 9, 4])
    observations, actions, within = data.batch(np.arange(len(data))).window(policy.context + 1)
    observations, previous, known, valid = (
        observations[:, 1:],
        actions[:, :-1],
        within[:, :-1],
        within[:, 1:],
    )
    assert 0 < (~valid).sum() < (~known).sum()
    results = []
    for value in (0.0, huge):
        policy.zero_grad()
        inputs = observations.clone(), previous.clone()
        inputs[0][~valid] = value
        inputs[1][~known] = value
        outputs = policy(*inputs, known, valid)[valid]
        policy.error(outputs, actions[:, 1:][valid]).backward()
        results.append([outputs.detach(), *(p.grad for p in policy.parameters())])
    for found, expected in zip(*results):
        assert torch.equal(found, expected)
        assert found.isfinite().all()


def test_dropout_acts_in_training_only():
    policy, batch = make(dropout=0.5), demonstrations(BOX, [20]).batch(np.arange(20))
    assert policy.loss(batch).item() == policy.loss(batch).item()
    policy.train()
    assert policy.loss(batch).item() != policy.loss(batch).item()
    torch.manual_seed(1)
    first = policy.loss(batch).item()
    torch.manual_seed(1)
    assert policy.loss(batch).item() == first
    for silent in ("project", "mlp.2"):  # on either branch alone
        policy = make(dropout=0.5).train()
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if silent in name:
                    parameter.zero_()
        assert policy.loss(batch).item() != policy.loss(batch).item()
    without = make().train()
    assert without.loss(batch).item() == without.loss(batch).item()


def test_mean_and_std_are_the_only_buffers_that_are_kept():
    policy = make()
    buffers = set(policy.state_dict()) - {name for name, _ in policy.named_parameters()}
    assert buffers == {"mean", "std"}
    assert all(value.is_floating_point() for value in policy.state_dict().values())


def test_it_remembers_what_an_mlp_cannot():
    """The action is the observation of 3 steps ago. Compared where the whole context is there."""
    generator = torch.Generator().manual_seed(0)
    count, delay = 4000, 3
    observations = torch.rand(count, 1, generator=generator) * 2 - 1
    data = Transitions(
        observations, 0.8 * observations.roll(delay, 0), np.zeros(count, dtype=np.int64)
    )
    train, test = np.arange(100, 3000), data.batch(np.arange(3000, 4000))
    errors = {}
    for name in ("mlp:width=32", "transformer:context=6,width=32,depth=1,heads=2"):
        torch.manual_seed(0)
        policy = build(
            Recipe(policy=name), torch.zeros(1), torch.ones(1), gym.spaces.Box(-1, 1, (1,))
        )
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
        rng = np.random.default_rng(0)
        for _ in range(300):
            optimizer.zero_grad()
            policy.loss(data.batch(rng.choice(train, 64))).backward()
            optimizer.step()
        policy.eval()
        with torch.inference_mode():
            if isinstance(policy, Transformer):
                outputs, actions, _ = policy.predict(test)
                errors["transformer"] = policy.error(outputs[:, -1], actions[:, -1]).item()
            else:
                errors["mlp"] = policy.loss(test).item()
    assert errors["mlp"] == pytest.approx(
        0.64 / 3, rel=0.1
    )  # the variance of the actions: nothing can be known
    assert errors["transformer"] < errors["mlp"] / 10


# Policy strings


def test_build():
    policy = build(Recipe(policy="transformer", dropout=0.25), torch.zeros(4), torch.ones(4), BOX)
    assert policy.positions.shape == (16, 64)
    assert len(policy.blocks) == 2
    assert policy.blocks[0].heads == 4
    assert policy.blocks[0].dropout.p == 0.25
    assert policy.squash is not None
    string = "transformer:context=3,width=6,heads=3,depth=1,actions=clipped,likelihood=gaussian"
    policy = build(Recipe(policy=string), torch.zeros(4), torch.ones(4), BOX)
    assert policy.positions.shape == (3, 6)
    assert len(policy.blocks) == 1
    assert (policy.squash, policy.gaussian, policy.head[1].out_features) == (None, True, 4)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("transfomer", "Did you mean 'transformer'"),
        ("transformer:contxt=3", "Did you mean 'context'"),
        ("transformer:context=0", "integer >= 1"),
        ("transformer:depth=0", "integer >= 1"),
        ("transformer:heads=0", "integer >= 1"),
        ("transformer:heads=5", "width=64 is not a multiple of heads=5"),
        ("transformer:width=30", "width=30 is not a multiple of heads=4"),
        ("transformer:width=30", "use width=32"),
        ("transformer:actions=tanh", "squashed or clipped"),
        ("transformer:likelihood=l1", "mse or gaussian"),
        ("transformer:norm=layer", "no argument 'norm'"),
    ],
)
def test_a_policy_string_that_is_wrong(string, message):
    with pytest.raises(StabError) as caught:
        build(Recipe(policy=string), torch.zeros(4), torch.ones(4), BOX)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# In the closed loop


class Drift(gym.Env):
    """Observations follow the actions and noise of the start's own; episodes end at different times."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)

    def __init__(self, space):
        self.action_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.left = self.np_random.standard_normal(OBS), 8 + seed % 7
        return self.state.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        push = np.resize(np.ravel(action).astype(np.float64), OBS)
        self.state = np.sin(2 * self.state + push + 0.5 * self.np_random.standard_normal(OBS))
        self.left -= 1
        return self.state.copy(), float(self.state.sum()), self.left == 0, False, {}


class Drifts:
    """The episodes of a rollout, one environment each."""

    def __init__(self, space):
        self.space = space

    def reset(self, seeds):
        self.envs = [Drift(self.space) for _ in seeds]
        return np.array([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)])

    def step(self, which, actions):
        steps = [self.envs[i].step(self.to_env(action)) for i, action in zip(which, actions)]
        return tuple(np.array(part) for part in list(zip(*steps))[:4])

    def to_env(self, action):
        return np.int64(action) if isinstance(self.space, gym.spaces.Discrete) else action


STARTS = [3, 11, 4, 7]


@pytest.mark.parametrize("context", [1, 5, 50])
@pytest.mark.parametrize(("space", "gaussian"), KINDS)
def test_a_rollout_sees_the_windows_of_the_episode_it_makes(space, context, gaussian):
    """Every action is what training's forward pass says of the recorded episode's window that ends there."""
    policy, stacked = family(3, space=SPACES[space], context=context, gaussian=gaussian)
    steps = {}
    _, lengths = rollout(
        Drifts(SPACES[space]),
        policy,
        stacked,
        STARTS,
        [12],
        record=lambda i, *s: steps.setdefault(i, []).append(s),
    )
    assert len(np.unique(lengths)) > 2
    for p in range(3):
        policy.load_state_dict({name: value[p] for name, value in stacked.items()})
        episodes = [steps[p * len(STARTS) + n] for n in range(len(STARTS))]
        assert [len(e) for e in episodes] == lengths[p].tolist()
        taken = np.array([s[1] for e in episodes for s in e])
        data = Transitions(
            torch.tensor(np.array([s[0] for e in episodes for s in e]), dtype=torch.float32),
            torch.tensor(taken - 2)
            if space == "discrete"
            else torch.tensor(taken, dtype=torch.float32).flatten(1),
            np.repeat(np.arange(len(STARTS)), lengths[p]),
        )
        with torch.inference_mode():
            outputs = policy.predict(data.batch(np.arange(len(data))))[0][:, -1]
        if space == "discrete":
            assert len(np.unique(taken)) > 1
            assert (outputs.gather(1, data.actions[:, None])[:, 0] >= outputs.amax(1) - 1e-5).all()
        else:
            np.testing.assert_allclose(taken, policy.to_actions(outputs), atol=1e-5)
            assert taken.std(0).min() > 1e-3


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("width", "context"), [(16, 5), (64, 16), (12, 1), (20, 9)])
def test_a_policys_actions_do_not_depend_on_its_company(width, context, space):
    """Bitwise: together, alone, in another order, after others have ended."""
    count, rows, horizon = 6, 8, 20
    policy, stacked = family(count, space=SPACES[space], width=width, context=context)
    assert type(policy.stack(stacked)) is Stack
    obs = np.random.default_rng(0).standard_normal((horizon, count, rows, OBS)).astype(np.float32)

    @torch.inference_mode()
    def play(stacked, obs, live=lambda t: slice(None)):
        stack, everybody = policy.stack(stacked), np.arange(obs.shape[1])
        return [stack.act(o, everybody[live(t)].tolist()) for t, o in enumerate(obs)]

    together = play(stacked, obs)
    assert len(np.unique(together[-1])) > 2
    for i in range(count):
        for found, expected in zip(play(alone(stacked, i), obs[:, i : i + 1]), together):
            assert (found[0] == expected[i]).all()
    order = [3, 1, 5, 0, 2, 4]
    for found, expected in zip(
        play({k: v[order] for k, v in stacked.items()}, obs[:, order]), together
    ):
        assert (found == expected[order]).all()
    ending = play(stacked, obs, lambda t: slice(0, count) if t < 7 else slice(1, count, 2))
    for t, (found, expected) in enumerate(zip(ending, together)):
        assert (found == (expected if t < 7 else expected[1::2])).all()


def test_returns_do_not_depend_on_company_either():
    policy, stacked = family(4)
    together = rollout(Drifts(BOX), policy, stacked, STARTS, [5, 12])
    for i in range(4):
        single = rollout(Drifts(BOX), policy, alone(stacked, i), STARTS, [5, 12])
        for found, expected in zip(single, together):
            assert (found[0] == expected[i]).all()


@torch.inference_mode()
def play(policy, observations):
    """Actions (steps, episodes, ...) for observations (steps, episodes, obs_dim)."""
    memory, actions = policy.memory(observations.shape[1]), []
    for obs in observations:
        action, memory = policy.act(obs, memory)
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("space", SPACES)
def test_memories_are_per_episode(space):
    policy = make(SPACES[space])
    observations = torch.randn(15, 4, OBS)
    before = play(policy, observations)
    other = observations.clone()
    other[:, [0, 1, 3]] = 1e6
    assert (play(policy, other)[:, 2] == before[:, 2]).all()
    assert (play(policy, observations) == before).all()  # and begin anew


def test_a_memory_is_not_changed_by_acting():
    policy = make()
    with torch.inference_mode():
        memory = policy.memory(2)
        for _ in range(8):
            obs = torch.randn(2, OBS)
            action, later = policy.act(obs, memory)
            policy.act(torch.randn(2, OBS), memory)
            assert (policy.act(obs, memory)[0] == action).all()
            memory = later


def test_it_sees_the_context_and_no_more():
    policy = make(context=4)
    with torch.no_grad():
        policy.previous.weight.zero_()  # its own earlier actions would carry the past on
    observations = torch.randn(12, 2, OBS)
    before = play(policy, observations)
    other = observations.clone()
    other[2] += 1
    differs = (play(policy, other) != before).reshape(12, -1).any(1)
    assert differs.tolist() == [False] * 2 + [True] * 4 + [False] * 6


def test_its_own_actions_are_seen():
    """The last action is an input: as clipped, and none at the first step."""
    policy = make(context=3)
    observations = torch.randn(2, 1, OBS)
    before = play(policy, observations)
    with torch.no_grad():
        policy.previous.weight.mul_(3)
    after = play(policy, observations)
    assert (after[0] == before[0]).all()
    assert (after[1] != before[1]).all()


def test_on_another_device_the_windows_stay_there():
    """``meta`` stands for one: it has shapes and no values."""
    meta = torch.device("meta")
    source = Transitions(torch.zeros(9, 3), torch.zeros(9, 2), np.zeros(9, dtype=np.int64)).to(meta)
    policy = build(Recipe(policy="transformer:context=4"), torch.zeros(3), torch.ones(3), BOX).to(
        meta
    )
    outputs, actions, valid = policy.predict(source.batch(np.array([0, 8])))
    assert {t.device for t in (outputs, actions, valid)} == {meta}
    assert outputs.shape == actions.shape == (2, 4, 2)
