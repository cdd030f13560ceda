"""DSK, LMS, VLM, ISM, OTH: what users and engines' authors report of serving, mostly of large expert parallelism.

Recomputed where GPUs, tokens in flight per GPU and context are stated: data-parallel attention and expert parallelism over all
GPUs, one decode step at the stated context (its middle, where an output length is stated), tokens per second per node of eight
or per GPU. Decode pools of disaggregated serving run no prefill, so the batch is a static one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetrace.model import load_model
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, simulated

KINDS = ("DSK", "LMS", "VLM", "ISM", "OTH")
_NODE = 8


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a report; most do not state what a prediction needs."""
    estimate, note = _estimate(figure)
    return [scored(figure, estimate, note)]


def _estimate(figure: Figure) -> tuple[Estimate, str]:
    what = re.match(r"(prefill|decode)_throughput_per_(node|gpu)(_measured)?$", figure.metric)
    if figure.metric.endswith("simulated_by_InferSim"):
        raise RefusalError("a prediction of another tool, no measurement")
    if "MTP" in figure.other_knob:
        raise RefusalError("drafted tokens (MTP): how many were accepted is not stated")
    if figure.metric == "throughput":
        return _plain(figure)
    if not what:
        raise RefusalError(f"no prediction is made of {figure.metric}")
    model = model_of(figure.model)
    gpus, ranks = figure.whole("n_gpus"), re.search(r"EP(\d+)", figure.parallelism)
    each, prompt = re.match(r"(\d+)( tokens)?/GPU", figure.batch), figure.whole("input_len")
    missing = [
        name
        for name, value in (("GPUs", gpus), ("EP", ranks), ("batch per GPU", each), ("context", prompt))
        if not value
    ]
    if missing or not (gpus and ranks and each and prompt):
        raise RefusalError(f"not stated: {', '.join(missing)}")
    if int(ranks[1]) != gpus:
        raise RefusalError(f"EP{ranks[1]} on {gpus} GPUs")
    if "FP4" in figure.precision:
        raise RefusalError("attention and experts in different types are no knob")
    sets = [f"dp={gpus}", f"ep={gpus}"]
    if "TBO" in figure.other_knob:
        sets.append("overlap=two_batch")
    if extra := re.search(r"(\d+) physical", figure.other_knob):
        sets.append(f"eplb={int(extra[1]) - load_model(model).experts}")
    hw, devices = machine_of(figure.hw, gpus), _NODE if what[2] == "node" else 1
    if what[1] == "prefill":
        batch = max(1, round(int(each[1]) * gpus / prompt)) if each[2] else int(each[1]) * gpus
        load = (batch, prompt, 1)
        return _rate(simulated(model, hw, load, *sets, metric="ttft"), batch * prompt * devices / gpus), _EVEN
    load = (int(each[1]) * gpus, prompt, figure.whole("output_len") or 2)
    return _rate(simulated(model, hw, load, *sets, metric="tpot"), int(each[1]) * devices), _EVEN


_EVEN = "uniform routing"


def _rate(time: Estimate, tokens: float) -> Estimate:
    """Tokens per second of `tokens` in each of a time."""
    low, high = (None if t is None else tokens / t for t in (time.high, time.low))
    return Estimate(tokens / time.value, low, high, time.hardware, time.setting)


def _plain(figure: Figure) -> tuple[Estimate, str]:
    model = model_of(figure.model)
    sizes = [figure.whole(name) for name in ("n_gpus", "batch", "input_len", "output_len")]
    if None in sizes:
        raise RefusalError("batch or lengths are not stated")
    gpus, batch, prompt, out = (int(size or 0) for size in sizes)
    hw = machine_of(figure.hw, gpus)
    return simulated(model, hw, (batch, prompt, out), metric="output_throughput"), "output tokens are taken"
