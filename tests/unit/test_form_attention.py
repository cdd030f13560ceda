"""The form of attention: hand-worked times of each regime, its steps at their edges, and what it must never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.hardware import Hardware, load_hardware
from moetrace.hardware.pace import Pace
from moetrace.machines import gpu
from moetrace.machines.forms import Cache
from moetrace.op import Costs, Op

BASE = load_hardware("h100-sxm")
TOLD = {
    "t0_s": 7e-6, "per_tile_s": 2e-6, "per_block_s": 1e-6, "split_s": 3e-6, "per_split_s": 1e-7, "max_splits": 32.0,
    "odd_head_s": 5e-6, "eta_bw": 0.5, "eta_flops": 0.5, "blend": 1.0, "cached": 1.0,
    "tile_rows": 64.0, "block_tokens": 192.0, "per_row_s": 0.0, "grouped_rows": 1024.0, "alone": 1.0, "fetched": 1.0,
    "grouped_tiles": 0.0, "split_turns": 0.0, "per_part_s": 0.0, "most_parts": 0.0, "triton": 0.0, "even_blocks": 0.0,
    "per_wide_s": 0.0, "value_tiles": 1.0, "at_once": 1.0, "beside": 1.0, "partial_s": 0.0, "alone_s": 0.0, "recasts": 0.0,
    "recast_s": 0.0, "block_s": 0.0, "window_s": 0.0, "ramp_s": 0.0, "alone_whole": 0.0, "turn_s": 0.0,
    "whole_tiles": 0.0, "start_blocks": 0.0, "whole_blocks": 0.0, "tile_row_s": 0.0, "per_sequence_s": 0.0, "empty_s": 0.0,
    "eager": 0.0, "least_s": 0.0, "set_for": 0.0, "query_s": 0.0, "idle_s": 0.0, "merge_s": 0.0,
    "recast_least_s": 0.0, "merged_rows": 0.0,
    "flash3": 0.0, "tile_wide_s": 0.0, "several_s": 0.0, "narrow_s": 0.0, "writes": 0.0, "write_s": 0.0, "skips": 0.0,
    "narrow_at_once": 0.0, "alone_beside": 1.0, "alone_split_s": 0.0, "shared_s": 0.0,
    "prompt_flops": 0.0, "later_s": 0.0, "crowd_s": 0.0,
}  # fmt: skip


def told(**value: float) -> Hardware:
    """A machine of 100 processors, 2 TB/s, 1 PFLOP/s and 50 MB of cache with these coefficients for its attention."""
    family = replace(BASE.families["attention"], form="attention", value={**TOLD, **value})
    return replace(
        BASE, families={**BASE.families, "attention": family, "mla_attention": family}, multiprocessors=100.0,
        peaks={"bf16": 1e15}, memory=replace(BASE.memory, bytes_per_s=2e12, cache_bytes=50e6),
    )  # fmt: skip


def decode(batch: int, context: int, heads: int = 8, kv_heads: int = 2, dim: int = 128, **dims: float) -> Op:
    return Op.of(
        "attention", "bf16", batch=batch, heads=heads, kv_heads=kv_heads, head_dim=dim, kv=batch * context, **dims
    )  # fmt: skip


def cost(hw: Hardware, op: Op, cache: Cache = "cold") -> Costs:
    return gpu.cost(ops.works([op]), ["attention"], hw, cache=cache)


def test_short_sequences_cost_their_tiles() -> None:
    """500 sequences of 2 KV heads: 1000 tiles, ten turns of 100; each starts and walks one block."""
    one = cost(told(), decode(500, 10))
    assert one.fixed_s[0] == pytest.approx(7e-6 + 10 * 2e-6 + 10 * 1e-6)
    assert one.expected_s[0] == pytest.approx(
        7e-6 + 20e-6 + one.compute_s[0], rel=0.1
    )  # p = 1: start and stream add


def test_prompts_are_none_of_a_kernel_for_decoding() -> None:
    """Above 32 queries the kernel is the prompts' own: tiles of 128 rows, heads alone or not, in parts or not."""
    value = {
        "grouped_rows": 32.0,
        "tile_rows": 32.0,
        "split_turns": 8.0,
        "set_for": 100.0,
        "alone": 3.0,
        "query_s": 1e-6,
    }
    hw, plain = told(**value, per_part_s=9e-6), told(tile_rows=128.0)
    for heads, kv_heads in ((8, 8), (8, 2), (64, 1)):  # alone, shared, more than the first kernel holds
        op = decode(1, 8192, heads, kv_heads, q=96 * 128 // heads)  # one turn
        found, expected = cost(hw, op), cost(plain, op)
        assert found.expected_s[0] == pytest.approx(expected.expected_s[0])
        assert found.expected_s[0] >= found.lower_bound_s[0]
    drafted, more = (cost(hw, decode(1, 4096, q=queries)).fixed_s[0] for queries in (32, 33))
    assert drafted != pytest.approx(more, rel=0.1)


@pytest.mark.parametrize(
    ("queries", "tiles"), [(1, 1), (2, 1), (4, 1), (5, 2), (16, 4), (17, 3), (24, 3), (25, 4), (32, 4)]
)
def test_drafted_tokens_fill_tiles_of_their_own(queries: int, tiles: int) -> None:
    """Four query heads share a KV head: 16 rows, or 32 from 17 queries on; 100 processors, and one sequence in eight parts."""
    value = {
        "grouped_rows": 32.0,
        "tile_rows": 32.0,
        "split_turns": 8.0,
        "set_for": 100.0,
        "block_tokens": 64.0,
    }
    value |= {"per_tile_s": 0.0, "per_block_s": 0.0, "per_split_s": 0.0, "split_s": 0.0, "merge_s": 1e-6}
    found = cost(told(**value), decode(50, 1024, 4, 1, q=50 * queries)).fixed_s[0]
    assert found == pytest.approx(7e-6 + 50 * tiles / 100 * 1e-6)
    for heads, kv_heads in ((8, 8), (64, 1)):  # alone with one query, not with two
        one, two = (cost(told(**value), decode(1, 1024, heads, kv_heads, q=q)) for q in (1, 2))
        assert (one.fixed_s[0] < two.fixed_s[0]) and two.fixed_s[0] > 7e-6


def test_a_wide_head_starts_slower() -> None:
    narrow, wide = (cost(told(), decode(500, 10, dim=d)).fixed_s[0] for d in (64, 256))
    assert wide - narrow == pytest.approx(10 * 2e-6 * 1.5)


def test_long_batches_stream() -> None:
    """64 sequences of 16,384 tokens: 2 KV heads x 256 x 2 bytes each, at half of 2 TB/s."""
    one = cost(told(), decode(64, 16384))
    assert one.memory_s[0] == pytest.approx((64 * 16384 * 2 * 256 * 2 + 64 * 8 * 128 * 4) / 1e12)
    assert one.bound[0] == 0


def test_a_lone_long_sequence_is_cut() -> None:
    """One sequence, one KV head, 19,200 tokens: 100 blocks of 192. Cut in 25 parts, each walks 4 of them."""
    one = cost(told(max_splits=25.0), decode(1, 19200, 4, 1))
    assert one.fixed_s[0] == pytest.approx(7e-6 + 2e-6 + 3e-6 + 25 * 1e-7 + 4e-6)
    # Merging 40 parts would cost more than it saves: sqrt(100 us / 0.1 us) of them are best.
    best = cost(told(max_splits=1000.0), decode(1, 19200, 4, 1))
    assert best.fixed_s[0] == pytest.approx(7e-6 + 2e-6 + 3e-6 + 2 * np.sqrt(100e-6 * 1e-7))
    whole = cost(told(split_s=1e-2), decode(1, 19200, 4, 1))
    assert whole.fixed_s[0] == pytest.approx(7e-6 + 2e-6 + 100e-6)


def test_mla_walks_the_compressed_cache_once_for_64_heads() -> None:
    """128 heads are two tiles of 64; 640 tokens ten blocks of 64; the latent is read once."""
    op = Op.of("mla_attention", "bf16", batch=50, heads=128, kv_lora=512, rope=64, kv=50 * 640)
    one = cost(told(split_s=1e-2, block_tokens=64.0), op)
    assert one.memory_s[0] == pytest.approx((50 * 640 * 576 * 2 + 50 * 128 * (576 + 512) * 2) / 1e12)
    assert one.compute_s[0] == pytest.approx(2 * 128 * 1088 * 50 * 640 / 5e14)
    assert one.fixed_s[0] == pytest.approx(7e-6 + 2e-6 + 10e-6)


def test_prefill_walks_half_of_the_blocks() -> None:
    """1920 tokens of one sequence: 30 tiles of 64 rows and head, 10 blocks, half of them under the mask."""
    one = cost(told(split_s=1e-2), decode(1, 1920, 1, 1, q=1920))
    assert one.fixed_s[0] == pytest.approx(7e-6 + 2e-6 + 5e-6, rel=1e-3)
    assert one.compute_s[0] == pytest.approx(4 * 128 * 1920 * 1921 / 2 / 5e14)


@pytest.mark.parametrize("context", [192, 384])
def test_a_block_begins_a_token_after_the_last_is_full(context: int) -> None:
    at, above = (cost(told(split_s=1e-2), decode(1, c, 4, 1)).fixed_s[0] for c in (context, context + 1))
    assert above - at == pytest.approx(1e-6)


@pytest.mark.parametrize(("context", "blocks"), [(192, 1), (193, 2), (383, 2), (384, 1), (385, 2)])
def test_a_window_walks_the_blocks_that_it_touches(context: int, blocks: int) -> None:
    """A window of 192 tokens, as many as a block has."""
    op = decode(1, 192, 4, 1, window=192).with_dims(context=context)
    found = cost(told(split_s=1e-2), op).fixed_s[0]
    assert found == pytest.approx(7e-6 + 2e-6 + blocks * 1e-6)


def test_an_odd_head_is_padded() -> None:
    assert cost(told(), decode(1, 10, dim=192)).fixed_s[0] > 5e-6 + cost(told(), decode(1, 10)).fixed_s[0]


def test_memory_gives_nothing_of_what_a_warm_cache_holds_and_serving_knows_none() -> None:
    hw, small, big = told(), decode(16, 1024), decode(64, 16384)
    assert cost(hw, small, "warm").memory_s[0] == 0.0 < cost(hw, small).memory_s[0]
    assert cost(hw, big, "warm").memory_s[0] == pytest.approx(cost(hw, big, "cold").memory_s[0])


@pytest.mark.parametrize(
    ("kernel", "start"),
    [
        ({}, "per_tile_s"),
        ({"triton": 2.0, "most_parts": 1.0}, "per_part_s"),
        ({"flash3": 2.0, "most_parts": 1.0}, "per_tile_s"),
    ],
)
def test_no_call_waits_for_results_yet_memory_writes_them(kernel: dict[str, float], start: str) -> None:
    """655 MB of queries, as many of results and 82 MB of keys and values: where nothing else takes time a call takes what
    memory needs for all of them; what starts take beside that hides the results."""
    none = dict.fromkeys(("t0_s", "per_tile_s", "per_block_s", "split_s", "per_split_s"), 0.0)
    hw, op = told(**none, set_for=100.0, **kernel), decode(40_000, 1, 64, 4)
    bytes_s = 40_000 * (2 * 64 * 256 + 2048) / 1e12
    assert cost(hw, op, "warm").expected_s[0] == cost(hw, op).expected_s[0] == pytest.approx(bytes_s)
    slow = told(**{**none, start: 1e-6}, set_for=100.0, **kernel)
    waited = cost(slow, op).expected_s[0] - cost(slow, op, "warm").expected_s[0]
    assert waited == pytest.approx(40_000 * 64 * 256 / 1e12)


def test_blocks_of_a_kernel_that_waits_for_each_come_sooner_from_a_cache() -> None:
    """16 sequences of 2 KV heads: no cut, six blocks of 192."""
    hw, op = told(cached=0.5, split_s=1e-2), decode(16, 1152)
    cold, warm = (cost(hw, op, c).fixed_s[0] for c in ("cold", "warm"))
    assert cold - warm == pytest.approx(6 * 0.5e-6)


def test_the_first_block_hides_behind_nothing() -> None:
    """Streaming 16,384 tokens of 64 sequences takes longer than all walks, and a block comes before it."""
    op = decode(64, 16384)
    without, with_one = (cost(told(per_block_s=b), op) for b in (0.0, 1e-6))
    assert with_one.expected_s[0] - without.expected_s[0] == pytest.approx(1e-6, rel=0.2)


def test_until_memory_streams() -> None:
    """All of it where more is read than stays in the cache; of less, its share; nothing of what a warm cache holds."""
    big, small = decode(64, 16384), decode(16, 1024)
    plain, late = told(), told(ramp_s=4e-6)
    nbytes = cost(plain, small).memory_s[0] * 1e12
    for op, cache, share in (
        (big, "warm", 1.0),
        (big, "cold", 1.0),
        (small, "cold", nbytes / (0.6 * 50e6)),
        (small, "warm", 0.0),
    ):
        more = cost(late, op, cache).fixed_s[0] - cost(plain, op, cache).fixed_s[0]
        assert more == pytest.approx(4e-6 * share)


@pytest.mark.parametrize(("dim", "share"), [(64, 4.0), (96, 16 / 9), (128, 1.0), (256, 0.25)])
def test_a_narrow_head_under_a_window_takes_longer(dim: int, share: float) -> None:
    """500 sequences of 2 KV heads: ten turns."""
    op = decode(500, 100, dim=dim, window=100)
    plain, more = (cost(told(window_s=w), op).fixed_s[0] for w in (0.0, 2e-6))
    assert more - plain == pytest.approx(10 * 2e-6 * share)


@pytest.mark.parametrize(("heads", "cut"), [(1, False), (2, True)])
def test_a_kernel_that_never_cuts_heads_that_are_alone(heads: int, cut: bool) -> None:
    """One sequence of one KV head, 19,200 tokens: 100 blocks."""
    hw = told(grouped_rows=32.0, alone_whole=1.0)
    one = cost(hw, decode(1, 19200, heads, 1)).fixed_s[0]
    assert one < 30e-6 if cut else one == pytest.approx(7e-6 + 2e-6 + 100e-6)


@pytest.mark.parametrize(("queries", "cut"), [(1, True), (2, False), (4, False)])
def test_a_kernel_that_cuts_only_sequences_of_one_query(queries: int, cut: bool) -> None:
    """One sequence of 19,200 tokens, 100 blocks, whatever they share; nothing is turned round."""
    op = decode(1, 19200, 2, 1, q=queries)
    one = cost(told(grouped_rows=32.0, alone_whole=1.0), op).fixed_s[0]
    assert one < 30e-6 if cut else one == pytest.approx(7e-6 + 2e-6 + 100e-6, rel=0.05)
    assert cost(told(grouped_rows=32.0), op).fixed_s[0] < 30e-6  # another kernel
    several = decode(2, 10, 8, 2, q=2 * queries)
    turned, plain = (cost(told(alone_whole=1.0, turn_s=s), several).expected_s[0] for s in (6e-6, 0.0))
    assert turned - plain == pytest.approx(6e-6 * cut, abs=1e-12)


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "turned"),
    [(1, 8, 2, False), (2, 8, 2, True), (2, 2, 2, False), (2, 4, 1, False)],
)
def test_queries_are_turned_round_for_several_sequences_and_shared_heads(
    batch: int, heads: int, kv_heads: int, turned: bool
) -> None:
    hw, plain = (told(grouped_rows=32.0, alone_whole=1.0, turn_s=s) for s in (6e-6, 0.0))
    op = decode(batch, 10, heads, kv_heads)
    assert cost(hw, op).expected_s[0] - cost(plain, op).expected_s[0] == pytest.approx(6e-6 * turned)
    other = told(grouped_rows=32.0, turn_s=6e-6)
    assert cost(other, op).expected_s[0] == cost(plain, op).expected_s[0]


def test_a_block_that_is_told_takes_the_place_of_a_fitted_one_and_is_half_arithmetic_elsewhere() -> None:
    op = decode(1, 100, 4, 1)
    assert cost(told(block_s=3e-6), op).fixed_s[0] - cost(told(), op).fixed_s[0] == pytest.approx(2e-6)
    one, twice = Pace(1e9, 1e12), Pace(1e9, 2e12)
    moved = told(block_s=3e-6).families["attention"].at_pace(one, twice).value
    assert (moved["block_s"], moved["per_block_s"]) == pytest.approx((2.25e-6, 1e-6))


def test_query_heads_that_share_a_kv_head_cost_their_rows() -> None:
    """1000 tiles over 100 processors, ten of each processor's; 32 rows of width 128 each."""
    some, many = (cost(told(per_row_s=r), decode(500, 10, 64, 2)).fixed_s[0] for r in (0.0, 1e-8))
    assert many - some == pytest.approx(10 * 32 * 1e-8)


def test_a_wider_head_has_fewer_tokens_in_a_block() -> None:
    """320 tokens are five blocks of 64, as many as a block of 128 has in a head half as wide, no more than 160 though."""
    hw = told(split_s=1e-2, per_tile_s=0.0, block_tokens=64.0)
    blocks = [round((cost(hw, decode(1, 320, 4, 1, d)).fixed_s[0] - 7e-6) / 1e-6) for d in (32, 64, 128, 256)]
    assert blocks == [2, 3, 5, 10]
    assert (
        cost(told(split_s=1e-2), decode(1, 193, 4, 1, 64)).fixed_s[0]
        > cost(told(split_s=1e-2), decode(1, 192, 4, 1, 64)).fixed_s[0]
    )


@pytest.mark.parametrize(("heads", "alone"), [(1, True), (2, False), (32, False), (33, True), (64, True)])
def test_heads_that_do_not_share_or_are_too_many_take_the_other_kernel(heads: int, alone: bool) -> None:
    """100 sequences of one KV head: one turn of tiles, or one for each query head at a quarter of the time."""
    hw = told(grouped_rows=32.0, alone=0.25, split_s=1e-2)
    start_s = heads * (2e-6 + 1e-6) * 0.25 if alone else 3e-6
    assert cost(hw, decode(100, 10, heads, 1)).fixed_s[0] == pytest.approx(7e-6 + start_s, rel=1e-3)


@pytest.mark.parametrize(
    ("batch", "context", "alone"), [(32, 128, True), (33, 128, False), (17, 256, False), (16, 383, True)]
)
def test_below_so_many_tiles_and_parts_each_query_head_is_alone(
    batch: int, context: int, alone: bool
) -> None:
    """One KV head: a tile for each sequence and part of 128 tokens of it, 33 at least; else the four heads are alone."""
    value = {"grouped_rows": 32.0, "split_s": 1e-2, "set_for": 100.0, "alone_s": 5e-4}
    one, other = (
        cost(told(grouped_tiles=n, **value), decode(batch, context, 4, 1)).fixed_s[0] for n in (33.0, 0.0)
    )
    assert (one - other > 1e-4) == alone


CUTS = {"split_turns": 8.0, "per_part_s": 4e-6, "block_tokens": 64.0, "per_tile_s": 0.0, "grouped_rows": 32.0}
CUTS |= {"set_for": 100.0}


def test_a_kernel_that_cuts_whatever_it_costs_starts_each_part_anew() -> None:
    """100 tiles on 100 processors; 4 parts of 128 tokens, two blocks of 64 each, in four turns; then a merge."""
    one = cost(told(**CUTS), decode(50, 512))
    assert one.fixed_s[0] == pytest.approx(7e-6 + 3e-6 + 4 * 1e-7 + 4 * 4e-6 + 4 * 2 * 1e-6)
    # Eight turns are full with 800 tiles, which are not cut and merge nothing: eight times the tiles, far less than eight
    # times the time.
    many = cost(told(**CUTS), decode(400, 512))
    assert many.fixed_s[0] == pytest.approx(7e-6 + 8 * 4e-6 + 8 * 8 * 1e-6)
    # Of 128 parts no more than the root of eight times as many: 32, of eight blocks each.
    long = cost(told(**CUTS), decode(1, 128 * 128))
    assert long.fixed_s[0] == pytest.approx(7e-6 + 3e-6 + 32 * 1e-7 + 4e-6 + 8 * 1e-6)


@pytest.mark.parametrize("tokens", [256, 384])
def test_a_part_begins_with_its_last_token(tokens: int) -> None:
    before, at = (cost(told(**CUTS), decode(50, c)).fixed_s[0] for c in (tokens - 1, tokens))
    assert at - before > 3e-6


@pytest.mark.parametrize("skips", [0.0, 1.0])
def test_parts_that_lie_beyond_a_window_start_too_and_are_passed_over(skips: float) -> None:
    """A window of 128 tokens lies in the last of four parts of two blocks each. Merging takes half as long of the others, or
    nothing where they end at once: then they hold their place for a tenth of the time, 30 of 100 beside 100."""
    cut, hw = decode(50, 128, window=128), told(**CUTS, skips=skips)
    inside, beyond = (cost(hw, op).fixed_s[0] for op in (cut, cut.with_dims(context=512)))
    started, merged = (4, 1 + 3 / 2) if not skips else (2, 1)
    assert beyond - inside == pytest.approx(3e-6 + merged * 1e-7 + (started - 1) * 4e-6)
    assert cost(told(), cut).fixed_s[0] == cost(told(), cut.with_dims(context=512)).fixed_s[0]


@pytest.mark.parametrize(
    ("tiles", "dim", "heads", "turns"),
    [(300, 128, 2, 1), (301, 128, 2, 2), (400, 64, 2, 1), (401, 64, 2, 2), (400, 65, 2, 2), (400, 64, 16, 1),
     (300, 64, 17, 1), (301, 64, 17, 2), (200, 128, 32, 1), (201, 128, 32, 2)],
)  # fmt: skip
def test_parts_of_narrow_heads_and_of_fewer_rows_start_more_at_once(
    tiles: int, dim: int, heads: int, turns: int
) -> None:
    op = decode(tiles, 100, heads, 1, dim)
    one = cost(told(**CUTS, at_once=3.0, narrow_at_once=4.0), op).fixed_s[0]
    free = cost(told(**{**CUTS, "per_part_s": 0.0}, at_once=3.0, narrow_at_once=4.0), op).fixed_s[0]
    assert one - free == pytest.approx(turns * 4e-6)


def test_parts_that_a_window_begins_in_walk_what_is_in_it() -> None:
    """400 tiles in two parts of 16.5 blocks, a window of 17: 412 whole parts in five turns, where both walked eight."""
    cut = decode(200, 1056, window=1056).with_dims(context=2080)
    inside = 17 / 16.5
    assert cost(told(**CUTS), cut).fixed_s[0] == pytest.approx(
        7e-6 + 3e-6 + (inside + (2 - inside) / 2) * 1e-7 + 8 * 4e-6 + 5 * 16.5e-6
    )


@pytest.mark.parametrize(("group", "more"), [(2, 0), (16, 0), (17, 1), (32, 1)])
def test_tiles_of_parts_are_filled_to_sixteen_rows(group: int, more: int) -> None:
    """Two turns of heads 64 wide."""
    op = decode(200, 100, group, 1, 64)
    one, other = (cost(told(**CUTS, several_s=v), op).fixed_s[0] for v in (0.0, 2e-6))
    assert other - one == pytest.approx(2 * more * 1e-6)


def test_parts_that_start_anew_come_after_a_kernel_of_their_own() -> None:
    for heads, more in ((4, 1), (1, 0)):
        one, other = (
            cost(told(**CUTS, shared_s=v), decode(200, 100, heads, 1)).fixed_s[0] for v in (0.0, 2e-6)
        )
        assert other - one == pytest.approx(more * 2e-6)


def test_parts_are_walked_while_memory_gives_others() -> None:
    """The longer of the two, not their sum: 600 tiles that are not cut take six turns of seven blocks."""
    op, value = decode(600, 400, 4, 1), {**CUTS, "per_block_s": 1e-5}
    serial_s, memory_s = 6 * (4e-6 + 7 * 1e-5), cost(told(**value), op).memory_s[0]
    assert 1e-5 < memory_s < serial_s
    found = cost(told(**value), op).expected_s[0]
    assert found == pytest.approx(7e-6 + (serial_s**8 + memory_s**8) ** 0.125, rel=1e-3)


@pytest.mark.parametrize(("tiles", "parts"), [(100, 7), (114, 7), (115, 6), (400, 2), (401, 1)])
def test_parts_are_whole_and_fill_eight_turns_at_most(tiles: int, parts: int) -> None:
    """Seven parts of 128 tokens, two blocks each; 100 processors."""
    turns, merge_s = np.ceil(tiles * parts / 100), (3e-6 + parts * 1e-7) * (parts > 1)
    found = cost(told(**CUTS), decode(tiles, 7 * 128, 2, 1)).fixed_s[0]
    assert found == pytest.approx(7e-6 + merge_s + turns * (4e-6 + 14 / parts * 1e-6))


@pytest.mark.parametrize(
    ("batch", "dim", "tiles"), [(50, 128, 1.0), (50, 64, 0.5), (25, 128, 0.5), (400, 128, 0.0)]
)
def test_processors_wait_for_merges_as_often_as_they_have_sequences(
    batch: int, dim: int, tiles: float
) -> None:
    """Two KV heads; 800 tiles fill eight turns, are not cut and merge nothing."""
    without, merging = (
        cost(told(**CUTS, merge_s=s), decode(batch, 512, dim=dim)).fixed_s[0] for s in (0.0, 1e-6)
    )
    assert merging - without == pytest.approx(tiles * 1e-6)


ALONE = {
    "grouped_rows": 32.0,
    "grouped_tiles": 25.0,
    "set_for": 100.0,
    "least_s": 2e-6,
    "block_tokens": 128.0,
    "alone_split_s": 3e-6,
    "split_s": 1.0,
}


@pytest.mark.parametrize(
    ("tiles", "context", "turns", "walks", "tokens"),
    [(100, 511, 1, 1, 511), (100, 100, 1, 1, 100), (101, 100, 1, 1, 200), (200, 100, 1, 1, 200), (201, 100, 2, 1.5, 200),
     (300, 100, 2, 1.5, 200), (301, 100, 2, 2, 200), (399, 100, 2, 2, 200), (400, 100, 1, 1, 400), (401, 100, 2, 1.25, 400)],
)  # fmt: skip
def test_a_head_alone_has_a_thread_block_of_as_many_threads_as_fill_a_processor(
    tiles: int, context: int, turns: int, walks: float, tokens: int
) -> None:
    """100 processors: one tile each up to 100 tiles, two below 400, then four; a token takes 1 us / 128. Those of a last turn
    walk as fast as they are few."""
    found = cost(told(**ALONE, eta_bw=1e3), decode(tiles, context, 1, 1))
    assert found.fixed_s[0] == pytest.approx(7e-6 + turns * 2e-6 + walks * max(2e-6, tokens * 1e-6 / 128))


@pytest.mark.parametrize(
    ("tiles", "context", "parts", "turns"),
    [(25, 511, 1, 1), (25, 512, 2, 1), (25, 1024, 3, 1), (51, 512, 2, 2), (99, 512, 2, 2), (100, 512, 1, 1)],
)  # fmt: skip
def test_few_heads_alone_are_cut_by_512_tokens_though_their_parts_take_another_turn(
    tiles: int, context: int, parts: int, turns: int
) -> None:
    found = cost(told(**ALONE, eta_bw=1e3), decode(tiles, context, 1, 1))
    walk_s = max(2e-6, context / parts * 1e-6 / 128)
    assert found.fixed_s[0] == pytest.approx(7e-6 + turns * (2e-6 + walk_s + 3e-6 * (parts > 1)))


@pytest.mark.parametrize(
    ("tiles", "dim", "share"),
    [(100, 64, 0.5), (101, 64, 1.0), (100, 128, 1.0), (100, 256, 1.0)],
)
def test_most_threads_add_up_narrow_heads_sooner(tiles: int, dim: int, share: float) -> None:
    """What a tile takes at least, and its start and end: by the width, up to 128, of each of the tiles on a processor."""
    value = {**ALONE, "least_s": 9e-5, "tile_wide_s": 1e-6}
    found = cost(told(**value, eta_bw=1e3), decode(tiles, 500, 1, 1, dim)).fixed_s[0]
    assert found == pytest.approx(7e-6 + 2e-6 + share * (9e-5 + 1e-6))


def test_tiles_of_heads_alone_start_before_memory_streams_and_walk_beside_it() -> None:
    """800 tiles of 2,048 tokens, 840 MB: two turns that start in 2 us each and walk 64 us, shorter than memory takes."""
    found = cost(told(**ALONE), decode(800, 2048, 1, 1))
    assert found.memory_s[0] > 800e-6
    assert found.expected_s[0] == pytest.approx(7e-6 + 2 * 2e-6 + found.memory_s[0], rel=1e-6)


def test_values_of_heads_alone_come_from_the_cache_while_the_keys_under_way_fit() -> None:
    """400 tiles at once: keys of 128 tokens are 13 MB, of 1,024 tokens 105 MB, of 50 MB that the cache holds."""
    short, long = decode(4000, 128, 1, 1), decode(4000, 1024, 1, 1)
    for op, share in ((short, 0.5), (long, 1.0)):
        one, whole = (cost(told(**ALONE, fetched=f), op, "warm").memory_s[0] for f in (0.5, 1.0))
        assert one == pytest.approx(whole * share)
        assert cost(told(**ALONE, fetched=0.5), op).memory_s[0] == cost(told(**ALONE), op).memory_s[0]


def test_what_a_benchmark_did_not_fetch_is_fetched_in_serving() -> None:
    hw, whole, op = told(fetched=0.5), told(), decode(64, 16384)
    assert cost(hw, op, "warm").memory_s[0] == pytest.approx(cost(whole, op, "warm").memory_s[0] / 2)
    assert cost(hw, op).memory_s[0] == cost(whole, op).memory_s[0]


# A kernel that cuts every sequence: even blocks of 32 tokens, eight parts at most.
EVERY = {
    "most_parts": 8.0, "split_turns": 1.0, "even_blocks": 1.0, "block_tokens": 32.0, "per_tile_s": 0.0,
    "grouped_rows": 1000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "context", "parts", "blocks"), [(1, 512, 8, 2), (1, 96, 3, 1), (25, 256, 2, 4)]
)
def test_a_kernel_that_cuts_every_sequence(batch: int, context: int, parts: int, blocks: int) -> None:
    """Eight parts, no more than blocks of 32, nor than fill a turn of 100 processors: two of 50 tiles."""
    one = cost(told(**EVERY), decode(batch, context))
    most = min(8, -(-context // 32))
    turns = max(1.0, 2 * batch * parts / 100)
    assert one.fixed_s[0] == pytest.approx(7e-6 + most * 1e-7 + turns * blocks * 1e-6)


# Kernels that deal blocks out to 100 processors: FlashMLA, each sequence after another; FlashAttention-3, in even parts.
DEALT = {
    **EVERY,
    "whole_tiles": 100.0,
    "most_parts": 100.0,
    "split_s": 0.0,
    "per_split_s": 1e-7,
}
IN_TURN, IN_PARTS = (
    {**DEALT, "start_blocks": 5.0},
    {**DEALT, "whole_blocks": 4.0, "whole_tiles": 90.0, "split_turns": 0.9, "merged_rows": 8.0},
)


@pytest.mark.parametrize(
    ("batch", "blocks", "parts", "walked"),
    [
        (20, 16, 2, 9),  # 40 x 21 blocks: 8.4 each
        (35, 16, 2, 15),
        (36, 16, 1, 16),  # 15.1 each, rounded up
        (1, 1, 1, 1),
        (1, 2, 2, 1),
        (3, 95, 16, 6),  # 6 each: exactly
        (3, 96, 14, 7),
        # 11 each, five of them for starts: what ends a sequence has room for one block of the next, then for two, ...
        (25, 16, (2 + 3 + 3 + 3 + 3 + 2 + 2 + 3) / 8, 11),
        (1, 17, 17, 1),
    ],
)
def test_blocks_dealt_out_in_turn_leave_sequences_whole(
    batch: int, blocks: int, parts: float, walked: int
) -> None:
    """Two tiles a sequence, 32 tokens a block, five more blocks for a start."""
    one = cost(told(**IN_TURN), decode(batch, blocks * 32)).fixed_s[0]
    assert one == pytest.approx(7e-6 + parts * 1e-7 * (parts > 1) + walked * 1e-6)


@pytest.mark.parametrize(
    ("batch", "blocks", "walked"),
    [
        (20, 16, 8),  # 7.1 each: two parts of eight, not of eight and eight less
        (30, 16, 8),
        (45, 16, 16),
        (44, 16, 16),
        (42, 16, 8),
        (1, 4, 4),  # too short to be cut
        (1, 5, 2),
        (1, 20, 2),  # in 0.85 of the parts that would use most processors
    ],
)
def test_blocks_dealt_out_in_parts_of_one_length(batch: int, blocks: int, walked: int) -> None:
    """Two tiles a sequence of 32-token blocks; a tenth of the processors is spare."""
    merged = -(-blocks // walked) * 1e-7 if blocks > 4 and walked < blocks else 0.0
    one = cost(told(**IN_PARTS), decode(batch, blocks * 32)).fixed_s[0]
    assert one == pytest.approx(7e-6 + merged + walked * 1e-6)


@pytest.mark.parametrize("kernel", [IN_TURN, IN_PARTS])
@pytest.mark.parametrize("step", [-1e-4, -1e-6, 1e-6, 1e-4])
def test_what_a_processor_walks_follows_how_many_there_are(kernel: dict[str, float], step: float) -> None:
    """1 to 49 sequences, whose tiles fill no turn, of 1 to 40 blocks: no share steps where it is a whole number of these."""
    works = ops.works([decode(batch, blocks * 32) for batch in range(1, 50) for blocks in range(1, 41)])
    hw = told(**kernel)
    near = replace(hw, multiprocessors=100.0 * (1.0 + step))
    before, after = (gpu.cost(works, ["attention"], m).fixed_s for m in (hw, near))
    assert np.all((after - before) * step <= 0.0) and np.any(after != before)
    assert after == pytest.approx(before, rel=2.0 * abs(step))


def test_parts_that_are_dealt_take_room_in_the_cache() -> None:
    """16 sequences of 64 blocks x 32 tokens, 33.5 MB of keys and values: 8 heads x 128 x 4 bytes of each part beside them, half
    of which goes to memory as far as the others come from it."""
    op = decode(16, 2048)
    dealt, whole = told(**IN_TURN), told(**{**DEALT, "most_parts": 1.0, "whole_tiles": 0.0})
    some, none = (cost(hw, op, "warm").memory_s[0] for hw in (dealt, whole))
    assert 0.0 < none < some
    parts = -(-64 // -(-32 * 69 // 100))
    left, rest = 16 * parts * 8 * 128 * 4, 16 * (2048 * 1024 + 2 * 8 * 256)
    more_far = 1 + left / (rest - 0.6 * 50e6)
    assert some / none == pytest.approx(more_far * (rest + left / 2) / rest)
    cold = cost(dealt, op).memory_s[0] - cost(whole, op).memory_s[0]
    assert cold == pytest.approx(left / 2 / (0.5 * 2e12))


@pytest.mark.parametrize(
    ("batch", "context", "rows", "tiles"),
    [
        (8, 32, 8, 16),  # as many tiles as load at once
        (9, 32, 8, 18),
        (32, 32, 8, 64),
        (32, 24, 0, 64),  # rows that load while a tile starts
        (32, 25, 1, 64),
        (32, 64, 8, 64),  # of the first block alone
        (20, 512, 8, 80),  # in two parts of eight blocks
    ],
)
def test_what_tiles_load_first_comes_later_the_more_of_them_there_are(
    batch: int, context: int, rows: int, tiles: int
) -> None:
    """Two KV heads of 16 query heads each, blocks of 32 tokens: rows beyond 40, tiles and parts beyond 16."""
    op = decode(batch, context, 32)
    without, crowded = (cost(told(**IN_PARTS, crowd_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert crowded - without == pytest.approx(1e-6 * rows / 40 * np.log2(tiles / 16))
    assert cost(told(**EVERY, crowd_s=1e-6), op).fixed_s[0] == cost(told(**EVERY), op).fixed_s[0]


@pytest.mark.parametrize(("context", "later"), [(32, 0.0), (33, 1.0), (64, 1.0), (128, 1.0), (512, 1.0)])
def test_further_blocks_run_code_that_the_first_did_not(context: int, later: float) -> None:
    op = decode(45, context)
    without, more = (cost(told(**IN_PARTS, later_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert more - without == pytest.approx(later * 1e-6)
    assert cost(told(**EVERY, later_s=1e-6), op).fixed_s[0] == cost(told(**EVERY), op).fixed_s[0]


def test_a_merge_waits_and_reads() -> None:
    for kernel in (IN_PARTS, IN_TURN):
        wait, both = (cost(told(**kernel, partial_s=p), decode(20, 512)).fixed_s[0] for p in (0.0, 1e-8))
        assert both - wait == pytest.approx(20 * 2 * 8 * 128 * 4 / 100 * 1e-8)


@pytest.mark.parametrize(("batch", "blocks", "tiles"), [(45, 16, 2), (20, 16, 2), (20, 5, 2), (20, 4, 0)])
def test_eight_rows_are_merged_whether_cut_or_not(batch: int, blocks: int, tiles: int) -> None:
    """Sixteen heads; sequences of up to four blocks are known to be whole, 45 of 16 blocks are not cut either."""
    op = decode(batch, blocks * 32, 16)
    without, merging = (cost(told(**IN_PARTS, merge_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert merging - without == pytest.approx(batch * tiles * 1e-8)
    other = (cost(told(**IN_TURN, merge_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert next(other) == next(other)


@pytest.mark.parametrize(("queries", "merged"), [(39 * 64, True), (40 * 64, False)])
def test_queries_that_fill_the_processors_merge_nothing(queries: int, merged: bool) -> None:
    """Eight heads, four of a KV head, tiles of 64 rows: 79.2 of them fill the processors, two KV heads have 78 or 80."""
    op = decode(1, 10_000, q=queries // 4)
    without, merging = (cost(told(**IN_PARTS, merge_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert (merging > without) == merged


@pytest.mark.parametrize(
    ("heads", "blocks", "held"),
    [(8, 32, 0), (16, 32, 0), (2, 32, 32), (6, 37, 32), (6, 38, 64), (12, 75, 64), (12, 76, 128), (6, 4, 0)],
)
def test_rows_that_a_merge_lacks_walk_all_parts_it_could_hold(heads: int, blocks: int, held: int) -> None:
    """0.85 of the blocks could be parts, of which 32, 64 or 128 are held; those of two blocks, which other rows walk too, are.
    One sequence's empty rows have processors enough."""
    op = decode(1, blocks * 32, heads, 1)
    kernel = {**IN_PARTS, "most_parts": 128.0, "per_split_s": 0.0}
    without, idle = (cost(told(**kernel, idle_s=s), op).fixed_s[0] for s in (0.0, 1e-6))
    assert idle - without == pytest.approx((held - -(-blocks // 2) * (held > 0)) * 1e-6, rel=1e-3)


def test_empty_rows_of_many_sequences_share_processors() -> None:
    kernel = {**IN_PARTS, "per_split_s": 0.0}
    full, few = (
        cost(told(**kernel, idle_s=1e-6), decode(40, 512, h, 1)).fixed_s[0]
        - cost(told(**kernel), decode(40, 512, h, 1)).fixed_s[0]
        for h in (8, 2)
    )
    assert full == 0.0 and few == pytest.approx(30e-6 * (1 + (40 * 6 / 100) ** 3) ** (1 / 3))


@pytest.mark.parametrize(("context", "share"), [(1, 31 / 32), (31, 1 / 32), (32, 0.0), (33, 31 / 32)])
def test_an_empty_part_of_the_last_block_is_cleared(context: int, share: float) -> None:
    plain, more = (cost(told(**EVERY, empty_s=e), decode(1, context)).fixed_s[0] for e in (0.0, 2e-6))
    assert more - plain == pytest.approx(2e-6 * share)
    one, other = (cost(told(**IN_PARTS, empty_s=e), decode(1, context)).fixed_s[0] for e in (0.0, 2e-6))
    assert one == other  # FlashAttention-3 clears none


def test_of_a_prompts_tiles_those_of_the_last_block_clear_it() -> None:
    """250 queries of 250 tokens, two blocks of 192: 134 rows are empty, and the tiles of 192 in 250 queries reach them."""
    plain, more = (cost(told(empty_s=e), decode(1, 250, q=250)).fixed_s[0] for e in (0.0, 2e-6))
    assert more - plain == pytest.approx(2e-6 * 134 / 192 * 192 / 250)


def test_kernels_run_beside_the_host_that_launches_them_one_by_one() -> None:
    """300 us of the host; 3 us of kernels, then 100 turns of 3 us."""
    hw = told(eager=1.0, t0_s=3e-4, split_s=1e-2, eta_flops=1.0, eta_bw=1.0)
    few, as_many = (cost(hw, decode(b, 10)).expected_s[0] for b in (50, 5000))
    assert few == pytest.approx(3e-4) and 3e-4 * 2 ** (1 / 8) <= as_many < 3.5e-4
    graph = told(t0_s=3e-4, split_s=1e-2, eta_flops=1.0, eta_bw=1.0)
    assert cost(graph, decode(50, 10)).expected_s[0] == pytest.approx(3e-4 + 3e-6, rel=2e-3)


def test_rows_cost_where_no_other_tile_hides_them() -> None:
    """32 rows of one sequence's tile; of 500 sequences' 1000 tiles ten turns of them, and a look at each sequence."""
    for batch, turns in ((1, 1), (500, 10)):
        op = decode(batch, 10, 64, 2)
        plain = cost(told(split_s=1e-2), op).fixed_s[0]
        rows = cost(told(split_s=1e-2, tile_row_s=2e-8), op).fixed_s[0]
        look = cost(told(split_s=1e-2, per_sequence_s=3e-8), op).fixed_s[0]
        assert (rows - plain, look - plain) == pytest.approx((turns * 32 * 2e-8, batch * 3e-8))


def test_even_blocks_cost_more_where_wider() -> None:
    hw = told(**EVERY, per_wide_s=5e-7)
    narrow, wide = (cost(hw, decode(1, 32, dim=d)).fixed_s[0] for d in (128, 256))
    assert wide - narrow == pytest.approx(5e-7)


@pytest.mark.parametrize(("batch", "walks"), [(50, 1.0), (100, 1.3), (150, 2.3), (200, 2.6)])
def test_tiles_beside_each_other_share_a_walk(batch: int, walks: float) -> None:
    """100, 200, 300 and 400 tiles on 100 processors, two of them at once in 1.3 of one's time; starts stay apart."""
    hw = told(at_once=2.0, beside=0.3, split_s=1e-2)
    assert cost(hw, decode(batch, 10)).fixed_s[0] == pytest.approx(7e-6 + batch / 50 * 2e-6 + walks * 1e-6)
    one = told(at_once=1.0, beside=0.3, split_s=1e-2)
    assert cost(one, decode(batch, 10)).fixed_s[0] == pytest.approx(7e-6 + batch / 50 * 3e-6)


def test_what_parts_leave_is_merged_by_its_bytes() -> None:
    """Eight heads x 128 x 4 bytes of each part, over 100 processors."""
    plain, merged = (cost(told(**EVERY, partial_s=p), decode(1, 512)).fixed_s[0] for p in (0.0, 1e-8))
    assert merged - plain == pytest.approx(8 * 8 * 128 * 4 / 100 * 1e-8)
    cut = told(max_splits=25.0, per_split_s=0.0, partial_s=1e-9)
    one = cost(cut, decode(1, 19200, 4, 1)).fixed_s[0]
    assert one == pytest.approx(7e-6 + 2e-6 + 3e-6 + 4e-6 + 25 * 4 * 128 * 4 / 100 * 1e-9)


def test_a_cache_of_another_type_is_converted_first() -> None:
    """And then read as its copy, twice as large."""
    op = Op.of("mla_attention", "bf16", batch=50, heads=128, kv_lora=512, rope=64, kv=50 * 640)
    nbytes = 50 * 640 * 576 * 2
    plain, more = (cost(told(recasts=r, recast_s=4e-10), op) for r in (0.0, 1.0))
    assert more.fixed_s[0] - plain.fixed_s[0] == pytest.approx(nbytes / 100 * 4e-10)
    assert more.memory_s[0] - plain.memory_s[0] == pytest.approx(nbytes / 1e12)
    least = cost(told(recasts=1.0, recast_s=4e-10, recast_least_s=1e-3), op).fixed_s[0] - plain.fixed_s[0]
    assert least == pytest.approx((1e-3**3 + (nbytes / 100 * 4e-10) ** 3) ** (1 / 3))
    assert cost(told(recast_least_s=1e-3), op).fixed_s[0] == plain.fixed_s[0]


def test_values_of_mla_over_two_tiles() -> None:
    op = Op.of("mla_attention", "bf16", batch=100, heads=8, kv_lora=512, rope=64, kv=100 * 64)
    one, two = (cost(told(value_tiles=v, block_tokens=64.0, split_s=1e-2), op).fixed_s[0] for v in (1.0, 2.0))
    assert two - one == pytest.approx(2e-6 + 1e-6)


@pytest.mark.parametrize(("heads", "alone"), [(2, True), (4, False)])
def test_a_head_alone_has_its_own_floor(heads: int, alone: bool) -> None:
    """Two KV heads."""
    plain, floor = (
        cost(told(grouped_rows=32.0, alone_s=s), decode(1, 10, heads, 2)).fixed_s[0] for s in (0.0, 3e-6)
    )
    assert floor - plain == pytest.approx(3e-6 * alone)


# Every term of the form at work, for what must hold whatever the coefficients.
ALL = {"per_row_s": 1e-8, "grouped_rows": 32.0, "alone": 0.3, "fetched": 0.5}
ALL |= {"ramp_s": 3e-6, "window_s": 1e-6, "cached": 0.8}
ALL |= {"at_once": 2.0, "beside": 0.3, "partial_s": 1e-10, "alone_s": 1e-6, "recasts": 1.0, "recast_s": 4e-10}
ALL |= {"recast_least_s": 1e-6, "later_s": 5e-7, "crowd_s": 3e-7}
FLASH3 = {
    "flash3": 2.0, "set_for": 100.0, "tile_wide_s": 1e-6, "several_s": 1e-6, "narrow_s": 2e-6, "merge_s": 2e-7,
    "write_s": 5e-11, "tile_row_s": 2e-8, "per_sequence_s": 1e-8, "per_wide_s": 5e-7,
}  # fmt: skip
KERNELS = st.sampled_from([
    ALL,
    {**ALL, "alone_whole": 1.0, "turn_s": 6e-6, "grouped_rows": 1020.0, "block_s": 1.5e-6},
    {**ALL, "grouped_tiles": 33.0, "split_turns": 8.0, "per_part_s": 3e-6, "at_once": 8.0, "beside": 0.02, "set_for": 100.0,
     "several_s": 1e-6, "shared_s": 1e-6},
    {**ALL, "grouped_tiles": 25.0, "split_turns": 8.0, "set_for": 100.0, "even_blocks": 1.0, "least_s": 2e-6,
     "tile_wide_s": 2e-6, "alone_split_s": 4e-6, "several_s": 1e-6,
     "query_s": 1e-7, "at_once": 3.0, "beside": 0.3},
    {**ALL, **EVERY, "per_tile_s": 2e-6, "per_wide_s": 5e-7, "beside": 0.02},
    {**ALL, **EVERY, "most_parts": 4.0, "split_turns": 1000.0, "beside": 1.0},
    {**ALL, **EVERY, "most_parts": 4.0, "split_turns": 1000.0, "eager": 1.0, "t0_s": 3e-4},
    {**ALL, **IN_TURN, "tile_row_s": 2e-8, "per_sequence_s": 1e-8, "empty_s": 2e-6, "per_tile_s": 2e-6},
    {**ALL, **IN_PARTS, "split_s": 3e-6, "tile_row_s": 2e-8, "per_sequence_s": 3e-8, "per_tile_s": 2e-6,
     "idle_s": 5e-8, "merge_s": 5e-7},
    {**ALL, "triton": 2.0, "most_parts": 8.0, "set_for": 100.0, "per_part_s": 2e-7, "per_wide_s": 5e-7, "alone": 3.0,
     "alone_beside": 0.4, "prompt_flops": 0.5},
    {**ALL, **FLASH3, "most_parts": 32.0}, {**ALL, **FLASH3, "most_parts": 128.0, "whole_blocks": 4.0, "writes": 1.0},
])  # fmt: skip

attentions = st.builds(
    lambda b, c, g, k, d: decode(b, c, g * k, k, d),
    st.integers(1, 512), st.integers(1, 100_000), st.sampled_from([1, 4, 16, 128]), st.sampled_from([1, 2, 8]),
    st.sampled_from([64, 128, 192, 256, 512]),
)  # fmt: skip


@given(attentions, KERNELS, st.floats(1, 8), st.sampled_from(["memory", "peak", "processors", "cache"]))
def test_never_slower_with_more_of_a_resource(
    op: Op, kernel: dict[str, float], more: float, what: str
) -> None:
    hw = told(**kernel)
    faster = {
        "memory": replace(hw, memory=replace(hw.memory, bytes_per_s=hw.memory.bytes_per_s * more)),
        "cache": replace(hw, memory=replace(hw.memory, cache_bytes=hw.memory.cache_bytes * more)),
        "peak": replace(hw, peaks={"bf16": 1e15 * more}),
        "processors": replace(hw, multiprocessors=hw.multiprocessors * more),
    }[what]
    for cache in ("cold", "warm"):
        assert cost(faster, op, cache).expected_s[0] <= cost(hw, op, cache).expected_s[0] * (1 + 1e-12)


@given(attentions, KERNELS, st.floats(-1e-4, 1e-4), st.sampled_from(["warm", "cold"]))
def test_continuous_and_nowhere_steep_in_the_machine(
    op: Op, kernel: dict[str, float], step: float, cache: Cache
) -> None:
    """Turns of the processors fill within 0.15 of one, and a few of these multiply."""
    hw = told(**kernel)
    near = replace(
        hw, multiprocessors=hw.multiprocessors * (1 + step),
        memory=replace(hw.memory, cache_bytes=50e6 * (1 + step), bytes_per_s=2e12 * (1 + step)),
    )  # fmt: skip
    before, after = (cost(m, op, cache).expected_s[0] for m in (hw, near))
    assert after == pytest.approx(before, rel=50 * abs(step) + 1e-9)


@given(attentions, KERNELS)
def test_twice_the_rates_halve_their_parts_and_leave_the_rest(op: Op, kernel: dict[str, float]) -> None:
    hw = told(**kernel)
    twice = replace(hw, memory=replace(hw.memory, bytes_per_s=4e12), peaks={"bf16": 2e15})
    one, two = cost(hw, op), cost(twice, op)
    assert two.memory_s[0] == one.memory_s[0] / 2 and two.compute_s[0] == one.compute_s[0] / 2
    assert two.fixed_s[0] == one.fixed_s[0]
    total = one.memory_s[0] + one.compute_s[0] + one.fixed_s[0]
    assert one.lower_bound_s[0] <= one.expected_s[0] <= total * (1 + 1e-12)


@pytest.mark.parametrize(
    ("batch", "context", "measured"),
    [(16, 4096, 97.9e-6), (128, 64, 36.2e-6), (1, 128, 9.8e-6), (64, 1024, 102.9e-6)],
)
def test_near_what_was_measured_on_h100(batch: int, context: int, measured: float) -> None:
    """NVIDIA AIConfigurator public performance tables (Apache-2.0): vLLM 0.19, FlashAttention-3, 32 heads, 8 KV heads."""
    works = ops.works([decode(batch, context, 32, 8)])
    found = gpu.cost(works, ["attention"], BASE, engine="vllm", cache="warm")
    assert found.expected_s[0] == pytest.approx(measured, rel=0.25)
    assert np.isfinite(found.error[0])
