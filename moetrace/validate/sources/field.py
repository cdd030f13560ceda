"""DSK, LMS, VLM, ISM, OTH: what users and engines' authors report of serving, mostly of large expert parallelism.

Recomputed where GPUs, tokens in flight per GPU and context are stated: data-parallel attention and expert parallelism over all
GPUs, one decode step at the stated context (its middle, where an output length is stated), tokens per second per node of eight
or per GPU. Decode pools of disaggregated serving run no prefill, so the batch is a static one. What a row leaves open and
another row of the same report or deployment states is taken from there, and said in the note: the tokens of a prefill step
(DSK-0007), redundant experts and the context of decode (LMS-0005).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from moetrace.model import load_model
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, ratio, simulated

KINDS = ("DSK", "LMS", "VLM", "ISM", "OTH")
_NODE = 8
_PREFILL_TOKENS = 16384  # of a step on each GPU: DSK-0007's
_COPIES, _CONTEXT = 32, 2000  # LMS-0005's redundant experts and prompt


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
    if "FP4" in figure.precision:
        raise RefusalError("attention and experts in different types are no knob")
    if what and what[1] == "prefill":
        return _prefill(figure, what[2])
    if what:
        return _decode(figure, what[2])
    if figure.kind == "LMS" and figure.metric in ("itl", "throughput_change"):
        return _step(figure)
    raise RefusalError(f"no prediction is made of {figure.metric}")


def _stated(figure: Figure, **what: object) -> None:
    """Raises RefusalError naming what is not stated."""
    if missing := [name.replace("_", " ") for name, value in what.items() if not value]:
        raise RefusalError(f"not stated: {', '.join(missing)}")


def _ranks(figure: Figure) -> tuple[int, list[str]]:
    """(GPUs, the knobs of expert parallelism over all of them)."""
    gpus, ranks = figure.whole("n_gpus"), re.search(r"EP(\d+)", figure.parallelism)
    _stated(figure, GPUs=gpus, EP=ranks)
    if not gpus or not ranks or int(ranks[1]) != gpus:
        raise RefusalError(f"EP{ranks[1] if ranks else ''} on {gpus} GPUs")
    sets = [f"dp={gpus}", f"ep={gpus}"]
    # The profiles behind DSK's rows overlap two micro-batches too (deepseek-ai/profile-data on GitHub).
    if "TBO" in figure.other_knob or figure.kind == "DSK":
        sets.append("overlap=two_batch")
    copies = _copies(figure, load_model(model_of(figure.model)).experts, gpus)
    if copies:
        sets += [f"eplb={copies}", "routing=uniform"]
    return gpus, sets


def _copies(figure: Figure, experts: int, gpus: int) -> int:
    """Redundant experts: stated, or as many as elsewhere in the report where they are named or must be."""
    if extra := re.search(r"(\d+) physical", figure.other_knob):
        return int(extra[1]) - experts
    return _COPIES if "EPLB" in figure.other_knob or experts % gpus else 0


def _prefill(figure: Figure, per: str) -> tuple[Estimate, str]:
    each, prompt = re.match(r"(\d+) tokens/GPU", figure.batch), figure.whole("input_len")
    _stated(figure, context=prompt)
    if tp := re.search(r"TP(\d+) single node", figure.parallelism):
        gpus, sets, tokens = int(tp[1]), [f"tp={tp[1]}"], _PREFILL_TOKENS
    else:
        gpus, sets = _ranks(figure)
        tokens = (int(each[1]) if each else _PREFILL_TOKENS) * gpus
    batch = max(1, round(tokens / (prompt or 1)))
    hw, load = machine_of(figure.hw, gpus), (batch, prompt or 1, 1)
    time = simulated(model_of(figure.model), hw, load, *sets, metric="ttft")
    where = " per GPU" if len(sets) > 1 else ""
    taken = "" if each else f"; {_PREFILL_TOKENS:,} tokens{where} in a step are taken"
    return _rate(time, batch * load[1] * (_NODE if per == "node" else 1) / gpus), _EVEN + taken


def _decode(figure: Figure, per: str) -> tuple[Estimate, str]:
    each, prompt = re.match(r"(\d+)/GPU", figure.batch), figure.whole("input_len")
    _stated(figure, GPUs=figure.whole("n_gpus"), EP="EP" in figure.parallelism, batch_per_GPU=each)
    gpus, sets = _ranks(figure)
    size = int(each[1]) if each else 0
    load = (size * gpus, prompt or _CONTEXT, figure.whole("output_len") or 2)
    time = simulated(model_of(figure.model), machine_of(figure.hw, gpus), load, *sets, metric="tpot")
    return _rate(time, size * (_NODE if per == "node" else 1)), _EVEN + ("" if prompt else _TAKEN)


def _step(figure: Figure) -> tuple[Estimate, str]:
    """The time of a decode step, or what two-batch overlap makes of the throughput, per cent."""
    each = re.match(r"(\d+)/GPU", figure.batch)
    _stated(figure, batch_per_GPU=each)
    gpus, sets = _ranks(figure)
    plain = [text for text in sets if not text.startswith("overlap")]
    hw, load = machine_of(figure.hw, gpus), ((int(each[1]) if each else 0) * gpus, _CONTEXT, 2)

    def time(*knobs: str) -> Estimate:
        return simulated(model_of(figure.model), hw, load, *knobs, metric="tpot")

    if figure.metric == "throughput_change":
        return ratio(time(*plain), time(*plain, "overlap=two_batch"), percent=True), _EVEN + _TAKEN
    step = time(*plain, "overlap=two_batch")
    low, high = (None if t is None else 1e3 * t for t in (step.low, step.high))
    return replace(step, value=1e3 * step.value, low=low, high=high), f"two-batch overlap, {_EVEN}{_TAKEN}"


_EVEN, _TAKEN = "uniform routing", f"; a context of {_CONTEXT:,} tokens is taken"


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
