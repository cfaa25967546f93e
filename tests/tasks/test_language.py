"""Texts as a task: the environment, its datasets, generation, and the reward that the source gives."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import minari
import numpy as np
import pytest
import torch

from stab.checks import parametrize_with_checks
from stab.recipe import Recipe
from stab.registry import StabError
from stab.run import rows
from stab.tasks import datasets, environments, tasks
from stab.tasks.catalog import LANGUAGE
from stab.tasks.environments import TOKENS
from stab.tasks.language import generate, grammar
from stab.tasks.language.environment import source
from stab.tasks.language.source import END
from stab.tasks.language.windows import windows
from stab.train import Fresh as FreshData
from stab.train import train

SMALL = {"name": "stories", "train_episodes": 2, "validation_episodes": 1}
RECIPE = Recipe(policy="gpt:width=32,depth=1", batch_size=8, updates=20)


@pytest.fixture(scope="module")
def stories(minari_root):
    task = tasks.get("stories")(**SMALL)
    task.dataset()
    return task


@pytest.fixture(scope="module")
def policies(stories):
    """Three policies, the last two a little trained: architecture, stacked parameters."""
    made = []
    batch = stories.dataset().train.batch(np.arange(16))
    for seed in range(3):
        torch.manual_seed(seed)
        policy = stories.policy(RECIPE)
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
        for _ in range(20 * seed):
            optimizer.zero_grad()
            stories.loss(policy, batch).backward()
            optimizer.step()
        made.append(policy.eval())
    return made, {
        name: torch.stack([p.state_dict()[name] for p in made]) for name in made[0].state_dict()
    }


@parametrize_with_checks([functools.partial(tasks.get("stories"), **SMALL)])
def test_the_conformance_kit(check, minari_root):
    check.run()


def test_the_dataset_is_an_ordinary_one_of_minari(stories):
    found = minari.load_dataset("stab/stories/expert-v0")
    assert found.env_spec.id == TOKENS
    assert found.env_spec.kwargs == {
        "vocabulary": len(grammar.WORDS),
        "source": "stories",
        "texts": 100,
    }
    assert found.recover_environment(eval_env=True).spec.kwargs == {
        "vocabulary": len(grammar.WORDS),
        "source": "stories",
        "prompted": True,
    }
    assert datasets.stab_metadata(found)["vocabulary"] == list(grammar.WORDS)
    rng = np.random.default_rng(0)
    told = np.concatenate([grammar.story(rng) for _ in range(100)])
    episode = found[0]
    assert np.array_equal(episode.actions, told)
    assert np.array_equal(episode.observations, [END, *told])
    assert bool(episode.terminations[-1])
    assert int(episode.terminations.sum()) == 1
    first = told.tolist().index(END) + 1
    assert episode.rewards[:first].tolist() == grammar.log_likelihood(told[:first].tolist())


def test_every_action_replays_bit_for_bit(stories):
    replay = datasets.replay(datasets.load("stab/stories/expert-v0"))
    assert replay.exact
    assert (replay.episodes, replay.unseeded) == (25, 0)


def test_a_sample_is_a_whole_story(stories):
    train, validation = stories.dataset().train, stories.dataset().validation
    assert (len(train), len(validation)) == (200, 100)
    inputs, targets = train.batch(np.array([3, 150, 0]))
    for row, seen in zip(targets.tolist(), inputs.tolist(), strict=True):
        story = row[: row.index(END) + 1]
        assert not any(value == grammar.FLOOR for value in grammar.log_likelihood(story))
        assert seen[: len(story)] == [END, *story[:-1]]
        assert set(row[len(story) :]) <= {-100}
    assert max(train.lengths) <= stories.source.context


@pytest.mark.parametrize(
    ("name", "policy", "settings"),
    [
        ("stories", "gpt:width=32,depth=1", {"train_episodes": 2, "validation_episodes": 1}),
        ("cliff", "transformer:context=200,width=16,depth=1", {}),
    ],
)
def test_accumulation_is_one_larger_batch_though_samples_differ_in_length(
    minari_root, name, policy, settings
):
    task = tasks.get(name)(name=name, **settings)
    recipe = Recipe(policy=policy, optimizer="SGD", lr=1.0, updates=1, batch_size=2, accumulation=8)
    large = replace(recipe, batch_size=16, accumulation=1)
    (accumulated,), (whole,), (start,) = (
        list(train(task, one, 3, {}, [1])) for one in (recipe, large, replace(large, lr=1e-30))
    )
    # Counted as equals, micro-batches give a step that is off by some per cent.
    for key in start.raw:
        step = (whole.raw[key] - start.raw[key]).norm()
        assert (accumulated.raw[key] - whole.raw[key]).norm() <= 1e-4 * step + 1e-7, key


def test_windows_hold_every_token_once():
    texts = [np.arange(1, n + 1) for n in (1, 5, 6, 12, 13)]
    made = windows(texts, 6)
    assert made.lengths.tolist() == [1, 5, 6, 6, 6, 6, 6, 1]
    assert torch.equal(made.targets, torch.from_numpy(np.concatenate(texts)))
    inputs, targets = made.batch(np.arange(len(made)))
    assert inputs.shape == targets.shape == (8, 6)
    assert sorted(targets[targets >= 0].tolist()) == sorted(np.concatenate(texts).tolist())
    after_first = inputs[:, 1:][targets[:, 1:] >= 0]
    assert torch.equal(
        after_first, targets[:, :-1][targets[:, 1:] >= 0]
    )  # what was next is seen then


def test_references_are_uniform_tokens_and_true_stories(stories):
    low, high = stories.dataset().references.random, stories.dataset().references.expert
    told = []
    for seed in range(high.first_seed, high.first_seed + high.episodes):
        story = grammar.story(np.random.default_rng(seed))
        told.append(sum(grammar.log_likelihood(story)[grammar.opening(story) :][: stories.horizon]))
    assert high.cumulative[-1] == pytest.approx(np.mean(told), abs=1e-9)
    assert high.length < stories.horizon
    assert low.length == stories.horizon  # random tokens never end a story where it may end
    assert low.cumulative[-1] < grammar.FLOOR * 0.9 * stories.horizon
    J = stories.dataset().references.normalise(
        np.array([[low.cumulative[-1]], [high.cumulative[-1]]]), [stories.horizon]
    )
    assert J.ravel() == pytest.approx([0, 1])


def test_a_rollout_is_what_the_environment_gives_step_by_step(stories, policies):
    """The reference: Gymnasium's loop over the registered environment, the whole text read anew for every token."""
    made, stacked = policies
    starts, horizons = [50_000, 50_001, 50_007], [1, 10, 40]
    cumulative, lengths, infos = stories.rollout(made[0], stacked, starts, horizons)
    environments.register()
    env = minari.load_dataset("stab/stories/expert-v0").recover_environment(eval_env=True)
    for i, policy in enumerate(made):
        for n, start in enumerate(starts):
            last, info = env.reset(seed=start)
            tokens, total, sums = list(info["prompt"]), 0.0, []
            assert last == tokens[-1]
            draws = np.random.default_rng((start, 1))
            for _ in range(horizons[-1]):
                with torch.inference_mode():
                    logits = policy(torch.tensor([tokens]))[0, -1]
                token = int(
                    (
                        logits + torch.from_numpy(draws.gumbel(size=len(logits)).astype(np.float32))
                    ).argmax()
                )
                last, reward, terminated, truncated, _ = env.step(token)
                tokens.append(token)
                assert last == token
                total += reward
                sums.append(total)
                if terminated or truncated:
                    break
            sums += [total] * (horizons[-1] - len(sums))
            written = tokens[len(info["prompt"]) :]
            said = infos[i][n]["text"]
            assert "".join([*said["prompt"], *said["tokens"]]) == " " + grammar.decode(tokens[1:])
            assert (len(said["prompt"]), len(said["tokens"])) == (
                len(info["prompt"]) - 1,
                len(written),
            )
            assert cumulative[i, n].tolist() == pytest.approx(
                [sums[h - 1] for h in horizons], abs=1e-9
            )
            assert lengths[i, n] == len(written)
            measures = grammar.consistency(tokens[1:], len(info["prompt"]) - 1)
            assert infos[i][n]["measures"] == measures
            assert set(measures) < set(stories.metrics)


def test_texts_of_a_policy_do_not_depend_on_its_company(stories, policies):
    made, stacked = policies
    many = {name: value[[0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 2]] for name, value in stacked.items()}
    together = stories.rollout(made[0], many, [1, 2, 3], [30])
    for i, which in enumerate([0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 2]):
        alone = stories.rollout(
            made[0],
            {name: value[which : which + 1] for name, value in stacked.items()},
            [1, 2, 3],
            [30],
        )
        assert np.array_equal(together[0][i], alone[0][0])
        assert together[2][i] == alone[2][0]


def test_texts_do_not_depend_on_how_many_generate_together(stories, policies, monkeypatch):
    made, stacked = policies
    together = stories.rollout(made[0], stacked, [1, 2, 3], [30])
    monkeypatch.setattr("stab.tasks.language.generation.SMALL", 0)
    one_by_one = stories.rollout(made[0], stacked, [1, 2, 3], [30])
    assert np.array_equal(together[0], one_by_one[0])
    assert together[2] == one_by_one[2]


def test_the_same_policy_writes_the_same_and_greedy_needs_no_draws(stories, policies):
    made, _ = policies
    greedy = copy.deepcopy(made[2])
    greedy.temperature = 0.0
    own = {name: value[None] for name, value in greedy.state_dict().items()}
    prompts = [[END, *source("stories").text(np.random.default_rng(seed))[0]] for seed in (1, 1)]

    def texts(policy, starts):
        return generate(policy.stack(own, 2), prompts, starts, policy.temperature, [source("stories").scorer(
            [prompt[1:] for prompt in prompts])], 30)[0]  # fmt: skip

    one, other = texts(greedy, (5, 6))
    assert one == other
    one, other = texts(made[2], (5, 6))
    assert one != other
    one, other = texts(made[2], (5, 5))
    assert one == other


def test_sampling_follows_the_softmax(stories, policies):
    """Over many draws, the first token's frequencies are the model's probabilities."""
    made, _ = policies
    policy, rows = made[2], 3000
    own = {name: value[None] for name, value in policy.state_dict().items()}
    prompt = [END, *source("stories").text(np.random.default_rng(3))[0]]
    scorer = source("stories").scorer([prompt[1:]] * rows)
    first = [
        text[0]
        for text in generate(
            policy.stack(own, rows), [prompt] * rows, range(rows), 1.0, [scorer], 1
        )[0]
    ]
    with torch.inference_mode():
        expected = policy(torch.tensor([prompt]))[0, -1].softmax(-1).numpy()
    often = np.bincount(first, minlength=len(expected))
    common = expected * rows > 5
    squares = (often - expected * rows)[common] ** 2 / (expected * (1 - expected) * rows)[common]
    assert common.sum() > 10
    assert squares.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / common.sum()))


def test_a_perfect_policy_returns_one():
    """Texts of the source itself, scored as generated ones are, return what the expert's reference is, within its error."""
    made = source("stories")
    prompts, rests = zip(
        *(made.text(np.random.default_rng(seed)) for seed in range(400)), strict=True
    )
    cumulative, _ = made.score(prompts, rests)
    low, high = made.references()
    J = (cumulative[:, -1] - low.cumulative[-1]) / (high.cumulative[-1] - low.cumulative[-1])
    assert J.mean() == pytest.approx(1, abs=5 * J.std() / 20)
    assert J.std() < 0.02  # so that GVA is not the source's own noise


def test_fresh_stories_never_repeat(minari_root):
    task = tasks.get("stories")(**SMALL, infinite=True)
    data = task.dataset().train
    assert isinstance(data, FreshData)
    one, again, other, later = (data.pool(*key) for key in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert torch.equal(one.targets, again.targets)
    assert len(one) == len(data) == 200
    told = [
        {tuple(row.tolist()) for row in np.split(p.targets.numpy(), p.firsts[1:])}
        for p in (one, other, later)
    ]
    for split in (task.dataset().validation, data.finite):
        assert not told[0] & {
            tuple(row.tolist()) for row in np.split(split.targets.numpy(), split.firsts[1:])
        }
    assert not told[0] & told[1]
    assert not told[0] & told[2]


def test_another_grammars_dataset_is_refused(stories, monkeypatch):
    monkeypatch.setitem(source("stories").__dict__, "sha256", "0" * 64)
    with pytest.raises(
        StabError, match=r"another grammar.*stab data remove stab/stories/expert-v0"
    ):
        tasks.get("stories")(**SMALL).dataset()


def test_a_dataset_of_another_environment_is_refused(hopper):
    with pytest.raises(StabError, match="recorded in Hopper-v5, task 'stories' is stab/Tokens-v0"):
        tasks.get("stories")(**SMALL, dataset_id="stab/hopper/expert-v0").dataset()


@pytest.mark.parametrize(
    "policy", ["mlp", "transformer", "gtp", "gpt:width=0", "gpt:heads=3", "gpt:temperature=-1"]
)
def test_policies_that_cannot_be(stories, policy):
    with pytest.raises(StabError, match=r"train\.policy="):
        stories.policy(Recipe(policy=policy))


def test_a_gpt_is_no_policy_for_numbers():
    with pytest.raises(StabError, match="policy 'gpt' does not fit this task"):
        tasks.get("cliff")(name="cliff").policy(Recipe(policy="gpt"))


def test_prompts_and_what_follows_fit_the_context():
    rng, made = np.random.default_rng(0), source("stories")
    longest = max(len(made.text(rng)[0]) for _ in range(5000))
    assert longest + made.longest == made.context


def test_the_defaults_are_a_tenth_of_a_million(stories):
    policy = stories.policy(Recipe(**LANGUAGE["train"]))
    assert 0.09e6 < sum(p.numel() for p in policy.parameters()) < 0.13e6


@pytest.mark.parametrize(
    "said", [{"return": 2.0}, {"measures": {"facts": float("nan")}}, {"text": "x"}, None]
)
def test_infos_of_another_form_are_refused(said):
    with pytest.raises(ValueError, match="a rollout's infos are"):
        rows.infos(said)
