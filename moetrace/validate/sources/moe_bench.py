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
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from moetrace.model import ModelSpec, load_model
from moetrace.validate.entry import Entry, Estimate, RefusalError, stated
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import fits, machine_of, model_of, ratio, simulated

KINDS = ("MIB",)
_LARGE = (64, 128)
_LENGTH = 2048
_BOTH = ("deepseek-v2-lite", "qwen1.5-moe-a2.7b")
_FFN = (1792, 14336)
_VARIANT_EXPERTS, _VARIANT_ACTIVE = (8, 16, 32, 64), (1, 2, 4, 8)
_ACCEPTED = (0.5, 0.7, 0.9)
_DRAFTS = "one sequence, acceptance 0.5, 0.7 and 0.9"
# Of 5, 10, 20, 30, 36, 45 and 60 ms the one with which MIB-0007 (n_a 1 to 32 at large batches) comes nearest to the middle of
# what is printed. MIB-0008 to 0011 and 0016 were in view then, no other row.
HOST_S = 30e-3
Ratios = list[Estimate]


@dataclass(frozen=True)
class _Hosted(Figure):
    """A figure whose steps hold that much time of the host."""

    host_s: float = HOST_S


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a statement."""
    found, note = _ratios(figure)
    entry = stated(figure, [e.value for e in found], _middle(found), note)
    with_host = "" if "draft" in figure.metric else _said_with_host(figure)
    return [replace(entry, note="; ".join(t for t in (entry.note, with_host) if t))]


def _said_with_host(figure: Figure) -> str:
    """What is predicted with the host's time in each step, and what that would be called."""
    found = _ratios(_Hosted(**asdict(figure)))[0]
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


def _speed(
    figure: Figure,
    model: str | ModelSpec,
    *sets: str,
    batch: int = 16,
    length: int = _LENGTH,
    metric: str = "throughput",
) -> Estimate:
    gpus = figure.whole("n_gpus") or next((int(s[3:]) for s in sets if s.startswith(("tp=", "pp="))), 1)
    split = [] if gpus == 1 or any(s.startswith(("tp=", "pp=")) for s in sets) else [f"tp={gpus}"]
    host_s = figure.host_s if isinstance(figure, _Hosted) else 0.0
    load = (batch, length, length)
    return simulated(model, machine_of(figure.hw, gpus), load, *split, *sets, metric=metric, host_s=host_s)


def _batches(figure: Figure) -> tuple[int, ...]:
    return tuple(map(int, figure.batch.split(";"))) if re.fullmatch(r"[\d;]+", figure.batch) else _LARGE


def _fall(one: Estimate, other: Estimate) -> Estimate:
    """How much less `one` is than `other`, per cent."""
    less = ratio(one, other, percent=True)
    return Estimate(-less.value, None, None, less.hardware, less.setting)


def _ttft(figure: Figure) -> tuple[Ratios, str]:
    names = [model_of(part.strip()) for part in figure.model.split(" vs ")]
    found = [
        _fall(*(_speed(figure, name, batch=b, metric="ttft") for name in names)) for b in _batches(figure)
    ]
    return found, ""


def _n_a(figure: Figure) -> tuple[Ratios, str]:
    model = model_of(figure.model)
    found = [
        ratio(_speed(figure, model, "n_a=32", batch=b), _speed(figure, model, "n_a=1", batch=b), percent=True)
        for b in _batches(figure)
    ]
    return found, "uniform routing"


def _batch_gain(figure: Figure) -> tuple[Ratios, str]:
    return [
        ratio(_speed(figure, m, batch=128), _speed(figure, m, batch=1)) for m in _BOTH
    ], "2,048 tokens in and out"


def _lengths(
    short: int, long: int, of: Callable[[Estimate, Estimate], Estimate]
) -> Callable[[Figure], tuple[Ratios, str]]:
    def statement(figure: Figure) -> tuple[Ratios, str]:
        found = [
            of(*(_speed(figure, m, batch=b, length=n) for n in (short, long))) for m in _BOTH for b in _LARGE
        ]
        return found, "batches 64 and 128"

    return statement


def _gain(figure: Figure) -> tuple[Ratios, str]:
    names = [part.strip() for part in figure.model.split(" vs ")]
    if "next" in names:
        raise RefusalError("which model is the next is not stated")
    one, other = (model_of({"Qwen1.5-MoE": "qwen1.5-moe-a2.7b"}.get(name, name)) for name in names)
    found = [
        ratio(_speed(figure, one, batch=b), _speed(figure, other, batch=b), percent=True) for b in _LARGE
    ]
    return found, "batches 64 and 128"


def _variant(figure: Figure, ffn: int, experts: int, active: int) -> Estimate:
    spec = replace(
        load_model(model_of(figure.model)),
        name=f"mixtral-8x7b with {experts} experts of width {ffn}, n_a {active}",
        experts=experts,
        topk=active,
        expert_inter=ffn,
    )
    machine = machine_of(figure.hw, figure.whole("n_gpus") or 1)
    split = () if machine.gpus == 1 else (f"tp={machine.gpus}",)
    if not fits(spec, machine, (16, _LENGTH, _LENGTH), *split):
        raise RefusalError(f"{spec.name} does not fit {machine.name}")
    return _speed(figure, spec)


def _cells(figure: Figure, cells: Iterable[tuple[tuple[int, int, int], ...]]) -> list[list[Estimate]]:
    """The variants (width, experts, n_a) of each cell; one that does not fit empties its cell."""
    found = []
    for cell in cells:
        with suppress(RefusalError):
            found.append([_variant(figure, *variant) for variant in cell])
    if not found:
        raise RefusalError("none of its variants fits")
    return found


def _ffn(figure: Figure) -> tuple[Ratios, str]:
    means = []
    for ffn in _FFN:
        cells = _cells(figure, [((ffn, e, k),) for e in _VARIANT_EXPERTS for k in _VARIANT_ACTIVE])
        means.append((sum(cell[0].value for cell in cells) / len(cells), len(cells), cells[0][0]))
    (narrow, many, first), (wide, few, last) = means
    change = replace(ratio(last, first), value=100 * (wide / narrow - 1))
    cells_of = len(_VARIANT_EXPERTS) * len(_VARIANT_ACTIVE)
    return [
        change
    ], f"mean throughputs over 8 to 64 experts and n_a 1 to 8; {many} and {few} of {cells_of} cells fit"


def _active(figure: Figure) -> tuple[Ratios, str]:
    widths = {"small FFN": _FFN[:1], "large FFN": _FFN[1:], "FFN=14336": _FFN[1:]}.get(
        figure.other_knob, _FFN
    )
    fewer = figure.metric == "throughput_gap_nact_1_vs_8"
    cells = _cells(figure, [((ffn, e, 1), (ffn, e, 8)) for ffn in widths for e in _VARIANT_EXPERTS])
    found = [_fall(eight, one) if fewer else ratio(one, eight, percent=True) for one, eight in cells]
    note = "a gap is taken as what is lost of the throughput at n_a 1" if fewer else ""
    return found, "; ".join(t for t in (note, f"{len(cells)} cells fit") if t)


def _experts(figure: Figure) -> tuple[Ratios, str]:
    cells = _cells(figure, [((_FFN[0], 64, k), (_FFN[0], 8, k)) for k in _VARIANT_ACTIVE])
    return [ratio(many, few, percent=True) for many, few in cells], "expert width 1,792"


def _fp8(figure: Figure) -> tuple[Ratios, str]:
    model, highest = model_of(figure.model), "highest" in figure.other_knob
    cases = [(128, _LENGTH)] if highest else [(16, n) for n in (128, 512, 2048)]
    found = [
        ratio(
            _speed(figure, model, "tp=4", "dtype=fp8", batch=b, length=n),
            _speed(figure, model, "tp=4", batch=b, length=n),
            percent=True,
        )
        for b, n in cases
    ]
    return found, "4 GPUs; " + ("batch 128" if highest else "batch 16, 128 to 2,048 tokens")


def _pruning(figure: Figure) -> tuple[Ratios, str]:
    cuts = ("50",) if "50pct" in figure.metric else ("12.5", "25")
    found = []
    for model in ("qwen1.5-moe-a2.7b", "olmoe-1b-7b"):
        native = _speed(figure, model)
        found += [ratio(_speed(figure, model, f"prune_inter={cut}"), native, percent=True) for cut in cuts]
    return found, "experts pruned, n_a kept"


def _parallel(
    sets: Sequence[str], base: Sequence[str], percent: bool
) -> Callable[[Figure], tuple[Ratios, str]]:
    def statement(figure: Figure) -> tuple[Ratios, str]:
        model = model_of(figure.model)
        plain = replace(figure, n_gpus="")
        found = [
            ratio(_speed(plain, model, *sets, batch=b), _speed(plain, model, *base, batch=b), percent) for b in (1, 16)
        ]  # fmt: skip
        return found, "batches 1 and 16, 2,048 tokens in and out; one GPU would not hold the model"

    return statement


def _fused(figure: Figure) -> tuple[Ratios, str]:
    model = model_of(figure.model)
    cases = [(b, _LENGTH) for b in (1, 16, 64)] if figure.other_knob == "batch sweep" else [
        (16, n) for n in (128, 512, 2048)
    ]  # fmt: skip
    found = [
        ratio(
            _speed(figure, model, batch=b, length=n),
            _speed(figure, model, "experts=unfused", batch=b, length=n),
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
        tiny, full = (
            _speed(figure, f"deepseek-{n}", batch=batch, metric=metric) for n in ("vl2-tiny", "vl2")
        )
        found.append(_fall(tiny, full) if "reduction" in figure.metric else ratio(full, tiny, percent=True))
    return (
        found,
        "batches 16 and 64, 2,048 prompt tokens, image tokens among them; the vision encoder is not in it",
    )


def _drafted(figure: Figure, draft: str, tokens: int, accepted: float, length: int = _LENGTH) -> Estimate:
    sets = (f"draft={draft}", f"draft_tokens={tokens}", f"acceptance={accepted}")
    return _speed(figure, model_of(figure.model), *sets, batch=1, length=length)


def _more_drafts(figure: Figure) -> tuple[Ratios, str]:
    found = []
    for accepted in _ACCEPTED:
        steps = [_drafted(figure, "qwen3-1.7b", tokens, accepted) for tokens in (1, 3, 5, 8)]
        found += [ratio(b, a, percent=True) for a, b in itertools.pairwise(steps)]
    return found, f"{_DRAFTS}; 1 to 3, 3 to 5 and 5 to 8 tokens of Qwen3-1.7B"


def _drafts_by_length(figure: Figure) -> tuple[Ratios, str]:
    draft = "qwen3-1.7b" if "1.7B" in figure.metric else "qwen3-4b"
    lengths = (_LENGTH, 128)
    found = [_fall(*(_drafted(figure, draft, 3, a, n) for n in lengths)) for a in _ACCEPTED]
    return (
        found,
        f"{_DRAFTS}; 3 tokens of {draft}, 128 to 2,048 tokens in and out; beside Qwen3-8B one H100 does not hold the model",
    )


def _scout(figure: Figure) -> tuple[Ratios, str]:
    plain, model = replace(figure, hw="H100", n_gpus=""), model_of(figure.model)
    found = []
    for batch in (1, 16):
        times = [
            _speed(plain, model, "dtype=int4", batch=batch, length=n, metric="e2e")
            for n in (1024, 2048, 4096)
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
    "throughput_drop_len256_to_512": _lengths(512, 256, _fall),
    "throughput_drop_len1024_to_2048": _lengths(2048, 1024, _fall),
    "throughput_gain": _gain,
    "throughput_change_ffn_1792_to_14336": _ffn,
    "throughput_gap_nact_1_vs_8": _active,
    "throughput_gain_nact_1_over_8": _active,
    "throughput_change_experts_8_to_64": _experts,
    "throughput_gain_fp8_over_fp16": _fp8,
    "throughput_effect_pruning_12.5_25pct": _pruning,
    "throughput_effect_pruning_50pct": _pruning,
    "throughput_speedup_TP_1_to_4": _parallel(("tp=4",), (), percent=False),
    "throughput_TP_EP_vs_TP": _parallel(("tp=4", "ep=4"), ("tp=4",), percent=True),
    "throughput_PP": _parallel(("pp=4",), (), percent=True),
    "throughput_gain_fused_moe": _fused,
    "throughput_vs_draft_tokens": _more_drafts,
    "throughput_drop_with_length_draft1.7B": _drafts_by_length,
    "throughput_drop_with_length_draft4B_8B": _drafts_by_length,
    "latency_growth_H100_above_1024": _scout,
}
