"""What must hold for the recordings that ship, whatever the coefficients: identity, monotony, sums, and time's origin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.attribute import attribute
from moetrace.hardware import Hardware, load_hardware
from moetrace.parse import parse, summary
from moetrace.replay import Prediction, Scenario, replay
from moetrace.report.tables import parse_report
from moetrace.run import Run
from tests.conftest import REPO
from tests.unit.replay_runs import decode_run

NAMES = ("olmoe-1b-7b-l2-b16-cpu", "deepseek-v2-lite-l2-b16-cpu")
CPU, H100, NODE, A100, WAFER = (
    load_hardware(name) for name in ("cpu", "h100-sxm", "h100-sxm-x8", "a100-sxm", "cs3")
)
WHAT = (
    "rank",
    "device",
    "stream",
    "step",
    "phase",
    "layer",
    "family",
    "kind",
    "op",
    "kernel",
    "start_ns",
    "dur_ns",
)


@pytest.fixture(scope="module")
def recordings() -> dict[str, Run]:
    return {name: parse(REPO / "traces" / "kineto" / name) for name in NAMES}


@pytest.fixture(params=NAMES)
def recorded(request: pytest.FixtureRequest, recordings: dict[str, Run]) -> Run:
    return recordings[request.param]


def turned(run: Run, hw: Hardware, *sets: str) -> Prediction:
    return replay(run, hw, Scenario.of(*sets))


def step_s(run: Run, hw: Hardware, *sets: str) -> float:
    return float(turned(run, hw, *sets).summary["phases"]["decode"]["step_s"])


# -- identity ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sets", [(), ("n_a=native",), ("n_a=native", "fusion=recorded")], ids=" ".join)
def test_a_recording_on_its_own_machine_is_itself(recorded: Run, sets: tuple[str, ...]) -> None:
    prediction = turned(recorded, CPU, *sets)
    inside = pa.table({name: recorded.column(name) for name in WHAT}).filter(
        pc.is_valid(recorded.column("step"))
    )
    assert prediction.run.table(WHAT).to_pylist() == inside.to_pylist()
    assert [(s.start_ns, s.end_ns) for s in prediction.run.meta.steps] == [
        (s.start_ns, s.end_ns) for s in recorded.meta.steps
    ]
    for name, phase in prediction.summary["phases"].items():
        spans = [s.end_ns - s.start_ns for s in recorded.meta.steps if s.phase == name]
        assert phase["step_s"] == phase["measured_s"] == phase["low_s"] == phase["high_s"]
        assert phase["step_s"] * 1e9 == pytest.approx(float(np.median(spans)), abs=1e-3)
    assert prediction.summary["anchored_share"] == 1.0


@pytest.mark.parametrize("hw", [H100, NODE, WAFER, CPU], ids=lambda hw: hw.name)
def test_native_n_a_changes_nothing_on_any_machine(recorded: Run, hw: Hardware) -> None:
    sets = ("tp=8",) if hw.gpus > 1 else ()
    model = recorded.meta.model
    assert model is not None
    plain = turned(recorded, hw, *sets).run.table()
    for value in ("native", str(model.topk)):
        assert turned(recorded, hw, f"n_a={value}", *sets).run.table().equals(plain)
    assert not turned(recorded, hw, "n_a=2", *sets).run.table().equals(plain)


# -- a better machine ----------------------------------------------------------------------------------------------
def with_rates(hw: Hardware, bandwidth: float, peak: float = 1.0) -> Hardware:
    return replace(
        hw,
        memory=replace(hw.memory, bytes_per_s=bandwidth * hw.memory.bytes_per_s),
        peaks={name: peak * value for name, value in hw.peaks.items()},
    )


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.floats(0.1, 100), min_size=2, max_size=4).map(sorted),
    sets=st.sampled_from(
        [
            (),
            ("n_a=1",),
            ("n_a=16",),
            ("batch=256", "layers=native"),
            ("context=32768",),
            ("fusion=recorded",),
        ]
    ),
)
def test_more_bandwidth_never_slows_an_unanchored_step(
    recordings: dict[str, Run], factors: list[float], sets: tuple[str, ...]
) -> None:
    run = recordings[NAMES[0]]
    predictions = [turned(run, with_rates(H100, factor), *sets) for factor in factors]
    assert {p.summary["anchored"] for p in predictions} == {"unanchored"}
    for phase in ("prefill", "decode"):
        times = [p.summary["phases"][phase]["step_s"] for p in predictions]
        assert times == sorted(times, reverse=True)
    durations = np.array([p.run.numpy("dur_ns") for p in predictions])
    assert (np.diff(durations, axis=0) <= 0).all()


def test_ten_times_the_bandwidth_helps_but_not_tenfold(recorded: Run) -> None:
    """What does not scale with bandwidth stays: fixed costs and arithmetic."""
    one, ten = step_s(recorded, H100), step_s(recorded, with_rates(H100, 10))
    assert one / 10 < ten < one
    assert step_s(recorded, with_rates(H100, 10, 10)) < ten


# -- sums ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hw", [CPU, H100], ids=lambda hw: hw.name)
def test_shares_of_an_attribution_and_its_idle_time_sum_to_one(recorded: Run, hw: Hardware) -> None:
    summary = attribute(recorded, hw).summary
    for what, steps in (
        (summary, summary["steps"]),
        *(
            (phase, [s for s in summary["steps"] if s["phase"] == name])
            for name, phase in summary["phases"].items()
        ),
    ):
        idle = sum(s["idle_s"] for s in steps) / sum(s["span_s"] for s in steps)
        for groups in ("families", "kinds", "kernels"):
            assert sum(g["share"] for g in what[groups]) + idle == pytest.approx(1.0), groups


@pytest.mark.parametrize(
    ("hw", "sets"),
    [(CPU, ()), (CPU, ("n_a=2",)), (H100, ()), (NODE, ("tp=8",)), (NODE, ("ep=8",)), (WAFER, ("n_a=2",))],
    ids=lambda value: value.name if isinstance(value, Hardware) else " ".join(value) or "as recorded",
)
def test_shares_of_a_prediction_sum_to_one(recorded: Run, hw: Hardware, sets: tuple[str, ...]) -> None:
    families = turned(recorded, hw, *sets).summary["families"]
    assert sum(f["share"] for f in families) == pytest.approx(1.0)
    assert all(f["share"] >= 0 for f in families)


# -- time's origin -------------------------------------------------------------------------------------------------
def shifted(run: Run, by_ns: int) -> Run:
    """The run as if it had been recorded that much later."""
    table = run.table()
    for name in ("start_ns", "launch_ns"):
        at = table.column_names.index(name)
        moved = pc.add(table.column(name), pa.scalar(by_ns, pa.int64()))
        table = table.set_column(at, table.schema.field(name), moved)
    steps = tuple(replace(s, start_ns=s.start_ns + by_ns, end_ns=s.end_ns + by_ns) for s in run.meta.steps)
    return Run(replace(run.meta, steps=steps), table, run.routing)


@pytest.mark.parametrize("by_ns", [-123_456_789, 1, 3_600_000_000_000])
@pytest.mark.parametrize(
    ("hw", "sets"),
    [(CPU, ()), (CPU, ("n_a=2",)), (H100, ()), (NODE, ("ep=8", "batch=64")), (WAFER, ("layers=native",))],
    ids=lambda value: value.name if isinstance(value, Hardware) else " ".join(value) or "as recorded",
)
def test_a_shift_in_time_shifts_a_prediction_and_changes_nothing_else(
    recorded: Run, hw: Hardware, sets: tuple[str, ...], by_ns: int
) -> None:
    check_shift(recorded, hw, sets, by_ns)


@pytest.mark.parametrize(
    "sets", [(), ("n_a=4", "layers=4"), ("batch=64",)], ids=lambda s: " ".join(s) or "plain"
)
def test_a_shift_in_time_changes_no_anchored_prediction(sets: tuple[str, ...]) -> None:
    run = decode_run(launch=[i * 1000 for i in range(50)])
    for hw in (H100, A100):
        check_shift(run, hw, sets, 777_777)


def check_shift(run: Run, hw: Hardware, sets: tuple[str, ...], by_ns: int) -> None:
    plain, later = turned(run, hw, *sets), turned(shifted(run, by_ns), hw, *sets)
    assert later.summary == plain.summary
    assert later.run.table().equals(shifted(plain.run, by_ns).table())
    assert later.run.meta.steps == shifted(plain.run, by_ns).meta.steps


def test_the_summary_tells_the_distinct_experts_that_were_counted(recorded: Run) -> None:
    facts = summary(recorded)
    assert recorded.routing is not None
    told = {
        (step["index"], int(layer)): count
        for step in facts["steps"]
        for layer, count in step["distinct_experts"].items()
    }
    assert told == recorded.routing.distinct()
    lines = [
        block for block in parse_report(facts) if isinstance(block, str) and block.startswith("decode: ")
    ]
    assert len(lines) == 1 and "distinct experts counted per layer" in lines[0]
