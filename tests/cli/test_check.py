"""``stab check`` from outside."""

import re

PLUGIN = """
from dataclasses import dataclass
from stab.stabilizers.polyak import Polyak

@dataclass(frozen=True)
class Alias(Polyak):
    def read(self, state):
        return state.mean

@dataclass(frozen=True)
class Fine(Polyak):
    pass
"""


def test_a_built_in_passes_one_line_a_check(stab):
    done = stab("check", "ema", "lr_decay+polyak")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == f"{len(lines)} checks, all passed"
    assert all(line.startswith("ok      ") for line in lines)
    assert "ok      ema  read_never_aliases" in lines
    assert "ok      lr_decay+polyak  apply_is_pure" in lines
    assert done.stderr == ""


def test_a_wrong_plugin_in_the_current_folder_fails_with_its_mistake(stab, tmp_path):
    (tmp_path / "my_pkg.py").write_text(PLUGIN)
    done = stab("check", "my_pkg:Alias", "my_pkg:Fine", "-v")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = " ".join(done.stdout.split())
    assert (
        "FAILED my_pkg:Alias read_never_aliases: update 0: writing into a read-out changes the average"
        in said
    )
    assert "ok my_pkg:Fine read_never_aliases" in said
    assert re.search(r"32 checks, \d failed$", said)
    assert "Read-outs are new tensors" in said
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_an_unknown_name_is_refused_before_anything_runs(stab):
    done = stab("check", "ema", "emma")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Unknown stabilizer or task 'emma'. Did you mean 'ema'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_examples(stab):
    done = stab("check", "--help")
    assert done.returncode == 0
    assert "stab check my_pkg:Lookahead" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "check" in stab("--help").stdout
