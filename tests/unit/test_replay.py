"""Replay as a whole: exact where nothing changes, anchored where it may be, and its summary adds up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from moetrace import ops as work_of
from moetrace.cost import PriceContext
from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.replay import Prediction, Scenario, replay, scenarios
from moetrace.replay.anchor import price_ops
from moetrace.run import Run, Step
from tests.made import decode_trace, write
from tests.unit.replay_runs import H100, build, decode_run, olmoe, span_ns

A100 = load_hardware("a100-sxm")
NODE = load_hardware("h100-sxm-x8")
WAFER = load_hardware("cs3")


@pytest.fixture(scope="module")
def run() -> Run:
    return decode_run(steps=3)


def turned(run: Run, hw: Hardware, *sets: str) -> Prediction:
    return replay(run, hw, Scenario.of(*sets))


def decode_s(run: Run, hw: Hardware, *sets: str) -> float:
    return float(turned(run, hw, *sets).summary["phases"]["decode"]["step_s"])


def seconds(text: str, hw: Hardware) -> float:
    return float(price_ops([Op.parse(text)], hw, PriceContext()).expected_s[0])


def one_op(text: str, dur: int, tokens: int = 8) -> Run:
    return build([(0, 0, text, 1000, dur)], [Step(0, "decode 0", "decode", 1000, 1000 + dur, tokens, tokens)])


# -- identity ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sets", [(), ("n_a=native",), ("n_a=8",), ("batch=16",), ("layers=2",), ("dtype=bf16",)]
)
def test_its_own_machine_and_nothing_changed_give_the_recording_back(run: Run, sets: tuple[str, ...]) -> None:
    prediction = turned(run, H100, *sets)
    for column in (
        "rank",
        "step",
        "phase",
        "layer",
        "kernel",
        "op",
        "start_ns",
        "dur_ns",
        "flops",
        "weight_bytes",
    ):
        assert prediction.run.column(column).to_pylist() == run.column(column).to_pylist(), column
    assert span_ns(prediction.run) == span_ns(run)
    phase = prediction.summary["phases"]["decode"]
    assert phase["step_s"] == phase["low_s"] == phase["high_s"] == phase["measured_s"]
    assert prediction.summary["anchored"] == "anchored"
    assert prediction.summary["anchored_share"] == 1.0


def test_ops_of_unknown_work_do_not_break_identity(run: Run) -> None:
    assert not all(work_of.work(op).known for op in run.distinct_ops[1])
    assert turned(run, H100).summary["phases"]["decode"]["step_s"] * 1e9 == pytest.approx(
        np.median(span_ns(run)), abs=0
    )


def test_a_prediction_is_a_run_that_can_be_saved(run: Run, tmp_path: object) -> None:
    prediction = turned(run, A100, "n_a=4")
    saved = prediction.run.save(tmp_path / "run")  # type: ignore[operator]
    assert saved.meta.kind == "predicted"
    assert (saved.meta.hardware, saved.meta.device_class) == ("a100-sxm", "gpu")
    assert saved.table().equals(prediction.run.table())
    assert tuple(saved.meta.notes) == tuple(prediction.summary["assumptions"])
    assert saved.column("error").null_count < saved.num_rows
    assert json.loads(json.dumps(prediction.summary)) == prediction.summary


def test_a_step_of_a_prediction_spans_its_ops(run: Run) -> None:
    predicted = turned(run, A100, "batch=64", "layers=4").run
    start, dur, step = (predicted.numpy(n) for n in ("start_ns", "dur_ns", "step"))
    for i, s in enumerate(predicted.meta.steps):
        assert s.start_ns == start[step == i].min()
        assert s.end_ns == (start + dur)[step == i].max()
    assert (np.diff(start) >= 0).all()


# -- anchoring -----------------------------------------------------------------------------------------------------
def test_anchored_is_measured_times_the_ratio_of_two_models() -> None:
    text = "dense_gate_up bf16 m=8 n=8192 k=4096"
    dur = turned(one_op(text, 50_000), A100).run.numpy("dur_ns")[0]
    assert dur == round(50_000 * seconds(text, A100) / seconds(text, H100))


def test_one_token_is_anchored_by_addition_and_never_below_the_lower_bound() -> None:
    text = "dense_gate_up bf16 m=1 n=8192 k=4096"
    prediction = turned(one_op(text, 50_000, 1), A100)
    assert prediction.run.numpy("dur_ns")[0] == round(
        50_000 + 1e9 * (seconds(text, A100) - seconds(text, H100))
    )
    low = turned(one_op(text, 10, 1), H100, "dtype=fp8")
    bound = price_ops([Op.parse(text.replace("bf16", "fp8"))], H100, PriceContext()).lower_bound_s[0]
    assert low.run.numpy("dur_ns")[0] == round(1e9 * bound)


def test_an_edit_on_the_same_machine_touches_only_what_it_edits(run: Run) -> None:
    before, after = run.to_pandas(), turned(run, H100, "n_a=4").run.to_pandas()
    changed = set(after["kind"][before["dur_ns"].to_numpy() != after["dur_ns"].to_numpy()])
    assert (
        {"moe_gate_up", "moe_down"}
        <= changed
        <= {"moe_gate_up", "moe_down", "moe_act", "moe_combine", "topk"}
    )


def test_another_class_of_device_is_never_anchored() -> None:
    on_cpu = decode_run(hardware="cpu", device_class="cpu", device="CPU")
    for hw in (H100, WAFER):
        prediction = turned(on_cpu, hw)
        assert prediction.summary["anchored"] == "unanchored"
        assert prediction.summary["anchored_share"] == 0.0
        assert any("unanchored" in a for a in prediction.summary["assumptions"])
    slower = decode_run(hardware="cpu", device_class="cpu", device="CPU")
    faster = Run(slower.meta, slower.table().set_column(11, "dur_ns", pc.divide(slower.column("dur_ns"), 2)))
    assert decode_s(slower, H100) == decode_s(faster, H100)


def test_a_gpu_without_a_profile_anchors_nothing() -> None:
    prediction = turned(decode_run(hardware=None), H100)
    assert prediction.summary["anchored"] == "unanchored"


def test_unanchored_ops_take_the_laws_time_and_follow_one_another() -> None:
    text = "dense_gate_up bf16 m=8 n=8192 k=4096"
    prediction = turned(
        build(
            [(0, 0, text, 1000, 9), (0, 0, text, 5000, 9)],
            [Step(0, "d", "decode", 1000, 5009, 8, 8)],
            hardware=None,
        ),
        H100,
    )
    each = round(1e9 * seconds(text, H100))
    assert prediction.run.numpy("dur_ns").tolist() == [each, each]
    assert span_ns(prediction.run) == [2 * each]


def test_ops_of_unknown_work_are_kept_within_a_class_and_counted_elsewhere(run: Run) -> None:
    same_class = turned(run, A100)
    frame = same_class.run.to_pandas()
    unknown = frame[frame["op"] == "elementwise bf16"]
    assert set(unknown["provenance"]) == {"measured, not modelled"} and (unknown["error"] == 1.0).all()
    assert any("kept as measured" in a for a in same_class.summary["assumptions"])
    elsewhere = turned(decode_run(hardware=None), H100)
    frame = elsewhere.run.to_pandas()
    assert set(frame[frame["op"] == "elementwise bf16"]["provenance"]) == {"not priced"}
    assert any("count as nothing" in a for a in elsewhere.summary["assumptions"])


def test_rows_outside_of_every_step_are_dropped_and_said() -> None:
    text = "dense_gate_up bf16 m=8 n=8192 k=4096"
    run = build(
        [(0, 0, text, 1000, 500), (-1, 0, text, 9000, 500)], [Step(0, "d", "decode", 1000, 1500, 8, 8)]
    )
    prediction = turned(run, H100)
    assert prediction.run.num_rows == 1
    assert any("1 op(s) outside" in a for a in prediction.summary["assumptions"])


def test_a_run_without_steps_cannot_be_replayed() -> None:
    run = build([(-1, 0, "norm bf16 tokens=1 width=8", 0, 5)], [Step(0, "d", "decode", 0, 5, 1, 1)])
    with pytest.raises(ScenarioError, match="no op inside a step"):
        turned(run, H100)


# -- sense ---------------------------------------------------------------------------------------------------------
def test_fewer_active_experts_are_never_slower_and_save_less_than_in_proportion(run: Run) -> None:
    times = [decode_s(run, H100, f"n_a={k}") for k in (8, 6, 4, 2, 1)]
    assert times == sorted(times, reverse=True) and times[-1] < times[0]
    assert times[2] > times[0] / 2


def test_more_layers_more_batch_more_context_take_longer(run: Run) -> None:
    base = decode_s(run, H100)
    assert decode_s(run, H100, "layers=native") > 6 * base
    assert decode_s(run, H100, "batch=256") > base
    assert decode_s(run, H100, "context=32768") > base


def test_tp_on_a_node_is_faster_for_a_big_batch_and_counts_its_all_reduces(run: Run) -> None:
    one = turned(run, H100, "batch=512", "context=8192")
    eight = turned(run, NODE, "batch=512", "context=8192", "tp=8")
    assert (
        decode_s(run, NODE, "batch=512", "context=8192", "tp=8") < one.summary["phases"]["decode"]["step_s"]
    )
    families = {f["family"]: f for f in eight.summary["families"]}
    assert families["communication"]["step_s"] > 0
    assert eight.summary["anchored"] == "partly" and 0 < eight.summary["anchored_share"] < 1
    assert eight.summary["memory"]["capacity_bytes"] == 8 * H100.memory.capacity_bytes


def test_placement_decides_what_n_a_does_on_a_wafer(run: Run) -> None:
    pairs = scenarios(["n_a=8,1", "layers=native"], [WAFER], run)
    time = {s.label: replay(run, hw, s).summary["phases"]["decode"]["step_s"] for hw, s in pairs}
    spread, own = (
        time[f"layers=native n_a=1 placement={p}"] / time[f"layers=native n_a=8 placement={p}"]
        for p in ("spread", "own")
    )
    assert spread < own <= 1.0


def test_a_model_too_big_for_one_wafer_needs_several_and_crosses_between_them(run: Run) -> None:
    small = turned(run, WAFER, "layers=native").summary
    assert small["wafers"] == 1 and small["memory"]["fits"] is True
    tight = replace(WAFER, memory=replace(WAFER.memory, capacity_bytes=5e9))
    several = turned(run, tight, "layers=native").summary
    assert several["wafers"] == 3 and several["memory"]["fits"] is False
    network = {f["family"]: f for f in several["families"]}["communication"]
    assert network["step_s"] >= 2 * 5e-6


def test_each_step_crosses_between_wafers_with_its_own_tokens() -> None:
    rows = [
        (step, 0, f"norm bf16 tokens={n} width=2048", 1000 * (step + 1), 500)
        for step, n in enumerate((4096, 16))
    ]
    steps = [
        Step(0, "prefill 0", "prefill", 1000, 1500, 16, 4096, 4096),
        Step(1, "decode 1", "decode", 2000, 2500, 16, 16, 4112),
    ]
    run = build(rows, steps, model=olmoe(16))
    two = replace(WAFER, memory=replace(WAFER.memory, capacity_bytes=8e9))
    found = turned(run, two)
    assert found.summary["wafers"] == 2 and two.wafer is not None
    between = np.array(span_ns(found.run)) - found.run.numpy("dur_ns")
    sent = [tokens * 2048 * 2 / two.wafer.off_wafer_bytes_per_s for tokens in (4096, 16)]
    assert between.tolist() == pytest.approx([1e9 * (two.wafer.crossing_s + s) for s in sent], abs=1)
    network = {f["family"]: f for f in found.summary["families"]}["communication"]
    assert network["step_s"] == pytest.approx(
        two.wafer.crossing_s + 16 * 4096 / two.wafer.off_wafer_bytes_per_s, rel=1e-3
    )


def test_a_wafer_says_that_one_step_is_on_its_way_at_a_time(run: Run) -> None:
    said = "the tokens of a step follow each other"
    assert any(said in text for text in turned(run, WAFER).summary["assumptions"])
    assert not any(said in text for text in turned(run, A100).summary["assumptions"])


def test_what_only_the_recordings_engine_runs_is_said_by_its_share() -> None:
    rows = [
        (0, 0, "qkv_proj bf16 m=16 n=3072 k=2048", 1000, 500),
        (0, 0, "qkv_proj bf16 m=4112 n=4096 k=512", 2000, 500),
        (0, 0, "elementwise fp32 elements=8388608 fixed=1", 3000, 500),
    ]
    step = Step(0, "decode 0", "decode", 1000, 4000, 16, 16, 4112)
    fresh = build(rows[:1], [step], model=olmoe(16), hardware=None, device_class="cpu")
    whole = build(rows, [step], model=olmoe(16), hardware=None, device_class="cpu")
    anew, small = "projections of far more rows than the step has tokens", "other elementwise kernels"

    def said(run: Run, hw: Hardware) -> str:
        return " ".join(turned(run, hw).summary["assumptions"])

    assert anew in said(whole, WAFER) and small in said(whole, WAFER)
    assert anew in said(whole, H100) and small not in said(whole, H100)
    assert anew not in said(fresh, WAFER) and small not in said(fresh, WAFER)


def test_a_type_without_a_fit_of_its_own_is_wider_and_said(run: Run) -> None:
    plain, narrow = (turned(run, A100, f"dtype={d}").summary for d in ("bf16", "mxfp8"))
    widths = [p["phases"]["decode"]["high_s"] / p["phases"]["decode"]["low_s"] for p in (plain, narrow)]
    assert widths[1] > 1.3 * widths[0]
    words = "a100-sxm has no coefficients for mxfp8 dense_gemm, mxfp8 experts: those of 16-bit kernels"
    assert any(words in text for text in narrow["assumptions"])
    assert not any("no coefficients" in text for text in plain["assumptions"])
    # B200's profile says what MXFP8 modules err by there, of its GEMMs nothing.
    said = [
        text
        for text in turned(run, load_hardware("b200"), "dtype=mxfp8").summary["assumptions"]
        if "no coef" in text
    ]
    assert [text.partition("of a factor of ")[2] for text in said] == ["1.55 more", "two more"]
    assert "mxfp8 experts:" in said[0] and "mxfp8 dense_gemm:" in said[1]


def test_memory_counts_weights_cache_and_framework(run: Run) -> None:
    model = run.meta.model
    assert model is not None
    kv = 16 * 258 * sum(model.kv_bytes_per_token(i) for i in range(2))
    assert turned(run, H100).summary["memory"]["needed_bytes"] == pytest.approx(
        model.weight_bytes() + kv + 3e9
    )
    assert turned(run, H100, "batch=4096", "context=65536").summary["memory"]["fits"] is False
    unknown = decode_run(model=None)
    assert turned(unknown, H100).summary["memory"] == {
        "weight_bytes": None, "kv_bytes": None, "framework_bytes": None,
        "needed_bytes": None, "capacity_bytes": 80e9, "fits": None, "rank": {},
        "rank_capacity_bytes": 80e9, "largest_batch": None,
    }  # fmt: skip


# -- summary -------------------------------------------------------------------------------------------------------
def test_the_interval_holds_the_step_and_grows_with_the_law_alone(run: Run) -> None:
    anchored = turned(run, A100).summary["phases"]["decode"]
    alone = turned(decode_run(hardware=None, steps=3), A100).summary["phases"]["decode"]
    for phase in (anchored, alone):
        assert phase["low_s"] < phase["step_s"] < phase["high_s"]
    assert anchored["high_s"] / anchored["step_s"] < alone["high_s"] / alone["step_s"]


def test_families_add_up_to_the_busy_time_of_a_step(run: Run) -> None:
    prediction = turned(run, A100, "n_a=4")
    busy = prediction.run.numpy("dur_ns").sum() / 1e9 / 3
    assert sum(f["step_s"] for f in prediction.summary["families"]) == pytest.approx(busy)
    assert sum(f["share"] for f in prediction.summary["families"]) == pytest.approx(1.0)
    assert prediction.summary["families"][0]["family"] == "experts"


def test_rates_follow_from_the_step_time(run: Run) -> None:
    phase = turned(run, H100, "batch=64").summary["phases"]["decode"]
    assert phase["tokens_per_s"] == pytest.approx(64 / phase["step_s"])
    assert phase["tpot_s"] == phase["step_s"]
    assert phase["steps"] == 3


def test_distinct_experts_come_with_their_source(run: Run) -> None:
    assert turned(run, H100).summary["distinct"]["source"] == "counted"
    cut = turned(run, H100, "n_a=6:2").summary["distinct"]
    assert cut["source"] == "estimate from the recording" and cut["topk"] == 4.0
    assert turned(decode_run(recorded=False), H100).summary["distinct"]["source"] == "uniform formula"
    dense = one_op("dense_gate_up bf16 m=8 n=8192 k=4096", 50)
    assert turned(dense, H100).summary["distinct"] is None


def test_a_two_layer_recording_says_that_it_is_not_the_whole_model(run: Run) -> None:
    said = "2 of the model's 16 layers were recorded"
    assert any(said in a for a in turned(run, H100).summary["assumptions"])
    assert not any(said in a for a in turned(run, H100, "layers=native").summary["assumptions"])


def test_several_devices_of_one_rank_are_refused(tmp_path):
    events = decode_trace()
    kernels = [e for e in events if e["cat"] == "kernel"]
    kernels[-1]["args"]["device"] = 1
    run = parse(write(tmp_path / "t.json", events))
    with pytest.raises(ScenarioError, match=r"2 devices were recorded as 1 rank\(s\)"):
        replay(run, "h100-sxm")


@pytest.mark.parametrize(
    ("knob", "why"),
    [
        ("input_len=8", "lengths are what ran"),
        ("serving=continuous", "one load's steps"),
        ("host=5ms", "its own host's time"),
        ("draft=qwen3-0.6b", "verifies several drafted ones"),
        ("tokens_per_step=2", "verifies several drafted ones"),
    ],
)
def test_what_only_a_simulation_can_be_asked_says_why(run: Run, knob: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        replay(run, "h100-sxm", Scenario.of(knob))


def test_a_host_that_launched_the_ops_is_unsure_on_another_chips_machine() -> None:
    """A factor of two, as a launch of `graph=off` is: a step that waits for its host had an interval of no width."""
    graph = decode_run(layers=1, steps=1)
    launch = (graph.numpy("start_ns") - 3_000).tolist()
    hosted = decode_run(layers=1, steps=1, launch=launch)
    here, there = ((*replay(hosted, hw).step_s[0],) for hw in ("h100-sxm", "h200-sxm"))
    assert here[0] == here[1] == here[2]
    expected, low, high = there
    assert low < 0.8 * expected and high == pytest.approx(2 * expected, rel=0.15)
    assert expected == pytest.approx(here[0], rel=0.05)
    _, sure_low, sure_high = replay(graph, "h200-sxm").step_s[0]
    assert low < sure_low and high > sure_high  # ops' own errors are in both
