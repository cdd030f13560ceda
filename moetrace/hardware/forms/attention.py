"""The parameters of attention (MHA, GQA, MLA) that are fitted. The formula: machines/forms/attention."""

from __future__ import annotations

from dataclasses import replace

from moetrace.hardware.forms.attention_facts import FACTS
from moetrace.hardware.forms.base import BLEND, ETA_BW, Parameter, Schema

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
    Parameter("split_s", "s", 0, 1e-2, 3e-6, 1e-2, "cost of cutting a sequence's KV over processors", 2.0),
    Parameter("per_split_s", "s/split", 0, 1e-5, 3e-8, 0, "the same for each part", 2.0),
    Parameter("max_splits", "parts", 1, 4096, 64, 64, "parts into which a sequence's KV is cut at most", 2.0),
    Parameter("odd_head_s", "s", 0, 1e-3, 1e-7, 0, "more where the head is not a power of two wide"),
    Parameter(
        "tile_row_s", "s/wave", 0, 1e-5, 1e-8, 0, "a tile's more for each of its rows, however few tiles", 2.0
    ),
    Parameter("per_sequence_s", "s/sequence", 0, 1e-6, 1e-8, 0, "a scheduler's look at a sequence", 2.0),
    Parameter(
        "empty_s",
        "s/wave",
        0,
        1e-4,
        1e-6,
        0,
        "clearing a block that is empty: a tile's last one's share",
        2.0,
    ),
    Parameter(
        "per_part_s",
        "s/wave",
        0,
        1e-4,
        4e-6,
        0,
        "start and end of a part on a processor, of a kernel that starts each anew",
        2.0,
    ),
    Parameter(
        "alone", "share", 0.01, 10, 1, 1, "tiles of the kernel for heads that are alone take so much longer"
    ),
    Parameter(
        "query_s",
        "s/row",
        0,
        1e-5,
        2e-8,
        0,
        "a block's more for each row of such a part's tile, 128 wide",
        2.0,
    ),
    Parameter(
        "least_s",
        "s/wave",
        0,
        1e-4,
        2e-6,
        0,
        "walk of a head that is alone at least, once it has a token for each thread; a block of single tokens from memory",
        2.0,
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
        "beside",
        "share",
        0.02,
        1,
        0.6,
        1,
        "of a walk, what each of the tiles beside each other but the first adds",
        0.5,
    ),
    Parameter(
        "alone_beside",
        "share",
        0.02,
        1,
        0.3,
        1,
        "the same of Triton's kernel for heads that are alone",
        0.5,
    ),
    Parameter(
        "partial_s", "s/byte", 0, 1e-7, 1e-10, 0, "merging, per byte of a part's results and processor", 2.0
    ),
    Parameter(
        "later_s",
        "s/wave",
        0,
        1e-4,
        5e-7,
        0,
        "a walk's more from a second block on, whose code is another",
        2.0,
    ),
    Parameter(
        "crowd_s",
        "s/doubling",
        0,
        1e-5,
        3e-7,
        0,
        "waiting for what all tiles load first, for each 40 rows and doubling of tiles",
        2.0,
    ),
    Parameter(
        "idle_s", "s/part", 0, 1e-6, 3e-8, 0, "a merge's walk of a part in rows of its tile that are empty"
    ),
    Parameter(
        "merge_s",
        "s/tile",
        0,
        1e-5,
        5e-7,
        0,
        "the kernel that merges, for each eight rows, whether they were cut or not; of parts begun anew, for each tile",
    ),
    Parameter(
        "alone_s", "s", 0, 1e-3, 1e-7, 0, "floor of the kernel for heads that are alone, beyond the other's"
    ),
    Parameter(
        "alone_split_s",
        "s",
        0,
        1e-3,
        4e-6,
        0,
        "cutting a sequence of heads that are alone, where they have such a kernel",
    ),
    Parameter(
        "shared_s",
        "s",
        0,
        1e-3,
        1e-7,
        0,
        "the kernel before one that starts each part anew: keys and queries made ready",
    ),
    Parameter(
        "window_s",
        "s/wave",
        0,
        1e-4,
        1e-6,
        0,
        "a tile's more under a window, of heads 128 wide; as the width's square less",
        2.0,
    ),
    Parameter(
        "ramp_s", "s", 0, 1e-4, 2e-6, 0, "until memory streams, where more is read than the cache holds", 2.0
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
    Parameter(
        "tile_wide_s",
        "s/wave",
        0,
        1e-4,
        1e-6,
        0,
        "a FlashAttention-3 tile's start and end more for each 128 of width",
        2.0,
    ),
    Parameter(
        "several_s", "s/wave", 0, 1e-4, 1e-6, 0, "its tile's more where several groups of warps share it", 2.0
    ),
    Parameter(
        "narrow_s", "s/wave", 0, 1e-4, 1e-6, 0, "its tile's more under a window, of heads 64 wide", 2.0
    ),
    Parameter(
        "write_s",
        "s/byte",
        0,
        1e-8,
        5e-11,
        0,
        "storing a token first (writes), per byte of its keys and values",
        2.0,
    ),
    Parameter(
        "recast_s",
        "s/byte",
        0,
        1e-6,
        4e-10,
        0,
        "converting the cache (recasts), per byte of it and processor",
    ),
    Parameter("recast_least_s", "s", 0, 1e-4, 2e-6, 0, "that conversion at least"),
    replace(ETA_BW, start=0.93, spread=0.05),
    BLEND,
    *FACTS,
    terms=("launch", "memory", "compute", "start", "walk", "split"),
)
