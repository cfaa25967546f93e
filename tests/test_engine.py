"""Workers from outside: what jobs do to them, and what is heard of it."""

import os
import subprocess
import sys
import time

import pytest

from stab import StabError, compare
from stab.engines import cores
from stab.engines import local as engine

JOBS = """
import os, pathlib, signal, sys, time

def work(job, report, more):
    folder = pathlib.Path(job["folder"])
    (folder / f"began-{job['n']}").write_text(f"{os.getpid()} {time.time()}")
    report("first", 0.5)
    what = job.get("what", "")
    if what == "raise":
        raise ValueError("two\\nlines   of it")
    if what == "raise nothing":
        raise KeyError
    if what == "exit":
        sys.exit("gone")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "kill":
        print("my last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "os exit":
        os._exit(3)
    if what == "print":
        print('{"kind": "done"}')
        print("not json", flush=True)
        os.write(1, b'{"kind": "failed", "reason": "a lie"}\\n')
        os.system("echo from a child")
        sys.stdout.flush()
    if what.startswith("ask "):  # "ask nap nap": for two parts
        for n, word in enumerate(what.split()[1:], 1):
            more({**job, "n": f"{job['n']}-{n}", "what": word.replace("_", " ")})
    if what == "sleep":
        time.sleep(60)
    if what == "nap":
        time.sleep(0.3)
    if what == "environment":
        text = " ".join(os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"))
        (folder / "environment").write_text(text + " " + os.getcwd())
    report("second", 1.0)
    (folder / f"done-{job['n']}").write_text("")
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that runs one job for each word; ``start("", "raise", workers=1)``."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    (source / "engine_test_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(source))

    def run(*words, workers=2, target="engine_test_jobs:work"):
        jobs = [{"n": n, "what": word, "folder": str(folder)} for n, word in enumerate(words)]
        with engine.Workers(target, workers) as processes:
            yield from processes.run(jobs)

    run.folder = folder
    return run


def ends(events):
    return {e.job: e for e in events if e.kind != "progress"}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_is_done_once(start, workers):
    events = list(start("", "", "", workers=workers))
    assert sorted(e.job for e in events if e.kind == "done") == [0, 1, 2]
    assert {e.kind for e in events} == {"done", "progress"}
    for job in range(3):
        mine = [e for e in events if e.job == job]
        assert [(e.kind, e.phase, e.fraction) for e in mine] == [
            ("progress", "first", 0.5),
            ("progress", "second", 1.0),
            ("done", "", 0.0),
        ]
        assert (start.folder / f"done-{job}").exists()


def test_no_jobs_no_events(start):
    assert list(start()) == []


def test_one_worker_takes_the_jobs_in_order_and_one_process_serves_them_all(start):
    events = list(start("", "raise", "", "", workers=1))
    assert [e.job for e in events if e.kind != "progress"] == [0, 1, 2, 3]
    began = [(start.folder / f"began-{n}").read_text().split() for n in range(4)]
    assert len({pid for pid, _ in began}) == 1
    assert [float(t) for _, t in began] == sorted(float(t) for _, t in began)


def test_two_workers_are_two_processes_at_once(start):
    list(start("nap", "nap", workers=2))
    began = [(start.folder / f"began-{n}").read_text().split() for n in range(2)]
    assert len({pid for pid, _ in began}) == 2


REASONS = {
    "raise": "ValueError: two lines of it",
    "raise nothing": "KeyError",
    "exit": "SystemExit: gone",
    "interrupt": "KeyboardInterrupt",
    "kill": "killed",
    "segfault": "signal 11",
    "os exit": "exit code 3",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_takes_nobody_with_it(start, workers):
    words = ["", *REASONS, ""]
    found = ends(start(*words, workers=workers))
    assert sorted(found) == list(range(len(words)))
    for n, word in enumerate(words):
        event = found[n]
        assert event.kind == ("failed" if word else "done")
        assert REASONS.get(word, "") in event.reason
        assert "\n" not in event.reason
        assert (start.folder / f"done-{n}").exists() == (not word)


def test_a_killed_worker_says_its_last_words(start):
    reason = ends(start("kill"))[0].reason
    assert "SIGKILL" in reason
    assert "my last words" in reason


def test_what_a_job_prints_does_not_break_the_protocol(start):
    events = list(start("print", "", workers=1))
    assert [(e.job, e.kind) for e in events if e.kind != "progress"] == [(0, "done"), (1, "done")]
    assert len(events) == 6


def test_a_target_that_cannot_be_loaded_fails_every_job(start):
    for target in ("no_such_module:work", "engine_test_jobs:no_such_function"):
        found = ends(start("", "", workers=1, target=target))
        assert {e.kind for e in found.values()} == {"failed"}
        assert all(target in e.reason for e in found.values())


def test_workers_have_one_thread_and_a_folder_of_their_own(start):
    list(start("environment"))
    *threads, folder = (start.folder / "environment").read_text().split()
    assert threads == ["1", "1", "1"]
    assert folder != os.getcwd()
    assert not os.path.exists(folder)  # it goes with the run


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_job_is_done_when_its_parts_are(start, workers):
    events = list(start("ask nap nap", "ask ask_nap", "", workers=workers))
    assert sorted(e.job for e in events if e.kind == "done") == [0, 1, 2]
    assert {e.kind for e in events} == {"done", "progress"}
    for n in ("0", "0-1", "0-2", "1", "1-1", "1-1-1", "2"):
        assert (start.folder / f"done-{n}").exists()
    for job, parts in ((0, {0, 1, 2}), (1, {0, 1, 2}), (2, {0})):
        mine = [e for e in events if e.job == job]
        assert mine[-1].kind == "done"
        assert {e.part for e in mine if e.kind == "progress"} == parts


def test_any_worker_takes_a_part(start):
    list(start("ask nap nap nap nap", workers=2))
    pids = {(start.folder / f"began-0-{n}").read_text().split()[0] for n in range(1, 5)}
    assert len(pids) == 2


def test_jobs_come_before_parts_while_few_parts_wait(start):
    def began(n):
        return float((start.folder / f"began-{n}").read_text().split()[1])

    few, many = engine.BACKLOG - 1, engine.BACKLOG
    list(start("ask" + " nap" * few, "", "ask" + " nap" * many, "", workers=1))
    assert began(1) < began("0-1")
    assert began("2-1") < began(3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_fails_once_when_a_part_does_and_drops_the_others(start, workers):
    events = list(
        start(
            "ask raise sleep sleep sleep sleep" if workers == 1 else "ask raise raise",
            "",
            workers=workers,
        )
    )
    assert [(e.job, e.kind) for e in events if e.kind != "progress" and e.job == 0] == [
        (0, "failed")
    ]
    assert "two lines of it" in ends(events)[0].reason
    assert ends(events)[1].kind == "done"
    assert not (start.folder / "began-0-3").exists()


@pytest.mark.parametrize("word", ["kill", "os_exit"])
def test_a_part_that_takes_its_worker_along_fails_its_job_alone(start, word):
    found = ends(start(f"ask {word}", "ask nap", workers=2))
    assert (found[0].kind, found[1].kind) == ("failed", "done")
    assert REASONS[word.replace("_", " ")] in found[0].reason


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", ["close", "throw"])
def test_stopping_early_kills_the_workers_at_once(start, how):
    events = start("sleep", "sleep", "", workers=2)
    seen = {next(events).job, next(events).job}
    assert seen == {0, 1}
    pids = [int((start.folder / f"began-{n}").read_text().split()[0]) for n in range(2)]
    assert not any(gone(pid) for pid in pids)
    before = time.monotonic()
    if how == "close":
        events.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)
    assert time.monotonic() - before < 5
    assert all(gone(pid) for pid in pids)
    assert not (start.folder / "began-2").exists()


def test_a_worker_that_dies_with_nothing_to_do_costs_no_job(tmp_path, start):
    with engine.Workers("engine_test_jobs:work", 2) as workers:
        idle = workers.idle[-1].process
        idle.kill()
        idle.wait()
        events = list(workers.run([{"n": 0, "folder": str(start.folder)}]))
    assert [event.kind for event in events][-1] == "done"


def test_few_workers_start_before_there_is_anything_to_do(start):
    with engine.Workers("engine_test_jobs:work", 1000) as workers:
        assert len(workers.idle) == engine.FIRST


def test_no_worker_outlives_a_run(start):
    list(start("", "raise", "", workers=2))
    pids = {int((start.folder / f"began-{n}").read_text().split()[0]) for n in range(3)}
    assert all(gone(pid) for pid in pids)


def test_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)


SERIAL = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stab-serial"
version = "0.1.0"
[project.entry-points."stab.engines"]
serial = "stab_serial:Serial"
[tool.setuptools]
py-modules = ["stab_serial"]
""",
    "stab_serial.py": """
from stab.engines import Event
from stab.recipe import load_object


class Serial:
    \"\"\"Jobs one after the other, in this process.\"\"\"

    count, where = 1, "one process"

    def __init__(self, target, workers):
        self.function = load_object(target)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def run(self, jobs):
        for index, job in enumerate(jobs):
            parts = [job]
            try:
                for part in parts:
                    self.function(part, lambda phase, fraction: None, parts.append)
            except Exception as e:
                yield Event(index, "failed", reason=str(e))
            else:
                yield Event(index, "done")
""",
}


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory):
    """The variables of an environment in which that distribution is installed."""
    top = tmp_path_factory.mktemp("engine")
    for name, text in SERIAL.items():
        (top / name).write_text(text)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    subprocess.run([*install, "--no-index", "--target", top / "site", top], check=True)
    path = [str(top / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def test_a_plug_in_engine_gives_the_rows_of_the_local_one(with_plugin, stab, tmp_path):
    def contents(run, folder):
        return {path.name: path.read_bytes() for path in sorted((run / folder).iterdir())}

    settings = ["--seeds", 1, "train.updates=40", "snapshots.every=5", "train.policy=mlp:width=32"]
    settings += ["eval.checkpoint_every=10", "eval.starts=2", "eval.horizon=60"]
    for name in ("local", "serial"):
        run, where = tmp_path / name, ("--engine", name)
        done = stab("compare", "-t", "cliff", "-s", "ema,lr_decay", *settings, *where, "--out", run,
                    env=with_plugin)  # fmt: skip
        assert done.returncode == 0, done.stderr
        done = stab("report", run, "--averages", "ema:half_life=5,polyak", *where, env=with_plugin)
        assert done.returncode == 0, done.stderr
    for folder in ("cells", "averages"):
        one, other = (contents(tmp_path / name, folder) for name in ("local", "serial"))
        assert one == other
        assert len(one) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "serail"}, "Unknown engine 'serail'. Known: local, ray"),
        ({"engine": "local", "address": "auto"}, "engine 'local' takes no address"),
        ({"engine": "ray", "address": "auto", "workers": 2}, "omit workers"),
        ({"workers": 0}, "workers=0: expected an integer >= 1"),
    ],
)
def test_engines_that_cannot_be(tmp_path, arguments, message):
    with pytest.raises(StabError, match=message):
        compare("cliff", "ema", out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
