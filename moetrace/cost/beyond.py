"""Which ops lie beyond what a machine's coefficients were calibrated on, and why, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost.price import PriceContext, as_priced
from moetrace.hardware import (
    ANY_ENGINE,
    FOREIGN,
    FORM_OF,
    OF_BF16,
    UNLIKE,
    Family,
    Hardware,
    coefficient_family,
)
from moetrace.machines.gpu import families_of
from moetrace.machines.seen import sizes
from moetrace.op import Op, Works

BoolArray = npt.NDArray[np.bool_]
TRANSFERRED = "transferred from"
# Kinds of which no kernel was measured on any machine here: they are streams of bytes by assumption.
_NEVER = frozenset({"linear_attention", "linear_conv", "linear_prep", "index_scores", "index_topk"})
_LIMIT = re.compile(r"(.+ (?:above|below)) [^ ]+")  # a size's end, without its number
_SPLIT = re.compile("[:@ ]")  # a key's family from its element type, engine and remark


def beyond(works: Works, hw: Hardware, context: PriceContext) -> Iterator[tuple[str, BoolArray]]:
    """(reason, which ops it holds for [ops]) of all that the coefficients of `hw` were not calibrated on.

    Reasons: another machine's coefficients, kernels of it that do not carry over, another element type's or engine's,
    assumed ones, and each size outside of the least and the most that the fit saw. Only of families that are measured anywhere:
    the small kernels round them are assumed on every machine, and their errors say so. Linear attention and indexers are named
    all the same: they are attention's.
    """
    works = works if hw.law == "wafer" else as_priced(works)
    types = works.ops.types
    found = families_of(works, [work_of.family(op.kind) for op in types], hw, context.engine)
    size = sizes(works.ops)
    for at, (op, (key, family)) in enumerate(zip(types, found, strict=True)):
        name = op.kind if op.kind in FORM_OF else coefficient_family(op.kind, work_of.family(op.kind))
        if op.kind in _NEVER and (mine := (works.ops.code == at) & works.known).any():
            yield f"{op.kind}: assumed, no kernel of it was measured", mine
        if name not in FORM_OF or _SPLIT.split(key)[0] not in FORM_OF:
            continue
        mine = (works.ops.code == at) & works.known
        if not mine.any():
            continue
        for reason in _of_type(op, name, key, family, hw, context.engine):
            yield reason, mine
        for dim, values in size.items():
            known = mine & np.isfinite(values)
            if not family.seen or not known.any():
                continue
            ends = _ends(family.seen, dim, hw, context)
            if ends is None:
                yield f"{name} by {dim}", known
                continue
            low, high = ends
            for word, end, out in (("above", high, values > high), ("below", low, values < low)):
                if (out & known).any():
                    yield f"{name} {dim} {word} {end:g}", out & known


def _ends(
    seen: Mapping[str, tuple[float, float]], dim: str, hw: Hardware, context: PriceContext
) -> tuple[float, float] | None:
    """The least and the most of a size that a fit saw, by another fit too where every matrix lies over a whole wafer."""
    whole = hw.wafer.mesh_seen if hw.wafer and context.placement == "whole" else {}
    found = [ends[dim] for ends in (seen, whole) if dim in ends]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _of_type(op: Op, name: str, key: str, family: Family, hw: Hardware, engine: str) -> Iterator[str]:
    """What holds for all ops of a type."""
    if op.kind in UNLIKE:
        yield f"{op.kind}: coefficients of {name}, no kernel of its own was measured"
    if family.provenance.startswith(TRANSFERRED):
        yield f"{hw.base or hw.name} itself: {family.provenance.partition(FOREIGN)[0].rstrip()}"
        if FOREIGN in family.provenance:
            yield f"{name}: kernels that do not carry over"
    elif family.provenance == "assumed":
        yield f"{name} of {op.weight_dtype}: assumed"
    if OF_BF16 in key:
        yield f"{name} of {op.weight_dtype}: 16-bit coefficients"
    chosen = engine.partition("@")[0]
    if chosen != ANY_ENGINE and f"@{chosen}" not in key:
        yield f"{name} of {chosen}: another engine's coefficients"
    if hw.is_other_version(engine):
        yield f"{engine}: coefficients of {hw.engines.get(chosen, 'a version that is not told')}"


def said(reasons: Mapping[str, Sequence[str]]) -> str:
    """The reasons of each phase as one text, such as ``decode: attention context above 16384; prefill: ...``; "" without."""
    out = ""
    for phase in sorted(reasons):
        out = with_phase(out, phase, reasons[phase])
    return out


def _once(reasons: Sequence[str]) -> list[str]:
    """The reasons in order, each once: of a size that element types saw up to other ends, the end that is passed first."""
    out: dict[str, str] = {}
    for reason in sorted(reasons):
        found = _LIMIT.fullmatch(reason)
        what = found[1] if found else reason
        if what not in out or (found and _passed_first(reason, out[what])):
            out[what] = reason
    return list(out.values())


def _passed_first(limit: str, other: str) -> bool:
    """Whether a size passes one limit before another of the same kind."""
    (one, word), (two, _) = ((float(text.split()[-1]), text.split()[-2]) for text in (limit, other))
    return one < two if word == "above" else one > two


def with_phase(text: str, phase: str, reasons: Sequence[str]) -> str:
    """The text with one more phase, named beside the last where its reasons are the same."""
    if not reasons:
        return text
    why = ", ".join(_once(reasons))
    first, _, last = text.rpartition("; ")
    named, _, before = last.partition(": ")
    if before == why:
        return f"{first}; {named} and {phase}: {why}" if first else f"{named} and {phase}: {why}"
    return f"{text}; {phase}: {why}" if text else f"{phase}: {why}"
