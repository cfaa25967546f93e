"""``stab scorer`` from outside; training itself: tests/tasks/test_text.py."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hopper",), "task 'hopper' needs no scorer model: expected a task of text"),
        (("texts",), "Did you mean 'text'?"),
        (("text",), "has no texts of its own"),
        (("text", "--dataset", "my/nothing-v0"), "my/nothing-v0"),
    ],
)
def test_what_cannot_be_trained(stab, arguments, message):
    for command in ("scorer", "expert"):
        if command == "expert" and arguments[0] != "text":
            continue  # has its own answers
        done = stab(command, "train", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
        assert message in done.stderr


def test_a_folder_is_not_ignored(stab):
    done = stab("expert", "train", "text", "--out", "elsewhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--out elsewhere: a scorer model stands beside its dataset" in done.stderr
