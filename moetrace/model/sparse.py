"""Sparse attention by an indexer: what a config says of it, what it weighs and what it keeps of each token.

DeepSeek Sparse Attention (DeepSeek-V3.2, arXiv 2512.02556, section 2.1): beside MLA each layer has an indexer that scores the
whole context for every query, and MLA attends to the tokens that it picks. Fields and widths are those of the public inference
code (github.com/deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py, class Indexer) and of transformers 5.23
(models/deepseek_v32, models/glm_moe_dsa), whose layers all have one.
"""

from __future__ import annotations

from typing import Any

from moetrace.errors import ModelError
from moetrace.model.fields import Config

_INDEXED = ("deepseek_v32", "glm_moe_dsa")
# What transformers calls their layers in `layer_types`, in one version or another.
_LAYERS = ("indexed_attention", "deepseek_sparse_attention", "full_attention")
# Keys are kept in FP8 with one fp32 scale for each so many values (block_size in inference/model.py).
_SCALED, _SCALE_BYTES = 128, 4


def is_indexed(kind: str) -> bool:
    """Whether models of this type attend to what an indexer picks."""
    return kind in _INDEXED


def index_fields(c: Config, kind: str, layers: int) -> dict[str, Any]:
    """The fields of a ModelSpec that tell its indexer; none for a model without. Raises ModelError for another kind of one."""
    mark = next((name for name in c.data if name.startswith("index_") and c.has(name)), None)
    if not is_indexed(kind):
        if mark is not None:
            raise ModelError(
                f"{c.where}: {mark} says that {kind!r} attends to what an indexer picks, which is read of "
                f"{' and '.join(_INDEXED)} only"
            )
        return {}
    _refuse_shared(c, layers)
    return {
        "index_heads": c.number("index_n_heads"),
        "index_dim": c.number("index_head_dim"),
        "index_topk": c.number("index_topk"),
    }


def _refuse_shared(c: Config, layers: int) -> None:
    """Raises ModelError where a layer takes another one's choice of tokens (GLM-5.2), or has no indexer at all."""
    if odd := next((named for named in c.items("layer_types", str) if named not in _LAYERS), None):
        raise ModelError(f"{c.where}: layer type {odd!r} is not supported beside an indexer")
    shared = "shared" in c.items("indexer_types", str)[:layers]
    if (
        shared
        or "S" in str(c.data.get("index_topk_pattern") or "")
        or (c.find(("index_topk_freq",)) or 1) > 1
    ):
        raise ModelError(f"{c.where}: layers that take another layer's choice of tokens are not supported")


def index_params(hidden: int, q_lora: int, heads: int, dim: int) -> dict[str, int]:
    """Parameters of one layer's indexer by part, empty without heads; the norm of its keys is left out.

    `indexer`: queries from MLA's latent and one key, in the type of the other weights. `index_weights`: one weight of each
    head, in that of activations (weights_proj, which no scheme quantises).
    """
    if not heads:
        return {}
    return {"indexer": (q_lora * heads + hidden) * dim, "index_weights": hidden * heads}


def index_key_bytes(dim: Any) -> Any:
    """Bytes that an indexer of this width (a number, or an array of them) keeps of one token: FP8 whatever the type of MLA's
    cache, and its scales."""
    return dim + _SCALE_BYTES * -(-dim // _SCALED)


def index_problem(attention: str, q_lora: int, heads: int, dim: int, topk: int) -> str | None:
    """The sentence for the first value of an indexer that no model has; None if all is well."""
    if topk and attention != "mla":
        return "an indexer beside attention other than mla is not supported"
    if topk and 0 in (heads, dim, q_lora):
        return "an indexer needs index_heads, index_dim and q_lora"
    return "an indexer needs index_topk" if not topk and (heads or dim) else None
