"""FlashAttention-3's own scheduling: hand-worked parts, turns and merges, each step at its edge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.hardware import Hardware
from moetrace.machines.forms import Cache
from moetrace.op import Op
from tests.unit.test_form_attention import cost, decode, told

# Of 100 processors: told parts by the engine (at most 32), or the kernel's choice above four blocks.
NONE = {
    "per_tile_s": 0.0,
    "per_block_s": 0.0,
    "split_s": 0.0,
    "per_split_s": 0.0,
    "odd_head_s": 0.0,
    "t0_s": 0.0,
}
TOLD32 = {**NONE, "flash3": 2.0, "set_for": 100.0, "most_parts": 32.0}
CHOSEN = {**TOLD32, "most_parts": 128.0, "whole_blocks": 4.0}


def fixed(kernel: dict[str, float], op: Op, **value: float) -> float:
    return float(cost(told(**{**kernel, **value}), op).fixed_s[0])


def blocks(kernel: dict[str, float], op: Op) -> float:
    """Blocks that the processor with most of them walks, one part after another."""
    return fixed(kernel, op, per_block_s=1e-6) / 1e-6


@pytest.mark.parametrize(
    ("kernel", "context", "walked"),
    [
        (TOLD32, 128, 1), (TOLD32, 129, 1), (TOLD32, 32 * 128, 1), (TOLD32, 32 * 128 + 1, 2),
        (CHOSEN, 512, 4), (CHOSEN, 513, 1),
        (CHOSEN, 7 * 128, 2),  # 0.85 of seven blocks, rounded up: six parts
    ],
)  # fmt: skip
def test_one_sequence_is_cut_by_what_limits_it(kernel: dict[str, float], context: int, walked: int) -> None:
    assert blocks(kernel, decode(1, context, 8, 1)) == pytest.approx(walked)


@pytest.mark.parametrize(
    ("batch", "walked"), [(33, 4), (36, 8), (37, 5), (50, 5), (51, 10), (100, 10), (101, 20)]
)
def test_a_processor_takes_its_share_and_a_tenth(batch: int, walked: int) -> None:
    """Ten blocks a sequence: up to 36 sequences a share is four blocks, three parts of 4, 3 and 3, more than a turn from 34
    on; then five, two parts, up to 50 in a turn."""
    assert blocks(TOLD32, decode(batch, 1280, 8, 1)) == pytest.approx(walked)


@pytest.mark.parametrize(
    ("dim", "kv_dtype", "heads", "tokens"),
    [(64, 2.0, 8, 192), (64, 2.0, 65, 160), (128, 2.0, 64, 128), (128, 2.0, 65, 128), (192, 2.0, 8, 96), (256, 2.0, 8, 80),
     (64, 1.0, 8, 128), (128, 1.0, 64, 96), (128, 1.0, 65, 160), (192, 1.0, 8, 160), (256, 1.0, 8, 128)],
)  # fmt: skip
def test_a_block_begins_a_token_after_the_last_is_full(
    dim: int, kv_dtype: float, heads: int, tokens: int
) -> None:
    whole = {**TOLD32, "most_parts": 1.0, "flash3": kv_dtype}
    assert blocks(whole, decode(1, 3 * tokens, heads, 1, dim)) == pytest.approx(3)
    assert blocks(whole, decode(1, 3 * tokens + 1, heads, 1, dim)) == pytest.approx(4)


@pytest.mark.parametrize(
    ("heads", "dim", "merged"), [(7, 128, 32), (8, 128, 2), (9, 128, 32), (8, 64, 32), (16, 64, 2), (24, 64, 32), (8, 256, 2)]
)  # fmt: skip
def test_a_merge_that_is_not_full_goes_through_all_the_parts_it_has_room_for(
    heads: int, dim: int, merged: int
) -> None:
    op = decode(1, 150 if dim == 256 else 193, heads, 1, dim)  # two blocks
    assert fixed(TOLD32, op, per_split_s=1e-6, idle_s=1e-6) == pytest.approx(merged * 1e-6)
    assert fixed(TOLD32, op, per_split_s=1e-6) == pytest.approx(2e-6)


@pytest.mark.parametrize(
    ("dim", "blocks", "room"), [(128, 37, 32), (128, 38, 64), (128, 76, 128), (64, 18, 16), (64, 19, 32)]
)
def test_room_is_the_limit_up_to_a_power_of_two(dim: int, blocks: int, room: int) -> None:
    """0.85 of 37 blocks are 32 parts, of 38 are 33."""
    op = decode(1, blocks * (192 if dim == 64 else 128), 1, 1, dim)
    assert fixed(CHOSEN, op, per_split_s=1e-6, idle_s=1e-6) == pytest.approx(room * 1e-6)


@pytest.mark.parametrize(("context", "walked"), [(1024, 1), (1025, 2), (1151, 2), (1152, 1)])
def test_a_window_walks_the_blocks_that_it_touches(context: int, walked: int) -> None:
    op = Op.of(
        "attention", "bf16", batch=1, heads=8, kv_heads=1, head_dim=128, kv=128, window=128, context=context
    )
    assert blocks({**TOLD32, "most_parts": 1.0}, op) == pytest.approx(walked)
    # Cut as all the context would be, each part has one; the merge stops at the last of them.
    assert blocks(TOLD32, op) == pytest.approx(1)
    assert fixed(TOLD32, op, per_split_s=1e-6) == pytest.approx(walked * 1e-6)
    assert fixed(CHOSEN, op, per_split_s=1e-6) == 0.0  # its choice counts the window


@pytest.mark.parametrize(("dim", "cost_of"), [(64, "narrow_s"), (65, "window_s"), (128, "window_s")])
def test_windows_cost_a_tile_more_by_its_width(dim: int, cost_of: str) -> None:
    op = decode(200, 100, 1, 1, dim, window=100)  # two turns
    for name in ("narrow_s", "window_s"):
        assert fixed(TOLD32, op, **{name: 1e-6}) == pytest.approx(2e-6 if name == cost_of else 0.0)
        assert fixed(TOLD32, decode(200, 100, 1, 1, dim), **{name: 1e-6}) == 0.0


@pytest.mark.parametrize(
    ("heads", "dim", "several"), [(64, 128, 0), (65, 128, 1), (64, 64, 0), (65, 64, 1), (1, 192, 1)]
)
def test_more_rows_than_64_take_several_groups_of_warps(heads: int, dim: int, several: int) -> None:
    assert fixed(TOLD32, decode(1, 50, heads, 1, dim), several_s=1e-6) == pytest.approx(several * 1e-6)


@pytest.mark.parametrize(
    ("kv_dtype", "dim", "heads", "tokens", "several"),
    [
        (2.0, 64, 1, 160, 1),
        (1.0, 64, 1, 160, 1),
        (2.0, 128, 64, 128, 0),
        (2.0, 128, 65, 128, 1),
        (1.0, 128, 1, 96, 0),
    ],
)
def test_a_kernel_built_for_192_rows_alone_takes_them_for_one(
    kv_dtype: float, dim: int, heads: int, tokens: int, several: int
) -> None:
    """Of heads up to 64 wide; those up to 128 wide have both kernels."""
    kernel = {**TOLD32, "most_parts": 1.0, "flash3": kv_dtype, "tile_rows": 192.0}
    assert blocks(kernel, decode(1, 3 * tokens, heads, 1, dim)) == pytest.approx(3)
    assert blocks(kernel, decode(1, 3 * tokens + 1, heads, 1, dim)) == pytest.approx(4)
    assert fixed(kernel, decode(1, 50, heads, 1, dim), several_s=1e-6) == pytest.approx(several * 1e-6)


@pytest.mark.parametrize(
    ("writes", "context", "cache", "block"),
    [
        (0.0, 1024, "warm", 0.75), (0.0, 1024, "cold", 1.0), (1.0, 1024, "warm", 0.75), (1.0, 1024, "cold", 1.5),
        (1.0, 6144, "warm", 1.5), (1.0, 4883, "warm", 0.875),  # 40 MB: half from memory
    ],
)  # fmt: skip
def test_blocks_from_memory_take_longer_and_of_single_tokens_a_while_at_least(
    writes: float, context: int, cache: Cache, block: float
) -> None:
    """16 sequences of one KV head, 2 x 256 bytes a token, in a cache of 50 MB; 1 us a block, 0.75 from there."""
    kernel = {
        **TOLD32,
        "most_parts": 1.0,
        "writes": writes,
        "cached": 0.75,
        "least_s": 1.5e-6,
        "per_block_s": 1e-6,
    }
    one = cost(told(**kernel), decode(16, context, 1, 1), cache)
    none = cost(told(**{**kernel, "per_block_s": 0.0, "least_s": 0.0}), decode(16, context, 1, 1), cache)
    assert (one.fixed_s[0] - none.fixed_s[0]) / -(-context // 128) == pytest.approx(block * 1e-6, rel=0.02)


@pytest.mark.parametrize(("kv_dtype", "peak"), [(2.0, 1e15), (1.0, 2e15)])
def test_over_a_cache_of_8_bits_arithmetic_is_of_8_bits(kv_dtype: float, peak: float) -> None:
    """64 rows of one; half of the peak is reached. Never less than the op's own arithmetic at its own peak."""
    hw = told(**{**TOLD32, "flash3": kv_dtype})
    hw = replace(hw, peaks={"bf16": 1e15, "fp8": 2e15})
    for heads, seconds in ((1, 64 / (0.5 * peak)), (64, max(1 / 1e15, 1 / (0.5 * peak)) * 64)):
        found = cost(hw, decode(10, 12_800, heads, 1))
        assert found.compute_s[0] == pytest.approx(4 * 128 * 128_000 * seconds)


def test_a_merge_is_launched_where_parts_might_be_and_costs_the_tiles_that_do_not_wait() -> None:
    """512 sequences of 24 heads: three tiles each, 15.36 on a processor, four of which wait."""
    op = decode(512, 50, 24, 1)
    assert fixed(TOLD32, op, merge_s=1e-7) == pytest.approx(1e-7 * (1536 / 100 - 4))
    assert fixed(TOLD32, decode(400, 50, 8, 1), merge_s=1e-7) == 0.0
    assert fixed(CHOSEN, op, merge_s=1e-7) == 0.0
    assert fixed(CHOSEN, decode(512, 513, 24, 1), merge_s=1e-7) == pytest.approx(1e-7 * (1536 / 100 - 4))


@pytest.mark.parametrize(("tiles", "launched"), [(79, True), (80, False), (90, False)])
def test_no_merge_is_launched_where_tiles_of_a_sequence_fill_most_processors(
    tiles: int, launched: bool
) -> None:
    """0.8 of 100 processors, by prompts whose tiles have 128 rows."""
    op = decode(64, tiles * 128, 1, 1, q=64 * tiles * 128)
    assert (fixed(CHOSEN, op, merge_s=1e-7) > fixed(CHOSEN, op)) is launched


def test_an_engine_that_stores_keys_and_values_first_takes_a_warp_to_a_token() -> None:
    """Eight KV heads 128 wide in 16 bits: 4096 bytes a token, however many."""
    for batch in (1, 64):
        op = decode(batch, 50, 8, 8)
        assert fixed({**TOLD32, "writes": 1.0}, op, write_s=1e-10) == pytest.approx(4096e-10)
        assert fixed(TOLD32, op, write_s=1e-10) == 0.0


@pytest.mark.parametrize(("queries", "walked"), [(4096, 32 / 3), (16384, 128), (65536, 512 * 256.5 / 100)])
def test_prompts_are_cut_by_the_kernels_choice(queries: int, walked: float) -> None:
    """4096 queries of a head are 32 tiles of 128 rows: three parts of each fill the processors, whatever the engine tells of
    decoding, and the last tile's walk ten blocks. 16,384 are 128 tiles, the last of 128 blocks; of 65,536 all processors
    end together. Each block is 128 x 128 exponentials, 16 a cycle."""
    op = decode(1, queries, 1, 1, q=queries)
    for kernel in (TOLD32, CHOSEN):
        clock = told(**kernel).clock_hz or 1.5e9
        assert fixed(kernel, op) * 16 * clock / 128**2 == pytest.approx(walked, rel=0.02)


def test_more_processors_cut_finer_and_fewer_take_more_turns() -> None:
    op, hw = decode(1, 64 * 128, 8, 1), told(**{**TOLD32, "per_block_s": 1e-6})

    def walked(processors: float) -> float:
        machine: Hardware = replace(hw, multiprocessors=processors)
        return float(cost(machine, op).fixed_s[0]) / 1e-6

    assert [walked(p) for p in (16.0, 100.0, 200.0, 800.0)] == pytest.approx([4.0, 2.0, 1.0, 1.0])


def test_what_is_not_cut_gains_of_more_processors_by_turns_alone() -> None:
    """200 sequences of one head are two turns of 100 processors, of 3 blocks each; 90 of ten blocks are cut in two parts. Twice
    the processors save half; those that idle then walk no less."""
    hw = told(**{**TOLD32, "per_block_s": 1e-6})
    for op, of_100 in ((decode(200, 3 * 128, 1, 1), 2 * 3), (decode(90, 10 * 128, 1, 1), 2 * 5)):
        found = [
            float(cost(replace(hw, multiprocessors=p), op).fixed_s[0]) / 1e-6 for p in (100.0, 200.0, 400.0)
        ]
        assert found[0] == pytest.approx(of_100) and found[1] >= of_100 / 2
        assert found[2] <= found[1] and found[2] >= of_100 / 4
    alone = decode(200, 3 * 128, 1, 1)
    for p in (200.0, 400.0):
        assert cost(replace(hw, multiprocessors=p), alone).fixed_s[0] / 1e-6 == pytest.approx(3)
