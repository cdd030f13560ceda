"""The one excuse for beating a lower bound: the bytes that an op touches fit the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetrace import ops
from moetrace.cost import price
from moetrace.cost.bounds import beats_bound, cache_warm, interval
from moetrace.hardware import load_hardware
from moetrace.op import Op
from moetrace.validate.beaten import GROUPED_TOPK, PARTLY_READ, UNKNOWN, cause


@pytest.mark.parametrize(("machine", "cache"), [("h100-sxm", 50e6), ("a100-sxm", 40e6)])
def test_an_op_is_warm_up_to_the_last_byte_of_the_cache(machine: str, cache: float) -> None:
    hw = load_hardware(machine)
    assert hw.memory.cache_bytes == cache
    works = ops.works([Op.of("gemm", "bf16", m=1, n=4096, k=k) for k in (1024, 4096, 8192)])
    nbytes = works["bytes"]
    for edge in nbytes.tolist():
        for off, expected in ((0.0, nbytes <= edge), (-1.0, nbytes < edge)):
            there = replace(hw, memory=replace(hw.memory, cache_bytes=edge + off))
            assert cache_warm(works, there).tolist() == expected.tolist()


def test_what_crosses_links_is_never_warm_nor_what_is_not_known() -> None:
    sent = ops.works([Op.of("all_reduce", "bf16", bytes=1024, ranks=8), Op.of("gemm", "bf16", m=1)])
    assert not cache_warm(sent, load_hardware("h100-sxm")).any()


def test_only_a_warm_row_may_beat_its_bound() -> None:
    hw = load_hardware("h100-sxm")
    works = ops.works([Op.of("gemm", "bf16", m=1, n=4096, k=k) for k in (1024, 65536)])
    costs, warm = price(works, hw), cache_warm(works, hw)
    assert warm.tolist() == [True, False]
    assert beats_bound(costs, warm, costs.lower_bound_s * 0.9).tolist() == [False, True]
    assert not beats_bound(costs, warm, costs.lower_bound_s).any()


def test_an_interval_begins_no_lower_than_what_nothing_can_beat() -> None:
    hw = load_hardware("h100-sxm")
    works = ops.works([Op.of("gemm", "bf16", m=1, n=4096, k=k) for k in (1024, 65536, 65536)])
    costs, warm = price(works, hw), cache_warm(works, hw)
    least, wide = costs.lower_bound_s, np.full(3, 100.0)
    low, high = interval(costs, warm, costs.expected_s * np.array([1.0, 1.0, 1e-3]), wide)
    assert low[0] == costs.expected_s[0] / 101 < least[0] and low[1] == least[1]
    assert low[2] == costs.expected_s[2] * 1e-3 < least[2]  # an anchor that beat the bound itself
    assert (high[:2] == costs.expected_s[:2] * 101).all()


def test_causes_are_told_by_op_and_engine() -> None:
    moe = Op.of("moe_module", "fp8_block", tokens=2, hidden=64, inter=64, experts=8, topk=2, distinct=4)
    wide = Op.of("attention", "bf16", batch=1, heads=1, kv_heads=1, head_dim=192, kv=10)
    table = [
        (moe, "sglang", GROUPED_TOPK),
        (moe, "vllm", UNKNOWN),
        (moe.with_dims(distinct=None), "sglang", UNKNOWN),
    ]
    table += [(wide, "sglang", UNKNOWN), (wide, "trtllm", PARTLY_READ)]
    for op, engine, said in table:
        assert cause(ops.works([op]).ops, engine, 0) == said
    assert np.unique([GROUPED_TOPK, PARTLY_READ, UNKNOWN]).size == 3
