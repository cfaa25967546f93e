"""Where text is read from: a folder of files, or a dataset of Hugging Face."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stab.registry import StabError, reason

PATIENCE = 5.0  # seconds that Hugging Face has to answer at all


def read_folder(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder and its subfolders, in the order of their paths.

    A ``.txt`` file (UTF-8) is one text; each row of column ``text`` in a ``.parquet`` file is one.
    Blank texts, hidden files and hidden folders are skipped. Raises StabError, when first read, if
    the folder has no such files, and at a file that cannot be read.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise StabError(f"{folder} {state}: expected a folder of texts")
    files = [f for f in folder.rglob("*") if f.suffix in (".txt", ".parquet") and f.is_file()]
    names = [f.relative_to(folder) for f in files]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise StabError(
            f"{folder} has no texts: expected .txt files (UTF-8), or .parquet files with a column"
            " 'text'"
        )
    for name in sorted(names, key=Path.as_posix):
        path = folder / name
        for text in _rows(path) if path.suffix == ".parquet" else [_text(path)]:
            if text.strip():
                yield text


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # drops the byte order mark of some editors
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
                columns = ", ".join(schema.names) or "none"
                raise StabError(f"{path} has no column 'text', but: {columns}; rename one")
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
    """A dataset of texts on Hugging Face: the column ``text`` of its split ``train``.

    Attributes:
        repository: its name.
        revision: the commit, so that the texts stay the same.
        config: which of the repository's data sets; None if it has one.
    """

    repository: str
    revision: str | None = None
    config: str | None = None


# Both are streamed: only what is used is downloaded.
# TinyStories: 2.1 million short stories, 1.0 GB, licence CDLA-Sharing 1.0 (Eldan, Li, arXiv
# 2305.07759). Wikipedia: 6.4 million English articles, 11.6 GB, licences CC BY-SA 3.0 and GFDL.
HUBS = {
    "tinystories": Hub("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"),
    "wikipedia": Hub(
        "wikimedia/wikipedia", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa", "20231101.en"
    ),
}


def read_hub(hub: Hub, path: str | None = None) -> Iterator[str]:
    """Yield the texts of a dataset on Hugging Face in its order, blank ones left out.

    Args:
        hub: the dataset.
        path: folder of a local copy with the repository's layout; then the network is not used.

    Raises StabError, when first read, if the library, the network or the dataset is missing, and if
    the dataset cannot be read.
    """
    library = _library(hub)
    if path is None:
        _reach(hub)
        name, where, revision = hub.repository, hub.repository, hub.revision
    elif Path(path).is_dir():
        # Absolute: a relative path may be the name of some repository as well.
        name, where, revision = path, str(Path(path).resolve()), None
    else:
        raise StabError(
            f"{path} is not a folder: expected a copy of {hub.repository}, made by:"
            f" {_download(hub)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows: Iterable[dict[str, Any]] = library.load_dataset(
                where, hub.config, split="train", revision=revision, streaming=True
            )
        for row in rows:
            if "text" not in row:
                raise StabError(f"{name} has no column 'text', but: {', '.join(row)}")
            text = row["text"]
            if text is not None and not isinstance(text, str):
                raise StabError(
                    f"{name} has {type(text).__name__} in its column 'text': expected text"
                )
            if text and text.strip():
                yield text
    except StabError:
        raise
    except Exception as e:
        what = name if hub.config is None else f"{name} ({hub.config})"
        raise StabError(f"{what} cannot be read: {reason(e)}") from e


def _library(hub: Hub) -> Any:
    """Hugging Face's ``datasets``, set to print nothing and to report nothing."""
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
        warnings.simplefilter("ignore")  # about environment variables that set the same
        datasets.disable_progress_bars()
        disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return datasets


def _reach(hub: Hub) -> None:
    """Raise StabError if Hugging Face does not answer; the library would try for minutes."""
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception as e:
        raise StabError(
            f"{hub.repository} cannot be read, Hugging Face is not reachable ({reason(e)}): give"
            f" the folder of a copy, made elsewhere by: {_download(hub)}"
        ) from e


def _download(hub: Hub) -> str:
    revision = f" --revision {hub.revision}" if hub.revision else ""
    part = f"--include README.md --include '{hub.config or 'data'}/*'"
    return f"hf download {hub.repository} --repo-type dataset{revision} {part} --local-dir FOLDER"
