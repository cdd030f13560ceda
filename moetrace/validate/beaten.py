"""Why public measurements beat a bound that nothing can beat: they did not do what their columns say, as far as is known."""

from __future__ import annotations

from moetrace.op import OpColumns

UNKNOWN = "no cause is known"
GROUPED_TOPK = (
    "likely grouped top-k, which sends balanced logits to half of the experts that the routing names"
)
PARTLY_READ = (
    "the benchmark's cache holds keys alone (SELFKONLY) and TensorRT-LLM reads its values from the same place: "
    "half of the bytes"
)


def cause(ops: OpColumns, engine: str, row: int) -> str:
    """The cause of one row in words, from its op and engine."""
    op = ops[row]
    if (
        op.kind == "moe_module"
        and engine == "sglang"
        and op.weight_dtype == "fp8_block"
        and op.has("distinct")
    ):
        return GROUPED_TOPK
    if op.kind == "attention" and engine == "trtllm":
        return PARTLY_READ
    return UNKNOWN
