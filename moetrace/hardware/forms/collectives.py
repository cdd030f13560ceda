"""The parameters of collectives, an engine's own all-reduce and exchanges. The formulas: machines/forms/collectives and
exchange."""

from __future__ import annotations

from moetrace.hardware.forms.base import Parameter, Schema

COLLECTIVE = Schema.of(
    "collective",
    Parameter("latency_s", "s", 0, 1, 5e-6, 0, "floor of one collective"),
    Parameter("per_rank_s", "s/rank", 0, 1, 5e-7, 0, "more for each rank but the first"),
    Parameter("channels", "share", 0, 10, 0.2, 0, "of the floor, what a ring's further channels take", 2.0),
    Parameter(
        "chunk_s", "s", 0, 1, 5e-6, 0, "filling the pipeline, per square root of MB on the wire, by LL128"
    ),
    Parameter(
        "copy_s", "s/MB", 0, 1, 3e-5, 0, "copying out of a channel's buffer what was sent to each peer"
    ),
    Parameter(
        "serial_s", "s/MB", 0, 1, 5e-6, 0, "by the protocol of low latency, what one channel sends", 2.0
    ),
    Parameter("start_s", "s", 0, 1, 5e-6, 0, "by the protocol that streams, more to start", 2.0),
    Parameter("efficiency", "share", 1e-3, 2, 0.8, 1, "of the link; above 1 where the switch reduces"),
    Parameter("pair_loss", "share", 0, 10, 0.2, 0, "what two ranks lose of it against many"),
    Parameter(
        "fill_s", "s/MB", 0, 1, 1e-6, 0, "the same by the protocol that streams, until chunks are whole", 2.0
    ),
    Parameter(
        "switch_fill", "rounds", 0, 10, 1.5, 0, "rounds of chunks that filling the switch's pipeline takes"
    ),
    Parameter(
        "switch_gap_bytes", "bytes", 0, 1e6, 1.2e4, 0, "more that a chunk to the switch takes, as bytes of it"
    ),
    Parameter("node_s", "s", 0, 1, 1e-5, 1e-5, "more for each doubling of nodes"),
    Parameter("network_efficiency", "share", 1e-3, 1, 0.8, 0.8, "of the network between nodes"),
    Parameter(
        "low_bytes_per_s",
        "bytes/s",
        1e8,
        1e13,
        1.41e11,
        1.41e11,
        "what the library takes the protocol of low latency for",
        given=True,
    ),
    Parameter(
        "ring_bytes_per_s",
        "bytes/s",
        1e8,
        1e13,
        3.6e11,
        3.6e11,
        "what the library takes a ring for",
        given=True,
    ),
    Parameter(
        "in_switch", "flag", 0, 1, 0, 0, "1: the switch can reduce for more than two ranks", given=True
    ),
    Parameter(
        "direct_low_bytes",
        "bytes",
        0,
        1e9,
        16384,
        16384,
        "to each peer, up to which the protocol of low latency sends",
        given=True,
    ),
    terms=("latency", "ranks", "serial", "chunks", "link"),
)

ALL_REDUCE = Schema.of(
    "all_reduce",
    Parameter("latency_s", "s", 0, 1, 3e-6, 0, "floor of the engine's own kernel"),
    Parameter("per_rank_s", "s/rank", 0, 1, 1e-7, 0, "more for each rank but the first"),
    Parameter(
        "most_bytes",
        "bytes",
        0,
        1e12,
        0,
        0,
        "up to which the engine takes its own kernel (0: any); of the engine, not fitted",
        given=True,
    ),
    Parameter(
        "crowd_most_bytes",
        "bytes",
        0,
        1e12,
        0,
        0,
        "the same among more than four ranks (0: as among few)",
        given=True,
    ),
    Parameter(
        "shared_bytes",
        "bytes",
        0,
        1e12,
        0,
        0,
        "up to which it takes symmetric memory beyond its own kernel; not fitted",
        given=True,
    ),
    Parameter("shared_s", "s", 0, 1, 5e-6, 0, "more of a floor through symmetric memory"),
    Parameter("shared_efficiency", "share", 1e-3, 2, 0.6, 0.6, "of the link, through symmetric memory"),
    Parameter(
        "in_switch", "flag", 0, 1, 0, 0, "1: the switch can reduce for more than two ranks", given=True
    ),
    Parameter(
        "switch_fill", "rounds", 0, 10, 1.5, 0, "rounds of chunks that filling the switch's pipeline takes"
    ),
    Parameter(
        "switch_gap_bytes", "bytes", 0, 1e6, 1.2e4, 0, "more that a chunk to the switch takes, as bytes of it"
    ),
    Parameter(
        "chunk_bytes",
        "bytes",
        0,
        1e9,
        2e6,
        0,
        "what filling its pipeline costs per square root of MB on the wire",
    ),
    Parameter("efficiency", "share", 1e-3, 2, 0.7, 1, "of the link, of the engine's own kernel"),
    Parameter(
        "two_shot_bytes",
        "bytes",
        0,
        1e9,
        1e6,
        0,
        "what a second phase costs, in bytes that its link would send",
    ),
    Parameter(
        "library_bytes", "bytes", 0, 1e12, 2e7, 1e12, "what the library's collective costs more, the same way"
    ),
    Parameter("library_efficiency", "share", 1e-3, 2, 0.9, 1, "of the link, of the library's collective"),
    Parameter("two_shot_gain", "share", 0.1, 10, 1, 1, "of its rate in one shot, the kernel's in two", 0.5),
    Parameter("pair_loss", "share", 0, 10, 0.2, 0, "what two ranks lose of the library's against many"),
    Parameter("block_s", "s", 0, 1, 5e-8, 0, "more of its floor for each doubling of its thread blocks"),
    Parameter("host_s", "s", 0, 1, 2.5e-5, 0, "what an eager call takes at least"),
    Parameter("host_rank_s", "s/rank", 0, 1, 2e-7, 0, "the same, more for each rank but the first"),
    Parameter("host_phase_s", "s", 0, 1, 1e-5, 0, "the same, more where it is not one shot"),
    Parameter("node_s", "s", 0, 1, 1e-5, 1e-5, "more for each doubling of nodes"),
    Parameter("network_efficiency", "share", 1e-3, 1, 0.8, 0.8, "of the network between nodes"),
    terms=("latency", "ranks", "one_shot", "two_shot", "library", "host"),
)

EXCHANGE = Schema.of(
    "exchange",
    Parameter("latency_s", "s", 0, 1, 1e-5, 0, "floor of a low-latency exchange"),
    Parameter("efficiency", "share", 1e-3, 2, 0.6, 1, "of the link"),
    Parameter(
        "per_expert_byte_s",
        "s/byte",
        0,
        1e-6,
        3e-10,
        0,
        "serial time per byte of the tokens that one expert's warps send",
    ),
    Parameter(
        "per_expert_s", "s/expert", 0, 1e-6, 1e-8, 0, "more for each expert, whose counts all wait for"
    ),
    Parameter("copy_s", "s/element", 0, 1e-7, 4e-11, 0, "more per element of a token's k copies"),
    Parameter("between_nodes_s", "s", 0, 1, 5e-6, 0, "more once there is a second node"),
    Parameter("node_s", "s", 0, 1, 4e-6, 0, "more for each doubling of nodes"),
    Parameter("network_efficiency", "share", 1e-3, 2, 0.8, 0.8, "of the network between nodes"),
    Parameter("normal_latency_s", "s", 0, 1, 2.5e-5, 1e-4, "floor of an exchange in normal mode"),
    Parameter(
        "normal_row_s", "s/row", 0, 1e-4, 2e-7, 0, "per row of a pair of processors, of its first turn"
    ),
    Parameter("normal_hidden_s", "s/element", 0, 1e-6, 1e-9, 0, "per element of a row"),
    Parameter("normal_copy_s", "s/element", 0, 1e-7, 2e-10, 0, "the same for each copy of the row", 2.0),
    Parameter(
        "normal_turn_s",
        "s/element",
        0,
        1e-6,
        3e-9,
        0,
        "per element of the rows of each further turn, to collect",
    ),
    Parameter("normal_efficiency", "share", 1e-3, 1, 0.8, 1, "of the link, however many processors send"),
    Parameter(
        "normal_fill_tokens",
        "tokens",
        0,
        1e6,
        100,
        0,
        "up to which links wait for processors, in normal mode",
    ),
    Parameter("normal_far_fill_tokens", "tokens", 0, 1e6, 200, 0, "up to which the network waits for both"),
    Parameter(
        "pair_token_s", "s/row", 0, 1e-4, 1e-7, 0, "what a pair of processors takes to look at a token"
    ),
    Parameter("pair_copy_s", "s/row", 0, 1e-4, 2e-8, 0, "the same for each copy that it sends", 2.0),
    Parameter(
        "pair_bytes_per_s",
        "bytes/s",
        1e8,
        1e13,
        4.4e10,
        4.4e10,
        "what a pair of processors sends over the link",
    ),
    Parameter("normal_between_nodes_s", "s", 0, 1, 1e-5, 0, "more once there is a second node"),
    Parameter("normal_node_s", "s", 0, 1, 3e-5, 0, "more for each doubling of nodes"),
    Parameter("normal_network_efficiency", "share", 1e-3, 2, 0.7, 0.7, "of the network between nodes"),
    Parameter(
        "normal_far_share", "share", 0.05, 1, 0.5, 1, "of that rate, what eight nodes and more reach of it"
    ),
    Parameter(
        "pair_network_bytes_per_s", "bytes/s", 1e8, 1e13, 2e10, 2e10, "and for each node, over the network"
    ),
    terms=("latency", "serial", "link"),
)
