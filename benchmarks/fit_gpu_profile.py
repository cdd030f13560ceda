"""Fits a GPU profile's coefficients to measured op latencies and prints them as a TOML [fitted] table.

    python benchmarks/fit_gpu_profile.py FOLDER --system h100_sxm [--transfer-from hw_profiles/h100-sxm.toml]

FOLDER holds moe_perf, gemm_perf, generation_attention_perf and generation_mla_perf as Parquet:
NVIDIA AIConfigurator's public performance tables (Apache-2.0) with columns `system` and
`quality_flag`. Latency is in ms, message_size in elements. The model fitted is machines/gpu.py's, a handful of coefficients
per family and dtype, none per shape. Error bars come from three-fold cross-validation that leaves whole shapes out.

One moe_perf row is a whole MoE module: top-k, align, gate_up, activation, down, combine. It is fitted as those six launches,
so t0 is a sixth of the module's floor each, and per_expert_s counts two GEMMs. Its routing decides how many experts are touched
and is simulated (`distinct_and_rows`). The loops that measured it ran with a warm L2 cache: a share of the bytes of a small
shard costs less. That share is a nuisance coefficient of the fit (`cached`) and not a part of the profile.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.optimize import least_squares

from moetrace.hardware import Hardware, load_hardware
from moetrace.machines.forms import smoothmax
from moetrace.op import element_bytes

PROFILE = {"h100_sxm": "h100-sxm", "a100_sxm": "a100-sxm"}
DTYPE = {
    "bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block",
    "int4_wo": "int4", "int8_wo": "int8", "w4a16_mxfp4": "mxfp4",
}  # fmt: skip
# In GEMMs; all else, attention over fp8 caches too, multiplies in bf16.
COMPUTE = {"fp8": "fp8", "fp8_block": "fp8"}
# Kernels that a pooled fit must not be drawn by; the report still shows what they are off by.
LEFT_OUT = "flashinfer_cutlass|situ|nongated"  # 2.8x slower bf16 path; another activation; not gated
LAUNCHES = 6.0
NAMES = ("t0_s", "eta_bw", "eta_flops", "per_expert_s", "per_k_s", "per_tile_s", "blend", "cached")
LOW = np.array([3e-7, 0.05, 0.05, 1e-10, 1e-13, 1e-11, 1.0, 0.15])
HIGH = np.array([4e-5, 1.0, 1.0, 1e-6, 1e-8, 1e-7, 8.0, 1.0])
START = np.array([3e-6, 0.8, 0.5, 5e-8, 1e-10, 1e-9, 1.5, 0.5])
UNUSED = 1.0000001  # of a term's lower bound: printed as 0


def read(folder: Path, name: str, system: str) -> pd.DataFrame:
    """Clean rows of one table and system."""
    table = pq.read_table(folder / f"{name}.parquet").to_pandas()
    for column in table.columns[[str(t) == "category" for t in table.dtypes]]:
        table[column] = table[column].astype(str)
    return table[(table.quality_flag == 0) & (table.system == system)].copy()


@cache
def distinct_and_rows(
    experts: int, topk: int, tokens: int, distribution: str, ranks: int
) -> tuple[float, float]:
    """(distinct experts, rows) on the busiest EP rank, as the tables' generator deals them (mean of six draws)."""
    if distribution == "balanced":
        counts = np.bincount(np.arange(tokens * topk) % experts, minlength=experts)[None].astype(float)
    else:
        power = 1.0 - float(distribution.rpartition("_")[2])
        low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
        draw = np.random.default_rng(1).random((6, experts))
        weight = (low**power + draw * (high**power - low**power)) ** (1.0 / power)
        counts = np.minimum(np.rint(weight / weight.sum(1, keepdims=True) * tokens * topk), tokens)
        for row in counts:
            while rest := int(tokens * topk - row.sum()):
                order = np.argsort(row if rest > 0 else -row, kind="stable")[: abs(rest)]
                row[order if rest > 0 else order[row[order] > 0]] += np.sign(rest)
    groups = counts.reshape(len(counts), ranks, experts // ranks)
    busiest = groups[np.arange(len(groups)), groups.sum(2).argmax(1)]
    return float((busiest > 0).sum(1).mean()), float(busiest.sum(1).mean())


def frame(table: pd.DataFrame, dtype: str, group: pd.Series, **columns: object) -> pd.DataFrame:
    """The columns that the law needs, zero where not given."""
    out = pd.DataFrame({"dtype": table[dtype].map(DTYPE), "group": group, "kernel": table.kernel_source})
    for name in ("bytes", "flops", "launches", "experts", "k", "tiles"):
        out[name] = np.asarray(columns.get(name, 1.0 if name == "launches" else 0.0), dtype=float)
    out["compute"] = (
        out["dtype"].map(COMPUTE).fillna("bf16") if dtype in ("moe_dtype", "gemm_dtype") else "bf16"
    )
    out["seconds"] = table.latency * 1e-3
    return out[out["dtype"].notna()]


def moe(folder: Path, system: str) -> pd.DataFrame:
    t = read(folder, "moe_perf", system)
    shards = t.moe_tp_size * t.moe_ep_size
    t = t[(t.num_tokens <= 512) & (shards <= 16) & (t.num_experts % t.moe_ep_size == 0)]
    t = t[
        (t.inter_size // t.moe_tp_size) % 16 == 0
    ]  # other widths cost up to 3x: no shape that a deployment would choose
    keys = zip(t.num_experts, t.topk, t.num_tokens, t.distribution, t.moe_ep_size, strict=True)
    distinct, rows = np.array([distinct_and_rows(*key) for key in keys]).T
    width = (t.hidden_size * t.inter_size / t.moe_tp_size).to_numpy()
    inter, each = (
        (t.inter_size / t.moe_tp_size).to_numpy(),
        t.moe_dtype.map(lambda d: element_bytes(DTYPE[d])),
    )
    # gate_up, activation, down, combine read and write these rows in bf16
    passes = 2.0 * (rows * (3 * t.hidden_size + 6 * inter) + t.num_tokens * t.hidden_size)
    # a dtype with one shape alone is judged by leaving out shards instead
    shape = t.hidden_size.astype(str) + "x" + t.inter_size.astype(str) + "x" + t.num_experts.astype(str)
    alone = shape.groupby(t.moe_dtype).transform("nunique") < 3
    shape = shape.where(~alone, shape + "/" + t.moe_tp_size.astype(str) + "x" + t.moe_ep_size.astype(str))
    return frame(
        t,
        "moe_dtype",
        shape,
        bytes=distinct * 3 * width * each + passes,
        flops=6 * rows * width,
        launches=LAUNCHES,
        experts=2 * distinct,
    )


def gemm(folder: Path, system: str) -> pd.DataFrame:
    t = read(folder, "gemm_perf", system)
    t = t[(t.m <= 512) & (t.n >= 512) & (t.k >= 256) & t.gemm_dtype.isin(list(DTYPE))].astype(
        {"m": float, "n": float}
    )
    each = t.gemm_dtype.map(lambda d: element_bytes(DTYPE[d]))
    moved = t.n * t.k * each + 2 * t.m * (t.n + t.k)
    return frame(
        t,
        "gemm_dtype",
        t.n.astype(str) + "x" + t.k.astype(str),
        bytes=moved,
        flops=2 * t.m * t.n * t.k,
        k=t.k,
    )


def attention(folder: Path, system: str) -> pd.DataFrame:
    """Flash kernels of two engines; TensorRT-LLM's and Triton's split-KV regimes do not fit so simple a form (24-60 % off)."""
    t = read(folder, "generation_attention_perf", system)
    t = t[(t.num_key_value_heads <= 16) & t.head_dim.isin([64, 128]) & (t.batch_size <= 512)]
    t = t[t.kernel_source.isin(["fa3", "flash_attention", "vllm_flash_attn"])]
    window = t.window_size.fillna(0)
    context = (t.isl + t.step).astype(float)
    kv = t.batch_size * np.where(window > 0, np.minimum(context, window), context)
    each = t.kv_cache_dtype.map(lambda d: element_bytes(DTYPE[d]))
    moved = kv * 2 * t.num_key_value_heads * t.head_dim * each + 4.0 * t.batch_size * t.num_heads * t.head_dim
    shape = t.num_heads.astype(str) + "x" + t.num_key_value_heads.astype(str) + "x" + t.head_dim.astype(str)
    flops = 4.0 * t.num_heads * t.head_dim * kv
    return frame(
        t, "kv_cache_dtype", shape, bytes=moved, flops=flops, tiles=t.batch_size * t.num_key_value_heads
    )


def mla(folder: Path, system: str) -> pd.DataFrame:
    """Absorbed MLA decode; fp8 caches of one engine only (the other converts the cache first and is up to 10x slower)."""
    t = read(folder, "generation_mla_perf", system)
    t = t[(t.kv_cache_dtype == "bfloat16") | (t.kernel_source == "default")]
    if system == "a100_sxm":
        t = t[t.kernel_source == "default"]  # the Triton kernel is off by 2-10x in no simple way
    kv = t.batch_size * (t.isl + t.step).astype(float)
    each = t.kv_cache_dtype.map(lambda d: element_bytes(DTYPE[d]))
    moved = kv * 576 * each + 2.0 * t.batch_size * t.num_heads * (576 + 512)
    return frame(
        t, "kv_cache_dtype", t.num_heads.astype(str), bytes=moved, flops=2.0 * t.num_heads * 1088 * kv
    )


FAMILIES = {"experts": moe, "dense_gemm": gemm, "attention": attention, "mla_attention": mla}
TERMS = {"experts": {"experts"}, "dense_gemm": {"k"}, "attention": {"tiles"}, "mla_attention": set()}


def predict(p: np.ndarray, d: pd.DataFrame, hw: Hardware) -> np.ndarray:
    """Seconds of the gpu law, with the nuisance term of a warm cache."""
    c = dict(zip(NAMES, p, strict=True))
    peak = d.compute.map(hw.peak).to_numpy()
    resident = 1.0 / (1.0 + (d.bytes.to_numpy() / (0.7 * hw.memory.cache_bytes)) ** 4)
    memory = (
        d.bytes.to_numpy() / (c["eta_bw"] * hw.memory.bytes_per_s) * (1.0 - resident * (1.0 - c["cached"]))
    )
    fixed = (
        c["t0_s"] * d.launches
        + c["per_expert_s"] * d.experts
        + c["per_k_s"] * d.k
        + c["per_tile_s"] * d.tiles
    )
    return fixed.to_numpy() + smoothmax(c["blend"], memory, d.flops.to_numpy() / (c["eta_flops"] * peak))


def fit(d: pd.DataFrame, hw: Hardware) -> np.ndarray:
    """Coefficients that minimise a robust loss on the log error, in log space within physical bounds."""
    measured = np.log(d.seconds.to_numpy())
    found = least_squares(
        lambda q: np.log(predict(np.exp(q), d, hw)) - measured,
        np.log(START),
        bounds=(np.log(LOW), np.log(HIGH)),
        loss="soft_l1",
        f_scale=0.15,
        max_nfev=80,
    )
    return np.exp(found.x)


def held_out(d: pd.DataFrame, hw: Hardware) -> np.ndarray:
    """log(predicted / measured) of each row from a fit that has not seen its shape."""
    shapes = np.random.default_rng(0).permutation(sorted(d.group.unique()))
    out = np.full(len(d), np.nan)
    for fold in np.array_split(shapes, 3):
        inside = d.group.isin(fold).to_numpy()
        if inside.any() and not inside.all():
            out[inside] = np.log(predict(fit(d[~inside], hw), d[inside], hw) / d.seconds[inside])
    return out


def describe(log_error: np.ndarray) -> str:
    ape = np.abs(np.expm1(log_error))
    return f"mean {ape.mean():.1%} median {np.median(ape):.1%} q80 |log| {np.quantile(np.abs(log_error), 0.8):.3f}"


def fit_family(name: str, d: pd.DataFrame, hw: Hardware, donor: Hardware | None, rows: int) -> list[str]:
    """TOML lines of one family by dtype, with the held-out error, and the transfer error from another machine."""
    lines: list[str] = []
    for dtype, part in d.groupby("dtype"):
        kept = part[~part.kernel.str.contains(LEFT_OUT)]
        kept = kept.sample(min(len(kept), rows), random_state=1)
        if len(kept) < 100:
            continue
        error, p = held_out(kept, hw), fit(kept, hw)
        streaming = (kept.bytes > hw.memory.cache_bytes).to_numpy()
        key = name if dtype == "bf16" else f'"{name}:{dtype}"'
        lines += [
            f"[fitted.family.{key}]  # held out by shape: {describe(error)}; beyond the cache: {describe(error[streaming])}"
        ]
        value = dict(zip(NAMES, p, strict=True))
        for column, term in (("experts", "per_expert_s"), ("k", "per_k_s"), ("tiles", "per_tile_s")):
            if column not in TERMS[name] or value[term] <= LOW[NAMES.index(term)] * UNUSED:
                del value[term]
        del value["cached"]
        value["error"] = float(np.expm1(max(np.quantile(np.abs(e), 0.8) for e in (error, error[streaming]))))
        lines += [f"{term} = {number:.3g}" for term, number in value.items()] + [f"rows = {len(kept)}"]
        for kernel, index in kept.groupby("kernel").indices.items():
            lines += [
                f"# {kernel}: {len(index)} rows, {describe(error[index])}, median log error {np.median(error[index]):+.3f}"
            ]
        if donor is not None:
            lines += [
                f"# transferred from {donor.name}: {describe(transfer(name, str(dtype), kept, hw, donor))}"
            ]
        lines += [""]
    return lines


def transfer(name: str, dtype: str, d: pd.DataFrame, hw: Hardware, donor: Hardware) -> np.ndarray:
    """Log error of the donor's coefficients on this machine's datasheet, on rows larger than the cache."""
    family = donor.family(name, name, dtype)[1]
    p = np.array([family.value.get(term, 1.0) for term in NAMES])
    big = d[d.bytes > hw.memory.cache_bytes]
    return np.asarray(np.log(predict(p, big, hw) / big.seconds), dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--system", choices=sorted(PROFILE), required=True)
    parser.add_argument("--transfer-from", help="profile whose coefficients are also tried on this system")
    parser.add_argument("--rows", type=int, default=2500, help="rows per family and dtype (a random sample)")
    args = parser.parse_args()
    hw = load_hardware(PROFILE[args.system])
    donor = load_hardware(args.transfer_from) if args.transfer_from else None
    print("[fitted]\nsource = \"fit to NVIDIA AIConfigurator public performance tables (Apache-2.0), "
          f'{args.system}, by benchmarks/fit_gpu_profile.py"\ndate = "{datetime.now(timezone.utc):%Y-%m-%d}"\n')  # fmt: skip
    for name, rows_of in FAMILIES.items():
        print("\n".join(fit_family(name, rows_of(args.folder, args.system), hw, donor, args.rows)))


if __name__ == "__main__":
    main()
