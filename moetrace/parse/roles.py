"""What the order of ops says of roles: which GEMM is which, which expert GEMM is gate_up and which down.

Works on one step's sequence of kinds, once its layers are found; a sequence that repeats (a replayed graph) is resolved
once by the caller. What the order leaves open gets a role without dims (``qkv_part``, ``mla_part``, ``shared_part``), so
that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from moetrace.parse.order import (
    ATTENTION,
    BREAKS,
    DRAFT,
    EXPERT_GEMMS,
    GEMMS,
    LINEAR,
    MLA,
    MOE,
    NO_HINTS,
    Hints,
    Widths,
    layer_starts,
)


def resolve(
    kinds: Sequence[str], widths: Widths = (), hints: Hints = NO_HINTS
) -> tuple[list[int], list[str]]:
    """(layer per op, -1 outside of layers; role per op, empty where order says nothing) of one step's sequence."""
    starts, end, stop = layer_starts(kinds, widths, hints.layers)
    layers, roles = [-1] * len(kinds), [""] * len(kinds)
    for layer, (low, high) in enumerate(pairwise([*starts, end])):
        layers[low:high] = [layer] * (high - low)
        _layer_roles(kinds, roles, widths, low, high, hints)
    tail = [i for i in range(end, stop) if kinds[i] in GEMMS] if starts else []
    if tail:
        roles[tail[-1] if stop == len(kinds) else tail[0]] = "lm_head"
    for i in range(end, len(kinds)) if starts else ():
        if kinds[i] == "topk":
            roles[i] = "sampling"
    _pair_experts(kinds, roles)
    _beside(kinds, roles)
    if stop < len(kinds):
        head = tail[0] + 1 if tail else end
        draft = next((i for i in range(head, stop) if kinds[i] in ("embedding", "norm", *GEMMS)), stop)
        roles[draft:] = [f"{DRAFT} {role}".strip() for role in roles[draft:]]
    return layers, roles


def _layer_roles(
    kinds: Sequence[str], roles: list[str], widths: Widths, low: int, high: int, hints: Hints
) -> None:
    marks = [i for i in range(low, high) if kinds[i] in ATTENTION]
    if not marks:
        return
    first, last = marks[0], marks[-1]
    gemms = [i for i in range(low, high) if kinds[i] in GEMMS]
    after = [i for i in gemms if i > last]
    mla = hints.mla or any(kinds[i] in MLA for i in marks)
    own = _outputs(kinds, last, high, after, mla)
    inner = [i for i in range(gemms[0] if gemms else first, first) if kinds[i] == "norm"]
    before = [i for i in gemms if i < first]
    if all(kinds[i] == LINEAR for i in marks):
        _linear_roles(kinds, roles, before, own, last)
    elif mla:
        between = [i for i in gemms if first < i < last]
        # By its kernel, so surely on the latent cache.
        named = any(kinds[i] in MLA for i in marks)
        if hints.indexer or any(kinds[i] == "sparse_mla" for i in marks):
            _indexed_roles(roles, [*before, *between, *own[:-1]], inner)
        else:
            _mla_roles(roles, before, between, own, inner, named, hints.q_lora)
    else:
        _gqa_roles(roles, before, inner)
    if own and not roles[own[-1]]:
        roles[own[-1]] = "o_proj"
    _block_roles(kinds, roles, widths, last, high, after[len(own) :], hints)


def _outputs(kinds: Sequence[str], last: int, high: int, after: list[int], mla: bool) -> list[int]:
    """The GEMMs from the attention to the next norm or all-reduce; where there is none, one, or MLA's two."""
    ends = (*BREAKS, *MOE, "activation")
    stop = next((i for i in range(last + 1, high) if kinds[i] in ends), high)
    own = [i for i in after if i < stop] if stop < high and kinds[stop] in BREAKS else []
    return own or after[: 2 if mla and kinds[last] in MLA else 1]


def _gqa_roles(roles: list[str], before: list[int], inner: list[int]) -> None:
    """One GEMM, or q, k and v; engines normalise q, then k, or both in one kernel."""
    names = {1: ("qkv_proj",), 3: ("q_proj", "k_proj", "v_proj")}.get(
        len(before), ("qkv_part",) * len(before)
    )
    for i, name in zip(before, names, strict=True):
        roles[i] = name
    norms = {1: ("qk_norm",), 2: ("q_norm", "k_norm")}.get(len(inner), ())
    for i, name in zip(inner, norms, strict=False):
        roles[i] = name


def _linear_roles(
    kinds: Sequence[str], roles: list[str], before: list[int], own: list[int], last: int
) -> None:
    """One wide GEMM into linear attention and one of what is one per head, the gated norm behind it, and one GEMM out."""
    names = ("linear_in", "linear_heads") if len(before) == 2 else ("linear_part",) * len(before)
    for i, name in zip(before, names, strict=True):
        roles[i] = name
    for i in own:
        roles[i] = "linear_out" if len(own) == 1 else "linear_part"
    norm = next((i for i in range(last + 1, own[0]) if kinds[i] == "norm"), None) if own else None
    if norm is not None:
        roles[norm] = "linear_norm"


def _indexed_roles(roles: list[str], gemms: Sequence[int], inner: Sequence[int]) -> None:
    """MLA's projections and norms beside an indexer's, which engines fuse and order in their ways: which is which is open."""
    for i in gemms:
        roles[i] = "mla_part"
    for i in inner:
        roles[i] = "inner_norm"


def _mla_roles(
    roles: list[str],
    before: list[int],
    between: list[int],
    own: list[int],
    inner: list[int],
    named: bool,
    q_lora: bool,
) -> None:
    """MLA's projections by their number, where it leaves no doubt (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Absorbed: q_a with kv_a, q_b, absorb, attention, v_up, o. Expanded: kv_b instead of absorb, and no v_up. Without a
    query rank, which of the query's and the latent's projection comes first differs between engines.
    """
    absorbed = len(own) == 2
    names = ["mla_part"] * len(before)
    if not between and before and (absorbed or (len(own) == 1 and not named)):
        names[-1] = "absorb" if absorbed else "kv_b"
        if q_lora and len(before) == 3:
            names[:2] = ["qkv_a", "q_b"]
        elif q_lora and len(before) == 4:
            split = any(before[0] < i < before[1] for i in inner)
            names[:3] = ["q_a", "q_b", "kv_a"] if split else ["mla_part", "mla_part", "q_b"]
        elif q_lora or len(before) != 3:
            names[-1] = "mla_part"
    for i, name in zip(before, names, strict=True):
        roles[i] = name
    for i in between:
        roles[i] = "mla_part"
    for i in own[:-1]:
        roles[i] = "v_up" if absorbed and not between else "mla_part"
    norms = {1: ("k_norm",), 2: ("q_norm", "k_norm")}.get(len(inner), ())
    for i, name in zip(inner, norms, strict=False):
        roles[i] = name


def _block_roles(
    kinds: Sequence[str],
    roles: list[str],
    widths: Widths,
    attention: int,
    high: int,
    rest: list[int],
    hints: Hints,
) -> None:
    """Roles of the MoE or dense block behind the attention and its output projection."""
    moe = next((i for i in range(attention, high) if kinds[i] in MOE), None)
    if moe is None and rest:  # torch's own top-k and softmax: the router's, inside of a layer
        choice = [i for i in range(rest[0], rest[-1]) if kinds[i] == "sampling"]
        for i in choice:
            roles[i] = "topk"
        moe = choice[0] if choice else None
    if moe is None:
        _mlp_roles(kinds, roles, rest, "dense")
        return
    routers = [i for i in rest if i < moe]
    router = _router_with_shared(kinds, routers) if hints.shared_gate else next(iter(routers[::-1]), None)
    if router is not None:
        roles[router] = "router"
    others = [i for i in rest if roles[i] == ""]
    loop: list[int] = []
    if not any(kinds[i] in EXPERT_GEMMS for i in range(attention, high)):
        loop = [i for i in others if i > moe]
        loop = _loop_roles(kinds, roles, widths, routers[-1:], loop, high, hints.shared)
    shared = [i for i in others if i not in loop]
    if hints.shared_gate:
        _gated_mlp_roles(kinds, roles, shared)
    else:
        _mlp_roles(kinds, roles, shared, "shared")
    _activation_role(kinds, roles, attention, high)


def _router_with_shared(kinds: Sequence[str], ahead: list[int]) -> int | None:
    """The router among the GEMMs ahead of the experts, where a shared expert with a gate lies with it, before or after.

    The shared expert is gate_up (or gate and up), activation, down and the logit of its gate.
    """
    acts = [i for i in range(ahead[0], ahead[-1]) if kinds[i] == "activation"] if ahead else []
    if len(acts) != 1:
        return ahead[-1] if ahead else None
    before = sum(i < acts[0] for i in ahead)
    behind = len(ahead) - before
    return ahead[0] if before == 3 or (before == 2 and behind < 3) else ahead[-1]


def _gated_mlp_roles(kinds: Sequence[str], roles: list[str], gemms: list[int]) -> None:
    """The shared expert's GEMMs where it has a gate, whose logit comes behind it; none is told apart in another number."""
    acts = [i for i in range(gemms[0], gemms[-1]) if kinds[i] == "activation"] if gemms else []
    before = sum(i < acts[0] for i in gemms) if len(acts) == 1 else 0
    front = {1: ("shared_gate_up",), 2: ("shared_half", "shared_half")}.get(before, ())
    names = (*front, "shared_down", "shared_gate")[: len(gemms)]
    if not front or not before < len(gemms) == len(names):
        names = ("shared_part",) * len(gemms)
    for i, name in zip(gemms, names, strict=True):
        roles[i] = name


def _mlp_roles(kinds: Sequence[str], roles: list[str], gemms: list[int], block: str) -> None:
    """gate_up and down, or gate, up and down; a third GEMM of a shared expert may also be its own gate."""
    for i in gemms:
        roles[i] = f"{block}_gate_up"
    if len(gemms) > 1:
        roles[gemms[-1]] = f"{block}_down"
    if len(gemms) == 3:
        apart = block == "dense" or not any(kinds[i] == "activation" for i in range(gemms[0], gemms[1]))
        halves = f"{block}_half" if apart else f"{block}_part"
        roles[gemms[0]] = roles[gemms[1]] = halves
        if not apart:
            roles[gemms[2]] = halves


def _loop_roles(
    kinds: Sequence[str],
    roles: list[str],
    widths: Widths,
    router: list[int],
    loop: list[int],
    high: int,
    shared: bool,
) -> list[int]:
    """Experts one after the other, each with GEMMs of its own (no grouped kernel); the GEMMs that are theirs.

    With a shared expert, the last round is its: models run it behind the others.
    """
    if not loop:
        return []
    rounds = sum(kinds[i] == "activation" for i in range(loop[0], high))
    each = len(loop) // rounds if rounds and len(loop) % rounds == 0 else 0
    if shared:
        loop = loop[: len(loop) - each] if each else loop
    hidden = widths[router[0]][1] if widths and router else 0
    for n, i in enumerate(loop):
        down = widths[i][0] == hidden != widths[i][1] if hidden else each > 1 and n % each == each - 1
        roles[i] = "expert_down" if down else "expert_up"
    return loop


def _activation_role(kinds: Sequence[str], roles: list[str], attention: int, high: int) -> None:
    """An activation right behind an expert GEMM is the experts' own; one behind a shared GEMM the shared expert's."""
    previous = ""
    for i in range(attention, high):
        if kinds[i] == "activation":
            alone = "expert_act" if previous.startswith("expert_") else "moe_act"
            roles[i] = "shared_act" if previous.startswith("shared") else alone
        elif kinds[i] in GEMMS or kinds[i] in MOE:
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


def _beside(kinds: Sequence[str], roles: list[str]) -> None:
    """Split-K sums go with the GEMM before them, quantising with the GEMM behind: an expert's is part of routing."""
    gemm = ""
    for i, kind in enumerate(kinds):
        if kind == "gemm_reduce" and gemm:
            roles[i] = f"reduce {gemm}"
        elif kind in GEMMS:
            gemm = roles[i]
    follows = ""
    for i in range(len(kinds) - 1, -1, -1):
        if kinds[i] == "quantize" and follows:
            roles[i] = "moe_align" if follows in EXPERT_GEMMS else f"quantize {follows}"
        elif kinds[i] in GEMMS or kinds[i] in EXPERT_GEMMS:
            follows = roles[i] or kinds[i]
