"""Text for language-model tasks: read from files or Hugging Face, cut into tokens, packed into streams of one length.

Everything is deterministic: the same texts in the same order give the same tokenizer and the same packs.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stab.registry import StabError, reason

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, END_TEXT = 0, "<end>"  # the token behind every text
SMALLEST = 257  # entries: the bytes and the end
LARGEST = 1_000_000  # entries; the library sets memory aside for as many as it is asked for
PIECE = 1_000_000  # characters encoded at once: an encoding takes some 30 bytes of memory a byte of text
PATIENCE = 5.0  # seconds for Hugging Face to answer at all
# One line break between two characters that are not white space: GPT-2's pattern, by which byte-level BPE first splits,
# ends a word on either side of it, so that the two parts have the tokens of the whole.
SEAM = re.compile(r"(?<=\S\n)(?=\S)")


def read_folder(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder and of those in it, in the order of their paths.

    A ``.txt`` file (UTF-8) is one text, each row of a ``.parquet`` file's column ``text`` is one. Texts of white space
    alone are skipped, and so are hidden files and folders. Raises StabError, when first read, for a folder without such
    files, and at a file that cannot be read.
    """
    if not folder.is_dir():
        raise StabError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}: expected a folder of texts"
        )
    files = {
        path.relative_to(folder): path
        for path in folder.rglob("*")
        if path.suffix in (".txt", ".parquet")
    }
    names = [
        n for n in files if files[n].is_file() and not any(part.startswith(".") for part in n.parts)
    ]
    if not names:
        raise StabError(
            f"{folder} has no texts: expected .txt files (UTF-8), or .parquet files with a column 'text'"
        )
    for name in sorted(names, key=Path.as_posix):
        for text in _rows(files[name]) if name.suffix == ".parquet" else [_text(files[name])]:
            if text.strip():
                yield text


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # without the mark that some editors put first
    except UnicodeDecodeError as e:
        raise StabError(
            f"{path} is not UTF-8 ({e.reason} at byte {e.start}): save it as UTF-8"
        ) from e
    except OSError as e:
        raise StabError(f"{path} cannot be read: {e.strerror or e}") from e


def _rows(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise StabError(f"reading {path} needs pyarrow ({e}): pip install 'stab-gva[text]'") from e
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if schema.names.count("text") != 1:
                raise StabError(
                    f"{path} has no column 'text', but: {', '.join(schema.names) or 'none'}; rename one"
                )
            kind = schema.field("text").type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise StabError(f"{path} has {kind} in its column 'text': expected string")
            for batch in file.iter_batches(batch_size=1000, columns=["text"]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except StabError:
        raise
    except Exception as e:
        raise StabError(f"{path} cannot be read as parquet: {reason(e)}") from e


@dataclass(frozen=True)
class Hub:
    """A dataset of texts on Hugging Face.

    Attributes:
        repository: its name.
        revision: the commit, so that the texts stay the same.
        config: which of the repository's data sets; None where there is one.
        split: what to train on.
        column: where the texts are.
    """

    repository: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "text"


# TinyStories (2.1 million short stories, 1.0 GB to download, licence CDLA-Sharing 1.0): Eldan, Li, arXiv 2305.07759.
# Wikipedia (6.4 million articles in English, 11.6 GB, licences CC BY-SA 3.0 and GFDL): the Wikimedia Foundation's dump.
# Both are streamed: only what is used is downloaded.
HUBS = {
    "tinystories": Hub("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"),
    "wikipedia": Hub(
        "wikimedia/wikipedia", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa", "20231101.en"
    ),
}


def read_hub(hub: Hub, path: str | None = None) -> Iterator[str]:
    """Yield the texts of a dataset on Hugging Face, in its order, but for those of white space alone.

    Args:
        hub: which.
        path: the folder of a local copy, laid out as the repository; then nothing is asked of the network.

    Raises StabError, when first read, without the library, the network or the dataset, and where it cannot be read.
    """
    datasets = _library(hub)
    name = hub.repository if path is None else str(path)
    if path is None:
        _reach(hub)
    elif not Path(path).is_dir():
        raise StabError(
            f"{path} is no folder: expected a copy of {hub.repository}, made by: {_download(hub)}"
        )
    where, revision = hub.repository, hub.revision
    if path is not None:
        where, revision = (
            str(Path(path).resolve()),
            None,
        )  # a relative one may be some repository's name as well
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows: Iterable[dict[str, Any]] = datasets.load_dataset(
                where, hub.config, split=hub.split, revision=revision, streaming=True
            )
        for row in rows:
            if hub.column not in row:
                raise StabError(f"{name} has no column {hub.column!r}, but: {', '.join(row)}")
            text = row[hub.column]
            if text is not None and not isinstance(text, str):
                raise StabError(
                    f"{name} has {type(text).__name__} in its column {hub.column!r}: expected text"
                )
            if text and text.strip():
                yield text
    except StabError:
        raise
    except Exception as e:
        what = name if hub.config is None else f"{name} ({hub.config})"
        raise StabError(f"{what} cannot be read: {reason(e)}") from e


def _library(hub: Hub) -> Any:
    """Return Hugging Face's ``datasets``, told to say nothing and to report nothing."""
    try:
        import datasets
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as e:
        raise StabError(
            f"reading {hub.repository} needs datasets ({e}): pip install 'stab-gva[text]'"
        ) from e
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of variables that set the same
        datasets.disable_progress_bars()
        disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return datasets


def _reach(hub: Hub) -> None:
    """Raise StabError where Hugging Face does not answer; the library would try for a minute or two."""
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception as e:
        raise StabError(
            f"{hub.repository} cannot be read, Hugging Face is not reachable ({reason(e)}): give the folder of a copy, made"
            f" elsewhere by: {_download(hub)}"
        ) from e


def _download(hub: Hub) -> str:
    revision = f" --revision {hub.revision}" if hub.revision else ""
    folder = hub.config or "data"
    part = f"--include README.md --include '{folder}/*'"
    return f"hf download {hub.repository} --repo-type dataset{revision} {part} --local-dir FOLDER"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer: any text is encoded, and decoded to the same text.

    Args:
        texts: to learn from. A pair is merged where it occurs twice, the most frequent first.
        vocabulary: entries, from 257: the end of a text (0), the 256 bytes, and merges, of which there are fewer where
            the texts have no more pairs.

    Raises StabError for a vocabulary out of range or no texts.
    """
    if not SMALLEST <= vocabulary <= LARGEST:
        raise StabError(
            f"a vocabulary of {vocabulary} entries: expected {SMALLEST} (256 bytes and the end of a text) to {LARGEST:,}"
        )
    tokenizers = _tokenizers()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_TEXT],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    made, some = _blank(), False

    def parts() -> Iterator[str]:
        nonlocal some
        for text in texts:
            some = True
            yield from _parts(text)

    made.train_from_iterator(parts(), trainer)
    if not some:
        raise StabError("no texts to train a tokenizer on")
    # The library looks for special tokens in texts: a text that says "<end>" would end there. As an entry of the
    # vocabulary alone it is never found.
    described = json.loads(made.to_str())
    described["added_tokens"] = []
    found: Tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    return found


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
    made: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def _alphabet() -> list[str]:
    """The 256 bytes, as the characters that stand for them; sorted, as the library's order changes."""
    return sorted(_tokenizers().pre_tokenizers.ByteLevel.alphabet())


def _parts(text: str) -> Iterator[str]:
    """Yield a text in parts of about ``PIECE`` characters whose tokens are, together, those of the whole."""
    start = 0
    while len(text) - start > PIECE and (seam := SEAM.search(text, start + PIECE)):
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]


def pack(
    texts: Iterable[str], tokenizer: Tokenizer, tokens: int, most: int | None = None
) -> list[np.ndarray]:
    """Return the texts' tokens, one text after the other with the end token (0) behind each, cut into packs.

    Args:
        texts: no more of them are read than the packs need.
        tokenizer: from ``train_tokenizer``.
        tokens: of a pack; a last shorter one is dropped.
        most: packs; None for all there are.

    Returns int64 arrays of shape (tokens,), none where the texts do not fill one. Raises StabError unless ``tokens`` and
    ``most`` are positive.
    """
    if tokens < 1 or (most is not None and most < 1):
        raise StabError(
            f"{most} packs of {tokens} tokens: expected at least one pack, and one token in each"
        )
    wanted = math.inf if most is None else most * tokens
    parts = ((part, last) for text in texts for part, last in _with_last(_parts(text)))
    found: list[np.ndarray] = []
    there = 0
    while there < wanted and (batch := _take(parts, min(wanted - there, PIECE))):
        encodings = tokenizer.encode_batch_fast(
            [part for part, _ in batch], add_special_tokens=False
        )
        for encoding, (_, last) in zip(encodings, batch, strict=True):
            found.append(np.array(encoding.ids + [END] * last, dtype=np.int64))
            there += len(found[-1])
    packs = int(min(there, wanted)) // tokens
    if not packs:
        return []
    return list(np.concatenate(found)[: packs * tokens].reshape(packs, tokens))


def _with_last(parts: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Yield each with whether it is the last."""
    before = next(parts)
    for part in parts:
        yield before, False
        before = part
    yield before, True


def _take(parts: Iterator[tuple[str, bool]], size: float) -> list[tuple[str, bool]]:
    """Return the next parts up to a size in bytes. A token has a byte or more: so none is taken that is not needed."""
    batch = []
    while size > 0 and (item := next(parts, None)):
        batch.append(item)
        size -= len(item[0].encode()) + item[1]
    return batch


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Return the text of each entry, for display; bytes that are no characters are shown as ``\\xe2``, so all differ."""
    return [
        "<end>",
        *(entry.decode("utf-8", "backslashreplace") for entry in token_bytes(tokenizer)[1:]),
    ]


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each entry stands for; none of the end of a text."""
    # GPT-2's alphabet of byte-level BPE: printable characters stand for themselves, the other bytes for those from 256 on.
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
            f"malformed tokenizer: {e} is no character of a byte-level vocabulary"
        ) from e


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return a tokenizer as JSON, in the library's own format."""
    return tokenizer.to_str()


def tokenizer_from(written: str) -> Tokenizer:
    """Return the tokenizer that ``tokenizer_json`` wrote; data alone, no code is run. Raises StabError when it is none."""
    tokenizers = _tokenizers()
    try:
        described = json.loads(written)
        entries = dict(described["model"]["vocab"])
        merges = [(str(left), str(right)) for left, right in described["model"].get("merges", [])]
        numbered = sorted(entries.values()) == list(range(len(entries)))
        # Only these are taken, and merges that fit: the library panics, with a page of text, where they do not.
        if numbered and all(
            {left, right, left + right} <= entries.keys() for left, right in merges
        ):
            found = _blank()
            found.model = tokenizers.models.BPE(entries, merges)
            if (
                json.loads(found.to_str()) == described
                and set(_alphabet()) <= entries.keys()
                and entries.get(END_TEXT) == END
            ):
                return found
    except Exception as e:
        raise StabError(f"malformed tokenizer: {reason(e)}") from e
    raise StabError(
        f"a tokenizer of another kind: expected byte-level BPE with tokens from 0 ({END_TEXT!r}) on, as written by stab"
        f" with a like version of tokenizers (here {tokenizers.__version__})"
    )
