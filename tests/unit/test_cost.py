"""price: the right law for each machine, and one cost per op in the order given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetrace import ops
from moetrace.cost import PriceContext, price
from moetrace.cost.beyond import beyond
from moetrace.errors import ProfileError
from moetrace.hardware import load_hardware
from moetrace.op import UNKNOWN, Op, Work, Works

OPS = [Op.of("gemm", m=1, n=4096, k=4096), Op.of("norm", tokens=1, width=4096), Op.of("gemm")]
WORKS = Works.of(
    OPS,
    [
        Work(flops=2 * 4096**2, weight_bytes=2.0 * 4096**2, weight_bytes_min=2.0 * 4096**2),
        Work(act_read_bytes=8192),
        UNKNOWN,
    ],
)
CONTEXT = PriceContext(model_bytes=40e9, layers=24)


@pytest.mark.parametrize("name", ["h100-sxm", "h100-sxm-x8", "cpu", "cs3"])
def test_each_law_prices_each_op(name: str) -> None:
    costs = price(WORKS, load_hardware(name), context=CONTEXT)
    assert len(costs) == 3 and np.isnan(costs.expected_s).tolist() == [False, False, True]
    assert costs[0].lower_bound_s <= costs[0].expected_s and name in costs.provenance[0]


def test_a_node_prices_like_its_base() -> None:
    one, node = (price(WORKS, load_hardware(n)) for n in ("h100-sxm", "h100-sxm-x8"))
    assert np.array_equal(one.expected_s, node.expected_s, equal_nan=True)


def test_a_small_gemm_is_near_what_is_measured() -> None:
    """1 x 4096 x 4096 in bf16 takes 12-16 us on an H100 in public tables."""
    costs = price(WORKS, load_hardware("h100-sxm"))
    assert 10e-6 < costs.expected_s[0] < 20e-6
    assert costs[0].bound == "memory"


def test_a_wafer_needs_to_know_the_model() -> None:
    with pytest.raises(ProfileError, match="needs the model's layers"):
        price(WORKS, load_hardware("cs3"))


ABSORBED = ["qkv_proj bf16 m=16 n=512 k=128 b=16", "o_proj bf16 m=16 n=128 k=512 b=16"]


def test_absorbed_projections_take_coefficients_of_batched_gemms_where_there_are_any() -> None:
    """Of the engine, else of all; else a dense GEMM's, and provenance says so. A wafer knows no such kernel."""
    works = ops.works([Op.parse(text) for text in (*ABSORBED, "o_proj bf16 m=16 n=128 k=512")])
    hw = load_hardware("h100-sxm")
    names = ["h100-sxm fitted batched_gemm@sglang"] * 2 + ["h100-sxm fitted dense_gemm@sglang"]
    assert list(price(works, hw, context=PriceContext(engine="sglang")).provenance) == names
    lacking = replace(hw, families={k: f for k, f in hw.families.items() if "batched" not in k})
    found = price(works, lacking, context=PriceContext(engine="sglang"))
    assert list(found.provenance) == names[2:] * 3
    assert "batched" not in "".join(price(works, load_hardware("cs3"), context=CONTEXT).provenance)


def test_what_the_fit_of_batched_gemms_did_not_see_is_named() -> None:
    works = ops.works([Op.parse(ABSORBED[0]).with_dims(b=128)])
    said = [why for why, _ in beyond(works, load_hardware("h100-sxm"), PriceContext(engine="vllm"))]
    assert said == ["batched_gemm of vllm: another engine's coefficients", "batched_gemm b above 64"]
