"""How far off fits are of sizes beyond what they saw: each size in turn is cut off at its top or bottom, and the rest fitted.

    python benchmarks/score_beyond.py FOLDER [--tables gemm_perf ...]

FOLDER holds NVIDIA AIConfigurator's public performance tables (Apache-2.0) as `make_profiles.py` reads them. Of each engine's
kernel and each size (tokens, widths, contexts, ...) rows up to a limit are fitted and those above it predicted; with --below
rows from the limit on are fitted and those below it predicted. Printed by distance, the ratio of an op's size to the nearest
that was fitted: rows, the error that 80 % of them keep to, that of the fitted rows, and the share that an interval of the
latter's width holds as it is and with `seen.further`; a key's rows at one limit count as much as another's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from moetrace.calibrate import facts_of, groups_of
from moetrace.calibrate.fit import Problem, fit
from moetrace.calibrate.interval import WITHIN
from moetrace.calibrate.tables import read_measurements
from moetrace.errors import CalibrationError
from moetrace.hardware import load_hardware
from moetrace.machines.seen import FURTHER, sizes
from moetrace.op import FloatArray

TABLES = (
    "gemm_perf", "moe_perf", "generation_attention_perf", "generation_mla_perf", "nccl_perf", "wideep_deepep_normal_perf",
)  # fmt: skip
# Where each size is cut off. Higher limits are in the regime that serving extrapolates from: work, no longer launches.
LIMITS = {
    "tokens": (256, 1024, 2048), "m": (256, 2048), "batch": (32, 128), "context": (1024, 8192), "bytes": (2**19, 2**24),
    "n": (1536, 5120), "k": (1536, 5120), "hidden": (4096,), "inter": (512, 2048), "local_experts": (16, 64),
}  # fmt: skip
EVERY, FEW = 10**9, 30
MOST = 300  # rows that are fitted, and that are predicted


BELOW = {
    "n": (512,),
    "k": (512,),
    "hidden": (4096,),
    "inter": (512,),
    "local_experts": (32,),
    "context": (256,),
}


def scored(path: Path, hardware: str, keys: list[str], below: bool) -> Iterator[pd.DataFrame]:
    """Rows beyond a limit of each engine's kernel: what they are off by, and by how much the fitted ones are."""
    limits: dict[str, tuple[int, ...]] = dict(BELOW if below else LIMITS)
    hw, rng = load_hardware(hardware), np.random.default_rng(0)
    for key, form, rows, _ in groups_of(read_measurements(path, hw.name), hw, EVERY, 5 * MOST):
        if "@" not in key or (keys and key not in keys):
            continue
        whole, size = Problem.of(form, rows, hw, "warm"), sizes(rows.ops)
        for dim, limit in [(name, limit) for name in size for limit in limits.get(name, ())]:
            outside = size[dim] < limit if below else size[dim] > limit
            near, far = np.flatnonzero(~outside & np.isfinite(size[dim])), np.flatnonzero(outside)
            if min(near.size, far.size) < FEW:
                continue
            near, far = (np.sort(rng.permutation(some)[:MOST]) for some in (near, far))
            try:
                off = np.abs(whole.log_error(fit(whole.take(near), facts_of(key, form, hw)).value))
            except CalibrationError as error:
                print(f"{key} {dim} {limit}: {error}")
                continue
            yield pd.DataFrame({
                "key": key, "dim": dim, "limit": limit, "distance": distances(size[dim][far], size[dim][near]),
                "off": off[far], "inside": np.quantile(off[near], WITHIN), "weight": 1.0 / far.size,
            })  # fmt: skip


def distances(far: FloatArray, near: FloatArray) -> FloatArray:
    """How many times as large as the largest of `near` each size is, or as small as the smallest."""
    return np.maximum(far / near.max(), near.min() / far)


def share(rows: pd.DataFrame, name: str) -> float:
    return float((rows[name] * rows.weight).sum() / rows.weight.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--keys", nargs="+", default=[], help="only these keys of a profile")
    parser.add_argument("--hw", default="h100-sxm")
    parser.add_argument("--below", action="store_true", help="cut sizes off at their bottom")
    parser.add_argument("--rows", type=Path, help="CSV to write all rows to")
    args = parser.parse_args()
    parts = []
    for table in args.tables:
        for part in scored(args.folder / f"{table}.parquet", args.hw, args.keys, args.below):
            parts.append(part)
            print(f"{part.key[0]} {part.dim[0]} {part.limit[0]}: {part.off.quantile(WITHIN):.3f}", flush=True)
            if args.rows:
                pd.concat(parts).to_csv(args.rows, index=False)
    found = pd.concat(parts)
    stated = np.hypot(found.inside, FURTHER * np.log(found.distance))
    found = found.assign(
        bare=found.off <= found.inside,
        held=found.off <= stated,
        times=2.0 ** np.floor(np.log2(found.distance)),
    )
    for by in (["dim", "limit"], ["times"], ["every"]):
        table = [
            (
                *name,
                len(rows),
                rows.off.quantile(WITHIN),
                rows.inside.mean(),
                share(rows, "bare"),
                share(rows, "held"),
            )
            for name, rows in found.assign(every="all").groupby(by)
        ]
        print(
            pd.DataFrame(table, columns=[*by, "rows", "off", "inside", "bare", "held"])
            .round(3)
            .to_string(index=False)
        )


if __name__ == "__main__":
    main()
