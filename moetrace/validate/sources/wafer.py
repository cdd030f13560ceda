"""CS3 and WLM: public decode speeds of CS-3, and WaferLLM (arXiv 2502.04563) on WSE-2 and A100.

Speeds of one sequence. Those of CS-3 do not state lengths: 1,000 tokens in and 500 out are taken, which hardly matters where
latency rules. A time to first token through a public service holds its queue and network and is not recomputed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetrace.cost import price
from moetrace.op import Op, OpColumns
from moetrace.ops import works
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, simulated

KINDS = ("CS3", "WLM2", "WLM3", "WLM4", "WLM6")
_LENGTHS = (1000, 500)
_DECODE_AT = (2048, 2048)  # lengths of WLM4, whose table states none: those of WLM2


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a speed."""
    return [_entry(figure)]


def _entry(figure: Figure) -> Entry:
    if figure.metric == "ttft":
        raise RefusalError("a time to first token through a public service holds its queue and network")
    if figure.metric == "gemv_latency":
        return scored(figure, _gemv(figure), per=1e-3)
    gpus = figure.whole("n_gpus") or 1
    model, hw = model_of(figure.model), machine_of(figure.hw, gpus)
    if re.search("core", figure.other_knob):
        raise RefusalError("decode on a part of a wafer's cores is not simulated")
    sets = [f"tp={gpus}"] if gpus > 1 else []
    if figure.metric == "output_speed_per_user":
        if "speculative" in figure.other_knob:
            raise RefusalError("drafted tokens: how many were accepted is not stated")
        load = (1, *_LENGTHS)
        return scored(
            figure, simulated(model, hw, load, *sets, metric="user_speed"), f"{load[1]} in, {load[2]} out"
        )
    (batch,) = need(figure, "batch")
    if figure.metric == "e2e_throughput_per_request":
        prompt, out = need(figure, "input_len", "output_len")
        return scored(figure, simulated(model, hw, (batch, prompt, out), *sets, metric="output_throughput"))
    if figure.metric == "decode_throughput_per_request":
        return scored(
            figure, simulated(model, hw, (batch, *_DECODE_AT), *sets, metric="user_speed"), "2,048 in, 2,048 out"
        )  # fmt: skip
    if figure.metric == "prefill_throughput":
        (prompt,) = need(figure, "input_len")
        time = simulated(model, hw, (batch, prompt, 1), *sets, metric="ttft")
        low, high = (None if t is None else batch * prompt / t for t in (time.high, time.low))
        return scored(figure, Estimate(batch * prompt / time.value, low, high, time.hardware, time.setting))
    raise RefusalError(f"no prediction is made of {figure.metric}")


def _gemv(figure: Figure) -> Estimate:
    shape = re.match(r"GEMV (\d+)x(\d+)", figure.model)
    if not shape:
        raise RefusalError(f"{figure.model!r} says no shape")
    if figure.whole("n_gpus") != 1:
        raise RefusalError("how the matrix was cut over GPUs is not stated")
    op = Op.of("gemm", "fp16", m=1, n=int(shape[1]), k=int(shape[2]))
    hw = machine_of(figure.hw)
    if hw.law == "wafer":
        raise RefusalError("on how many of its cores is not stated")
    cost = price(works(OpColumns.of([op])), hw)[0]
    return Estimate(
        cost.expected_s, cost.expected_s / (1 + cost.error), cost.expected_s * (1 + cost.error), hw.name, str(op)
    )  # fmt: skip
