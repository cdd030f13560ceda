"""Readers of the public performance tables: one made row of each becomes the op that it measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moetrace import ops
from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.hardware import FORM_OF, SCHEMAS
from moetrace.machines.forms import FORMS

COMMON = {"framework": "VLLM", "kernel_source": "k", "system": "h100_sxm", "quality_flag": 0, "latency": 0.5}
ROWS = {
    "gemm": {"gemm_dtype": "fp8_block", "m": 16, "n": 4096, "k": 512},
    "attention": {
        "batch_size": 4, "isl": 1, "step": 1023, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "kv_cache_dtype": "fp8", "window_size": 128.0,
    },
    "mla": {"mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "num_heads": 16, "batch_size": 2, "isl": 1, "step": 99},
    "bmm": {"bmm_dtype": "bfloat16", "op_name": "mla_gen_pre", "num_heads": 16, "num_tokens": 8},
    "gather": {"nccl_dtype": "half", "op_name": "all_gather", "num_gpus": 8, "message_size": 4096},
    "alltoall": {"nccl_dtype": "int8", "op_name": "alltoall", "num_gpus": 2, "message_size": 4096},
    "custom": {
        "allreduce_dtype": "bfloat16", "op_name": "all_reduce", "num_gpus": 8, "message_size": 4096,
        "kernel_source": "vLLM_custom_eager",
    },
}  # fmt: skip
OPS = {
    "gemm": ("gemm fp8_block m=16 n=4096 k=512", "vllm", "4096x512"),
    "attention": (
        "attention fp8/bf16 batch=4 heads=32 kv_heads=8 head_dim=128 kv=512 window=128 context=1024", "vllm", "32x8x128w128",
    ),
    "mla": ("mla_attention bf16 batch=2 heads=16 kv_lora=512 rope=64 kv=200", "vllm", "16"),
    "bmm": ("batched_gemm bf16 b=16 m=8 n=512 k=128", "vllm", "mla_gen_prex16"),
    "gather": ("all_gather bf16 bytes=1024 ranks=8", "nccl", "4096"),
    "alltoall": ("all_to_all bf16 bytes=4096 ranks=2", "nccl", "4096"),
    "custom": ("all_reduce bf16 bytes=8192 ranks=8 eager=1", "vllm", "4096"),
}  # fmt: skip


def read(tmp_path: Path, row: dict[str, object]) -> Measured:
    path = tmp_path / "table.parquet"
    other = {**COMMON, **row, "system": "a100_sxm"}
    flagged = {**COMMON, **row, "quality_flag": 1}
    pd.DataFrame([{**COMMON, **row}, other, flagged]).to_parquet(path)
    return read_measurements(path, "h100-sxm")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_the_op_that_was_measured(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, ROWS[name])
    text, engine, shape = OPS[name]
    assert (str(found.ops[0]), found.engine.tolist(), found.shape.tolist()) == (text, [engine], [shape])
    assert (
        found.seconds.tolist() == [5e-4] and len(found) == 1
    )  # neither another machine's row nor a flagged one
    assert ops.works(found.ops).known.all()


def test_keys_192_wide_go_with_values_128_wide(tmp_path: Path) -> None:
    found = read(tmp_path, {**ROWS["attention"], "head_dim": 192, "step": 99})
    assert (found.ops.column("v_dim").tolist(), found.shape.tolist()) == ([128.0], ["32x8x192w128"])
    assert "v_dim" not in str(read(tmp_path, ROWS["attention"]).ops[0])


def test_a_context_within_its_window_is_not_cut(tmp_path: Path) -> None:
    found = read(tmp_path, {**ROWS["attention"], "step": 99})
    assert str(found.ops[0]) == "attention fp8/bf16 batch=4 heads=32 kv_heads=8 head_dim=128 kv=400"


def test_deepep_sends_fp8_rows_and_takes_bf16_rows_back(tmp_path: Path) -> None:
    base = {
        "op_name": "ll",
        "node_num": 2,
        "hidden_size": 1024,
        "num_token": 4,
        "num_topk": 8,
        "num_experts": 64,
    }
    low = read(tmp_path, {**base, "dispatch_avg_t_us": 20.0, "combine_avg_t_us": 30.0})
    kinds = [op.kind for op in low.ops]
    assert kinds == ["moe_dispatch", "moe_collect"] and low.seconds.tolist() == pytest.approx([20e-6, 30e-6])
    assert low.ops.dims["bytes"].tolist() == [4 * 8 * 1024 * (1 + 4 / 128), 4 * 8 * 1024 * 2]
    assert low.ops.dims["ranks"].tolist() == [16, 16] and "sms" not in low.ops.dims
    normal = read(
        tmp_path,
        {
            **base, "dispatch_sms": 24, "dispatch_transmit_us": 40.0, "dispatch_notify_us": 5.0, "combine_sms": 12,
            "combine_transmit_us": 60.0, "combine_notify_us": 1.0,
        },
    )  # fmt: skip
    assert normal.seconds.tolist() == pytest.approx([45e-6, 61e-6]) and normal.ops.dims["sms"].tolist() == [
        24,
        12,
    ]
    both = Measured.join([low, normal])
    assert len(both) == 4 and np.isnan(both.ops.dims["sms"][:2]).all()
    assert [op.kind for op in both.ops] == kinds * 2


def test_every_family_with_a_form_of_its_own_names_one_that_is_there() -> None:
    assert set(FORM_OF.values()) <= set(SCHEMAS) == set(FORMS)
    assert all(FORMS[name].schema is SCHEMAS[name] for name in FORMS)


def test_what_the_campaign_writes_beside_an_op_is_no_dim(tmp_path: Path) -> None:
    path = tmp_path / "ops.parquet"
    told = {
        "p10_s": 9e-6,
        "p90_s": 2e-5,
        "repeats": 7,
        "engine": "torch",
        "kernel": "linear",
        "source": "benchmarks/campaign",
    }
    gemm = {
        "kind": "gemm",
        "dtype": "bf16",
        "m": 16,
        "n": 64,
        "k": 32,
        "seconds": 1e-5,
        "hardware": "h100-sxm",
        **told,
    }
    copy = {"kind": "memcpy", "dtype": "bf16", "bytes": 4096, "seconds": 1e-5, "hardware": "h100-sxm", **told}
    pd.DataFrame([gemm, copy]).to_parquet(path)
    measured = read_measurements(path, "h100-sxm")
    assert set(measured.ops.dims) == {"m", "n", "k", "bytes"} and measured.seconds.tolist() == [1e-5, 1e-5]


@pytest.mark.parametrize(
    ("engine", "version", "distribution", "tokens", "told"),
    [
        ("SGLang", "0.5.14", "balanced", 64, {"tokens": 64, "rows": 32, "distinct": 8}),
        # A rank of an eighth gets 32 of 64 tokens' choices once, and all eight choices of these.
        ("SGLang", "0.5.10", "balanced", 64, {"tokens": 32, "rows": 256, "distinct": 8}),
        ("VLLM", "0.19.0", "power_law_1.01", 1, {"tokens": 1, "rows": 1, "distinct_est": 1}),
        ("VLLM", "0.14.0", "power_law_1.01", 1, {"tokens": 1, "rows": 8, "distinct_est": 8}),
        ("TRTLLM", "1.3.0rc10", "power_law_1.01", 1, {"tokens": 1, "rows": 8, "distinct_est": 8}),
    ],
)
def test_engine_and_version_tell_what_a_rank_of_a_module_was_given(
    tmp_path: Path, engine: str, version: str, distribution: str, tokens: int, told: dict[str, float]
) -> None:
    row: dict[str, object] = {
        "framework": engine, "aic_version": version, "moe_dtype": "bfloat16", "num_tokens": tokens, "hidden_size": 2048,
        "inter_size": 768, "topk": 8, "num_experts": 128, "moe_tp_size": 1, "moe_ep_size": 16, "distribution": distribution,
    }  # fmt: skip
    found = read(tmp_path, row)
    assert {name: float(found.ops.column(name)[0]) for name in told} == pytest.approx(told)


@pytest.mark.parametrize(
    ("version", "shape", "ranks", "told"),
    [
        # Mixtral 8x7B and Gemma 4 do: only the tokens that chose one of the rank's experts, and all choices of these.
        ("0.5.14", (4096, 14336, 2, 8), 4, {"tokens": 32, "rows": 64}),
        ("0.5.14", (2816, 704, 8, 128), 16, {"tokens": 32, "rows": 256}),
        ("0.5.14", (4096, 14336, 2, 8), 1, {"tokens": 64, "rows": 128}),
        ("0.5.14", (4096, 1536, 8, 128), 16, {"tokens": 64, "rows": 32}),
        ("0.6.0", (4096, 14336, 2, 8), 4, {"tokens": 64, "rows": 32}),
        # DeepSeek-V3's keeps to four of eight groups: of what is balanced, all choices are of the first half of the experts.
        ("0.5.14", (7168, 2048, 8, 256), 2, {"tokens": 64, "rows": 512, "distinct": 128}),
        ("0.5.10", (7168, 2048, 8, 256), 1, {"tokens": 64, "rows": 512, "distinct": 256}),
    ],
)
def test_what_sglang_0_5_14_was_given_goes_by_the_models_router(
    tmp_path: Path, version: str, shape: tuple[int, int, int, int], ranks: int, told: dict[str, float]
) -> None:
    names = ("hidden_size", "inter_size", "topk", "num_experts")
    row: dict[str, object] = {
        "framework": "SGLang", "aic_version": version, "moe_dtype": "bfloat16", "num_tokens": 64,
        **dict(zip(names, shape, strict=True)), "moe_tp_size": 1, "moe_ep_size": ranks, "distribution": "balanced",
    }  # fmt: skip
    found = read(tmp_path, row)
    assert {name: float(found.ops.column(name)[0]) for name in told} == pytest.approx(told)
