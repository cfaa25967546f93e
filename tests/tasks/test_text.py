"""Real text as a task: datasets from a folder, scorer models beside them, and their values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra text: pip install '.[text]'")

from stab.checks import parametrize_with_checks
from stab.registry import StabError
from stab.tasks import datasets, tasks
from stab.tasks.catalog import task_for
from stab.tasks.language import grammar, readers, scorer_model, train_scorer
from stab.tasks.language.source import END
from stab.tasks.language.text import (
    CONTEXT,
    CONTINUATION,
    PACK,
    PROMPT,
    HeldOutTexts,
    corpus_windows,
    distinct,
    held_out,
)
from stab.tasks.language.tokens import token_bytes, tokenizer_from, train_tokenizer

ID = "my/tales-v0"
POLICY = "gpt:width=16,depth=1"
SMALL = {"name": "text", "dataset_id": ID, "train_episodes": 4, "validation_episodes": 1}


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A folder of a few thousand stories, many to a file."""
    folder = tmp_path_factory.mktemp("prose")
    rng = np.random.default_rng(0)
    for n in range(30):
        tales = [grammar.decode(grammar.story(rng)[:-1]) for _ in range(60)]
        (folder / f"{n:02}.txt").write_text("\n\n".join(tales), "utf-8")
    return folder


@pytest.fixture(scope="module")
def dataset(prose, minari_root):
    tasks.get("text")(**SMALL, folder=prose, vocabulary=300).collect(episodes=12)
    return ID


@pytest.fixture(scope="module")
def scorer(dataset):
    return train_scorer.train_scorer(ID, "gpt:width=32,depth=1", 200)


def test_a_folder_becomes_an_ordinary_dataset(dataset, prose):
    found = datasets.load(ID)
    assert (found.total_episodes, found.total_steps) == (12, 12 * PACK)
    assert task_for(ID) == "text"
    tokenizer = tokenizer_from(datasets.stab_metadata(found)["tokenizer"])
    episode = found[0]
    assert np.array_equal(episode.observations[1:], episode.actions)
    assert episode.observations[0] == END
    assert not episode.terminations.any()
    first = tokenizer.decode(episode.actions[:200].tolist())
    assert any(
        path.read_text("utf-8").startswith(first) for path in prose.iterdir()
    )  # in an order of their own
    assert datasets.replay(found).exact


@parametrize_with_checks([lambda **settings: tasks.get("text")(**settings | SMALL)])
def test_the_conformance_kit(check, scorer):
    check.run()


def test_what_is_held_out_trains_nobody(scorer):
    found = datasets.load(ID)
    packs = datasets.read(found, found.episode_indices).actions.numpy().reshape(-1, PACK)
    kept = packs[-held_out(found) :].tolist()
    anywhere = {tuple(pack[n : n + CONTEXT]) for pack in kept for n in range(PACK - CONTEXT + 1)}
    assert {
        tuple(window) for window in HeldOutTexts(ID).beginnings.tolist()
    } == anywhere  # few texts begin there
    train, validation, vocabulary = corpus_windows(ID)
    assert np.array_equal(
        np.concatenate([validation.targets, train.targets]), packs[: -held_out(found)].ravel()
    )
    assert vocabulary == 300
    with pytest.raises(
        StabError, match="has 11 episodes beside the 1 that are held out, 12 are asked"
    ):
        tasks.get("text")(**SMALL | {"train_episodes": 11}).dataset()
    task = tasks.get("text")(**SMALL | {"train_episodes": 10})
    there = task.dataset()
    assert len(there.train.targets) + len(there.validation.targets) == 11 * PACK


def test_prompts_are_beginnings_where_there_are_enough(tmp_path, minari_root):
    rng = np.random.default_rng(1)
    for n in range(2000):
        (tmp_path / f"{n:04}.txt").write_text(grammar.decode(grammar.story(rng)[:-1]), "utf-8")
    tasks.get("text")(
        name="text", dataset_id="my/short-v0", folder=tmp_path, vocabulary=300
    ).collect()
    source = HeldOutTexts("my/short-v0", model=object())
    told = ["".join(source.spell(window[:3])) for window in source.beginnings.tolist()]
    assert len(told) >= 100
    assert all(
        text.startswith(("once", "there", "one", "in", *(name[:2] for name in grammar.WORDS)))
        for text in told
    )


def test_a_scorer_model_gives_what_its_network_does_token_by_token(scorer):
    source = HeldOutTexts(ID)
    texts = [source.text(np.random.default_rng(seed)) for seed in range(3)]
    prompts, written = (
        [prompt for prompt, _ in texts],
        [rest[: 40 + n] for n, (_, rest) in enumerate(texts)],
    )
    found = source.model.log_likelihood(prompts, written)
    for prompt, tokens, values in zip(prompts, written, found, strict=True):
        assert len(prompt) == PROMPT
        assert values.shape == (len(tokens),)
        for n in (0, 1, 17, len(tokens) - 1):
            with torch.inference_mode():
                logits = source.model.model(torch.tensor([[END, *prompt, *tokens[:n]]]))[0, -1]
            assert values[n] == pytest.approx(float(logits.log_softmax(-1)[tokens[n]]), abs=1e-5)
    again = source.model.log_likelihood(
        [prompts[1]] * 11 + [prompts[0]], [written[1]] * 11 + [written[0]]
    )
    assert np.array_equal(again[-1], found[0])


def test_the_scorer_model_tells_texts_from_noise(scorer):
    references = scorer["references"]
    low, high = references["random"], references["expert"]
    assert low["cumulative"][-1] < 1.5 * high["cumulative"][-1] < 0
    assert len(low["cumulative"]) == CONTINUATION
    assert scorer["validation_loss"] < np.log(300)
    data = tasks.get("text")(**SMALL).dataset()
    assert data.expert_sha256 == scorer["sha256"]
    assert data.references.expert.cumulative == high["cumulative"]


def test_an_interrupted_training_resumes_and_comes_out_the_same(scorer, minari_root, monkeypatch):
    path = minari_root / ID
    before, weights = (
        (path / scorer_model.CARD).read_text(),
        (path / scorer_model.WEIGHTS).read_bytes(),
    )
    (path / train_scorer.CHECKPOINT).unlink()

    def stop(fraction, said):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_scorer.train_scorer(ID, "gpt:width=32,depth=1", 200, report=stop)
    train_scorer.train_scorer(ID, "gpt:width=32,depth=1", 200)
    assert (path / scorer_model.WEIGHTS).read_bytes() == weights
    assert json.loads((path / scorer_model.CARD).read_text()) == json.loads(before)
    assert not scorer["converged"]
    more = train_scorer.train_scorer(ID, "gpt:width=32,depth=1", 300)  # goes on from there
    assert more["losses"][:2] == scorer["losses"]
    assert [update for update, _ in more["losses"]] == [100, 200, 300]
    (path / scorer_model.CARD).write_text(before)
    (path / scorer_model.WEIGHTS).write_bytes(weights)


def test_it_ends_when_it_gets_no_better(dataset):
    values = [3.0, 2.0, 1.0, 1.1, 1.2, 1.05, 1.3]
    assert not train_scorer._converged([[n, v] for n, v in enumerate(values)])
    assert train_scorer._converged([[n, v] for n, v in enumerate([*values, 1.01])])
    assert not train_scorer._converged([[n, v] for n, v in enumerate([*values, 0.9])])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (scorer_model.CARD, b"{", "not the card of a scorer model"),
        (scorer_model.CARD, b"[]", "not the card of a scorer model"),
        (scorer_model.WEIGHTS, b"nothing", "not the scorer model of the card"),
    ],
)
def test_damaged_scorer_models(scorer, minari_root, file, content, said):
    path = minari_root / ID / file
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        with pytest.raises(StabError, match=said):
            _ = HeldOutTexts(ID).model
    finally:
        path.write_bytes(before)


def test_metrics_of_repetition(dataset):
    assert distinct([1, 2, 3, 1, 2, 3], 1) == 0.5
    assert distinct([1, 2, 3, 1, 2, 3], 2) == 3 / 5
    assert distinct([7] * 10, 4) == 1 / 7
    assert distinct([1], 4) == 1.0
    source = HeldOutTexts(ID, model=object())
    assert set(source.measure([], [1, 2])) == set(HeldOutTexts.metrics)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, prose):
    """A GPT-2 of Hugging Face, tiny and untrained, with a tokenizer of its own, as a folder."""
    transformers = pytest.importorskip(
        "transformers", reason="needs the extra text: pip install '.[text]'"
    )
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = train_tokenizer(readers.read_folder(prose), 500)
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    words.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=600, n_positions=400, n_embd=32, n_layer=2, n_head=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_causal_lm_of_hugging_face_reads_the_same_text(dataset, gpt2):
    tokenizer = tokenizer_from(datasets.stab_metadata(datasets.load(ID))["tokenizer"])
    model = scorer_model.CausalLM(str(gpt2), tokenizer)
    pack = datasets.load(ID)[0].actions
    tokens = [*pack[:60].tolist(), END, *pack[300:330].tolist()]
    found = model.log_likelihood([tokens[:20]], [tokens[20:]])[0]
    assert found.shape == (len(tokens) - 20,)
    # The whole by the library alone: an end, the first text, an end, the second.
    end = model.words.eos_token_id
    parts = [model.words(tokenizer.decode(part), add_special_tokens=False)["input_ids"]
             for part in (tokens[:60], tokens[61:])]  # fmt: skip
    theirs = torch.tensor([[end, *parts[0], end, *parts[1]]])
    with torch.inference_mode():
        logp = (
            model.model(theirs)
            .logits[0, :-1]
            .log_softmax(-1)
            .gather(-1, theirs[0, 1:, None])[:, 0]
            .double()
        )
    whole = model.log_likelihood([[]], [tokens])[0]
    assert whole.sum() == pytest.approx(float(logp.sum()), abs=1e-4)
    assert whole[60] == pytest.approx(
        float(logp[len(parts[0])]), abs=1e-5
    )  # the end is counted to ours
    assert np.array_equal(whole[20:], found)


def test_what_a_text_spells_is_text(dataset, gpt2):
    tokenizer = tokenizer_from(datasets.stab_metadata(datasets.load(ID))["tokenizer"])
    model = scorer_model.CausalLM(str(gpt2), tokenizer)
    tokens = tokenizer.encode("he said <end> and went").ids
    assert (
        model.words.eos_token_id
        not in model.words("he said <end> and", split_special_tokens=True)["input_ids"]
    )
    ended = [*tokenizer.encode("he said ").ids, END, *tokenizer.encode(" and went").ids]
    one, other = (model.log_likelihood([[]], [text])[0].sum() for text in (tokens, ended))
    assert one != pytest.approx(other, abs=1e-3)


def test_bytes_that_are_no_characters_are_read_too(dataset, gpt2):
    tokenizer = tokenizer_from(datasets.stab_metadata(datasets.load(ID))["tokenizer"])
    rng = np.random.default_rng(0)
    model = scorer_model.CausalLM(str(gpt2), tokenizer)
    for _ in range(5):
        tokens = rng.integers(tokenizer.get_vocab_size(), size=60).tolist()
        found = model.log_likelihood([tokens[:5]], [tokens[5:]])[0]
        assert np.isfinite(found).all()
        assert found.sum() < 0


def test_a_scorer_model_by_name(dataset, gpt2, scorer, minari_root):
    path = minari_root / ID / scorer_model.CARD
    before = path.read_bytes()
    try:
        card = train_scorer.train_scorer(ID, f"{scorer_model.HUB}{gpt2}")
        assert card["references"]["random"]["cumulative"][-1] < 0
        assert isinstance(HeldOutTexts(ID).model, scorer_model.CausalLM)
        assert card["judge"] == f"{scorer_model.HUB}{gpt2.resolve()}"
        path.write_text(json.dumps(card | {"sha256": "0" * 64}))
        with pytest.raises(StabError, match="is not the scorer model that"):
            _ = HeldOutTexts(ID).model
    finally:
        path.write_bytes(before)
    with pytest.raises(StabError, match=r"'/nowhere/at/all' cannot be loaded"):
        train_scorer.train_scorer(ID, f"{scorer_model.HUB}/nowhere/at/all")


def test_token_bytes_spell_the_text(dataset):
    tokenizer = tokenizer_from(datasets.stab_metadata(datasets.load(ID))["tokenizer"])
    spelled = token_bytes(tokenizer)
    text = "Straße, 東京 \u00a0 and \x00\x7f once upon a time there was"
    assert b"".join(spelled[token] for token in tokenizer.encode(text).ids) == text.encode()
    assert spelled[END] == b""
    assert sorted({entry for entry in spelled if len(entry) == 1}) == [
        bytes([n]) for n in range(256)
    ]


def test_from_the_folder_to_the_leaderboard(stab, prose, minari_root):
    """The commands of the docs, at a size that takes seconds."""
    name = "my/shell-v0"
    done = stab("compare", "--task", "text", "--dataset", name, "--all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "stab data prepare text --folder FOLDER --dataset my/shell-v0" in done.stderr
    done = stab(
        "data",
        "prepare",
        "text",
        "--folder",
        prose,
        "--dataset",
        name,
        "--vocabulary",
        400,
        "--episodes",
        9,
    )
    assert done.returncode == 0, done.stderr
    assert "9, 36864" in done.stdout
    assert "byte-level BPE, 400 entries" in done.stdout
    assert f"stab scorer train text --dataset {name}" in done.stderr
    done = stab("compare", "--dataset", name, "--stabilizers", "ema")
    assert done.returncode == 2
    assert "stab scorer train text --dataset my/shell-v0" in done.stderr
    done = stab("scorer", "train", "text", "--dataset", name, "--policy", POLICY, "--updates", 100)
    assert done.returncode == 0, done.stderr
    assert "nats per token" in done.stdout
    sizes = ("data.train_episodes=4", "data.validation_episodes=1", "train.updates=40", "eval.checkpoint_every=10",
             "eval.starts=2", "eval.horizon=20")  # fmt: skip
    done = stab(
        "compare",
        "--dataset",
        name,
        "--stabilizers",
        "ema",
        "--policy",
        POLICY,
        "--seeds",
        2,
        "--out",
        "run",
        *sizes,
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert "distinct_2" in done.stdout
    again = stab("expert", "train", "text", "--dataset", name)
    assert "exists already" in again.stderr
    done = stab("expert", "train", "text", "--dataset", name, "--policy", "gpt:width=32")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    done = stab("data", "prepare", "text", "--folder", prose, "--dataset", name)
    assert done.returncode == 2
    assert f"stab data remove {name}" in done.stderr
    done = stab("compare", "--task", "stories", "--dataset", name, "--all")
    assert done.returncode == 2
    assert "holds other texts than stories: give --task text" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("text",), "has no texts of its own"),
        (("text", "--dataset", "my/nothing-v0"), "give --folder FOLDER"),
        (("text", "--dataset", "my/nothing-v0", "--folder", "nowhere"), "nowhere does not exist"),
        (("hopper", "--folder", "x"), "--folder and --vocabulary are for tasks of text"),
        (("text", "--dataset", "my/nothing-v0", "--folder", ".", "--vocabulary", "3"), "no texts"),
    ],
)
def test_what_cannot_be_prepared(stab, arguments, said):
    done = stab("data", "prepare", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr


def test_tasks_of_the_hub_read_a_copy_of_its_repository(tmp_path, minari_root, stab):
    """Local copies of the two repositories' layout, through the real library and the command line."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets", reason="needs the extra text: pip install '.[text]'")
    from pyarrow import parquet

    rng = np.random.default_rng(2)
    tales = pyarrow.table({"text": [grammar.decode(grammar.story(rng)[:-1]) for _ in range(900)]})
    for name, where, config in (
        ("tinystories", "data", ""),
        ("wikipedia", "20231101.en", "20231101.en"),
    ):
        copy = tmp_path / name
        (copy / where).mkdir(parents=True)
        parquet.write_table(tales, copy / where / "train-00000-of-00001.parquet")
        if config:
            files = f"data_files:\n  - split: train\n    path: {config}/train-*"
            (copy / "README.md").write_text(
                f"---\nconfigs:\n- config_name: {config}\n  {files}\n---\n"
            )
        options = ("--folder", copy, "--vocabulary", 300, "--episodes", 8)
        done = stab("data", "prepare", name, *options)
        assert done.returncode == 0, done.stderr
        assert f"stab/{name}/expert-v0" in done.stdout
        assert datasets.load(f"stab/{name}/expert-v0").total_episodes == 8
        with pytest.raises(
            StabError, match=f"stab scorer train text --dataset stab/{name}/expert-v0"
        ):
            tasks.get(name)(name=name, train_episodes=4, validation_episodes=1).dataset()
        assert task_for(f"stab/{name}/expert-v0") == name
    card = train_scorer.train_scorer("stab/tinystories/expert-v0", POLICY, 100)
    source = tasks.get("tinystories")(
        name="tinystories", train_episodes=4, validation_episodes=1
    ).dataset()
    assert source.references.expert.cumulative == card["references"]["expert"]["cumulative"]
