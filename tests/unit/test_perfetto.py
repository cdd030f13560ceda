from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from moetrace.attribute import attribute
from moetrace.errors import OutputError
from moetrace.hardware import load_hardware
from moetrace.report.perfetto import write_timeline
from moetrace.run import Meta, Run, Step, ops_table
from tests.made import in_parts

NASTY = 'void "k"<\\n, \x1b[31m, é>\n(int*)'
EPOCH = 1_700_000_000_000_000_000


def _run(kernels: list[str], **columns: list[Any]) -> Run:
    rows = len(kernels)
    values: dict[str, list[Any]] = {
        "rank": [0] * rows,
        "stream": [7] * rows,
        "step": [0] * rows,
        "layer": [None] * rows,
        "family": ["experts"] * rows,
        "kind": ["moe_gate_up"] * rows,
        "op": ["moe_gate_up bf16 tokens=1"] * rows,
        "kernel": kernels,
        "start_ns": [EPOCH + 1000 * i for i in range(rows)],
        "dur_ns": [777] * rows,
        **columns,
    }
    meta = Meta(
        kind="measured", source="t.json", steps=(Step(0, "decode", "decode", EPOCH, EPOCH + 5001, batch=2),)
    )
    return Run(meta, ops_table({name: pa.array(value) for name, value in values.items()}))


def _events(run: Run, path: Path) -> list[dict[str, Any]]:
    count = write_timeline(run, path)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    assert len(events) == count
    return events


def _ops(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e["ph"] == "X" and "kernel" in e["args"]]


def test_an_op_keeps_its_time_to_the_ns_and_its_names(tmp_path: Path) -> None:
    run = _run(
        ["a", NASTY],
        weight_bytes=[1e9, None],
        kind=["moe_gate_up", "other"],
        start_ns=[EPOCH, EPOCH + 1_234_567],
    )
    first, second = _ops(_events(run, tmp_path / "t.json"))
    assert (first["ts"], first["dur"], first["name"], first["cat"]) == (0.0, 0.777, "moe_gate_up", "experts")
    assert first["args"]["weight_bytes"] == 1_000_000_000
    assert first["args"]["op"] == "moe_gate_up bf16 tokens=1"
    assert second["ts"] == 1234.567
    assert second["name"] == second["args"]["kernel"] == NASTY
    assert second["args"]["weight_bytes"] is None


def test_steps_and_streams_have_named_tracks(tmp_path: Path) -> None:
    run = _run(["a", "b", "c"], stream=[7, 140_000_000_000_000, 7], rank=[0, 0, 1])
    events = _events(run, tmp_path / "t.json")
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(tracks.values()) == sorted(
        ["steps", "layers", "stream 7", "stream 140000000000000", "steps", "layers", "stream 7"]
    )
    assert [tracks[e["pid"], e["tid"]] for e in _ops(events)] == [
        "stream 7",
        "stream 140000000000000",
        "stream 7",
    ]
    steps = [e for e in events if e["name"].startswith("step 0")]
    assert [(e["pid"], e["ts"], e["dur"]) for e in steps] == [(0, 0.0, 5.001), (1, 0.0, 5.001)]


def test_layer_spans_do_not_overlap(tmp_path: Path) -> None:
    run = _run(list("abcd"), layer=[0, 0, 1, None], dur_ns=[900, 5000, 800, 100])
    spans = [e for e in _events(run, tmp_path / "t.json") if e["name"].startswith("layer ")]
    assert [(e["name"], e["ts"], e["dur"]) for e in spans] == [("layer 0", 0.0, 2.0), ("layer 1", 2.0, 0.8)]


def test_gz_is_compressed_and_the_same(tmp_path: Path) -> None:
    run = _run([NASTY])
    assert _events(run, tmp_path / "t.json.gz") == _events(run, tmp_path / "t.json")


def test_a_run_without_ops_or_steps_is_still_json(tmp_path: Path) -> None:
    empty = _run(["a"]).table().slice(0, 0)
    assert _events(Run(Meta(kind="measured", source="t"), empty), tmp_path / "t.json") == []


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    wall = tmp_path / "wall"
    wall.write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write .*wall/t.json: (Not a directory|File exists)$"):
        write_timeline(_run(["a"]), wall / "t.json")
    assert list(tmp_path.iterdir()) == [wall]


def test_a_run_in_parts_is_written_as_the_whole_one(tmp_path: Path) -> None:
    """Two ranks and streams, layers, bounds and another run beside it: the same events, whatever the parts."""
    ops = {
        "rank": [i % 2 for i in range(24)],
        "stream": [7 + i % 3 for i in range(24)],
        "layer": [i // 4 for i in range(24)],
    }
    whole = _run([f"k{i}" for i in range(24)], **ops)
    h100 = load_hardware("h100-sxm")

    def written(run: Run, name: str) -> list[str]:
        write_timeline(run, tmp_path / name, attribute(run, h100), (run,))
        return sorted(map(json.dumps, json.loads((tmp_path / name).read_bytes())["traceEvents"]))

    assert written(in_parts(whole, 8), "parts.json") == written(whole, "whole.json")


def test_an_op_that_runs_on_into_the_next_part_shares_its_lane_with_none(tmp_path: Path) -> None:
    starts = [EPOCH + n for n in (0, 1000, 2000, 2500, 9000, 9500)]
    run = _run(list("abcdef"), start_ns=starts, dur_ns=[5000, 500, 400, 5000, 100, 100])
    found = _ops(_events(in_parts(run, 2), tmp_path / "t.json"))
    for tid in {e["tid"] for e in found}:
        mine = sorted((e["ts"], e["ts"] + e["dur"]) for e in found if e["tid"] == tid)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(mine))
    assert len(found) == 6
