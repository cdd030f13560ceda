"""Readers of the public performance tables of dense GEMMs, attention and collectives, as measured ops.

The columns are those of NVIDIA AIConfigurator's tables (Apache-2.0): `latency` in ms, columns ending in ``_us`` in us,
`message_size` in elements. `shape` names what is left out together when a fit is scored: a GEMM's n x k, an attention's
heads, widths and window, a collective's message size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moetrace.calibrate.measured import DTYPES, SYSTEMS, Measured
from moetrace.op import FloatArray, Op, OpColumns

if TYPE_CHECKING:
    import pandas as pd

# DeepSeek's MLA, of which the tables are: latent and rotary widths, and the width of a head without rotation.
_LORA, _ROPE, _NOPE = 512.0, 64.0, 128.0
_MIMO_KEYS, _MIMO_VALUES = 192.0, 128.0  # widths of a head
_FP8_SCALED = 1.0 + 4.0 / 128  # bytes of a value that DeepEP sends in fp8, a float of scale for 128 of them
_NODE = 8.0
_COLLECTIVES = {"alltoall": "all_to_all"}


def gemm(table: pd.DataFrame, path: Path) -> Measured:
    """Dense GEMMs of m x k by k x n; ``sq`` (smooth-quantised int8) is int8 on both sides."""
    dtype = table["gemm_dtype"].map({**DTYPES, "sq": "int8"})
    table, dtype = table[dtype.notna()], dtype[dtype.notna()]
    dims = {name: _numbers(table, name) for name in ("m", "n", "k")}
    return _measured("gemm", dtype, dims, table, _joined(table, ("n", "k")), path)


def attention(table: pd.DataFrame, path: Path) -> Measured:
    """Decode attention: one query per sequence over isl + step tokens, no more than the window.

    Keys 192 wide go with values 128 wide, as in MiMo-V2-Flash, whose heads and window these rows have: with values as wide
    as keys the longest would take 1.06 of the memory's datasheet bandwidth.
    """
    batch, context = _numbers(table, "batch_size"), _numbers(table, "isl") + _numbers(table, "step")
    window = _numbers(table, "window_size") if "window_size" in table else np.zeros(len(table))
    window = np.asarray(np.nan_to_num(window), dtype=np.float64)
    cut, width = (window > 0) & (window < context), _numbers(table, "head_dim")
    dims = {
        "batch": batch, "heads": _numbers(table, "num_heads"), "kv_heads": _numbers(table, "num_key_value_heads"),
        "head_dim": width, "v_dim": np.where(width == _MIMO_KEYS, _MIMO_VALUES, np.nan),
        "kv": batch * np.where(cut, window, context),
        "window": np.asarray(np.where(cut, window, np.nan), dtype=np.float64),
        "context": np.asarray(np.where(cut, context, np.nan), dtype=np.float64),
    }  # fmt: skip
    names = ("num_heads", "num_key_value_heads", "head_dim")
    shape = _joined(table, names) + "w" + np.array([f"{w:g}" for w in window])
    return _measured("attention", _cache_dtype(table), dims, table, shape, path)


def mla(table: pd.DataFrame, path: Path) -> Measured:
    """Absorbed MLA decode of the heads of one rank."""
    batch, context = _numbers(table, "batch_size"), _numbers(table, "isl") + _numbers(table, "step")
    same = np.ones(len(table))
    dims = {
        "batch": batch, "heads": _numbers(table, "num_heads"), "kv_lora": same * _LORA, "rope": same * _ROPE,
        "kv": batch * context,
    }  # fmt: skip
    return _measured("mla_attention", _cache_dtype(table), dims, table, _joined(table, ("num_heads",)), path)


def mla_bmm(table: pd.DataFrame, path: Path) -> Measured:
    """The two batched GEMMs of absorbed MLA, one matrix per head: queries into the latent space, values out of it."""
    into = (table["op_name"] == "mla_gen_pre").to_numpy()
    dims = {
        "b": _numbers(table, "num_heads"), "m": _numbers(table, "num_tokens"),
        "n": np.where(into, _LORA, _NOPE), "k": np.where(into, _NOPE, _LORA),
    }  # fmt: skip
    shape = _joined(table, ("op_name", "num_heads"))
    return _measured("batched_gemm", table["bmm_dtype"].map(DTYPES), dims, table, shape, path)


def nccl(table: pd.DataFrame, path: Path) -> Measured:
    """NCCL's collectives within a node; the size that the table gives for a gather is the gathered buffer's."""
    ranks = _numbers(table, "num_gpus")
    nbytes = _numbers(table, "message_size") * np.where(table["nccl_dtype"] == "half", 2.0, 1.0)
    nbytes = np.where(table["op_name"] == "all_gather", nbytes / ranks, nbytes)
    kinds = table["op_name"].replace(_COLLECTIVES)
    table = table.assign(framework="nccl")
    # What only moves bytes is the same whatever their type; to add up bytes takes longer, and no switch does it.
    adds = kinds.isin(["all_reduce", "reduce_scatter"]) & (table["nccl_dtype"] == "int8")
    return _measured(
        kinds,
        _bf16(table).mask(adds, "int8"),
        {"bytes": np.asarray(nbytes, dtype=np.float64), "ranks": ranks},
        table,
        _joined(table, ("message_size",)),
        path,
    )


def all_reduce(table: pd.DataFrame, path: Path) -> Measured:
    """The engines' own all-reduce, in a graph or called one by one (dim `eager`)."""
    eager = np.asarray(table["kernel_source"].str.contains("eager"), dtype=np.float64)
    table = table.assign(kernel_source=table["kernel_source"].str.replace("_(eager|graph)$", "", regex=True))
    dims = {
        "bytes": _numbers(table, "message_size") * 2.0,
        "ranks": _numbers(table, "num_gpus"),
        "eager": eager,
    }
    return _measured("all_reduce", _bf16(table), dims, table, _joined(table, ("message_size",)), path)


def deepep(table: pd.DataFrame, path: Path) -> Measured:
    """DeepEP's dispatch (fp8 rows) and combine (bf16 rows), low latency, or normal by the processors that it was given."""
    normal = "dispatch_sms" in table
    both: list[Measured] = []
    for kind, name, width in (("moe_dispatch", "dispatch", _FP8_SCALED), ("moe_collect", "combine", 2.0)):
        tokens, topk, hidden = (_numbers(table, n) for n in ("num_token", "num_topk", "hidden_size"))
        dims = {
            "bytes": tokens * topk * hidden * width, "ranks": _numbers(table, "node_num") * _NODE, "tokens": tokens,
            "topk": topk, "hidden": hidden, "experts": _numbers(table, "num_experts"),
        }  # fmt: skip
        if normal:
            dims["sms"] = _numbers(table, f"{name}_sms")
            spent = table[f"{name}_transmit_us"] + table[f"{name}_notify_us"]
        else:
            spent = table[f"{name}_avg_t_us"]
        rows = table.assign(latency=spent * 1e-3, framework="deepep")
        shape = _joined(table, ("node_num", "hidden_size", "num_topk", "num_experts")) + (
            "n" if normal else ""
        )
        both.append(_measured(kind, _bf16(table), dims, rows, shape, path))
    return Measured.join(both)


def _numbers(table: pd.DataFrame, name: str) -> FloatArray:
    return table[name].to_numpy(dtype=np.float64)


def _bf16(table: pd.DataFrame) -> pd.Series[str]:
    return table["kernel_source"].map(lambda _: "bf16")


def _joined(table: pd.DataFrame, names: Sequence[str]) -> npt.NDArray[np.object_]:
    return table[list(names)].astype(str).agg("x".join, axis=1).to_numpy(dtype=object)


def _cache_dtype(table: pd.DataFrame) -> pd.Series[str]:
    return table["kv_cache_dtype"].map({**DTYPES, "fp8": "fp8/bf16"})


def _measured(
    kind: str | pd.Series[str], dtype: pd.Series[str], dims: Mapping[str, FloatArray], table: pd.DataFrame,
    shape: npt.NDArray[Any], path: Path,
) -> Measured:  # fmt: skip
    kinds = kind.to_numpy(dtype=str) if not isinstance(kind, str) else np.full(len(table), kind)
    pairs = np.array([f"{k} {d}" for k, d in zip(kinds.tolist(), dtype.tolist(), strict=True)])
    words, code = np.unique(pairs, return_inverse=True)
    types = tuple(Op(w.partition(" ")[0], w.partition(" ")[2]) for w in words.tolist())
    engine = table["framework"].str.lower().to_numpy(dtype=str)
    triton = table["kernel_source"].astype(str).to_numpy(dtype=str) == "triton"
    return Measured(
        ops=OpColumns(types, code.astype(np.int64), dict(dims)),
        seconds=_numbers(table, "latency") * 1e-3,
        engine=np.where(triton, np.char.add(engine, "_triton"), engine),
        kernel=table["kernel_source"].to_numpy(dtype=str),
        shape=shape.astype(str),
        hardware=table["system"].map(lambda name: SYSTEMS.get(name, name)).to_numpy(dtype=str),
        weight=np.ones(len(table)),
        row=table.index.to_numpy(dtype=np.int64),
        source=path.name,
    )


# Columns that tell a public table, beside framework and kernel_source, and its reader.
TABLES: tuple[tuple[frozenset[str], Callable[[pd.DataFrame, Path], Measured]], ...] = (
    (frozenset({"gemm_dtype", "m", "n", "k", "latency"}), gemm),
    (frozenset({"num_key_value_heads", "head_dim", "step", "latency"}), attention),
    (frozenset({"mla_dtype", "num_heads", "step", "latency"}), mla),
    (frozenset({"bmm_dtype", "num_heads", "num_tokens", "latency"}), mla_bmm),
    (frozenset({"nccl_dtype", "num_gpus", "message_size", "latency"}), nccl),
    (frozenset({"allreduce_dtype", "num_gpus", "message_size", "latency"}), all_reduce),
    (frozenset({"node_num", "dispatch_avg_t_us", "combine_avg_t_us"}), deepep),
    (frozenset({"node_num", "dispatch_sms", "dispatch_transmit_us"}), deepep),
)
