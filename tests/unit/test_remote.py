"""Where a trace may lie: behind a URL, matched by a pattern, alone in a folder; else one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import pytest

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import remote
from moetrace.parse import parse
from tests.made import decode_trace, write


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "t.json", decode_trace(layers=1, steps=2))


@pytest.mark.parametrize("packed", [False, True])
def test_a_url_gives_what_the_file_gives(trace: Path, packed: bool) -> None:
    said: list[float] = []
    data = trace.read_bytes()
    name = "traces/t.json.gz" if packed else "traces/t.json"
    with fsspec.open(f"memory://{name}", "wb") as file:
        file.write(gzip.compress(data) if packed else data)
    run = parse(f"memory://{name}", progress=said.append)
    assert run.table().equals(parse(trace).table()) and run.meta.source == Path(name).name
    assert said[-1] == 1.0
    assert parse(f"file://{trace}").table().equals(run.table())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://absent/t.json", "cannot be opened"),
        ("nosuch://bucket/t.json", "cannot be opened"),
        ("memory://traces", "no file of a known size|cannot be opened"),
    ],
)
def test_a_url_that_is_no_trace_is_one_line(url: str, words: str) -> None:
    with fsspec.open("memory://traces/other.json", "wb") as file:
        file.write(b"x")
    with pytest.raises(TraceError, match=words) as caught:
        parse(url)
    assert "\n" not in str(caught.value) and url in str(caught.value)


def test_a_database_behind_a_url_must_be_copied() -> None:
    with fsspec.open("memory://traces/a.sqlite", "wb") as file:
        file.write(b"SQLite format 3\x00" + bytes(100))
    with pytest.raises(TraceError, match="must be copied here first"):
        parse("memory://traces/a.sqlite")


def test_without_fsspec_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(TraceError, match=r"moetrace\[remote\]"):
        parse("memory://traces/t.json")


def test_a_pattern_and_a_folder_mean_their_one_trace(trace: Path) -> None:
    expected = parse(trace).table()
    assert parse(trace.parent / "*.json").table().equals(expected)
    assert parse(trace.parent).table().equals(expected)
    (trace.parent / "rank1.json.gz").write_bytes(gzip.compress(trace.read_bytes()))
    for path, words in (
        (trace.parent, "holds 2 files"),
        (trace.parent / "*.json*", "matches 2 files"),
        (trace.parent / "x*.json", "matches no trace file"),
    ):
        with pytest.raises(TraceError, match=words) as caught:
            parse(path)
        assert "\n" not in str(caught.value)
    empty = trace.parent / "empty"
    empty.mkdir()
    with pytest.raises(TraceError, match="holds no trace file"):
        parse(empty)


def test_a_circle_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "b.json")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    (tmp_path / "in").symlink_to(tmp_path)
    with pytest.raises(TraceError, match="does not exist"):
        parse(tmp_path / "a.json")
    with pytest.raises(TraceError, match="holds no trace file"):
        remote.trace_in(tmp_path)
    with pytest.raises(TraceError):
        formats.read(tmp_path / "in" / "in" / "in")
