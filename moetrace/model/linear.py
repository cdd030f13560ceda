"""Linear attention in a config: which layers have it and how wide it is; every other kind of layer is refused by name.

Read: the gated delta rule as Qwen3-Next and Qwen3.5 build it (transformers 5.23, models/qwen3_next and models/qwen3_5_moe).
Without its fields a hybrid's config looks like that of a plain decoder, so what marks one is asked for first.
"""

from __future__ import annotations

from typing import Any

from moetrace.errors import ModelError
from moetrace.model.fields import Config

_DELTA = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
# Model types that have linear attention or state-space layers of another kind, whatever their config says of them
# (transformers 5.23, models/*/configuration_*.py; Kimi's delta rule decays each channel on its own, arXiv 2510.26692).
_OTHER = frozenset(
    ("bamba", "falcon_h1", "falcon_mamba", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "mamba", "mamba2", "minimax",
     "nemotron_h", "olmo_hybrid", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2")
)  # fmt: skip
_MARKS = (
    "linear_attn_config",
    "hybrid_override_pattern",
    "layers_block_type",
    "attn_layer_period",
    "ssm_cfg",
)
_STATE_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def is_linear(kind: str) -> bool:
    """Whether a model of this type mixes full attention with the gated delta rule."""
    return kind in _DELTA


def refuse_other_layers(c: Config, kind: str) -> None:
    """Raises ModelError where the config has layers that are neither softmax attention nor the gated delta rule."""
    if kind in _OTHER:
        raise ModelError(
            f"{c.where}: model type {kind!r} has linear attention or state-space layers that are not supported"
        )
    mark = next((name for name in _MARKS if c.has(name)), None)
    if mark is None and any(one != 1 for one in c.items("attn_type_list")):
        mark = "attn_type_list"
    if mark is None and not is_linear(kind):
        mark = next(
            (name for name in c.data if name.startswith(("linear_num_", "linear_key_", "mamba_d_"))), None
        )
    if mark is not None:
        raise ModelError(
            f"{c.where}: {mark} says that {kind!r} has linear attention or state-space layers, which are not supported"
        )


def linear_fields(c: Config, kind: str, layers: int) -> dict[str, Any]:
    """The fields of a ModelSpec that tell its linear attention; none for a model without."""
    if not is_linear(kind):
        return {}
    if c.data.get("attn_output_gate") is False:
        raise ModelError(f"{c.where}: attn_output_gate is false, which no public model of type {kind!r} has")
    named = str(c.data.get("mamba_ssm_dtype") or "float32")
    if named not in _STATE_DTYPES:
        raise ModelError(
            f"{c.where}: mamba_ssm_dtype is {named!r}, expected one of {', '.join(_STATE_DTYPES)}"
        )
    every = _interval(c, layers)
    gates = {"output_gate": True, "shared_gate": kind != "qwen3_5_text"}
    if every == 1:
        return gates
    return {
        **gates,
        "full_every": every,
        "linear_heads": c.number("linear_num_value_heads"),
        "linear_kv_heads": c.number("linear_num_key_heads"),
        "linear_dim": c.number("linear_key_head_dim"),
        "linear_v_dim": c.number("linear_value_head_dim"),
        "linear_conv": c.number("linear_conv_kernel_dim"),
        "state_dtype": _STATE_DTYPES[named],
    }


def _interval(c: Config, layers: int) -> int:
    """Every how many layers one has full attention, the last of so many; by the list of layers if there is one."""
    types = c.items("layer_types", str)
    if not types:
        every = c.number("full_attention_interval")
        if not 1 <= every <= layers:
            raise ModelError(f"{c.where}: full_attention_interval is {every}, expected 1 to {layers} layers")
        return every
    if odd := next((named for named in types if named not in ("full_attention", "linear_attention")), None):
        raise ModelError(f"{c.where}: layer type {odd!r} is not supported beside linear attention")
    every = types.index("full_attention") + 1 if "full_attention" in types else 0
    regular = [("full" if every and (i + 1) % every == 0 else "linear") + "_attention" for i in range(layers)]
    if not every or types != regular:
        raise ModelError(
            f"{c.where}: the full attention layers of layer_types follow no regular step over {layers} layers, "
            "which is not supported"
        )
    return every
