"""Text as tokens: a byte-level BPE tokenizer, and token streams cut into packs of one length.

Everything is deterministic: the same texts in the same order give the same tokenizer and packs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stab.registry import StabError, reason
from stab.tasks.language.source import END

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_TEXT = "<end>"  # how END is written in the vocabulary
SMALLEST = 257  # entries: the bytes and the end
LARGEST = 1_000_000  # entries; the library allocates memory for as many as it is asked for
PIECE = 1_000_000  # characters encoded at once: an encoding takes some 30 bytes per byte of text
# One line break between two characters that are not white space. GPT-2's pattern, by which
# byte-level BPE splits first, ends a word on either side: both parts keep the tokens of the whole.
SEAM = re.compile(r"(?<=\S\n)(?=\S)")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer: any text is encoded, and decoded to the same text.

    Args:
        texts: to learn from. A pair that occurs twice is merged, the most frequent first.
        vocabulary: entries, at least 257: the end of a text (0), the 256 bytes, and merges. There
            are fewer merges if the texts have no more pairs.

    Raises StabError if the vocabulary is out of range or there are no texts.
    """
    if not SMALLEST <= vocabulary <= LARGEST:
        raise StabError(
            f"a vocabulary of {vocabulary} entries: expected {SMALLEST} (256 bytes and the end of a"
            f" text) to {LARGEST:,}"
        )
    tokenizers = _tokenizers()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_TEXT],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer, empty = _blank(), True

    def parts() -> Iterator[str]:
        nonlocal empty
        for text in texts:
            empty = False
            yield from _parts(text)

    tokenizer.train_from_iterator(parts(), trainer)
    if empty:
        raise StabError("no texts to train a tokenizer on")
    # The library looks for special tokens in texts: a text that contains "<end>" would end there.
    # A mere entry of the vocabulary is never matched.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = []
    trained: Tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    return trained


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise StabError(
            f"tokens need the library tokenizers ({e}): pip install 'stab-gva[text]'"
        ) from e
    return tokenizers


def _blank() -> Tokenizer:
    tokenizers = _tokenizers()
    tokenizer: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    """The characters that stand for the 256 bytes; sorted, as the library's order changes."""
    return sorted(_tokenizers().pre_tokenizers.ByteLevel.alphabet())


def _parts(text: str) -> Iterator[str]:
    """Cut a text into parts of about ``PIECE`` characters that together have its tokens."""
    start = 0
    while len(text) - start > PIECE and (seam := SEAM.search(text, start + PIECE)):
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]


def pack(
    texts: Iterable[str], tokenizer: Tokenizer, tokens: int, most: int | None = None
) -> list[np.ndarray]:
    """Return the tokens of all texts in a row, the end token (0) after each, cut into packs.

    Args:
        texts: only as many are read as the packs need.
        tokenizer: from ``train_tokenizer``.
        tokens: size of a pack; a last shorter one is dropped.
        most: number of packs at most; None for all.

    Returns int64 arrays of shape (tokens,). Raises StabError unless ``tokens`` and ``most`` are
    positive.
    """
    if tokens < 1 or (most is not None and most < 1):
        raise StabError(
            f"{most} packs of {tokens} tokens: expected at least one pack, and one token in each"
        )
    needed = math.inf if most is None else most * tokens
    parts = ((part, last) for text in texts for part, last in _with_last(_parts(text)))
    stream: list[np.ndarray] = []
    total = 0
    while total < needed and (batch := _take(parts, min(needed - total, PIECE))):
        encodings = tokenizer.encode_batch_fast(
            [part for part, _ in batch], add_special_tokens=False
        )
        for encoding, (_, last) in zip(encodings, batch, strict=True):
            stream.append(np.array(encoding.ids + [END] * last, dtype=np.int64))
            total += len(stream[-1])
    packs = int(min(total, needed)) // tokens
    if not packs:
        return []
    return list(np.concatenate(stream)[: packs * tokens].reshape(packs, tokens))


def _with_last(parts: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Yield each part and whether it is the last."""
    before = next(parts)
    for part in parts:
        yield before, False
        before = part
    yield before, True


def _take(parts: Iterator[tuple[str, bool]], size: float) -> list[tuple[str, bool]]:
    """Return the next parts up to a size in bytes: a token has at least one, so all are needed."""
    batch = []
    while size > 0 and (item := next(parts, None)):
        batch.append(item)
        size -= len(item[0].encode()) + item[1]
    return batch


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Return the text of each entry for display; bytes that are not characters as ``\\xe2``."""
    entries = token_bytes(tokenizer)[1:]
    return [END_TEXT, *(entry.decode("utf-8", "backslashreplace") for entry in entries)]


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each entry; the end of a text has none."""
    # GPT-2's alphabet of byte-level BPE: printable characters stand for themselves, the other
    # bytes for the characters from 256 on.
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    byte_of = {chr(byte): byte for byte in own} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }
    entries = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
    try:
        return [b"", *(bytes(byte_of[character] for character in entry) for entry in entries[1:])]
    except KeyError as e:
        raise StabError(
            f"malformed tokenizer: {e} is not a character of a byte-level vocabulary"
        ) from e


def tokenizer_from(written: str) -> Tokenizer:
    """Return a tokenizer of ours from its JSON (``tokenizer.to_str()``); no code is run.

    Raises StabError if the text is not such a tokenizer.
    """
    tokenizers = _tokenizers()
    try:
        described = json.loads(written)
        entries = dict(described["model"]["vocab"])
        merges = [(str(left), str(right)) for left, right in described["model"].get("merges", [])]
        # Checked first: if they do not fit, the library panics with a page of text.
        numbered = sorted(entries.values()) == list(range(len(entries)))
        if numbered and all({a, b, a + b} <= entries.keys() for a, b in merges):
            tokenizer = _blank()
            tokenizer.model = tokenizers.models.BPE(entries, merges)
            same = json.loads(tokenizer.to_str()) == described
            if same and set(_alphabet()) <= entries.keys() and entries.get(END_TEXT) == END:
                return tokenizer
    except Exception as e:
        raise StabError(f"malformed tokenizer: {reason(e)}") from e
    raise StabError(
        f"a tokenizer of another kind: expected byte-level BPE with tokens from 0 ({END_TEXT!r})"
        f" on, as written by stab with a like version of tokenizers (here {tokenizers.__version__})"
    )
