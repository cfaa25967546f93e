"""Language: a text is an episode, the next token the action."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Language":  # only when it is asked for: its module imports torch
        return importlib.import_module("stab.tasks.language.task").Language
    raise AttributeError(f"module 'stab.tasks.language' has no attribute {name!r}")
