"""FM3, FM4, FM8, FMA: arXiv 2505.03531, throughput and accuracy by n_a and n_e (SGLang; input and output tokens counted).

Parallelism is not stated: tensor parallelism over all GPUs is taken. Its benchmark keeps a number of requests in flight, so a
steady load is simulated, with the kernels of SGLang, which it names. Its prompts are random, so uniform routing is taken; each
note says what the skew that was counted on text would give. Besides each throughput, its ratio to that of the native n_a at the
same concurrency is scored, which is what the paper is about, and for each n_a where that gain is largest and smallest.
"""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.model import load_model
from moetrace.replay.stated_routing import SKEWED
from moetrace.validate.entry import (
    CARRIED,
    CONTRADICTED,
    PREDICTED,
    REPRODUCED,
    Entry,
    Estimate,
    RefusalError,
    scored,
)
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, ratio, simulated

KINDS = ("FM3", "FM4", "FM8", "FMA")
_ENGINE = "sglang@0.4.4.post1"
_TAKEN = (
    "tensor parallelism over all GPUs, a steady load and uniform routing (random prompts) are taken; SGLang 0.4.4 ran, the "
    "coefficients are of a later version, and the interval is wider for that"
)
NOISE = 0.05  # the paper's own repeats differ by 1-5 %


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a throughput and that of its ratio to the native n_a; accuracy is carried, not predicted."""
    if figure.metric.startswith("accuracy"):
        note = "accuracy is carried beside edits, not predicted"
        return [Entry(figure, CARRIED, figure.metric, figure.measured, note=note)]
    found = [scored(figure, _throughput(figure), _TAKEN)]
    base = next((f for f in among if f is not figure and _place(f) == _place(figure) and _is_native(f)), None)
    if base is not None and base.measured and figure.measured and not _is_native(figure):
        found.append(_gain(figure, base))
        curve = [f for f in among if _curve(f) == _curve(figure)]
        if len(curve) > 2 and figure is max(curve, key=lambda f: f.whole("batch") or 0):
            found += _extremes(figure, curve, among)
    return found


def _place(figure: Figure) -> tuple[str, ...]:
    return (figure.kind, figure.model, figure.hw, figure.batch, figure.input_len, figure.output_len)


def _curve(figure: Figure) -> tuple[str, ...]:
    return (figure.kind, figure.model, figure.hw, figure.input_len, figure.output_len, figure.n_a)


def _is_native(figure: Figure) -> bool:
    try:
        return (
            figure.metric == "throughput_reported"
            and figure.whole("n_a") == load_model(model_of(figure.model)).topk
        )
    except RefusalError:
        return False


def _throughput(figure: Figure, routing: str = "uniform") -> Estimate:
    if figure.metric != "throughput_reported":
        raise RefusalError(f"no prediction is made of {figure.metric}")
    gpus, batch, prompt, out, n_a = need(figure, "n_gpus", "batch", "input_len", "output_len", "n_a")
    model = model_of(figure.model)
    sets = ["serving=continuous", f"engine={_ENGINE}", f"routing={routing}"]
    sets += [f"tp={gpus}"] if gpus > 1 else []
    if n_a != load_model(model).topk:
        sets.append(f"n_a={n_a}")
    return simulated(model, machine_of(figure.hw, gpus), (batch, prompt, out), *sets)


def _gain(figure: Figure, base: Figure) -> Entry:
    measured = (figure.measured or 0.0) / (base.measured or 1.0)
    estimate = ratio(_throughput(figure), _throughput(base))
    skewed = ratio(_throughput(figure, SKEWED), _throughput(base, SKEWED))
    note = f"{_TAKEN}; {SKEWED} as on text: {skewed.value:.3f}"
    return Entry(figure, PREDICTED, "throughput_over_native_n_a", measured, estimate, note)


def _extremes(figure: Figure, curve: Sequence[Figure], among: Sequence[Figure]) -> list[Entry]:
    """Where the gain of one n_a is largest and smallest over concurrency: reproduced, if predicted within one step of the
    measured concurrency, or where the measured throughput ratio is within the repeat noise of its extreme."""
    bases = {f.batch: f for f in among if _is_native(f) and _curve(f)[:-1] == _curve(figure)[:-1]}
    pairs = {f.whole("batch") or 0: (f, bases[f.batch]) for f in curve if f.batch in bases}
    grid = sorted(pairs)
    measured = [(pairs[b][0].measured or 0.0) / (pairs[b][1].measured or 1.0) for b in grid]
    gains = [ratio(_throughput(pairs[b][0]), _throughput(pairs[b][1])) for b in grid]
    predicted = [gain.value for gain in gains]
    found = []
    for name, pick in (("peak", max), ("trough", min)):
        at, there = (values.index(pick(values)) for values in (predicted, measured))
        near = abs(at - there) <= 1 or abs(measured[at] / measured[there] - 1) <= NOISE
        estimate = Estimate(float(grid[at]), None, None, gains[at].hardware, gains[at].setting)
        note = (
            f"ratio there {measured[there]:.3f}, predicted {predicted[at]:.3f}; steps of concurrency {grid}"
        )
        verdict = REPRODUCED if near else CONTRADICTED
        metric = f"concurrency_of_{name}_gain"
        found.append(Entry(figure, verdict, metric, float(grid[there]), estimate, note, "sequences"))
    return found
