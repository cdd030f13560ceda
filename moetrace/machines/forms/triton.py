"""SGLang's Triton kernels of decoding (`triton`): a sequence in up to `most_parts` parts, told before the launch.

    tile     = up to 16 query heads of a KV head of one sequence; a head alone, where nothing is shared
    full     = set_for processors x log2(context / 64), once at least, rounded down
    parts    = full / tiles, rounded up, at most most_parts; each of context / parts tokens, rounded up to whole 32
    blocks   = tokens of a part / 32, rounded up; / 64 of heads alone
    beside   = parts on a processor at once: 3 of heads up to 256 wide, 2 of wider ones; one more of heads alone
    block    = (per_block + per_wide x width / 128) x cached where the bytes lie in cache; of heads alone `alone` times one 256
               wide x bytes of a head's key / 512, at most 1; of a part's only block a fifth for each byte of an element is
               what its tokens take
    walk     = walks x blocks x block, walks = turns of the processors, those beside each other at `beside` of the first, of
               heads alone `alone_beside`
    start    = walks x per_tile x width / 128 + per_part x width / 128 x most_parts x tiles / processors
    merge    = (wait^4 + (partial x bytes that parts leave / processors)^4)^(1/4), wait = per_split x parts
    expected = t0 + alone_s + window + merge + parts that start + max of memory, arithmetic and all walks with their starts

Sources: github.com/sgl-project/sglang, python/sglang/srt/layers/attention/triton_ops: metadata.py (get_num_kv_splits_triton),
decode_attention.py (_MIN_BLOCK_KV, BLOCK, BLOCK_H, the grids); triton_attention_num_kv_splits in server_args.py: 8. The grid
has room for most_parts of every tile, and those that are empty start and end too, after all others, since parts are its slowest
index. So the last turn has the sequences' last parts, which are shorter: five parts of 1,024 tokens are four of 224 and one of
128. Parts are told by all the context, and a window is cut in as many.
Inferred, of the tables' times: how many parts are on a processor at once (shared memory of the blocks holds no more), by where
times step (256 wide heads at 396 parts, 512 wide ones at 264, heads alone at 528 and 396); that a warp of the kernel for heads
alone adds up as many keys at once as 32 lanes x 16 bytes hold, since its blocks take as long 256 wide in 16 bits (8 us from
cache) as 512 wide in 8 or 16 (6 to 7), and half of that 256 wide in 8 (3.4); that tokens which a mask leaves out of a block
save their bytes' share; what a block takes from cache (`cached`, 0.62: a walk of heads 512 wide takes 1.6 times as long from
where the cache leaves L2); and that a cache of single tokens leaves the last-level cache from a fifth of it on. All heads 256
wide of the tables have a window and none 512 wide has, so that window_s may be the width's.
Steps: in context where a block or a part begins and where parts become more, in sequences and heads where a turn begins. Parts
and the last turn's are those of the processors measured (`set_for`): a processor more never cuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.machines.forms.base import Setting, smoothmax
from moetrace.machines.forms.tiles import from_memory, together, turns_of, unawaited
from moetrace.op import FloatArray, Works

_WIDTH = 128.0  # of a head, that seconds are told for
_ROWS = 16.0  # of a tile of shared heads
_LEAST = 32.0  # tokens that a part is a multiple of
_SHARED, _ALONE = 32.0, 64.0  # tokens of a block, of heads that share a KV head and of those alone
_HELD = (3.0, 2.0)  # parts on a processor at once, of heads up to _WIDE wide and of wider ones
_WIDE = 256.0
_LANES = 512.0  # bytes that the lanes of a warp hold at once
_LOADED = 0.2  # of a block's time, for each byte of an element, what its tokens' bytes take
_SCATTERED = (0.2, 1.0)  # of the cache, as `tiles.from_memory` has it: tokens that lie apart
_EDGE = 1e-9  # rounding of tokens
_AHEAD, _SHARP = 4.0, 8.0


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of ops, [ops] each: tiles, parts of one that have tokens, whether its head is alone, parts that a processor holds
    at once, blocks of a part, and those of the last one over these, FLOPs of whole tiles over those asked for, width over
    128."""

    tiles: FloatArray
    count: FloatArray
    alone: npt.NDArray[np.bool_]
    held: FloatArray
    blocks: FloatArray
    last: FloatArray
    padding: FloatArray
    wide: FloatArray


def _parts(c: Mapping[str, float], works: Works) -> _Parts:
    batch, heads, kv_heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads"), works.dim("kv_heads")
    width = works.dim("head_dim")
    context = np.ceil(np.maximum(works.dim("kv") / batch, 1.0) - _EDGE)
    uncut = np.ceil(np.fmax(works.dim("context"), context) - _EDGE)
    rows = heads / kv_heads * np.maximum(works.dim("q", 0.0), batch) / batch
    alone = rows <= 1.0
    tiles = batch * kv_heads * np.ceil(rows / _ROWS)
    full = np.floor(c["set_for"] * np.maximum(1.0, np.log2(uncut / 64.0)))
    told = np.minimum(c["most_parts"], np.ceil(full / tiles))
    told = np.ceil(uncut / np.ceil(uncut / told))
    tokens = _LEAST * np.ceil(np.ceil(context / told) / _LEAST)
    count = np.ceil(context / tokens)
    block = np.where(alone, _ALONE, _SHARED)
    # Tokens that are masked out of a part's only block are not read.
    only = 1.0 - _LOADED * c["triton"] * (1.0 - np.minimum(1.0, np.minimum(tokens, context) / block))
    blocks = np.where(tokens > block, np.ceil(tokens / block), only)
    last = np.minimum(1.0, np.ceil((context - tokens * (count - 1.0)) / block) / np.ceil(tokens / block))
    held = np.where(width <= _WIDE, *_HELD) + alone
    padding = np.where(alone, 1.0, np.ceil(rows / _ROWS) * _ROWS / rows)
    return _Parts(tiles, count, alone, held, blocks, last, padding, width / _WIDTH)


def seconds(
    c: Mapping[str, float], works: Works, at: Setting
) -> tuple[FloatArray, dict[str, FloatArray], FloatArray]:
    """(seconds of the launch, of each term, and of all but the launch) of attention ops, [ops] each."""
    part, processors = _parts(c, works), at.hw.multiprocessors
    far = from_memory(works["bytes"], 0.0, at, _SCATTERED)
    byte_s = far / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    read_s, memory_s = (works["bytes"] - unawaited(works, at)) * byte_s, works["bytes"] * byte_s
    compute_s = works["flops"] * part.padding / (c["eta_flops"] * at.peak)
    walks, short = _walks(c, part, processors)
    key_bytes = part.wide * _WIDTH * c["triton"]
    alone_s = (
        c["alone"]
        * (c["per_block_s"] + c["per_wide_s"] * _WIDE / _WIDTH)
        * np.minimum(1.0, key_bytes / _LANES)
    )
    block_s = np.where(part.alone, alone_s, c["per_block_s"] + c["per_wide_s"] * part.wide)
    block_s = block_s * (c["cached"] + (1.0 - c["cached"]) * far)
    walk_s = walks * short * part.blocks * block_s
    tile_s = walks * c["per_tile_s"] * part.wide
    # All parts that a tile might have, one on a processor after another.
    begun_s = c["per_part_s"] * part.wide * c["most_parts"] * part.tiles / processors
    left = 4.0 * works.dim("heads") * np.maximum(works.dim("q", 0.0), works.dim("batch")) * part.wide * _WIDTH
    merge_s = smoothmax(
        _AHEAD, c["per_split_s"] * part.count, c["partial_s"] * left * part.count / processors
    )
    window_s = c["window_s"] * (works.dim("window", 0.0) > 0)
    launch_s = c["t0_s"] * works["launches"] + np.where(part.alone, c["alone_s"], 0.0) + window_s
    terms = {
        "launch": launch_s, "memory": memory_s, "compute": compute_s, "start": tile_s + begun_s, "walk": walk_s,
        "split": merge_s,
    }  # fmt: skip
    streamed_s = smoothmax(_SHARP, read_s, compute_s, tile_s + walk_s)
    return launch_s, terms, np.maximum(memory_s, begun_s + merge_s + streamed_s)


def _walks(c: Mapping[str, float], part: _Parts, processors: float) -> tuple[FloatArray, FloatArray]:
    """(walks of a part that a processor takes one after another, the share of them that is left since the last are shorter)."""
    beside, told = np.where(part.alone, c["alone_beside"], c["beside"]), c["set_for"]
    parts = part.tiles * part.count
    walks = together(turns_of(parts, told, processors), part.held, beside)
    full = np.floor(parts / told / part.held)
    whole = full * (1.0 + (part.held - 1.0) * beside)
    ends = (parts - full * told * part.held <= part.tiles) & (part.count > 1.0)
    all_told = together(np.ceil(parts / told), part.held, beside)
    return walks, np.where(ends, (whole + (all_told - whole) * part.last) / all_told, 1.0)
