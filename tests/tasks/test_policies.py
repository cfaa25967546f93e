"""Policies and the way they act side by side."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks import tasks
from stab.tasks.policies import MLP, Actor, MLPStack, Policy, Stack, build, output_size, policies
from stab.tasks.policies.kernels.dropout import Dropout
from stab.tasks.policies.kernels.linear import Linear
from stab.tasks.transitions import Transitions

BOX = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


WIDE = gym.spaces.Box(-100.0, 100.0, (3,), np.float32)  # nothing is clipped
ONE = gym.spaces.Box(-100.0, 100.0, (1,), np.float32)
SPACES = {
    "box": WIDE,
    "discrete": gym.spaces.Discrete(5),
    "one action": ONE,
    "two choices": gym.spaces.Discrete(2),
}


def mlp(width=33, depth=2, obs=11, space=BOX, dropout=0.0, squashed=False, seed=0, **more):
    torch.manual_seed(seed)
    mean, std = torch.randn(obs), torch.rand(obs) + 0.5
    return MLP(
        mean, std, space, width=width, depth=depth, dropout=dropout, squashed=squashed, **more
    ).eval()


def batch_of(observations, actions):
    """A batch of transitions of one episode."""
    count = len(observations)
    return Transitions(observations, actions, np.zeros(count, dtype=np.int64)).batch(
        np.arange(count)
    )


def family(count, **settings):
    """An architecture and the stacked parameters of ``count`` policies."""
    policies = [mlp(seed=i, **settings) for i in range(count)]
    states = [p.state_dict() for p in policies]
    return (
        policies[0],
        {name: torch.stack([s[name] for s in states]) for name in states[0]},
        policies,
    )


def observations(policies, rows, obs=11, seed=0):
    return np.random.default_rng(seed).standard_normal((policies, rows, obs)).astype(np.float32)


def alone(stacked, i):
    return {name: value[i : i + 1].clone() for name, value in stacked.items()}


# The network


@pytest.mark.parametrize(("width", "depth"), [(33, 2), (8, 1), (5, 3), (7, 0)])
def test_mlp_by_hand(width, depth):
    policy = mlp(width, depth)
    obs = torch.randn(6, 11)
    out = (obs.numpy().astype(np.float64) - policy.mean.numpy()) / policy.std.numpy()
    linears = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
    assert len(linears) == depth + 1
    for i, layer in enumerate(linears):
        out = out @ layer.weight.detach().numpy().astype(np.float64).T + layer.bias.detach().numpy()
        out = np.maximum(out, 0) if i < depth else out
    np.testing.assert_allclose(policy(obs).detach().numpy(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gaussian", [False, True])
def test_an_mlp_s_loss_is_the_mean_over_its_samples(gaussian):
    policy = mlp(8, 2, gaussian=gaussian)
    assert policy.additive
    observations, actions = torch.randn(12, 11), torch.rand(12, 3)
    whole = policy.loss(batch_of(observations, actions))
    parts = [policy.loss(batch_of(observations[i : i + 4], actions[i : i + 4])) for i in (0, 4, 8)]
    torch.testing.assert_close(whole, sum(parts) / 3)


def test_what_others_make_of_it_is_not_taken_for_a_mean():
    class Normed(MLP):
        pass

    assert not Policy().additive
    box = gym.spaces.Box(-1, 1, (3,))
    made = Normed(torch.zeros(11), torch.ones(11), box, width=4, depth=1, dropout=0, squashed=False)
    assert not made.additive
    hopper = tasks.get("hopper")(name="hopper")
    assert hopper.additive(mlp(4, 1))
    assert not hopper.additive(made)

    class Other(type(hopper)):
        def loss(self, policy, batch):
            return policy.loss(batch)

    assert not Other("hopper").additive(mlp(4, 1))


def test_layer_norm_by_hand():
    """Linear, LayerNorm (biased variance, eps 1e-5, learned scale and shift), ReLU; none after the last layer."""
    policy = mlp(norm=True, dropout=0.1)
    kinds = [Linear, nn.LayerNorm, nn.ReLU, Dropout]
    assert [type(layer) for layer in policy.layers] == [*kinds, *kinds, Linear]
    for layer in policy.layers:
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    obs = torch.randn(6, 11)
    weights = {
        name: value.numpy().astype(np.float64) for name, value in policy.state_dict().items()
    }
    out = (obs.numpy() - weights["mean"]) / weights["std"]
    for i in (0, 4):
        out = out @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        out = (out - out.mean(1, keepdims=True)) / np.sqrt(out.var(1, keepdims=True) + 1e-5)
        out = np.maximum(
            out * weights[f"layers.{i + 1}.weight"] + weights[f"layers.{i + 1}.bias"], 0
        )
    out = out @ weights["layers.8.weight"].T + weights["layers.8.bias"]
    np.testing.assert_allclose(policy(obs).detach().numpy(), out, rtol=1e-4, atol=1e-5)


def test_squashed_by_hand():
    """low + (tanh(out) + 1) / 2 * (high - low): in the loss too, so that training and acting agree."""
    space = gym.spaces.Box(
        np.array([-2.0, 0.0, 5.0], np.float32), np.array([2.0, 1.0, 6.0], np.float32)
    )
    linear, squashed = mlp(space=space), mlp(space=space, squashed=True)
    obs = 3 * torch.randn(50, 11)
    out = linear(obs).detach().double().numpy()
    expected = space.low + (np.tanh(out) + 1) / 2 * (space.high - space.low)
    np.testing.assert_allclose(squashed(obs).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        actions = squashed.act(obs, None)[0]
    assert ((actions >= space.low) & (actions <= space.high)).all()
    with pytest.raises(StabError, match="no bounds"):
        mlp(space=gym.spaces.Box(-np.inf, np.inf, (3,)), squashed=True)


def test_dropout_acts_in_training_only():
    policy = mlp(dropout=0.5)
    obs = torch.randn(4, 11)
    assert torch.equal(policy(obs), policy(obs))
    policy.train()
    assert not torch.equal(policy(obs), policy(obs))
    assert not any(isinstance(layer, nn.Dropout) for layer in mlp(dropout=0.0).layers)


def test_mean_and_std_are_buffers_not_parameters():
    policy = mlp()
    assert {"mean", "std"} == {name for name, _ in policy.named_buffers()}
    assert {"mean", "std"} < set(policy.state_dict())
    assert mlp(squashed=True).state_dict().keys() == policy.state_dict().keys()


def test_loss_by_hand():
    policy = mlp()
    batch = batch_of(torch.randn(5, 11), torch.randn(5, 3))
    error = (policy(batch.observations) - batch.actions).detach().double().numpy()
    assert policy.loss(batch).item() == pytest.approx((error**2).sum() / 15, rel=1e-5)
    discrete = mlp(space=gym.spaces.Discrete(4))
    batch = batch_of(torch.randn(5, 11), torch.tensor([0, 3, 1, 2, 2]))
    logits = discrete(batch.observations).detach().double().numpy()
    expected = np.mean(
        [np.log(np.exp(row).sum()) - row[a] for row, a in zip(logits, [0, 3, 1, 2, 2], strict=True)]
    )
    assert discrete.loss(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("squashed", [False, True], ids=["linear", "squashed"])
def test_gaussian_loss_is_the_negative_log_likelihood(squashed):
    policy, plain = mlp(gaussian=True, squashed=squashed), mlp(squashed=squashed)
    with torch.no_grad():
        policy.layers[-1].weight.mul_(5)
    batch = batch_of(3 * torch.randn(50, 11), torch.randn(50, 3))
    raw = policy.layers((batch.observations - policy.mean) / policy.std).detach().double()
    mean, log_std = raw[:, :3], -5 + 7 * (torch.tanh(raw[:, 3:]) + 1) / 2
    assert log_std.min() < -3 < 0.5 < log_std.max()
    mean = torch.tanh(mean) if squashed else mean  # BOX is (-1, 1)
    expected = (
        -torch.distributions.Normal(mean, log_std.exp()).log_prob(batch.actions.double()).mean()
    )
    assert policy.loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)
    assert policy.layers[-1].out_features == 2 * plain.layers[-1].out_features
    outputs = policy(1e6 * batch.observations)[:, 3:]
    assert (outputs.min(), outputs.max()) == (-5, 2)


@pytest.mark.parametrize("kind", [MLPStack, Stack])
@pytest.mark.parametrize("squashed", [False, True], ids=["linear", "squashed"])
def test_a_gaussian_policy_acts_on_its_mean_alone(squashed, kind):
    policy, stacked, _ = family(4, gaussian=True, squashed=squashed)
    obs = observations(4, 8)
    before = kind(policy, stacked).act(obs, [0, 1, 2, 3])
    assert before.shape == (4, 8, 3)
    means = {k: v[:, :3] if k.startswith("layers.4") else v for k, v in stacked.items()}
    expected = Stack(mlp(squashed=squashed), means).act(obs, [0, 1, 2, 3])
    np.testing.assert_allclose(before, expected, rtol=1e-5, atol=1e-5)
    for name in ("layers.4.weight", "layers.4.bias"):
        stacked[name][:, 3:] = torch.nan
    assert (kind(policy, stacked).act(obs, [0, 1, 2, 3]) == before).all()


def test_box_actions_are_clipped_and_shaped_to_the_space():
    low, high = np.array([[-1.0, -2.0], [-3.0, 0.0]]), np.array([[1.0, 2.0], [3.0, 0.5]])
    space = gym.spaces.Box(low, high, dtype=np.float64)
    policy = mlp(space=space)
    out = torch.tensor([[5.0, -5, 1, 0.25], [-5, 5, -5, -5]])
    actions = policy.to_actions(out)
    assert actions.dtype == np.float64
    assert actions.tolist() == [[[1, -2], [1, 0.25]], [[-1, 2], [-3, 0]]]
    assert policy.to_actions(out[None]).shape == (1, 2, 2, 2)


def test_discrete_actions_are_the_likeliest_counted_from_the_start():
    logits = torch.tensor([[[0.0, 3, 1], [2, 1, 0]]])
    assert mlp(space=gym.spaces.Discrete(3)).to_actions(logits).tolist() == [[1, 0]]
    assert mlp(space=gym.spaces.Discrete(3, start=5)).to_actions(logits).tolist() == [[6, 5]]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (BOX, 3),
        (gym.spaces.Box(-1, 1, (2, 2)), 4),
        (gym.spaces.Box(-1, 1, ()), 1),
        (gym.spaces.Discrete(7, start=2), 7),
    ],
)
def test_output_size(space, size):
    assert output_size(space) == size


@pytest.mark.parametrize(
    "space",
    [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(0, 255, (3,), np.uint8), gym.spaces.Dict({})],
    ids=str,
)
def test_unsupported_spaces(space):
    with pytest.raises(StabError, match="not supported"):
        output_size(space)


def test_actor_by_hand():
    torch.manual_seed(0)
    space = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    sizes = {"trunk.0": (4, 3), "trunk.1": (5, 4), "mean": (2, 5)}
    weights = {}
    for name, (outputs, inputs) in sizes.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = (
            torch.randn(outputs, inputs),
            torch.randn(outputs),
        )
    obs = torch.randn(6, 3)
    out = obs.double()
    for name in sizes:
        out = out @ weights[f"{name}.weight"].double().T + weights[f"{name}.bias"].double()
        out = out.relu() if name != "mean" else out.tanh()
    expected = torch.tensor([-2.0, 0.0]) + (out + 1) / 2 * torch.tensor([4.0, 1.0])
    torch.testing.assert_close(Actor(weights, space)(obs).double(), expected, rtol=1e-5, atol=1e-5)


# Policy strings


def test_build():
    policy = build(
        Recipe(policy="mlp:width=12,depth=1", dropout=0.25), torch.zeros(4), torch.ones(4), BOX
    )
    assert [type(layer) for layer in policy.layers] == [Linear, nn.ReLU, Dropout, Linear]
    assert policy.layers[0].weight.shape == (12, 4)
    assert policy.layers[2].p == 0.25
    default = build(Recipe(), torch.zeros(4), torch.ones(4), BOX)
    far = torch.full((1, 4), 1e6)
    assert default(far).abs().max() <= 1  # squashed into the bounds
    assert (
        build(Recipe(policy="mlp:actions=clipped"), torch.zeros(4), torch.ones(4), BOX)(far)
        .abs()
        .max()
        > 1
    )
    assert (
        build(Recipe(), torch.zeros(4), torch.ones(4), gym.spaces.Discrete(4))(far).abs().max() > 1
    )
    assert [layer.out_features for layer in default.layers if isinstance(layer, nn.Linear)] == [
        256,
        256,
        3,
    ]
    gaussian = build(
        Recipe(policy="mlp:likelihood=gaussian,norm=layer"), torch.zeros(4), torch.ones(4), BOX
    )
    assert gaussian.gaussian
    assert gaussian.norm
    assert gaussian.layers[-1].out_features == 6
    assert not default.gaussian
    assert not default.norm


def test_every_policy_says_in_a_line_what_it_is():
    assert policies.names()[:3] == ["mlp", "transformer", "gpt"]
    for name in policies.names():
        assert len(policies.get(name).__doc__.splitlines()) == 1


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("mlpp", "Did you mean 'mlp'"),
        ("mlp:widht=3", "Did you mean 'width'"),
        ("mlp:width=x", "integer >= 1"),
        ("mlp:width=0", "integer >= 1"),
        ("mlp:width=-4", "integer >= 1"),
        ("mlp:depth=-1", "integer >= 0"),
        ("mlp:width=3,width=4", "twice"),
        ("mlp:actions=tanh", "squashed or clipped"),
        ("mlp:norm=batch", "none or layer"),
        ("mlp:likelihood=laplace", "mse or gaussian"),
        ("", "unknown policy"),
    ],
)
def test_a_policy_string_that_is_wrong(string, message):
    with pytest.raises(StabError) as caught:
        build(Recipe(policy=string), torch.zeros(4), torch.ones(4), BOX)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["mlp", "transformer"])
def test_a_policy_string_that_does_not_fit_the_action_space(policy):
    def make(arguments, space):
        return build(Recipe(policy=f"{policy}:{arguments}"), torch.zeros(4), torch.ones(4), space)

    with pytest.raises(
        StabError,
        match=r"likelihood=gaussian needs Box actions, got Discrete\(4\): leave likelihood out",
    ):
        make("likelihood=gaussian", gym.spaces.Discrete(4))
    assert not make("likelihood=mse", gym.spaces.Discrete(4)).gaussian
    unbounded = gym.spaces.Box(-np.inf, np.inf, (3,))
    with pytest.raises(
        StabError, match=rf"^train.policy='{policy}:': actions .* no bounds .* use actions=clipped$"
    ):
        make("", unbounded)
    assert make("actions=clipped", unbounded).squash is None
    with pytest.raises(StabError, match=r"^actions .* not supported"):
        make("", gym.spaces.MultiDiscrete([2, 3]))


# Side by side

SIZES = [(33, 3), (33, 8), (256, 8), (7, 1), (16, 16), (65, 5), (1, 2)]


@pytest.mark.parametrize("kind", [MLPStack, Stack])
@pytest.mark.parametrize(
    ("space", "squashed"),
    [
        ("box", False),
        ("box", True),
        ("one action", False),
        ("one action", True),
        ("discrete", False),
        ("two choices", False),
    ],
)
@pytest.mark.parametrize(("width", "rows"), SIZES)
def test_a_policys_actions_do_not_depend_on_its_company(width, rows, space, squashed, kind):
    """Bitwise: together, alone, in another order, after others have ended."""
    count = 7
    policy, stacked, _ = family(count, width=width, space=SPACES[space], squashed=squashed)
    obs = observations(count, rows)
    together = kind(policy, stacked).act(obs, list(range(count)))
    for i in range(count):
        one = kind(policy, alone(stacked, i)).act(obs[i : i + 1], [0])
        assert (one[0] == together[i]).all()
    order = [3, 1, 6, 0, 5, 2, 4]
    permuted = kind(policy, {k: v[order] for k, v in stacked.items()}).act(
        obs[order], list(range(count))
    )
    assert (permuted == together[order]).all()
    some = kind(policy, stacked)
    some.act(obs, list(range(count)))
    for live in ([0, 2, 3, 6], [2, 6], [6]):
        assert (some.act(obs, live) == together[live]).all()


@pytest.mark.parametrize(
    "settings", [{"gaussian": True}, {"gaussian": True, "squashed": True}, {"norm": True}], ids=str
)
@pytest.mark.parametrize(("width", "rows"), SIZES)
def test_neither_do_those_of_other_kinds(width, rows, settings):
    count = 5
    policy, stacked, _ = family(count, width=width, space=ONE, **settings)
    assert type(policy.stack(stacked)) is (Stack if "norm" in settings else MLPStack)
    obs = observations(count, rows)
    together = policy.stack(stacked).act(obs, list(range(count)))
    for i in range(count):
        assert (policy.stack(alone(stacked, i)).act(obs[i : i + 1], [0])[0] == together[i]).all()
    some = policy.stack(stacked)
    for live in (list(range(count)), [0, 3], [3]):
        assert (some.act(obs, live) == together[live]).all()


@pytest.mark.parametrize("rows", [1, 3, 8, 25])
def test_a_rows_action_does_not_depend_on_what_the_other_rows_hold(rows):
    """Padding of an ended episode is whatever it saw last."""
    policy, stacked, _ = family(3)
    obs = observations(3, rows)
    before = MLPStack(policy, stacked).act(obs, [0, 1, 2])
    other = obs.copy()
    other[:, 1:] = 1e6
    assert (MLPStack(policy, stacked).act(other, [0, 1, 2])[:, 0] == before[:, 0]).all()


@pytest.mark.parametrize("squashed", [False, True], ids=["linear", "squashed"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize(("width", "rows"), SIZES)
def test_the_batched_stack_agrees_with_one_module_a_policy(width, rows, depth, squashed):
    policy, stacked, policies = family(5, width=width, depth=depth, dropout=0.3, squashed=squashed)
    obs = observations(5, rows)
    live = [0, 1, 3, 4]
    fast, slow = MLPStack(policy, stacked).act(obs, live), Stack(policy, stacked).act(obs, live)
    assert fast.shape == slow.shape == (4, rows, 3)
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)
    for i, p in enumerate(live):
        with torch.inference_mode():
            expected = policies[p].act(torch.tensor(obs[p]), None)[0]
        np.testing.assert_allclose(slow[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [MLPStack, Stack])
def test_acting_changes_neither_policy_nor_parameters_nor_observations(kind):
    policy, stacked, _ = family(3)
    policy.train()
    before, state = copy.deepcopy(stacked), copy.deepcopy(policy.state_dict())
    obs = observations(3, 4)
    kept = obs.copy()
    stack = kind(policy, stacked)
    first = stack.act(obs, [0, 1, 2])
    assert (stack.act(obs, [0, 1, 2]) == first).all()
    assert (obs == kept).all()
    assert policy.training
    assert all(torch.equal(stacked[k], v) for k, v in before.items())
    assert all(torch.equal(policy.state_dict()[k], v) for k, v in state.items())
    assert all(p.requires_grad for p in policy.parameters())


def test_stacks_of_the_right_kind():
    policy, stacked, _ = family(2)
    assert type(policy.stack(stacked)) is MLPStack

    class Other(Policy):
        def __init__(self):
            super().__init__()
            self.action_space = BOX
            self.layer = nn.Linear(11, 3)

        def forward(self, observations):
            return self.layer(observations)

    other = Other()
    assert type(other.stack({k: v[None] for k, v in other.state_dict().items()})) is Stack
