"""FM3, FM4, FM8, FMA: arXiv 2505.03531, throughput and accuracy by n_a and n_e (SGLang; input and output tokens counted).

Parallelism is not stated: tensor parallelism over all GPUs is taken. Its benchmark keeps a number of requests in flight, so a
steady load is simulated. Besides each throughput, its ratio to that of the native n_a at the same concurrency is scored: that
is what the paper is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.model import load_model
from moetrace.validate.entry import CARRIED, PREDICTED, Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, ratio, simulated

KINDS = ("FM3", "FM4", "FM8", "FMA")
_TAKEN = "tensor parallelism over all GPUs and a steady load are taken"


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a throughput and that of its ratio to the native n_a; accuracy is carried, not predicted."""
    if figure.metric.startswith("accuracy"):
        note = "accuracy is carried beside edits, not predicted"
        return [Entry(figure, CARRIED, figure.metric, figure.measured, note=note)]
    found = [scored(figure, _throughput(figure), _TAKEN)]
    base = next((f for f in among if f is not figure and _place(f) == _place(figure) and _is_native(f)), None)
    if base is not None and base.measured and figure.measured and not _is_native(figure):
        found.append(_gain(figure, base))
    return found


def _place(figure: Figure) -> tuple[str, ...]:
    return (figure.kind, figure.model, figure.hw, figure.batch, figure.input_len, figure.output_len)


def _is_native(figure: Figure) -> bool:
    try:
        return (
            figure.metric == "throughput_reported"
            and figure.whole("n_a") == load_model(model_of(figure.model)).topk
        )
    except RefusalError:
        return False


def _throughput(figure: Figure) -> Estimate:
    if figure.metric != "throughput_reported":
        raise RefusalError(f"no prediction is made of {figure.metric}")
    gpus, batch, prompt, out, n_a = need(figure, "n_gpus", "batch", "input_len", "output_len", "n_a")
    model = model_of(figure.model)
    sets = ["serving=continuous", *([f"tp={gpus}"] if gpus > 1 else [])]
    if n_a != load_model(model).topk:
        sets.append(f"n_a={n_a}")
    return simulated(model, machine_of(figure.hw, gpus), (batch, prompt, out), *sets)


def _gain(figure: Figure, base: Figure) -> Entry:
    measured = (figure.measured or 0.0) / (base.measured or 1.0)
    estimate = ratio(_throughput(figure), _throughput(base))
    return Entry(figure, PREDICTED, "throughput_over_native_n_a", measured, estimate, _TAKEN)
