"""ModelSpec: the catalogue against published totals, configs in every dialect, and what is refused."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import ModelError
from moetrace.model import (
    MAX_CONFIG_BYTES,
    ModelSpec,
    infer_model,
    load_config,
    load_model,
    model_names,
    same_shape_as,
)
from moetrace.model.catalogue import INFER_KEYS, _entry
from moetrace.model.config import _COUNTED_BY, _FULL_KV
from tests.conftest import REPO

# name: total B, active B, whether the published active figure has the embedding table in it. Where from:
PUBLISHED = {
    "olmoe-1b-7b": (6.9, 1.3, True),  # arXiv 2409.02060, abstract and table 1
    "mixtral-8x7b": (46.7, 12.9, True),  # mistral.ai/news/mixtral-of-experts
    "qwen1.5-moe-a2.7b": (14.3, 2.7, True),  # model card
    "qwen3-30b-a3b": (30.5, 3.3, True),  # model card
    "qwen3-235b-a22b": (235, 22, True),  # model card
    "deepseek-v2-lite": (15.7, 2.4, False),  # arXiv 2405.04434, appendix B
    "deepseek-v3": (671, 37, True),  # arXiv 2412.19437, abstract
    "phi-3.5-moe": (41.9, 6.6, True),  # model card: 6.6B active; total: weights on the Hub
    "gpt-oss-20b": (20.91, 3.61, False),  # arXiv 2508.10925, table 1
    "gpt-oss-120b": (116.83, 5.13, False),  # arXiv 2508.10925, table 1
    "llama-4-scout": (109, 17, True),  # model card; its total has the vision tower, 1.1 % of it
    "llama-4-maverick": (400, 17, True),  # model card
    "mixtral-8x22b": (141, 39, True),  # mistral.ai/news/mixtral-8x22b
    "qwen3-coder-480b-a35b": (480, 35, True),  # model card
    "minimax-m2": (228.7, 10.4, False),  # weights on the Hub; the card rounds to 230 and 10
    "kimi-k2": (1026.4, 32.6, True),  # weights on the Hub; arXiv 2507.20534 says 1.04 T and 32.6 B
    "deepseek-vl2": (27, 4.1, False),  # arXiv 2412.10302, table 1: activated by the language model
    "llama-3.2-1b": (1.24, 1.24, True),  # arXiv 2407.21783 and the model cards of 3.2
    "llama-3.2-3b": (3.21, 3.21, True),
    "llama-3.1-70b": (70.6, 70.6, True),
    "llama-3.1-405b": (405, 405, True),
    "llama-2-13b": (13.0, 13.0, True),  # arXiv 2307.09288
    "qwen3-0.6b": (0.6, 0.6, True),  # model cards
    "qwen3-1.7b": (1.72, 1.72, True),  # weights on the Hub
    "qwen3-4b": (4.0, 4.0, True),
    "qwen3-14b": (14.8, 14.8, True),
    "qwen3-32b": (32.8, 32.8, True),
    "qwen2-57b-a14b": (57, 14, True),  # arXiv 2407.10671
    "hunyuan-a13b": (80, 13, True),  # model card
    "dots.llm1": (142, 14, True),  # arXiv 2506.05767, abstract
}
# What is published of these is rounded to the billion, or counts otherwise: (total, active, embedding, relative tolerance).
ROUNDED = {
    "glm-4.5": (355, 32, False, 0.03),  # arXiv 2508.06471, table 1
    "glm-4.5-air": (
        106,
        12,
        False,
        0.07,
    ),  # arXiv 2508.06471; without embedding and lm_head 12.2 B are active
    "deepseek-vl2-tiny": (3, 0.57, False, 0.03),  # arXiv 2412.10302, table 1
    "ernie-4.5-21b-a3b": (
        21,
        3,
        False,
        0.12,
    ),  # its name; its parts in transformers' class and two copies of its config
    "glm-4.7-flash": (
        30,
        3,
        False,
        0.2,
    ),  # model card, 30B-A3B; the active ones without embedding and lm_head are 3.3
    "granite-3.1-1b-a400m": (1.3, 0.4, False, 0.08),  # model cards
    "granite-3.1-3b-a800m": (3.3, 0.8, False, 0.11),
    "qwen3-next-80b-a3b": (80, 3, False, 0.2),  # model card; without embedding and lm_head 3.3 B are active
    "qwen3.5-35b-a3b": (35, 3, False, 0.02),  # its name
    "deepseek-v3.2": (
        671,
        37,
        False,
        0.02,
    ),  # its inference config is config_671B_v3.2.json; active as DeepSeek-V3
    "glm-5": (744, 40, False, 0.025),  # arXiv 2602.15763
}
# Parameters that transformers 5.23 gives a causal LM built from the same JSON on the meta device.
COUNTED = {
    "qwen3-next-80b-a3b": 79674391296,  # as the weights of Qwen3-Coder-Next on the Hub
    "qwen3.5-35b-a3b": 34660610688,
    "deepseek-v2-lite": 15706484224,
    "deepseek-vl2": 27033546240,
    "glm-4.5": 352797814784,
    "glm-4.5-air": 106852245504,
    "kimi-k2": 1026408209408,  # built as deepseek_v3, whose code its config points at
    "llama-2-13b": 13015864320,
    "llama-3.1-405b": 405853388800,
    "llama-3.1-70b": 70553706496,
    "llama-3.2-1b": 1235814400,
    "llama-3.2-3b": 3212749824,
    "llama-4-maverick": 400711848960,
    "minimax-m2": 228689748992,
    "mixtral-8x22b": 140620634112,
    "qwen3-0.6b": 596049920,
    "qwen3-1.7b": 1720574976,
    "qwen3-14b": 14768307200,
    "qwen3-32b": 32762123264,
    "qwen3-4b": 4022468096,
    "qwen3-coder-480b-a35b": 480154875392,
    "deepseek-v3": 671026404352,
    "deepseek-v3.2": 671877929216,
    "glm-5": 743911199232,
    "gpt-oss-120b": 116829156672,
    "gpt-oss-20b": 20914757184,
    "llama-3.1-8b": 8030261248,
    "llama-4-scout": 107769861120,
    "mixtral-8x7b": 46702792704,
    "olmoe-1b-7b": 6919161856,
    "phi-3.5-moe": 41873153344,
    "qwen1.5-moe-a2.7b": 14315784192,
    "qwen3-235b-a22b": 235093634560,
    "qwen3-30b-a3b": 30532122624,
    "qwen3-8b": 8190735360,
    "dots.llm1": 142774373888,
    "ernie-4.5-21b-a3b": 21825437888,
    "glm-4.7-flash": 29943390976,
    "granite-3.1-1b-a400m": 1334628352,
    "granite-3.1-3b-a800m": 3298793472,
    "hunyuan-a13b": 80393183232,
    "qwen2-57b-a14b": 57408658944,
}
SMALL: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "vocab_size": 100, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


HYBRID: dict[str, Any] = {
    "model_type": "qwen3_next", "full_attention_interval": 2, "head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_num_value_heads": 4,
    "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4,
}  # fmt: skip


INDEXED: dict[str, Any] = {
    "model_type": "glm_moe_dsa", "n_routed_experts": 8, "q_lora_rank": 16, "kv_lora_rank": 32, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4,
}  # fmt: skip


def small(**fields: Any) -> ModelSpec:
    return ModelSpec.from_config({**SMALL, **fields}, "small")


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_match_the_published_totals(name: str) -> None:
    total, active, embedding = PUBLISHED[name]
    spec = load_model(name)
    assert spec.params() / 1e9 == pytest.approx(total, rel=0.012)
    assert spec.active_params(embedding) / 1e9 == pytest.approx(active, rel=0.025)


@pytest.mark.parametrize("name", ROUNDED)
def test_params_match_rounded_totals(name: str) -> None:
    total, active, embedding, within = ROUNDED[name]
    spec = load_model(name)
    assert spec.params() / 1e9 == pytest.approx(total, rel=within)
    assert spec.active_params(embedding) / 1e9 == pytest.approx(active, rel=within)


def test_params_match_what_transformers_builds_from_the_same_json() -> None:
    own = {name for name in model_names() if not same_shape_as(name)}
    assert set(COUNTED) == own - {"deepseek-vl2-tiny"}  # transformers has no DeepSeek-V2 without MLA
    for name, count in COUNTED.items():
        assert load_model(name).params() == pytest.approx(count, rel=4e-4), name  # biases and q/k norms


def test_the_other_convention_misses_the_published_figure() -> None:
    for name in ("qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite"):
        _, active, embedding = PUBLISHED[name]
        assert load_model(name).active_params(not embedding) / 1e9 != pytest.approx(active, rel=0.05)


def test_an_entry_of_anothers_shape_is_that_shape_and_is_never_inferred() -> None:
    shared = {name: base for name in model_names() if (base := same_shape_as(name))}
    assert shared["deepseek-r1"] == "deepseek-v3" and shared["molmoe-1b"] == "olmoe-1b-7b"
    for name, base in shared.items():
        spec, other = load_model(name), load_model(base)
        assert spec == other.with_edits(name=name, max_context=spec.max_context)
        assert same_shape_as(base) is None
    found = infer_model({"hidden": 7168, "layers": 61, "experts": 256})
    assert found is not None and found[0].name == "deepseek-v3"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 0),
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        # Qwen's way: the positions that it was trained on, and a scaling
        ({"max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 32768}}, 131072),
        # DeepSeek's and Kimi's: the stretched number
        ({"max_position_embeddings": 163840, "rope_scaling": {"type": "yarn", "factor": 40,
          "original_max_position_embeddings": 4096}}, 163840),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.5}}, 10240),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        # within the positions already
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "factor": 32}}, 131072),
        # nonsense is as good as nothing
        ({"max_position_embeddings": "many"}, 0),
        ({"max_position_embeddings": 1e30}, 0),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": float("inf")}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": "4"}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": "yarn"}, 4096),
    ],
)  # fmt: skip
def test_how_long_a_sequence_a_config_allows(fields: dict[str, Any], tokens: int) -> None:
    assert small(**fields).max_context == tokens


def test_every_entry_says_how_long_a_sequence_may_be() -> None:
    longest = {name: load_model(name).max_context for name in model_names()}
    assert all(longest.values())
    alike = {
        name: longest[name] for name in ("qwen3-30b-a3b", "qwen3-coder-30b-a3b", "llama-3-8b", "llama-3.1-8b")
    }
    assert list(alike.values()) == [40960, 262144, 8192, 131072]


def test_a_model_told_from_a_trace_may_be_the_one_of_its_shape_with_the_longest_context() -> None:
    glm = load_model("glm-4.5")
    found = infer_model(
        {"hidden": glm.hidden, "layers": glm.layers, "experts": glm.experts, "vocab": glm.vocab}
    )
    assert found is not None and found[0] == glm.with_edits(max_context=202752)


def test_moe_layers_given_twice_or_below_zero() -> None:
    assert small(moe_layers=[0, 2, 2]).moe_layers == (0, 2)
    with pytest.raises(ModelError, match="no regular step"):
        small(moe_layers=[-1, 1, 3])


def test_how_queries_and_keys_are_normalised() -> None:
    kinds = {name: load_model(name).qk_norm for name in model_names()}
    assert {name for name, kind in kinds.items() if kind == "width"} == {
        "olmoe-1b-7b",
        "molmoe-1b",
        "minimax-m2",
    }
    assert {kinds["qwen3-8b"], kinds["glm-4.5"], kinds["llama-4-scout"]} == {"head"}
    assert kinds["glm-4.5-air"] == kinds["deepseek-v3"] == kinds["llama-4-maverick"] == ""
    with pytest.raises(ModelError, match="qk_norm"):
        load_model("qwen3-8b").with_edits(qk_norm="both")


@pytest.mark.parametrize("name", model_names())
def test_catalogue_entry_names_its_source_and_round_trips(name: str) -> None:
    spec = load_model(name)
    raw = json.loads((Path(__file__).parents[2] / "moetrace" / "models" / f"{name}.json").read_text())
    assert raw["_source"].startswith("https://huggingface.co/")
    assert "_source" not in load_config(name) and load_config(name)["model_type"]
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert len(spec.windows) == spec.layers
    layers = sum(spec.layer_weight_bytes(layer) for layer in range(spec.layers))
    assert layers < spec.weight_bytes() < 2.01 * spec.params()


def test_attention_windows_and_moe_layers_by_family() -> None:
    oss, scout, v3 = (load_model(name) for name in ("gpt-oss-20b", "llama-4-scout", "deepseek-v3"))
    assert oss.windows == (128, 0) * 12 and oss.window(0) == 128 and oss.window(23) == 0
    assert scout.windows == (8192, 8192, 8192, 0) * 12 and scout.shared_inter == 8192
    assert v3.moe_layers == tuple(range(3, 61)) and not v3.is_moe(2) and v3.is_moe(3)
    assert v3.attention == "mla" and (v3.kv_lora, v3.rope_dim, v3.head_dim) == (512, 64, 192)
    assert load_model("qwen3-8b").moe_layers == ()
    with pytest.raises(ModelError, match="layers 0 to 23, not 24"):
        oss.is_moe(24)


def test_bytes_of_experts_and_kv() -> None:
    oss, v3, qwen = (load_model(name) for name in ("gpt-oss-20b", "deepseek-v3", "qwen3-30b-a3b"))
    assert qwen.expert_bytes() == 3 * 2048 * 768 * 2  # 9.44 MB
    assert oss.expert_bytes(scales=False) == 3 * 2880 * 2880 / 2
    assert oss.expert_bytes() == oss.expert_bytes(scales=False) * (1 + 2 / 32)
    assert oss.expert_bytes("bf16") == 3 * 2880 * 2880 * 2
    assert (oss.dtype, oss.expert_dtype, oss.act_dtype) == ("bf16", "mxfp4", "bf16")
    assert (v3.dtype, v3.expert_dtype, v3.act_dtype) == ("fp8_block", "fp8_block", "bf16")
    assert v3.kv_bytes_per_token(60) == (512 + 64) * 2  # arXiv 2405.04434
    assert qwen.kv_bytes_per_token(0) == 2 * 4 * 128 * 2 and qwen.kv_bytes_per_token(0, "fp8") == 2 * 4 * 128
    # Checkpoint sizes on the Hub: 13.8 GB for gpt-oss-20b, 16.1 GB for Llama-3.1-8B.
    assert oss.weight_bytes() == pytest.approx(13.8e9, rel=0.01)
    assert load_model("llama-3.1-8b").weight_bytes() == pytest.approx(16.06e9, rel=0.001)


def test_linear_attention_keeps_a_state_and_no_cache() -> None:
    """Qwen3-Next: a state of 32 x 128 x 128 in fp32 and the last 3 inputs of 8192 channels, in three layers of four."""
    spec = load_model("qwen3-next-80b-a3b")
    assert [spec.is_linear(i) for i in range(8)] == [True, True, True, False] * 2
    assert spec.state_bytes(0) == 32 * 128 * 128 * 4 + 8192 * 3 * 2 and spec.state_bytes(3) == 0
    assert spec.kv_bytes_per_token(0) == 0 and spec.kv_bytes_per_token(3) == 2 * 2 * 256 * 2
    assert spec.params() == COUNTED[spec.name] - 12 * 2 * 256  # but for q/k norms, exactly
    with pytest.raises(ModelError, match="full_every is 1"):
        spec.with_edits(full_every=1)


def test_an_indexer_keeps_a_key_of_each_token_and_is_read_or_refused_in_words() -> None:
    """DeepSeek-V3.2: beside MLA's 576 values in 16 bits a key of 128 in FP8 and its scale, whatever the cache's type."""
    spec, dense = load_model("deepseek-v3.2"), load_model("deepseek-v3")
    assert (spec.index_heads, spec.index_dim, spec.index_topk) == (64, 128, 2048)
    assert [spec.kv_bytes_per_token(0, kind) for kind in ("bf16", "fp8")] == [576 * 2 + 132, 576 + 132]
    own = (
        1536 * 64 * 128 + 7168 * 128,
        7168 * 64,
    )  # queries and key in the weights' type, the heads' weights in 16 bits
    assert spec.params() - dense.params() == 61 * sum(own)
    more = spec.layer_weight_bytes(5) - dense.layer_weight_bytes(5)
    assert more == pytest.approx(own[0] * (1 + 4 / 128**2) + own[1] * 2)
    assert (
        COUNTED[spec.name] - spec.params() == COUNTED[dense.name] - dense.params() + 61 * 256
    )  # its keys' norm
    assert spec.has_indexer and not dense.has_indexer
    found = infer_model({"hidden": 7168, "layers": 61, "experts": 256, "has_indexer": 1})
    assert found is not None and found[0].name == "deepseek-v3.2"
    with pytest.raises(ModelError, match="an indexer needs index_heads, index_dim and q_lora"):
        spec.with_edits(q_lora=0)
    with pytest.raises(ModelError, match="an indexer needs index_topk"):
        spec.with_edits(index_topk=0)
    with pytest.raises(ModelError, match="an indexer beside attention other than mla"):
        load_model("qwen3-8b").with_edits(index_topk=8)


def test_layers_that_have_an_indexer_may_be_listed() -> None:
    listed = {**INDEXED, "layer_types": ["indexed_attention"] * 4, "indexer_types": ["full"] * 4}
    assert small(**listed) == small(**INDEXED) == small(**INDEXED, index_topk_freq=1)
    assert small(**INDEXED).windows == (0,) * 4 and small(**INDEXED).has_indexer


def test_a_hybrids_layers_by_their_list_or_their_interval() -> None:
    by_interval = small(**HYBRID)
    listed = ["linear_attention", "full_attention"] * 2
    assert small(**{**HYBRID, "full_attention_interval": None, "layer_types": listed}) == by_interval
    assert [by_interval.is_linear(i) for i in range(4)] == [True, False] * 2
    assert (by_interval.state_dtype, by_interval.output_gate, by_interval.shared_gate) == ("fp32", True, True)
    assert small(**HYBRID, mamba_ssm_dtype="bfloat16").state_bytes(0) == (8 * 48 + (2 * 16 + 48) * 3) * 2
    dense = {**HYBRID, "model_type": "qwen3_5_text", "num_experts": 0, "num_local_experts": 0}
    assert small(**dense).layer_params(0)["dense"] == 3 * 64 * 96
    everywhere = small(**{**HYBRID, "layer_types": ["full_attention"] * 4})
    assert everywhere.full_every == 0 and everywhere.query_width == 2 * 4 * 16


@pytest.mark.parametrize(
    ("fields", "first", "every"),
    [
        ({}, 0, 1),
        ({"first_k_dense_replace": 1}, 1, 1),
        ({"decoder_sparse_step": 2}, 1, 2),
        ({"interleave_moe_layer_step": 2}, 1, 2),
        ({"moe_layers": [1, 3]}, 1, 2),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, 2, 2),
        ({"moe_layer_freq": [0, 1, 1, 1]}, 1, 1),
        ({"mlp_only_layers": [0, 1]}, 2, 1),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, 1, 1),
    ],
)
def test_moe_layers_in_every_dialect(fields: dict[str, Any], first: int, every: int) -> None:
    spec = small(**fields)
    assert (spec.first_dense, spec.moe_every) == (first, every)
    assert spec.moe_layers == tuple(range(first, 4, every))


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, (0, 0, 0, 0)),
        ({"sliding_window": 32}, (32, 32, 32, 32)),
        ({"sliding_window": 32, "use_sliding_window": False}, (0, 0, 0, 0)),
        ({"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0, 32)),
        ({"sliding_window": 32, "sliding_window_pattern": 2}, (32, 0, 32, 0)),
        ({"sliding_window": 32, "model_type": "gpt_oss"}, (32, 0, 32, 0)),
        ({"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]}, (0, 32, 0, 32)),
        ({"attention_chunk_size": 64, "model_type": "llama4_text"}, (64, 64, 64, 0)),
        ({"attention_chunk_size": 8, "model_type": "llama4", "no_rope_layers": [0, 1, 1, 1]}, (0, 8, 8, 8)),
    ],
)  # fmt: skip
def test_windows_in_every_dialect(fields: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert small(**fields).windows == windows


@pytest.mark.parametrize(
    ("quantisation", "dtype", "expert_dtype"),
    [
        ({"quant_method": "mxfp4"}, "bf16", "mxfp4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", "fp8_block"),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["0.self_attn"]}, "bf16", "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4", "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8", "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["re:.*self_attn.*"],
                "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 32}}},
            },
            "bf16",
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"type": "float", "num_bits": 8, "strategy": "block"}}},
            },
            "fp8_block",
            "fp8_block",
        ),
    ],
)  # fmt: skip
def test_quantisation_in_every_dialect(quantisation: dict[str, Any], dtype: str, expert_dtype: str) -> None:
    spec = small(quantization_config=quantisation)
    assert (spec.dtype, spec.expert_dtype, spec.act_dtype) == (dtype, expert_dtype, "bf16")


def test_nested_text_config_inherits_the_outer_fields() -> None:
    outer = {
        "model_type": "vl",
        "text_config": SMALL,
        "torch_dtype": "float16",
        "tie_word_embeddings": True,
    }
    spec = ModelSpec.from_config(outer, "vl")
    assert (spec.architecture, spec.act_dtype, spec.tie_embeddings) == ("mixtral", "fp16", True)
    assert spec.params() == small(tie_word_embeddings=True).params() == small().params() - 100 * 64


def test_what_is_said_of_each_layer_is_one_number_where_all_agree() -> None:
    spec = small(num_experts_per_tok=[3] * 4, num_shared_expert=[2, 2, 2, 2])
    assert (spec.topk, spec.shared_inter) == (3, 2 * 96)
    with pytest.raises(ModelError, match="num_experts_per_tok is"):
        small(num_experts_per_tok=[3, 3, 3, 2])


def test_the_page_lists_the_catalogue_as_it_is() -> None:
    page = (REPO / "docs" / "models.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| `[\w.-]+` \|", line)]
    assert rows == [row_of(name) for name in model_names() if not same_shape_as(name)]
    assert set(re.findall(r"`([\w.-]+)` \(\[", page)) == {
        name for name in model_names() if same_shape_as(name)
    }


def row_of(name: str) -> str:
    """The line of docs/models.md on a model."""
    spec, source = load_model(name), _entry(name)["_source"].removesuffix("/blob/main/config.json")
    shared = f", shared {spec.shared_inter}" if spec.shared_inter else ""
    experts = f"{spec.topk} of {spec.experts}, {spec.expert_inter}{shared}" if spec.experts else "dense"
    mla = f"MLA {spec.heads} heads, {spec.kv_lora}+{spec.rope_dim}"
    heads = mla if spec.attention == "mla" else f"{spec.heads}/{spec.kv_heads} x {spec.head_dim}"
    if spec.full_every:
        linear = f"{spec.linear_heads}/{spec.linear_kv_heads} x {spec.linear_dim}"
        heads = f"{heads}; linear {linear} in {spec.full_every - 1} of {spec.full_every} layers"
    if spec.has_indexer:
        heads = f"{heads}; indexer {spec.index_heads} x {spec.index_dim} picks {spec.index_topk}"
    types = spec.dtype + (f", experts {spec.expert_dtype}" if spec.expert_dtype != spec.dtype else "")
    counts = f"{spec.params() / 1e9:.1f} / {spec.active_params() / 1e9:.1f}"
    link = f"[{source.removeprefix('https://huggingface.co/')}]({source})"
    cells = (
        f"`{name}`",
        link,
        spec.layers,
        spec.hidden,
        experts,
        heads,
        types,
        counts,
        f"{spec.weight_bytes() / 1e9:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def test_shared_experts_and_ungated_ffns() -> None:
    assert small(n_shared_experts=2, moe_intermediate_size=16).shared_inter == 32
    assert small(shared_expert_intermediate_size=48).shared_inter == 48
    assert small(hidden_act="relu2").expert_bytes() == 2 * 64 * 96 * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": None}, "lacks the field 'hidden_size'"),
        ({"num_experts_per_tok": None}, "lacks the field 'num_experts_per_tok' .or experts_per_token"),
        ({"model_type": None}, "lacks the field 'model_type'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected a whole number"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"num_experts_per_tok": 9}, "topk is 9, expected 1 to 8"),
        ({"num_key_value_heads": 3}, r"heads \(4\) is not a multiple of kv_heads \(3\)"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, "lacks 'head_dim'"),
        ({"kv_lora_rank": 16}, "lacks the field 'qk_nope_head_dim'"),
        ({"layer_types": ["linear_attention"] * 4}, "'linear_attention' is not supported"),
        ({"model_type": "kimi_linear"}, "'kimi_linear' has linear attention or state-space layers"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "linear_attn_config says"),
        ({"attn_type_list": [0, 1, 1, 1]}, "attn_type_list says"),
        ({"linear_num_value_heads": 4}, "linear_num_value_heads says"),
        ({**HYBRID, "full_attention_interval": None}, "lacks the field 'full_attention_interval'"),
        ({**HYBRID, "full_attention_interval": 5}, "full_attention_interval is 5, expected 1 to 4"),
        ({**HYBRID, "layer_types": ["linear_attention"] * 4}, "no regular step over 4 layers"),
        ({**HYBRID, "layer_types": ["full_attention", *["linear_attention"] * 3]}, "no regular step"),
        ({**HYBRID, "layer_types": ["sliding_attention"] * 4}, "not supported beside linear attention"),
        ({**HYBRID, "linear_num_key_heads": None}, "lacks the field 'linear_num_key_heads'"),
        ({**HYBRID, "linear_num_key_heads": 3}, r"linear_heads \(4\) is not a multiple"),
        ({**HYBRID, "linear_conv_kernel_dim": 0}, "linear attention needs"),
        ({**HYBRID, "attn_output_gate": False}, "attn_output_gate is false"),
        ({**HYBRID, "mamba_ssm_dtype": "float8"}, "mamba_ssm_dtype is 'float8'"),
        ({**INDEXED, "index_topk": None}, "lacks the field 'index_topk'"),
        ({**INDEXED, "q_lora_rank": None}, "an indexer needs index_heads, index_dim and q_lora"),
        (
            {**INDEXED, "model_type": "deepseek_v4"},
            "index_n_heads says that 'deepseek_v4' attends to what an indexer picks",
        ),
        ({"index_topk_blocks": 16}, "index_topk_blocks says that 'mixtral'"),
        (
            {**INDEXED, "index_topk_freq": 4},
            "layers that take another layer's choice of tokens are not supported",
        ),
        ({**INDEXED, "index_topk_pattern": "FSSS"}, "another layer's choice"),
        ({**INDEXED, "indexer_types": ["full", *["shared"] * 3]}, "another layer's choice"),
        (
            {**INDEXED, "layer_types": ["sliding_attention"] * 4},
            "'sliding_attention' is not supported beside an indexer",
        ),
        ({"layer_types": ["sliding_attention"] * 4}, "lacks the field 'sliding_window'"),
        ({"moe_layers": [0, 1, 3]}, "no regular step"),
        ({"torch_dtype": "float8"}, "unknown torch_dtype 'float8'"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quant_method 'aqlm' is not understood"),
    ],
)
def test_a_bad_config_is_one_line_that_names_field_and_file(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, **fields}))
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", model_names())
def test_what_a_class_would_fill_in_must_be_said(name: str) -> None:
    """Experts always; KV heads where Hugging Face's default is another model's number and not the number of heads."""
    config = load_config(name)
    config = config.get("text_config") or config.get("language_config") or config
    for field in {"num_experts", "num_local_experts", "n_routed_experts"} & set(config):
        with pytest.raises(ModelError, match=f"lacks the field '{field}'"):
            ModelSpec.from_config({k: v for k, v in config.items() if k != field}, name)
    without = {k: v for k, v in config.items() if k != "num_key_value_heads"}
    if config["model_type"] in _FULL_KV or config.get("kv_lora_rank"):
        spec = ModelSpec.from_config(without, name)
        assert spec.kv_heads == spec.heads
    else:
        with pytest.raises(ModelError, match="lacks the field 'num_key_value_heads'"):
            ModelSpec.from_config(without, name)
    null = ModelSpec.from_config({**config, "num_key_value_heads": None}, name)
    assert null.kv_heads == null.heads


def test_the_tables_of_fields_are_what_transformers_does() -> None:
    configs = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for kind, field in _COUNTED_BY.items():
        if kind in configs and kind != "llama4":  # the outer config, whose decoder is llama4_text
            assert isinstance(getattr(configs[kind](), field), int | None), kind
    for kind in _FULL_KV & set(configs):
        field = inspect.signature(configs[kind]).parameters.get("num_key_value_heads")
        assert field is None or field.default is None, kind


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b'{"hidden_size":', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[1]", "holds a list"),
        (b" " * (MAX_CONFIG_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load_model(str(file))


def test_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'olmoe-1b-7b'"):
        load_model("olmoe-1b7b")
    with pytest.raises(ModelError, match="did you mean 'qwen3-235b-a22b'"):
        load_model("Qwen3-235B")  # what it begins with, not qwen3-32b, which is spelled more like it
    with pytest.raises(ModelError, match="no model config at"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "auto_map": {"AutoConfig": "evil.Config"}}))
    assert load_model(str(tmp_path)) == load_model(str(tmp_path / "config.json"))
    assert load_model(str(tmp_path)).name == tmp_path.name
    (tmp_path / "other.json").write_text(json.dumps({**SMALL, "_name_or_path": "org/Some-MoE"}))
    assert load_model(str(tmp_path / "other.json")).name == "Some-MoE"


def test_with_edits() -> None:
    spec = load_model("gpt-oss-20b")
    assert spec.with_edits() == spec
    assert spec.with_edits(layers=5).windows == (128, 0, 128, 0, 128)
    assert spec.with_edits(layers=36, experts=128).params() == load_model("gpt-oss-120b").params()
    assert spec.with_edits(topk=2).active_params() < spec.active_params()
    assert spec.with_edits(topk=2).params() == spec.params()
    for edits, words in (
        ({"topk": 33}, "topk is 33"),
        ({"n_a": 2}, "unknown model field 'n_a'"),
        ({"layers": 0}, "layers is 0"),
        ({"expert_dtype": "fp3"}, "unknown dtype 'fp3'"),
    ):
        with pytest.raises(ModelError, match=words):
            spec.with_edits(**edits)


def test_records_that_do_not_fit_are_refused() -> None:
    data = small().to_dict()
    with pytest.raises(ModelError, match="unknown field 'colour'"):
        ModelSpec.from_dict({**data, "colour": 1})
    del data["kv_heads"]
    with pytest.raises(ModelError, match="lacks the field 'kv_heads'"):
        ModelSpec.from_dict(data)


def test_infer_model_needs_exactly_one_that_fits() -> None:
    found = infer_model({"hidden": 2880, "experts": 32})
    assert found is not None and found[0] == load_model("gpt-oss-20b")
    assert "gpt-oss-20b inferred from the trace (hidden 2880, experts 32)" in found[1]
    assert infer_model({"hidden": 2880, "vocab": 201088}) is None  # both gpt-oss
    assert infer_model({"hidden": 2880, "experts": 33}) is None
    assert infer_model({"vocab": 129280}) is None and infer_model({}) is None  # one dim proves nothing
    with pytest.raises(ModelError, match="unknown dim to infer a model from 'width'"):
        infer_model({"width": 1, "hidden": 2})


@pytest.mark.parametrize("name", model_names())
def test_infer_model_finds_every_entry_by_all_its_dims(name: str) -> None:
    spec = load_model(same_shape_as(name) or name)
    found = infer_model({key: getattr(spec, key) for key in INFER_KEYS})
    alike = [other for other in model_names() if same_shape_as(other) == spec.name]
    longest = max(load_model(other).max_context for other in (spec.name, *alike))
    assert found is not None and found[0] == spec.with_edits(max_context=longest)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = [
    *SMALL, "head_dim", "layer_types", "moe_layers", "moe_layer_freq", "mlp_only_layers", "mlp_layer_types",
    "sliding_window", "sliding_window_pattern", "quantization_config", "text_config", "torch_dtype",
    "kv_lora_rank", "no_rope_layers", "n_shared_experts", "decoder_sparse_step", "first_k_dense_replace",
    "hidden_act",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, min_size=1, max_size=4))
def test_any_json_gives_a_sound_spec_or_a_model_error(fields: dict[str, Any]) -> None:
    try:
        spec = small(**fields)
    except ModelError as error:
        assert "\n" not in str(error)
        return
    assert spec.params() >= spec.active_params() > 0
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_hugging_face_name_leads_to_the_catalogues() -> None:
    with pytest.raises(
        ModelError,
        match=r"no model config at Qwen/Qwen3-30B-A3B: .* the name 'qwen3-30b-a3b' of the catalogue",
    ):
        load_model("Qwen/Qwen3-30B-A3B")
    with pytest.raises(ModelError, match=r"expected a config\.json, or one of deepseek"):
        load_model("Nobody/Nothing-7B")
