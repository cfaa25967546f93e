"""What can be measured again, kept on disk: a lost or unwritable cache costs time, never a result."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def folder() -> Path:
    """Return where it lies: ``$XDG_CACHE_HOME/stab``, by default ``~/.cache/stab``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stab"


def write(path: Path, text: str) -> None:
    """Write a file of the cache under a temporary name and rename it; do nothing where the disk does not take it."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
