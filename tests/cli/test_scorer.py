"""``stab scorer`` from outside; training itself: tests/tasks/test_text.py."""

import subprocess
import sys

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


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['stab', 'scorer', 'train', '--help']\n"
        "from stab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'gymnasium', 'minari', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "stab scorer train text --dataset my/prose-v0" in done.stdout
