"""What is known of attention's kernels, engines and benchmarks, which no fit changes: parameters of forms/attention."""

from __future__ import annotations

from dataclasses import replace

from moetrace.hardware.forms.base import ETA_FLOPS, Parameter


def _fact(
    name: str, unit: str, low: float, high: float, default: float, meaning: str, of: str = "kernel"
) -> Parameter:
    return Parameter(
        name, unit, low, high, default, default, f"{meaning}; of the {of}, not fitted", given=True
    )


FACTS = (
    replace(
        _fact(
            "block_s",
            "s/block",
            0,
            1e-4,
            0,
            "serial time per block where matrix units set it and times of few blocks tell it (0: per_block_s)",
        ),
        pace="half",
    ),
    _fact("tile_rows", "rows", 1, 1024, 64, "rows of a kernel's tile"),
    _fact("block_tokens", "tokens", 1, 4096, 192, "KV tokens of a block 128 wide, fewer the wider"),
    _fact("grouped_rows", "heads", 1, 1024, 1024, "query heads of a KV head that one kernel takes together"),
    _fact("grouped_tiles", "tiles", 0, 1e4, 0, "tiles and parts that this kernel needs"),
    _fact(
        "split_turns",
        "turns",
        0,
        1e4,
        0,
        "turns that its parts fill, whatever they cost; 0: it cuts where that saves time",
    ),
    _fact(
        "whole_tiles",
        "tiles",
        0,
        1e4,
        0,
        "tiles that fill the processors measured, of a kernel that deals out blocks; 0: another",
    ),
    _fact(
        "start_blocks",
        "blocks",
        0,
        64,
        0,
        "blocks more that it counts for a sequence's start; 0: parts of one length",
    ),
    _fact("whole_blocks", "blocks", 0, 64, 0, "blocks up to which it leaves a sequence whole"),
    _fact(
        "eager",
        "flag",
        0,
        1,
        0,
        "1: launched one by one: the host takes the floor while kernels run",
        of="benchmark",
    ),
    _fact("set_for", "processors", 0, 1e4, 0, "that a kernel cuts and fills, as measured"),
    _fact(
        "fetched",
        "share",
        0.1,
        1,
        1,
        "of the bytes, what memory gave while they were measured",
        of="benchmark",
    ),
    _fact(
        "most_parts",
        "parts",
        0,
        4096,
        0,
        "parts at most of a kernel that cuts every sequence; 0: another kernel",
    ),
    _fact("even_blocks", "flag", 0, 1, 0, "1: a block has as many tokens whatever the width"),
    _fact("value_tiles", "tiles", 1, 64, 1, "tiles that MLA's values are shared out over"),
    replace(_fact("at_once", "tiles", 1, 64, 1, "tiles of a processor that walk beside each other"), start=2),
    _fact("narrow_at_once", "tiles", 0, 64, 0, "the same of heads up to 64 wide; 0: as many"),
    _fact(
        "merged_rows",
        "rows",
        0,
        64,
        0,
        "of the tiles in which FlashAttention-3 merges MLA; 0: another kernel",
    ),
    _fact("recasts", "flag", 0, 1, 0, "1: the cache is converted to another type before each call"),
    _fact(
        "alone_whole",
        "flag",
        0,
        1,
        0,
        "1: a sequence of heads that are alone, or of several queries, is never cut",
    ),
    _fact("flash3", "bytes", 0, 2, 0, "of an element, of FlashAttention-3's kernel; 0: another"),
    _fact("triton", "bytes", 0, 2, 0, "of an element, of SGLang's Triton kernels of decoding; 0: another"),
    Parameter(
        "prompt_flops",
        "of peak",
        0,
        1,
        0,
        0,
        "what matrix units reach of prompts, where the kernel is not FlashAttention-3's; 0: as in decoding; not fitted",
        given=True,
    ),
    _fact("skips", "flag", 0, 1, 0, "1: parts that lie beyond a window end at once"),
    _fact("writes", "flag", 0, 1, 0, "1: the engine stores each token's keys and values first", of="engine"),
    _fact("cached", "share", 0.05, 1, 1, "of a block's time from memory, one from a warm cache takes this"),
    replace(ETA_FLOPS, start=0.67, meaning=f"{ETA_FLOPS.meaning}; of the kernel, not fitted", given=True),
)
