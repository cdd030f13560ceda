"""The parameters of attention (MHA, GQA, MLA). The formula: machines/forms/attention."""

from __future__ import annotations

from dataclasses import replace

from moetrace.hardware.forms.base import BLEND, ETA_BW, ETA_FLOPS, Parameter, Schema

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
    replace(ETA_BW, start=0.93, spread=0.05),
    replace(ETA_FLOPS, start=0.67, meaning=f"{ETA_FLOPS.meaning}; of the kernel, not fitted", given=True),
    BLEND,
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
