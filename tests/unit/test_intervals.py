"""How sure a step is, from how sure its ops are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.cost.price import PriceContext, price
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.replay import Scenario, simulate
from moetrace.replay.intervals import beside_ops, together
from moetrace.synthesize import Workload

OFF = st.lists(st.integers(0, 10**9), min_size=1, max_size=8)  # ns


@given(OFF)
def test_independent_deviations_are_less_than_their_sum_and_more_than_the_largest(off: list[int]) -> None:
    share = float(together(np.array(off, dtype=float)[:, None])[0])
    total = sum(off)
    assert share * total <= total * (1 + 1e-12)
    assert share * total >= max(off) * (1 - 1e-12)


@given(st.floats(1.0, 1e9), st.integers(1, 9))
def test_equal_deviations_grow_with_the_root_of_their_number(off: float, families: int) -> None:
    assert together(np.full((families, 1), off))[0] == pytest.approx(families**-0.5)


def test_a_step_is_surer_than_its_ops_at_once_but_not_where_the_machine_itself_is_unsure() -> None:
    for machine, at_once in (("h100-sxm", False), ("h200-sxm", True), ("cs3", True)):
        done = simulate(load_model("olmoe-1b-7b"), Workload(16, 128, 2), machine, Scenario.of())
        table = done.run.table(["step", "dur_ns", "error"]).to_pandas()
        last = table[table.step == table.step.max()]
        ends = (last.dur_ns * (1 + last.error.fillna(0))).sum() / last.dur_ns.sum()
        expected, _, high = done.prediction.step_s[-1]
        found = float(high / expected)
        assert bool(found == pytest.approx(ends, rel=2e-3)) is at_once
        assert 1 < found < ends * 1.01


def test_the_fastest_engines_law_for_any_is_said_and_its_interval_spans_the_others() -> None:
    """A100's MLA kernels differ by a factor of twenty: no engine named, TensorRT-LLM's time with vLLM's inside the interval."""
    load, model = Workload(16, 2048, 2), load_model("deepseek-v2-lite")
    found = {
        engine: simulate(model, load, "a100-sxm", Scenario.of(f"engine={engine}")).summary
        for engine in ("any", "trtllm", "vllm")
    }
    tpot = {engine: summary["metrics"]["tpot"] for engine, summary in found.items()}
    assert tpot["any"]["low"] < tpot["trtllm"]["value"] < tpot["vllm"]["value"] < tpot["any"]["high"]
    words = "one law, so that of trtllm, the fastest on average over what was measured, is taken; of a single size another"
    said = {
        engine: any(words in text for text in summary["assumptions"]) for engine, summary in found.items()
    }
    assert said == {"any": True, "trtllm": False, "vllm": False}


def test_the_engine_that_is_fastest_on_average_may_be_slower_of_one_size() -> None:
    """Measured on A100: TensorRT-LLM never cuts a sequence of MLA, so that 8,192 tokens take 945 us, by vLLM's kernel 353."""
    works = ops.works([Op.parse("mla_attention bf16 batch=1 heads=64 kv_lora=512 rope=64 kv=8192")])
    hw = load_hardware("a100-sxm")
    found = {
        engine: price(works, hw, context=PriceContext(engine=engine)) for engine in ("any", "trtllm", "vllm")
    }
    time_s = {engine: float(costs.expected_s[0]) for engine, costs in found.items()}
    assert time_s["any"] == time_s["trtllm"] > 2 * time_s["vllm"]
    assert time_s["any"] / (1 + float(found["any"].error[0])) < time_s["vllm"]
    assert "mla_attention (of the fastest on average, trtllm)" in found["any"].provenance[0]


@given(st.integers(1, 10**15), st.floats(1, 9), st.floats(1, 9))
def test_a_hosts_error_beside_that_of_ops_is_more_than_either_and_less_than_both(
    span: int, ops: float, host: float
) -> None:
    whole, one, two = (np.array([round(span * factor)]) for factor in (1, ops, host))
    low, high = beside_ops(whole, (whole, one), (whole, two))
    assert low[0] == span
    assert max(one[0], two[0]) * (1 - 1e-9) - 1 <= high[0] <= span * ops * host * (1 + 1e-9) + 1 + ops + host
