"""Ranks replayed together: what they wait follows from their work, as in a recording of that work."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace
from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.parse.ranks import parse_ranks, rank_files
from moetrace.ranks import Ranks
from moetrace.replay import Scenario, schedule
from moetrace.replay.draft import Draft
from moetrace.replay.waits import waits_of
from tests.made import grid_traces, write

NODE = load_hardware("h100-sxm-x4")
SENDS = (("allreduce", 2, 1, 4096), ("alltoall", 2, 2, 1024), ("allreduce", 4, 1, 512))
CLOCKS = [(0.0, 0.0), (5000.0, 2e-5), (-300.0, -1e-5), (70.0, 0.0)]


def slow(step: int, i: int, rank: int) -> float:
    return 50 + ((step * 31 + i * 17 + rank * 29) % 13) * 7


def fast(step: int, i: int, rank: int) -> float:
    return 20 + ((step * 7 + i * 5 + rank * 11) % 9) * 12


def ranks(folder, work, clocks=CLOCKS, model=None) -> Ranks:
    folder.mkdir()
    for rank, events in enumerate(grid_traces(4, SENDS, clocks, work, steps=8, stated=True)):
        write(folder / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 4})
    parse_ranks(
        rank_files(folder), folder / "out", jobs=1, options={"hardware": "h100-sxm-x4", "model": model}
    )
    return Ranks.load(folder / "out")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return ranks(tmp_path_factory.mktemp("ranks") / "slow", slow)


def test_nothing_changed_gives_every_start_and_duration_back(recorded: Ranks) -> None:
    done = moetrace.replay(recorded, NODE)
    tables = [
        run.table()
        .select(["rank", "start_ns", "dur_ns"])
        .sort_by([("rank", "ascending"), ("start_ns", "ascending")])
        for run in (recorded, done.run)
    ]
    assert tables[0].equals(tables[1])
    phase = done.summary["phases"]["decode"]
    assert phase["step_s"] == pytest.approx(phase["measured_s"], abs=2e-9)
    for row in done.summary["ranks"]:
        assert row["wait_s"] == row["recorded_wait_s"] > 0
    families = {f["family"]: f["step_s"] for f in done.summary["families"]}
    spent = np.mean([r["work_s"] + r["wait_s"] for r in done.summary["ranks"]])
    assert sum(families.values()) == pytest.approx(spent)  # of a mean rank


def test_other_work_gives_the_waits_of_a_recording_of_that_work(tmp_path, recorded: Ranks) -> None:
    """The layout with another recording's durations of work is that recording: its waits, starts and steps."""
    other = ranks(tmp_path / "fast", fast)
    here, there = (Draft.of(next(run.parts()), NODE, Scenario()) for run in (recorded, other))
    waits, goal = waits_of(here, True), waits_of(there, True)
    assert waits.row.size == goal.row.size == 8 * 3 * 4
    work = there.base.dur - goal.recorded(there.rows.size)
    line = schedule.measure(
        here.base.segment, here.base.start, here.base.dur, *(np.full(here.rows.size, n) for n in (7, -1, -1))
    )
    was = waits.recorded(here.rows.size)

    def lay_out(dur: np.ndarray, wait: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return schedule.lay_out(line, here.rows, here.inserted, dur, True, 0.0, (was, wait))

    start, spans, dur = waits.laid_out(work, lay_out)
    first = np.flatnonzero(np.diff(there.base.segment, prepend=-1))
    begin = there.base.start[first][there.base.segment]
    assert np.abs(dur - there.base.dur).max() < 1000  # clocks agree to a fraction of a us
    assert np.abs(start - (there.base.start - begin)).max() < 2000
    ends = np.maximum.reduceat(there.base.start + there.base.dur, first) - there.base.start[first]
    assert np.abs(spans - ends).max() < 2000


def test_on_another_machine_the_slowest_rank_sets_each_step(recorded: Ranks) -> None:
    done = moetrace.replay(recorded, "h200-sxm-x4")
    assert len(done.summary["ranks"]) == 4
    table = done.run.to_pandas()
    for _, mine in table[table.family == "communication"].groupby(["step", "kind", "op"]):
        assert mine.dur_ns.min() > 0
    ends = (table.start_ns + table.dur_ns).groupby(table.step).max()
    for step, end in zip(done.run.meta.steps, ends, strict=True):
        assert abs(step.end_ns - end) <= 1


def test_what_ranks_cannot_be_replayed_as_is_said(recorded: Ranks) -> None:
    with pytest.raises(ScenarioError, match=r"all 4 ranks of 4 GPUs .* replayed on a machine of 4 GPUs"):
        moetrace.replay(recorded, "h100-sxm")
    with pytest.raises(ScenarioError, match="what another sharing would run was not recorded"):
        moetrace.replay(recorded, NODE, Scenario.of("tp=4", "ep=1"))
