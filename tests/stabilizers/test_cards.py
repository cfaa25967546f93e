"""Cards: a docstring in parts, ``stab list stabilizers -v``, and the docs page made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stab.stabilizers import stabilizers
from stab.stabilizers.cards import card
from stab.stabilizers.polyak import Polyak

PAGE = Path(__file__).parents[2] / "docs" / "stabilizers.md"
BUILT_IN = ["none", "ema", "polyak", "swa", "accumulation", "lr_decay", "weight_decay", "dropout"]


class Whole:
    """Mean of all iterates.

    ::

        avg = mean(theta_1, ..., theta_t)
        n = t

    Prose that
    goes on.

    More of it::

        avg <- avg + (theta_t - avg) / t

    Suggested: nothing
        to set.
    Cost: one copy.
    Conflicts: another.
    Source: Polyak: 1992.
    """


def test_a_docstring_is_taken_apart():
    found = card(Whole)
    assert found.summary == "Mean of all iterates."
    assert found.formula.splitlines() == [
        "avg = mean(theta_1, ..., theta_t)",
        "n = t",
        "avg <- avg + (theta_t - avg) / t",
    ]
    assert found.prose == ["Prose that goes on.", "More of it"]
    assert (found.suggested, found.cost) == ("nothing to set.", "one copy.")
    assert (found.conflicts, found.source) == ("another.", "Polyak: 1992.")
    assert found.missing == []


def test_what_is_missing_is_named():
    class Bare:
        """Does something.

        Cost: none.
        """

    class Silent:
        pass

    assert card(Bare).missing == ["a formula (a block after ::)", "Suggested:", "Source:"]
    assert card(Bare).conflicts == "not stated"
    assert "Source:" in card(Silent).missing


def test_a_subclass_that_says_nothing_has_its_parents_card():
    class Mine(Polyak):
        pass

    assert card(Mine) == card(Polyak)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_ins_have_a_card(name):
    found = card(stabilizers.get(name))
    assert found.missing == []
    assert max(map(len, found.formula.splitlines())) <= 66  # fits beside its label at 80 columns
    assert "\n" not in found.summary


def without_costs(section: str) -> str:
    return re.sub(r"Measured: .*", "", section)


def test_listing_and_docs_page_show_them(stab):
    """One command each; the first measures the costs, the second finds them measured."""
    listed = stab("list", "stabilizers", "-v")
    assert listed.returncode == 0, listed.stderr
    assert max(map(len, listed.stdout.splitlines())) <= 80
    said = " ".join(listed.stdout.split())
    assert (
        "ema Exponential moving average with burn-in and a decaying rate. rule avg <- (1 - g_t) avg"
        in said
    )
    assert (
        "half_life 0.05: updates after which an iterate's weight has halved; an integer >= 1"
        in said
    )
    assert re.search(
        r"cost one copy .* Measured: x1\.\d\d time, 1 more copy of the parameters\.", said
    )
    for label in ("suggested", "conflicts", "source", "defined in"):
        assert len(re.findall(rf"^  {label}  ", listed.stdout, re.MULTILINE)) >= len(BUILT_IN)

    made = stab("list", "stabilizers", "--markdown")
    assert made.returncode == 0, made.stderr
    sections = {
        s.splitlines()[0]: s for s in re.split(r"^## ", made.stdout, flags=re.MULTILINE)[1:]
    }
    kept = {
        s.splitlines()[0]: s for s in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    }
    assert list(sections)[: len(BUILT_IN)] == BUILT_IN
    for name in BUILT_IN:
        assert without_costs(sections[name]).strip() == without_costs(kept[name]).strip(), (
            f"docs/stabilizers.md is out of date at {name}: make it again with stab list stabilizers --markdown"
        )


def test_markdown_is_for_stabilizers(stab):
    done = stab("list", "--markdown")
    assert done.returncode == 2
    assert "--markdown is for stabilizers" in done.stderr
