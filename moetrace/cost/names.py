"""What public tables of measured ops call their columns, element types and ops, in moetrace's terms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# NVIDIA AIConfigurator's public performance tables, beside moetrace's own names.
COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "op_name": "kind",
        "moe_dtype": "dtype",
        "gemm_dtype": "dtype",
        "attn_dtype": "dtype",
        "mla_dtype": "dtype",
        "num_tokens": "tokens",
        "hidden_size": "hidden",
        "inter_size": "inter",
        "num_experts": "experts",
        "moe_tp_size": "moe_tp",
        "moe_ep_size": "moe_ep",
        "distribution": "routing",
        "batch_size": "batch",
        "num_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "window_size": "window",
    }
)
DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "int4_wo": "int4/bf16",
        "int8_wo": "int8/bf16",
        "w4a16_mxfp4": "mxfp4/bf16",
    }
)
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "moe": "moe_module",
        "generation_attention": "attention",
        "mla_generation": "mla_attention",
        "generation_mla": "mla_attention",
        "alltoall": "all_to_all",
    }
)
