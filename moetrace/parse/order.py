"""What the order of ops says of layers: where each begins and ends, and what lies behind the last.

Works on one step's sequence of kinds. The rules need only that a decoder layer is: norm, projections, attention,
projection, norm, MoE or dense block. Where the operators' shapes are known (`widths`), they go before the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LINEAR = "linear_attention"
MLA = ("mla_attention", "sparse_mla")
ATTENTION = ("attention", *MLA, LINEAR)
EXPERT_GEMMS = ("moe_gemm", "moe_gate_up", "moe_down", "moe_experts")
MOE = ("topk", "moe_align", *EXPERT_GEMMS, "moe_act", "moe_combine", "moe_collect")
# What an MoE block can end with. A top-k only begins one: the last of a step may be the sampler's.
_MOE_BODY = tuple(kind for kind in MOE if kind != "topk")
GEMMS = ("gemm",)
BREAKS = ("norm", "all_reduce", "reduce_scatter")  # what parts one block from the next
DRAFT = "draft"  # role, or its first word, of everything behind the model's last layer and head

# (outputs n, inputs k) of each op that is a GEMM with known shapes, else (0, 0).
Widths = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Hints:
    """What the model says beforehand. `layers`: 0 if it is not known."""

    layers: int = 0
    mla: bool = False
    q_lora: bool = False
    shared: bool = False
    shared_gate: bool = False
    indexer: bool = False


NO_HINTS = Hints()


def layer_starts(kinds: Sequence[str], widths: Widths = (), depth: int = 0) -> tuple[list[int], int, int]:
    """(index at which each layer begins, at which the last one ends, at which a draft's attention begins or the length).

    Empty if there is no attention op. A draft: up to `depth` - 1 more layers behind the model's `depth`.
    """
    attention = attention_ops(kinds)
    if not attention:
        return [], 0, len(kinds)
    drafts = attention[depth:] if 0 < depth < len(attention) < 2 * depth else []
    attention = attention[:depth] if drafts else attention
    starts = [_first_layer(kinds, attention[0])]
    for before, here in pairwise(attention):
        starts.append(_boundary(kinds, widths, before + 1, here))
    stop = drafts[0] if drafts else len(kinds)
    last = _block_end(kinds, widths, attention[-1] + 1, stop)
    if last is None:
        return starts, stop, stop
    return starts, next((i for i in range(last + 1, stop) if kinds[i] == "norm"), last + 1), stop


def attention_ops(kinds: Sequence[str]) -> list[int]:
    """The first attention op of each layer.

    Those with at most one GEMM and no other block between them belong together: split prefill and decode, and MLA's
    prefill (expanded keys) beside its decode (absorbed), which have one projection between them.
    """
    found: list[int] = []
    gemms = 2
    for i, kind in enumerate(kinds):
        if kind in ATTENTION:
            if gemms > 1:
                found.append(i)
            gemms = 0
        elif kind in GEMMS:
            gemms += 1
        elif kind in MOE or kind == "activation" or kind in BREAKS:
            gemms = 2
    return found


def _first_layer(kinds: Sequence[str], attention: int) -> int:
    norm = next((i for i in range(attention) if kinds[i] == "norm"), None)
    gemm = next((i for i in range(attention) if kinds[i] in GEMMS), attention)
    return gemm if norm is None else min(norm, gemm) if gemm < norm else norm


def _boundary(kinds: Sequence[str], widths: Widths, low: int, high: int) -> int:
    """Where the next layer begins between two attention ops: at the first norm behind the MoE or dense block."""
    end = _block_end(kinds, widths, low, high)
    if end is not None:
        norm = next((i for i in range(end + 1, high) if kinds[i] == "norm"), None)
        return norm if norm is not None else end + 1
    gemm = next((i for i in range(high - 1, low - 1, -1) if kinds[i] in GEMMS), high)
    norm = next((i for i in range(gemm - 1, low - 1, -1) if kinds[i] == "norm"), None)
    return norm if norm is not None else gemm


def _block_end(kinds: Sequence[str], widths: Widths, low: int, high: int) -> int | None:
    """Index of the last op of the MoE or dense block between two positions; None if neither is recognised."""
    moe = next((i for i in range(high - 1, low - 1, -1) if kinds[i] in _MOE_BODY), None)
    if moe is not None:
        return moe
    activation = next((i for i in range(high - 1, low - 1, -1) if kinds[i] == "activation"), None)
    if activation is None:
        return None
    gemms = [i for i in range(activation + 1, high) if kinds[i] in GEMMS]
    if not gemms:
        return activation
    end = _way_down(kinds, widths, low, gemms)
    return end + 1 if end + 1 < high and kinds[end + 1] == "gemm_reduce" else end


def _way_down(kinds: Sequence[str], widths: Widths, low: int, gemms: list[int]) -> int:
    """The down projection among the GEMMs behind the activation, of which one may still be the up projection.

    By shape: the last one back to the width of the attention's output. Else the last one before the next norm.
    """
    out = next((i for i in range(low, gemms[0]) if kinds[i] in GEMMS), gemms[0])
    hidden = widths[out][0] if widths else 0
    down = [i for i in gemms if hidden and widths[i][0] == hidden != widths[i][1]]
    if down:
        return down[-1]
    stop = next((i for i in range(gemms[0] + 1, gemms[-1]) if kinds[i] in BREAKS), gemms[0] + 1)
    return max(i for i in gemms if i < stop)
