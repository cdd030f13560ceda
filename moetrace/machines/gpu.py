"""The timing law of GPUs (and, with other figures, of CPUs): each op by the form of its family, collectives by the links.

    expected = form(coefficients, work, machine) + network

A profile names the form of each family and its coefficients (machines/forms has the formulas; the fit: `moetrace
calibrate`). Coefficients belong to (family, dtype, engine), never to a model. Not modelled by any form: clocks, contention
between streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moetrace.errors import ProfileError
from moetrace.hardware import ANY_ENGINE, Family, Hardware
from moetrace.machines import links
from moetrace.machines.forms import FORMS, Cache, Setting
from moetrace.op import Costs, FloatArray, Works

_TOKEN_DIMS = ("tokens", "m", "batch")  # what an op's size is told by, best first


def cost(
    works: Works,
    families: Sequence[str],
    hw: Hardware,
    *,
    engine: str = ANY_ENGINE,
    cache: Cache = "cold",
) -> Costs:
    """Costs of distinct ops on one GPU of `hw`. nan where the work is unknown or the profile has no peak or link for it."""
    found = [
        hw.family(op.kind, family, op.weight_dtype, engine)
        for op, family in zip(works.ops, families, strict=True)
    ]
    reasons = [f"{hw.name} {f.provenance} {key}" for key, f in found]
    peak = peaks(works, hw, reasons)
    compute_s, memory_s, fixed_s, expected_s, error = (np.zeros(len(works)) for _ in range(5))
    members: dict[str, list[int]] = {}
    for i, (key, _) in enumerate(found):
        members.setdefault(key, []).append(i)
    for at in members.values():
        index = np.array(at, dtype=np.int64)
        family, some = found[at[0]][1], works.take(index)
        parts = FORMS[family.form].seconds(family.value, some, Setting(hw, peak[index], cache))
        compute_s[index], memory_s[index] = parts.compute_s, parts.memory_s
        fixed_s[index], expected_s[index] = parts.fixed_s, parts.expected_s
        error[index] = errors(family, some)
    lower_s = np.maximum(works["bytes_min"] / hw.memory.bytes_per_s, works["flops"] / peak)
    network_s = np.zeros(len(works))
    for i in np.flatnonzero((works["net_bytes"] > 0) & (works["net_ranks"] > 1)).tolist():
        # The local reads and writes of a collective are a part of what was fitted: they are not counted twice.
        memory_s[i] = compute_s[i] = 0.0
        fixed_s[i], network_s[i], lower_s[i], error[i] = _network(works, i, hw, reasons)
        expected_s[i] = fixed_s[i] + network_s[i]
    return finish(works.known, (compute_s, memory_s, network_s, fixed_s), expected_s, lower_s, error, reasons)


def errors(family: Family, works: Works) -> FloatArray:
    """The error of each op, [ops]: by the decade of its tokens where that was found, else the family's."""
    if not family.error_decades:
        return np.full(len(works), family.error)
    tokens = tokens_of(works)
    decade = np.floor(np.log10(np.maximum(np.nan_to_num(tokens, nan=1.0), 1.0)))
    by_decade = np.array(family.error_decades)[
        np.minimum(decade, len(family.error_decades) - 1).astype(np.int64)
    ]
    return np.where(np.isnan(tokens), family.error, by_decade)


def tokens_of(works: Works) -> FloatArray:
    """What tells an op's size, [ops]: its tokens, a GEMM's rows, an attention's sequences; nan where it has none of these."""
    tokens = np.full(len(works), np.nan)
    for name in _TOKEN_DIMS:
        tokens = np.where(np.isnan(tokens), works.dim(name), tokens)
    return tokens


def peaks(works: Works, hw: Hardware, reasons: list[str]) -> FloatArray:
    """Peak FLOP/s for each op; inf where it does no FLOPs, nan (and the reason) where the machine has no path for it."""
    out = np.full(len(works), np.inf)
    flops = works["flops"]
    for i, op in enumerate(works.ops):
        if flops[i] > 0:
            try:
                out[i] = hw.peak(op.compute_dtype)
            except ProfileError as error:
                out[i], reasons[i] = np.nan, str(error)
    return out


def finish(
    known: npt.NDArray[np.bool_],
    parts: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    expected_s: FloatArray,
    lower_s: FloatArray,
    error: FloatArray,
    reasons: Sequence[str],
) -> Costs:
    """Costs from (compute, memory, network, fixed) and the rest; nan throughout where the work or the machine is unknown."""
    good = known & np.isfinite(expected_s)
    compute_s, memory_s, network_s, fixed_s, expected, lower, spread = (
        np.where(good, column, np.nan) for column in (*parts, expected_s, lower_s, error)
    )
    why = tuple(
        reason if ok else "unknown: its dims did not suffice"
        for reason, ok in zip(reasons, known, strict=True)
    )
    return Costs(compute_s, memory_s, network_s, fixed_s, expected, lower, spread, why)


def _network(works: Works, i: int, hw: Hardware, reasons: list[str]) -> tuple[float, float, float, float]:
    """(latency, bandwidth time, lower bound, error) of one collective; nan and the reason if the profile cannot tell."""
    kind, sent, ranks = works.ops[i].kind, works["net_bytes"][i : i + 1], works["net_ranks"][i : i + 1]
    if hw.link is None:
        reasons[i] = f"unknown: profile {hw.name!r} has no link"
        return (np.nan,) * 4
    try:
        coefficients = links.coefficients(kind, hw.link)
    except ProfileError as error:
        reasons[i] = f"unknown: profile {hw.name!r}: {error}"
        return (np.nan,) * 4
    latency, bandwidth = links.seconds(kind, sent, ranks, hw.link)
    reasons[i] = f"{hw.name} {coefficients.provenance} {kind}"
    certain = links.certain_bytes(kind, sent, ranks) / hw.link.bytes_per_s
    return float(latency[0]), float(bandwidth[0]), float(certain[0]), coefficients.error
