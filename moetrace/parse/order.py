"""What the order of ops says: where layers begin, which GEMM is which, which expert GEMM is gate_up and which down.

Works on one step's sequence of kinds; a sequence that repeats (a replayed graph) is resolved once by the caller. The
rules need only that a decoder layer is: norm, projections, attention, projection, norm, MoE or dense block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

ATTENTION = ("attention", "mla_attention")
_MOE = (
    "topk",
    "moe_align",
    "moe_gemm",
    "moe_gate_up",
    "moe_down",
    "moe_experts",
    "moe_act",
    "moe_combine",
    "moe_collect",
)
# What an MoE block can end with. A top-k only begins one: the last of a step may be the sampler's.
_MOE_BODY = tuple(kind for kind in _MOE if kind != "topk")
GEMMS = ("gemm",)


def layer_starts(kinds: Sequence[str]) -> tuple[list[int], int]:
    """(index at which each layer begins, index at which the last one ends); empty if there is no attention op."""
    attention = _attention_ops(kinds)
    if not attention:
        return [], 0
    starts = [_first_layer(kinds, attention[0])]
    for before, here in pairwise(attention):
        starts.append(_boundary(kinds, before + 1, here))
    last = _block_end(kinds, attention[-1] + 1, len(kinds))
    end = (
        len(kinds)
        if last is None
        else next((i for i in range(last + 1, len(kinds)) if kinds[i] == "norm"), last + 1)
    )
    return starts, end


def _attention_ops(kinds: Sequence[str]) -> list[int]:
    """One index per layer: attention ops with no GEMM between them belong together (split prefill and decode)."""
    found: list[int] = []
    fresh = True
    for i, kind in enumerate(kinds):
        if kind in ATTENTION:
            if fresh:
                found.append(i)
            fresh = False
        elif kind in GEMMS or kind in _MOE:
            fresh = True
    return found


def _first_layer(kinds: Sequence[str], attention: int) -> int:
    norm = next((i for i in range(attention) if kinds[i] == "norm"), None)
    gemm = next((i for i in range(attention) if kinds[i] in GEMMS), attention)
    return gemm if norm is None else min(norm, gemm) if gemm < norm else norm


def _boundary(kinds: Sequence[str], low: int, high: int) -> int:
    """Where the next layer begins between two attention ops: at the first norm behind the MoE or dense block."""
    end = _block_end(kinds, low, high)
    if end is not None:
        norm = next((i for i in range(end + 1, high) if kinds[i] == "norm"), None)
        return norm if norm is not None else end + 1
    gemm = next((i for i in range(high - 1, low - 1, -1) if kinds[i] in GEMMS), high)
    norm = next((i for i in range(gemm - 1, low - 1, -1) if kinds[i] == "norm"), None)
    return norm if norm is not None else gemm


def _block_end(kinds: Sequence[str], low: int, high: int) -> int | None:
    """Index of the last op of the MoE or dense block between two positions; None if neither is recognised."""
    moe = next((i for i in range(high - 1, low - 1, -1) if kinds[i] in _MOE_BODY), None)
    if moe is not None:
        return moe
    activation = next((i for i in range(high - 1, low - 1, -1) if kinds[i] == "activation"), None)
    if activation is None:
        return None
    return next((i for i in range(activation + 1, high) if kinds[i] in GEMMS), activation)


def resolve(kinds: Sequence[str]) -> tuple[list[int], list[str]]:
    """(layer per op, -1 outside of layers; role per op, empty where order says nothing) of one step's sequence."""
    starts, end = layer_starts(kinds)
    layers, roles = [-1] * len(kinds), [""] * len(kinds)
    bounds = [*starts, end]
    for layer, (low, high) in enumerate(pairwise(bounds)):
        for i in range(low, high):
            layers[i] = layer
        _layer_roles(kinds, roles, low, high)
    if starts:
        tail = [i for i in range(end, len(kinds)) if kinds[i] in GEMMS]
        if tail:
            roles[tail[-1]] = "lm_head"
        for i in range(end, len(kinds)):
            if kinds[i] == "topk":
                roles[i] = "sampling"
    _pair_experts(kinds, roles)
    return layers, roles


def _layer_roles(kinds: Sequence[str], roles: list[str], low: int, high: int) -> None:
    attention = next((i for i in range(low, high) if kinds[i] in ATTENTION), None)
    if attention is None:
        return
    moe = next((i for i in range(attention, high) if kinds[i] in _MOE), None)
    gemms = [i for i in range(low, high) if kinds[i] in GEMMS]
    after = [i for i in gemms if i > attention]
    for i in gemms:
        if i < attention:
            roles[i] = "qkv_proj"
    inner = [i for i in range(gemms[0] if gemms else attention, attention) if kinds[i] == "norm"]
    if len(inner) == 2:  # engines normalise q, then k
        roles[inner[0]], roles[inner[1]] = "q_norm", "k_norm"
    if after:
        roles[after[0]] = "o_proj"
    rest = after[1:]
    if moe is not None:
        routers = [i for i in rest if i < moe]
        if routers:
            roles[routers[-1]] = "router"
        shared = [i for i in rest if roles[i] == ""]
        _mlp_roles(roles, shared, "shared_gate_up", "shared_down")
    else:
        _mlp_roles(roles, rest, "dense_gate_up", "dense_down")
    _activation_role(kinds, roles, moe, attention, high)


def _mlp_roles(roles: list[str], gemms: list[int], up: str, down: str) -> None:
    for i in gemms:
        roles[i] = up
    if len(gemms) > 1:
        roles[gemms[-1]] = down


def _activation_role(
    kinds: Sequence[str], roles: list[str], moe: int | None, attention: int, high: int
) -> None:
    """An activation right behind an expert GEMM is the experts' own; one behind a shared GEMM the shared expert's."""
    previous = ""
    for i in range(attention, high):
        if kinds[i] == "activation" and moe is not None:
            roles[i] = "shared_act" if previous.startswith("shared") else "moe_act"
        elif kinds[i] in GEMMS or kinds[i] in _MOE:
            previous = roles[i] or kinds[i]


def _pair_experts(kinds: Sequence[str], roles: list[str]) -> None:
    """Expert GEMMs with one name for both: gate_up and down alternate."""
    turn = 0
    for i, kind in enumerate(kinds):
        if kind in ATTENTION:
            turn = 0
        elif kind == "moe_gemm":
            roles[i] = ("moe_gate_up", "moe_down")[turn % 2]
            turn += 1
