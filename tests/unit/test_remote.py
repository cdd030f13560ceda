"""Where a trace may lie: behind a URL, matched by a pattern, alone in a folder; else one line."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from moetrace import formats
from moetrace.errors import ModelError, OutputError, RunError, TraceError
from moetrace.formats import remote, where
from moetrace.parse import open_run, parse
from moetrace.parse.ranks import parse_ranks, rank_files
from moetrace.parse.ranks.output import write_run
from moetrace.ranks import Ranks
from moetrace.ranks.remote import run_behind
from moetrace.routing import Routing
from moetrace.routing.tokens import TokenRouting, save_token_routing
from tests.conftest import Answer
from tests.made import decode_trace, rank_traces, write


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
        ("memory://traces", "not a file of a known size|cannot be opened"),
    ],
)
def test_a_url_that_is_no_trace_is_one_line(url: str, words: str) -> None:
    with fsspec.open("memory://traces/other.json", "wb") as file:
        file.write(b"x")
    with pytest.raises(TraceError, match=words) as caught:
        parse(url)
    assert "\n" not in str(caught.value) and url in str(caught.value)


def test_a_damaged_database_behind_a_url_is_one_line() -> None:
    with fsspec.open("memory://traces/a.sqlite", "wb") as file:
        file.write(b"SQLite format 3\x00" + bytes(100))
    with pytest.raises(TraceError, match=r"memory://traces/a.sqlite is a damaged SQLite file"):
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
        where.trace_in(tmp_path)
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


@pytest.fixture
def stored(trace: Path) -> str:
    """A RUN behind a URL, with routing."""
    run = parse(trace, routing=Routing(8, *np.ones((5, 1), dtype=int)))
    write_run(run, "memory://runs/one")
    return "memory://runs/one"


def test_a_run_behind_a_url_is_the_run(stored: str, trace: Path) -> None:
    run, said = open_run(stored, progress=(told := []).append), parse(trace)
    assert run.table().equals(said.table()) and run.num_rows == said.num_rows
    assert run.has_routing and run.routing is not None and run.routing.experts == 8 and run.path is None
    assert run.meta.steps == said.meta.steps and told[-1] == 1.0
    assert run.with_meta(source="x").routing is not None


def test_every_verb_reads_a_run_behind_a_url(
    stored: str, call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in (
        ("attribute", stored, "--hw", "h100-sxm"),
        ("replay", stored, "--hw", "h100-sxm"),
        ("show", stored, "--hw", "h100-sxm"),
        ("report", stored, "-o", "page.html", "--hw", "h100-sxm"),
        ("export", stored, "--perfetto", "-o", "line.json"),
        ("diff", stored, stored),
    ):
        answer = call(*verb)
        assert answer.status == 0, (verb, answer.err)
    assert call("doctor", stored).status == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".json") == ["page.html"]


def test_ranks_behind_a_url_are_the_ranks(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for rank, events in enumerate(rank_traces([100, 130, 110], clocks=[0, 70, 30])):
        write(tmp_path / "traces" / f"rank{rank}.json", events)
    for place in (tmp_path / "here", Path(f"file://{tmp_path}/there")):
        parse_ranks(rank_files(tmp_path / "traces"), place, jobs=1)
    here, there = open_run(tmp_path / "here"), open_run(f"file://{tmp_path}/there")
    behind = run_behind(f"file://{tmp_path}/there")
    assert isinstance(there, Ranks) and behind is not None and behind.load().table().equals(here.table())
    assert not here.has_routing and not behind.load().has_routing
    (tmp_path / "there" / "rank-1" / "ops.parquet").unlink()
    with pytest.raises(RunError, match=r"rank-1 is not a moetrace run: it has no ops\.parquet"):
        run_behind(f"file://{tmp_path}/there").load()


def test_options_of_a_trace_and_damage_are_one_line(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="memory://runs/one is parsed already: kv_len"):
        open_run(stored, kv_len=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1 << 20))
    with pytest.raises(OutputError, match=r"needs more to be copied here \(point TMPDIR"):
        open_run(stored)
    monkeypatch.undo()
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/runs/one/ops.parquet", b"PAR1")
    with pytest.raises(RunError, match=r"ops\.parquet of t\.json cannot be read"):
        open_run(stored).table()
    fs.pipe_file("/runs/one/run.json", b"{")
    with pytest.raises(RunError, match=r"memory://runs/one/run\.json is not a run's metadata"):
        open_run(stored)


def test_one_run_goes_to_a_url_and_nothing_else_does(
    trace: Path, call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("parse", trace, "-o", "memory://runs/new").status == 0
    answer = call("parse", trace, "-o", "memory://runs/new")
    assert answer.status == 2 and "memory://runs/new exists" in answer.err
    assert call("parse", trace, "-o", "memory://runs/new", "--force").status == 0
    fsspec.filesystem("memory").pipe_file("/runs/new/mine.txt", b"x")
    answer = call("parse", trace, "-o", "memory://runs/new", "--force")
    assert answer.status == 2 and "memory://runs/new/mine.txt is not a RUN's" in answer.err
    answer = call("report", "memory://runs/new", "-o", "memory://runs/page.html")
    assert answer.status == 2 and "memory://runs/page.html is a URL" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_what_each_token_chose_comes_with_a_run_behind_a_url(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "routing_tokens.parquet"
    save_token_routing(file, 8, [(0, 0, np.array([5, 6]), np.array([[1, 2], [3, 4]]))])
    one = [np.array(column) for column in ([0] * 4, [0] * 4, [1, 2, 3, 4], [1, 2, 1, 2], [1] * 4)]
    write_run(
        parse(trace, routing=Routing(8, *one, by_token=TokenRouting.load(file))), "memory://runs/tokens"
    )
    told = open_run("memory://runs/tokens").routing
    assert told is not None and told.by_token is not None
    assert np.concatenate([columns[-1] for columns in told.by_token.parts()]).tolist() == [1, 2, 3, 4]
