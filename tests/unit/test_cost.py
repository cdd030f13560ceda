"""price: the right law for each machine, and one cost per op in the order given."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.cost import PriceContext, price
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
