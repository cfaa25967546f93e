"""The closed loop against a slow loop, one environment at a time."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from stab.tasks.control.episodes import GymEpisodes, make_episodes
from stab.tasks.control.rollout import EPISODES, rollout
from stab.tasks.policies import MLP, Policy, Stack
from stab.tasks.references import random_returns

SIZES = {"Pendulum-v1": 3, "CartPole-v1": 4, "Hopper-v5": 11}
HORIZON = {"Pendulum-v1": 40, "CartPole-v1": 60, "Hopper-v5": 60}


def space(env):
    return gym.make(env).action_space


class Gain(Policy):
    """Every action is a number times one observation: exact in floating point, whatever the company."""

    def __init__(self, env):
        super().__init__()
        self.env = env
        self.action_space = space(env)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, observations):
        discrete = isinstance(self.action_space, gym.spaces.Discrete)
        count = self.action_space.n if discrete else self.action_space.shape[0]
        columns = [observations[:, 2] * self.gain * (i + 1) * (-1.0) ** i for i in range(count)]
        return torch.stack(columns, -1)


def gains(env, values):
    return Gain(env), {"gain": torch.tensor(values, dtype=torch.float32)[:, None]}


def mlps(env, count, width=33, seed=0):
    made = []
    for i in range(count):
        torch.manual_seed(seed + i)
        made.append(
            MLP(
                torch.zeros(SIZES[env]),
                torch.ones(SIZES[env]),
                space(env),
                width=width,
                depth=2,
                dropout=0.0,
                squashed=False,
            )
        )
    states = [p.state_dict() for p in made]
    return made[0], {name: torch.stack([s[name] for s in states]) for name in states[0]}


def environments(env):
    return make_episodes(gym.spec(env))


def one(stacked, i):
    return {name: value[i : i + 1].clone() for name, value in stacked.items()}


@torch.inference_mode()
def slow(env, policy, stacked, starts, horizons):
    """One policy after the other, fresh environments, an action for every step of every start; stop at the first end."""
    count = len(next(iter(stacked.values())))
    cumulative = np.zeros((count, len(starts), len(horizons)))
    lengths = np.zeros((count, len(starts)), dtype=int)
    for p in range(count):
        stack = policy.stack(one(stacked, p))
        envs = [gym.make(env, max_episode_steps=horizons[-1]) for _ in starts]
        obs = np.stack([e.reset(seed=s)[0] for e, s in zip(envs, starts, strict=True)]).astype(
            np.float32
        )
        rewards, over = [[] for _ in starts], [False] * len(starts)
        while not all(over):
            actions = stack.act(obs[None], [0])[0]
            for n, e in enumerate(envs):
                if over[n]:
                    continue
                observation, reward, terminated, truncated, _ = e.step(actions[n])
                obs[n] = observation
                rewards[n].append(reward)
                over[n] = terminated or truncated
        for n, r in enumerate(rewards):
            lengths[p, n] = len(r)
            for h, horizon in enumerate(horizons):
                total = 0.0
                for reward in r[:horizon]:
                    total += reward
                cumulative[p, n, h] = total
    return cumulative, lengths


STARTS = [50_000, 3, 77]


@pytest.mark.parametrize("env", SIZES)
def test_equals_the_slow_loop_bitwise(env):
    horizons = [1, 7, 20, HORIZON[env]]
    policy, stacked = gains(env, [0.5, -2.0, 0.01, 30.0])
    found = rollout(environments(env), policy, stacked, STARTS, horizons)
    expected = slow(env, policy, stacked, STARTS, horizons)
    assert found[0].shape == (4, 3, 4)
    assert found[0].dtype == np.float64
    assert found[1].shape == (4, 3)
    assert found[1].dtype == np.int64
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()
    assert len(np.unique(found[0][:, :, -1])) > 3


def truly_alone(env, gain, start, horizon):
    """Without any stack: the reference of the reference."""
    e = gym.make(env, max_episode_steps=horizon)
    obs, rewards, low, high = e.reset(seed=start)[0], [], e.action_space.low, e.action_space.high
    while True:
        value = np.float32(obs[2]) * np.float32(gain)
        action = np.array(
            [value * np.float32(i + 1) * np.float32((-1) ** i) for i in range(len(low))], np.float32
        )
        obs, reward, terminated, truncated, _ = e.step(np.clip(action, low, high))
        rewards.append(reward)
        if terminated or truncated:
            return np.cumsum(rewards), len(rewards)


@pytest.mark.parametrize("env", ["Pendulum-v1", "Hopper-v5"])
def test_equals_one_episode_at_a_time_without_any_stack(env):
    policy, stacked = gains(env, [0.5, -2.0])
    cumulative, lengths = rollout(environments(env), policy, stacked, STARTS, range(1, 31))
    for p, gain in enumerate([0.5, -2.0]):
        for n, start in enumerate(STARTS):
            expected, length = truly_alone(env, gain, start, 30)
            assert lengths[p, n] == length
            np.testing.assert_allclose(cumulative[p, n, :length], expected, rtol=1e-12)
            assert (cumulative[p, n, length:] == cumulative[p, n, length - 1]).all()


@pytest.mark.parametrize("env", SIZES)
def test_mlps_equal_the_slow_loop(env):
    policy, stacked = mlps(env, 3)
    horizons = [10, HORIZON[env]]
    found, expected = (
        rollout(environments(env), policy, stacked, STARTS, horizons),
        slow(env, policy, stacked, STARTS, horizons),
    )
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()


@pytest.mark.parametrize(("width", "starts"), [(33, 3), (33, 8), (256, 8), (7, 1)])
def test_a_policys_returns_do_not_depend_on_its_company(width, starts):
    env, count = "Hopper-v5", 6
    policy, stacked = mlps(env, count, width)
    seeds, horizons = list(range(starts)), [20, 60]
    together = rollout(environments(env), policy, stacked, seeds, horizons)
    order = [4, 2, 0, 5, 1, 3]
    permuted = rollout(
        environments(env), policy, {k: v[order] for k, v in stacked.items()}, seeds, horizons
    )
    for found, expected in zip(permuted, together, strict=True):
        assert (found == expected[order]).all()
    for i in range(count):
        single = rollout(environments(env), policy, one(stacked, i), seeds, horizons)
        assert (single[0][0] == together[0][i]).all()
        assert (single[1][0] == together[1][i]).all()
    assert len(np.unique(together[0][:, 0, -1])) == count


def test_blocks_are_not_seen():
    """More policies than act side by side at once; equal ones get equal numbers wherever they stand."""
    env, most = "CartPole-v1", EPISODES // len(STARTS)
    count = most + 3
    policy, stacked = mlps(env, count)
    stacked = {k: v.clone() for k, v in stacked.items()}
    for value in stacked.values():
        value[-1] = value[2]
    cumulative, lengths = rollout(environments(env), policy, stacked, STARTS, [30])
    assert (cumulative[-1] == cumulative[2]).all()
    for i in (0, most - 1, most, most + 1):
        single = rollout(environments(env), policy, one(stacked, i), STARTS, [30])
        assert (single[0][0] == cumulative[i]).all()
        assert (single[1][0] == lengths[i]).all()


@pytest.mark.parametrize("env", SIZES)
def test_used_environments_equal_fresh_ones(env):
    policy, stacked = mlps(env, 3)
    other, others = mlps(env, 5, seed=40)
    used = environments(env)
    rollout(used, other, others, [9, 8, 7, 6], [25])
    rollout(used, other, others, [1], [HORIZON[env]])
    found = rollout(used, policy, stacked, STARTS, [HORIZON[env]])
    again = rollout(used, policy, stacked, STARTS, [HORIZON[env]])
    fresh = rollout(environments(env), policy, stacked, STARTS, [HORIZON[env]])
    for i in range(2):
        assert (found[i] == fresh[i]).all()
        assert (again[i] == fresh[i]).all()


def test_the_fast_way_to_step_gives_gymnasiums_bits():
    """Falling, clipped and healthy episodes, actions at their limits."""
    env = "Hopper-v5"
    spec = gym.spec(env)
    assert type(make_episodes(spec)) is not GymEpisodes
    policy, stacked = mlps(env, 4)
    bold, loud = gains(env, [50.0, -50.0, 0.0])
    for network, parameters in ((policy, stacked), (bold, loud)):
        fast = rollout(make_episodes(spec), network, parameters, STARTS, [5, 150])
        plain = rollout(GymEpisodes(spec), network, parameters, STARTS, [5, 150])
        assert (fast[0] == plain[0]).all()
        assert (fast[1] == plain[1]).all()
        assert fast[1].min() < 150


def test_an_episode_never_restarts_into_the_sum():
    """CartPole pays 1 a step: the sum is the number of steps, and stays after the fall."""
    policy, stacked = gains("CartPole-v1", [5.0, -5.0, 0.0])
    cumulative, lengths = rollout(
        environments("CartPole-v1"), policy, stacked, STARTS, range(1, 101)
    )
    steps = np.arange(1, 101)
    assert (cumulative == np.minimum(steps, lengths[:, :, None])).all()
    assert lengths.max() < 100
    assert len(np.unique(lengths)) > 1


def test_truncation_at_the_horizon():
    policy, stacked = gains("Pendulum-v1", [0.3])
    cumulative, lengths = rollout(environments("Pendulum-v1"), policy, stacked, STARTS, [5, 17])
    assert (lengths == 17).all()
    longer, _ = rollout(environments("Pendulum-v1"), policy, stacked, STARTS, [5, 17, 30])
    assert (longer[:, :, :2] == cumulative).all()
    assert (longer[:, :, 2] < cumulative[:, :, 1]).all()  # Pendulum's rewards are negative


class Short(gym.Wrapper):
    """Truncates by itself after some steps."""

    def reset(self, **how):
        self.left = 6
        return self.env.reset(**how)

    def step(self, action):
        self.left -= 1
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, terminated, self.left == 0, info


def test_the_environments_own_truncation_ends_an_episode():
    spec = gym.make("Pendulum-v1").spec
    spec.additional_wrappers = (
        gym.envs.registration.WrapperSpec("Short", f"{__name__}:Short", {}),
    )
    policy, stacked = gains("Pendulum-v1", [0.3])
    cumulative, lengths = rollout(make_episodes(spec), policy, stacked, STARTS, [3, 6, 20])
    plain, _ = rollout(environments("Pendulum-v1"), policy, stacked, STARTS, [3, 6])
    assert (lengths == 6).all()
    assert (cumulative[:, :, :2] == plain).all()
    assert (cumulative[:, :, 2] == plain[:, :, 1]).all()


def test_starts_are_reset_seeds():
    policy, stacked = gains("Pendulum-v1", [0.3])
    found, _ = rollout(environments("Pendulum-v1"), policy, stacked, [4, 5, 4], [10])
    assert found[0, 0, 0] == found[0, 2, 0]
    assert found[0, 0, 0] != found[0, 1, 0]


class Remembering(Policy):
    """Acts on how many steps it has acted and on the first observation of its episode."""

    def __init__(self, env):
        super().__init__()
        self.action_space = space(env)
        self.gain = nn.Parameter(torch.zeros(1))
        self.asked = []

    def memory(self, episodes):
        self.asked.append(episodes)
        return {"step": 0, "first": None}

    def act(self, observations, memory):
        first = observations[:, :1] if memory["first"] is None else memory["first"]
        assert first.shape == (len(observations), 1)
        action = self.gain * (memory["step"] + 1) * first
        return self.to_actions(action), {"step": memory["step"] + 1, "first": first}


def test_a_policy_with_memory_gets_it_by_policy_and_by_episode():
    env, values = "Pendulum-v1", [0.1, -0.2, 0.05]
    policy = Remembering(env)
    stacked = {"gain": torch.tensor(values)[:, None]}
    made = environments(env)
    cumulative, _ = rollout(made, policy, stacked, STARTS, [4, 12])
    for p, gain in enumerate(values):
        for n, start in enumerate(STARTS):
            e = gym.make(env)
            first, total = e.reset(seed=start)[0][0], 0.0
            for step in range(12):
                action = np.float32(gain) * np.float32(step + 1) * first
                total += e.step(np.clip([action], -2, 2).astype(np.float32))[1]
                if step == 3:
                    assert cumulative[p, n, 0] == pytest.approx(total, rel=1e-9)
            assert cumulative[p, n, 1] == pytest.approx(total, rel=1e-9)
    again, _ = rollout(
        made, policy, stacked, STARTS, [4, 12]
    )  # every rollout begins with a fresh memory
    assert (again == cumulative).all()
    for i in range(3):
        assert (
            rollout(made, policy, one(stacked, i), STARTS, [4, 12])[0][0] == cumulative[i]
        ).all()


def test_memory_survives_the_end_of_other_policies():
    """CartPole: the policy that falls first leaves, the others go on with their own memories."""

    class Alternate(Remembering):
        """Pushes right for ``gain`` steps, then left for as many, and so on."""

        def act(self, observations, memory):
            period = max(1, int(self.gain))
            right = (memory["step"] // period) % 2
            return np.full(len(observations), right), {"step": memory["step"] + 1, "first": None}

    policy, periods = Alternate("CartPole-v1"), [30.0, 1.0, 2.0]
    stacked = {"gain": torch.tensor(periods)[:, None]}
    made = environments("CartPole-v1")
    together, lengths = rollout(made, policy, stacked, STARTS, [80])
    assert lengths[0].max() < lengths[1].min()
    for i in range(3):
        single, length = rollout(made, policy, one(stacked, i), STARTS, [80])
        assert (single[0] == together[i]).all()
        assert (length[0] == lengths[i]).all()


def test_discrete_actions():
    policy, stacked = mlps("CartPole-v1", 4)
    seen = []
    rollout(
        environments("CartPole-v1"),
        policy,
        stacked,
        STARTS,
        [50],
        record=lambda *step: seen.append(step),
    )
    actions = [step[2] for step in seen]
    assert all(action in (0, 1) for action in actions)
    assert len({int(a) for a in actions}) == 2
    for episode, observation, action, *_ in seen:
        p = episode // len(STARTS)
        policy.load_state_dict({name: value[p] for name, value in stacked.items()})
        logits = policy(torch.tensor(observation, dtype=torch.float32)[None])[0]
        assert logits[action] >= logits.max() - 1e-5


def test_the_recorder_sees_every_step_of_every_episode():
    env = "Hopper-v5"
    policy, stacked = mlps(env, 2)
    steps = {}
    cumulative, lengths = rollout(
        environments(env),
        policy,
        stacked,
        STARTS,
        [60],
        record=lambda i, *step: steps.setdefault(divmod(i, 3), []).append(step),
    )
    assert set(steps) == {(p, n) for p in range(2) for n in range(3)}
    for (p, n), episode in steps.items():
        assert len(episode) == lengths[p, n]
        assert sum(step[2] for step in episode) == pytest.approx(cumulative[p, n, -1], rel=1e-12)
        assert [bool(s[3] or s[4]) for s in episode] == [False] * (len(episode) - 1) + [True]
        e = gym.make(env, max_episode_steps=60)
        observation = e.reset(seed=STARTS[n])[0]
        for (
            before,
            action,
            reward,
            terminated,
            truncated,
            after,
        ) in episode:  # replays to the bit, unrounded
            assert (before == observation).all()
            observation, *rest = e.step(action)
            assert (after == observation).all()
            assert rest[:3] == [reward, terminated, truncated]


def test_progress_goes_from_zero_to_one():
    seen = []
    policy, stacked = gains("Pendulum-v1", [0.1] * (EPISODES + 1))
    rollout(environments("Pendulum-v1"), policy, stacked, [0], [120], progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 1
    assert seen[-1] == 1


def test_rolling_out_leaves_gradients_possible():
    policy, stacked = mlps("Pendulum-v1", 2)
    rollout(environments("Pendulum-v1"), policy, stacked, [0], [5])
    policy(torch.randn(3, 3)).sum().backward()
    assert policy.layers[0].weight.grad is not None


@pytest.mark.parametrize("env", SIZES)
def test_random_returns(env):
    cumulative, lengths = random_returns(gym.make(env, max_episode_steps=-1), [30_000, 30_001], 50)
    assert cumulative.shape == (2, 50)
    for n, seed in enumerate([30_000, 30_001]):
        e = gym.make(env, max_episode_steps=50)
        e.reset(seed=seed)
        e.action_space.seed(seed)
        rewards = []
        while True:
            _, reward, terminated, truncated, _ = e.step(e.action_space.sample())
            rewards.append(reward)
            if terminated or truncated:
                break
        assert lengths[n] == len(rewards)
        expected = np.cumsum(rewards)
        np.testing.assert_allclose(cumulative[n, : len(rewards)], expected, rtol=1e-12)
        assert (cumulative[n, len(rewards) :] == cumulative[n, len(rewards) - 1]).all()


def test_the_generic_stack_rolls_out_like_the_batched_one():
    """The same policies through one module each: the same returns but for rounding (Pendulum is tame for 40 steps)."""
    policy, stacked = mlps("Pendulum-v1", 3)
    fast, _ = rollout(environments("Pendulum-v1"), policy, stacked, STARTS, [40])

    class Plain(MLP):
        def stack(self, stacked):
            return Stack(self, stacked)

    plain = Plain(
        torch.zeros(3),
        torch.ones(3),
        space("Pendulum-v1"),
        width=33,
        depth=2,
        dropout=0.0,
        squashed=False,
    )
    generic, _ = rollout(environments("Pendulum-v1"), plain, stacked, STARTS, [40])
    np.testing.assert_allclose(fast, generic, rtol=1e-3)
