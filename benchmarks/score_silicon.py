"""Scores public tables of measured ops: row by row what beats its bound, and what ratios of held-out predictions are worth.

    python benchmarks/score_silicon.py FOLDER [--hw h100-sxm] [--bounds | --ratios | --intervals] [--rows beaten.csv]

FOLDER holds NVIDIA AIConfigurator's public performance tables (Apache-2.0) as Parquet, with the columns `system` and
`quality_flag`. Three parts:

* bounds: every row without a flag that takes less than its lower bound though its bytes exceed the cache, with its cause.
* ratios, of moe_perf: the times themselves, by coefficients that did not see the row's shape; then two rows that differ in
  one thing, predicted over measured ratio of their times, by coefficients that saw neither's shape. Routing skew as it is. No
  two shapes of the tables differ in n_a alone or in n_e alone, so three quarters of the tokens stand for n_a 8 -> 6 (as many
  choices among the same experts), and for n_e an expert parallelism of twice the ranks (half of the experts and of the choices
  on a rank) and the one pair of shapes of equal expert width, 256 against 128 experts, whose hidden sizes differ too (3072
  and 4096).
* intervals (asked for alone, --tables NAME... for some of them): how many held-out rows the 80 % intervals hold that were drawn
  from the other half of the shapes, their median half-width and the median error, as shares of the measured time, and the one
  over the other with its standard error (shapes drawn again and again): first by op family and decade of tokens, all engines,
  types and kernels together, then by key of the profile.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import make_profiles
import numpy as np
import pandas as pd

from moetrace import ops
from moetrace.calibrate import facts_of, groups_of
from moetrace.calibrate.fit import Problem, fit, held_out
from moetrace.calibrate.interval import DRAWS, coverage, stated_by_other_half
from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.errors import CalibrationError
from moetrace.hardware import ANY_ENGINE, Hardware, load_hardware
from moetrace.machines.gpu import decade_of, tokens_of
from moetrace.validate.measured import measured_table

TOKENS = 512
FIT_ROWS = 1500
INTERVAL_TABLES = [*(name for names in make_profiles.TABLES for name in names)]
SETTING = ["tokens", "hidden", "inter", "experts", "topk", "tp", "ep", "routing"]
LEAST_HELD, MOST_HELD, WIDEST = 0.75, 0.85, 2.0  # of an 80 % interval; the last over the median error
RESAMPLES = 60  # of shapes, for a standard error
FEW_RANKS = 8  # of EP 1: what the bars are for


def beaten(folder: Path) -> pd.DataFrame:
    """The rows of all tables that beat their bound with no cache to explain it."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        ledger = measured_table(path).to_pandas()
        bad = ledger[(ledger["beaten"] == True) & ~ledger["note"].str.startswith("marked ")]  # noqa: E712, it may be null
        print(
            f"{path.name}: {len(ledger)} rows, {len(bad)} beat their bound though their bytes exceed the cache"
        )
        found.append(bad[["source", "hardware", "family", "setting", "measured", "lower_bound", "note"]])
    return pd.concat(found)


def predictions(path: Path, hw: Hardware) -> Iterator[tuple[str, pd.DataFrame]]:
    """(engine and type, rows of decode size with `off`, log of predicted over measured by a fit without their shape)."""
    found = read_measurements(path, hw.name)
    raw = pd.read_parquet(path).reset_index(drop=True)
    raw = raw[
        (raw["system"].astype(str).str.replace("_", "-") == hw.name) & (raw["quality_flag"] == 0)
    ].reset_index(drop=True)
    told = raw.loc[found.row, ["inter_size", "moe_tp_size", "moe_ep_size", "distribution"]].reset_index(
        drop=True
    )
    types = np.array([op.weight_dtype for op in found.ops.types])[found.ops.code]
    small = found.ops.column("tokens") <= TOKENS
    for name in sorted(set(zip(found.engine.tolist(), types.tolist(), strict=True))):
        rows = np.flatnonzero(small & (found.engine == name[0]) & (types == name[1]))
        kernels, count = np.unique(found.kernel[rows], return_counts=True)
        rows = rows[found.kernel[rows] == kernels[int(np.argmax(count))]]
        part: Measured = found.take(rows)
        try:
            key = f"experts@{name[0]}" if name[1] == "bf16" else f"experts:{name[1]}@{name[0]}"
            off = held_out(Problem.of("experts", part, hw, "warm"), facts_of(key, "experts", hw), FIT_ROWS)
        except CalibrationError as error:
            print(f"{' '.join(name)}: not fitted: {error}")
            continue
        dims = {n: part.ops.column(n) for n in ("tokens", "hidden", "experts", "topk")}
        mine = told.loc[rows].reset_index(drop=True)
        frame = pd.DataFrame({
            **dims, "inter": mine["inter_size"].astype(float), "tp": mine["moe_tp_size"].astype(float),
            "ep": mine["moe_ep_size"].astype(float),
            "routing": mine["distribution"].astype(str), "off": off,
        })  # fmt: skip
        yield " ".join(name), frame.groupby(SETTING, observed=True, as_index=False)["off"].median()


def ratios(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Errors of predicted times, then of predicted ratios by what the two rows of a pair differ in, as shares."""
    near = rows[(rows["ep"] == 1) & (rows["tp"] <= FEW_RANKS)]
    skew = near[near["routing"] == "power_law_1.2"]
    fewer = rows.assign(ep=rows["ep"] / 2)
    half = {"hidden": 4096, "inter": 1536, "topk": 8, "experts": 128}
    twice = {"hidden": 3072, "inter": 1536, "topk": 8, "experts": 256}
    pick = [near[np.logical_and.reduce([near[k] == v for k, v in shape.items()])] for shape in (half, twice)]
    return {
        "EP 1, TP up to 8": np.abs(np.expm1(near["off"].to_numpy())),
        "every TP and EP": np.abs(np.expm1(rows["off"].to_numpy())),
        "skew 1.01 -> 1.2": _pairs(near[near["routing"] == "power_law_1.01"], skew, "routing"),
        "balanced -> skew 1.2": _pairs(near[near["routing"] == "balanced"], skew, "routing"),
        "tokens x 3/4 (for n_a 8 -> 6)": _pairs(near, near.assign(tokens=near["tokens"] * 4 / 3)),
        "twice the EP (half of n_e)": _pairs(rows, fewer),
        "n_e 128 -> 256, hidden too": _pairs(*pick, "experts", "hidden"),
    }


def _pairs(one: pd.DataFrame, two: pd.DataFrame, *free: str) -> np.ndarray:
    """|predicted / measured - 1| of the ratio of rows that agree in all but `free`."""
    both = one.merge(two, on=[name for name in SETTING if name not in free], suffixes=("_1", "_2"))
    return np.abs(np.expm1((both["off_2"] - both["off_1"]).to_numpy()))


def intervals(path: Path, hw: Hardware) -> Iterator[pd.DataFrame]:
    """Held-out rows of each engine and type with `off` and the `error` that the other half of the shapes states."""
    for key, form, rows, beyond in groups_of(read_measurements(path, hw.name), hw, TOKENS, FIT_ROWS):
        if (
            "@" not in key and (rows.engine != ANY_ENGINE).any()
        ):  # the rows of all engines, with coefficients of their own
            continue
        fitted, facts = len(rows), facts_of(key, form, hw)
        if (tokens_of(ops.works(rows.ops)) > TOKENS).any():  # some larger ones are fitted: all are scored
            rows = Measured.join([rows, beyond])
        problem = Problem.of(form, rows, hw, "warm")
        try:
            off = held_out(problem, facts, fitted=fitted)
        except CalibrationError as error:
            print(f"{key}: not fitted: {error}")
            continue
        value = fit(problem.take(np.arange(fitted)), facts).value
        parts = problem.form.seconds(value, problem.works, problem.at)
        at, stated = stated_by_other_half(off, problem.works, parts, rows.shape)
        decade = decade_of(tokens_of(problem.works))[at]
        yield pd.DataFrame({"key": key, "family": key.split("@")[0].split(":")[0], "decade": decade, "off": off[at],
                            "error": stated, "shape": rows.shape[at]})  # fmt: skip


def width_error(rows: pd.DataFrame) -> float:
    """The standard error of the median half-width over the median error, by shapes of a key drawn with replacement."""
    half = (1.0 + rows["error"] - 1.0 / (1.0 + rows["error"])).to_numpy() / 2.0
    miss = np.abs(np.expm1(rows["off"].to_numpy()))
    groups = list(rows.groupby(["key", "shape"], observed=True).indices.values())
    draw, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        some = np.concatenate([groups[i] for i in draw.integers(0, len(groups), len(groups))])
        found.append(np.median(half[some]) / max(float(np.median(miss[some])), 1e-9))
    return float(np.std(found))


def print_intervals(found: pd.DataFrame, by: str) -> None:
    print(f"{by:28} {'tokens from':>11} {'rows':>6}  held  half-width  error  over each other   +-  normal")
    cells = held = both = 0
    for name, part in found.groupby(by):
        for one in coverage(*(part[c].to_numpy() for c in ("decade", "off", "error")), DRAWS):
            good = LEAST_HELD <= one.covered <= MOST_HELD
            if one.decade is not None:
                cells, held, both = cells + 1, held + good, both + (good and one.width <= WIDEST)
            start = "all" if one.decade is None else f"{10**one.decade}"
            rows = part if one.decade is None else part[part["decade"] == one.decade]
            marks = ("" if good else "  holds another share") + ("  wide" if one.width > WIDEST else "")
            print(
                f"{name:28} {start:>11} {one.rows:6} {one.covered:5.0%} {one.width * one.median:11.1%} "
                f"{one.median:6.1%} {one.width:16.2f} {width_error(rows):4.2f} {one.normal:7.2f}{marks}"
            )
    print(
        f"{by} and decade: of {cells} {held} hold 75-85 %, {both} of them no wider than {WIDEST:g} median errors\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hw", default="h100-sxm", help="profile whose GPU's ratios are scored")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--bounds", action="store_true", help="only what beats its bound")
    only.add_argument("--ratios", action="store_true", help="only the ratios")
    only.add_argument("--intervals", action="store_true", help="only how well intervals hold")
    parser.add_argument("--tables", nargs="+", default=INTERVAL_TABLES, help="of the intervals")
    parser.add_argument("--rows", type=Path, help="write the rows that beat their bound there, as CSV")
    asked = parser.parse_args()
    if asked.intervals:
        hw = load_hardware(asked.hw)
        found = pd.concat(
            [part for name in asked.tables for part in intervals(asked.folder / f"{name}.parquet", hw)]
        )
        print_intervals(found.assign(all="every family"), "all")
        print_intervals(found, "family")
        print_intervals(found, "key")
        return
    if not asked.ratios:
        bad = beaten(asked.folder)
        groups = bad.assign(ratio=bad["measured"] / bad["lower_bound"]).groupby(
            ["source", "hardware", "note"]
        )
        print(groups["ratio"].agg(["count", "min", "max"]).round(2).to_string())
        if asked.rows:
            bad.to_csv(asked.rows, index=False)
    if not asked.bounds:
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, rows in predictions(asked.folder / "moe_perf.parquet", load_hardware(asked.hw)):
            found[name] = ratios(rows)
            for what, off in found[name].items():
                if off.size:
                    print(
                        f"{name:22} {what:32} {off.size:6}  mean {off.mean():6.1%}  median {np.median(off):6.1%}"
                    )
        for what in next(iter(found.values())):
            means = {n: float(f[what].mean()) for n, f in found.items() if f[what].size}
            medians = [float(np.median(f[what])) for f in found.values() if f[what].size]
            worst = max(means, key=lambda n: means[n])
            told = f"mean {np.median(list(means.values())):.1%}  median {np.median(medians):.1%}"
            print(f"{what:32} median over engines and types: {told}; worst {worst} {means[worst]:.1%}")


if __name__ == "__main__":
    main()
