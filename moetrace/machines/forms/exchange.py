"""The form of MoE dispatch and collect between ranks, as DeepEP does it (github.com/deepseek-ai/DeepEP).

    exchange   = what comes first + what processors take, what links take (within the node) and what the network takes
      low latency: latency + per_expert E + copy k hidden, since every expert's count is waited for; processors: one expert's
                 warps, T rows / E of them one after another; links: each of the k copies by itself; a norm of both, p = 2
      normal     : (dim `sms`: processors in pairs, one sends and one receives; x = T / pairs) latency + row min(x, 23)
                 + hidden (first row, each copy of it); processors: x tokens looked at, the copies sent, and a copy for each
                 node where there is a second; links: each row once to each rank that has an expert of it, its own not.
                 To collect, 23 warps of a processor add rows up, one row each: further turns of 23 rows, from where these take
                 longer than what is sent (few copies), are steps (csrc/kernels/intranode.cu, `combine`: 24 warps, one of
                 which moves the queues' heads); between nodes adding follows sending. A norm of all, p = 3, as rows stream
                 in chunks, and until the pipeline is full the first `fill` tokens pass one part after the other (inferred)

Beyond `domain_gpus` ranks, what leaves the node crosses the network, whose rate per device is a datasheet's.
Steps: turns of a normal collect.
Inferred: in normal mode two and four nodes reach nine tenths of the network's rate (DeepEP's README too, less local traffic),
eight half of that, to send and to collect alike, as if what leaves a group of nodes crossed a tier of half the rate. That is
`normal_far_share`, of the cluster measured and so of its repeats (a warm cache) alone: DeepEP's own (docs/legacy.md) lost
nothing on eight nodes, and serving is priced as if none did.
Not modelled: tokens limited to groups of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.collectives import network, rate
from moetrace.op import FloatArray, Works

_OVERLAP = 2.0  # p of the overlap of links, network and processors
_STREAM = 3.0  # the same of what rows pass through one after the other in normal mode
_TURN_ROWS = 23.0  # warps of a processor that add rows up
# Up to these a network gives its full rate; from twice as many on, `normal_far_share` of it.
_NEAR_NODES = 4.0


def exchange(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of MoE dispatch or collect, [ops]. Dims beside bytes, ranks: experts, tokens, topk, hidden, sms (0: low latency).

    `bytes` is a rank's rows times k. An expert's share is unknown without `experts`, copies per rank without `topk`.
    """
    n = np.maximum(works["net_ranks"], 1.0)
    usual = works.dim("sms", 0.0) > 0
    some = np.where(n > 1, 1.0, 0.0)
    both = zip(_normal(c, works, at, n), _low_latency(c, works, at, n), strict=True)
    fixed_s, serial_s, near_s, far_s = (np.where(usual, a, b) * some for a, b in both)
    tokens = np.maximum(works.dim("tokens", 1.0), 1.0)
    within_s = _streamed(serial_s, near_s, c["normal_fill_tokens"] / tokens)
    streamed_s = _streamed(within_s, far_s, c["normal_far_fill_tokens"] / tokens)
    expected_s = fixed_s + np.where(usual, streamed_s, smoothmax(_OVERLAP, serial_s, near_s + far_s))
    wire_s = near_s + far_s
    terms = {"latency": fixed_s, "serial": serial_s, "link": wire_s}
    return Parts(np.zeros_like(n), np.zeros_like(n), fixed_s + serial_s, expected_s, wire_s, terms)


def _streamed(one_s: FloatArray, two_s: FloatArray, filling: FloatArray) -> FloatArray:
    """What runs side by side once the pipeline is full; `filling` is the share of the rows until then, one after the other."""
    beside = smoothmax(_STREAM, one_s, two_s)
    return np.asarray(beside + (one_s + two_s - beside) * np.minimum(filling, 1.0))


def _low_latency(c: Mapping[str, float], works: Works, at: Setting, n: FloatArray) -> tuple[FloatArray, ...]:
    """(what comes first, what processors take, what links take) of an exchange in low-latency mode, in seconds."""
    nbytes, experts = works["net_bytes"], works.dim("experts", np.inf)
    topk = np.maximum(works.dim("topk", 1.0), 1.0)
    nodes = np.maximum(n / at.hw.domain_gpus, 1.0)
    fixed_s = (
        c["latency_s"] + c["per_expert_s"] * works.dim("experts", 0.0)
        + c["copy_s"] * works.dim("hidden", 0.0) * topk
        + c["between_nodes_s"] * np.minimum(nodes - 1.0, 1.0)
        + c["node_s"] * np.log2(nodes)
    )  # fmt: skip
    link_s = nbytes / nodes / (c["efficiency"] * rate(at))
    net_s = nbytes * (1.0 - 1.0 / nodes) / (c["network_efficiency"] * network(at, n))
    return fixed_s, nbytes / topk / experts * c["per_expert_byte_s"], link_s, net_s


def _normal(c: Mapping[str, float], works: Works, at: Setting, n: FloatArray) -> tuple[FloatArray, ...]:
    """The same of an exchange in normal mode, by the processors of dim `sms`: pairs of them, one sends and one receives."""
    tokens, hidden, topk = (
        works.dim("tokens", 0.0),
        works.dim("hidden", 0.0),
        np.maximum(works.dim("topk", 1.0), 1.0),
    )
    sms = works.dim("sms", 0.0)
    pairs = np.where(sms > 0, sms, 2.0) / 2.0
    nodes = np.maximum(n / at.hw.domain_gpus, 1.0)
    second = np.minimum(nodes - 1.0, 1.0)
    experts = works.dim("experts", np.inf)
    row, each, reached = works["net_bytes"] / topk, tokens / pairs, _reached(n, topk, experts)
    visited = _reached(nodes, topk, experts)
    fixed_s = (
        c["normal_latency_s"] + c["normal_row_s"] * np.minimum(each, _TURN_ROWS)
        + hidden * (c["normal_hidden_s"] + c["normal_copy_s"] * reached)
        + c["normal_between_nodes_s"] * second
        + c["normal_node_s"] * np.log2(nodes)
    )  # fmt: skip
    send_s = (
        each * (c["pair_token_s"] + c["pair_copy_s"] * reached)
        + row * reached / (pairs * c["pair_bytes_per_s"])
        + row * visited * second / (pairs * c["pair_network_bytes_per_s"])
    )
    collects = works.ops.by_type([1.0 if op.kind == "moe_collect" else 0.0 for op in works.ops.types])
    add_s = np.maximum(np.ceil(each / _TURN_ROWS - 1e-9) - 1.0, 0.0) * collects * hidden * c["normal_turn_s"]
    inside = np.maximum(np.minimum(n, at.hw.domain_gpus), 1.0)  # copies to a rank itself cross no link
    local_s = row * reached * (1.0 - 1.0 / inside) / (c["normal_efficiency"] * rate(at))
    far_share = c["normal_far_share"] if at.cache == "warm" else 1.0
    tier = 1.0 - (1.0 - far_share) * np.clip((nodes - _NEAR_NODES) / _NEAR_NODES, 0.0, 1.0)
    far_s = row * visited * (1.0 - 1.0 / nodes) / (c["normal_network_efficiency"] * tier * network(at, n))
    # What processors send no faster over a faster link is serial time, no part of the link's.
    return (
        fixed_s,
        smoothmax(_STREAM, send_s, add_s) * (1.0 - second) + (send_s + add_s) * second,
        local_s,
        far_s,
    )


def _reached(groups: FloatArray, topk: FloatArray, experts: FloatArray) -> FloatArray:
    """Distinct ones of `groups` of equally many experts that a token's k of them lie in, each drawn at most once.

    None lies in a group with the product of 1 - (experts / groups) / (experts - i), i below k; here all i are their mean.
    """
    drawn = np.maximum(1.0 - (topk - 1.0) / (2.0 * experts), 0.5)
    return np.asarray(
        groups * (1.0 - np.maximum(1.0 - 1.0 / (groups * drawn), 0.0) ** topk), dtype=np.float64
    )


FORM = Form(SCHEMAS["exchange"], exchange, ("experts", "tokens", "topk", "hidden", "sms"), network=True)
