"""Exported timelines asked with Perfetto's own trace processor: it takes all of them, to the ns, and drops nothing."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import moetrace
from moetrace.report.perfetto import write_timeline
from moetrace.run import Run
from tests.debian.trace_processor import TraceProcessor
from tests.made import decode_trace, write
from tests.reports import hostile_events

pytestmark = pytest.mark.debian

# Whatever the reader counts as an error or as data lost.
LOST = "select name, severity, value from stats where severity in ('error', 'data_loss') and value > 0"
SLICES = """select p.name as process, t.name as thread, s.ts, s.dur, s.name as name, s.depth,
extract_arg(s.arg_set_id, 'args.op') as op
from slice s join thread_track tt on s.track_id = tt.id join thread t using (utid) join process p using (upid)
order by s.ts, s.id"""
COUNTERS = """select p.name as process, k.name as name, c.ts, c.value
from counter c join process_counter_track k on c.track_id = k.id join process p using (upid) order by c.ts, c.id"""


@pytest.fixture(scope="module")
def run(run_dir) -> Run:
    return moetrace.load(run_dir)


def test_measured_and_predicted_are_read_whole_and_to_the_ns(browser, run, tmp_path):
    predicted = moetrace.replay(run, "h100-sxm").run
    write_timeline(run, tmp_path / "t.json.gz", beside=[predicted])
    perfetto = TraceProcessor(browser, tmp_path / "t.json.gz")
    assert perfetto.query(LOST) == []
    slices, counters = perfetto.query(SLICES), perfetto.query(COUNTERS)
    perfetto.close()
    for said, side in (("measured", run), ("predicted", predicted)):
        mine = [s for s in slices if said in s[0]]
        origin = min(s.start_ns for s in side.meta.steps)
        origin = min(origin, int(side.numpy("start_ns").min()))
        ops = [s for s in mine if s[1].startswith("stream")]
        assert Counter((ts, dur, op) for _, _, ts, dur, _, _, op in ops) == Counter(
            zip(
                (side.numpy("start_ns") - origin).tolist(),
                side.numpy("dur_ns").tolist(),
                side.column("op").to_pylist(),
                strict=True,
            )
        )
        steps = [s for s in mine if s[1] == "steps"]
        assert [(ts, dur) for _, _, ts, dur, *_ in steps] == [
            (s.start_ns - origin, s.end_ns - s.start_ns) for s in side.meta.steps
        ]
        assert {s[5] for s in steps} == {0}  # one after another, none within another
        moved = sum(
            np.nan_to_num(side.numpy(n, 0.0)).sum() for n in ("weight_bytes", "kv_bytes", "act_bytes")
        )
        values = [
            (ts, value) for process, name, ts, value in counters if said in process and "memory GB/s" in name
        ]
        area = sum(value * (later - at) for (at, value), (later, _) in pairwise(values))
        assert area == pytest.approx(moved, rel=1e-3)
        distinct = [v for process, name, _, v in counters if said in process and "distinct experts" in name]
        assert 0 < max(distinct) <= 64


def test_a_question_of_a_reader_is_answered_by_sql(browser, run, tmp_path):
    """Which ops take the time: as `moetrace show --by kind` has it, and by layer."""
    write_timeline(run, tmp_path / "t.json")
    perfetto = TraceProcessor(browser, tmp_path / "t.json")
    said = perfetto.query(
        "select s.name as name, sum(s.dur) as dur from slice s join thread_track tt on s.track_id = tt.id "
        "join thread t using (utid) where t.name glob 'stream*' group by 1 order by 2 desc"
    )
    perfetto.close()
    frame = run.to_pandas(["kind", "dur_ns"])
    assert dict(said) == frame.groupby("kind", observed=True).dur_ns.sum().to_dict()


def test_hostile_names_are_read_too(browser, tmp_path):
    trace = write(tmp_path / "t.json", hostile_events(decode_trace(), long=100_000))
    run = moetrace.parse(trace, hardware="h100-sxm")
    write_timeline(run, tmp_path / "out.json")
    perfetto = TraceProcessor(browser, tmp_path / "out.json")
    assert perfetto.query(LOST) == []
    ops = perfetto.query(
        "select count(*) as n from slice where extract_arg(arg_set_id, 'args.kernel') is not null"
    )
    perfetto.close()
    assert ops == [(len(run.table()),)]
