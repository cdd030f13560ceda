"""Scores what one engine's coefficients are worth for another engine, on the same chip: the source of OTHER_ENGINE.

    python benchmarks/score_engines.py FOLDER [--hw h100-sxm a100-sxm]

FOLDER holds the public tables of make_profiles.py. The shipped coefficients of every engine price the rows (decode sizes, no
flag, L2 warm as they were measured) of each other engine for the same op family and element type: the median of the logarithm
of predicted over measured, and the factor within which 80 % lie. Last, the middle one and the fourth fifth of these factors.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moetrace.calibrate import groups_of
from moetrace.calibrate.fit import Problem
from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.hardware import Hardware, load_hardware

TABLES = (
    "moe_perf",
    "gemm_perf",
    "generation_attention_perf",
    "generation_mla_perf",
    "custom_allreduce_perf",
)
MOST_TOKENS, ROWS = 512, 800
LIBRARY = "nccl"


def pairs(folder: Path, hw: Hardware) -> Iterator[tuple[str, str, float, float]]:
    """(key whose coefficients price, key whose rows are priced, median of the logarithm, factor that holds 80 %)."""
    for table in TABLES:
        rows: dict[str, dict[str, Measured]] = defaultdict(dict)
        for key, _, these, _ in groups_of(
            read_measurements(folder / f"{table}.parquet", hw.name), hw, MOST_TOKENS, ROWS
        ):
            family, _, engine = key.partition("@")
            if engine and engine != LIBRARY and key in hw.families:
                rows[family][key] = these
        for of_family in rows.values():
            for mine, coefficients in ((key, hw.families[key]) for key in of_family):
                for other, theirs in of_family.items():
                    if other == mine:
                        continue
                    off = Problem.of(coefficients.form, theirs, hw, "warm").log_error(coefficients.value)
                    yield mine, other, float(np.median(off)), float(np.exp(np.quantile(np.abs(off), 0.8)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hw", nargs="*", default=["h100-sxm", "a100-sxm"])
    given = parser.parse_args()
    factors = []
    print(f"{'machine':9} {'coefficients':31} {'rows':31} median  80 % within")
    for name in given.hw:
        for mine, other, median, factor in pairs(given.folder, load_hardware(name)):
            print(f"{name:9} {mine:31} {other:31} {median:+6.2f}  x{factor:.2f}")
            factors.append(factor)
    fifth, middle = np.quantile(factors, 0.8), np.median(factors)
    print(f"{len(factors)} pairs: the middle one x{middle:.2f}, one in five beyond x{fifth:.2f}")


if __name__ == "__main__":
    main()
