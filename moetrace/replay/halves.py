"""Two halves of a batch that take turns: the stages of a layer that engines cut it into, and what hides beside what.

One stream computes, for the two halves in turns, and waits for a half's exchange before that half's next stage. So an exchange
hides beside the one stage of the other half that comes in between, however long the other stages are. By layer, of a half, with
A attention and what surrounds it, S shared experts, E experts, D what is sent before the experts (dispatch), K after (collect):

    turns at every exchange:  max(A, D) + max(E, D) + max(E, K) + max(A, K), S beside whichever of K and D has not ended
    five stages in decode:    2 (max(P + S, D) + max(C, K) + E), P what comes before attention, C the rest of A

The first is vLLM's (github.com/vllm-project/vllm, docs/design/dbo.md) and SGLang's with prompts, the second DeepSeek's
(github.com/deepseek-ai/profile-data) and SGLang's in decode with expert parallelism, where the second half follows two stages
behind (github.com/sgl-project/sglang, batch_overlap/operations_strategy.py). Layers are taken as alike, as sums over them.

What an exchange costs the compute beside it: a collective keeps the processors that it runs on, block FP8 GEMMs are kept off
those of exchanges all the while (`deep_gemm_num_sms` there, SMControlContextManager in vLLM's ubatch_utils.py). Low-latency
exchanges leave all processors while the network sends, and take all of them to send and to receive (LMSYS blog, 2025-05-05):
what lies within a node their processors copy. So only what a network without delay would save of them hides.
Not modelled: memory's bandwidth, which both share; the first and the last layer's stages, beside which nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext, price
from moetrace.hardware import Hardware
from moetrace.op import Op, Works
from moetrace.replay.edit import COLLECTIVES, EXCHANGES

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Sums = dict[str, FloatArray]  # ns of a half in a step, or a share of each op, by what they are
Summed = Callable[[FloatArray], FloatArray]  # weights [ops] -> ns of all ops by step, each with its weight
# Processors that a collective of NCCL runs on: a thread block for each channel (its user guide, NCCL_MAX_CTAS), of which eight
# H100s or A100s on NVLink have 24 for rings (16 in the switch, 32 between peers: the "coll channels" of its own log). Small
# messages use fewer, links without NVLink have 2 to 4, and engines' own all-reduces up to 36 blocks (vLLM's
# custom_all_reduce.cuh): one figure stands for all of them.
NCCL_SMS = 24.0
# Beside attention itself, what comes after the projections before it; and what of its family comes with these.
_CORE = frozenset({"o_proj", "router", "topk"})
_PROJECTED = frozenset({"rope", "kv_write"})
_DENSE = frozenset({"dense_gate_up", "dense_down", "activation"})
_ALONE = frozenset({"embedding", "lm_head", "sampling"})
_SENT = {
    "moe_dispatch": "in", "all_gather": "in", "moe_collect": "out", "reduce_scatter": "out", "send_recv": "apart",
    "broadcast": "apart",
}  # fmt: skip
_STAGES = ("before", "core", "shared", "experts")  # of a layer


def stage_of(op: Op, has_experts: bool) -> str:
    """The stage of an op: `before` attention, its `core`, `shared` experts, `experts`, `alone` (in no layer that is halved), or
    what is sent: `in` before the experts, `out` after, `either` (one of each in a layer), `apart` (from layer to layer).

    Dense feed-forwards are the experts of a model that has none; beside experts nothing is sent round them.
    """
    family = work_of.family(op.kind)
    if op.kind in COLLECTIVES:
        return _SENT.get(op.kind, "either")
    if op.kind in _ALONE or (op.kind in _DENSE and has_experts):
        return "alone"
    if family == "experts" or op.kind == "moe_align" or op.kind in _DENSE:
        return "experts"
    if family == "shared_expert":
        return "shared"
    core = op.kind in _CORE or (family == "attention" and op.kind not in _PROJECTED)
    return "core" if core else "before"


def processors(ops: Sequence[Op], hw: Hardware) -> FloatArray:
    """Share of the GPU's processors that each collective keeps from what runs beside it; 0 for other ops.

    DeepEP's normal kernels, which prefills take, name theirs (dim `sms`); its low-latency ones need none (its README).
    """
    library = COLLECTIVES - EXCHANGES
    sms = [op["sms"] if op.has("sms") else NCCL_SMS * (op.kind in library) for op in ops]
    return np.minimum(1.0, np.array(sms, dtype=np.float64) / hw.multiprocessors)


def low_latency(op: Op) -> bool:
    """Whether an op is an exchange that names no processors, as DeepEP's low-latency ones."""
    return op.kind in EXCHANGES and not op.has("sms")


def flying_share(works: Works, hw: Hardware, context: PriceContext) -> FloatArray:
    """Of low-latency exchanges, the share of their time that a network without delay would save, which is what hides."""
    if hw.link is None:
        return np.zeros(len(works))
    at_once = replace(hw, link=replace(hw.link, network_bytes_per_s=np.inf))
    whole, own = (price(works, machine, context=context).expected_s for machine in (hw, at_once))
    return np.asarray(np.nan_to_num(1.0 - own / whole), dtype=np.float64)


def weights(ops: Sequence[Op], hw: Hardware) -> Sums:
    """Which share of each op's time, [ops], is in what `together` takes: by stage, and of a stage `limited`, block FP8 GEMMs;
    of `in` and `out` also `flying`, what may hide, what is `taken` from compute beside them, and of that `kept` by exchanges
    that name their processors."""
    has_experts = any(work_of.family(op.kind) == "experts" for op in ops)
    stage = np.array([stage_of(op, has_experts) for op in ops])
    limited = np.array([op.dtype.startswith("fp8_block") for op in ops])
    share, named = processors(ops, hw), np.array([op.has("sms") for op in ops])
    out = {name: np.where(stage == name, 1.0, 0.0) for name in (*_STAGES, "alone", "apart")}
    out |= {f"limited {name}": out[name] * limited for name in _STAGES}
    for name in ("in", "out"):
        out[name] = np.where(stage == name, 1.0, np.where(stage == "either", 0.5, 0.0))
        out[f"flying {name}"] = out[name]
        out[f"taken {name}"], out[f"kept {name}"] = out[name] * share, out[name] * share * named
    return out


def sums(weighed: Sums, total: Summed, flying: Summed) -> Sums:
    """A half's ns in each step by stage, from `weights`; `flying` sums up as `total` does, of each op what may hide."""
    return {name: (flying if name.startswith("flying") else total)(by_op) for name, by_op in weighed.items()}


def together(s: Sums, computing: FloatArray, five: BoolArray, hw: Hardware) -> FloatArray:
    """ns of two halves that take turns; `five` where they do so in five stages.

    `computing` ns are what a half computes: gaps between its ops, where a host launches them, are shared out among stages.
    """
    stretch = computing / np.maximum(sum(s[name] for name in (*_STAGES, "alone")), 1.0)
    kept = (s["kept in"] + s["kept out"]) / np.maximum(s["in"] + s["out"], 1.0)
    # What kernels limited to the others take more.
    fewer = 1.0 / np.maximum(1.0 - kept, 1.0 / hw.multiprocessors) - 1.0

    def stages(*names: str, beside: str = "") -> FloatArray:
        """ns of stages of one half, beside what the other sends."""
        whole, limited = (sum(s[f"{kind}{name}"] for name in names) * stretch for kind in ("", "limited "))
        lost = (
            s[f"taken {beside}"] - s[f"kept {beside}"] * limited / np.maximum(whole, 1.0) if beside else 0.0
        )
        return np.asarray(whole + limited * fewer + lost)

    most, before, after = np.maximum, s["flying in"], s["flying out"]
    five_ns = 2 * (
        most(stages("before", "shared", beside="in"), before) + most(stages("core", beside="out"), after) + stages("experts")
    )  # fmt: skip
    # From when the first half's experts and the second's dispatch have ended: the end of the first's attention, of the second's
    # collect, and of the second's attention and the first's dispatch. Shared experts are computed before waiting for a collect.
    shared, others = stages("shared"), stages("experts", beside="out")
    first = most(others + shared, after) + stages("before", "core", beside="out")
    second = most(others, after) + after
    both = most(
        most(first + shared, second) + stages("before", "core", beside="in"), most(first, second) + before
    )
    turns_ns = both + most(stages("experts", beside="in"), before)
    sent = sum(s[name] - s[f"flying {name}"] for name in ("in", "out"))
    return np.asarray(np.where(five, five_ns, turns_ns) + 2 * (s["alone"] * stretch + s["apart"] + sent))
