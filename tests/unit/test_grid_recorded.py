"""Grids of a run's replays: each row is the replay alone, what cannot be is a row too, and an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import Scenario, replay
from moetrace.replay.grid import recorded
from moetrace.replay.grid.choose import Limits, front
from moetrace.replay.grid.recorded import Replays, check_measures, replays_of
from moetrace.replay.grid.store import open_grid, run_grid
from moetrace.run import Run
from moetrace.synthesize import Workload, synthesize

SETS = ("n_a=8,2,4/8", "batch=4,16", "tp=4")


def run() -> Run:
    return synthesize(load_model("olmoe-1b-7b").with_edits(layers=2), Workload(4, 64, 8))


def plan(*sets: str, machines: tuple[str, ...] = ("h100-sxm", "h100-sxm-x4")) -> Replays:
    return replays_of(
        run(), "a run", [load_hardware(name) for name in machines], sets or SETS, ("h100-sxm=2",)
    )


def test_each_row_is_what_replay_says() -> None:
    asked = plan()
    (task,) = asked.tasks()
    rows, parts = (table.to_pylist() for table in asked.tables(task))
    assert [row["scenario"] for row in rows] == list(range(asked.size)) and asked.size == 12
    assert {row["n_a"] for row in rows} == {"8", "2", "4/8"} and {row["batch"] for row in rows} == {4, 16}
    for row, (hw, scenario) in zip(rows, asked.pairs, strict=True):
        said = replay(asked.run, hw, scenario).summary
        decode = said["phases"]["decode"]
        assert (row["hardware"], row["gpus"], row["phase"]) == (hw.name, hw.gpus, "decode")
        assert (row["step_s"], row["step_low_s"], row["tpot_s"]) == (
            decode["step_s"],
            decode["low_s"],
            decode["tpot_s"],
        )
        assert row["output_per_gpu_per_s"] == pytest.approx(decode["tokens_per_s"] / hw.gpus)
        assert row["cost_per_million_tokens"] == pytest.approx(
            2 * hw.gpus / 3600 / decode["tokens_per_s"] * 1e6
        )
        assert (row["fits"], row["beyond_fit"] or "") == (said["memory"]["fits"], said["beyond_fit"])
        mine = {part["family"]: part["step_s"] for part in parts if part["scenario"] == row["scenario"]}
        assert mine == {part["family"]: part["step_s"] for part in said["families"]}


def test_what_cannot_be_is_a_row_with_its_problem() -> None:
    asked = plan("n_a=8,65", machines=("h100-sxm",))
    rows = asked.tables(next(asked.tasks()))[0].to_pylist()
    assert [row["problem"] is None for row in rows] == [True, False]
    assert "n_a is at most 64" in rows[1]["problem"] and rows[1]["step_s"] is None
    best, met = front([asked.tables(next(asked.tasks()))[0]], Limits())
    assert met == 1 and best is not None and best["n_a"].to_pylist() == [8]


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
