"""Attribution: what adds up, what is flagged, what waits for the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import ops
from moetrace.attribute import ATTRIBUTION_SCHEMA, attribute
from moetrace.cost import price
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.parse import summary as coverage
from moetrace.replay import Scenario, simulate
from moetrace.report import attributed, tables
from moetrace.run import Step
from moetrace.synthesize import Workload
from tests.made import decode_trace, event, write
from tests.unit.replay_runs import build

PARTS = ("memory_s", "compute_s", "network_s", "fixed_s", "unexplained_s")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    file = write(tmp_path_factory.mktemp("made") / "t.json", decode_trace(layers=3))
    return parse(file, model="qwen3-30b-a3b", kv_len=500)


@pytest.fixture(scope="module")
def result(run):
    return attribute(run, load_hardware("h100-sxm"))


def test_rows_are_those_of_the_run(run, result):
    assert result.table.schema.equals(ATTRIBUTION_SCHEMA)
    assert result.table.column("dur_ns").equals(run.column("dur_ns"))


def test_a_steps_parts_add_up_to_its_busy_time_and_busy_and_idle_to_its_span(result):
    for step in result.summary["steps"]:
        assert sum(step[part] for part in PARTS) == pytest.approx(step["busy_s"], rel=1e-9)
        assert step["busy_s"] + step["idle_s"] == pytest.approx(step["span_s"], rel=1e-9)


def test_shares_of_families_and_idle_sum_to_one(result):
    span = sum(s["span_s"] for s in result.summary["steps"])
    idle = sum(s["idle_s"] for s in result.summary["steps"])
    for groups in ("families", "kinds"):
        assert sum(f["share"] for f in result.summary[groups]) + idle / span == pytest.approx(1.0)


def test_the_lower_bound_is_below_what_is_expected(result):
    table = result.table.to_pandas()
    assert (table.lower_bound_s <= table.expected_s).all()


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1.01, 100))
def test_more_bandwidth_never_slows_an_op(run, factor):
    hw = load_hardware("h100-sxm")
    faster = replace(hw, memory=replace(hw.memory, bytes_per_s=factor * hw.memory.bytes_per_s))
    before, after = (attribute(run, h).table.column("expected_s").to_numpy() for h in (hw, faster))
    assert (after <= before).all()


def flagged(tmp_path, dur_us, elements):
    kernel = event(
        "vectorized_elementwise_kernel",
        "kernel",
        10,
        dur_us,
        tid=3,
        pid=0,
        stream=3,
        device=0,
        **{"External id": 5},
    )
    operator = event(
        "aten::neg",
        "cpu_op",
        1,
        2,
        tid=7,
        **{"External id": 5, "Input Dims": [[elements]], "Input type": ["float"]},
    )
    run = parse(write(tmp_path / "t.json", [kernel, operator]))
    return attribute(run, load_hardware("h100-sxm")).table.column("flag").to_pylist()


def test_an_op_below_its_bound_is_cache_resident_if_it_fits_the_cache_else_suspect(tmp_path):
    fits, exceeds = 1_000_000, 20_000_000  # 8 MB and 160 MB moved; the H100's L2 holds 50 MB
    bound_us = {n: 8 * n / 3.35e12 * 1e6 for n in (fits, exceeds)}
    assert flagged(tmp_path, 0.5 * bound_us[fits], fits) == ["cache-resident"]
    assert flagged(tmp_path, 0.5 * bound_us[exceeds], exceeds) == ["suspect"]
    assert flagged(tmp_path, 1.5 * bound_us[exceeds], exceeds) == [None]


def test_idle_time_before_a_late_launch_waits_for_the_host(tmp_path):
    """Two kernels, each 4 us behind its launch; the second is launched 50 us after the first has ended."""
    events = [
        event("cudaLaunchKernel", "cuda_runtime", 10, 1, tid=7, correlation=1),
        event("gemm_kernel", "kernel", 14, 10, tid=3, pid=0, stream=3, device=0, correlation=1),
        event("cudaLaunchKernel", "cuda_runtime", 74, 1, tid=7, correlation=2),
        event("gemm_kernel", "kernel", 78, 10, tid=3, pid=0, stream=3, device=0, correlation=2),
    ]
    (step,) = attribute(parse(write(tmp_path / "t.json", events)), load_hardware("h100-sxm")).summary["steps"]
    assert step["idle_s"] == pytest.approx(54e-6)
    assert step["launch_bound_s"] == pytest.approx(54e-6)
    assert step["critical"] == "launch"


def test_communication_that_overlaps_is_hidden(tmp_path):
    def kernel(name, start, dur, stream):
        return event(name, "kernel", start, dur, tid=stream, pid=0, stream=stream, device=0)

    events = [kernel("gemm_kernel", 0, 100, 3), kernel("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 60, 80, 4)]
    (step,) = attribute(parse(write(tmp_path / "t.json", events)), load_hardware("h100-sxm")).summary["steps"]
    assert step["communication_s"] == pytest.approx(80e-6)
    assert step["exposed_communication_s"] == pytest.approx(40e-6)


def test_halving_is_at_most_half(result):
    for row in result.summary["halving"]:
        assert 0 <= row["saves_share"] <= 0.5 + 1e-9
    assert result.summary["halving"] == sorted(result.summary["halving"], key=lambda r: -r["saves_s"])


def test_the_file_says_its_version_and_machine(result, tmp_path):
    result.save(tmp_path / "attribution.parquet")
    stored = pq.read_table(tmp_path / "attribution.parquet")
    assert stored.schema.metadata[b"moetrace.version"] == b"1"
    assert stored.schema.metadata[b"moetrace.hardware"] == b"h100-sxm"
    assert np.allclose(stored.column("expected_s").to_numpy(), result.table.column("expected_s").to_numpy())


# -- a better machine ----------------------------------------------------------------------------------------------
LAYER_ON_A_NODE = (
    "norm bf16 tokens=16 width=2048",
    "qkv_proj bf16 m=16 n=768 k=2048",
    "attention bf16 batch=16 heads=2 kv_heads=2 head_dim=128 kv=8192",
    "all_reduce bf16 bytes=65536 ranks=8",
    "moe_gate_up bf16 tokens=16 hidden=2048 inter=1024 experts=64 topk=8 distinct=50",
    "moe_down bf16 tokens=16 hidden=2048 inter=1024 experts=64 topk=8 distinct=50",
    "all_reduce bf16 bytes=65536 ranks=8",
    "elementwise bf16",
)
MEASURED = (
    "rank",
    "step",
    "layer",
    "op",
    "dur_ns",
    "exposed_ns",
    "gap_ns",
    "launch_ns",
    "error",
    "provenance",
)


@pytest.fixture(scope="module")
def node_run():
    rows = [(0, 0, op, 1000 + 40_000 * i, 35_000) for i, op in enumerate(LAYER_ON_A_NODE)]
    steps = [Step(0, "decode", "decode", 1000, 1000 + 40_000 * len(rows), 16, 16)]
    return build(rows, steps, hardware="h100-sxm-x8", gpus=8, tp=8)


def doubled(hw, *what):
    """The machine with some of its rates twice as high."""
    changes = {
        "memory": {"memory": replace(hw.memory, bytes_per_s=2 * hw.memory.bytes_per_s)},
        "compute": {"peaks": {name: 2 * value for name, value in hw.peaks.items()}},
        "network": {"link": replace(hw.link, bytes_per_s=2 * hw.link.bytes_per_s)},
    }
    for name in what:
        hw = replace(hw, **changes[name])
    return hw


@pytest.mark.parametrize(
    "what",
    [("memory",), ("compute",), ("network",), ("memory", "compute"), ("memory", "compute", "network")],
    ids="+".join,
)
def test_doubling_a_rate_halves_its_part_of_every_op_and_nothing_else(run, node_run, what):
    for measured, name in ((run, "h100-sxm"), (node_run, "h100-sxm-x8")):
        hw = load_hardware(name)
        before, after = (attribute(measured, h).table.to_pandas() for h in (hw, doubled(hw, *what)))
        for column in ("memory_s", "compute_s", "network_s", "fixed_s"):
            factor = 0.5 if column.removesuffix("_s") in what else 1.0
            assert np.array_equal(after[column], factor * before[column], equal_nan=True), column
        # Told by the share of the time that is memory's.
        same = [name for name in MEASURED if name != "error"]
        assert after[same].equals(before[same])
        if len(what) == 3:
            assert np.array_equal(after.lower_bound_s, before.lower_bound_s / 2, equal_nan=True)
            # Serial work may hide behind memory and arithmetic: halving these saves no more than their half.
            known = before.expected_s.notna()
            assert (after.expected_s[known] >= before.expected_s[known] / 2 * (1 - 1e-12)).all()
            assert (after.expected_s[known] <= before.expected_s[known] * (1 + 1e-12)).all()
    assert before[["memory_s", "compute_s", "network_s"]].sum().min() > 0


def test_doubling_a_rate_leaves_what_was_measured_of_a_step(run):
    hw = load_hardware("h100-sxm")
    before, after = (attribute(run, h).summary for h in (hw, doubled(hw, "memory", "compute")))
    kept = (
        "span_s", "busy_s", "idle_s", "communication_s", "exposed_communication_s", "launch_bound_s", "unpriced_s",
    )  # fmt: skip
    for one, two in zip(before["steps"], after["steps"], strict=True):
        assert [one[name] for name in kept] == [two[name] for name in kept]
        assert two["memory_s"] < one["memory_s"] and two["expected_s"] < one["expected_s"]
        assert two["unexplained_s"] > one["unexplained_s"]
    assert [(f["family"], f["busy_s"]) for f in before["families"]] == [
        (f["family"], f["busy_s"]) for f in after["families"]
    ]


# -- halving -------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(LAYER_ON_A_NODE),
    rows=st.lists(
        st.tuples(st.sampled_from(LAYER_ON_A_NODE), st.integers(0, 30_000), st.integers(0, 200_000)),
        min_size=1,
        max_size=12,
    ),
    machine=st.sampled_from(["h100-sxm-x8", "mi300x", "a100-sxm"]),
)
def test_all_rows_of_halving_together_save_at_most_half_of_the_span(op, rows, machine):
    """Whatever the law makes of the measured times, which here are any: gaps, overlaps, ops far off what is expected."""
    made, now, end = [], 1000, 0
    for text, after, dur in [(op, 0, 50_000), *rows]:
        made.append((0, 0, text, now + after, dur))
        now, end = now + after + dur // 2, max(end, now + after + dur)
    run = build(made, [Step(0, "decode", "decode", 1000, end, 16, 16)], gpus=8, tp=8)
    summary = attribute(run, load_hardware(machine)).summary
    (step,) = summary["steps"]
    saved = {row["what"]: row["saves_s"] for row in summary["halving"]}
    assert min(saved.values()) >= 0
    assert sum(saved.values()) <= step["span_s"] / 2 * (1 + 1e-9)
    explained = step["busy_s"] - step["unexplained_s"]
    resources = sum(saved[name] for name in saved if "time" not in name and "waits" not in name)
    assert resources <= explained / 2 * (1 + 1e-9) + 1e-15


def test_an_op_that_took_far_more_than_expected_saves_no_more_than_was_expected(node_run):
    """35 us of which the law explains a few: twice the bandwidth saves half of the memory part, not of the 35 us."""
    rows = [(0, 0, "norm bf16 tokens=4096 width=8192", 1000, 1_000_000)]
    run = build(rows, [Step(0, "decode", "decode", 1000, 1_001_000, 16, 16)])
    summary = attribute(run, load_hardware("h100-sxm")).summary
    saved = {row["what"]: row["saves_s"] for row in summary["halving"]}
    (step,) = summary["steps"]
    assert step["unexplained_s"] > 0.8e-3
    assert 0 < saved["memory bandwidth"] <= step["memory_s"] / 2 * (1 + 1e-9)
    assert saved["unexplained time"] == pytest.approx(step["unexplained_s"] / 2)


# -- several devices -------------------------------------------------------------------------------------------------
def on_devices(tmp_path, second=1):
    """Two GPUs, each 50 us of work and then 50 us of all-reduce; the second one begins 50 us later."""

    def kernel(name, start, device):
        return event(name, "kernel", start, 50, tid=7, pid=device, stream=7, device=device)

    reduce = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
    events = [
        kernel("nvjet_a", 100, 0), kernel(reduce, 150, 0), kernel("nvjet_a", 150, second), kernel(reduce, 200, second),
    ]  # fmt: skip
    return parse(write(tmp_path / "t.json", events))


def test_each_device_has_busy_idle_and_exposed_time_of_its_own(tmp_path):
    run = on_devices(tmp_path)
    result = attribute(run, load_hardware("h100-sxm-x8")).summary
    (step,) = result["steps"]
    assert step["span_s"] == pytest.approx(150e-6)
    for what, expected in (
        ("busy_s", 100e-6),
        ("idle_s", 50e-6),
        ("communication_s", 50e-6),
        ("exposed_communication_s", 50e-6),
    ):
        assert step[what] == pytest.approx(expected), what
        assert [d[what] for d in result["devices"]] == pytest.approx([expected] * 2), what
    assert sum(f["busy_s"] for f in result["families"]) == pytest.approx(step["busy_s"])
    assert sum(row["saves_s"] for row in result["halving"]) <= step["span_s"] / 2 * (1 + 1e-9)
    assert any(note.startswith("2 devices") for note in result["notes"])
    (facts,) = coverage(run)["steps"]
    assert facts["busy_s"] == pytest.approx(100e-6)
    text = attributed.attribute_report(result, "family", "families", None, 10)
    assert any(isinstance(b, tables.Table) and b.title.startswith("Device by device") for b in text)


def test_one_device_is_no_news(tmp_path):
    result = attribute(on_devices(tmp_path, second=0), load_hardware("h100-sxm-x8")).summary
    assert len(result["devices"]) == 1
    assert not any("devices" in note for note in result["notes"])


# -- between steps -------------------------------------------------------------------------------------------------
def test_time_between_steps_is_reported(tmp_path):
    events = []
    for i in range(3):
        events += [
            event("step[DECODE bs=1]", "user_annotation", 1000 * i, 50, tid=7),
            event("cudaLaunchKernel", "cuda_runtime", 1000 * i + 1, 1, tid=7, correlation=i),
            event("nvjet_a", "kernel", 1000 * i + 10, 100, tid=3, pid=0, stream=3, device=0, correlation=i),
        ]
    summary = attribute(parse(write(tmp_path / "t.json", events)), load_hardware("h100-sxm")).summary
    assert [s["between_steps_s"] for s in summary["steps"]] == [None, *[pytest.approx(900e-6)] * 2]
    assert summary["phases"]["decode"]["between_steps_s"] == pytest.approx(900e-6)
    assert summary["between_steps"]["share"] == pytest.approx(1800 / 2100)
    (line,) = [
        b
        for b in attributed.attribute_report(summary, "family", "families", None, 10)
        if isinstance(b, str) and b.startswith("between steps")
    ]
    assert "900.0 us" in line and "85.7 %" in line


# -- flags, layers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "dur_ns", "flag"),
    [
        ("all_gather bf16 bytes=4000000 ranks=8", 1_000, "suspect"),  # 28 MB over the links: no cache helps
        ("gemm bf16 m=4096 n=2048 k=2048", 1_000, "suspect"),  # 34 GFLOP on 33 MB, which fit
        ("elementwise bf16 elements=4000000", 1_000, "cache-resident"),
    ],
)
def test_only_a_memory_bound_can_be_beaten_by_a_cache(op, dur_ns, flag):
    run = build([(0, 0, op, 1000, dur_ns)], [Step(0, "decode", "decode", 1000, 1000 + dur_ns, 16, 16)])
    assert attribute(run, load_hardware("h100-sxm-x8")).table.column("flag").to_pylist() == [flag]


def test_a_layer_of_any_number_is_one_layer():
    """A number that no model has must cost neither time nor memory."""
    rows = [(0, layer, "gemm bf16 m=16 n=64 k=64", 1000 + i, 1) for i, layer in enumerate((0, 2_000_000_000))]
    run = build(rows, [Step(0, "decode", "decode", 1000, 1002, 16, 16)])
    layers = attribute(run, load_hardware("h100-sxm")).summary["layers"]
    assert [row["layer"] for row in layers] == [0, 2_000_000_000]


def test_the_critical_resource_is_said_only_of_the_machine_it_ran_on(run):
    elsewhere = run.with_meta(hardware="mi300x")
    for step in attribute(elsewhere, load_hardware("h100-sxm")).summary["steps"]:
        assert step["critical"] is None
    for step in attribute(elsewhere, load_hardware("mi300x")).summary["steps"]:
        assert step["critical"] in {"memory", "compute", "network", "fixed", "unexplained", "launch", "idle"}


def test_a_predicted_run_holds_no_time_that_its_own_engines_law_does_not_explain():
    """Of an engine's coefficients the others explain up to half."""
    model, load = load_model("olmoe-1b-7b"), Workload(batch=8, input_len=64, output_len=4)
    predicted = simulate(model, load, "h100-sxm-x16", Scenario.of("engine=sglang", "dp=16", "ep=16")).run
    rows = attribute(predicted, load_hardware("h100-sxm-x16")).table.to_pandas()
    assert rows["provenance"].str.contains("@sglang").any()
    assert np.allclose(rows["dur_ns"] / 1e9, rows["expected_s"], rtol=1e-3)


def test_halving_the_network_counts_what_lies_between_nodes_too():
    op = "all_to_all bf16 ranks=16 bytes=64000000"
    hw = load_hardware("h100-sxm-x16")
    expected = price(ops.works([Op.parse(op)]), hw)[0]
    whole = round(expected.expected_s * 1e9)
    run = build([(0, 0, op, 0, whole)], [Step(0, "decode", "decode", 0, whole, 16, 16)], gpus=16, ep=16)
    saved = {row["what"]: row["saves_s"] for row in attribute(run, hw).summary["halving"]}
    assert expected.network_s > 0.8 * expected.expected_s
    assert saved["network bandwidth"] == pytest.approx(expected.network_s / 2, rel=1e-3)
