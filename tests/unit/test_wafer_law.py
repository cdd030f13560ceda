"""The wafer law: sweeps, placement of experts, and the published speeds it must be near."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import ProfileError
from moetrace.hardware import load_hardware
from moetrace.machines import wafer
from moetrace.op import Costs, Op, Work, Works

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


def price(work: Work, placement: str = "spread", kind: str = "moe_experts", model: float = MODEL) -> Costs:
    return wafer.cost(
        Works.of([Op.of(kind)], [work]),
        ["experts"],
        CS3,
        model_bytes=model,
        layers=LAYERS,
        placement=placement,
    )


def test_one_sweep_of_a_full_wafer_takes_2_1_us() -> None:
    layer = MODEL / LAYERS
    costs = price(Work(weight_bytes=layer, weight_bytes_min=layer, resident_bytes=layer), kind="gemm")
    assert costs.memory_s[0] == pytest.approx(44e9 / 21e15) == pytest.approx(2.1e-6, rel=0.01)


def test_multiply_adds_of_one_token_take_2_8_us_per_full_region() -> None:
    layer = MODEL / LAYERS
    costs = price(Work(flops=layer, resident_bytes=layer), kind="gemm")  # 2 bytes and 2 FLOPs per parameter
    assert costs.compute_s[0] == pytest.approx(2.8e-6, rel=0.01)


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


def test_a_layer_lands_where_published_speeds_put_it() -> None:
    """6-17.4 us per layer whatever its bytes: dense and MoE layers of a model that fills the wafer."""
    share = MODEL / LAYERS
    one = Work(weight_bytes=share / 5, resident_bytes=share / 5, flops=share / 5)
    dense = ["qkv_proj", "attention", "o_proj", "dense_gate_up", "dense_down", "norm", "norm"]
    moe = [
        "qkv_proj",
        "attention",
        "o_proj",
        "norm",
        "norm",
        "router",
        "topk",
        "moe_align",
        "moe_gate_up",
        "moe_down",
        "moe_combine",
    ]
    family = {
        "norm": "norm",
        "attention": "attention",
        "topk": "routing",
        "router": "routing",
        "moe_align": "routing",
    }
    for kinds in (dense, moe):
        works = [
            one if kind in ("qkv_proj", "o_proj", "dense_gate_up", "dense_down") else Work() for kind in kinds
        ]
        columns = Works.of([Op.of(k) for k in kinds], works)
        families = [family.get(op.kind, "dense_gemm") for op in columns.ops.types]
        costs = wafer.cost(columns, families, CS3, model_bytes=MODEL, layers=LAYERS)
        assert 6e-6 < costs.expected_s.sum() < 17.4e-6
        assert np.all(costs.error >= 1.0)


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
    assert quick.memory_s[0] == pytest.approx(slow.memory_s[0] / factor)
    assert quick.compute_s[0] == pytest.approx(slow.compute_s[0] / factor)
    assert (quick.fixed_s[0], quick.network_s[0]) == (slow.fixed_s[0], slow.network_s[0])


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
