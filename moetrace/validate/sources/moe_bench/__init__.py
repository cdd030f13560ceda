"""MIB: MoE-Inference-Bench (arXiv 2508.17467), which prints percentages and directions, few settings and no absolute values.

Each statement is a ratio of throughputs (or times) of static batches, held against predictions for every batch that the row
names. What a row leaves open is taken from its neighbours and said: 2,048 tokens in and out, batches 64 and 128 where it says
"large" or nothing, uniform routing, tensor parallelism over the GPUs. Cells that do not fit are left out of averages, as they
are empty in the paper. Image tokens are taken as prompt tokens, without the vision encoder. Of drafted tokens, what does not
hang on how many were accepted is held at 0.5, 0.7 and 0.9. Not recomputed: drafts against each other, and comparisons whose
models are not named.

The paper says neither which engine ran nor whether CUDA graphs were on. Throughput that grows nearly with the batch and hardly
with n_a is what a host gives that takes tens of milliseconds for each step, so each statement's note also has what is
predicted with `HOST_S` in every step; the verdict is that of the prediction without.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from moetrace.validate.entry import Entry, Estimate, RefusalError, stated
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import model_of, ratio
from moetrace.validate.sources.moe_bench.drafts import drafts_by_length, more_drafts
from moetrace.validate.sources.moe_bench.speed import (
    HOST_S,
    LARGE,
    LENGTH,
    Hosted,
    Ratios,
    batches,
    fall,
    speed,
)
from moetrace.validate.sources.moe_bench.variants import by_active, by_experts, by_width

KINDS = ("MIB",)
_BOTH = ("deepseek-v2-lite", "qwen1.5-moe-a2.7b")


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a statement."""
    found, note = _ratios(figure)
    entry = stated(figure, [e.value for e in found], _middle(found), note)
    with_host = "" if "draft" in figure.metric else _said_with_host(figure)
    return [replace(entry, note="; ".join(t for t in (entry.note, with_host) if t))]


def _said_with_host(figure: Figure) -> str:
    """What is predicted with the host's time in each step, and what that would be called."""
    found = _ratios(Hosted(**asdict(figure)))[0]
    entry = stated(figure, [e.value for e in found], _middle(found))
    values = entry.note or f"predicted {_middle(found).value:.3g}"
    return f"with {HOST_S * 1e3:g} ms of the host in each step {values} ({entry.verdict})"


def _middle(found: Ratios) -> Estimate:
    return sorted(found, key=lambda e: e.value)[len(found) // 2]


def _ratios(figure: Figure) -> tuple[Ratios, str]:
    drafted = "draft" in figure.metric or "speculative" in figure.other_knob
    if drafted and figure.metric not in STATEMENTS:
        raise RefusalError("drafted tokens: how many were accepted is not stated")
    if figure.metric.startswith("peak_expert_activations"):
        raise RefusalError("how often an expert is chosen on its images is data of the paper")
    if "VL2" in figure.model:
        return _images(figure)
    if figure.metric not in STATEMENTS:
        raise RefusalError("which models, or which setting, is not stated")
    return STATEMENTS[figure.metric](figure)


def _ttft(figure: Figure) -> tuple[Ratios, str]:
    names = [model_of(part.strip()) for part in figure.model.split(" vs ")]
    found = [fall(*(speed(figure, name, batch=b, metric="ttft") for name in names)) for b in batches(figure)]
    return found, ""


def _n_a(figure: Figure) -> tuple[Ratios, str]:
    model = model_of(figure.model)
    found = [
        ratio(speed(figure, model, "n_a=32", batch=b), speed(figure, model, "n_a=1", batch=b), percent=True)
        for b in batches(figure)
    ]
    return found, "uniform routing"


def _batch_gain(figure: Figure) -> tuple[Ratios, str]:
    return [
        ratio(speed(figure, m, batch=128), speed(figure, m, batch=1)) for m in _BOTH
    ], "2,048 tokens in and out"


def _lengths(
    short: int, long: int, of: Callable[[Estimate, Estimate], Estimate]
) -> Callable[[Figure], tuple[Ratios, str]]:
    def statement(figure: Figure) -> tuple[Ratios, str]:
        found = [
            of(*(speed(figure, m, batch=b, length=n) for n in (short, long))) for m in _BOTH for b in LARGE
        ]
        return found, "batches 64 and 128"

    return statement


def _gain(figure: Figure) -> tuple[Ratios, str]:
    names = [part.strip() for part in figure.model.split(" vs ")]
    if "next" in names:
        raise RefusalError("which model is the next is not stated")
    one, other = (model_of({"Qwen1.5-MoE": "qwen1.5-moe-a2.7b"}.get(name, name)) for name in names)
    found = [ratio(speed(figure, one, batch=b), speed(figure, other, batch=b), percent=True) for b in LARGE]
    return found, "batches 64 and 128"


def _fp8(figure: Figure) -> tuple[Ratios, str]:
    model, highest = model_of(figure.model), "highest" in figure.other_knob
    cases = [(128, LENGTH)] if highest else [(16, n) for n in (128, 512, 2048)]
    found = [
        ratio(
            speed(figure, model, "tp=4", "dtype=fp8", batch=b, length=n),
            speed(figure, model, "tp=4", batch=b, length=n),
            percent=True,
        )
        for b, n in cases
    ]
    return found, "4 GPUs; " + ("batch 128" if highest else "batch 16, 128 to 2,048 tokens")


def _pruning(figure: Figure) -> tuple[Ratios, str]:
    cuts = ("50",) if "50pct" in figure.metric else ("12.5", "25")
    found = []
    for model in ("qwen1.5-moe-a2.7b", "olmoe-1b-7b"):
        native = speed(figure, model)
        found += [ratio(speed(figure, model, f"prune_inter={cut}"), native, percent=True) for cut in cuts]
    return found, "experts pruned, n_a kept"


def _parallel(
    sets: Sequence[str], base: Sequence[str], percent: bool
) -> Callable[[Figure], tuple[Ratios, str]]:
    def statement(figure: Figure) -> tuple[Ratios, str]:
        model = model_of(figure.model)
        plain = replace(figure, n_gpus="")
        found = [
            ratio(speed(plain, model, *sets, batch=b), speed(plain, model, *base, batch=b), percent) for b in (1, 16)
        ]  # fmt: skip
        return found, "batches 1 and 16, 2,048 tokens in and out; one GPU would not hold the model"

    return statement


def _fused(figure: Figure) -> tuple[Ratios, str]:
    model = model_of(figure.model)
    cases = [(b, LENGTH) for b in (1, 16, 64)] if figure.other_knob == "batch sweep" else [
        (16, n) for n in (128, 512, 2048)
    ]  # fmt: skip
    found = [
        ratio(
            speed(figure, model, batch=b, length=n),
            speed(figure, model, "experts=unfused", batch=b, length=n),
            percent=True,
        )
        for b, n in cases
    ]
    return found, "one kernel per expert against a grouped one, under a CUDA graph"


def _images(figure: Figure) -> tuple[Ratios, str]:
    """DeepSeek-VL2-Tiny against VL2, as text decoders."""
    metric = figure.metric.partition("_")[0]
    found = []
    for batch in (16, 64):
        tiny, full = (speed(figure, f"deepseek-{n}", batch=batch, metric=metric) for n in ("vl2-tiny", "vl2"))
        found.append(fall(tiny, full) if "reduction" in figure.metric else ratio(full, tiny, percent=True))
    return (
        found,
        "batches 16 and 64, 2,048 prompt tokens, image tokens among them; the vision encoder is not in it",
    )


def _scout(figure: Figure) -> tuple[Ratios, str]:
    plain, model = replace(figure, hw="H100", n_gpus=""), model_of(figure.model)
    found = []
    for batch in (1, 16):
        times = [
            speed(plain, model, "dtype=int4", batch=batch, length=n, metric="e2e") for n in (1024, 2048, 4096)
        ]
        found += [ratio(b, a) for a, b in itertools.pairwise(times)]
    return (
        found,
        "int4 on one H100 (fp8 does not fit), E2E at twice the tokens in and out; sharp: more than 2.1 times",
    )


STATEMENTS: dict[str, Callable[[Figure], tuple[Ratios, str]]] = {
    "ttft_reduction": _ttft,
    "throughput_change_nact_1_to_32": _n_a,
    "throughput_ratio_B128_over_B1": _batch_gain,
    "throughput_gain_len128_over_2048": _lengths(128, 2048, lambda a, b: ratio(a, b, percent=True)),
    "throughput_drop_len256_to_512": _lengths(512, 256, fall),
    "throughput_drop_len1024_to_2048": _lengths(2048, 1024, fall),
    "throughput_gain": _gain,
    "throughput_change_ffn_1792_to_14336": by_width,
    "throughput_gap_nact_1_vs_8": by_active,
    "throughput_gain_nact_1_over_8": by_active,
    "throughput_change_experts_8_to_64": by_experts,
    "throughput_gain_fp8_over_fp16": _fp8,
    "throughput_effect_pruning_12.5_25pct": _pruning,
    "throughput_effect_pruning_50pct": _pruning,
    "throughput_speedup_TP_1_to_4": _parallel(("tp=4",), (), percent=False),
    "throughput_TP_EP_vs_TP": _parallel(("tp=4", "ep=4"), ("tp=4",), percent=True),
    "throughput_PP": _parallel(("pp=4",), (), percent=True),
    "throughput_gain_fused_moe": _fused,
    "throughput_vs_draft_tokens": more_drafts,
    "throughput_drop_with_length_draft1.7B": drafts_by_length,
    "throughput_drop_with_length_draft4B_8B": drafts_by_length,
    "latency_growth_H100_above_1024": _scout,
}
