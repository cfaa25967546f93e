"""Tokenizers and packs, with the real library."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stab.registry import StabError
from stab.tasks.language import tokens as module
from stab.tasks.language.tokens import (
    pack,
    pieces,
    tokenizer_from,
    train_tokenizer,
)

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra text: pip install '.[text]'")

STORIES = [f"Once there was a cat.\nIt saw {n} dogs, and the dogs saw the cat." for n in range(200)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(STORIES, 300)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (lambda: train_tokenizer(["x"], 300), lambda: tokenizer_from("{}")):
        with pytest.raises(StabError, match=r"pip install 'stab-gva\[text\]'"):
            call()


# Tokenizers


def test_the_vocabulary_is_the_end_the_bytes_and_the_most_frequent_pairs():
    found = train_tokenizer(["abab abab cd", "ab"], 260)
    # a-b occurs 5 times. Then, of the words abab, _abab, _cd and ab: ab-ab twice, and every other pair once.
    assert found.get_vocab_size() == 259
    assert [found.id_to_token(n) for n in (0, 257, 258)] == ["<end>", "ab", "abab"]
    assert found.encode("abab cd").tokens == ["abab", "Ġ", "c", "d"]
    assert train_tokenizer(["abab abab cd"], 257).get_vocab_size() == 257
    assert train_tokenizer(STORIES, 300).get_vocab_size() == 300


@given(st.text())
def test_any_text_is_encoded_and_decoded(tokenizer, text):
    found = tokenizer.encode(text).ids
    assert 0 not in found
    assert tokenizer.decode(found) == text


def test_a_text_that_says_end_does_not_end_there():
    found = train_tokenizer(["<end> <end> <end>"] * 3, 400)
    for tokenizer in (found, tokenizer_from(found.to_str())):
        assert 0 not in tokenizer.encode("an <end> of<end><end>").ids
        assert tokenizer.decode(tokenizer.encode("an <end> of<end>").ids) == "an <end> of<end>"


def test_tokenizers_that_cannot_be_trained():
    for vocabulary in (-1, 0, 256, 10**12):
        with pytest.raises(StabError, match=f"vocabulary of {vocabulary} entries: expected 257"):
            train_tokenizer(STORIES, vocabulary)
    with pytest.raises(StabError, match="no texts to train a tokenizer on"):
        train_tokenizer([], 300)

    def broken():
        yield "text"
        raise StabError("the second cannot be read")

    with pytest.raises(StabError, match="the second cannot be read"):
        train_tokenizer(broken(), 300)


def test_processes_agree():
    code = (
        "import hashlib\nfrom stab.tasks.language.tokens import *\n"
        "modules = [__import__(name) for name in ('argparse', 'inspect', 'json')]\n"
        "texts = [open(module.__file__, encoding='utf-8').read() for module in modules]\n"
        "tokenizer = train_tokenizer(texts, 1000)\n"
        "print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())\n"
        "print(hashlib.sha256(np.stack(pack(texts, tokenizer, 64)).tobytes()).hexdigest())"
    )
    settings = [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "TOKENIZERS_PARALLELISM": "false"}]
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        for environment in settings
    )
    assert first.stderr == second.stderr == ""
    assert first.stdout == second.stdout
    assert len(set(first.stdout.split())) == 2


def test_a_tokenizer_is_kept_as_json(tokenizer):
    written = tokenizer.to_str()
    found = tokenizer_from(written)
    assert found.to_str() == written
    assert found.encode(STORIES[0]).ids == tokenizer.encode(STORIES[0]).ids
    assert (
        tokenizers.Tokenizer.from_str(written).encode(STORIES[0]).ids
        == found.encode(STORIES[0]).ids
    )


def edited(tokenizer, **model):
    described = json.loads(tokenizer.to_str())
    described["model"] |= model
    return described


def foreign(tokenizer):
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>")
    )
    yield words.to_str()
    lower = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = tokenizers.normalizers.Lowercase()
    yield lower.to_str()
    special = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    special.add_special_tokens(["<end>"])
    yield special.to_str()
    vocabulary = edited(tokenizer)["model"]["vocab"]
    swapped = {**vocabulary, "<end>": vocabulary["a"], "a": 0}
    for changed in (
        {"vocab": swapped},
        {"vocab": {**vocabulary, "far": 10**12}},
        {"vocab": {**vocabulary, "twice": 1}},
        {"vocab": {"<end>": 0}, "merges": []},
        {"merges": [["no", "such"]]},
        {"continuing_subword_prefix": "##########"},
        {"dropout": 0.5},
    ):
        yield json.dumps(edited(tokenizer, **changed))


def test_tokenizers_of_another_kind_are_refused(tokenizer, capfd):
    for written in foreign(tokenizer):
        with pytest.raises(StabError, match="a tokenizer of another kind: expected byte-level BPE"):
            tokenizer_from(written)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "written",
    [
        "",
        "{}",
        "null",
        "[]",
        "1",
        "\0",
        '{"model": {"vocab": 3, "merges": []}}',
        "[" * 100_000,
        "é\ud800",
        None,
    ],
)
def test_malformed_tokenizers_are_refused(written):
    with pytest.raises(StabError, match="malformed tokenizer: ") as caught:
        tokenizer_from(written)
    assert "\n" not in str(caught.value)


def test_damaged_tokenizers_are_refused_in_silence_or_work(tokenizer, capfd):
    written, rng = tokenizer.to_str(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(written.encode())
        for place in rng.integers(len(damaged), size=2):
            damaged[place] = rng.integers(32, 127)
        with suppress(StabError):
            found = tokenizer_from(damaged.decode(errors="replace"))
            assert found.decode(found.encode(STORIES[0]).ids) == STORIES[0]
    assert capfd.readouterr() == ("", "")


# Packs


def test_packs_are_the_texts_one_after_the_other(tokenizer):
    stream = [token for text in STORIES for token in [*tokenizer.encode(text).ids, 0]]
    for tokens in (1, 7, 64, len(stream)):
        packs = pack(STORIES, tokenizer, tokens)
        assert len(packs) == len(stream) // tokens
        assert all(p.shape == (tokens,) and p.dtype == np.int64 for p in packs)
        assert np.concatenate(packs).tolist() == stream[: len(packs) * tokens]
        assert [p.tolist() for p in pack(STORIES, tokenizer, tokens, most=3)] == [
            p.tolist() for p in packs[:3]
        ]
    assert pack(STORIES, tokenizer, len(stream) + 1) == []
    assert pack([], tokenizer, 5) == []
    assert [p.tolist() for p in pack(["", ""], tokenizer, 1)] == [[0], [0]]


def test_no_text_is_read_that_is_not_needed(tokenizer):
    lengths = np.cumsum([len(tokenizer.encode(text)) + 1 for text in STORIES])
    for most, tokens in ((1, 1), (1, 100), (13, 64), (40, 10)):
        read = []
        assert len(pack((read.append(t) or t for t in STORIES), tokenizer, tokens, most)) == most
        assert len(read) == 1 + np.searchsorted(lengths, most * tokens)


@given(
    st.text(
        st.sampled_from("ab1.'é \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b"), max_size=60
    ),
    st.integers(1, 9),
)
def test_a_text_in_parts_has_the_tokens_of_the_whole(tokenizer, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", size)
        found = pack([text], tokenizer, 1)
        assert "".join(module._parts(text)) == text
    assert np.concatenate(found).tolist() == [*tokenizer.encode(text).ids, 0]


def test_long_texts_are_parted(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 100)
    text = "\n".join(STORIES)
    assert max(map(len, module._parts(text))) < 100 + max(map(len, text.split("\n"))) + 1
    whole = train_tokenizer([text], 300).to_str()
    monkeypatch.undo()
    assert train_tokenizer([text], 300).to_str() == whole


def test_packs_that_cannot_be(tokenizer):
    for tokens, most in ((0, None), (-1, 3), (5, 0), (5, -1)):
        with pytest.raises(StabError, match="expected at least one pack, and one token in each"):
            pack(STORIES, tokenizer, tokens, most)


def test_pieces_are_for_display_and_all_differ(tokenizer):
    shown = pieces(tokenizer)
    assert (
        "".join(shown[token] for token in tokenizer.encode("the cat: é").ids)
        == r"the cat: \xc3\xa9"
    )
    assert shown[0] == "<end>"
    assert len(set(shown)) == tokenizer.get_vocab_size()
