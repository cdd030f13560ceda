"""Traces in pieces: whatever the layout, the block size and the compression, the same events; bounded memory; no crash."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import kineto, kineto_text
from moetrace.formats.events import COLUMNS, Events
from moetrace.formats.kineto_text import Layout, cuts, list_of_events
from tests.fuzz import fuzz

NAMES = ["k", "},{", "\n  },\n  {", 'say "x"', "\\", '\\"', "[", "]}", "é", ""]
# Events whose args hold what also stands between events
ROWS: list[dict[str, Any]] = [
    {
        "ph": "X", "cat": cat, "name": NAMES[i % len(NAMES)], "pid": 1, "tid": 2, "ts": i + 0.125, "dur": 2,
        "args": {"External id": i, "nested": [{"a": {}}, {"b": [1, {"c": "},"}]}], "Input Dims": [[i % 3, 4], []]},
    }
    for i, cat in enumerate(["cpu_op", "kernel", "python_function", "ac2g", "user_annotation"] * 8)
]  # fmt: skip
TOP = {
    "schemaVersion": 1,
    "distributedInfo": {"rank": 3, "world_size": 8},
    "metadata": [{"traceEvents": []}, {"x": 1}],
}
TAIL = {"baseTimeNanoseconds": 10**18, "traceName": "a ]} b"}


def torch_layout(document: dict[str, Any]) -> str:
    head = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in document.items() if k != "traceEvents")
    return (
        f'{{ {head}, "traceEvents": [\n'
        + ",\n".join("  " + json.dumps(e)[:-1] + "\n  }" for e in ROWS)
        + "\n]}"
    )


LAYOUTS = {
    "torch": torch_layout,
    "line": lambda d: json.dumps(d).replace('}, {"ph"', '},\n{"ph"'),
    "default": json.dumps,
    "minified": lambda d: json.dumps(d, separators=(",", ":")),
    "indent 0": lambda d: json.dumps(d, indent=0),
    "indent 1": lambda d: json.dumps(d, indent=1),
    "tabs": lambda d: json.dumps(d, indent="\t"),
    "odd": lambda d: re.sub(r'\}, \{"ph"', '}\t\n ,  {"ph"', " \r\n" + json.dumps(d) + "\n\n"),
}


def read(folder: Path, data: bytes, name: str = "t.json") -> Events:
    file = folder / name
    file.write_bytes(data)
    return formats.read(file)


def assert_same(one: Events, other: Events) -> None:
    for column in COLUMNS:
        assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
        assert getattr(one, column).dtype == getattr(other, column).dtype
    assert (one.texts, one.tensor_sets, one.counts) == (other.texts, other.tensor_sets, other.counts)
    assert (one.rank, one.world_size, one.devices) == (other.rank, other.world_size, other.devices)


@pytest.mark.parametrize("block", [7, 64, 333, 1 << 19])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, block: int
) -> None:
    expected = read(tmp_path, json.dumps({**TOP, "traceEvents": ROWS, **TAIL}).encode())
    assert expected.counts == {"events": 40, "damaged": 0, "python_calls": 8} and len(expected.cls) == 24
    assert (expected.rank, expected.start[0]) == (3, 10**18 + 125)
    monkeypatch.setattr(kineto, "BLOCK", block)
    monkeypatch.setattr(kineto_text, "BLOCK", block)
    orders = (
        {**TOP, "traceEvents": ROWS, **TAIL},
        {"traceEvents": ROWS, **TOP, **TAIL},
        {**TAIL, **TOP, "traceEvents": ROWS},
    )
    for document in orders:
        assert_same(read(tmp_path, LAYOUTS[layout](document).encode()), expected)


def test_the_list_is_found_at_the_top_only() -> None:
    inner = b'{"a": {"traceEvents": [1]}, "b": [{"traceEvents": [2]}], "c": "{\\"traceEvents\\": [3", '
    found = list_of_events(inner + b'"traceEvents" : [ 4 ]}')
    assert found == (len(inner) - 2, len(inner) + len('"traceEvents" : ['))
    assert list_of_events(inner) is None and list_of_events(b'{"a": 1} , "traceEvents": [') is None
    assert list_of_events(b'{"traceEvents":[') == (0, 16)


JSON = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(alphabet='a",[]{}\\é', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\{', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=5), st.sampled_from([None, 0, 2]), st.integers(0, 400), st.booleans())
def test_cuts_are_where_a_json_parser_says(
    rows: list[Any], indent: int | None, size: int, ascii_only: bool
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()[1:]
    # Behind every value in turn, as a parser reads them one by one (latin-1: a byte is a character)
    plain, at, commas = text.decode("latin-1"), 0, [-1]
    for _ in rows:
        at += len(plain[at:]) - len(plain[at:].lstrip())
        _, at = json.JSONDecoder().raw_decode(plain, at)
        at += len(plain[at:]) - len(plain[at:].lstrip())
        commas.append(at)
        at += 1
    end = len(text.rstrip()) - 1
    found = cuts(text)
    assert (found.end, found.comma) == (end, commas[-2] if rows else -1)
    part = cuts(text[:size])
    assert part.comma == max(c for c in commas if c < min(size, end)) and part.end == (
        end if end < size else -1
    )


def test_a_layout_guesses_what_it_was_taught() -> None:
    layout, text = Layout(), b'{"a": 1\n  },\n  {"b": [{},{}]\n  },\n  {"c": 1'
    assert layout.guess(text) == -1
    layout.learn(text, text.index(b",\n"))
    assert layout.guess(text) == text.rindex(b",\n")
    layout.learn(b"1, 2", 1)  # numbers: no layout of events
    assert layout.guess(text) == -1


# -- compression ---------------------------------------------------------------------------------------------------
PLAIN = json.dumps({**TOP, "traceEvents": ROWS * 60, **TAIL}).encode()


def test_gzip_in_members_and_with_padding(tmp_path: Path) -> None:
    expected = read(tmp_path, PLAIN)
    half = len(PLAIN) // 2
    parts = gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:])
    for data in (gzip.compress(PLAIN), parts, parts + bytes(1 << 17)):
        assert_same(read(tmp_path, data), expected)
    for data in (parts + b"garbage", parts[:-1], gzip.compress(PLAIN) + b"\x1f\x8b"):
        damaged = read(tmp_path, data)
        assert damaged.counts["packed_damage"] and damaged.start.tolist() == expected.start.tolist()


def test_zstd(tmp_path: Path) -> None:
    packed = pa.compress(PLAIN, codec="zstd", asbytes=True)
    assert_same(read(tmp_path, packed, "t.json.zst"), read(tmp_path, PLAIN))
    for data in (packed[: len(packed) // 2], packed[:9] + bytes(40) + packed[49:]):
        with pytest.raises(
            TraceError, match="damaged or truncated zstd"
        ) as caught:  # one block: nothing comes out
            read(tmp_path, data)
        assert "\n" not in str(caught.value)
    many = pa.compress(json.dumps(ROWS * 4000).encode(), codec="zstd", asbytes=True)
    cut = read(tmp_path, many[: len(many) // 2])
    assert 0 < len(cut.cls) < 24 * 4000 and cut.counts["packed_damage"] and cut.counts["cut_off"]
    with pytest.raises(TraceError, match="not a PyTorch profiler trace"):
        read(tmp_path, pa.compress(b"plain words", codec="zstd", asbytes=True))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_progress_is_the_share_of_bytes_read(tmp_path: Path, pack: Any) -> None:
    file, said = tmp_path / "t.json", list[float]()
    file.write_bytes(pack(PLAIN * 1))
    formats.read(file, said.append)
    assert said == sorted(said) and said[-1] == 1.0 and all(0 < x <= 1 for x in said)


# -- damage --------------------------------------------------------------------------------------------------------
GOOD = json.dumps(ROWS[0]).encode()


@pytest.mark.parametrize(
    "text", ["[X,]", "[,X]", "[X,,X]", "[X}", "[X}}", "[X X]", "[X] 2", '{"traceEvents": [X}}', '{"traceEvents": [X],}',
             '{"traceEvents": [X]]', '{"traceEvents": [X], "a" 1}', '{"a": [}, "traceEvents": [X]}',
             '{"a" 1, "traceEvents": [X]}'],
)  # fmt: skip
@pytest.mark.parametrize("block", [1, 1 << 19])
def test_around_what_is_no_json_events_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    monkeypatch.setattr(kineto, "BLOCK", block)
    monkeypatch.setattr(kineto_text, "BLOCK", block)
    events = read(tmp_path, text.encode().replace(b"X", GOOD))
    assert events.start.tolist() == [125] * text.count("X")


def test_a_second_list_of_events_is_not_read_and_counted_as_lost(tmp_path: Path) -> None:
    events = read(tmp_path, b'{"traceEvents": [' + GOOD + b'], "traceEvents": []}')
    assert len(events.cls) == 1 and events.counts["lost_bytes"]


SMALL = json.dumps({**TOP, "traceEvents": ROWS[:6], **TAIL}, indent=1).encode()
STARTS = [m.start() for m in re.finditer(rb'\{\s+"ph"', SMALL)]
ENDS = [json.JSONDecoder().raw_decode(SMALL.decode("latin-1"), at)[1] for at in STARTS]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, len(SMALL) - 1), st.sampled_from([5, 100, 1 << 19]))
def test_a_file_cut_anywhere_gives_the_whole_events_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, size: int, block: int
) -> None:
    whole = [r for r, end in zip(ROWS, ENDS, strict=False) if end <= size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kineto, "BLOCK", block)
        patch.setattr(kineto_text, "BLOCK", block)
        folder = tmp_path_factory.getbasetemp()
        if not whole:
            with pytest.raises(TraceError) as caught:
                read(folder, SMALL[:size])
            assert "\n" not in str(caught.value)
            return
        events = read(folder, SMALL[:size])
    kept = [r for r in whole if r["cat"] in ("cpu_op", "kernel", "user_annotation")]
    low = int(events.counts["events"] == 0)
    assert not low and [events.texts[c] for c in events.name] == [r["name"] for r in kept]
    assert events.counts["cut_off"] or events.counts["lost_bytes"]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, len(SMALL) - 1), st.binary(max_size=3), st.integers(0, 3), st.sampled_from([5, 1 << 19])
)
def test_a_damaged_byte_costs_one_event(
    tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes, drop: int, block: int
) -> None:
    hit = {
        i
        for i, (low, high) in enumerate(zip(STARTS, ENDS, strict=True))
        if low <= at + drop + 6 and at <= high + 6
    }
    sound = [
        r
        for i, r in enumerate(ROWS[:6])
        if i not in hit and r["cat"] in ("cpu_op", "kernel", "user_annotation")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kineto, "BLOCK", block)
        patch.setattr(kineto_text, "BLOCK", block)
        try:
            events = read(tmp_path_factory.getbasetemp(), SMALL[:at] + put + SMALL[at + drop :])
        except TraceError as error:  # the beginning or the list's own name is gone
            assert "\n" not in str(error) and at < STARTS[0] + 6
            return
    names = [events.texts[c] for c in events.name]
    assert all(names.count(r["name"]) >= 1 for r in sound)


# -- memory --------------------------------------------------------------------------------------------------------
def peak_of(file: Path) -> float:
    """MB that reading a file takes at most, by what Python and numpy allocate."""
    tracemalloc.start()
    try:
        formats.read(file)
    finally:
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_what_is_not_kept(tmp_path: Path) -> None:
    file, peaks = tmp_path / "t.json", []
    skipped = json.dumps({**ROWS[0], "cat": "python_function"}, indent=1).encode()
    for times in (8_000, 32_000):  # 3 and 12 MB
        file.write_bytes(b"[" + (skipped + b",") * times + skipped + b"]")
        peaks.append(peak_of(file))
    assert peaks[1] < 1.2 * peaks[0] < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{{"traceEvents": [{{"name": "{}"}}]}}', "one takes more than 1 MiB"),
        ('{{"a": "{}", "traceEvents": []}}', "what stands before 'traceEvents' takes more than 1 MiB"),
        ('{{"traceEvents": [], "a": "{}"}}', "holds no whole event"),
        ('{{"traceEvents": [{}{{}}]}}', "one takes more than 1 MiB"),
    ],
    ids=["string", "before", "after", "white space"],
)
def test_a_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setattr(kineto, "_MAX_PIECE", 1 << 20)
    filler = " " if "[{}{{" in text else "x"
    file = tmp_path / "t.json.gz"
    file.write_bytes(gzip.compress(text.format(filler * 50_000_000).encode(), 1))
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=words):
            formats.read(file)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_a_ratio_that_no_trace_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto_text, "_RATIO_FROM", 1 << 20)
    with pytest.raises(TraceError, match="expands to more than 300 times"):
        read(tmp_path, gzip.compress(b"[" + b"{},\n" * 2_000_000 + b"{}]"))
    assert len(read(tmp_path, gzip.compress(PLAIN)).cls) == 24 * 60


def test_names_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "_MAX_TEXTS", 100_000)
    rows = [{**ROWS[0], "name": f"{i}" * 100} for i in range(3000)]
    with pytest.raises(TraceError, match="of different names"):
        read(tmp_path, json.dumps(rows).encode())
    assert len(read(tmp_path, json.dumps([ROWS[0]] * 3000).encode()).cls) == 3000


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    for text in (
        "[" * 1_000_000,
        '{"traceEvents": [' + '{"a":' * 1_000_000,
        '[{"args":' + "[" * 5000 + "]" * 5000 + "}]",
    ):
        with pytest.raises(TraceError, match="nested too deeply"):
            read(tmp_path, text.encode())


def test_columns_are_numpy_of_the_same_kind_with_and_without_events(tmp_path: Path) -> None:
    empty, full = read(tmp_path, b"[]"), read(tmp_path, PLAIN)
    for column in COLUMNS:
        assert getattr(empty, column).dtype == getattr(full, column).dtype
    assert empty.start.dtype == np.int64


# -- properties ----------------------------------------------------------------------------------------------------
def spaced(text: str, rng: random.Random) -> str:
    """The same JSON with other white space between its tokens."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    return "".join(
        part
        if i % 2
        else re.sub(r"[{}\[\],:]", lambda m: m[0] + rng.choice(["", " ", "\n  ", "\t", "\r\n"]), part)
        for i, part in enumerate(parts)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([3, 50, 1 << 19]))
def test_white_space_order_and_blocks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block: int
) -> None:
    """And a shift of all times shifts all starts."""
    rng = random.Random(seed)
    folder, shift = tmp_path_factory.getbasetemp(), rng.randrange(-(10**6), 10**9)
    shuffled = rng.sample(ROWS, len(ROWS))
    expected = read(folder, json.dumps({**TOP, "traceEvents": ROWS, **TAIL}).encode())
    moved = [{**e, "ts": e["ts"] + shift} for e in shuffled]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kineto, "BLOCK", block)
        patch.setattr(kineto_text, "BLOCK", block)
        found = read(folder, spaced(json.dumps({**TOP, "traceEvents": moved, **TAIL}), rng).encode())

    def rows(events: Events, by: int) -> list[tuple[Any, ...]]:
        names = [events.texts[i] for i in events.name.tolist()]
        sets = [events.tensor_sets[i] if i >= 0 else None for i in events.tensors.tolist()]
        starts = (events.start - by).tolist()
        columns = (events.cls, events.dur, events.external, events.correlation, events.device)
        return sorted(zip(starts, names, map(str, sets), *(c.tolist() for c in columns), strict=True))

    assert rows(found, 1000 * shift) == rows(expected, 0)
    assert found.counts == expected.counts


def test_a_small_fuzz_run_finds_nothing(tmp_path: Path) -> None:
    became = fuzz(400, 7, tmp_path)
    assert set(became) == {"parsed", "refused"} and became["parsed"] > 200, became
