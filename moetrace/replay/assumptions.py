"""What a prediction takes for granted, one sentence each, beside what its knobs said."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.hardware import FASTEST, OF_BF16, Hardware
from moetrace.op import Op
from moetrace.replay.anchor import KEPT, UNPRICED, Priced
from moetrace.replay.copies import copy_error
from moetrace.replay.distinct import UNIFORM
from moetrace.replay.draft import EXPERTS, Draft
from moetrace.replay.launching import launches_said
from moetrace.run import GENERATING

IntArray = npt.NDArray[np.int64]
_MANY = 2  # times the step's tokens: more rows than that are not its tokens'
_BLOCK = 128  # rows and columns of weights that share a scale in fp8_block
_WORTH_SAYING = 0.05  # of the predicted time


def assumptions_of(
    draft: Draft, source: Hardware | None, priced: Priced, measured: IntArray, dur: IntArray
) -> list[str]:
    """What the prediction takes for granted beside what the knobs said. `measured` and `dur` (predicted): ns by row."""
    meta, hw = draft.run.meta, draft.hw
    said = [*_of_anchor(draft, source), *_of_machine(draft, priced), *_of_blocks(draft)]
    if source is not None:
        said += _of_copies(draft)
    elif meta.kind != "synthesized":  # that one is of no engine
        said += _of_engine(draft, dur)
    how, own = priced.how[draft.cell], ~draft.inserted
    total = max(1, int(measured[own].sum()))
    dark, kept = (_share(int(measured[own & (how == k)].sum()) / total) for k in (UNPRICED, KEPT))
    if (own & (how == UNPRICED)).any():
        said.append(
            f"ops whose work is not known count as nothing, {dark} of the measured time: steps are too short by their part"
        )
    if (how == KEPT).any() and source is not None and source.chip != hw.chip:
        said.append(
            f"ops whose work is not known, {kept} of the measured time, are kept as measured, within a factor of two"
        )
    if draft.base.outside:
        said.append(f"{draft.base.outside} op(s) outside of every step are left out")
    if "layers" not in draft.scenario.texts():
        said += fewer_layers(draft.layers, meta.native_layers)
    return said


def fewer_layers(recorded: int, native: int | None) -> list[str]:
    """What to say where a model's depth was not all recorded, and is replayed so."""
    if not native or not 0 < recorded < native:
        return []
    return [
        f"{recorded} of the model's {native} layers were recorded and replayed: --set layers=native gives the real depth"
    ]


def _of_anchor(draft: Draft, source: Hardware | None) -> list[str]:
    """What is taken for granted because of where the measurement was made."""
    meta, hw = draft.run.meta, draft.hw
    if source is not None:
        if hw.name == source.name:
            return []
        sure = "" if source.chip == hw.chip else " (within a factor of two, as the interval has it)"
        return [f"idle time is the recording's: the host launches as fast there{sure}, dependency gaps stay"]
    if meta.kind != "measured":
        why = f"the run is {meta.kind}, not measured"
    elif meta.device_class != hw.device_class:
        why = f"the recording was made on a {meta.device_class}, and {hw.name} is a {hw.device_class}"
    else:
        why = f"the machine of the recording ({meta.device or 'not named'}) has no profile"
    said = [
        f"unanchored: {why}, so only ops, dims, order and routing carry over and every time is the law's",
        launches_said(draft, source),
    ]
    if meta.device_class == "cpu" and draft.scenario.get("fusion", "runs") == "recorded":
        said.append("each recorded operator is one kernel there: a serving engine fuses many small ones")
    guessed = (op for op in draft.ops if op.kind in EXPERTS and op.has("experts", "topk", "tokens"))
    if any(not op.has("distinct") and not op.has("distinct_est") for op in guessed):
        said.append(UNIFORM)
    return [text for text in said if text not in draft.notes]


def _of_copies(draft: Draft) -> list[str]:
    said = copy_error(draft)[1]
    return [said] if said else []


def _of_machine(draft: Draft, priced: Priced) -> list[str]:
    """What the machine's law leaves out or borrows."""
    said = []
    if draft.hw.device_class == "wafer":
        said.append(
            "the tokens of a step follow each other through the wafer's layers: each further token takes as long as the whole "
            "machine needs for it, and with too few tokens under way part of the machine idles. Drafted tokens, if a service "
            "uses any, are not included (docs/hardware.md)"
        )
    for key, engine in _remarks(priced, FASTEST):
        said.append(
            f"{key}: engines' kernels on {draft.hw.name} are too far apart for one law, so that of {engine}, the "
            "fastest on average over what was measured, is taken; of a single size another may be faster, which the interval "
            "allows for: name the engine (--set engine=...)"
        )
    borrowed = _remarks(priced, OF_BF16)
    factors = [1.0 + draft.hw.narrow_error(re.split("[:@]", key)[0], dtype) for key, dtype in borrowed]
    for factor in sorted(set(factors)):
        what = ", ".join(
            f"{dtype} {key}" for (key, dtype), own in zip(borrowed, factors, strict=True) if own == factor
        )
        much = "two" if factor == 2.0 else f"{factor:.3g}"
        said.append(
            f"{draft.hw.name} has no coefficients for {what}: those of 16-bit kernels, with an error of a factor of {much} "
            "more"
        )
    return said


def _of_blocks(draft: Draft) -> list[str]:
    """What engines do not load: experts cut within a block of weights that share a scale (vllm-project/vllm#17569)."""
    gpu = draft.hw.device_class == "gpu"
    own = [op for op in draft.ops if op.kind in EXPERTS and op.dtype == "fp8_block" and op.has("inter")]
    cut = sorted({op["inter"] for op in own if op["inter"] % _BLOCK}) if gpu else []
    return [
        f"a rank's part of an expert is {width} wide, no whole number of the {_BLOCK} that share a scale in fp8_block: vLLM "
        "and SGLang do not load a checkpoint cut so (a smaller tp or a larger ep leaves blocks whole)"
        for width in cut
    ]


def _remarks(priced: Priced, remark: str) -> list[tuple[str, str]]:
    """(key, what follows) of the coefficients whose key has this remark."""
    pattern = re.compile(rf"(\S+) \({remark} (\w+)\)")
    return sorted(
        {(found[1], found[2]) for text in set(priced.provenance) if (found := pattern.search(text))}
    )


def _of_engine(draft: Draft, dur: IntArray) -> list[str]:
    """What the recording's engine ran and another would not, by its share of the predicted (decode) time."""
    hw, steps = draft.hw, draft.steps
    decode = np.array([step.phase in GENERATING for step in steps])[draft.base.step[draft.rows]]
    ns = np.bincount(draft.cell, dur * (decode if decode.any() else 1), len(draft.ops))
    total = max(1.0, float(ns.sum()))
    anew = [
        _is_projection(op) and op["m"] > _MANY * (steps[at.step].tokens or np.inf)
        for op, at in zip(draft.ops, draft.at, strict=True)
    ]
    small = [op.kind == "elementwise" for op in draft.ops]
    parts = []
    if ns[anew].sum() > _WORTH_SAYING * total:
        parts.append(
            "projections of far more rows than the step has tokens, as where MLA's cached latents are expanded again in "
            f"every step ({_share(float(ns[anew].sum()) / total)} of the predicted time)"
        )
    if hw.device_class == "wafer" and ns[small].sum() > _WORTH_SAYING * total:
        parts.append(
            f"casts, copies and other elementwise kernels ({_share(float(ns[small].sum()) / total)} of the predicted time)"
        )
    if not parts:
        return []
    return [
        f"{' and '.join(parts)} are the recording engine's: an engine made for {hw.name} would not run them so"
    ]


def _is_projection(op: Op) -> bool:
    return op.has("m", "n", "k") and work_of.family(op.kind) == "dense_gemm"


def _share(part: float) -> str:
    return f"{100 * part:.1f} %" if part >= 0.001 else "under 0.1 %"
