"""Linear attention by the gated delta rule: the rule, the short convolution before it, and what prepares its inputs.

The op's dtype is the state's, then the activations'.
"""

from __future__ import annotations

import re

from moetrace.op import Amounts, Op, OpGroup, element_bytes
from moetrace.ops.base import Kind, Seen, act
from moetrace.run import GENERATING


def linear_work(op: OpGroup) -> Amounts:
    """One step of a gated delta rule per token and head: S = a S (I - b k k^T) + b v k^T, o = S q, S of head_dim x v_dim.

    Per token and head: decay 1, S k 2, the update 2, S q 2, each times head_dim v_dim. The state, of the op's own type, is read
    and written once per sequence; `kv_heads` share keys and queries. Source: Gated Delta Networks, arXiv 2412.06464, eq. 10.
    """
    heads, cells = op["heads"], op["head_dim"] * op["v_dim"]
    q = op.given("q", op["batch"])
    state = op["batch"] * heads * cells * element_bytes(op.weight_dtype)
    keys = 2.0 * op.given("kv_heads", heads) * op["head_dim"]
    return Amounts(
        flops=7.0 * q * heads * cells,
        kv_read_bytes=state,
        kv_write_bytes=state,
        act_read_bytes=q * (keys + heads * (op["v_dim"] + 2)) * act(op),  # and two gates per head
        act_write_bytes=q * heads * op["v_dim"] * act(op),
        rows=q,
    )


def conv_work(op: OpGroup) -> Amounts:
    """A convolution along `tokens` of each of `width` channels over `taps` tokens; each sequence keeps its last taps - 1."""
    weights = op["width"] * op["taps"] * act(op)
    last = op["batch"] * op["width"] * (op["taps"] - 1) * act(op)
    moved = op["tokens"] * op["width"] * act(op)
    return Amounts(
        flops=2.0 * op["tokens"] * op["width"] * op["taps"],
        weight_bytes=weights,
        weight_bytes_min=weights,
        resident_bytes=weights,
        kv_read_bytes=last,
        kv_write_bytes=last,
        act_read_bytes=moved,
        act_write_bytes=moved,
        rows=op["tokens"],
    )


def prep_work(op: OpGroup) -> Amounts:
    """What is moved or turned into gates between the projections and the delta rule: every element in and out."""
    nbytes = op["elements"] * act(op)
    return Amounts(flops=op["elements"], act_read_bytes=nbytes, act_write_bytes=nbytes)


KINDS = (
    Kind("linear_attention", "attention", ("batch", "heads", "head_dim", "v_dim"), linear_work),
    Kind("linear_conv", "attention", ("batch", "tokens", "width", "taps"), conv_work),
    Kind("linear_prep", "attention", ("elements",), prep_work),
)

KERNELS = (
    # flash-linear-attention's, vLLM's and SGLang's: gated delta net, Kimi's KDA, lightning attention, their short convolution
    (r"causal_conv1d_(fwd|update)", "linear_conv"),
    (r"fused_gdn_gating|kda_gate|fused_qkvzba_split|l2norm_fwd", "linear_prep"),
    (
        r"gated_delta_rule|fused_sigmoid_gating_delta|chunk_scaled_dot_kkt|recompute_w_u_fwd|chunk_fwd_kernel_o|chunk_local_cumsum|solve_tril|merge_16x16_to_\d+x\d+_inverse|fused_recurrent_kda|chunk_kda|linear_attn_decode|lightning_attn",
        "linear_attention",
    ),
)
OPERATORS: tuple[tuple[str, str], ...] = ()

# Kernels that do the whole of the delta rule. A prompt is worked through by several, in chunks, of which none does.
_WHOLE_RULE = re.compile(
    r"fused_recurrent_gated_delta_rule|fused_sigmoid_gating_delta|packed_recurrent_gated_delta"
)


def dims(kind: str, seen: Seen) -> Op | None:
    """Linear attention's own ops from the model; in a mixed step what a kernel sees of the tokens is not known."""
    model, tp, q, batch = seen.model, max(1, seen.tp), seen.tokens, seen.batch
    if model is None or not model.full_every or not q or not batch or seen.phase == "mixed":
        return None
    keys, values = (width // tp for width in model.linear_widths)
    if kind == "linear_conv":
        return Op.of(
            kind, model.act_dtype, batch=batch, tokens=q, width=2 * keys + values, taps=model.linear_conv
        )
    heads = max(1, model.linear_heads // tp)
    if kind == "linear_prep":  # two gates of each head, or all that comes out of the two projections
        each = {"gdn_gating": 2 * heads, "qkvzba": 2 * heads + 2 * (keys + values)}
        found = next((n for name, n in each.items() if name in seen.kernel), None)
        return Op.of(kind, model.act_dtype, elements=q * found) if found else None
    named = any(re.search(pattern, seen.kernel) for pattern, said in KERNELS if said == kind)
    if not _WHOLE_RULE.search(seen.kernel) and (named or seen.phase not in GENERATING):
        return None  # one of several; a kernel of no known name in a decode step is all that its layer has
    state = (
        model.state_dtype
        if model.state_dtype == model.act_dtype
        else f"{model.state_dtype}/{model.act_dtype}"
    )
    return Op.of(
        kind, state, batch=batch, heads=heads, kv_heads=max(1, model.linear_kv_heads // tp), head_dim=model.linear_dim,
        v_dim=model.linear_v_dim, **({"q": q} if q != batch else {}),
    )  # fmt: skip
