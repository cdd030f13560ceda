"""CS3 and WLM: public decode speeds of CS-3, and WaferLLM (arXiv 2502.04563) on WSE-2 and A100.

Speeds of one sequence. Those of CS-3 do not state lengths: 1,000 tokens in and 500 out are taken, which hardly matters where
latency rules. WaferLLM runs every op over all of the cores that a row names (placement whole). A time to first token through
a public service holds its queue and network and is not recomputed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from moetrace.cost import price
from moetrace.hardware import Hardware
from moetrace.op import Op, OpColumns
from moetrace.ops import works
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, simulated

KINDS = ("CS3", "WLM2", "WLM3", "WLM4", "WLM6")
LENGTHS = (1000, 500)
# Speeds of CS-3 published from October 2024 on jump (Llama 3.1 70B from 450 to 2,100 tokens/s), by drafted tokens as the
# announcement says; which later rows drafted is not published. Assumed: all whose pass takes longer than this without, since
# drafting costs passes of a small model (about 0.2 ms each, by the same law) and does not pay where a pass is as short. The
# number of tokens a pass then yields is the median that later rows imply (benchmarks/fit_wafer_profile.py); it is not part of
# the law, and each row says whether it was applied.
SPECULATED_ABOVE_S = 1e-3
TOKENS_PER_PASS = 4.97
_TOKENS_ERROR = 0.25
DECODE_AT = (2048, 2048)  # lengths of WLM4, whose table states none: those of WLM2


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
    sets = [f"tp={gpus}"] if gpus > 1 else []
    if figure.metric == "output_speed_per_user":
        return _public(figure, model, hw)
    if hw.law == "wafer":
        side = side_of(figure)
        hw, sets = part_of(hw, side) if side else hw, ["placement=whole"]
    (batch,) = need(figure, "batch")
    if figure.metric == "e2e_throughput_per_request":
        prompt, out = need(figure, "input_len", "output_len")
        return scored(figure, simulated(model, hw, (batch, prompt, out), *sets, metric="output_throughput"))
    if figure.metric == "decode_throughput_per_request":
        return scored(
            figure, simulated(model, hw, (batch, *DECODE_AT), *sets, metric="user_speed"), "2,048 in, 2,048 out"
        )  # fmt: skip
    if figure.metric == "prefill_throughput":
        (prompt,) = need(figure, "input_len")
        time = simulated(model, hw, (batch, prompt, 1), *sets, metric="ttft")
        low, high = (None if t is None else batch * prompt / t for t in (time.high, time.low))
        return scored(figure, Estimate(batch * prompt / time.value, low, high, time.hardware, time.setting))
    raise RefusalError(f"no prediction is made of {figure.metric}")


def is_late(figure: Figure) -> bool:
    """Whether a CS-3 speed is from the time when the service may have drafted tokens."""
    date = re.search(r"(20\d\d)(?:-(\d\d))?", figure.other_knob)
    return bool(date) and (int(date[1]), int(date[2] or 1)) >= (2024, 10) if date else True


def _public(figure: Figure, model: str, hw: Hardware) -> Entry:
    speed = simulated(model, hw, (1, *LENGTHS), metric="user_speed")
    said = f"{LENGTHS[0]:,} tokens in, {LENGTHS[1]} out"
    if is_late(figure) and 1 / speed.value > SPECULATED_ABOVE_S:
        wide, n = 1 + _TOKENS_ERROR, TOKENS_PER_PASS
        fast = simulated(model, hw, (1, *LENGTHS), f"tokens_per_step={n:g}", metric="user_speed")
        low, high = (fast.low or 0.0) / wide, (fast.high or 0.0) * wide
        return scored(
            figure, replace(fast, low=low, high=high), f"{said}; taken to have drafted: {n:g} tokens per pass"
        )
    return scored(figure, speed, f"{said}; taken to have drafted none")


def side_of(figure: Figure) -> int | None:
    """Cores along one side, of a row that says ``cores 480x480``; None without."""
    found = re.search(r"cores (\d+)x\1", figure.other_knob)
    return int(found[1]) if found else None


def part_of(hw: Hardware, side: int) -> Hardware:
    """The wafer with only a square of its cores at work, which still holds what the whole SRAM does."""
    if hw.wafer is None:
        raise RefusalError(f"{hw.name} is not a wafer")
    part = side * side / hw.wafer.cores
    return replace(
        hw,
        name=f"{hw.name}, {side}x{side} cores",
        wafer=replace(hw.wafer, cores=side * side, fabric_bytes_per_s=hw.wafer.fabric_bytes_per_s * part),
        memory=replace(hw.memory, bytes_per_s=hw.memory.bytes_per_s * part),
        peaks={name: peak * part for name, peak in hw.peaks.items()},
    )


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
