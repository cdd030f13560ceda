"""Scores predictions relative to measured points (`moetrace cost --anchor`) on public tables of measured ops.

    python benchmarks/score_anchors.py FOLDER [--tokens 16]

FOLDER holds the public tables of make_profiles.py. Two parts, both of unflagged rows of decode size (up to 512 tokens):

* one: MoE modules on an H100, EP 1 and TP up to 8, each shape and routing relative to its one row of --tokens, by engine and
  type; the law has seen most of these shapes. Mean and median error by the law alone and with the anchor, and how many rows the
  80 % interval holds.
* pooled: a chip whose coefficients are another's (H100's on A100 and back, at its clock, bf16), with a few shapes measured on
  it: all other shapes follow the anchors of their kind together. The same figures, over draws of the shapes that are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import moetrace
from moetrace.calibrate.measured import SYSTEMS
from moetrace.hardware import Hardware, load_hardware
from moetrace.hardware.family import Widen

MOST_TOKENS, FEW_RANKS, DRAWS, ANCHORS, ROWS = 512, 8, 8, 8, 400
WIDEN = 0.27  # as the shipped profiles of chips that take H100's coefficients
# Table: (family, its column of element types, of sizes, what makes a shape, shapes that are measured).
POOLED = {
    "moe_perf": ("experts", "moe_dtype", "num_tokens", ["hidden_size", "inter_size", "topk", "num_experts"], 3),
    "gemm_perf": ("dense_gemm", "gemm_dtype", "m", ["n", "k"], 4),
    "generation_attention_perf": (
        "attention", "attn_dtype", "batch_size", ["num_heads", "num_key_value_heads", "head_dim", "window_size"], 4,
    ),
}  # fmt: skip


def rows_of(folder: Path, name: str) -> pd.DataFrame:
    """The unflagged rows of a table up to MOST_TOKENS, with `engine` and `machine`, of each engine's main kernel."""
    frame = pd.read_parquet(folder / f"{name}.parquet")
    frame = frame.astype({c: str for c in frame.columns if str(frame[c].dtype) == "category"})
    _, dtype, size, _, _ = POOLED[name]
    frame = frame[(frame["quality_flag"] == 0) & (frame[size] <= MOST_TOKENS)]
    frame = frame.assign(engine=frame["framework"].str.lower(), machine=frame["system"].map(SYSTEMS))
    count = frame.groupby(["machine", "engine", dtype])["kernel_source"].transform(lambda k: k.mode()[0])
    return frame[frame["kernel_source"] == count]


def scored(rows: pd.DataFrame, hw: Hardware | str, engine: str, anchor: pd.DataFrame | None) -> pd.DataFrame:
    """`off`, the log of predicted over measured, and whether the interval holds it, of each row that can be priced."""
    drop = ["engine", "machine", "system", "framework", "version", "device", "seconds"]
    asked = rows.drop(columns=[name for name in drop if name in rows])
    there = None if anchor is None else anchor[asked.columns]
    found = moetrace.cost(asked, hw, engine=engine, anchor=there, keep_going=True).to_pandas()
    found = found[found["problem"].isna()]
    measured = found["latency"] * 1e-3
    return pd.DataFrame(
        {
            "off": np.log(found["time_s"] / measured),
            "within": (found["low_s"] <= measured) & (measured <= found["high_s"]),
        }
    )


def told(name: str, law: pd.DataFrame, anchored: pd.DataFrame) -> tuple[float, float, float]:
    """Prints one line and gives (mean, median, share within) of the anchored rows."""
    miss = [np.abs(np.expm1(each["off"].to_numpy())) for each in (law, anchored)]
    held = float(anchored["within"].mean())
    print(
        f"{name:38}{len(anchored):7}  {miss[0].mean():6.1%} /{np.median(miss[0]):6.1%}"
        f"  {miss[1].mean():6.1%} /{np.median(miss[1]):6.1%}  {law['within'].mean():6.1%}  {held:6.1%}",
        flush=True,
    )
    return float(miss[1].mean()), float(np.median(miss[1])), held


def one(folder: Path, tokens: int) -> None:
    """MoE modules from one anchor of each shape and routing."""
    whole = rows_of(folder, "moe_perf")
    whole = whole[
        (whole["machine"] == "h100-sxm") & (whole["moe_ep_size"] == 1) & (whole["moe_tp_size"] <= FEW_RANKS)
    ]
    figures = []
    for (engine, dtype), rows in whole.groupby(["engine", "moe_dtype"]):
        if not load_hardware("h100-sxm").families.get(_key("experts", dtype, engine)):
            continue
        at = rows["num_tokens"] == tokens
        apart = [scored(rows[~at], "h100-sxm", engine, anchor) for anchor in (None, rows[at])]
        figures.append(told(f"one anchor, {tokens} tokens, {engine} {dtype}", *apart))
    mean, median, held = np.median(np.array(figures), axis=0)
    print(f"median over engines and types: mean {mean:.1%} median {median:.1%}, {held:.1%} within")


def _key(family: str, dtype: str, engine: str) -> str:
    kind = {"bfloat16": "", "float16": ""}.get(dtype, f":{dtype}")
    return f"{family}{kind}@{engine}"


def borrowed(source: Hardware, target: Hardware, key: str) -> Hardware | None:
    """The target with the source's coefficients of a family, at its clock and wider; None where they were not fitted."""
    own = source.families.get(key)
    if own is None or own.provenance != "fitted":
        return None
    there = own.on_another(source.name, (source.pace, target.pace), Widen(WIDEN))
    return replace(target, families={**target.families, key: there})


def draws(rows: pd.DataFrame, shape: list[str], measured: int) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """(anchors, rows of other shapes), several times: ANCHORS rows of so many shapes, ROWS of the others."""
    of = rows[shape].astype(str).fillna("").agg(" ".join, axis=1).to_numpy()
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        picked = random.permutation(np.unique(of))[:measured]
        there = [random.permutation(np.flatnonzero(of == name))[:ANCHORS] for name in picked]
        others = random.permutation(np.flatnonzero(~np.isin(of, picked)))[:ROWS]
        yield rows.iloc[np.concatenate(there)], rows.iloc[others]


def pooled(folder: Path) -> None:
    """Other shapes on a chip of another's coefficients, by what a few shapes measured there say together."""
    machines = {name: load_hardware(name) for name in ("h100-sxm", "a100-sxm")}
    for table, (family, dtype, _, shape, measured) in POOLED.items():
        whole = rows_of(folder, table)
        whole = whole[whole[dtype].isin(["bfloat16", "float16"]) & (whole["kernel_source"] != "triton")]
        if "kv_cache_dtype" in whole:
            whole = whole[whole["kv_cache_dtype"].isin(["bfloat16", "float16"])]
        for (name, engine), rows in whole.groupby(["machine", "engine"]):
            source = next(m for m in machines if m != name)
            hw = borrowed(machines[source], machines[name], f"{family}@{engine}")
            if hw is None:
                continue
            law, after = [], []
            for anchors, others in draws(rows, shape, measured):
                if others.empty:
                    continue
                law.append(scored(others, hw, engine, None))
                after.append(scored(others, hw, engine, anchors))
            if law:
                told(f"pooled, {source[:4]}->{name[:4]} {family}@{engine}", pd.concat(law), pd.concat(after))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=16, help="of the one anchor")
    asked = parser.parse_args()
    print(
        f"{'':38}{'rows':>7}  {'by the law alone':>15}  {'with anchors':>15}  {'within 80 %, law, with':>16}"
    )
    one(asked.folder, asked.tokens)
    pooled(asked.folder)


if __name__ == "__main__":
    main()
