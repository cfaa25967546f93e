"""Files: written whole or not at all. JSON of a known form, trees of tensors, and a cache.

Files of a run folder carry the SHA-256 of their content: JSON under a key, YAML in its first line,
safetensors in their metadata. Files without one (of earlier versions) are read as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stab.registry import StabError

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = (int, float)
FOLDERS = (  # environment variables that name one
    "MINARI_DATASETS_PATH", "TMPDIR", "TEMP", "TMP", "HOME", "HF_HOME", "TORCH_HOME",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip
LARGEST = 2**53  # of numbers; NaN is not below it, either


CHECKSUM = "checksum"  # key of the content's SHA-256
FIRST_LINE = re.compile(rf"# {CHECKSUM}: ([0-9a-f]{{64}})[^\n]*\n")


class CannotWrite(StabError):
    """The disk did not take a file: once there is room, the same would succeed."""


class Damaged(StabError):
    """A file cannot be read, or is not as stab wrote it."""


def damaged(path: Path, why: str = "") -> Damaged:
    """Return the error for a file; without a reason its checksum differs."""
    if why:
        return Damaged(f"cannot read {path}: {why}")
    return Damaged(
        f"{path} is not as stab wrote it (its checksum differs): it was damaged or changed"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``: renamed at the end, removed if the block raises.

    Raises StabError when the disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as e:
        raise CannotWrite(f"cannot write {path}: {e.strerror or e}") from e


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it. Raises StabError if that fails."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any, indent: int | None = None) -> None:
    """Write JSON (null for NaN) under a temporary name and rename it."""
    write_text(path, json.dumps(data, indent=indent, allow_nan=False) + "\n")


def write_record(path: Path, data: dict[str, Any]) -> None:
    """Write JSON with the checksum of its content."""
    write_json(path, data | {CHECKSUM: _digest(data)})


def write_record_text(path: Path, text: str) -> None:
    """Write YAML below a line with its checksum."""
    line = f"# {CHECKSUM}: {_sha256(text)}; delete this line if you change the file"
    write_text(path, f"{line}\n{text}")


def read_json(path: Path) -> Any:
    """Read JSON. Raises Damaged when it is missing, truncated, not JSON, or has been changed."""
    try:
        data = json.loads(_read_text(path), parse_constant=_refuse)
        if isinstance(data, dict) and CHECKSUM in data:
            checksum = data.pop(CHECKSUM)
            if checksum != _digest(data):
                raise damaged(path)
    except StabError:
        raise
    except (OSError, ValueError, RecursionError) as e:
        raise damaged(path, str(e)) from e
    return data


def read_record_text(path: Path) -> str:
    """Read a file of text. Raises Damaged when it is missing, not text, or has been changed."""
    try:
        text = _read_text(path)
    except (OSError, ValueError) as e:
        raise damaged(path, str(e)) from e
    if line := FIRST_LINE.match(text):
        text = text[line.end() :]
        if line[1] != _sha256(text):
            raise damaged(path)
    return text


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise OSError("it is not a file")
    return path.read_text(encoding="utf-8")


def _digest(data: Any) -> str:
    """Return the digest of what JSON means, however it is written."""
    return _sha256(json.dumps(data, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; at the end it takes the place of ``folder``.

    Nothing stale stays, nothing half-written shows. Raises StabError when the disk does not take
    it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as e:
        raise CannotWrite(f"cannot write {folder}: {e.strerror or e}") from e


def fits(value: Any, form: Any) -> bool:
    """Whether data have a form: a type, (form, form), [form], {key: form} or {str: form}.

    Numbers must be finite, and no larger than the integers that a float can tell apart.
    """
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(one, form[0]) for one in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            all(fits(one, inner) for one in value.values())
            if key is str
            else key in value and fits(value[key], inner)
            for key, inner in form.items()
        )
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, form) and (not isinstance(value, int | float) or abs(value) < LARGEST)


def read_as(path: Path, form: Any, what: str) -> Any:
    """Read JSON of a form. Raises StabError when it is missing, truncated, or something else."""
    data = read_json(path)
    if not fits(data, form):
        raise StabError(f"{path} is not a {what} of stab; move it out of the run folder")
    return data


def save_tree(path: Path, tree: Any) -> None:
    """Write a tree under a temporary name and rename it.

    A tree is a tensor, an array, a number, a string, a boolean, None, or a dict (keys: strings and
    integers), list or tuple of trees. Floats keep every bit, tensors their strides. Raises
    TypeError for anything else, StabError when the disk does not take it.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_apart(tree, tensors))
    save_tensors(path, tensors, {"tree": structure})


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write safetensors with a checksum under a temporary name and rename it.

    Equal tensors and ``about`` give equal bytes. Raises StabError if that fails.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as temporary:
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                temporary,
                about | {CHECKSUM: "0" * 64},
            )
            _settle_header(temporary)
    except SafetensorError as e:
        raise CannotWrite(f"cannot write {path}: {e}") from e


def _settle_header(path: Path) -> None:
    """Sort the metadata, which safetensors writes in any order, and enter the checksum."""
    header, length = _header(path)
    about = header["__metadata__"]
    about[CHECKSUM] = _tensors_digest(path, header, length)
    header["__metadata__"] = dict(sorted(about.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > length:
        raise RuntimeError(f"the header of {path} does not fit into {length} bytes")
    with path.open("r+b") as file:
        file.seek(8)
        file.write(text.ljust(length))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of safetensors, and its length in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), length


def _tensors_digest(path: Path, header: dict[str, Any], length: int) -> str:
    """Return the digest of header, checksum aside, and tensors."""
    about = {k: v for k, v in header["__metadata__"].items() if k != CHECKSUM}
    sha = hashlib.sha256(json.dumps(header | {"__metadata__": about}, sort_keys=True).encode())
    with path.open("rb") as file:
        file.seek(8 + length)
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def read_about(path: Path) -> dict[str, str]:
    """Return the metadata of safetensors, after a look at the checksum.

    Raises Damaged if the file is missing, damaged or has been changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        with safe_open(path, "np") as file:  # which looks at the form of the header
            about: dict[str, str] = file.metadata() or {}
        if CHECKSUM in about:
            header, length = _header(path)
            if about.pop(CHECKSUM) != _tensors_digest(path, header, length):
                raise damaged(path)
    except StabError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as e:
        raise damaged(path, str(e)) from e
    return about


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of safetensors. Raises Damaged as ``read_about`` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_about(path)
    try:
        # Copies: safetensors maps the file, at addresses that are not aligned as fresh ones are.
        return {name: value.clone() for name, value in load_file(path).items()}, about
    except (OSError, SafetensorError, RuntimeError, ValueError) as e:
        raise damaged(path, str(e)) from e


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote. Raises Damaged if the file is missing or damaged."""
    tensors, about = load_tensors(path)
    try:
        return _put_together(json.loads(about["tree"]), tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        raise damaged(path, str(e)) from e


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    import numpy as np
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(np.array(value, order="C"))
            return {"array": name}
        # The layout in memory is kept, too: fused optimizers walk through a parameter and its state
        # side by side.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        tensors[name] = (
            value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        )
        return {"tensor": [name, order]}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _take_apart(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take_apart(one, tensors) for one in value]}
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        name, order = content
        return tensors[name].permute([order.index(axis) for axis in range(len(order))])
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _put_together(one, tensors) for key, one in content}
    elements = [_put_together(one, tensors) for one in content]
    return {"list": elements, "tuple": tuple(elements)}[kind]


def make_variables_absolute() -> None:
    """Make folders in environment variables absolute: workers run elsewhere, and find them so."""
    for name in FOLDERS:
        if value := os.environ.get(name):
            os.environ[name] = os.path.abspath(value)


def cache_folder() -> Path:
    """Folder of what can be measured again: ``$XDG_CACHE_HOME/stab``, or ``~/.cache/stab``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stab"


def write_cache(path: Path, text: str) -> None:
    """Write a file of the cache; if that fails nothing happens, as it can be measured again."""
    with contextlib.suppress(StabError):
        write_text(path, text)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
