"""Forms of collectives: over the links of a node and the network between nodes, coefficients by kind and engine.

    collective = (latency + per_rank (n-1)) (1 + channels of a ring) + the less of serial x wire MB and start
                 + chunk sqrt(wire MB) + wire / (efficiency x link)                                                (NCCL)
    all_reduce = the least of the engine's own kernel, in one shot or two, up to `most_bytes`, and the library's collective, as
                 engines choose by size; eager: never under what the host takes (more where it is not one shot: further
                 launches), and the buffer is copied twice
    exchange   = dispatch and collect of DeepEP (github.com/deepseek-ai/DeepEP): what comes first + a norm of what
                 processors take and what links take (within the node and between nodes): p = 2, of normal mode 4
      low latency: latency + per_expert E + copy k hidden, since every expert's count is waited for; processors: one expert's
                 warps, T rows / E of them one after another; links: each of the k copies by itself
      normal     : (dim `sms`: processors in pairs, one sends and one receives; x = T / pairs) latency + row min(x, 23)
                 + hidden (first row, each copy of it); processors: x tokens looked at, the copies sent, and a copy for each
                 node where there is a second; links: each row once to each rank that has an expert of it.
                 To collect, 23 warps of a processor add rows up, one row each: further turns of 23 rows, from where these take
                 longer than what is sent (few copies), are steps (csrc/kernels/intranode.cu, `combine`: 24 warps, one of
                 which moves the queues' heads)

Small messages go through few channels by a protocol of low latency, at a rate that processors set and not the link; large
ones start many channels by one that streams (NCCL's LL, LL128 and Simple: arXiv 2507.04786). A ring takes a channel more for
each 4,096 bytes of a rank's share (512 threads of 8: github.com/NVIDIA/nccl, src/enqueue.cc, threadThreshold). On the way to
the second its floor grows by `channels`; then, up to 16 of them as measured, more bytes cost no serial time. In an all-to-all
each peer has a channel of its own, so that `serial` is of what one of them gets. The root is the pipeline's: chunks grow with
the buffer, and filling it with a chunk is what mid-sized messages pay. Two ranks have fewer links in use (`pair_loss`).
Beyond `domain_gpus` ranks, what leaves the node crosses the network, whose rate per device is a datasheet's. Only exchanges
were measured between nodes; the network's share of the others is assumed.
Steps: turns of a normal collect; in bytes where an engine's own all-reduce ends (8 MiB in vLLM's and SGLang's
custom_all_reduce.py; 16 MiB in SGLang on H100, 8 and 1 in TensorRT-LLM on H100 and A100, inferred). Below, it changes its
algorithm where two cost the same, whatever the link's rate (a second phase, the library's start and its pipeline's filling are
told in bytes).
Inferred: in normal mode two and four nodes reach nine tenths of the network's rate (DeepEP's README too, less local traffic),
eight half of that, to send and to collect alike, as if what leaves a group of nodes crossed a tier of half the rate. That is
`normal_far_share`, of the cluster measured and so of its repeats (a warm cache) alone: DeepEP's own (docs/legacy.md) lost
nothing on eight nodes, and serving is priced as if none did.
Not modelled: contention between collectives, tokens limited to groups of nodes, chunk sizes, other topologies than full nodes,
in-switch reduction (it shows as an efficiency above that of the wire's bytes).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.links import network_bytes, wire_bytes
from moetrace.op import FloatArray, Works

_SHARP = 8.0  # p of the overlap of an eager call with its kernel
_OVERLAP = 2.0  # p of the overlap of links, network and processors in an exchange
_STREAM = 4.0  # the same of links and processors in normal mode, where rows stream in chunks
_RINGS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}  # rounds of a ring, n - 1 steps each
_CHANNEL = 4096.0  # bytes that a channel's 512 threads of 8 take at once
_CHANNELS = 16.0  # up to which more bytes take more of them
_TURN_ROWS = 23.0  # warps of a processor that add rows up
# Up to these a network gives its full rate; from twice as many on, `normal_far_share` of it.
_NEAR_NODES = 4.0
_MB = 1e6


def collective(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of a library's collectives, [ops]; nan on a machine without a link, or without a network beyond one node."""
    n = np.maximum(works["net_ranks"], 1.0)
    wire, network_s, between_s = _sent(c, works, at)
    lost = _lost(c["pair_loss"], n)
    steps = works.ops.by_type([_RINGS.get(op.kind, 0.0) for op in works.ops.types]) * (n - 1)
    # One rank's share of a ring's step.
    chunk = np.divide(wire, steps, out=np.zeros_like(wire), where=steps > 0)
    further = 1.0 + c["channels"] * np.minimum(chunk / _CHANNEL, 1.0) ** 2
    direct = works.ops.by_type([1.0 if op.kind == "all_to_all" else 0.0 for op in works.ops.types]) > 0
    full = np.where(steps > 0, np.maximum(0.0, 1.0 - _CHANNELS * _CHANNEL / np.maximum(chunk, 1.0)), 1.0)
    one_s = c["serial_s"] * wire / _MB * full * np.where(direct, 1.0 / np.maximum(n - 1, 1.0), lost)
    many_s = c["start_s"] + c["chunk_s"] * np.sqrt(wire / _MB)
    one = one_s < many_s
    terms = {
        "latency": c["latency_s"] * further + between_s, "ranks": c["per_rank_s"] * (n - 1) * further,
        "serial": np.where(one, one_s, 0.0), "chunks": np.where(one, 0.0, many_s),
        "link": wire * lost / (c["efficiency"] * _rate(at)) + network_s,
    }  # fmt: skip
    latency_s = terms["latency"] + terms["ranks"] + np.minimum(one_s, many_s)
    return _parts(latency_s, terms["link"], n, terms)


def all_reduce(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of an engine's all-reduce, [ops], as `collective`; dim `eager` 1: called without a graph."""
    n, nbytes = np.maximum(works["net_ranks"], 1.0), works["net_bytes"]
    wire, network_s, between_s = _sent(c, works, at)
    floor_s = c["latency_s"] + c["per_rank_s"] * (n - 1) + between_s
    own, theirs = c["efficiency"] * _rate(at), c["library_efficiency"] * _rate(at)
    taken = (nbytes <= c["most_bytes"]) | (c["most_bytes"] == 0)
    one = np.where(taken, nbytes * (n - 1) / own, np.inf)
    two = np.where(taken, (wire + c["two_shot_bytes"]) / (own * c["two_shot_gain"]), np.inf)
    filled = c["library_bytes"] + c["chunk_bytes"] * np.sqrt(wire / _MB)
    library = (wire * _lost(c["pair_loss"], n) + filled) / theirs
    fewest = np.minimum(np.minimum(one, two), library)
    move_s = fewest + network_s
    eager = np.where(n > 1, works.dim("eager", 0.0), 0.0)
    copy_s = eager * 2.0 * nbytes / at.hw.memory.bytes_per_s
    host_s = eager * (c["host_s"] + np.where(one <= np.minimum(two, library), 0.0, c["host_phase_s"]))
    terms = {
        "latency": c["latency_s"] + between_s, "ranks": c["per_rank_s"] * (n - 1),
        "one_shot": np.where(one == fewest, move_s, 0.0),
        "two_shot": np.where((two == fewest) & (one > fewest), move_s, 0.0),
        "library": np.where(np.minimum(one, two) > fewest, move_s, 0.0), "host": host_s + copy_s,
    }  # fmt: skip
    alone = _parts(floor_s, move_s, n, terms)
    called = smoothmax(_SHARP, host_s, alone.expected_s + copy_s)
    fixed_s = alone.fixed_s + host_s
    return Parts(np.zeros_like(n), copy_s, fixed_s, called, alone.network_s, alone.terms)


def exchange(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of MoE dispatch or collect, [ops]. Dims beside bytes, ranks: experts, tokens, topk, hidden, sms (0: low latency).

    `bytes` is a rank's rows times k. An expert's share is unknown without `experts`, copies per rank without `topk`.
    """
    n = np.maximum(works["net_ranks"], 1.0)
    usual = works.dim("sms", 0.0) > 0
    both = zip(_normal(c, works, at, n), _low_latency(c, works, at, n), strict=True)
    some = np.where(n > 1, 1.0, 0.0)
    fixed_s, serial_s, wire_s = (np.where(usual, a, b) * some for a, b in both)
    joined_s = (smoothmax(p, serial_s, wire_s) for p in (_STREAM, _OVERLAP))
    expected_s = fixed_s + np.where(usual, *joined_s)
    terms = {"latency": fixed_s, "serial": serial_s, "link": wire_s}
    return Parts(np.zeros_like(n), np.zeros_like(n), fixed_s + serial_s, expected_s, wire_s, terms)


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
    link_s = nbytes / nodes / (c["efficiency"] * _rate(at))
    net_s = nbytes * (1.0 - 1.0 / nodes) / (c["network_efficiency"] * _network(at, n))
    return fixed_s, nbytes / topk / experts * c["per_expert_byte_s"], link_s + net_s


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
    row, each, reached = works["net_bytes"] / topk, tokens / pairs, _reached(n, topk)
    visited = _reached(nodes, topk)
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
    turns = np.maximum(np.ceil(each / _TURN_ROWS - 1e-9) - 1.0, 0.0) * collects
    local_s = row * reached / (c["normal_efficiency"] * _rate(at))
    far_share = c["normal_far_share"] if at.cache == "warm" else 1.0
    tier = 1.0 - (1.0 - far_share) * np.clip((nodes - _NEAR_NODES) / _NEAR_NODES, 0.0, 1.0)
    far_s = row * visited * (1.0 - 1.0 / nodes) / (c["normal_network_efficiency"] * tier * _network(at, n))
    # What processors send no faster over a faster link is serial time, no part of the link's.
    return (
        fixed_s,
        smoothmax(_OVERLAP, send_s, turns * hidden * c["normal_turn_s"]),
        smoothmax(_OVERLAP, local_s, far_s),
    )


def _sent(c: Mapping[str, float], works: Works, at: Setting) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(bytes on a rank's links, seconds on the network, latency between nodes) by the kind of each op."""
    n, nbytes, domain = works["net_ranks"], works["net_bytes"], float(at.hw.domain_gpus)
    wire, beyond = np.zeros(len(works)), np.zeros(len(works))
    for code, op in enumerate(works.ops.types):
        rows = works.ops.code == code
        wire[rows] = wire_bytes(op.kind, nbytes[rows], n[rows])
        beyond[rows] = network_bytes(op.kind, nbytes[rows], n[rows], domain)
    doublings = np.log2(np.maximum(n / domain, 1.0))
    return wire, beyond / (c["network_efficiency"] * _network(at, n)), c["node_s"] * doublings


def _lost(share: float, n: FloatArray) -> FloatArray:
    """Times as long as links of many ranks take those of `n`: few ranks have few links to each other's memory in use."""
    return np.asarray(1.0 + share * np.maximum(0.0, 2.0 / n - 0.25))


def _reached(groups: FloatArray, topk: FloatArray) -> FloatArray:
    """Distinct ones of `groups` that a token's k experts lie in, placed independently."""
    return np.asarray(groups * (1.0 - (1.0 - 1.0 / groups) ** topk), dtype=np.float64)


def _rate(at: Setting) -> float:
    return at.hw.link.bytes_per_s if at.hw.link is not None else float("nan")


def _network(at: Setting, ranks: FloatArray) -> FloatArray:
    """Bytes/s of one device into the network: infinite within a node, nan where the profile gives none."""
    rate = at.hw.link.network_bytes_per_s if at.hw.link is not None else None
    return np.where(ranks > at.hw.domain_gpus, np.nan if rate is None else rate, np.inf)


def _parts(
    latency_s: FloatArray, network_s: FloatArray, ranks: FloatArray, terms: Mapping[str, FloatArray]
) -> Parts:
    """Latency and transfer, which follow each other; nothing for a group of one."""
    some = np.where(ranks > 1, 1.0, 0.0)
    fixed_s, moving_s, none = latency_s * some, network_s * some, np.zeros_like(ranks)
    taken = {name: term * some for name, term in terms.items()}
    return Parts(none, none, fixed_s, fixed_s + moving_s, moving_s, taken)


COLLECTIVE = Form(SCHEMAS["collective"], collective, network=True)
ALL_REDUCE = Form(SCHEMAS["all_reduce"], all_reduce, ("eager",), network=True)
EXCHANGE = Form(SCHEMAS["exchange"], exchange, ("experts", "tokens", "topk", "hidden", "sms"), network=True)
