"""The wafer law: sweeps, placement of experts, and the published speeds it must be near."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.attribute import attribute
from moetrace.errors import ProfileError
from moetrace.hardware import Hardware, load_hardware
from moetrace.machines import wafer
from moetrace.model import load_model
from moetrace.op import PARTS, Costs, Op, Work, Works
from moetrace.replay import Scenario, simulate
from moetrace.synthesize import Workload
from moetrace.validate import entries
from moetrace.validate.figure import shipped

CS3 = load_hardware("cs3")
LAYERS, MODEL = 24, 44e9


def experts(distinct: float, rows: float, resident: float = 1e9, n_e: int = 32) -> Work:
    touched = resident * distinct / n_e
    return Work(
        flops=rows * resident / n_e,
        weight_bytes=touched,
        weight_bytes_min=touched,
        resident_bytes=resident,
        experts=distinct,
        rows=rows,
    )


def price(
    work: Work,
    placement: str = "spread",
    kind: str = "moe_experts",
    model: float = MODEL,
    family: str = "experts",
    hw: Hardware = CS3,
) -> Costs:
    return wafer.cost(
        Works.of([Op.of(kind)], [work]),
        [family],
        hw,
        model_bytes=model,
        layers=LAYERS,
        placement=placement,
    )


def test_one_sweep_of_a_full_wafer_takes_2_1_us() -> None:
    layer = MODEL / LAYERS
    costs = price(Work(weight_bytes=layer, weight_bytes_min=layer, resident_bytes=layer), kind="gemm")
    assert costs.memory_s[0] == pytest.approx(44e9 / 21e15) == pytest.approx(2.1e-6, rel=0.01)


ETA = CS3.families["experts"]["eta_flops"]


def test_multiply_adds_of_one_token_take_2_8_us_per_full_region_at_peak() -> None:
    layer = MODEL / LAYERS
    costs = price(Work(flops=layer, resident_bytes=layer), kind="gemm")  # 2 bytes and 2 FLOPs per parameter
    assert costs.compute_s[0] == pytest.approx(2.8e-6 / ETA, rel=0.01)


def test_a_matrix_runs_on_the_cores_that_hold_it_and_takes_a_sweep_whatever_its_size() -> None:
    costs = [price(Work(flops=size, resident_bytes=size), kind="gemm") for size in (1e7, 1e9)]
    assert costs[0].compute_s[0] == pytest.approx(costs[1].compute_s[0])
    whole = price(Work(flops=1e9, resident_bytes=1e9), "whole", kind="gemm")
    assert whole.compute_s[0] == pytest.approx(costs[1].compute_s[0] * 1e9 / MODEL)


def test_cores_that_the_model_leaves_free_go_where_the_work_is() -> None:
    works = Works.of([Op.of("qkv_proj")], [Work(flops=1e8, resident_bytes=1e8)])

    def seconds(model_bytes: float, token_flops: float) -> float:
        costs = wafer.cost(
            works, ["dense_gemm"], CS3, model_bytes=model_bytes, layers=LAYERS, token_flops=token_flops
        )
        return float(costs.compute_s[0])

    assert seconds(22e9, 1e9) < seconds(22e9, 0) == pytest.approx(seconds(22e9, 22e9))
    assert seconds(44e9, 1e9) == pytest.approx(seconds(44e9, 0))  # nothing is free


@pytest.mark.parametrize("placement", ["spread", "own"])
def test_tokens_follow_each_other_through_the_machine(placement: str) -> None:
    def total(tokens: int) -> tuple[float, float]:
        op = Op.of("gemm", m=tokens, n=4096, k=4096)
        works = Works.of([op], [Work(flops=tokens * 1e9, resident_bytes=1e9)])
        costs = wafer.cost(works, ["dense_gemm"], CS3, model_bytes=MODEL, layers=LAYERS, placement=placement)
        return float(costs.expected_s[0]), float(costs.fixed_s[0])

    (one, fixed), (two, _), (three, same) = total(1), total(2), total(3)
    assert three - two == pytest.approx(two - one) == pytest.approx(1e9 / (ETA * CS3.peak("bf16")))
    assert fixed == same and two < 2 * one


def test_more_cores_in_use_make_a_reduction_longer() -> None:
    """WaferLLM's decode is slower on more cores: each adds a hop."""
    assert CS3.wafer is not None
    hop = CS3.wafer.hop_s
    small, big = (price(Work(), kind="norm", model=size).fixed_s[0] for size in (44e9, 4 * 44e9))
    side = (CS3.wafer.cores / LAYERS) ** 0.5
    assert big - small == pytest.approx(hop * 2 * side)


@pytest.mark.parametrize("family", ["norm", "experts", "elementwise"])
@pytest.mark.parametrize("placement", wafer.PLACEMENTS)
def test_half_the_fixed_times_are_half_of_what_is_fixed(family: str, placement: str) -> None:
    """Whatever they come to: no op stops crossing the mesh because its time fell."""
    assert CS3.wafer is not None
    families = {k: f.with_fixed_times(0.5) for k, f in CS3.families.items()}
    half = replace(CS3, families=families, wafer=CS3.wafer.with_fixed_times(0.5))
    whole, less = (price(Work(), placement, "add", family=family, hw=hw).fixed_s[0] for hw in (CS3, half))
    assert less == pytest.approx(whole / 2)
    assert whole > 1.1e-6 or family == "elementwise"  # which crosses nothing


def test_spread_experts_follow_the_touched_share() -> None:
    four, eight = price(experts(4, 4)), price(experts(8, 8))
    assert eight.memory_s[0] == pytest.approx(2 * four.memory_s[0]) and eight.compute_s[0] == pytest.approx(
        2 * four.compute_s[0]
    )


def test_experts_on_their_own_cores_do_not_feel_n_a() -> None:
    costs = [price(experts(n, n), "own").expected_s[0] for n in (2, 4, 8)]
    assert costs[0] == pytest.approx(costs[1]) == pytest.approx(costs[2])
    assert price(experts(4, 4), "own").expected_s[0] >= price(experts(4, 4), "spread").expected_s[0]
    assert price(experts(4, 8), "own").compute_s[0] == pytest.approx(
        2 * price(experts(4, 4), "own").compute_s[0]
    )


@pytest.mark.parametrize(
    ("model", "speed"), [("llama-3.1-8b", 1825), ("llama-3.1-70b", 448), ("gpt-oss-120b", 1844)]
)
def test_published_speeds_lie_in_the_interval(model: str, speed: float) -> None:
    """Tokens/s of one sequence on CS-3, of rows taken to have drafted none (moetrace/validate/published.csv)."""
    found = simulate(load_model(model), Workload(1, 1000, 50), CS3).summary["metrics"]["user_speed"]
    assert found["low"] < speed < found["high"]
    assert found["value"] == pytest.approx(speed, rel=0.21)


def test_wafers_and_their_crossings() -> None:
    assert [wafer.wafers(CS3, size) for size in (1.0, 44e9, 45e9, 140e9)] == [1, 1, 2, 4]
    assert wafer.crossings_s(CS3, 1) == 0.0
    assert wafer.crossings_s(CS3, 4) == pytest.approx(15e-6)
    assert wafer.crossings_s(CS3, 2, 150e3) == pytest.approx(6e-6)


@given(
    st.floats(1, 32),
    st.floats(0, 1e4),
    st.floats(1e6, 40e9),
    st.sampled_from(wafer.PLACEMENTS),
    st.floats(0, 1e9),
    st.floats(1, 10),
)
def test_bounds_and_monotony(
    distinct: float, rows: float, resident: float, placement: str, act: float, factor: float
) -> None:
    work = replace(experts(distinct, rows, resident), act_write_bytes=act, kv_read_bytes=act)
    works = Works.of([Op.of("moe_down")], [work])
    fast = replace(
        CS3,
        memory=replace(CS3.memory, bytes_per_s=CS3.memory.bytes_per_s * factor),
        peaks={name: value * factor for name, value in CS3.peaks.items()},
    )
    slow, quick = (
        wafer.cost(works, ["experts"], hw, model_bytes=MODEL, layers=LAYERS, placement=placement)
        for hw in (CS3, fast)
    )
    assert slow.lower_bound_s[0] <= slow.expected_s[0]
    assert quick.expected_s[0] <= slow.expected_s[0]
    assert quick.fixed_s[0] == slow.fixed_s[0]
    for costs in (slow, quick):
        assert sum(getattr(costs, part)[0] for part in PARTS) == pytest.approx(costs.expected_s[0])
    if (
        slow.network_s[0] == 0 and quick.network_s[0] == 0
    ):  # what is sent hides behind the rest, or nothing is
        assert quick.memory_s[0] == pytest.approx(slow.memory_s[0] / factor)
        assert quick.compute_s[0] == pytest.approx(slow.compute_s[0] / factor)


def test_what_it_cannot_do_without() -> None:
    works = Works.of([Op.of("gemm")], [Work(flops=1.0)])
    with pytest.raises(ProfileError, match="needs the model's bytes"):
        wafer.cost(works, ["dense_gemm"], CS3, model_bytes=0, layers=1)
    with pytest.raises(ProfileError, match="needs the model's layers"):
        wafer.cost(works, ["dense_gemm"], CS3, model_bytes=1e9, layers=0)
    with pytest.raises(ProfileError, match="unknown placement 'nearby'"):
        wafer.cost(works, ["dense_gemm"], CS3, model_bytes=1e9, layers=1, placement="nearby")
    with pytest.raises(ProfileError, match="not wafer"):
        wafer.crossings_s(load_hardware("h100-sxm"), 2)


@given(st.integers(1, 4096))
def test_many_tokens_over_the_whole_mesh_pass_tiles_on_step_by_step(tokens: int) -> None:
    """A step for each token more, at most as many as a side has cores; none where tokens follow each other in a pipeline."""
    assert CS3.wafer is not None and CS3.wafer.shift_s > 0
    no_steps = replace(CS3, wafer=replace(CS3.wafer, shift_s=0.0))
    work = Works.of(
        [Op.of("qkv_proj", m=tokens)], [Work(flops=1e9 * tokens, resident_bytes=1e8, weight_bytes=1e8)]
    )

    def seconds(hw: Hardware, placement: str) -> float:
        costs = wafer.cost(work, ["dense_gemm"], hw, model_bytes=MODEL, layers=LAYERS, placement=placement)
        return float(costs.expected_s[0])

    steps = (seconds(CS3, "whole") - seconds(no_steps, "whole")) / CS3.wafer.shift_s
    assert steps == pytest.approx(min(tokens - 1, CS3.wafer.cores**0.5), rel=1e-6, abs=1e-6)
    assert seconds(CS3, "spread") == seconds(no_steps, "spread")


def test_wafer_llms_prefill_is_within_a_tenth() -> None:
    rows = [f for f in shipped() if f.kind == "WLM3" and f.hw == "WSE-2"]
    found = [entry for entry in entries(rows) if entry.error is not None]
    assert len(found) == 6 and all(abs(entry.error or 1.0) < 0.1 and entry.within for entry in found)


def test_parts_add_up_to_what_an_op_takes_and_what_the_longest_hides_takes_nothing() -> None:
    work = Work(
        flops=1e9, weight_bytes=1e6, weight_bytes_min=1e6, resident_bytes=1e9, act_write_bytes=1e3, launches=1
    )
    costs = price(work, kind="gemm", family="dense_gemm")
    parts = [getattr(costs, part)[0] for part in PARTS]
    assert sum(parts) == pytest.approx(costs.expected_s[0])
    assert costs.memory_s[0] == costs.network_s[0] == 0 < costs.compute_s[0] and costs.fixed_s[0] > 0


def test_halving_what_is_fixed_saves_half_of_what_is_shown_as_fixed() -> None:
    found = simulate(load_model("olmoe-1b-7b"), Workload(2, 300, 4), CS3)
    decode = attribute(found.run).summary["phases"]["decode"]
    saved = {row["what"]: row["saves_s"] for row in decode["halving"]}
    assert saved["fixed cost per op"] == pytest.approx(
        sum(f["fixed_s"] for f in decode["families"]) / 2, rel=1e-3
    )
    assert saved["memory bandwidth"] <= sum(f["memory_s"] for f in decode["families"]) / 2 * 1.001
    prefill = attribute(found.run).summary["phases"]["prefill"]
    network = sum(f["network_s"] for f in prefill["families"])
    rows = {row["what"]: row["saves_s"] for row in prefill["halving"]}
    assert 0 < rows["fabric bandwidth"] <= network / 2 * 1.001


def test_prompts_over_the_whole_mesh_were_seen_up_to_4096_tokens() -> None:
    def told(placement: str, prompt: int) -> str:
        scenario = Scenario.of(f"placement={placement}")
        return str(
            simulate(load_model("llama-3-8b"), Workload(1, prompt, 1), CS3, scenario).summary["beyond_fit"]
        )

    assert told("whole", 4096) == ""
    assert "m above 4096" in told("whole", 5000)
    assert "dense_gemm m above 1" in told("spread", 4096)


def test_two_models_fill_a_part_each_that_holds_them() -> None:
    for own, other, wanted in ((30e9, 10e9, 0.5), (10e9, 30e9, 0.9), (20e9, 20e9, 0.5), (80e9, 1e9, 0.1)):
        count = wafer.wafers(CS3, own + other)
        room = count * CS3.memory.capacity_bytes
        one, two = wafer.part_of(CS3, own, other, wanted), wafer.part_of(CS3, other, own, 1 - wanted)
        assert one + two == pytest.approx(1) and one * room >= own * 0.999 and two * room >= other * 0.999
    assert wafer.part_of(CS3, 1e9, 0.0, 0.3) == 1
