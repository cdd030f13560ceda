"""Measurements -> fitted coefficients of a machine, each group scored on shapes that its fit did not see.

A group is the rows of one op family, one element type and one engine; a family measured with several engines also gets
coefficients for `any`, whose interval covers the spread between them. `tables` and `own` read measurements, `fit` finds
coefficients, `profile` writes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.calibrate.fit import Fit, Problem, fit, held_out
from moetrace.calibrate.interval import WITHIN, Coverage, Interval, interval, on_other_half
from moetrace.calibrate.measured import Measured, family_of
from moetrace.calibrate.tables import read_measurements
from moetrace.cost import price
from moetrace.cost.check import wrong_unit
from moetrace.errors import CalibrationError
from moetrace.given import several
from moetrace.hardware import ANY_ENGINE, FORM_OF, SCHEMAS, Family, Hardware, load_hardware
from moetrace.machines.forms import Cache
from moetrace.machines.gpu import tokens_of
from moetrace.machines.seen import ranges

MAX_ROWS, MAX_TOKENS = 3000, 512
_HOPELESS = 0.4  # mean held-out error above which the form does not describe the rows
_APART = 0.3  # the same of engines together: above it their kernels are too far apart for one set
_IMPOSSIBLE = 0.02
_LIBRARIES = ("nccl", "deepep")
# Of these rows, those above the most tokens: too few to bend the fit of small ones, enough to show what large ones reach: a
# GEMM or an MoE module the peak, an exchange the links' rate.
_ABOVE = {"gemm": 0.07, "experts": 0.1, "exchange": 0.07}


@dataclass(frozen=True, slots=True)
class Group:
    """One fitted key of a profile and what is known of it. Errors are of held-out rows, as shares of the measured time."""

    key: str
    form: str
    fit: Fit
    rows: int
    shapes: int
    kernels: tuple[str, ...]
    mean: float
    median: float
    interval: Interval
    coverage: tuple[Coverage, ...]  # of intervals drawn from the other half of the shapes
    by_kernel: Mapping[str, tuple[float, float]]
    seen: Mapping[str, tuple[float, float]]  # least and most of each size of the rows: see machines/seen
    alone: bool = False  # of `any`: one engine's coefficients, no set holds for all


@dataclass(frozen=True, slots=True)
class Calibration:
    """The groups that were fitted, and those that were not with the reason, for one machine."""

    hardware: Hardware
    groups: tuple[Group, ...]
    refused: Mapping[str, str]
    source: str
    date: str


def calibrate(
    measurements: Sequence[str | Path] | str | Path,
    hw: Hardware | str,
    *,
    cache: Cache = "warm",
    max_tokens: int = MAX_TOKENS,
    max_rows: int = MAX_ROWS,
) -> Calibration:
    """Coefficients of `hw` fitted to the measurements (tables or RUN directories), starting from its own.

    Rows of more than `max_tokens` are left out, of more than `max_rows` in a group a random part is taken; `cache` says
    whether small weights stayed in the cache while the rows were measured. Raises CalibrationError if a table cannot be
    read or no group can be fitted.
    """
    hw = load_hardware(hw)
    if hw.law != "gpu":
        raise CalibrationError(
            f"{hw.name}: coefficients of the {hw.law} law are not fitted; expected a gpu profile"
        )
    paths = several(
        measurements, (str, os.PathLike), "table of measurements", "expected its path", CalibrationError
    )
    tables = [read_measurements(Path(path), hw.base or hw.name) for path in paths]
    for table, path in zip(tables, paths, strict=True):
        law_s = price(work_of.works(table.ops), hw).expected_s
        if Path(path).is_file() and (problem := wrong_unit(table.seconds, law_s)):
            raise CalibrationError(f"{path}: {problem}")
    groups: list[Group] = []
    refused: dict[str, str] = {}
    for key, form, rows, beyond in groups_of(Measured.join(tables), hw, max_tokens, max_rows):
        try:
            groups.append(_fitted(key, form, rows, beyond, hw, cache, max_tokens))
        except CalibrationError as error:
            fastest = _fastest(groups, key, rows, hw, cache)
            if fastest is None:
                refused[key] = str(error)
            else:
                groups.append(fastest)
    if not groups:
        why = "; ".join(f"{key}: {text}" for key, text in refused.items()) or "no row has a known kind"
        raise CalibrationError(f"nothing was fitted: {why}")
    named = ", ".join(dict.fromkeys(table.source for table in tables))
    return Calibration(hw, tuple(groups), refused, named, f"{datetime.now(timezone.utc):%Y-%m-%d}")


def facts_of(key: str, form: str, hw: Hardware) -> dict[str, float]:
    """What the machine's profile says of this key's kernels that no fit changes (`Parameter.given`)."""
    own = hw.families.get(key)
    told = own.value if own is not None and own.form == form else {}
    return {name: told.get(name, p.start) for name, p in SCHEMAS[form].parameters.items() if p.given}


def _fastest(groups: Sequence[Group], key: str, rows: Measured, hw: Hardware, cache: Cache) -> Group | None:
    """What `any` takes where kernels are too far apart for one set: those of the engine that is fastest on average over the
    rows of all, with an interval that holds 80 % of these."""
    found = [g for g in groups if g.key.startswith(f"{key}@")]
    if not found:
        return None
    problem = Problem.of(found[0].form, rows, hw, cache)
    fastest = min(found, key=lambda g: float(problem.log_error(g.fit.value).mean()))
    value = fastest.fit.value
    errors, parts = problem.log_error(value), problem.form.seconds(value, problem.works, problem.at)
    drawn = interval(errors, problem.works, parts, rows.shape)
    told = on_other_half(errors, problem.works, parts, rows.shape)
    return replace(fastest, key=key, alone=True, interval=drawn, coverage=told)


def groups_of(
    table: Measured, hw: Hardware, max_tokens: int, max_rows: int
) -> Iterator[tuple[str, str, Measured, Measured]]:
    """(key, form, rows to fit, larger ones) of each op family, element type and engine, then of all engines together."""
    size = np.full(len(table), np.nan)
    for name in ("tokens", "m", "batch"):
        size = np.where(np.isnan(size), table.ops.column(name), size)
    small = np.isnan(size) | (size <= max_tokens)
    names = []
    for op in table.ops.types:
        family, weights = family_of(op.kind), op.weight_dtype
        names.append(family if weights in ("bf16", "fp16") else f"{family}:{weights}")
    of_type = np.array(names)[table.ops.code]
    for name in sorted(set(of_type.tolist())):
        mine = small & (of_type == name)
        engines = [e for e in sorted(set(table.engine[mine].tolist())) if e != ANY_ENGINE]
        parts, larger, share = [], [], _ABOVE.get(form_of(name), 0.0)
        for engine in engines:
            kernel = _main_kernel(table, mine & (table.engine == engine))
            these = (table.engine == engine) & (table.kernel == kernel)
            above = _sample(these & (of_type == name) & ~small, max_rows)
            fitted = int(max_rows * share)
            parts.append((_sample(mine & these, max_rows), above[:fitted]))
            larger.append(above[fitted : fitted + max_rows // 4])
            yield (
                f"{name}@{engine}",
                form_of(name, engine),
                table.take(np.concatenate(parts[-1])),
                table.take(larger[-1]),
            )
        if not engines:
            beyond = _sample((of_type == name) & ~small, max_rows // 4)
            yield name, form_of(name), table.take(_sample(mine, max_rows)), table.take(beyond)
        else:
            each = max_rows // len(parts)
            # What any engine takes is not drawn by an engine's second kernel (ENGINE_KERNEL), by a bare library's, nor by one
            # whose rows beat the datasheet: what they read was not what they say.
            named = [e for e in engines if "_" not in e and e not in _LIBRARIES] or engines
            first = {e: part for e, part in zip(engines, parts, strict=True) if e in named}
            firsts = [part for part in first.values() if not _beats_datasheet(table.take(part[0]), hw)]
            firsts = firsts or list(first.values())
            fewest = min(each, *(few.size for few, _ in parts))
            pooled = [rows for few, many in firsts for rows in (few[:fewest], many[: int(fewest * share)])]
            beyond = np.concatenate([
                more for part, more in zip(parts, larger, strict=True) if any(part is one for one in firsts)
            ])  # fmt: skip
            yield name, form_of(name, *named[:1]), table.take(np.concatenate(pooled)), table.take(beyond)


def form_of(name: str, engine: str = ANY_ENGINE) -> str:
    """The form of a family, or of an engine's kernel that has another one."""
    family = name.split(":")[0]
    return FORM_OF.get(f"{family}@{engine}", FORM_OF.get(family, "generic"))


def _beats_datasheet(rows: Measured, hw: Hardware) -> bool:
    """Whether more than one in fifty of the rows that exceed the cache took less than their bytes at the memory's full rate."""
    works = work_of.works(rows.ops)
    nbytes = np.where(works["net_bytes"] > 0, 0.0, works["bytes_min"])
    large = nbytes > hw.memory.cache_bytes
    return (
        bool(np.mean((nbytes / hw.memory.bytes_per_s > rows.seconds)[large]) > _IMPOSSIBLE)
        if large.any()
        else False
    )


def _main_kernel(table: Measured, rows: npt.NDArray[np.bool_]) -> str:
    """The engine's kernel that was measured on most shapes: others of the same name in the engine are other kernels."""
    kernels: list[str] = sorted(set(table.kernel[rows].tolist()))
    return max(kernels, key=lambda k: int(np.unique(table.shape[rows & (table.kernel == k)]).size))


def _sample(rows: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.int64]:
    index = np.random.default_rng(0).permutation(np.flatnonzero(rows))
    return np.asarray(index[:most], dtype=np.int64)


def _fitted(
    key: str, form: str, rows: Measured, beyond: Measured, hw: Hardware, cache: Cache, max_tokens: int
) -> Group:
    """The fit to `rows`; how far off it is of `beyond`, which it has not seen, only tells the interval of larger ops."""
    problem = Problem.of(form, rows, hw, cache)
    start = _start(hw.families.get(key), form)
    whole = Measured.join([rows, beyond])
    every = Problem.of(form, whole, hw, cache)
    errors = held_out(every, start, fitted=len(rows))
    found = fit(problem, start)
    small = ~(tokens_of(problem.works) > max_tokens)  # the score is of these, the interval of larger ones too
    off, kernel = np.abs(np.expm1(errors[: len(rows)]))[small], rows.kernel[small]
    if off.mean() > (_HOPELESS if "@" in key or np.unique(rows.engine).size < 2 else _APART):
        raise CalibrationError(
            f"no one set of coefficients holds for {', '.join(sorted(set(kernel.tolist())))}: held-out rows are off by "
            f"{off.mean():.0%} in the mean"
        )
    kernels = sorted(set(kernel.tolist()))
    by_kernel = {k: (float(off[kernel == k].mean()), float(np.median(off[kernel == k]))) for k in kernels}
    parts = every.form.seconds(found.value, every.works, every.at)
    drawn = replace(interval(errors, every.works, parts, whole.shape), error=float(np.quantile(off, WITHIN)))
    told = on_other_half(errors, every.works, parts, whole.shape)
    return Group(
        key, form, found, len(rows), int(np.unique(rows.shape).size), tuple(kernels), float(off.mean()),
        float(np.median(off)), drawn, told, by_kernel, ranges(rows.ops),
    )  # fmt: skip


def _start(own: Family | None, form: str) -> dict[str, float]:
    """What the profile itself says of these coefficients; one older than a coefficient does not say that it is off."""
    if own is None or own.form != form or own.provenance == "assumed":
        return {}
    return {name: value for name, value in own.value.items() if name in own.named}


def summary(found: Calibration) -> dict[str, Any]:
    """What was fitted, JSON-able (schema ``moetrace.calibrate/1``)."""
    return {
        "schema": "moetrace.calibrate/1",
        "hardware": found.hardware.name,
        "source": found.source,
        "date": found.date,
        "groups": [
            {
                "key": g.key,
                "form": g.form,
                "rows": g.rows,
                "shapes": g.shapes,
                "kernels": list(g.kernels),
                "held_out_mean": g.mean,
                "held_out_median": g.median,
                **asdict(g.interval),
                "coverage": [asdict(one) for one in g.coverage],
                "by_kernel": {k: list(v) for k, v in g.by_kernel.items()},
                "alone": g.alone,
                "coefficients": dict(g.fit.value),
                "fitted": list(g.fit.fitted),
                "kept": list(g.fit.kept),
                "covariance": g.fit.covariance.tolist(),
                "seen": {name: list(ends) for name, ends in g.seen.items()},
            }
            for g in found.groups
        ],
        "refused": dict(found.refused),
    }


__all__ = ["Calibration", "Group", "calibrate", "facts_of", "groups_of", "summary"]
