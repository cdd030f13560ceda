"""What lies beyond a machine's calibration is found op by op, with the reason."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from moetrace import ops
from moetrace.cost import PriceContext, price
from moetrace.cost.beyond import beyond, said
from moetrace.hardware import Hardware, load_hardware
from moetrace.machines.seen import FURTHER, further, ranges
from moetrace.op import Op, OpColumns

SEEN = {"tokens": (1.0, 512.0), "hidden": (2048.0, 7168.0), "inter": (64.0, 4096.0), "experts": (8.0, 256.0),
        "topk": (1.0, 8.0), "local_experts": (1.0, 256.0)}  # fmt: skip
INSIDE = {"tokens": 8, "hidden": 2048, "inter": 768, "experts": 128, "topk": 8}


def machine(**changes: object) -> Hardware:
    """An H100 whose experts were fitted on these sizes."""
    hw = load_hardware("h100-sxm")
    own = replace(hw.families["experts"], **{"seen": SEEN, **changes})
    return replace(hw, families=MappingProxyType({**hw.families, "experts": own}))


def found(op: Op, hw: Hardware, engine: str = "any") -> set[str]:
    return {why for why, which in beyond(ops.works([op]), hw, PriceContext(engine=engine)) if which.any()}


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({}, set()),
        ({"tokens": 512}, set()),
        ({"tokens": 513}, {"experts tokens above 512"}),
        ({"hidden": 1024, "inter": 8192}, {"experts hidden below 2048", "experts inter above 4096"}),
        ({"experts": 512}, {"experts experts above 256", "experts local_experts above 256"}),
        ({"topk": 10}, {"experts topk above 8"}),
        ({"local_experts": 0.5}, {"experts local_experts below 1"}),
    ],
)  # fmt: skip
def test_each_size_outside_of_what_was_seen_is_named(edit: dict[str, float], why: set[str]) -> None:
    assert found(Op.of("moe_gate_up", "bf16", **{**INSIDE, **edit}), machine()) == why


def test_types_engines_and_machines_that_were_not_measured_are_named() -> None:
    op = Op.of("moe_gate_up", "bf16", **INSIDE)
    assert found(op, machine(provenance="assumed")) == {"experts of bf16: assumed"}
    moved = replace(machine(provenance="transferred from h100-sxm"), name="h200-sxm-x4", base="h200-sxm")
    assert found(op, moved) == {"h200-sxm itself: transferred from h100-sxm"}
    foreign = machine(provenance="transferred from h100-sxm (its kernels do not carry over)")
    assert found(op, replace(foreign, name="b200")) == {
        "b200 itself: transferred from h100-sxm",  # once, beside families whose kernels do
        "experts: kernels that do not carry over",
    }
    assert found(replace(op, dtype="int8/bf16"), machine()) >= {"experts of int8: 16-bit coefficients"}
    bare = machine()
    bare = replace(bare, families={k: f for k, f in bare.families.items() if "@vllm" not in k})
    assert found(op, bare, "vllm") == {"experts of vllm: another engine's coefficients"}
    assert found(op, bare, "vllm@0.11.2") == {
        "experts of vllm: another engine's coefficients",
        "vllm@0.11.2: coefficients of 0.19.0",
    }
    unsaid = replace(machine(), engines={})
    assert found(op, unsaid, "sglang@0.4.4") >= {"sglang@0.4.4: coefficients of a version that is not told"}
    assert (
        found(Op.of("norm", "bf16", tokens=1 << 20, width=8), machine()) == set()
    )  # assumed on every machine


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("qkv_proj bf16 m=1 n=6144 k=4096", set()),
        ("qkv_proj bf16 m=16 n=6144 k=4096", {"dense_gemm m above 1"}),
        ("attention bf16 batch=8 heads=32 kv_heads=8 head_dim=128 kv=16000", {"attention batch above 1"}),
        ("moe_gate_up bf16 tokens=1 hidden=2048 inter=768 experts=128 topk=8", {"experts of bf16: assumed"}),
    ],
)  # fmt: skip
def test_a_wafer_was_fitted_on_one_sequence_of_dense_models(text: str, why: set[str]) -> None:
    assert found(Op.parse(text), load_hardware("cs3")) == why
    assert found(Op.parse(text), load_hardware("wse2")) >= why


def test_linear_attention_is_named_wherever_it_runs() -> None:
    op = Op.parse("linear_attention fp32/bf16 batch=8 heads=32 kv_heads=16 head_dim=128 v_dim=128")
    for name in ("h100-sxm", "b200", "mi300x"):
        assert found(op, load_hardware(name)) == {"linear_attention: assumed, no kernel of it was measured"}
    assert found(Op("linear_attention", "bf16"), machine()) == set()  # without sizes it has no price


def test_only_the_rows_that_lie_beyond_are_marked() -> None:
    some = [Op.of("moe_gate_up", "bf16", **{**INSIDE, "tokens": tokens}) for tokens in (8, 600, 512, 4096)]
    (mark,) = [which for why, which in beyond(ops.works(some), machine(), PriceContext()) if "tokens" in why]
    assert mark.tolist() == [False, True, False, True]


def test_the_sizes_of_a_table_are_its_least_and_most() -> None:
    some = OpColumns.of([
        Op.of("attention", "bf16", batch=4, heads=8, kv_heads=8, head_dim=128, kv=4 * 100),
        Op.of("attention", "bf16", batch=1, heads=16, kv_heads=2, head_dim=64, kv=5000),
        Op.of("moe_module", "bf16", **INSIDE),
    ])  # fmt: skip
    seen = ranges(some)
    assert seen["context"] == (100, 5000) and seen["heads"] == (8, 16) and seen["local_experts"] == (128, 128)
    assert "q" not in seen and np.isfinite(list(seen.values())).all()


def test_reasons_are_said_by_phase() -> None:
    assert said({"decode": []}) == said({}) == ""
    assert said({"prefill": ["b", "a", "b"], "decode": ["c"]}) == "decode: c; prefill: a, b"
    assert said({"prefill": ["a"], "decode": ["a"], "mixed": []}) == "decode and prefill: a"


def test_a_size_that_two_types_saw_up_to_other_ends_is_named_once_by_the_end_passed_first() -> None:
    above = ["experts tokens above 65536", "experts tokens above 512", "experts tokens above 16384"]
    below = ["experts tokens below 2", "experts tokens below 16"]
    assert said({"decode": above}) == "decode: experts tokens above 512"
    assert (
        said({"decode": [*above, *below, "b"]})
        == "decode: b, experts tokens above 512, experts tokens below 16"
    )


def widths(hw: Hardware, *rows: dict[str, float]) -> list[float]:
    """The logarithms of the errors of modules of these sizes."""
    return np.log1p(price(ops.works([Op.of("moe_module", "bf16", **row) for row in rows]), hw).error).tolist()


def test_an_interval_widens_with_the_logarithm_of_the_distance_from_what_was_seen() -> None:
    """Not inside, continuously at the edge, alike above and below, and of several sizes as the root of squares."""
    hw = machine(error_decades=(), error_terms={}, error_rises=(), error=0.05)
    own = np.log(1.05)
    inside = [{**INSIDE, "hidden": size} for size in (2048, 4096, 7168)] + [INSIDE, {**INSIDE, "tokens": 512}]
    assert widths(hw, *inside) == pytest.approx([own] * 5, rel=1e-12)
    (near,) = widths(hw, {**INSIDE, "hidden": 7169})
    assert own < near < own + 1e-6
    above, below, both = widths(
        hw,
        {**INSIDE, "inter": 4096 * 8},
        {**INSIDE, "inter": 8},
        {**INSIDE, "inter": 4096 * 8, "hidden": 7168 * 8},
    )
    far = FURTHER * np.log(8)
    assert above == below == pytest.approx(np.hypot(own, far))
    assert both == pytest.approx(np.sqrt(own**2 + 2 * far**2))
    growing = widths(hw, *({**INSIDE, "tokens": 2**i} for i in range(8, 31)))
    assert growing == sorted(growing) and growing[1] < own + 1e-9 < growing[2]


def test_errors_of_larger_ops_reach_as_far_as_the_rows_that_they_were_found_on() -> None:
    """Rows above the most tokens that are fitted have intervals of their own: their decade begins where such rows were."""
    op = ops.works([Op.of("moe_module", "bf16", **{**INSIDE, "tokens": 1000})]).ops
    assert further(SEEN, 0, op) == pytest.approx(FURTHER * np.log(1000 / 512))
    assert further(SEEN, 3, op) == pytest.approx(FURTHER * np.log(1000 / 512))
    assert further(SEEN, 4, op) is None
    assert further({}, 4, op) is None and further({"m": (1.0, 2.0)}, 0, op) is None


def test_an_op_of_nothing_is_no_further_off_than_one_of_one() -> None:
    works = ops.works(
        [Op.of("all_reduce", "bf16", bytes=0, ranks=2), Op.of("all_reduce", "bf16", bytes=1, ranks=2)]
    )
    assert further({"bytes": (64.0, 1e9)}, 0, works.ops) == pytest.approx([FURTHER * np.log(64)] * 2)
