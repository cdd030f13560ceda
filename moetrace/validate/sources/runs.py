"""SRV, TTF: whole runs of MoE models under an engine, as people printed what serving benchmarks told them.

Several in flight are a steady load, of as many sequences as were in flight on the mean where that is printed (`in_flight`),
else of the stated maximum; one at a time is a static batch of one. Lengths are the run's means. `other_knob` is
"engine=sglang@0.5.6; in_flight=13.61", with `graph=off` where a run had none: whatever else it says is a knob too, and
what is none is refused, for a setting that nobody reads would be a prediction of another run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from moetrace.model import load_model
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.ledger import MARKS
from moetrace.validate.simulating import machine_of, model_of, need, simulated
from moetrace.validate.sources.served import STEADY, knobs, sizes_of

KINDS = ("SRV", "TTF")
# Columns of a table of figures, which other_knob cannot state once more.
_COLUMNS = ("batch", "input_len", "output_len", "n_a", "n_e", "dtype", "tp", "ep", "dp")
# What a launch costs SGLang's host was set from these (docs/accuracy.md, "Short prompts").
_LAUNCHES = (
    "SRV-0002", "SRV-0011", "SRV-0020", "SRV-0029", "SRV-0037", "SRV-0039", "SRV-0040", "SRV-0042", "SRV-0065"
)  # fmt: skip
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
        known = ", ".join(f"{metric} in {unit}" for metric, unit in _MEASURES)
        raise RefusalError(f"no prediction is made of {figure.metric} in {figure.unit}, but of {known}")
    if figure.measured is not None and not 0 < figure.measured < math.inf:
        raise RefusalError(f"the value {figure.value!r} is not above zero")
    per = _MEASURES[figure.metric, figure.unit][1]
    estimate, notes = _estimate(figure), []
    if STEADY in estimate.setting and "routing=" not in estimate.setting:
        even = _estimate(figure, "routing=uniform").value / per
        notes.append(f"skewed routing, as of text, is taken; uniform routing gives {even:.2f} {figure.unit}")
    if figure.id in _LAUNCHES:
        notes.append("what a launch costs SGLang's host was set from nine runs, of which this is one")
    return [scored(figure, estimate, "; ".join(notes), per=per)]


def _estimate(figure: Figure, *more: str) -> Estimate:
    """The measure that is printed, in moetrace's unit, with the knobs `more` beside those of the row."""
    told = _told(figure)
    gpus, most, prompt, out = need(figure, "n_gpus", "batch", "input_len", "output_len")
    model = model_of(figure.model)
    if not figure.precision:
        raise RefusalError("not stated: precision")
    flying = _in_flight(told.pop("in_flight", ""), most)
    sets = [STEADY] if most > 1 else []
    sets += _ranks(figure, gpus)
    sets += [f"{name}={value}" for name, value in told.items()]
    spec = load_model(model)
    if figure.precision != spec.expert_dtype:
        sets.append(f"dtype={figure.precision}")
    own = {"n_a": spec.topk, "n_e": spec.experts}
    sets += [
        f"{name}={getattr(figure, name)}"
        for name, n in own.items()
        if getattr(figure, name) not in ("", str(n))
    ]
    metric = _MEASURES[figure.metric, figure.unit][0]
    return simulated(model, machine_of(figure.hw, gpus), (flying, prompt, out), *sets, *more, metric=metric)


def _told(figure: Figure) -> dict[str, str]:
    """The knobs of other_knob, and `in_flight`, by name; marks of the source are left out."""
    told: dict[str, str] = {}
    for part in filter(None, map(str.strip, figure.other_knob.split(";"))):
        if any(mark in part for mark in MARKS):
            continue
        name, _, value = (text.strip() for text in part.partition("="))
        if not value or name in _COLUMNS or name in told:
            raise RefusalError(
                f"other_knob has {part!r}: expected knobs that no column has, each once, such as engine=vllm; in_flight=13.6"
            )
        told[name] = value
    return told


def _in_flight(text: str, most: int) -> int:
    """Sequences in flight: as stated on the mean, else the most of them."""
    if not text:
        return most
    mean = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if not 0.5 < mean <= most:
        raise RefusalError(
            f"in_flight={text}: expected how many of at most {most} were in flight on the mean (batch)"
        )
    return round(mean)


def _ranks(figure: Figure, gpus: int) -> list[str]:
    """The knobs of ``TP8 attnDP4 EP4``, as engines name them: eight ranks, four groups of two that attend to their own."""
    sizes = sizes_of(figure)
    ranks, groups = sizes.get("TP", 0), sizes.get("attnDP", 1)
    words = "".join(f"{name}{n}" for name, n in sizes.items())
    unread = words != "".join(figure.parallelism.split())
    if unread or set(sizes) - {"TP", "attnDP", "EP"} or ranks != gpus or ranks % groups:
        raise RefusalError(
            f"parallelism {figure.parallelism!r} of {gpus} GPUs: expected TP{gpus}, all of them, then EP8, or attnDP4 for "
            "groups with sequences of their own"
        )
    return knobs(tp=ranks // groups, dp=groups, ep=sizes.get("EP", 1))
