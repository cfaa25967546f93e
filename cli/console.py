"""The console of every command: nothing that a stranger wrote reaches the terminal as a control."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from stab.reports import clean


class Console(rich.console.Console):
    """Rich's console; the text of what it shows is cleaned, its own colours and cursor are not."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the segments of a renderable."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean.terminal(text), style, control)
