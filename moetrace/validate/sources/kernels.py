"""FA3, DGM, PRK: single kernels as others measured them, beside the tables that coefficients come from.

FA3: FlashAttention-3 of prompts on H100, whose law nothing was fitted to. Of attention under a causal mask half of the FLOPs
count. DGM: DeepGEMM's first release on H800, block FP8 at 64 to 4,096 rows: the kernel alone, without launch and conversion of
the activations, by the coefficients of TensorRT-LLM, whose copy chooses blocks as that release did. PRK: times that
people printed, most of them engines' developers in pull requests; `other_knob` is "engine=vllm; cache=warm; op=" and the op's
text, routing uniform.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from moetrace.cost import cost, price
from moetrace.cost.price import PriceContext
from moetrace.machines.forms import FORMS, Cache, Setting
from moetrace.op import Op, OpColumns
from moetrace.ops import works
from moetrace.units import SECONDS
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, need

KINDS = ("FA3", "DGM", "PRK")
_HEADS = re.compile(r"(\d+) heads (\d+) wide(, causal)?")
_MATRIX = re.compile(r"n=(\d+) k=(\d+)")
# Whose coefficients: FlashAttention-3 without a store of keys before it; DeepGEMM of that time.
_ATTENTION, _GEMM = "vllm", "trtllm"
_BESIDE = ("launch", "convert")  # terms of a GEMM's law that are not its kernel's


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a kernel's speed, in TFLOP/s."""
    if figure.kind == "PRK":
        estimate, note, per = _stated(figure)
        return [scored(figure, estimate, note, per=per)]
    if figure.kind == "FA3":
        return [
            scored(
                figure, _attention(figure), f"kernels of {_ATTENTION}; extrapolated: fitted to decoding alone"
            )
        ]
    note = f"kernels of {_GEMM}, which keeps that release's choice of blocks; without launch and conversion of activations"
    return [scored(figure, _gemm(figure), note)]


def prompt_of(figure: Figure) -> Op:
    """The attention of a row: so many prompts of one length. Raises RefusalError where its sizes are not stated."""
    sequences, length = need(figure, "batch", "input_len")
    if not (told := _HEADS.match(figure.other_knob)):
        raise RefusalError("heads and their width are not stated")
    heads, tokens = int(told[1]), sequences * length
    pairs = tokens * ((length + 1) / 2 if told[3] else length)
    return Op.of(
        "attention", "bf16", batch=sequences, heads=heads, kv_heads=heads, head_dim=int(told[2]), kv=tokens, q=tokens,
        pairs=pairs,
    )  # fmt: skip


def _attention(figure: Figure) -> Estimate:
    op, hw = prompt_of(figure), machine_of(figure.hw)
    cost = price(works(OpColumns.of([op])), hw, context=PriceContext(engine=_ATTENTION, cache="warm"))[0]
    length = need(figure, "input_len")[0]
    asked = (
        4 * op["q"] * length * op["heads"] * op["head_dim"] * (0.5 if "causal" in figure.other_knob else 1.0)
    )
    return _speed(asked, cost.expected_s, cost.error, hw.name, str(op))


def _gemm(figure: Figure) -> Estimate:
    (rows,), told, hw = need(figure, "batch"), _MATRIX.match(figure.other_knob), machine_of(figure.hw)
    if not told:
        raise RefusalError("the matrix's sizes are not stated")
    op = Op.of("gemm", "fp8_block", m=rows, n=int(told[1]), k=int(told[2]))
    work = works(OpColumns.of([op]))
    cost = price(work, hw, context=PriceContext(engine=_GEMM))[0]
    family = hw.family("gemm", "dense_gemm", "fp8_block", _GEMM)[1]
    at = Setting(hw, np.full(1, hw.peak(op.compute_dtype)), engine=_GEMM)
    terms = FORMS[family.form].seconds(family.value, work, at).terms
    alone = cost.expected_s - float(sum(terms[name][0] for name in _BESIDE))
    return _speed(
        2.0 * rows * int(told[1]) * int(told[2]), alone, cost.error, hw.name, f"{op}, its kernel alone"
    )


def _stated(figure: Figure) -> tuple[Estimate, str, float]:
    """The estimate of an op that the row writes out, what its provenance says, and the seconds (or FLOP/s) of its unit."""
    told = dict(part.partition("=")[::2] for part in figure.other_knob.split("; "))
    if missing := {"engine", "op"} - set(told):
        raise RefusalError(f"not stated: {', '.join(sorted(missing))}")
    hw, table = machine_of(figure.hw, figure.whole("n_gpus") or 1), {"op": [told["op"]]}
    cache: Cache = "cold" if told.get("cache") == "cold" else "warm"
    if told["op"].startswith("moe"):
        table["routing"] = ["uniform"]
    row = cost(table, hw, engine=told["engine"], cache=cache).to_pylist()[0]
    low, high, setting = row["low_s"], row["high_s"], f"{told['op']}, engine {told['engine']}, cache {cache}"
    if figure.unit in SECONDS:
        per = SECONDS[figure.unit]
        return Estimate(row["time_s"], low, high, hw.name, setting), row["provenance"], per
    if figure.unit != "TFLOP/s":
        raise RefusalError(f"its unit, {figure.unit!r}, is none of {', '.join(SECONDS)}, TFLOP/s")
    flops = float(works([Op.parse(told["op"])])["flops"][0])
    return (
        Estimate(flops / row["time_s"], flops / high, flops / low, hw.name, setting),
        row["provenance"],
        1e12,
    )


def _speed(flops: float, seconds: float, error: float, hardware: str, setting: str) -> Estimate:
    """TFLOP/s with the interval of the time."""
    value = flops / seconds / 1e12
    return Estimate(value, value / (1 + error), value * (1 + error), hardware, setting)
