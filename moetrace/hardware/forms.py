"""What each form of the gpu law is told by a profile: parameter names, units, bounds and meaning. The formulas: machines/forms.

A form is one shape of formula, for one or more op families. Its parameters are all that a profile may set and all that
`moetrace calibrate` fits. A parameter whose unit begins with ``s`` is time that no faster memory, unit or link saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from moetrace.errors import ProfileError, unknown


@dataclass(frozen=True, slots=True)
class Parameter:
    """One coefficient: its unit, its physical bounds, where a fit starts, what it is if a profile leaves it out."""

    name: str
    unit: str
    low: float
    high: float
    start: float
    default: float
    meaning: str
    spread: float = 1.0  # a fit's weak prior: standard deviation around `start`, of the logarithm
    given: bool = False  # a fact of the kernel or of its benchmark, which no fit changes
    pace: str = "clock"  # what such a time goes with on another chip: its clock, a processor's arithmetic, half of each

    @property
    def is_fixed_time(self) -> bool:
        """Whether it is time that no faster resource saves (seconds, or seconds per something)."""
        return self.unit.split("/")[0] == "s"


@dataclass(frozen=True, slots=True)
class Schema:
    """The parameters of one form, by name, and the names of the terms that its times are made of."""

    name: str
    parameters: Mapping[str, Parameter]
    terms: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, *parameters: Parameter, terms: tuple[str, ...] = ()) -> Schema:
        return cls(name, MappingProxyType({p.name: p for p in parameters}), terms)


_ETA_BW = Parameter("eta_bw", "share", 1e-3, 1, 0.8, 1, "share of the datasheet bandwidth that is reached")
_ETA_FLOPS = Parameter(
    "eta_flops", "share", 1e-3, 1, 0.5, 1, "share of the dense datasheet peak that is reached"
)

GENERIC = Schema.of(
    "generic",
    Parameter("t0_s", "s/launch", 0, 1, 3e-6, 0, "seconds per launch"),
    _ETA_BW,
    _ETA_FLOPS,
    Parameter(
        "per_expert_s", "s/expert", 0, 1e-3, 5e-8, 0, "seconds per distinct expert of each expert GEMM"
    ),
    Parameter("per_k_s", "s", 0, 1e-6, 1e-10, 0, "seconds per element of a GEMM's reduction"),
    Parameter("per_tile_s", "s", 0, 1e-3, 1e-9, 0, "seconds per (sequence, KV head) of an attention"),
    Parameter("blend", "power", 1, 8, 1.5, 1, "p of the p-norm that joins memory and compute (1: they add)"),
    terms=("fixed", "memory", "compute"),
)


_BLEND = Parameter("blend", "power", 1, 8, 2, 1, "p of the p-norm that joins memory, compute and serial work")

_CACHED = Parameter(
    "cached", "share", 0.05, 1, 0.7, 1, "of their time from memory, bytes that lie in a warm cache take this"
)

GEMM = Schema.of(
    "gemm",
    Parameter("t0_s", "s/launch", 0, 1e-3, 3e-6, 0, "floor of a launch, its conversions of type included"),
    replace(_ETA_BW, start=0.85, spread=0.2),
    replace(_ETA_FLOPS, start=0.7, spread=0.7),
    Parameter("per_k_s", "s/element", 0, 1e-7, 1e-9, 0, "serial time per element of one tile's reduction"),
    Parameter(
        "per_k_row_s",
        "s/element",
        0,
        1e-9,
        5e-12,
        0,
        "the same for each row of a tile of 128 columns, whose arithmetic it is",
        pace="arithmetic",
    ),
    Parameter("per_tile_s", "s/wave", 0, 1e-4, 1e-6, 0, "start and end of a tile of 128 x 128", 2.0),
    Parameter(
        "split_s", "s", 0, 1e-2, 3e-5, 1e-2, "cost of sharing a reduction out over idle processors", 2.0
    ),
    Parameter("split_tile_s", "s", 0, 1e-4, 2e-6, 0, "the same for partial sums of tiles of 128 x 128", 2.0),
    Parameter(
        "convert", "passes", 0, 100, 1, 0, "how often converting activations to the type crosses memory", 2.0
    ),
    Parameter("ragged", "share", 0, 10, 0.3, 0, "empty rows of tiles make the GEMM take so much longer", 1.5),
    *(
        Parameter(name, unit, 0, high, value, value, f"{meaning}; of the kernel, not fitted", given=True)
        for name, unit, high, value, meaning in (
            ("picks", "flag", 1, 1, "1: of its tiles the one that takes least; 0: tiles by the rule below"),
            ("splits", "flag", 1, 1, "1: it can share a reduction out"),
            ("least_rows", "rows", 1e9, 16, "the fewest of a tile that is picked"),
            ("few_rows", "rows", 1e9, 0, "rows up to which tiles have 16 of them"),
            ("few_columns", "columns", 1e9, 0, "columns up to which tiles of 64 have 16 rows too"),
            ("short_rows", "rows", 1e9, 0, "rows up to which tiles have 64 of them, 128 above"),
            ("narrow_rows", "rows", 1e9, 0, "rows up to which tiles have 64 columns, 128 above"),
            ("ragged_rows", "rows", 1e9, 0, "rows up to which `ragged` is not"),
            ("paired_rows", "rows", 1e9, 0, "rows above which tiles come in pairs of them (0: never)"),
            ("crowd", "tiles", 1e9, 0, "columns' tiles from which on `ragged` is all there (0: it never is)"),
        )
    ),
    Parameter(
        "copies",
        "copies",
        0,
        1e3,
        0,
        0,
        "of the weights that a benchmark calls in turn (0: never warm); of the benchmark, not fitted",
        given=True,
    ),
    Parameter("misaligned_s", "s", 0, 1e-4, 1e-7, 0, "more where four does not divide the rows"),
    _BLEND,
    _CACHED,
    terms=("launch", "memory", "convert", "compute", "tiles", "split"),
)

ATTENTION = Schema.of(
    "attention",
    Parameter("t0_s", "s/launch", 0, 1e-3, 7e-6, 0, "floor of a launch"),
    Parameter(
        "per_tile_s", "s/wave", 0, 1e-4, 2e-6, 0, "start and end of one tile of width 128 on a processor", 2.0
    ),
    Parameter("per_row_s", "s/wave", 0, 1e-5, 1e-8, 0, "the same for each of its rows, queries x heads", 2.0),
    Parameter(
        "per_block_s",
        "s/block",
        0,
        1e-4,
        1e-6,
        0,
        "serial time per block of KV tokens of one tile",
        2.0,
    ),
    Parameter(
        "block_s",
        "s/block",
        0,
        1e-4,
        0,
        0,
        "the same where matrix units set it and times of few blocks tell it (0: per_block_s); of the kernel, not fitted",
        given=True,
        pace="half",
    ),
    Parameter("split_s", "s", 0, 1e-2, 3e-6, 1e-2, "cost of cutting a sequence's KV over processors", 2.0),
    Parameter("per_split_s", "s/split", 0, 1e-5, 3e-8, 0, "the same for each part", 2.0),
    Parameter("max_splits", "parts", 1, 4096, 64, 64, "parts into which a sequence's KV is cut at most", 2.0),
    Parameter("odd_head_s", "s", 0, 1e-3, 1e-7, 0, "more where the head is no power of two wide"),
    Parameter(
        "tile_rows", "rows", 1, 1024, 64, 64, "rows of a kernel's tile; of the kernel, not fitted", given=True
    ),
    Parameter(
        "block_tokens",
        "tokens",
        1,
        4096,
        192,
        192,
        "KV tokens of a block 128 wide, fewer the wider; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "grouped_rows",
        "heads",
        1,
        1024,
        1024,
        1024,
        "query heads of a KV head that one kernel takes together; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "grouped_tiles",
        "tiles",
        0,
        1e4,
        0,
        0,
        "tiles and parts that this kernel needs; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "split_turns",
        "turns",
        0,
        1e4,
        0,
        0,
        "turns that its parts fill, whatever they cost; 0: it cuts where that saves time; of the kernel, not fitted",
        given=True,
    ),
    Parameter("per_part_s", "s/wave", 0, 1e-4, 4e-6, 0, "start and end of such a part on a processor", 2.0),
    Parameter(
        "alone", "share", 0.01, 10, 1, 1, "tiles of the kernel for heads that are alone take so much longer"
    ),
    Parameter(
        "fetched",
        "share",
        0.1,
        1,
        1,
        1,
        "of the bytes, what memory gave while they were measured; of the benchmark, not fitted",
        given=True,
    ),
    Parameter(
        "most_parts",
        "parts",
        0,
        4096,
        0,
        0,
        "parts at most of a kernel that cuts every sequence; 0: another kernel; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "turns_grow",
        "flag",
        0,
        1,
        0,
        0,
        "1: the turns that it fills grow with log2 of the context over 64; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "even_blocks",
        "flag",
        0,
        1,
        0,
        0,
        "1: a block has as many tokens whatever the width; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "per_wide_s",
        "s/block",
        0,
        1e-4,
        1e-6,
        0,
        "a block's more for each 128 of width, where blocks are even",
        2.0,
        pace="half",
    ),
    Parameter(
        "value_tiles",
        "tiles",
        1,
        64,
        1,
        1,
        "tiles that MLA's values are shared out over; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "at_once",
        "tiles",
        1,
        64,
        2,
        1,
        "tiles of a processor that walk beside each other; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "beside", "share", 0.02, 1, 0.6, 1, "of the walk of one, what each of them but the first adds", 0.5
    ),
    Parameter(
        "partial_s", "s/byte", 0, 1e-7, 1e-10, 0, "merging, per byte of a part's results and processor", 2.0
    ),
    Parameter(
        "alone_s", "s", 0, 1e-3, 1e-7, 0, "floor of the kernel for heads that are alone, beyond the other's"
    ),
    Parameter(
        "recasts",
        "flag",
        0,
        1,
        0,
        0,
        "1: the cache is converted to another type before each call; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "window_s", "s/wave", 0, 1e-4, 1e-6, 0, "a tile's more under a window, of heads half of 128 wide", 2.0
    ),
    Parameter(
        "ramp_s", "s", 0, 1e-4, 2e-6, 0, "until memory streams, where more is read than the cache holds", 2.0
    ),
    Parameter(
        "alone_whole",
        "flag",
        0,
        1,
        0,
        0,
        "1: a sequence of heads that are alone is never cut; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "turn_s",
        "s",
        0,
        1e-4,
        5e-6,
        0,
        "turning shared heads' queries and results round, where alone_whole is 1",
    ),
    Parameter("recast_s", "s/byte", 0, 1e-6, 4e-10, 0, "that conversion, per byte of cache and processor"),
    replace(_ETA_BW, start=0.93, spread=0.05),
    replace(_ETA_FLOPS, start=0.67, meaning=f"{_ETA_FLOPS.meaning}; of the kernel, not fitted", given=True),
    _BLEND,
    Parameter(
        "cached",
        "share",
        0.05,
        1,
        1,
        1,
        "of a block's time from memory, one from a warm cache takes this; of the kernel, not fitted",
        given=True,
    ),
    terms=("launch", "memory", "compute", "start", "walk", "split"),
)

COLLECTIVE = Schema.of(
    "collective",
    Parameter("latency_s", "s", 0, 1, 5e-6, 0, "floor of one collective"),
    Parameter("per_rank_s", "s/rank", 0, 1, 5e-7, 0, "more for each rank but the first"),
    Parameter("channels", "share", 0, 10, 0.2, 0, "of the floor, what a ring's further channels take", 2.0),
    Parameter("chunk_s", "s", 0, 1, 5e-6, 0, "filling the pipeline, per square root of MB on the wire"),
    Parameter("serial_s", "s/MB", 0, 1, 5e-6, 1, "of small messages, what one channel sends them in", 2.0),
    Parameter("start_s", "s", 0, 1, 2e-6, 0, "of larger ones, what starting many channels takes", 2.0),
    Parameter("efficiency", "share", 1e-3, 2, 0.8, 1, "of the link; above 1 where the switch reduces"),
    Parameter("pair_loss", "share", 0, 10, 0.2, 0, "what two ranks lose of it against many"),
    Parameter("node_s", "s", 0, 1, 1e-5, 1e-5, "more for each doubling of nodes"),
    Parameter("network_efficiency", "share", 1e-3, 1, 0.8, 0.8, "of the network between nodes"),
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
    Parameter("host_s", "s", 0, 1, 2.5e-5, 0, "what an eager call takes at least"),
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
    Parameter("normal_efficiency", "share", 1e-3, 2, 0.9, 1, "of the link, however many processors send"),
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

EXPERTS = Schema.of(
    "experts",
    Parameter(
        "t0_s", "s/module", 0, 1e-3, 15e-6, 0, "floor of the module, a sixth for each of its launches", 0.5
    ),
    Parameter("per_expert_s", "s/expert", 0, 1e-5, 1e-8, 0, "routing kernels, per expert of the layer"),
    Parameter(
        "routed_experts",
        "experts",
        0,
        1e6,
        0,
        0,
        "up to so many experts of the layer a kernel of the engine's own routes (0: always); of the kernel, not fitted",
        given=True,
    ),
    Parameter("operators_s", "s/module", 0, 1e-3, 1e-5, 0, "routing more, by the framework's operators", 2.0),
    Parameter(
        "per_local_expert_s",
        "s/expert",
        0,
        1e-5,
        1e-8,
        0,
        "per expert that the rank holds, touched or not",
        2.0,
    ),
    Parameter(
        "per_row_s", "s/row", 0, 1e-5, 1e-9, 0, "sorting and combining, per token and chosen expert", 2.0
    ),
    Parameter(
        "serial_s", "s/byte", 0, 1e-8, 1.2e-11, 0, "per byte that one thread block streams in its K loop"
    ),
    replace(_ETA_BW, low=0.05, start=0.93, spread=0.1),
    replace(_ETA_FLOPS, low=0.02, spread=0.7),
    Parameter(
        "act_passes",
        "passes",
        1,
        50,
        3,
        1,
        "how often activations cross memory, of once in and out of each op",
    ),
    Parameter(
        "remote_passes",
        "passes",
        0,
        20,
        1,
        0,
        "how often rows of choices that other ranks' experts take cross memory all the same",
    ),
    Parameter(
        "crowded_rows",
        "rows",
        0,
        1024,
        0,
        0,
        "rows of a tile where more tokens than experts on the rank find none that was tuned (0: 16 as ever); of the "
        "kernel, not fitted",
        given=True,
    ),
    Parameter(
        "per_block_s",
        "s/block",
        0,
        1e-4,
        8e-7,
        0,
        "what a block of the down GEMM takes a multiprocessor, beside streaming",
    ),
    Parameter(
        "wide_tokens",
        "tokens",
        0,
        1e6,
        0,
        0,
        "above them blocks have 128 columns instead of 64 (0: never)",
        given=True,
    ),
    Parameter("block_wide", "share", 0.1, 5, 0.8, 1, "of a block's time, a wide one takes this"),
    Parameter("above_wide", "share", 0, 1, 0.05, 0, "weights and FLOPs in wide blocks take so much longer"),
    Parameter(
        "wide_serial",
        "share",
        0,
        5,
        0.5,
        0,
        "what one wide block streams in its K loop takes so much longer",
        1.5,
    ),
    Parameter(
        "misaligned", "share", 0, 5, 0.3, 0, "GEMMs of a width that 16 does not divide take so much longer"
    ),
    Parameter(
        "cached", "share", 0.05, 1, 0.6, 1, "of their streaming time, weights in a warm cache take this", 0.5
    ),
    Parameter(
        "untuned_ranks",
        "ranks",
        0,
        1e6,
        0,
        0,
        "from so many on the benchmark ran kernels that were not tuned (0: never); of the benchmark, not fitted",
        given=True,
    ),
    Parameter("untuned", "share", 0.01, 1, 0.17, 1, "of the datasheet bandwidth, these reach this"),
    terms=(
        "launch",
        "experts",
        "rows",
        "serial",
        "blocks",
        "weights",
        "few",
        "untuned",
        "activations",
        "remote",
        "compute",
    ),
)

SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {s.name: s for s in (GENERIC, EXPERTS, GEMM, ATTENTION, COLLECTIVE, ALL_REDUCE, EXCHANGE)}
)

# Families whose kernels have a form of their own; all else takes the generic one.
FORM_OF: Mapping[str, str] = MappingProxyType(
    {
        "experts": "experts", "dense_gemm": "gemm", "attention": "attention", "mla_attention": "attention",
        "all_reduce": "all_reduce", "all_reduce@nccl": "collective", "moe_dispatch": "exchange", "moe_collect": "exchange",
        **dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all", "send_recv"), "collective"),
    }
)  # fmt: skip


def schema(name: str) -> Schema:
    """The parameters of a form. Raises ProfileError if there is no such form."""
    if name not in SCHEMAS:
        raise ProfileError(unknown("form", name, SCHEMAS))
    return SCHEMAS[name]
