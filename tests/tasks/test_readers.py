"""Texts: real files, the real libraries, and repositories laid out as on Hugging Face."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import islice

import numpy as np
import pytest

from stab.registry import StabError
from stab.tasks.language import readers
from stab.tasks.language.readers import HUBS, Hub, read_folder, read_hub

pa = pytest.importorskip("pyarrow", reason="needs the extra text: pip install '.[text]'")
parquet = pytest.importorskip(
    "pyarrow.parquet", reason="needs the extra text: pip install '.[text]'"
)
if find_spec("datasets") is None:  # not imported yet: its cache is to be that of the tests
    pytest.skip("needs the extra text: pip install '.[text]'", allow_module_level=True)

STORIES = [f"Once there was a cat.\nIt saw {n} dogs, and the dogs saw the cat." for n in range(200)]


def write(path, column="text", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = columns.pop("values", ["one", "two"])
    parquet.write_table(pa.table({**columns, column: values}), path)
    return path


@pytest.fixture
def stories(tmp_path):
    """A copy of roneneldan/TinyStories, small: two files to train on, one to validate, older text files beside them."""
    folder = tmp_path / "copies" / "stories"
    write(folder / "data" / "train-00000-of-00002-2d5a1467fff1081b.parquet", values=STORIES[:100])
    write(
        folder / "data" / "train-00001-of-00002-5852b56a2bd28fd9.parquet",
        values=[*STORIES[100:], None, " \n"],
    )
    write(
        folder / "data" / "validation-00000-of-00001-869c898b519ad725.parquet",
        values=["to validate"],
    )
    (folder / "TinyStories-train.txt").write_text("older")
    (folder / "README.md").write_text("---\nlicense: cdla-sharing-1.0\nlanguage:\n- en\n---\n")
    return folder


@pytest.fixture
def articles(tmp_path):
    """A copy of wikimedia/wikipedia, small: a folder a language, and what the card says of them."""
    folder, card = tmp_path / "copies" / "articles", "---\nconfigs:\n"
    for config in ("20231101.ab", "20231101.en"):
        values = [f"{config} {n}" for n in range(3)]
        columns = {name: ["a", "b", "c"] for name in ("id", "url", "title")}
        write(folder / config / "train-00000-of-00001.parquet", values=values, **columns)
        card += f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
    (folder / "README.md").write_text(card + "---\n# Dataset Card for Wikimedia Wikipedia\n")
    return folder


def error(reading):
    """The one line that reading ends with."""
    with pytest.raises(StabError) as caught:
        list(reading)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\n")
    (tmp_path / "b" / "z.txt").write_text("déjà vu", encoding="utf-8")
    (tmp_path / "b" / "blank.txt").write_text(" \n\t")
    (tmp_path / "b.txt").write_text("before the folder")
    (tmp_path / "notes.md").write_text("no text")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.txt").write_text("hidden")
    (tmp_path / "d.txt").mkdir()
    write(tmp_path / "b" / "a.parquet", values=["one", None, "", "  ", "two"], n=[0, 1, 2, 3, 4])
    assert list(read_folder(tmp_path)) == [
        "before the folder",
        "one",
        "two",
        "déjà vu",
        "with a mark\r\n",
    ]


def test_parquet_is_streamed_and_long_strings_are_strings(tmp_path):
    write(tmp_path / "a.parquet", values=pa.array(STORIES, pa.large_string()))
    assert list(read_folder(tmp_path)) == STORIES
    damaged = tmp_path / "b.parquet"
    damaged.write_bytes(b"PAR1")
    assert list(islice(read_folder(tmp_path), 5)) == STORIES[:5]  # the next file is not opened yet
    assert error(read_folder(tmp_path)).startswith(f"{damaged} cannot be read as parquet: ")


def test_folders_that_cannot_be_read(tmp_path):
    assert (
        error(read_folder(tmp_path / "none"))
        == f"{tmp_path / 'none'} does not exist: expected a folder of texts"
    )
    file = tmp_path / "file"
    file.write_text("text")
    assert "is a file: expected a folder" in error(read_folder(file))
    assert "has no texts: expected .txt files (UTF-8), or .parquet" in error(read_folder(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.txt",
            b"caf\xe9 au lait",
            "is not UTF-8 (invalid continuation byte at byte 3): save it as UTF-8",
        ),
        ("a.txt", "text".encode("utf-16"), "is not UTF-8"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.parquet", b"PAR1 this is no table PAR1", "cannot be read as parquet"),
        ("a.parquet", {"story": ["x"], "title": ["y"]}, "has no column 'text', but: story, title"),
        ("a.parquet", {"text": [1, 2]}, "has int64 in its column 'text': expected string"),
        ("a.parquet", {"text": [["x"], ["y"]]}, "in its column 'text': expected string"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    path = tmp_path / name
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    found = error(read_folder(tmp_path))
    assert str(path) in found
    assert said in found


def test_damaged_parquet_is_refused_or_read(tmp_path):
    path = write(tmp_path / "a.parquet", values=STORIES)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.2 else whole)
        for place in rng.integers(max(len(damaged), 1), size=3 * bool(damaged)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(StabError):
            list(read_folder(tmp_path))


# Hugging Face


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_copies_of_the_repositories_are_read(stories, articles, no_network, monkeypatch):
    assert list(read_hub(HUBS["tinystories"], str(stories))) == STORIES
    assert list(read_hub(HUBS["wikipedia"], str(articles))) == [
        f"20231101.en {n}" for n in range(3)
    ]
    other = Hub("any/name", config="20231101.ab")
    assert next(read_hub(other, str(articles))) == "20231101.ab 0"
    # A folder whose name is that of a builder of the library, or of a repository.
    stories.rename(stories.parent / "text")
    monkeypatch.chdir(stories.parent)
    assert next(read_hub(HUBS["tinystories"], "text")) == STORIES[0]


def test_copies_that_cannot_be_read(stories, articles, tmp_path, no_network):
    about, wikipedia = Hub("some/stories"), HUBS["wikipedia"]
    assert error(read_hub(wikipedia, str(tmp_path / "none"))) == (
        f"{tmp_path / 'none'} is not a folder: expected a copy of wikimedia/wikipedia, made by:"
        " hf download wikimedia/wikipedia --repo-type dataset"
        " --revision b04c8d1ceb2f5cd4588862100d08de323dccfbaa --include README.md"
        " --include '20231101.en/*' --local-dir FOLDER"
    )
    (tmp_path / "empty").mkdir()
    assert "empty cannot be read: " in error(read_hub(about, str(tmp_path / "empty")))
    (tmp_path / "untrained" / "data").mkdir(parents=True)
    shutil.copy(next((stories / "data").glob("validation-*")), tmp_path / "untrained" / "data")
    assert "Available splits: ['validation']" in error(read_hub(about, str(tmp_path / "untrained")))
    assert f"{stories} (20231101.en) cannot be read: " in error(read_hub(wikipedia, str(stories)))
    assert "pick one among the available configs" in error(read_hub(about, str(articles)))
    write(tmp_path / "tales" / "data" / "train-00000-of-00001.parquet", "story", title=["a", "b"])
    found = error(read_hub(about, str(tmp_path / "tales")))
    assert found == f"{tmp_path / 'tales'} has no column 'text', but: title, story"
    numbers = write(tmp_path / "numbers" / "data" / "train-00000-of-00001.parquet", values=[1, 2])
    assert error(read_hub(about, str(tmp_path / "numbers"))).endswith(
        "has int in its column 'text': expected text"
    )
    numbers.write_bytes(numbers.read_bytes()[:-20])
    assert "numbers cannot be read: " in error(read_hub(about, str(tmp_path / "numbers")))


class Repositories(BaseHTTPRequestHandler):
    """As much of Hugging Face as reading needs: ``server.copies`` maps a name to a folder; ``server.asked`` has paths."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        _, kind, *rest = self.path.partition("?")[0].split("/")
        if kind == "api" and "/".join(rest[1:3]) in self.server.copies:
            folder, revision, within = (
                self.server.copies["/".join(rest[1:3])],
                rest[4],
                "/".join(rest[5:]),
            )
            if rest[3] == "revision":
                return self.answer(
                    200, json.dumps({"id": "/".join(rest[1:3]), "sha": revision}).encode()
                )
            tree = [
                {
                    "type": "directory" if f.is_dir() else "file",
                    "path": str(f.relative_to(folder)),
                    "size": f.stat().st_size,
                }
                for f in (folder / within).glob("*")
            ]
            return self.answer(200, json.dumps([entry | {"oid": "0"} for entry in tree]).encode())
        if kind == "datasets" and "/".join(rest[:2]) in self.server.copies:
            path = self.server.copies["/".join(rest[:2])].joinpath(*rest[4:])
            about = {
                "X-Repo-Commit": rest[3],
                "ETag": f'"{hashlib.sha1(str(path).encode()).hexdigest()}"',
            }
            if path.is_file():
                return self.answer(200, path.read_bytes(), about)
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.answer(200 if self.path == "/" else 404, b"")

    do_HEAD = do_GET

    def answer(self, code, body, headers=()):
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if code == 200 and part:
            first, last = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
            headers = {**dict(headers), "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            code, body = 206, body[first : last + 1]
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def python(code, folder=None, **environment):
    """Run code with what the libraries read once, when they are imported."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_repositories_are_streamed_and_nothing_is_said_or_reported(stories, articles, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repositories)
    server.copies, server.asked = (
        {"roneneldan/TinyStories": stories, "wikimedia/wikipedia": articles},
        [],
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = python(
            "import json\nfrom stab.tasks.language.readers import HUBS, read_hub\n"
            "open('found', 'w').write(json.dumps([list(read_hub(HUBS[name])) for name in ('tinystories', 'wikipedia')]))",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(tmp_path / "home"),
            folder=tmp_path,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert json.loads((tmp_path / "found").read_text()) == [
        STORIES,
        [f"20231101.en {n}" for n in range(3)],
    ]
    assert not [
        path
        for path in server.asked
        if "telemetry" in path or "validation" in path or ".txt" in path
    ]
    of_files = [path for path in server.asked if "/resolve/" in path]
    assert all(
        HUBS["tinystories"].revision in path or HUBS["wikipedia"].revision in path
        for path in of_files
    )


def test_an_unreachable_hub_is_one_line_within_seconds():
    began = time.monotonic()
    code = (
        "from stab.registry import StabError\nfrom stab.tasks.language.readers import HUBS, read_hub\n"
        "try:\n    next(read_hub(HUBS['tinystories']))\nexcept StabError as e:\n    print(e)"
    )
    done = python(code, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.stderr == ""
    assert re.fullmatch(
        r"roneneldan/TinyStories cannot be read, Hugging Face is not reachable \(ConnectError: .*\): give the folder of a"
        r" copy, made elsewhere by: hf download roneneldan/TinyStories --repo-type dataset --revision [0-9a-f]{40}"
        r" --include README.md --include 'data/\*' --local-dir FOLDER\n",
        done.stdout,
    )
    assert time.monotonic() - began < 30  # importing the library, for the most part


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setattr(readers, "PATIENCE", 0.2)
        began = time.monotonic()
        assert "is not reachable (ReadTimeout: timed out)" in error(read_hub(HUBS["wikipedia"]))
        assert time.monotonic() - began < 5
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "unset the `HF_HUB_OFFLINE` environment variable" in error(read_hub(HUBS["wikipedia"]))


def test_what_is_not_installed_is_named(monkeypatch, tmp_path, stories):
    for name in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert error(read_hub(HUBS["wikipedia"], str(stories))).endswith("pip install 'stab-gva[text]'")
    assert error(read_folder(stories / "data")).endswith("pip install 'stab-gva[text]'")
