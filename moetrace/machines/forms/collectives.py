"""Forms of collectives: over the links of a node and the network between nodes, coefficients by kind and engine.

    collective = (latency + per_rank (n-1)) (1 + channels of a ring) + wire / (efficiency x link) + by the protocol taken
      LL        : serial x what one channel sends (a ring: n - 1 shares and the one received last, of each what is beyond 16
                  channels; to each peer: a part)
      LL128     : chunk sqrt(wire MB)
      Simple    : start + fill x wire / (1 + wire / 64 MiB); to each peer: start + copy x a part, up to a chunk, and no channel
                  sends more than a sixteenth of what the link does, until its first part is there: a norm of both, p = 2
      the switch: latency + (1 + fill x a round / buffer) (1 + gap / chunk) x wire / (efficiency x link)            (NCCL)
    all_reduce = the least of the engine's own kernel, in one shot or two, up to `most_bytes`, and the library's collective, as
                 engines choose by size; the own kernel's floor grows by `block` for each doubling of its thread blocks, each
                 of which meets its peers (at most 36 of 8 KiB: vLLM's csrc/custom_all_reduce.cuh); between the two, up to
                 `shared_bytes`, through symmetric memory: the buffer is copied in and out, and the switch adds up for more
                 than two ranks ((1 + 1/n) buffers on each link, else two shots); eager: never under what the host takes (more
                 for each rank, as all wait for the last one's, and where it is not one shot: further launches), and the buffer
                 is copied, twice for the own kernel

NCCL chooses a protocol by a model of its own: base + step x steps + wire / rate, the least of LL, LL128 and Simple, and of the
switch where it can reduce (github.com/NVIDIA/nccl, src/graph/tuning.cc: ncclTopoTuneModel; its rates, `low_bytes_per_s` and
`ring_bytes_per_s`, are those of an architecture and given). It errs, so that times step there, by up to twice: two H100 gather
2 MiB in 17 us and 4 MiB in 27. All of its steps are where that model puts them on H100 and A100. No switch adds up bytes, and
none is taken for two ranks (measured). To each peer, LL sends up to `direct_low_bytes` (16 KiB; up to NCCL 2.27 as much for
each of 32 channels), in parts over 32 channels for all peers, and Simple parts of 64 KiB or more, of which a receiver copies
the first chunk of 512 KiB when it is there (src/enqueue.cc, addP2pToPlan). What LL sends to several peers was measured at 7 us
and at 11 in repeats: all of it is one term (`ranks`), whose error is its own.
Small messages go through few channels by a protocol of low latency, at a rate that processors set and not the link; large
ones start many channels by one that streams (LL, LL128 and Simple: arXiv 2507.04786). A ring takes a channel more for
each 4,096 bytes of a rank's share (512 threads of 8: github.com/NVIDIA/nccl, src/enqueue.cc, threadThreshold). On the way to
the second its floor grows by `channels`; then, up to 16 of them as measured, more bytes cost no serial time.
The root is the pipeline's: chunks grow with the buffer, and filling it with a chunk is what mid-sized messages pay; by Simple
they end at 2 MiB for each channel (4 of 8 steps of 4 MiB), which 64 MiB stand for (inferred). Two ranks have fewer links in use
(`pair_loss`). Through the switch 16 channels take a chunk for each rank in a round: 16 KiB of less than two rounds of the next
larger chunk, 32 of less than 8, 64 of less than 64, else 128 (src/enqueue.cc, nvlsChunkSize): among eight ranks steps at 8 MiB,
64 MiB and 1 GiB. Filling its pipeline takes `switch_fill` rounds, and each chunk as long as `switch_gap_bytes` more.
Beyond `domain_gpus` ranks, what leaves the node crosses the network, whose rate per device is a datasheet's; its share of these
kinds is assumed. No engine's own kernel reaches there: all-reduces are the library's, with the latency of a chain through a
node by its own model; NCCL's own (`nccl`) are as within a full node, and the network beside. None of it was measured: a further
error of a factor of two of latency, 25 % of bytes.
Steps: NCCL's changes of protocol and of chunks; in bytes where an engine's own all-reduce ends (8 MiB in vLLM's and SGLang's
custom_all_reduce.py; 16 MiB in SGLang on H100, 8 and 1 in TensorRT-LLM on H100 and A100, inferred; among more than four H100
256 KiB in vLLM, whose symmetric memory ends at 64 MiB: CUSTOM_ALL_REDUCE_MAX_SIZES and SYMM_MEM_ALL_REDUCE_MAX_SIZES of its
all_reduce_utils.py; six ranks are taken as eight, four as two). Below, it changes its algorithm where two cost the same,
whatever the link's rate (a second phase, the library's start and its pipeline's filling are told in bytes).
Not modelled: contention between collectives, other topologies than full nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.links import network_bytes, wire_bytes
from moetrace.op import FloatArray, Works

BoolArray = npt.NDArray[np.bool_]
_SHARP = 8.0  # p of the overlap of an eager call with its kernel
_BESIDE = 2.0  # p of the overlap of the link with its busiest channel
_RINGS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}  # rounds of a ring, n - 1 steps each
# What NCCL takes a protocol's latency to be, first and per step (LL, LL128, Simple of a ring over NVLink), and the switch's:
# github.com/NVIDIA/nccl, src/graph/tuning.cc, baseLatencies and hwLatencies of v2.28.
_PROTOCOLS = ((6.6e-6, 0.6e-6), (14.0e-6, 1.9e-6), (8.4e-6, 3.4e-6))
_SWITCH_S = 25.0e-6
_LINES, _SWITCH_SHARE = 0.92, 5.0 / 6.0  # of a ring's rate, LL128's and the switch's, the same file
_PAIR = 2.0  # ranks that a switch does not reduce for
_BLOCK, _MOST_BLOCKS = 8192.0, 36.0  # of an engine's own kernel: 512 threads of 16 bytes
_FEW = 4.0  # ranks up to which an engine's own kernel is taken for larger buffers
# Bytes of a chunk to the switch, and of how many rounds of it or more a buffer takes it: the same library, src/enqueue.cc.
_SWITCH_CHUNK, _SWITCH_LARGER = 16384.0, ((32768.0, 2.0), (65536.0, 8.0), (131072.0, 64.0))
# Peers' channels between them, the least that one of them sends and what it holds of it: the same library, src/enqueue.cc,
# addP2pToPlan (parts of stepSize / 8 at least, stepSize = 512 KiB over NVLink).
_CHANNELS_TO_PEERS, _LEAST_PARTS, _CHUNK = 32.0, (16384.0, 65536.0), 524288.0
_CHANNEL = 4096.0  # bytes that a channel's 512 threads of 8 take at once
# Up to which more bytes take more of them, those of the switch, and those that a link keeps busy.
_CHANNELS = 16.0
# What collectives between nodes, of which none was measured, err by beside what was fitted: an assumption. NCCL's own model
# gives 26 us for 8 KiB among H100 nodes (nccl#1453, which measured more), and RCCL takes 37 among two of MI300X.
_BETWEEN_LATENCY, _BETWEEN_BYTES = 1.0, 0.25
_WHOLE_MB = 67.1  # on the wire, from which a ring's chunks grow no more
_MB = 1e6


def collective(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of a library's collectives, [ops]; nan on a machine without a link, or without a network beyond one node."""
    n, nbytes = np.maximum(works["net_ranks"], 1.0), works["net_bytes"]
    wire, network_s, between_s = _sent(c, works, at)
    rounds = works.ops.by_type([_RINGS.get(op.kind, 0.0) for op in works.ops.types])
    # An all-reduce goes round a node, and no further: between nodes each device meets those of its own place.
    inside = np.where(rounds > 1.0, np.minimum(n, at.hw.domain_gpus), n)
    steps, ring = rounds * (inside - 1), rounds > 0
    peers = np.where(
        works.ops.by_type([float(op.kind == "all_to_all") for op in works.ops.types]) > 0, n - 1, 1.0
    )
    # One rank's share of a ring's step; what one peer gets of what is sent to each.
    share = wire / np.maximum(np.where(ring, steps, peers), 1.0)
    low, streams, switched = _protocol(c, nbytes, wire, inside, steps)
    direct = np.where(n > 1, share, 0.0) <= c["direct_low_bytes"]
    low, streams, switched = np.where(ring, low, direct), np.where(ring, streams, ~direct), ring & switched
    further = 1.0 + np.where(ring & ~switched, c["channels"] * np.minimum(share / _CHANNEL, 1.0) ** 2, 0.0)
    few = np.maximum(_CHANNELS_TO_PEERS / n, 1.0)
    low_part, part = (share / np.clip(share / least, 1.0, few) for least in _LEAST_PARTS)
    # A ring's rank handles a share more than it sends: what it receives last.
    serial = np.where(ring, (steps + 1.0) * np.maximum(0.0, share - _CHANNELS * _CHANNEL), low_part) / _MB
    wire_mb = wire / _MB
    filling_s = np.where(
        streams, c["fill_s"] * wire_mb / (1.0 + wire_mb / _WHOLE_MB), c["chunk_s"] * np.sqrt(wire_mb)
    )
    filling_s = np.where(ring, filling_s, c["copy_s"] * np.minimum(part, _CHUNK) / _MB)
    first = np.where(ring | low, 0.0, _CHANNELS * np.minimum(part, _LEAST_PARTS[1]))
    taking = np.where(switched, _rounds(c, nbytes, inside), _lost(c["pair_loss"], inside)) * smoothmax(
        _BESIDE, wire, first
    )
    floor_s = c["latency_s"] * further
    ranks_s = np.where(switched, 0.0, c["per_rank_s"] * (inside - 1) * further)
    serial_s = np.where(low, c["serial_s"] * serial, 0.0)
    chunks_s = np.where(low | switched, 0.0, filling_s + c["start_s"] * streams)
    link_s = taking / (c["efficiency"] * rate(at)) + network_s
    among = ~ring & low & (peers > 1)  # several peers, whose small messages have an error of their own
    terms = {
        "latency": np.where(among, 0.0, floor_s) + between_s,
        "ranks": ranks_s + np.where(among, floor_s + serial_s, 0.0),
        "serial": np.where(among, 0.0, serial_s), "chunks": chunks_s, "link": link_s,
    }  # fmt: skip
    found = _parts(floor_s + between_s + ranks_s + serial_s + chunks_s, link_s, n, terms)
    across = n > at.hw.domain_gpus
    return replace(found, further=_unmeasured(across, found.fixed_s, found.expected_s))


def _protocol(
    c: Mapping[str, float], nbytes: FloatArray, wire: FloatArray, n: FloatArray, steps: FloatArray
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """(whether the protocol of low latency is taken, whether the one that streams, whether the switch reduces) by NCCL's own
    model of their times, [ops]; none: the ring's protocol between."""
    ring = c["ring_bytes_per_s"]
    rates = (c["low_bytes_per_s"], _LINES * ring, ring)
    low, lines, streams = (
        base + step * steps + wire / rate for (base, step), rate in zip(_PROTOCOLS, rates, strict=True)
    )
    ring_s = np.minimum(np.minimum(low, lines), streams)
    can = (n > _PAIR) & bool(c["in_switch"])
    switched = np.asarray(can & (_SWITCH_S + nbytes / (_SWITCH_SHARE * ring) < ring_s))
    is_low = np.asarray(~switched & (low <= ring_s))
    return is_low, np.asarray(~switched & ~is_low & (streams < lines)), switched


def _rounds(c: Mapping[str, float], nbytes: FloatArray, n: FloatArray) -> FloatArray:
    """Times as long as its links would take for the wire that the switch takes to reduce the buffer, [ops]."""
    chunk = np.full_like(nbytes, _SWITCH_CHUNK)
    for larger, times in _SWITCH_LARGER:
        chunk = np.where(nbytes >= times * _CHANNELS * n * larger, larger, chunk)
    filling = c["switch_fill"] * _CHANNELS * n * chunk / np.maximum(nbytes, 1.0)
    return np.asarray((1.0 + filling) * (1.0 + c["switch_gap_bytes"] / chunk))


def all_reduce(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of an engine's all-reduce, [ops], as `collective`; dim `eager` 1: called without a graph."""
    n, nbytes = np.maximum(works["net_ranks"], 1.0), works["net_bytes"]
    wire, network_s, between_s = _sent(c, works, at)
    across = n > at.hw.domain_gpus
    latency_s = np.where(across, _chain_s(at), c["latency_s"]) + between_s
    ranks_s = np.where(across, 0.0, c["per_rank_s"] * (n - 1))
    floor_s = latency_s + ranks_s
    own = c["efficiency"] * rate(at)
    most = np.where(n > _FEW, c["crowd_most_bytes"] or c["most_bytes"], c["most_bytes"])
    taken = ((nbytes <= most) | (most == 0)) & ~across
    shared = ~taken & (nbytes <= c["shared_bytes"]) & ~across
    one = np.where(taken, nbytes * (n - 1) / own, np.inf)
    two = np.where(taken, (wire + c["two_shot_bytes"]) / (own * c["two_shot_gain"]), np.inf)
    further = np.where(shared, _shared(c, nbytes, n, at), _library(c, wire, nbytes, n, at, across))
    fewest = np.minimum(np.minimum(one, two), further)
    move_s, is_own, is_one = fewest + network_s, np.minimum(one, two) <= fewest, one <= fewest
    eager = np.where(n > 1, works.dim("eager", 0.0), 0.0)
    # In and out of symmetric memory; called eagerly, out of place and, for the own kernel, into memory that peers see.
    copy_s, moved = np.where(shared, 4.0, 0.0) * nbytes, np.where(is_own, 4.0, 2.0) * nbytes * eager
    copy_s, moved_s = copy_s / at.hw.memory.bytes_per_s, moved / at.hw.memory.bytes_per_s
    blocks_s = c["block_s"] * np.log2(np.clip(nbytes / _BLOCK, 1.0, _MOST_BLOCKS))
    fixed_s = floor_s + np.where(is_own, blocks_s, np.where(shared, c["shared_s"], 0.0))
    host_s = eager * (c["host_s"] + c["host_rank_s"] * (n - 1) + np.where(is_one, 0.0, c["host_phase_s"]))
    terms = {
        "latency": latency_s, "ranks": ranks_s,
        "one_shot": np.where(is_one, move_s, 0.0), "two_shot": np.where(is_own & ~is_one, move_s, 0.0),
        "library": np.where(is_own, 0.0, move_s + copy_s + fixed_s - floor_s), "host": host_s + moved_s,
    }  # fmt: skip
    alone = _parts(fixed_s, move_s, n, terms)
    copy_s = np.where(n > 1, copy_s, 0.0) + moved_s
    called = smoothmax(_SHARP, host_s, alone.expected_s + copy_s)
    further = _unmeasured(across, alone.fixed_s, alone.expected_s)
    return Parts(
        np.zeros_like(n), copy_s, alone.fixed_s + host_s, called, alone.network_s, alone.terms, further
    )


def _chain_s(at: Setting) -> float:
    """What NCCL's own model gives the devices of a node, of whose kernels none reaches another: a chain of them, to and fro, or
    the switch where that is faster."""
    base, step = _PROTOCOLS[0]
    return min(base + step * 2.0 * (at.hw.domain_gpus - 1), _SWITCH_S)


def _unmeasured(across: BoolArray, fixed_s: FloatArray, expected_s: FloatArray) -> FloatArray:
    """The further error of collectives between nodes: of their latency and of what the network moves."""
    latency = np.divide(fixed_s, expected_s, out=np.zeros_like(fixed_s), where=expected_s > 0)
    return np.where(across, latency * _BETWEEN_LATENCY + (1.0 - latency) * _BETWEEN_BYTES, 0.0)


def _shared(c: Mapping[str, float], nbytes: FloatArray, n: FloatArray, at: Setting) -> FloatArray:
    """Seconds on the links through symmetric memory, [ops]."""
    return nbytes * np.where(n > _PAIR, 1.0 + 1.0 / n, 1.0) / (c["shared_efficiency"] * rate(at))


def _library(
    c: Mapping[str, float],
    wire: FloatArray,
    nbytes: FloatArray,
    n: FloatArray,
    at: Setting,
    across: BoolArray,
) -> FloatArray:
    """Seconds on the links of the library's all-reduce of a large buffer, by a ring or the switch, [ops]; `across` nodes of a
    small one too, whose starting takes no longer than itself, and by the faster of the two."""
    start = c["library_bytes"] + c["chunk_bytes"] * np.sqrt(wire / _MB)
    ring = wire * _lost(c["pair_loss"], n) + np.where(across, np.minimum(start, wire), start)
    by_switch = wire * _rounds(c, nbytes, n)
    switched = (n > _PAIR) & (c["in_switch"] > 0) & ~(across & (ring < by_switch))
    return np.where(switched, by_switch, ring) / (c["library_efficiency"] * rate(at))


def _sent(c: Mapping[str, float], works: Works, at: Setting) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(bytes on a rank's links, seconds on the network, latency between nodes) by the kind of each op."""
    n, nbytes, domain = works["net_ranks"], works["net_bytes"], float(at.hw.domain_gpus)
    wire, beyond = np.zeros(len(works)), np.zeros(len(works))
    for code, op in enumerate(works.ops.types):
        rows = works.ops.code == code
        wire[rows] = wire_bytes(op.kind, nbytes[rows], n[rows])
        beyond[rows] = network_bytes(op.kind, nbytes[rows], n[rows], domain)
    doublings = np.log2(np.maximum(n / domain, 1.0))
    return wire, beyond / (c["network_efficiency"] * network(at, n)), c["node_s"] * doublings


def _lost(share: float, n: FloatArray) -> FloatArray:
    """Times as long as links of many ranks take those of `n`: few ranks have few links to each other's memory in use."""
    return np.asarray(1.0 + share * np.maximum(0.0, 2.0 / n - 0.25))


def rate(at: Setting) -> float:
    return at.hw.link.bytes_per_s if at.hw.link is not None else float("nan")


def network(at: Setting, ranks: FloatArray) -> FloatArray:
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
