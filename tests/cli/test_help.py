"""``--help`` comes at once: it imports none of the libraries that the command needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "mujoco", "gymnasium", "minari", "jax", "sbx", "tokenizers")


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("expert", "stab expert train hopper"),
        ("scorer", "stab scorer train text --dataset my/prose-v0"),
    ],
)
def test_help_imports_nothing_heavy(command, example):
    code = (
        f"import sys; sys.argv = ['stab', {command!r}, 'train', '--help']\n"
        "from stab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"assert not {{*{HEAVY}}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert example in done.stdout
