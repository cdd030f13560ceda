"""Grids: what they ask, their tables, going on after an interruption, and the choice among their scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import MoetraceError, OutputError, ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import simulate
from moetrace.replay.grid import plan as plans
from moetrace.replay.grid.choose import (
    DEVICE,
    USER,
    Limits,
    Marked,
    cheapest,
    front,
    marked,
    met_by,
    read_budget,
    read_slo,
)
from moetrace.replay.grid.plan import Ask, Plan, Task, plan_of
from moetrace.replay.grid.rows import measure_column, tables
from moetrace.replay.grid.store import Made, one_after_another, open_grid, run_grid
from moetrace.replay.scenario import Scenario
from moetrace.synthesize import Workload

LOAD = ("batch=1,8", "input_len=64,300", "output_len=1,40")
ASK = Ask(("olmoe-1b-7b",), ("h100-sxm", "h100-sxm-x4", "cs3"), (*LOAD, "n_a=2,8", "tp=4,1", "kv=bf16,fp8"))


def all_of(ask: Ask) -> tuple[pa.Table, pa.Table]:
    parts = [tables(ask, task) for task in plan_of(ask).tasks()]
    return tuple(pa.concat_tables(part, promote_options="permissive") for part in zip(*parts, strict=True))


@pytest.fixture(scope="module")
def whole() -> tuple[pa.Table, pa.Table]:
    return all_of(ASK)


def test_every_combination_is_a_row_and_each_row_says_which(whole: tuple[pa.Table, pa.Table]) -> None:
    rows = whole[0].to_pylist()
    assert [row["scenario"] for row in rows] == list(range(len(rows)))
    # one GPU: kv; four: kv with tp=4; the wafer: kv with both placements
    assert len(rows) == plan_of(ASK).size == (2 + 2 + 4) * 16
    places = [(r["hardware"], r["tp"], r["placement"], r["kv"]) for r in rows]
    loads = [(r["batch"], r["input_len"], r["output_len"], r["n_a"]) for r in rows]
    assert len(set(zip(places, loads, strict=True))) == len(rows)
    assert set(loads) == set(product((1, 8), (64, 300), (1, 40), (2, 8)))


def test_each_row_is_what_simulate_says(whole: tuple[pa.Table, pa.Table]) -> None:
    scenarios, breakdown = whole
    for row in scenarios.to_pylist()[::7]:
        knobs = ("batch", "input_len", "output_len", "n_a", "tp", "kv", "placement")
        sets = [f"{name}={row[name]}" for name in knobs if row[name] is not None]
        said = simulate(
            load_model("olmoe-1b-7b"), Workload(1, 1, 1), row["hardware"], Scenario.of(*sets)
        ).summary
        for name, values in said["metrics"].items():
            for part, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                found = row[measure_column(name, end)]
                assert found == (None if values[part] is None else pytest.approx(values[part], rel=1e-12))
        assert (row["fits"], row["largest_batch"]) == (
            said["memory"]["fits"],
            said["memory"]["largest_batch"],
        )
        assert row["needed_bytes"] == pytest.approx(said["memory"]["needed_bytes"])
        assert row["in_context"] is said["context"]["within"]
        assert (row["beyond_fit"] or "") == said["beyond_fit"] and row["problem"] is None
        mine = breakdown.filter(pa.compute.equal(breakdown["scenario"], row["scenario"])).to_pylist()
        found = {part["family"]: (part["decode_s"], part["prefill_s"]) for part in mine}
        for family in said["families"]:
            assert found[family["family"]] == pytest.approx(
                (family["decode_s"], family["prefill_s"]), rel=1e-9, abs=1e-12
            )


@pytest.mark.filterwarnings("error")
def test_times_that_no_whole_ns_hold_are_refused_alone_and_in_a_grid() -> None:
    lengths = (1000, 900_000_000)
    scenarios, breakdown = all_of(
        Ask(("olmoe-1b-7b",), ("cpu",), ("batch=1", "input_len=1000,900000000", "output_len=2"))
    )
    for row, length in zip(scenarios.to_pylist(), lengths, strict=True):
        if length == 1000:
            assert row["problem"] is None and row["ttft_s"] > 0
            continue
        with pytest.raises(ScenarioError, match="36 years") as refused:
            simulate(load_model("olmoe-1b-7b"), Workload(1, length, 2), "cpu")
        assert row["problem"] == str(refused.value)
        told = {name: value for name, value in row.items() if value is not None and name not in ("problem",)}
        assert set(told) == {"scenario", "model", "hardware", "gpus", "batch", "input_len", "output_len"}
    assert set(breakdown["scenario"].to_pylist()) == {0}


def test_what_is_left_of_each_n_a_is_told_beside_the_front(whole: tuple[pa.Table, pa.Table]) -> None:
    """On the front the fewest experts always win: which n_a keep to a limit is another question."""
    rows, limits = whole[0], Limits({"user_speed": 500.0})
    found = met_by([rows.slice(0, 50), rows.slice(50)], limits, ("model", "n_a"))
    assert set(found) == {"n_a"}  # one model
    good = limits.met(rows)
    for value, share in found["n_a"].items():
        mine = [i for i, row in enumerate(rows.to_pylist()) if str(row["n_a"]) == value]
        kept = [rows[USER][i].as_py() for i in mine if good[i]]
        assert (share.scenarios, share.met, share.user_per_s) == (len(mine), len(kept), max(kept))
    assert 0 < found["n_a"]["8"].met <= found["n_a"]["2"].met


def test_out_of_memory_and_what_cannot_be_are_marked_not_dropped() -> None:
    scenarios, breakdown = all_of(
        Ask(("mixtral-8x7b",), ("h100-sxm",), ("batch=1,512", *LOAD[1:], "n_a=2,9"))
    )
    rows = scenarios.to_pylist()
    assert len(rows) == 16 and not any(row["fits"] for row in rows if row["problem"] is None)
    bad = [row for row in rows if row["problem"]]
    assert {row["n_a"] for row in bad} == {9} and len(bad) == 8
    assert all("n_a is at most 8" in row["problem"] and row["tpot_s"] is None for row in bad)
    assert set(breakdown["scenario"].to_pylist()) == {row["scenario"] for row in rows} - {
        row["scenario"] for row in bad
    }


def test_the_size_of_tasks_does_not_show(
    whole: tuple[pa.Table, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "CHUNK", 5)
    again = all_of(Ask(ASK.models, ASK.machines[:2], ASK.sets))
    for table, first in zip(again, whole, strict=True):
        rows = table.to_pylist()
        assert rows == [{k: row[k] for k in rows[0]} for row in first.to_pylist()[: len(rows)]]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(("olmoe-1b-7b",), ("h100-sxm",), LOAD[:2]), "add --output-len"),
        (Ask(("olmoe-1b-7b",), ("h100-sxm-x4",), LOAD), "add --set tp=4"),
        (Ask(("olmoe-1b-7b",), ("h100-sxm",), (*LOAD, "n_b=2")), "unknown knob 'n_b'"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(ask: Ask, words: str) -> None:
    with pytest.raises(MoetraceError, match=words):
        plan_of(ask)


def test_a_schedule_of_n_a_is_taken_as_simulate_takes_it() -> None:
    scenarios, _ = all_of(
        Ask(("olmoe-1b-7b",), ("h100-sxm",), ("batch=4", "input_len=64", "output_len=8", "n_a=8/4,8"))
    )
    assert scenarios["n_a"].to_pylist() == ["8/4", "8"]


def test_a_wafers_two_placements_are_told_apart_though_nobody_asked_for_them() -> None:
    scenarios, _ = all_of(
        Ask(("olmoe-1b-7b",), ("cs3",), ("batch=4", "input_len=64", "output_len=8", "n_a=8/4"))
    )
    assert scenarios["placement"].to_pylist() == ["spread", "own"]


def test_an_interrupted_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "CHUNK", 4)
    ask = Ask(("olmoe-1b-7b",), ("h100-sxm",), (*LOAD, "n_a=2,8"))
    whole = open_grid(tmp_path / "whole", ask)
    assert run_grid(whole) == 0

    def dies(ask: Ask, waiting: list[tuple[int, Task]]) -> Iterator[Made]:
        yield from one_after_another(ask, waiting[:2])
        raise KeyboardInterrupt

    grid = open_grid(tmp_path / "grid", ask)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, work=dies)
    told: list[float] = []
    again = open_grid(tmp_path / "grid", ask)
    assert len(again.waiting()) == 2 and run_grid(again, told.append) == 8
    assert told == [0.75, 1.0]
    for name in ("scenarios", "breakdown"):
        assert pq.read_table(tmp_path / "grid" / name).equals(pq.read_table(tmp_path / "whole" / name))
    assert run_grid(open_grid(tmp_path / "grid", ask)) == 16


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    ask, other = (Ask(("olmoe-1b-7b",), ("h100-sxm",), (f"batch={n}", *LOAD[1:])) for n in (1, 2))
    run_grid(open_grid(tmp_path / "grid", ask))
    with pytest.raises(OutputError, match="holds another grid"):
        open_grid(tmp_path / "grid", other)
    replaced = open_grid(tmp_path / "grid", other, force=True)
    assert len(replaced.waiting()) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError):
            open_grid(tmp_path / "mine", ask, force)
    (tmp_path / "grid" / "scenarios" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        open_grid(tmp_path / "grid", ask, force=True)
    assert (tmp_path / "mine" / "notes.txt").exists() and (
        tmp_path / "grid" / "scenarios" / "notes.txt"
    ).exists()


POINTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 4, 8, 16]), st.booleans()),
    max_size=12,
)


def rows_of(points: list[tuple[int, int, int, bool]]) -> pa.Table:
    user, rate, gpus, fits = (
        (list(column) for column in zip(*points, strict=True)) if points else ([], [], [], [])
    )
    return pa.table(
        {
            "scenario": pa.array(range(len(points)), pa.int64()),
            USER: pa.array(user, pa.float64()),
            DEVICE: pa.array(rate, pa.float64()),
            "gpus": pa.array(gpus, pa.int32()),
            "wafers": pa.nulls(len(points), pa.int64()),
            "fits": pa.array(fits, pa.bool_()),
            "tpot_s": pa.array([1 / u for u in user], pa.float64()),
            "problem": pa.nulls(len(points), pa.string()),
        }
    )


@given(POINTS, POINTS, st.sampled_from([None, 4, 8]), st.sampled_from([0.2, 0.5, 1.0]))
def test_the_front_is_what_nothing_beats(
    one: list[tuple[int, int, int, bool]],
    two: list[tuple[int, int, int, bool]],
    gpus: int | None,
    tpot: float,
) -> None:
    limits = Limits({"tpot": tpot}, gpus)
    best, met = front([rows_of(one), rows_of(two)], limits)
    whole = rows_of([*one, *two])
    good = limits.met(whole)
    allowed = [
        (user, rate if gpus is None else rate * n * (gpus // n) / gpus)
        for user, rate, n, fits in [*one, *two]
        if fits and 1 / user <= tpot and (gpus is None or n <= gpus)
    ]
    assert met == len(allowed) == good.sum()
    unbeaten = {a for a in allowed if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in allowed)}
    found = (
        []
        if best is None
        else list(zip(best[USER].to_pylist(), limits.per_device(best).tolist(), strict=True))
    )
    assert set(found) == unbeaten and len(found) == len(unbeaten)
    assert found == sorted(found, reverse=True)


def test_wafers_are_the_devices_of_their_machine_and_have_room(tmp_path: Path) -> None:
    load = ("batch=1", "input_len=64", "output_len=8")
    grid = open_grid(tmp_path / "grid", Ask(("qwen3-30b-a3b",), ("cs3",), load))
    run_grid(grid)
    (rows,) = grid.parts()
    (row,) = rows.to_pylist()
    alone = simulate(load_model("qwen3-30b-a3b"), Workload(1, 64, 8), load_hardware("cs3")).summary
    assert row["wafers"] == alone["wafers"] == 2 and row["fits"] is False
    rate = alone["metrics"]["output_throughput"]["value"]
    assert row["output_per_gpu_per_s"] == pytest.approx(rate / 2)
    assert marked([rows]) == Marked(0, 0, 0, 1, {})
    assert [front([rows], Limits(gpus=n))[1] for n in (None, 2, 1)] == [1, 1, 0]


def test_the_cheapest_is_told_though_a_wafer_counts_as_one_device(tmp_path: Path) -> None:
    """A wafer gives more tokens than a GPU, so that the front is its own, whatever it costs."""
    load = ("batch=1,16", "input_len=64", "output_len=8")
    grid = open_grid(
        tmp_path / "grid", Ask(("olmoe-1b-7b",), ("h100-sxm", "cs3"), load, ("h100-sxm=2", "cs3=500"))
    )
    run_grid(grid)
    parts = list(grid.parts())
    best, found = front(parts, Limits())[0], cheapest(parts, Limits())
    assert best is not None and set(best["hardware"].to_pylist()) == {"cs3"}
    assert found is not None and found["hardware"].to_pylist() == ["h100-sxm"]
    costs = [cost for rows in parts for cost in rows["cost_per_million_tokens"].to_pylist()]
    assert found["cost_per_million_tokens"].to_pylist() == [min(costs)]
    only = cheapest(parts, Limits({"user_speed": max(best[USER].to_pylist())}))
    assert only is not None and only["hardware"].to_pylist() == ["cs3"]
    assert cheapest(parts, Limits({"user_speed": 1e9})) is None


def test_limits_as_they_are_written() -> None:
    assert read_slo("tpot=20ms, ttft=1s,user_speed=50") == {"tpot": 0.02, "ttft": 1.0, "user_speed": 50.0}
    assert read_budget("gpus=8") == 8
    for text in ("tpot=20", "tpot=fast", "user_speed=5ms", "speed=1", "tpot"):
        with pytest.raises(ScenarioError, match="--slo"):
            read_slo(text)
    for text in ("gpus=0", "gpus=x", "8"):
        with pytest.raises(ScenarioError, match="--budget"):
            read_budget(text)


def test_a_plan_of_many_is_not_laid_out_in_memory() -> None:
    numbers = ",".join(map(str, range(1, 1001)))
    ask = Ask(("olmoe-1b-7b",), ("h100-sxm",), (f"batch={numbers}", f"input_len={numbers}", "output_len=1,2"))
    plan: Plan = plan_of(ask)
    assert plan.size == 2_000_000
    tasks = list(plan.tasks())
    assert sum(task.stop - task.start for task in tasks) == plan.size
    ((_, start, stop),) = plan.parts(tasks[-1])
    assert np.array_equal(plan.columns(start, stop)["batch"][-2:], [1000, 1000])
