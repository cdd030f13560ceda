"""Forms of collectives: over the links of a node and the network between nodes, coefficients by kind and engine.

    collective = (latency + per_rank (n-1)) (1 + channels of a ring) + wire / (efficiency x link) + by the protocol taken
      LL        : serial x what one channel sends (a ring: n - 1 shares and the one received last, of each what is beyond 16
                  channels; to each peer: a part)
      LL128     : chunk sqrt(wire MB)
      Simple    : start + the same; to each peer: start + copy x a part, up to a chunk                              (NCCL)
    all_reduce = the least of the engine's own kernel, in one shot or two, up to `most_bytes`, and the library's collective, as
                 engines choose by size; eager: never under what the host takes (more where it is not one shot: further
                 launches), and the buffer is copied twice
    exchange   = dispatch and collect of DeepEP (github.com/deepseek-ai/DeepEP): what comes first + what processors take, what
                 links take (within the node) and what the network takes
      low latency: latency + per_expert E + copy k hidden, since every expert's count is waited for; processors: one expert's
                 warps, T rows / E of them one after another; links: each of the k copies by itself; a norm of both, p = 2
      normal     : (dim `sms`: processors in pairs, one sends and one receives; x = T / pairs) latency + row min(x, 23)
                 + hidden (first row, each copy of it); processors: x tokens looked at, the copies sent, and a copy for each
                 node where there is a second; links: each row once to each rank that has an expert of it, its own not.
                 To collect, 23 warps of a processor add rows up, one row each: further turns of 23 rows, from where these take
                 longer than what is sent (few copies), are steps (csrc/kernels/intranode.cu, `combine`: 24 warps, one of
                 which moves the queues' heads); between nodes adding follows sending. A norm of all, p = 3, as rows stream
                 in chunks, and until the pipeline is full the first `fill` tokens pass one part after the other (inferred)

NCCL chooses a protocol by a model of its own: base + step x steps + wire / rate, the least of LL, LL128 and Simple, and of the
switch where it can reduce (github.com/NVIDIA/nccl, src/graph/tuning.cc: ncclTopoTuneModel; its rates, `low_bytes_per_s` and
`ring_bytes_per_s`, are those of an architecture and given). It errs, so that times step there, by up to twice: two H100 gather
2 MiB in 17 us and 4 MiB in 27. All of its steps are where that model puts them on H100 and A100. No switch adds up bytes, and
none is taken for two ranks (measured). To each peer, LL sends up to `direct_low_bytes` (16 KiB; up to NCCL 2.27 as much for
each of 32 channels), in parts over 32 channels for all peers, and Simple parts of 64 KiB or more, of which a receiver copies
the first chunk of 512 KiB when it is there (src/enqueue.cc, addP2pToPlan).
Small messages go through few channels by a protocol of low latency, at a rate that processors set and not the link; large
ones start many channels by one that streams (LL, LL128 and Simple: arXiv 2507.04786). A ring takes a channel more for
each 4,096 bytes of a rank's share (512 threads of 8: github.com/NVIDIA/nccl, src/enqueue.cc, threadThreshold). On the way to
the second its floor grows by `channels`; then, up to 16 of them as measured, more bytes cost no serial time.
The root is the pipeline's: chunks grow with the buffer, and filling it with a chunk is what mid-sized messages pay. Two ranks
have fewer links in use (`pair_loss`).
Beyond `domain_gpus` ranks, what leaves the node crosses the network, whose rate per device is a datasheet's. Only exchanges
were measured between nodes; the network's share of the others is assumed.
Steps: NCCL's changes of protocol; turns of a normal collect; in bytes where an engine's own all-reduce ends (8 MiB in vLLM's
and SGLang's custom_all_reduce.py; 16 MiB in SGLang on H100, 8 and 1 in TensorRT-LLM on H100 and A100, inferred). Below, it
changes its algorithm where two cost the same, whatever the link's rate (a second phase, the library's start and its pipeline's
filling are told in bytes).
Inferred: in normal mode two and four nodes reach nine tenths of the network's rate (DeepEP's README too, less local traffic),
eight half of that, to send and to collect alike, as if what leaves a group of nodes crossed a tier of half the rate. That is
`normal_far_share`, of the cluster measured and so of its repeats (a warm cache) alone: DeepEP's own (docs/legacy.md) lost
nothing on eight nodes, and serving is priced as if none did.
Not modelled: contention between collectives, tokens limited to groups of nodes, chunks of the switch's reductions (16 to 64
KiB by size: 10 % there), other topologies than full nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.links import network_bytes, wire_bytes
from moetrace.op import FloatArray, Works

BoolArray = npt.NDArray[np.bool_]
_SHARP = 8.0  # p of the overlap of an eager call with its kernel
_OVERLAP = 2.0  # p of the overlap of links, network and processors in an exchange
_STREAM = 3.0  # the same of what rows pass through one after the other in normal mode
_RINGS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}  # rounds of a ring, n - 1 steps each
# What NCCL takes a protocol's latency to be, first and per step (LL, LL128, Simple of a ring over NVLink), and the switch's:
# github.com/NVIDIA/nccl, src/graph/tuning.cc, baseLatencies and hwLatencies of v2.28.
_PROTOCOLS = ((6.6e-6, 0.6e-6), (14.0e-6, 1.9e-6), (8.4e-6, 3.4e-6))
_SWITCH_S = 25.0e-6
_LINES, _SWITCH_SHARE = 0.92, 5.0 / 6.0  # of a ring's rate, LL128's and the switch's, the same file
_PAIR = 2.0  # ranks that a switch does not reduce for
# Peers' channels between them, the least that one of them sends and what it holds of it: the same library, src/enqueue.cc,
# addP2pToPlan (parts of stepSize / 8 at least, stepSize = 512 KiB over NVLink).
_CHANNELS_TO_PEERS, _LEAST_PARTS, _CHUNK = 32.0, (16384.0, 65536.0), 524288.0
_CHANNEL = 4096.0  # bytes that a channel's 512 threads of 8 take at once
_CHANNELS = 16.0  # up to which more bytes take more of them
_TURN_ROWS = 23.0  # warps of a processor that add rows up
# Up to these a network gives its full rate; from twice as many on, `normal_far_share` of it.
_NEAR_NODES = 4.0
_MB = 1e6


def collective(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of a library's collectives, [ops]; nan on a machine without a link, or without a network beyond one node."""
    n, nbytes = np.maximum(works["net_ranks"], 1.0), works["net_bytes"]
    wire, network_s, between_s = _sent(c, works, at)
    lost = _lost(c["pair_loss"], n)
    rounds = works.ops.by_type([_RINGS.get(op.kind, 0.0) for op in works.ops.types])
    steps, ring = rounds * (n - 1), rounds > 0
    # One rank's share of a ring's step; what one peer gets of what is sent to each.
    share = wire / np.where(ring, np.maximum(steps, 1.0), np.maximum(n - 1, 1.0))
    low, streams = _protocol(c, nbytes, wire, n, steps)
    direct = np.where(n > 1, share, 0.0) <= c["direct_low_bytes"]
    low, streams = np.where(ring, low, direct), np.where(ring, streams, ~direct)
    further = 1.0 + np.where(ring, c["channels"] * np.minimum(share / _CHANNEL, 1.0) ** 2, 0.0)
    few = np.maximum(_CHANNELS_TO_PEERS / n, 1.0)
    low_part, part = (share / np.clip(share / least, 1.0, few) for least in _LEAST_PARTS)
    # A ring's rank handles a share more than it sends: what it receives last.
    serial = np.where(ring, (steps + 1.0) * np.maximum(0.0, share - _CHANNELS * _CHANNEL), low_part) / _MB
    filling_s = np.where(
        ring, c["chunk_s"] * np.sqrt(wire / _MB), c["copy_s"] * np.minimum(part, _CHUNK) / _MB
    )
    terms = {
        "latency": c["latency_s"] * further + between_s, "ranks": c["per_rank_s"] * (n - 1) * further,
        "serial": np.where(low, c["serial_s"] * serial, 0.0),
        "chunks": np.where(low, 0.0, filling_s + c["start_s"] * streams),
        "link": wire * lost / (c["efficiency"] * _rate(at)) + network_s,
    }  # fmt: skip
    latency_s = terms["latency"] + terms["ranks"] + terms["serial"] + terms["chunks"]
    return _parts(latency_s, terms["link"], n, terms)


def _protocol(
    c: Mapping[str, float], nbytes: FloatArray, wire: FloatArray, n: FloatArray, steps: FloatArray
) -> tuple[BoolArray, BoolArray]:
    """(whether the protocol of low latency is taken, whether the one that streams) for a ring, or the switch, by NCCL's own
    model of their times, [ops]; neither: the one between."""
    ring = c["ring_bytes_per_s"]
    rates = (c["low_bytes_per_s"], _LINES * ring, ring)
    low, lines, streams = (
        base + step * steps + wire / rate for (base, step), rate in zip(_PROTOCOLS, rates, strict=True)
    )
    if c["in_switch"]:
        streams = np.where(
            n > _PAIR, np.minimum(streams, _SWITCH_S + nbytes / (_SWITCH_SHARE * ring)), streams
        )
    is_low = np.asarray(low <= np.minimum(lines, streams))
    return is_low, np.asarray(~is_low & (streams < lines))


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
    link_s = nbytes / nodes / (c["efficiency"] * _rate(at))
    net_s = nbytes * (1.0 - 1.0 / nodes) / (c["network_efficiency"] * _network(at, n))
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
    local_s = row * reached * (1.0 - 1.0 / inside) / (c["normal_efficiency"] * _rate(at))
    far_share = c["normal_far_share"] if at.cache == "warm" else 1.0
    tier = 1.0 - (1.0 - far_share) * np.clip((nodes - _NEAR_NODES) / _NEAR_NODES, 0.0, 1.0)
    far_s = row * visited * (1.0 - 1.0 / nodes) / (c["normal_network_efficiency"] * tier * _network(at, n))
    # What processors send no faster over a faster link is serial time, no part of the link's.
    return (
        fixed_s,
        smoothmax(_STREAM, send_s, add_s) * (1.0 - second) + (send_s + add_s) * second,
        local_s,
        far_s,
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


def _reached(groups: FloatArray, topk: FloatArray, experts: FloatArray) -> FloatArray:
    """Distinct ones of `groups` of equally many experts that a token's k of them lie in, each drawn at most once.

    None lies in a group with the product of 1 - (experts / groups) / (experts - i), i below k; here all i are their mean.
    """
    drawn = np.maximum(1.0 - (topk - 1.0) / (2.0 * experts), 0.5)
    return np.asarray(
        groups * (1.0 - np.maximum(1.0 - 1.0 / (groups * drawn), 0.0) ** topk), dtype=np.float64
    )


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
