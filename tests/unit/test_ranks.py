"""Many ranks of one run: which files they are, clocks, waits, stragglers; what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from moetrace.errors import OutputError, TraceError
from moetrace.files import check_output
from moetrace.parse import parse
from moetrace.parse.ranks import RANKS_COLUMNS, parse_ranks, rank_files
from moetrace.routing import RoutingBuilder
from moetrace.run import Run
from tests.made import decode_trace, rank_traces, write


def folder(tmp_path, traces, world=None, name="trace-rank{}.json"):
    root = tmp_path / "traces"
    root.mkdir()
    for rank, events in enumerate(traces):
        write(
            root / name.format(rank),
            events,
            distributedInfo={"rank": rank, "world_size": world or len(traces)},
        )
    return root


def by_rank(facts):
    return {r["rank"]: r for r in facts["ranks"]}


def test_waiting_transfer_and_clocks(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130, 110, 100], clocks=[0, 2000, -700, 5]))
    facts = parse_ranks(rank_files(root), tmp_path / "out", jobs=2)
    ranks = by_rank(facts)
    assert [round(ranks[r]["clock_offset_s"] * 1e6) for r in range(4)] == [0, 2000, -700, 5]
    assert [round(ranks[r]["wait_s"] * 1e6) for r in range(4)] == [90, 0, 60, 90]
    assert all(round(ranks[r]["transfer_s"] * 1e6) == 30 for r in range(4))
    assert [ranks[r]["last_share"] for r in range(4)] == [0, 1, 0, 0]
    assert ranks[1]["delayed_s"] == pytest.approx((90 + 60 + 90) / 3 * 1e-6, abs=1e-8)
    assert [ranks[r]["delayed_s"] for r in (0, 2, 3)] == [0, 0, 0]
    assert facts["skew"] == pytest.approx({"median_s": 30e-6, "p95_s": 30e-6, "max_s": 30e-6})
    assert facts["experts_imbalance"]["median"] == pytest.approx(130 / 110)
    assert facts["missing"] == [] and facts["world"] == 4
    assert ranks[0]["exposed_comm_s"] == ranks[0]["comm_s"] and ranks[0]["hidden_comm_s"] == 0


def test_every_rank_is_a_run_and_says_what_it_waited(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 50]))
    out = tmp_path / "out"
    parse_ranks(rank_files(root), out, jobs=1)
    assert sorted(p.name for p in out.iterdir()) == ["rank-0", "rank-1", "ranks.json", "ranks.parquet"]
    run = Run.load(out / "rank-1")
    assert set(run.numpy("rank").tolist()) == {1} and run.meta.facts["ranks"] == 2
    assert "waiting for a later rank; it was the last to arrive in 100 %" in run.meta.notes[-1]
    table = pq.read_table(out / "ranks.parquet")
    assert table.column_names == [name for name, _, _ in RANKS_COLUMNS] and table.num_rows == 2 * 3
    assert table.column("wait_ns").to_pylist() == [30_000] * 3 + [0] * 3


def test_communication_behind_other_work_is_hidden(tmp_path):
    traces = rank_traces([100, 100], clocks=[0, 0])
    beside = [
        dict(e, name="nvjet", args={**e["args"], "stream": 9}) for e in traces[0] if "nccl" in e["name"]
    ]
    facts = parse_ranks(
        rank_files(folder(tmp_path, [traces[0] + beside, traces[1]])), tmp_path / "out", jobs=1
    )
    first, second = (by_rank(facts)[r] for r in (0, 1))
    assert (first["exposed_comm_s"], first["hidden_comm_s"]) == pytest.approx((0, 30e-6))
    assert second["exposed_comm_s"] == pytest.approx(30e-6)


def test_groups_of_neighbours_wait_for_their_own(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130, 300, 320], clocks=[0, 9, 100, 60], group=2))
    facts = parse_ranks(rank_files(root), tmp_path / "out", jobs=1)
    assert [round(r["wait_s"] * 1e6) for r in facts["ranks"]] == [90, 0, 60, 0]
    assert any("neighbours" in note for note in facts["notes"])


def test_missing_ranks_and_ranks_that_did_something_else_are_said(tmp_path):
    traces = rank_traces([100, 130, 100], clocks=[0, 0, 0])
    shorter = rank_traces([100, 130, 100], clocks=[0, 0, 0], steps=2)[2]
    facts = parse_ranks(
        rank_files(folder(tmp_path, [*traces[:2], shorter], world=8)), tmp_path / "out", jobs=1
    )
    assert facts["missing"] == [3, 4, 5, 6, 7]
    assert any(note.startswith("3 of 8 ranks are here") for note in facts["notes"])
    assert "rank 2 is not compared: it has 2 steps, rank 0 has 3" in facts["notes"]
    assert by_rank(facts)[2]["wait_s"] is None and by_rank(facts)[0]["wait_s"] == pytest.approx(90e-6)


def test_no_collectives_nothing_to_compare(tmp_path):
    facts = parse_ranks(rank_files(folder(tmp_path, [decode_trace()] * 2)), tmp_path / "out", jobs=1)
    assert facts["skew"] is None and any("clocks are not aligned" in note for note in facts["notes"])


def test_names_tell_ranks_where_traces_do_not(tmp_path):
    for rank in (0, 3):
        write(tmp_path / f"1690000000.5-TP-{rank}-DECODE.trace.json", decode_trace())
        write(tmp_path / f"1690000000.5-TP-{rank}-EXTEND.trace.json", decode_trace())
    (tmp_path / "notes.txt").write_text("no trace")
    found = rank_files(tmp_path)
    assert {rank: path.name for rank, path in found.items()} == {
        rank: f"1690000000.5-TP-{rank}-DECODE.trace.json" for rank in (0, 3)
    }
    assert rank_files(tmp_path / "*TP-[0-9]-EXTEND*").keys() == {0, 3}
    facts = parse_ranks(found, tmp_path / "out", jobs=1)
    assert [r["rank"] for r in facts["ranks"]] == [0, 3] and facts["world"] == 4
    assert facts["notes"][0].startswith(
        "traces of prefill, left out beside those of decode: 1690000000.5-TP-0-EXTEND"
    )


def test_what_only_lies_beside_traces_is_named_and_passed_over(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 0]))
    (root / "config.json").write_text('{"hidden_size": 2048}')
    (root / "metrics.json").write_text('[{"tokens": 3}]')
    found = rank_files(root)
    assert {r: p.name for r, p in found.items()} == {0: "trace-rank0.json", 1: "trace-rank1.json"}
    facts = parse_ranks(found, jobs=1)
    assert facts["notes"][0] == "no traces, passed over: config.json, metrics.json" and facts["world"] == 2
    (root / "trace-rank1.json").unlink()
    assert rank_files(root) == {} and parse(root).num_rows == parse(root / "trace-rank0.json").num_rows
    (root / "metrics.json").write_text('[{"tokens": 3}')  # damaged: it may have been a trace
    with pytest.raises(
        TraceError, match=r"the name of .*rank0\.json tells its rank and that of .*metrics\.json"
    ):
        rank_files(root)


def test_two_recordings_of_one_model_are_no_ranks(tmp_path):
    for name in ("before", "after"):
        write(tmp_path / f"{name}.json", decode_trace())
    with pytest.raises(TraceError, match=r"nothing says that .*after\.json and .*before\.json are ranks"):
        parse_ranks(rank_files(tmp_path), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()
    for name, events in zip(("before", "after"), rank_traces([100, 130], clocks=[0, 0]), strict=True):
        write(tmp_path / f"{name}.json", events)  # now they communicate
    assert [r["rank"] for r in parse_ranks(rank_files(tmp_path), jobs=1)["ranks"]] == [0, 1]


def test_stages_are_told_only_where_all_names_tell_them(tmp_path):
    write(tmp_path / "x-TP-0-DECODE.json", decode_trace())
    write(tmp_path / "y-TP-1.json", decode_trace())
    assert len(rank_files(tmp_path)) == 2


def test_single_files_and_recordings_are_no_run_of_many(tmp_path, shipped):
    one = write(tmp_path / "trace.json", decode_trace())
    assert rank_files(one) == {} and rank_files(tmp_path) == {} and rank_files(shipped) == {}


def test_two_files_of_one_rank(tmp_path):
    for name in ("a-rank1.json", "b-rank1.json"):
        write(tmp_path / name, decode_trace())
    with pytest.raises(TraceError, match="both of rank 1 by name"):
        rank_files(tmp_path)
    files = {}
    for place, name in enumerate("cd"):
        files[place] = write(
            tmp_path / f"{name}.json", decode_trace(), distributedInfo={"rank": 5, "world_size": 8}
        )
    with pytest.raises(TraceError, match="both of rank 5"):
        parse_ranks(files, tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def routed_folder(tmp_path, loads, world=2):
    """A recording per rank, with its routing: `loads` are the tokens by expert that each rank tells, of 4 experts, 1 layer."""
    root = tmp_path / "recordings"
    for rank, load in enumerate(loads):
        (root / f"rank{rank}").mkdir(parents=True)
        write(
            root / f"rank{rank}" / "trace.json",
            rank_traces([100, 130], clocks=[0, 0])[rank],
            distributedInfo={"rank": rank, "world_size": world},
        )
        (root / f"rank{rank}" / "recording.json").write_text("{}")
        builder = RoutingBuilder(4)
        for step in range(3):
            builder.add(step, 0, np.repeat(np.arange(4), load).reshape(-1, 1))
        builder.build(1).save(root / f"rank{rank}" / "routing.parquet")
    return root


def test_experts_load_is_what_the_tokens_chose(tmp_path):
    same = routed_folder(tmp_path / "same", [(2, 1, 1, 0)] * 2)
    facts = parse_ranks(rank_files(same), tmp_path / "out", jobs=1, options={"ran_ep": 2})
    load = facts["experts_load"]
    assert (load["ep"], load["median"], load["max"], load["busiest_rank"]) == (2, 1.5, 1.5, 0)
    assert "the same on all" in load["source"]
    assert [r["experts_load"] for r in facts["ranks"]] == [1.5, 0.5]
    assert pq.read_table(tmp_path / "out" / "ranks.parquet").column("routed").to_pylist() == [3] * 3 + [1] * 3
    own = routed_folder(tmp_path / "own", [(2, 1, 1, 0), (0, 0, 0, 4)])
    facts = parse_ranks(rank_files(own), options={"ran_ep": 2}, jobs=1)
    assert facts["experts_load"]["median"] == 5 / 4 and facts["experts_load"]["busiest_rank"] == 1
    assert "2 different ones added up" in facts["experts_load"]["source"]
    assert facts["layers"][0]["choices"] == 5 / 4
    assert (
        parse_ranks(rank_files(own), jobs=1)["experts_load"] is None
    )  # not shared out: no rank holds only some


def test_a_url_is_read_and_written_as_a_folder_is(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 50]))
    here = parse_ranks(rank_files(root), tmp_path / "here", jobs=1)
    out = Path(f"file://{tmp_path}/there")
    for source in (f"file://{root}", f"file://{root}/*.json"):
        assert parse_ranks(rank_files(Path(source)), out, jobs=1, force=True) == here
    there = tmp_path / "there"
    assert sorted(p.name for p in there.iterdir()) == ["rank-0", "rank-1", "ranks.json", "ranks.parquet"]
    assert Run.load(there / "rank-1").meta.notes == Run.load(tmp_path / "here" / "rank-1").meta.notes
    with pytest.raises(OutputError, match="--force"):
        parse_ranks(rank_files(root), out, jobs=1)
    (there / "mine").write_text("")
    with pytest.raises(OutputError, match="mine is not moetrace's"):
        parse_ranks(rank_files(root), out, jobs=1, force=True)
    (root / "trace-rank1.json").write_text("no JSON")
    with pytest.raises(TraceError, match=r"trace-rank1\.json"):
        parse_ranks(rank_files(Path(f"file://{root}")), Path(f"file://{tmp_path}/half"), jobs=1)
    assert not list((tmp_path / "half").glob("*"))
    with pytest.raises(TraceError, match="cannot be opened"):
        rank_files(Path("nosuch://bucket/traces"))


def test_a_damaged_rank_is_named_and_nothing_half_done_stays(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 0]))
    (root / "trace-rank1.json").write_text("no JSON")
    with pytest.raises(TraceError, match=r"trace-rank1\.json"):
        parse_ranks(rank_files(root), tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists()


def test_what_ranks_lost_is_said_of_them_together(tmp_path):
    root = folder(tmp_path, rank_traces([100] * 13, clocks=[0] * 13))
    assert not [n for n in parse_ranks(rank_files(root), None, jobs=1)["notes"] if "cut off" in n]
    for rank in range(1, 13):
        file = root / f"trace-rank{rank}.json"
        file.write_bytes(file.read_bytes()[:-40])
    notes = parse_ranks(rank_files(root), None, jobs=1)["notes"]
    assert [n.split(":")[0] for n in notes if "the file is cut off" in n] == [
        f"rank {i}" for i in range(1, 11)
    ]
    assert "2 more ranks lost some of their traces: the RUN of each says what" in notes


def test_only_what_is_ours_is_replaced(tmp_path):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 0]))
    out = tmp_path / "out"
    parse_ranks(rank_files(root), out, jobs=1)
    with pytest.raises(OutputError, match="--force"):
        parse_ranks(rank_files(root), out, jobs=1)
    parse_ranks(rank_files(root), out, jobs=1, force=True)
    with pytest.raises(OutputError, match="RUNs of several ranks"):
        check_output(out, force=True)
    (out / "mine").mkdir()
    with pytest.raises(OutputError, match="not moetrace's"):
        parse_ranks(rank_files(root), out, jobs=1, force=True)


def test_the_command_line(tmp_path, process):
    root = folder(tmp_path, rank_traces([100, 130], clocks=[0, 50]))
    answer = process("parse", root, "-o", tmp_path / "out", "--jobs", "1")
    assert answer.status == 0, answer.err
    assert "straggler: the others wait 90 us for rank 1" in answer.out.replace("90.0 us", "90 us")
    facts = json.loads(process("parse", f"{root}/*.json", "--json").out)
    assert facts["schema"] == "moetrace.ranks/1" and len(facts["ranks"]) == 2
    doctor = json.loads(process("doctor", tmp_path / "out" / "rank-0", "--json").out)
    waits = next(a for a in doctor["answers"] if a["question"] == "Do ranks wait for each other?")
    assert waits["answer"] == "yes"
