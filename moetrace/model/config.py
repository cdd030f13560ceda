"""Hugging Face configs, in the dialects of the public families -> the fields of a ModelSpec.

Not supported, and refused by name: linear attention other than the gated delta rule (see linear.py), state-space
layers, indexers other than DeepSeek-V3.2's (see sparse.py), expert lists that differ by layer, quantisation methods
without a known width. Code that a config points at (`auto_map`) is never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moetrace.errors import ModelError, unknown
from moetrace.model.context import max_context
from moetrace.model.fields import MAX_LAYERS, Config
from moetrace.model.linear import is_linear, linear_fields, refuse_other_layers
from moetrace.model.sparse import index_fields, is_indexed

# Names that public configs use for the same thing, first found wins.
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_TOPK = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "num_selected_experts")
_SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
# Model types whose experts are counted by this field of their config. Without it Hugging Face takes its class's own number,
# which is some other model's (transformers 5.23, models/*/configuration_*.py; kimi_k2 by the code beside its weights).
_COUNTED_BY = {
    **dict.fromkeys(
        ("afmoe", "cohere2_moe", "exaone_moe", "flex_olmo", "hunyuan_v1_moe", "hy_v3", "jamba", "kimi_linear", "lfm2_moe",
         "olmoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe_text", "qwen3_vl_moe_text"),
        "num_experts",
    ),
    **dict.fromkeys(
        ("gpt_oss", "granitemoe", "granitemoeshared", "jetmoe", "llama4", "llama4_text", "minimax", "minimax_m2", "mixtral",
         "phimoe"),
        "num_local_experts",
    ),
    **dict.fromkeys(
        ("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "glm4_moe", "glm4_moe_lite", "glm4v_moe_text",
         "glm_moe_dsa", "kimi_k2", "longcat_flash", "mimo_v2_flash", "mistral4", "nemotron_h", "solar_open", "step3p5"),
        "n_routed_experts",
    ),
    **dict.fromkeys(("aria_text", "ernie4_5_moe", "ernie4_5_vl_moe_text"), "moe_num_experts"),
}  # fmt: skip
# Model types whose num_key_value_heads is num_attention_heads by default, or that have no such field (same source). In all
# others it is a number of the class, so that a config without it is not one that could be read.
_FULL_KV = frozenset(
    ("afmoe", "apertus", "arcee", "aria_text", "biogpt", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "diffllama",
     "doge", "flex_olmo", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "granitemoe", "granitemoehybrid",
     "granitemoeshared", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "jais2", "llama", "mpt", "nanochat", "nemotron",
     "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "xglm")
)  # fmt: skip
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_groups")
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_KEPT = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude", "exclude_modules")
_HF_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_BITS = {
    ("int", "4"): "int4",
    ("int", "8"): "int8",
    ("float", "8"): "fp8",
    ("float", "8 block"): "fp8_block",
    ("float", "4 by 16"): "nvfp4",
    ("float", "4 by 32"): "mxfp4",
}
_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4"}
# How families normalise queries and keys where they do (transformers 5.23, models/*/modeling_*.py): over each head, or all at
# once. These always do; others say so in a field.
_HEAD_NORMS = {
    **dict.fromkeys(
        ("qwen3", "dots1", "qwen3_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), "head"
    ),
    "olmoe": "width",
}
_UNGATED_ACTIVATIONS = ("relu2", "relu", "gelu_new")


def _decoder(config: Mapping[str, Any], where: str) -> Config:
    """The language model's part of a config, with what an outer config says for the whole."""
    for _ in range(3):
        inner = next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), None)
        if inner is None:
            break
        shared = ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
        config = {**{k: config[k] for k in shared if k in config}, **inner}
    return Config(config, where)


def spec_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a ModelSpec, all but its name, as a config states them; `where` names it in errors.

    Raises ModelError naming the field that is missing, of the wrong kind or not understood.
    """
    c = _decoder(config, where)
    kind = str(c.data.get("model_type") or "")
    if not kind:
        raise ModelError(f"{where}: lacks the field 'model_type'")
    layers = c.number("num_hidden_layers")
    if not 1 <= layers <= MAX_LAYERS:
        raise ModelError(f"{where}: num_hidden_layers is {layers}, expected 1 to {MAX_LAYERS}")
    refuse_other_layers(c, kind)
    act = _act_dtype(c)
    dtype, expert_dtype = _weight_dtypes(c, act)
    return {
        "architecture": kind,
        "layers": layers,
        "dtype": dtype,
        "expert_dtype": expert_dtype,
        "act_dtype": act,
        "hidden": c.number("hidden_size"),
        "vocab": c.number("vocab_size"),
        "max_context": max_context(c),
        "windows": tuple(_window(c, kind, layer) for layer in range(layers)),
        "qk_norm": _qk_norm(c, kind),
        "gated": c.data.get("hidden_act", "silu") not in _UNGATED_ACTIVATIONS,
        # Hugging Face's own default is per class: tied for Gemma, not for any MoE family read here.
        "tie_embeddings": c.flag("tie_word_embeddings", kind.startswith("gemma")),
        **_attention(c, kind),
        **linear_fields(c, kind, layers),
        **index_fields(c, kind, layers),
        **_feed_forward(c, kind, layers),
    }


def _qk_norm(c: Config, kind: str) -> str:
    """How queries and keys are normalised; MLA normalises its latents instead, in ops of its own."""
    if kind in _HEAD_NORMS or c.has("kv_lora_rank") or not c.flag("use_qk_norm"):
        return _HEAD_NORMS.get(kind, "")
    return "width" if c.data.get("qk_norm_type") == "per_layer" else "head"


def _attention(c: Config, kind: str) -> dict[str, Any]:
    heads = c.number("num_attention_heads")
    if not heads:
        raise ModelError(f"{c.where}: num_attention_heads is 0")
    if c.has("kv_lora_rank"):
        nope, rope = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim")
        return {
            "attention": "mla", "heads": heads, "kv_heads": heads, "head_dim": nope + rope,
            "q_lora": c.find(("q_lora_rank",)) or 0, "kv_lora": c.number("kv_lora_rank"),
            "nope_dim": nope, "rope_dim": rope, "v_dim": c.number("v_head_dim"),
        }  # fmt: skip
    kv_heads = c.find(_KV_HEADS)
    # A field that is there and null is the number of heads to Hugging Face, whatever the class's default.
    if kv_heads is None and kind not in _FULL_KV and _KV_HEADS[0] not in c.data:
        kv_heads = c.number(*_KV_HEADS)
    head_dim = c.find(("head_dim",))
    if head_dim is None and c.number("hidden_size") % heads:
        raise ModelError(
            f"{c.where}: lacks 'head_dim', and hidden_size is not a multiple of num_attention_heads"
        )
    return {
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": c.number("hidden_size") // heads if head_dim is None else head_dim,
    }


def _feed_forward(c: Config, kind: str, layers: int) -> dict[str, Any]:
    dense = c.find(("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"))
    experts = c.find(_EXPERTS) or 0
    if (field := _COUNTED_BY.get(kind)) and not any(name in c.data for name in _EXPERTS):
        raise ModelError(f"{c.where}: lacks the field {field!r}, the number of experts of each layer")
    if not experts:
        return {"dense_inter": c.number("intermediate_size", "ffn_hidden_size")}
    topk = c.number(*_TOPK)
    inter = c.number("moe_intermediate_size", "intermediate_size")
    llama4 = kind.startswith("llama4")
    shared = c.find(("shared_expert_intermediate_size", "shared_intermediate_size"))
    if shared is None:
        # Llama 4 has one shared expert as wide as a routed one and no field for it.
        shared = inter * (1 if llama4 else c.find(_SHARED) or 0)
    first, every = _moe_pattern(c, layers)
    return {
        "experts": experts,
        "topk": topk,
        "expert_inter": inter,
        "shared_inter": shared,
        "dense_inter": dense or 0,
        "first_dense": first,
        "moe_every": every,
    }


def _moe_pattern(c: Config, layers: int) -> tuple[int, int]:
    """(first_dense, moe_every) of a config, by whichever fields its family uses."""
    start = c.find(("first_k_dense_replace", "moe_layer_start_index")) or 0
    step = c.find(("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval")) or 1
    per_layer = isinstance(c.data.get("moe_layer_freq"), list)
    if types := c.items("mlp_layer_types", str):
        moe = [i for i, named in enumerate(types) if named != "dense"]
    elif c.has("moe_layers"):
        moe = sorted(set(c.items("moe_layers")))
    elif per_layer:
        moe = [i for i, on in enumerate(c.items("moe_layer_freq")) if on]
    elif (freq := c.find(("moe_layer_freq",)) or 1) > 1:
        moe = [i for i in range(start, layers) if i % freq == 0]
    else:
        moe = [i for i in range(start, layers) if (i + 1) % step == 0]
    dense = c.items("mlp_only_layers")
    moe = [i for i in moe if i not in dense and i < layers]
    first = moe[0] if moe else layers
    every = moe[1] - first if len(moe) > 1 else max(layers - first, 1)
    if first < 0 or moe != list(range(first, layers, every)):
        raise ModelError(f"{c.where}: its MoE layers {moe} follow no regular step, which is not supported")
    return first, every


def _window(c: Config, kind: str, layer: int) -> int:
    """Window of one layer, by the rules of its family (0: full attention)."""
    size = c.find(("sliding_window",)) or 0
    if is_linear(kind) or is_indexed(kind):  # none of its layers has a window
        return 0
    if types := c.items("layer_types", str):
        named = types[layer % len(types)]
        if named not in ("full_attention", "sliding_attention", "chunked_attention"):
            raise ModelError(f"{c.where}: layer type {named!r} is not supported in model type {kind!r}")
        if named == "full_attention":
            return 0
        return c.number("sliding_window" if named == "sliding_attention" else "attention_chunk_size")
    if kind.startswith("llama4"):
        rope = c.items("no_rope_layers")
        interval = c.find(("no_rope_layer_interval",)) or 4
        chunked = rope[layer % len(rope)] if rope else (layer + 1) % interval
        return (c.find(("attention_chunk_size",)) or 0) if chunked else 0
    if c.data.get("use_sliding_window") is False:
        return 0
    if kind in ("gpt_oss", "gemma2"):
        return size if layer % 2 == 0 else 0
    if pattern := c.find(("sliding_window_pattern",)):
        return size if (layer + 1) % pattern else 0
    if c.has("use_sliding_window"):
        return size if layer >= (c.find(("max_window_layers",)) or 0) else 0
    return size


def _act_dtype(c: Config) -> str:
    """The config's own element type; bf16 where it states none, as gpt-oss's does not."""
    named = str(c.data.get("dtype") or c.data.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if named not in _HF_DTYPES:
        raise ModelError(f"{c.where}: {unknown('torch_dtype', named, _HF_DTYPES)}")
    return _HF_DTYPES[named]


def _weight_dtypes(c: Config, act: str) -> tuple[str, str]:
    """(dtype outside the experts, dtype of the experts) by the quantization_config, if any."""
    q = c.data.get("quantization_config")
    if not isinstance(q, Mapping):
        return act, act
    method = str(q.get("quant_method") or "")
    stored = _stored(q, method.replace("_", "-"))
    if stored is None:
        raise ModelError(f"{c.where}: quantization_config of quant_method {method!r} is not understood")
    kept = json.dumps([q.get(name) for name in _KEPT])
    # A list of parts left unquantised that names the attention means that only the experts are quantised.
    return (act if stored == "mxfp4" or "attn" in kept else stored), stored


def _stored(q: Mapping[str, Any], method: str) -> str | None:
    """Element type of quantised weights by the method's own fields; None if they are not understood."""
    if method in ("fp8", "fbgemm-fp8"):
        return "fp8_block" if q.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq"):
        return _BITS.get(("int", str(q.get("bits", q.get("w_bit")))))
    if method == "modelopt":
        return _MODELOPT.get(str(q.get("quant_algo")))
    if method == "compressed-tensors":
        groups = q.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            return None
        if weights.get("strategy") == "block":
            return _BITS.get((str(weights.get("type")), f"{weights.get('num_bits')} block"))
        fine = f"{weights.get('num_bits')} by {weights.get('group_size')}"
        kind = str(weights.get("type", "int"))
        return _BITS.get((kind, fine)) or _BITS.get((kind, str(weights.get("num_bits"))))
    return "mxfp4" if method == "mxfp4" else None
