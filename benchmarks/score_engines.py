"""Scores what engines' coefficients are worth for another engine on the same chip: the source of OTHER_ENGINE, BEYOND_ENGINES.

    python benchmarks/score_engines.py FOLDER [--hw h100-sxm a100-sxm]

FOLDER holds the public tables of make_profiles.py. The shipped coefficients of every engine price the rows (decode sizes, no
flag, L2 warm as they were measured) of each other engine for the same op family and element type: the median of the logarithm
of predicted over measured, and the factor within which 80 % lie. Last, the middle one and the fourth fifth of these factors,
how many of an engine's rows another's interval holds, and how many of an engine's rows the others' laws together hold (their
geometric mean, with the error within which 80 % of their own rows lie), each as it is and with a further error.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moetrace.calibrate import groups_of
from moetrace.calibrate.fit import Problem
from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.hardware import BEYOND_ENGINES, OTHER_ENGINE, Hardware, combined_error, load_hardware

TABLES = (
    "moe_perf",
    "gemm_perf",
    "generation_attention_perf",
    "generation_mla_perf",
    "custom_allreduce_perf",
)
MOST_TOKENS, ROWS = 512, 800
LIBRARY = "nccl"


FloatArray = npt.NDArray[np.float64]
# (key whose coefficients price, key whose rows are priced) -> logarithms of predicted over measured
Errors = dict[tuple[str, str], FloatArray]
FURTHER = (0.0, 0.1, 0.2, BEYOND_ENGINES, 0.4, 0.5, OTHER_ENGINE, 0.7)


def errors(folder: Path, hw: Hardware) -> Iterator[Errors]:
    """The errors of every engine's coefficients on every engine's rows, for each op family and type."""
    for table in TABLES:
        rows: dict[str, dict[str, Measured]] = defaultdict(dict)
        for key, _, these, _ in groups_of(
            read_measurements(folder / f"{table}.parquet", hw.name), hw, MOST_TOKENS, ROWS
        ):
            family, _, engine = key.partition("@")
            if engine and engine != LIBRARY and key in hw.families:
                rows[family][key] = these
        for of_family in rows.values():
            yield {
                (mine, other): Problem.of(hw.families[mine].form, theirs, hw, "warm").log_error(
                    hw.families[mine].value
                )
                for mine in of_family
                for other, theirs in of_family.items()
            }


def within(off: FloatArray) -> float:
    """The factor that 80 % lie within."""
    return float(np.exp(np.quantile(np.abs(off), 0.8)))


def left_out(found: Errors) -> Iterator[tuple[FloatArray, float]]:
    """(errors of the others' laws together on an engine's rows, their own factor), of each engine beside two or more others."""
    keys = sorted({mine for mine, _ in found})
    for out in keys if len(keys) > 2 else ():
        others = [key for key in keys if key != out]
        own = [np.mean([found[mine, key] for mine in others], axis=0) for key in others]
        yield np.mean([found[mine, out] for mine in others], axis=0), within(np.concatenate(own))


def held(cases: list[tuple[FloatArray, float]]) -> str:
    """How many rows intervals of these factors hold, as they are and with a further error; each case counts as one."""
    shares = [
        np.mean([np.mean(np.abs(off) < np.log1p(combined_error(own - 1, error))) for off, own in cases])
        for error in FURTHER
    ]
    return ", ".join(
        f"{error:.2f}: {100 * share:.0f} %" for error, share in zip(FURTHER, shares, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hw", nargs="*", default=["h100-sxm", "a100-sxm"])
    given = parser.parse_args()
    factors, one, several = [], list[tuple[FloatArray, float]](), list[tuple[FloatArray, float]]()
    print(f"{'machine':9} {'coefficients':31} {'rows':31} median  80 % within")
    for name in given.hw:
        hw = load_hardware(name)
        for found in errors(given.folder, hw):
            for (mine, other), off in found.items():
                if mine == other:
                    continue
                print(f"{name:9} {mine:31} {other:31} {np.median(off):+6.2f}  x{within(off):.2f}")
                factors.append(within(off))
                one.append((off, 1 + hw.families[mine].error))
            several += left_out(found)
    fifth, middle = np.quantile(factors, 0.8), np.median(factors)
    print(f"{len(factors)} pairs: the middle one x{middle:.2f}, one in five beyond x{fifth:.2f}")
    print(f"rows that another engine's interval holds, by its further error: {held(one)}")
    print(
        f"rows of an engine left out that the others' hold together, by their further error: {held(several)}"
    )


if __name__ == "__main__":
    main()
