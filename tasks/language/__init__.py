"""Language: a text is an episode, the next token the action."""

import importlib
from typing import Any

PUBLIC = {"Language": "task", "generate": "generation"}  # their modules import torch: on demand


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(f"stab.tasks.language.{PUBLIC[name]}"), name)
    raise AttributeError(f"module 'stab.tasks.language' has no attribute {name!r}")
