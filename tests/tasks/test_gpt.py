"""The GPT: against numpy and torch's own layers, in training, and generating side by side."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stab.recipe import Recipe
from stab.registry import StabError
from stab.tasks.policies import gpt
from stab.tasks.policies.gpt import GPT, GPTArguments, GPTStack

VOCABULARY = 11


def make(
    vocabulary=VOCABULARY, context=9, width=16, depth=2, heads=4, dropout=0.0, seed=0, scale=0.3
):
    """A policy whose every parameter is random: freshly initialised, biases are 0, scales 1 and logits alike."""
    torch.manual_seed(seed)
    policy = GPT(
        vocabulary, context, width=width, depth=depth, heads=heads, dropout=dropout, temperature=1.0
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return policy.eval()


def family(count, **settings):
    states = [make(seed=i, **settings).state_dict() for i in range(count)]
    return make(**settings), {name: torch.stack([s[name] for s in states]) for name in states[0]}


def texts(rows, steps, vocabulary=VOCABULARY, seed=0):
    return torch.randint(vocabulary, (rows, steps), generator=torch.Generator().manual_seed(seed))


def padded(lengths, seed=0):
    """Inputs and targets (rows, steps) of texts of these lengths."""
    whole = texts(len(lengths), max(lengths) + 1, seed=seed)
    beyond = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return whole[:, :-1].masked_fill(beyond, 0), whole[:, 1:].masked_fill(beyond, -100)


def gradients(policy, *batch):
    return torch.autograd.grad(policy.loss(*batch), list(policy.parameters()))


# The network


def by_hand(policy, tokens):
    """Logits of one text (steps,) in numpy, double precision, one step and one head at a time."""
    w = {name: value.numpy().astype(np.float64) for name, value in policy.state_dict().items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = np.stack([w["embeddings"][token] + w["positions"][i] for i, token in enumerate(tokens)])
    for b in range(len(policy.blocks)):
        query, key, value = np.split(
            linear(norm(x, f"blocks.{b}.norm_attention"), f"blocks.{b}.qkv"), 3, axis=-1
        )
        size = policy.width // policy.heads
        seen = np.zeros_like(x)
        for i in range(len(tokens)):
            for h in range(policy.heads):
                part = slice(h * size, (h + 1) * size)
                scores = key[: i + 1, part] @ query[i, part] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                seen[i, part] = weights @ value[: i + 1, part] / weights.sum()
        x = x + linear(seen, f"blocks.{b}.project")
        hidden = linear(norm(x, f"blocks.{b}.norm_mlp"), f"blocks.{b}.mlp.0")
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        x = x + linear(hidden, f"blocks.{b}.mlp.2")
    return norm(x, "norm") @ w["embeddings"].T


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_network_by_hand(steps):
    policy, tokens = make(), texts(3, steps)
    with torch.no_grad():
        found = policy(tokens)
    assert found.shape == (3, steps, VOCABULARY)
    expected = np.stack([by_hand(policy, text.tolist()) for text in tokens])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_blocks_are_torchs_pre_norm_layers():
    policy, x = make(width=64), torch.randn(5, 9, 64)
    later = torch.full((9, 9), -torch.inf).triu(1)
    for block in policy.blocks:
        layer = nn.TransformerEncoderLayer(
            64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        pairs = {
            "self_attn.in_proj_": block.qkv,
            "self_attn.out_proj.": block.project,
            "linear1.": block.mlp[0],
            "linear2.": block.mlp[2],
            "norm1.": block.norm_attention,
            "norm2.": block.norm_mlp,
        }
        layer.load_state_dict(
            {a + b: getattr(m, b) for a, m in pairs.items() for b in ("weight", "bias")}
        )
        torch.testing.assert_close(block(x, later), layer(x, src_mask=later), rtol=1e-4, atol=1e-4)


def test_no_step_sees_a_later_one():
    policy, tokens = make(), texts(2, 9)
    with torch.no_grad():
        before = policy(tokens)
        for i in range(9):
            other = tokens.clone()
            other[0, i] = (other[0, i] + 1) % VOCABULARY
            after = policy(other)
            assert torch.equal(after[:, :i], before[:, :i])
            assert torch.equal(after[1], before[1])
            assert ((after - before)[0, i:].abs().amax(-1) > 1e-4).all()  # all later ones do see it


def test_one_parameter_embeds_tokens_and_gives_logits(monkeypatch):
    policy, batch = make(), padded([9, 5])
    assert policy.state_dict().keys() == dict(policy.named_parameters()).keys()
    assert [name for name, value in policy.state_dict().items() if VOCABULARY in value.shape] == [
        "embeddings"
    ]
    (both,) = torch.autograd.grad(policy.loss(*batch), policy.embeddings)
    other = policy.embeddings.detach().clone().requires_grad_()
    monkeypatch.setattr(
        gpt, "embedding", lambda tokens, weight: nn.functional.embedding(tokens, other)
    )
    of_logits, of_tokens = torch.autograd.grad(policy.loss(*batch), (policy.embeddings, other))
    assert min(of_logits.abs().max(), of_tokens.abs().max()) > 1e-3
    torch.testing.assert_close(of_logits + of_tokens, both)


def test_a_fresh_policy():
    torch.manual_seed(0)
    policy = GPTArguments().build(300, 70, Recipe(dropout=0.25))
    block = (
        12 * 64**2 + 13 * 64
    )  # products 3 + 1 + 4 + 4 widths squared; biases 9 widths, LayerNorms 4
    assert (
        sum(p.numel() for p in policy.parameters())
        == 300 * 64 + 70 * 64 + 2 * block + 2 * 64
        == 123_776
    )
    assert (policy.temperature, policy.context, policy.vocabulary, policy.dropout.p) == (
        1.0,
        70,
        300,
        0.25,
    )
    for name, value in policy.named_parameters():
        if value.dim() == 2:
            std = 0.02 / math.sqrt(2 * 2) if "project" in name or "mlp.2" in name else 0.02
            assert value.std().item() == pytest.approx(std, rel=0.05)
        else:
            assert (value == (1.0 if "norm" in name and "weight" in name else 0.0)).all()
    tokens = texts(16, 71, 300)
    assert policy.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(
        math.log(300), abs=0.05
    )


def test_dropout_acts_in_training_only():
    batch = padded([9, 5])
    policy = make(dropout=0.5)
    assert policy.loss(*batch).item() == policy.loss(*batch).item()
    policy.train()
    torch.manual_seed(1)
    first, second = policy.loss(*batch).item(), policy.loss(*batch).item()
    torch.manual_seed(1)
    assert policy.loss(*batch).item() == first != second
    for place in ("embeddings", "attention", "mlp"):  # in each alone
        policy = make(dropout=0.5, depth=1).train()
        block = policy.blocks[0]
        (block if place == "embeddings" else policy).dropout.eval()
        if place != "embeddings":  # the other branch gives nothing, whatever is dropped
            end = block.mlp[2] if place == "attention" else block.project
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)
        assert policy.loss(*batch).item() != policy.loss(*batch).item(), place
    without = make().train()
    assert without.loss(*batch).item() == without.loss(*batch).item()


# The loss


def test_the_loss_is_the_mean_over_what_there_is():
    policy = make()
    inputs, targets = padded([9, 1, 4, 7])
    expected = []
    for row, goal in zip(inputs, targets):
        logits = by_hand(policy, row.tolist())
        expected += [
            np.log(np.exp(x).sum()) - x[y] for x, y in zip(logits, goal.tolist()) if y >= 0
        ]
    assert len(expected) == 21
    assert policy.loss(inputs, targets).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_padding_has_no_influence():
    policy = make()
    inputs, targets = padded([2, 9, 4])
    other = torch.where(targets == -100, 7, inputs)
    assert not torch.equal(inputs, other)
    assert torch.equal(policy.loss(inputs, targets), policy.loss(other, targets))
    expected = gradients(policy, inputs, targets)
    for found, wanted in zip(gradients(policy, other, targets), expected):
        assert torch.equal(found, wanted)
    # As each text alone.
    alone = [(inputs[i : i + 1, :n], targets[i : i + 1, :n], n) for i, n in enumerate([2, 9, 4])]
    mean = sum(policy.loss(x, y) * n for x, y, n in alone) / 15
    assert mean.item() == pytest.approx(policy.loss(inputs, targets).item(), rel=1e-5)
    for found, wanted in zip(torch.autograd.grad(mean, list(policy.parameters())), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_without_gradients_the_loss_is_computed_in_chunks(monkeypatch):
    policy, batch = make(), padded([9, 1, 2, 8, 3, 9, 1, 1])
    plain = policy.loss(*batch)
    assert plain.requires_grad
    seen, forward = [], policy.forward
    monkeypatch.setattr(
        policy, "forward", lambda tokens: seen.append(len(tokens)) or forward(tokens)
    )
    monkeypatch.setattr(gpt, "CHUNK", 3)
    with torch.inference_mode():
        values = [policy.loss(*batch).item() for _ in range(2)]
    assert values[0] == values[1] == pytest.approx(plain.item(), rel=1e-6)
    assert seen == 2 * [3, 3, 2]


def test_second_derivatives():
    """A Hessian times a vector, by oneDNN's products where it is there, against finite differences in double precision."""
    policy = make(100, 32, width=64, depth=1, scale=0.1)
    exact = make(100, 32, width=64, depth=1, scale=0.1).double()
    tokens = texts(16, 33, 100)
    batch = tokens[:, :-1], tokens[:, 1:]
    parameters = list(policy.parameters())
    directions = [torch.randn_like(p) for p in parameters]
    slopes = torch.autograd.grad(policy.loss(*batch), parameters, create_graph=True)
    found = torch.autograd.grad(sum((s * d).sum() for s, d in zip(slopes, directions)), parameters)

    def moved(by):
        with torch.no_grad():
            for p, d in zip(exact.parameters(), directions):
                p.add_(by * d)
        return gradients(exact, *batch)

    step = 1e-5
    above, below = moved(step), moved(-2 * step)
    for mine, a, b in zip(found, above, below):
        expected = (a - b) / (2 * step)
        assert (mine - expected).norm() <= 1e-3 * expected.norm()


def test_it_learns_a_text_by_heart():
    torch.manual_seed(0)
    policy = GPT(20, 16, width=32, depth=2, heads=4, dropout=0.0, temperature=0.0)
    text = texts(1, 16, 20)
    batch = torch.cat([torch.zeros(1, 1, dtype=torch.int64), text[:, :-1]], 1), text
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for _ in range(50):
        optimizer.zero_grad()
        policy.loss(*batch).backward()
        optimizer.step()
    assert policy.loss(*batch).item() < 0.1
    with torch.inference_mode():
        stack = policy.stack({name: value[None] for name, value in policy.state_dict().items()}, 1)
        said = [0]
        for _ in range(16):
            said.append(int(stack.step(torch.tensor([[said[-1]]]), [0])[0, 0].argmax()))
    assert said[1:] == text[0].tolist()


# Generating


@pytest.mark.parametrize(
    ("rows", "width", "heads"), [(5, 16, 4), (16, 16, 4), (1, 16, 1), (3, 20, 4), (3, 9, 3)]
)
def test_generating_sees_what_training_does(rows, width, heads):
    """Every step's logits are what ``forward`` says of the whole text so far; the likeliest token goes on."""
    policy, stacked = family(3, width=width, heads=heads)
    stack = policy.stack(stacked, rows)
    said = [texts(3, rows).numpy()]
    with torch.inference_mode():
        for _ in range(policy.context):
            logits = stack.step(said[-1], [0, 1, 2])
            assert logits.shape == (3, rows, VOCABULARY)
            for i in range(3):
                policy.load_state_dict({name: value[i] for name, value in stacked.items()})
                expected = policy(torch.from_numpy(np.stack([tokens[i] for tokens in said], 1)))[
                    :, -1
                ]
                torch.testing.assert_close(logits[i], expected, rtol=1e-5, atol=1e-5)
                assert torch.equal(logits[i].argmax(-1), expected.argmax(-1))
            said.append(logits.argmax(-1).numpy())
        with pytest.raises(StabError, match="context of 9 tokens is full"):
            stack.step(said[-1], [0, 1, 2])


@pytest.mark.parametrize(
    ("policies", "width", "rows", "heads", "vocabulary"),
    [
        (1, 4, 16, 2, 11),
        (3, 2, 8, 2, 20),
        (5, 9, 1, 3, 300),
        (8, 64, 16, 4, 300),
        (9, 64, 7, 4, 33),
        (9, 33, 20, 3, 7),
        (2, 128, 13, 8, 218),
        (7, 20, 5, 4, 29),
        (4, 6, 3, 2, 5),
        (6, 48, 11, 1, 96),
    ],
)
def test_a_policy_does_not_notice_its_company(policies, width, rows, heads, vocabulary):
    """Bit for bit as alone, whoever else is there or live."""
    steps, rng = 13, np.random.default_rng(0)
    policy, stacked = family(
        policies, vocabulary=vocabulary, context=steps, width=width, heads=heads
    )
    tokens = rng.integers(vocabulary, size=(steps, policies, rows))
    ends = rng.integers(steps // 2, steps + 1, size=policies)  # how many steps each is live
    with torch.inference_mode():
        stack, found = policy.stack(stacked, rows), [[] for _ in range(policies)]
        for t in range(steps):
            live = np.flatnonzero(ends > t).tolist()
            if live:
                for i, logits in zip(live, stack.step(tokens[t], live)):
                    found[i].append(logits)
        for i in range(policies):
            alone = policy.stack(
                {name: value[i : i + 1].clone() for name, value in stacked.items()}, rows
            )
            for t in range(ends[i]):
                assert torch.equal(alone.step(tokens[t, i : i + 1], [0])[0], found[i][t])


def test_a_policy_that_has_diverged_leaves_the_others_alone():
    policy, stacked = family(3)
    broken = {name: value.clone() for name, value in stacked.items()}
    for value in broken.values():
        value[1] = torch.nan
    with torch.inference_mode():
        good, bad = GPTStack(policy, stacked, 4), GPTStack(policy, broken, 4)
        for tokens in texts(3 * 5, 4).view(5, 3, 4):
            expected, found = good.step(tokens, [0, 1, 2]), bad.step(tokens, [0, 1, 2])
            assert torch.equal(found[[0, 2]], expected[[0, 2]])
            assert found[1].isnan().all()


# Arguments


def test_build():
    policy = GPTArguments(width=6, depth=1, heads=3, temperature=0).build(4, 5, Recipe())
    assert (policy.width, len(policy.blocks), policy.heads, policy.temperature) == (6, 1, 3, 0)
    assert policy(texts(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=0 is out of range: expected an integer >= 1"),
        ({"depth": 0}, "depth=0 is out of range"),
        ({"heads": 0}, "heads=0 is out of range"),
        ({"heads": 5}, "width=64 is not a multiple of heads=5"),
        ({"width": 30}, "use width=32"),
        ({"temperature": -0.1}, "expected a number >= 0"),
        ({"temperature": math.inf}, "expected a number >= 0"),
        ({"temperature": math.nan}, "expected a number >= 0"),
    ],
)
def test_arguments_that_are_wrong(arguments, message):
    with pytest.raises(StabError) as caught:
        GPTArguments(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
