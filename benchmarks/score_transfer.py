"""Scores what a machine's coefficients are worth on another of which only the datasheet is known: H100 to A100 and back, bf16.

    python benchmarks/score_transfer.py FOLDER

FOLDER holds the public tables of make_profiles.py. Every engine's coefficients of one machine, fixed times at the other's
clock, price the other's rows (decode sizes, unflagged, L2 warm as they were measured); what MoE kernels' facts say, which are
of an engine's version and not of a chip, is that of the version that was measured there. Mean / median absolute error in
percent: with fixed times as they are, at the other's pace, and at that pace from the same op's measurement on the first
machine. Then, of those at the pace: the factor that 80 % of the rows lie within, the share of them that the first machine's
intervals hold, and the `widen` of a profile with which these would hold 80 %. Last, by family, the `widen` of all engines and
ways alike, and the least and the most that it holds of the rows of one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.cost.anchors import anchored_s
from moetrace.hardware import FORM_OF, Family, Hardware, coefficient_family, load_hardware, schema
from moetrace.machines.forms import FORMS, Setting
from moetrace.machines.gpu import errors, peaks, tokens_of
from moetrace.op import FloatArray

TABLES = (
    "moe_perf", "gemm_perf", "mla_bmm_perf", "generation_attention_perf", "generation_mla_perf", "nccl_perf",
    "custom_allreduce_perf",
)  # fmt: skip
NAMES = ("h100-sxm", "a100-sxm")
MOST_TOKENS = 512
_EACH = 1000
_WIDTHS = (7, 13, 13, 14, 7, 5, 7)


def priced(rows: Measured, family: Family, hw: Hardware) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(seconds by the law, share of them that no faster resource saves, error of its interval) of rows on `hw`, [rows]."""
    works = ops.works(rows.ops)
    at = Setting(hw, peaks(works, hw, [""] * len(rows.ops.types)), "warm")
    parts = FORMS[family.form].seconds(family.value, works, at)
    floor = np.clip(parts.fixed_s / parts.expected_s, 0.0, 1.0)
    return parts.expected_s, floor, errors(family, works, parts)


def measured(folder: Path, tables: Sequence[str]) -> dict[str, Measured]:
    """The rows of these tables, by machine."""
    return {
        name: Measured.join([read_measurements(folder / f"{table}.parquet", name) for table in tables])
        for name in NAMES
    }


def groups(tables: dict[str, Measured]) -> Iterator[tuple[str, dict[str, Measured]]]:
    """(family, rows by machine) of every family and engine that both machines were measured with, 16-bit types alone."""
    found: dict[str, dict[str, Measured]] = {}
    for name, table in tables.items():
        size = tokens_of(ops.works(table.ops))
        small = np.isnan(size) | (size <= MOST_TOKENS)
        for code, op in enumerate(table.ops.types):
            if op.weight_dtype not in ("bf16", "fp16"):
                continue
            own = op.kind if op.kind in FORM_OF else coefficient_family(op.kind, ops.family(op.kind))
            rows = small & (table.ops.code == code)
            for engine in sorted(set(table.engine[rows].tolist())):
                mine = rows & (table.engine == engine)
                kernels, count = np.unique(table.kernel[mine], return_counts=True)
                mine &= table.kernel == kernels[count.argmax()]
                found.setdefault(f"{own}@{engine}", {})[name] = table.take(mine)
    yield from ((key, both) for key, both in sorted(found.items()) if len(both) == len(NAMES))


def on_other_version(own: Family, there: Family) -> Family:
    """MoE modules' coefficients with the facts of the engine's version, and of its benchmark, on the other machine."""
    if own.form != "experts":
        return own
    given = {name for name, parameter in schema(own.form).parameters.items() if parameter.given}
    told = {name: there.value[name] for name in given & there.named}
    return replace(own, value=MappingProxyType({**own.value, **told}))


def error(predicted: FloatArray, measured: FloatArray) -> str:
    off = np.abs(predicted / measured - 1)[np.isfinite(predicted)]
    return f"{100 * off.mean():5.1f} / {100 * np.median(off):4.1f}" if off.size else "   -   "


def within(predicted: FloatArray, measured: FloatArray) -> float:
    """The factor to either side that 80 % of the rows lie within."""
    return float(np.exp(np.nanquantile(np.abs(np.log(predicted / measured)), 0.8)))


def needed(off: FloatArray, stated: FloatArray) -> float:
    """The `widen` with which 80 % of rows lie within, from how far each is off and its own error, logarithms."""
    return float(np.expm1(np.sqrt(max(np.nanquantile(off**2 - stated**2, 0.8), 0.0))))


def _spread(rows: int) -> npt.NDArray[np.int64]:
    """As many rows of each engine, so that none outweighs another."""
    return np.linspace(0, rows - 1, _EACH).astype(np.int64)


def matched(one: Measured, two: Measured) -> tuple[list[int], list[int]]:
    """Rows of both that are the same op, each once."""
    names = sorted(set(one.ops.dims) | set(two.ops.dims))
    keys = [
        list(zip(*(np.nan_to_num(t.ops.column(n), nan=-1.0).round(3).tolist() for n in names), strict=True))
        for t in (one, two)
    ]
    there = {key: at for at, key in enumerate(keys[0])}
    pairs = [(there[key], at) for at, key in enumerate(keys[1]) if key in there]
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    folder = Path(sys.argv[1])
    machine = {name: load_hardware(name) for name in NAMES}
    tables = measured(folder, TABLES)
    open_rows: dict[str, list[FloatArray]] = {}
    heads = zip(
        ("rows", "as they are", "at the pace", "measured there", "80 % in", "held", "widen"),
        _WIDTHS,
        strict=True,
    )
    print(" " * 34 + "  ".join(f"{head:>{width}s}" for head, width in heads))
    for key, rows in groups(tables):
        for source, target in (NAMES, NAMES[::-1]):
            own = machine[source].families.get(key)
            if own is None or own.provenance != "fitted":
                continue
            here, there = rows[target], rows[source]
            ours = (
                own
                if (of_target := machine[target].families.get(key)) is None
                else on_other_version(own, of_target)
            )
            moved = ours.at_pace(machine[source].pace, machine[target].pace)
            still, _, _ = priced(here, ours, machine[target])
            found, _, stated = priced(here, moved, machine[target])
            a, b = matched(there, here)
            law_there, floor, _ = priced(there, own, machine[source])
            off = np.abs(np.log(found / here.seconds)), np.log1p(stated)
            open_rows.setdefault(key.partition("@")[0], []).append(np.stack(off))
            anchored = anchored_s(there.seconds[a], law_there[a], floor[a], found[b])
            print(
                f"{key:24s}{source[:4]}->{target[:4]}{len(here):7d}  {error(still, here.seconds):>13s}  "
                f"{error(found, here.seconds):>13s}  {error(anchored, here.seconds[b]):>14s}  "
                f"x {within(found, here.seconds):.2f}  {(off[0] <= off[1]).mean():5.0%}  {needed(*off):7.0%}"
            )
    for name, parts in open_rows.items():
        widen = needed(*np.concatenate([part[:, _spread(part.shape[1])] for part in parts], axis=1))
        held = [float((off <= np.hypot(stated, np.log1p(widen))).mean()) for off, stated in parts]
        print(
            f"{name:24s}all alike {widen:.0%}: holds {min(held):.0%} to {max(held):.0%} of one engine's rows"
        )


if __name__ == "__main__":
    main()
