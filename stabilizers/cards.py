"""A stabilizer's card: what its docstring says of it, in parts."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

LABELS = ("Suggested", "Cost", "Conflicts", "Source")
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Card:
    """The parts of a docstring: a first line, a formula (a block after ``::``), paragraphs.

    ::

        \"\"\"Mean of all iterates.                              # summary

        ::

            avg = mean(theta_1, ..., theta_t)                  # formula

        Prose, as much as is needed.

        Suggested: nothing to set.                             # Suggested, Cost, Conflicts, Source
        Cost: one copy of the parameters.
        Source: ...
        \"\"\"

    Attributes:
        summary, formula, suggested, cost, conflicts, source: text, "not stated" where a part is
        missing.
        prose: the rest, paragraph by paragraph.
    """

    summary: str
    formula: str
    prose: list[str]
    suggested: str
    cost: str
    conflicts: str
    source: str

    @property
    def missing(self) -> list[str]:
        """What every card must say and this one does not; conflicts may be left out."""
        parts = {"a first line": self.summary, "a formula (a block after ::)": self.formula}
        parts |= {f"{name}:": getattr(self, name.lower()) for name in LABELS if name != "Conflicts"}
        return [name for name, text in parts.items() if text == NOT_STATED]


def card(cls: type) -> Card:
    """Return the card of a stabilizer's class, from its docstring or that of its base."""
    docs = [inspect.cleandoc(vars(c).get("__doc__") or "") for c in cls.__mro__]
    # What @dataclass writes where nobody wrote anything: Polyak(start: int | float = 0.25).
    written = [
        doc
        for doc, c in zip(docs, cls.__mro__, strict=True)
        if doc and not doc.startswith(f"{c.__name__}(")
    ]
    doc = written[0]
    body, labelled = doc, dict.fromkeys(LABELS, NOT_STATED)
    labels = list(re.finditer(rf"^({'|'.join(LABELS)}):", doc, re.MULTILINE))
    if labels:
        body = doc[: labels[0].start()]
        for label, following in zip(labels, [*labels[1:], None], strict=True):
            text = doc[label.end() : following.start() if following else None]
            labelled[label[1]] = " ".join(text.split())
    summary, _, rest = body.strip().partition("\n")
    formula: list[str] = []
    prose: list[str] = []
    for paragraph in re.split(r"\n\s*\n", rest.strip("\n")):
        lines = paragraph.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            formula += [line.removeprefix("    ").rstrip() for line in lines]
        elif (text := " ".join(paragraph.split()).removesuffix("::")).strip():
            prose.append(text.strip())
    return Card(
        summary=summary or NOT_STATED,
        formula="\n".join(formula) or NOT_STATED,
        prose=prose,
        **{name.lower(): text for name, text in labelled.items()},
    )
