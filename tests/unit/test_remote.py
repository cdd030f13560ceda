"""Where a trace may lie: behind a URL, matched by a pattern, alone in a folder; else one line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import fsspec
import pytest

from moetrace import formats
from moetrace.errors import ModelError, TraceError
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


class _ClientError(Exception):
    """As botocore's and httpx's: no OSError."""


class _Failing(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store whose client fails: at once, or when the first half of a file was read."""

    protocol = "failing"
    data = b""

    def info(self, path: str, **_options: object) -> dict[str, object]:
        if "denied" in path:
            raise _ClientError("Unable to locate credentials")
        if "absent" in path:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": len(self.data)}

    def _open(self, _path: str, *_given: object, **_options: object) -> io.BytesIO:
        class Half(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= len(_Failing.data) // 2:
                    raise _ClientError("connection closed")
                return super().read(min(size or -1, len(_Failing.data) // 2))

        return Half(self.data)


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_store_s_client_raises_is_one_line_and_no_damage(
    trace: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(_Failing, "data", gzip.compress(trace.read_bytes()) if packed else trace.read_bytes())
    fsspec.register_implementation("failing", _Failing, clobber=True)
    for name, words in (
        ("denied.json", "cannot be opened (Unable to locate credentials)"),
        ("absent.json", "cannot be opened (there is no such file)"),
        ("t.json", "cannot be opened (connection closed)"),
    ):
        with pytest.raises(TraceError) as caught:
            parse(f"failing://bucket/{name}")
        assert str(caught.value) == f"failing://bucket/{name} {words}"


def test_a_fault_of_moetrace_s_own_is_no_failing_store() -> None:
    with pytest.raises(TypeError), remote.reached("memory://x"):
        raise TypeError
    with pytest.raises(ModelError), remote.reached("memory://x"):
        raise ModelError("unknown")


@pytest.mark.parametrize(
    "url", ["https://host/a/t.json.gz?X-Amz-Signature=secret", "http://host/a/t.json.gz#x"]
)
def test_the_signature_of_a_web_address_is_no_part_of_the_name(url: str) -> None:
    assert remote.Remote(url, None, "", 1).name == "t.json.gz"
