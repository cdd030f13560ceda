"""Scores `simulate` against measured TPOT of served models and prints the error by model, machine and precision.

    python benchmarks/score_served.py served_tpot.csv [--rows scored.csv]

The CSV has the columns id, model, hw, n_gpus, parallelism ("TP4 PP1 attnDP1 moeTP2 moeEP2"), precision ("gemm fp8, moe fp8"),
batch (concurrency), input_len and output_len (maxima; requests are uniform in [0.8 L, L], so 0.9 L is simulated), other_knob,
metric, value, unit. Nothing is fitted to it. Every row gets two predictions:

* static: TPOT of a batch that starts and ends together, what `moetrace simulate` prints by default, with uniform routing;
* served: `--set serving=continuous`: a steady load, other requests' prompts worked through beside decoding, the host's time per
  step, and skewed routing (docs/simulate.md says where its figures are from).

Machines without a profile for so many GPUs are the one-GPU profile repeated. Rows that cannot be simulated are listed with why.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from moetrace import Scenario, Workload, load_hardware, load_model, simulate
from moetrace.errors import MoetraceError
from moetrace.hardware import Hardware

MEAN_OF_MAX = 0.9
# published name -> catalogue name, and the precision that its own checkpoint has
MODELS = {"gpt-oss-120b": "gpt-oss-120b", "gpt-oss-20b": "gpt-oss-20b", "Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
          "Qwen3-30B-A3B": "qwen3-30b-a3b", "DeepSeek-V3": "deepseek-v3", "DeepSeek-R1": "deepseek-v3"}  # fmt: skip
# The published label of gpt-oss's 4-bit checkpoint; its experts are mxfp4 and the rest is bf16.
NATIVE = {("gpt-oss-120b", "nvfp4"), ("gpt-oss-20b", "nvfp4"), ("deepseek-v3", "fp8_block")}
MARKED = re.compile("QUEUED|NON-MONOTONE")


class RowError(Exception):
    """A row that cannot be simulated; the text says why."""


@cache
def machine(name: str, gpus: int) -> Hardware:
    """The profile of one GPU, or a node of several."""
    base = load_hardware(name)
    return base if gpus == 1 else replace(base, name=f"{name}-x{gpus}", base=name, gpus=gpus)


@cache
def times(
    model: str, hw: str, gpus: int, sets: tuple[str, ...], batch: int, prompt: int, out: int
) -> tuple[float, ...]:
    """(TPOT, its low and high end) in seconds."""
    tpot = simulate(
        load_model(model), Workload(batch, prompt, out), machine(hw, gpus), Scenario.of(*sets)
    ).summary["metrics"]["tpot"]
    return tpot["value"], tpot["low"], tpot["high"]


def settings(row: pd.Series) -> tuple[str, str, tuple[str, ...]]:
    """(model, one-GPU profile, knobs) of a row. Raises RowError."""
    if row["model"] not in MODELS:
        raise RowError(f"model {row['model']} is not in the catalogue")
    model, hw = MODELS[row["model"]], str(row["hw"]).lower()
    sizes = {name: int(n) for name, n in re.findall(r"([A-Za-z]+)(\d+)", str(row["parallelism"]))}
    if not {"TP", "moeEP"} <= set(sizes):
        raise RowError(f"parallelism {row['parallelism']!r} is not stated")
    if sizes.get("PP", 1) > 1 or sizes.get("attnDP", 1) > 1:
        raise RowError("pipeline or attention-data parallelism")
    if sizes["TP"] != row["n_gpus"]:
        raise RowError(f"TP{sizes['TP']} does not fill {row['n_gpus']} GPUs")
    sets = [f"tp={sizes['TP']}"] if sizes["TP"] > 1 else []
    sets += [f"ep={sizes['moeEP']}"] if sizes["moeEP"] > 1 else []
    types = set(re.findall(r"(?:gemm|moe) (\w+)", str(row["precision"])))
    if len(types) != 1:
        raise RowError(f"precision {row['precision']!r}: experts and GEMMs differ")
    (dtype,) = types
    if (model, dtype) not in NATIVE:
        sets.append(f"dtype={dtype}")
    return model, hw, tuple(sets)


def predict(row: pd.Series) -> dict[str, float]:
    """Both predictions of a row, ms. Raises RowError or MoetraceError."""
    model, hw, sets = settings(row)
    batch, prompt, out = (
        int(row["batch"]),
        round(MEAN_OF_MAX * row["input_len"]),
        round(MEAN_OF_MAX * row["output_len"]),
    )
    gpus = int(row["n_gpus"])
    static, *_ = times(model, hw, gpus, sets, batch, prompt, out)
    served, low, high = times(model, hw, gpus, (*sets, "serving=continuous"), batch, prompt, out)
    return {"static": static * 1e3, "low": low * 1e3, "high": high * 1e3, "served": served * 1e3}


def line(name: str, rows: pd.DataFrame) -> str:
    """Mean and median error of a group, with sign, and the share of rows within the 80 % interval."""
    parts = []
    for how in ("static", "served"):
        error = rows[how] / rows["value"] - 1
        parts.append(
            f"{100 * error.abs().mean():6.1f} {100 * error.abs().median():7.1f} {100 * error.median():+7.1f}"
        )
    inside = ((rows["value"] >= rows["low"]) & (rows["value"] <= rows["high"])).mean()
    return f"{name:<66} {len(rows):>5}   {parts[0]}   {parts[1]}   {100 * inside:6.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--rows", type=Path, help="write every scored row there")
    options = parser.parse_args()
    table = pd.read_csv(options.csv)
    table = table[(table.metric == "tpot") & (table.unit == "ms")].reset_index(drop=True)
    found, why = {}, Counter()
    for index, row in table.iterrows():
        try:
            found[index] = predict(row)
        except (RowError, MoetraceError) as error:
            why[str(error)] += 1
    scored = table.join(pd.DataFrame.from_dict(found, orient="index"), how="inner")
    scored["engine"] = scored.other_knob.str.extract(r"^(\w+)", expand=False)
    marked = scored.other_knob.str.contains(MARKED)
    print(
        f"{len(scored)} of {len(table)} rows simulated, {int(marked.sum())} marked as queue-bound or outlier"
    )
    print(f"{'':<72}   static: |error| %        served: |error| %      served")
    print(
        f"{'':<66} {'rows':>5}   {'mean':>6} {'median':>7} {'bias':>7}   {'mean':>6} {'median':>7} {'bias':>7}   within"
    )
    clean = scored[~marked]
    print(line("all", scored))
    print(line("all but the marked", clean))
    for keys in (
        ["model", "hw", "precision"],
        ["engine"],
        ["hw", "n_gpus"],
        ["input_len", "output_len"],
        ["batch"],
    ):
        for group, rows in clean.groupby(keys):
            print(line(" / ".join(map(str, group)) if len(keys) > 1 else f"{keys[0]} {group[0]}", rows))
    for reason, count in why.most_common():
        print(f"not simulated, {count} rows: {reason}")
    if options.rows:
        scored.to_csv(options.rows, index=False)


if __name__ == "__main__":
    main()
