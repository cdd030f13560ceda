"""SRV, TTF: whole runs of MoE models under an engine, as people printed what serving benchmarks told them.

Several in flight are a steady load, of as many sequences as were in flight on the mean where that is printed (`in_flight`),
else of the stated maximum; one at a time is a static batch of one. Lengths are the run's means. `other_knob` is
"engine=sglang@0.5.6; in_flight=13.61", with `graph=off` where a run had none.
"""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.model import load_model
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, simulated
from moetrace.validate.sources.served import STEADY, knobs, sizes_of

KINDS = ("SRV", "TTF")
# What is printed and its unit -> the measure of a simulation, and the printed unit in its own. Over sequences of equal
# lengths the mean time between tokens is TPOT's.
_MEASURES = {
    ("itl", "ms"): ("tpot", 1e-3),
    ("tpot", "ms"): ("tpot", 1e-3),
    ("ttft", "ms"): ("ttft", 1e-3),
    ("throughput", "tok/s"): ("throughput", 1.0),
    ("output_throughput", "tok/s"): ("output_throughput", 1.0),
}


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a run's time per token, of its TTFT or of its speed; of a steady load the note has uniform routing's too."""
    if (figure.metric, figure.unit) not in _MEASURES:
        raise RefusalError(f"no prediction is made of {figure.metric} in {figure.unit}")
    per = _MEASURES[figure.metric, figure.unit][1]
    estimate, note = _estimate(figure), ""
    if STEADY in estimate.setting:
        even = _estimate(figure, "routing=uniform").value / per
        note = f"skewed routing, as of text, is taken; uniform routing gives {even:.2f} {figure.unit}"
    return [scored(figure, estimate, note, per=per)]


def _estimate(figure: Figure, *more: str) -> Estimate:
    """The measure that is printed, in moetrace's unit, with the knobs `more` beside those of the row."""
    told = dict(part.partition("=")[::2] for part in figure.other_knob.split("; "))
    gpus, most, prompt, out = need(figure, "n_gpus", "batch", "input_len", "output_len")
    model = model_of(figure.model)
    sets = [STEADY] if most > 1 else []
    sets += _ranks(figure, gpus)
    sets += [f"{name}={told[name]}" for name in ("engine", "graph") if name in told]
    if figure.precision != load_model(model).expert_dtype:
        sets.append(f"dtype={figure.precision}")
    load = (round(float(told.get("in_flight", most))), prompt, out)
    metric = _MEASURES[figure.metric, figure.unit][0]
    return simulated(model, machine_of(figure.hw, gpus), load, *sets, *more, metric=metric)


def _ranks(figure: Figure, gpus: int) -> list[str]:
    """The knobs of ``TP8 attnDP4 EP4``, as engines name them: eight ranks, four groups of two that attend to their own."""
    sizes = sizes_of(figure)
    ranks, groups = sizes.get("TP", 0), sizes.get("attnDP", 1)
    if set(sizes) - {"TP", "attnDP", "EP"} or ranks != gpus or ranks % groups:
        raise RefusalError(f"parallelism {figure.parallelism!r} of {gpus} GPUs")
    return knobs(tp=ranks // groups, dp=groups, ep=sizes.get("EP", 1))
