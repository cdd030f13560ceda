"""Grids of a run's replays: each row is the replay alone, what cannot be is a row too, and an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.parse import parse
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.grid import recorded
from moetrace.replay.grid.choose import Limits, front
from moetrace.replay.grid.recorded import Replays, check_measures, replays_of
from moetrace.replay.grid.store import open_grid, run_grid
from moetrace.run import Run
from moetrace.synthesize import Workload, synthesize
from tests.conftest import REPO, Answer
from tests.drawn_replays import check_replays, replay_sets
from tests.unit.replay_runs import H100, decode_run
from tests.unit.test_waits import ranks, slow

SETS = ("n_a=8,2,4/8", "batch=4,16", "tp=4")


def run() -> Run:
    return synthesize(load_model("olmoe-1b-7b").with_edits(layers=2), Workload(4, 64, 8))


def plan(*sets: str, machines: tuple[str, ...] = ("h100-sxm", "h100-sxm-x4")) -> Replays:
    return replays_of(
        run(), "a run", [load_hardware(name) for name in machines], sets or SETS, ("h100-sxm=2",)
    )


def test_each_row_is_what_replay_says() -> None:
    asked = plan()
    assert asked.size == 12 and {hw.name for hw, _ in asked.pairs} == {"h100-sxm", "h100-sxm-x4"}
    assert check_replays(asked) == 12


def test_a_grid_says_that_fewer_layers_were_recorded() -> None:
    """As a replay does: two of sixteen layers are eight times as fast."""
    shipped = SHIPPED[0]
    (note,) = replays_of(shipped, "a run", [H100], ["n_a=8,4"]).notes
    assert note == replay(shipped, H100).summary["assumptions"][-2] and note.startswith(
        "2 of the model's 16 layers"
    )
    assert replays_of(shipped, "a run", [H100], ["n_a=8,4", "layers=native"]).notes == ()
    assert plan().notes == ()


SHIPPED = tuple(
    parse(REPO / "traces" / "kineto" / name)
    for name in ("olmoe-1b-7b-l2-b16-cpu", "deepseek-v2-lite-l2-b16-cpu")
)


@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(
    st.sampled_from(SHIPPED),
    replay_sets(),
    st.sampled_from([("cpu",), ("h100-sxm", "cs3"), ("h100-sxm-x4",)]),
)
def test_each_row_of_a_drawn_grid_of_replays_is_the_replay_of_its_settings(
    run: Run, sets: tuple[str, ...], machines: tuple[str, ...]
) -> None:
    try:
        asked = replays_of(run, "a run", [load_hardware(name) for name in machines], sets)
    except ScenarioError:
        return
    check_replays(asked)


LONG = ("n_a=4,2", "batch=2,8", "context=100,900")


@pytest.mark.parametrize(
    "sets",
    [
        LONG,
        ("dtype=fp8", "layers=2,6"),
        ("graph=on", "kv=fp8,bf16"),
        ("graph=off", "n_a=4"),
        ("experts=unfused",),
    ],
)
def test_a_gpus_recording_keeps_its_own_timeline_in_every_row(sets: tuple[str, ...]) -> None:
    check_replays(replays_of(decode_run(), "a run", [H100, load_hardware("h200-sxm")], sets))


def test_ranks_wait_for_each_other_in_every_row(tmp_path: Path) -> None:
    run, node = ranks(tmp_path / "slow", slow), load_hardware("h100-sxm-x4")
    assert (
        check_replays(replays_of(run, "ranks", [node, load_hardware("h200-sxm-x4")], ("graph=on,off",))) == 4
    )


def test_a_run_that_is_read_in_parts_is_replayed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    long = decode_run()
    asked = replays_of(long, "a run", [H100], ("n_a=4,2",))
    monkeypatch.setattr(Run, "parts", lambda run: iter((Run(run.meta, run.table(), run.routing),)))
    assert check_replays(asked) == 2


def test_what_cannot_be_is_a_row_with_its_problem() -> None:
    asked = plan("n_a=8,65", machines=("h100-sxm",))
    rows = asked.tables(next(asked.tasks()))[0].to_pylist()
    assert [row["problem"] is None for row in rows] == [True, False]
    assert "n_a is at most 64" in rows[1]["problem"] and rows[1]["step_s"] is None
    best, met = front([asked.tables(next(asked.tasks()))[0]], Limits())
    assert met == 1 and best is not None and best["n_a"].to_pylist() == [8]


def test_a_time_that_no_whole_ns_hold_leaves_the_other_rows() -> None:
    """All rows of one machine are laid out together: one that is too long refused the grid."""
    sets = ("batch=16,1000000000", "context=300,1000000000")
    asked = replays_of(decode_run(), "a run", [H100], sets)
    assert check_replays(asked) == 4
    problems = [row["problem"] for row in asked.tables(next(asked.tasks()))[0].to_pylist()]
    assert [problem is None for problem in problems] == [True, True, True, False]


def test_an_interrupted_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_FEW", 5)
    grid = open_grid(tmp_path / "grid", plan())
    assert run_grid(grid) == 0
    whole = pq.read_table(tmp_path / "grid" / "scenarios")
    (tmp_path / "grid" / "scenarios" / "000001.parquet").unlink()
    assert run_grid(open_grid(tmp_path / "grid", plan())) == 7
    assert pq.read_table(tmp_path / "grid" / "scenarios").equals(whole)


def test_limits_on_what_a_replay_has_not_are_refused() -> None:
    check_measures({"tpot": 0.01, "user_speed": 10.0})
    with pytest.raises(ScenarioError, match="a replay has tpot, user_speed, output_throughput"):
        check_measures({"ttft": 1.0})


def test_a_scenario_of_the_plan_is_the_one_that_was_asked_for() -> None:
    assert plan("n_a=4", machines=("h100-sxm",)).pairs[0][1] == Scenario.of("n_a=4")


def test_replays_of_a_steady_load_have_no_tpot_to_choose_by(
    tmp_path: Path, call: Callable[..., Answer]
) -> None:
    """Their decode steps were taken for it."""
    load = Workload(4, 256, 16, served=True)
    simulate("olmoe-1b-7b", load, "h100-sxm").run.save(tmp_path / "run")
    asked = ("replay", tmp_path / "run", "--hw", "a100-sxm", "--n-a", "4,8")
    done = call(*asked, "--slo", "tpot=1s")
    assert done.status == 2 and "no TPOT to choose by" in done.err
    done = call(*asked, "--grid", tmp_path / "grid")
    assert not done.status and "TPOT and rates are not known: the run is a simulation" in done.out
    rows = pq.read_table(tmp_path / "grid" / "scenarios").to_pylist()
    assert all(
        row["step_s"] > 0 and row["tpot_s"] is None and row["output_throughput_per_s"] is None for row in rows
    )
