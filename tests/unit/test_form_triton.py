"""SGLang's Triton kernels: hand-worked parts, turns and last parts of 100 processors, each step at its edge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.op import Op
from tests.unit.test_form_attention import cost, decode, told

NONE = {
    "t0_s": 0.0,
    "per_tile_s": 0.0,
    "per_block_s": 0.0,
    "per_split_s": 0.0,
    "alone_beside": 0.5,
    "beside": 0.5,
}
TOLD = {**NONE, "triton": 2.0, "set_for": 100.0, "most_parts": 8.0}


def fixed(op: Op, **value: float) -> float:
    return float(cost(told(**{**TOLD, **value}), op).fixed_s[0])


@pytest.mark.parametrize(
    ("batch", "context", "parts"),
    [
        (1, 32, 1), (1, 33, 2), (1, 256, 8), (1, 257, 5), (1, 512, 8),  # at most eight, of whole 32 tokens
        (50, 256, 4), (66, 256, 4), (67, 256, 3), (100, 256, 2), (199, 256, 2), (200, 256, 1),  # two fulls
        (100, 255, 2), (100, 512, 3), (100, 1024, 4),  # log2(1024 / 64) fulls
        (64, 512, 4),  # of five, 103 tokens each: 128
    ],
)  # fmt: skip
def test_parts_are_told_before_the_launch(batch: int, context: int, parts: int) -> None:
    assert fixed(decode(batch, context, 4, 1), per_split_s=1e-6) == pytest.approx(parts * 1e-6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tiles"), [(16, 1, 1), (17, 1, 2), (8, 8, 8), (32, 2, 2), (1, 1, 1), (34, 2, 4)]
)
def test_a_tile_is_sixteen_heads_that_share_or_one(heads: int, kv_heads: int, tiles: int) -> None:
    """Every tile starts and ends as many parts as it might have."""
    op = decode(3, 50, heads, kv_heads)
    assert fixed(op, per_part_s=1e-6) == pytest.approx(1e-6 * 8 * 3 * tiles / 100)


@pytest.mark.parametrize(
    ("batch", "dim", "heads", "walks"),
    [
        (100, 256, 4, 1), (101, 256, 4, 1.5), (300, 256, 4, 2), (301, 256, 4, 3),  # three beside each other
        (100, 257, 4, 1), (200, 257, 4, 1.5), (201, 257, 4, 2.5),  # two of wider heads
        (400, 256, 1, 2.5), (401, 256, 1, 3.5), (300, 512, 1, 2), (301, 512, 1, 3),  # one more of heads alone
    ],
)  # fmt: skip
def test_turns_hold_as_many_parts_as_fit(batch: int, dim: int, heads: int, walks: float) -> None:
    """Of one part each; each beside the first adds half."""
    op = decode(batch, 32, heads, 1, dim)
    assert fixed(op, per_tile_s=1e-6) == pytest.approx(walks * 1e-6 * dim / 128)


@pytest.mark.parametrize(
    ("context", "heads", "blocks"), [(513, 4, 3), (512, 4, 2), (512, 1, 1), (513, 1, 2), (1024, 1, 2)]
)
def test_blocks_are_of_32_tokens_and_of_64_of_heads_alone(context: int, heads: int, blocks: int) -> None:
    one_s = 1e-6 if heads > 1 else 3e-6 * 0.5  # 128 wide in 16 bits: half of a warp's lanes
    assert fixed(decode(1, context, heads, 1), per_block_s=1e-6, alone=3.0) == pytest.approx(blocks * one_s)


@pytest.mark.parametrize(
    ("dim", "element", "share"), [(128, 1, 0.25), (256, 1, 0.5), (256, 2, 1), (512, 1, 1), (512, 2, 1)]
)
def test_heads_alone_take_as_many_keys_at_once_as_a_warp_holds(dim: int, element: int, share: float) -> None:
    op = decode(1, 512, 1, 1, dim)
    found = fixed(op, triton=float(element), per_block_s=1e-6, per_wide_s=1e-7, alone=3.0)
    assert found == pytest.approx(3 * 1.2e-6 * share)


@pytest.mark.parametrize(
    ("element", "context", "share"), [(2, 32, 1.0), (2, 16, 0.8), (1, 16, 0.9), (2, 8, 0.7)]
)
def test_tokens_that_are_masked_out_are_not_read(element: int, context: int, share: float) -> None:
    found = fixed(decode(1, context, 4, 1), triton=float(element), per_block_s=1e-6)
    assert found == pytest.approx(share * 1e-6)


@pytest.mark.parametrize(("batch", "walked"), [(134, 2 * 11 + 1.5 * 10), (79, 2 * 6 + 1.5 * 6)])
def test_the_last_turn_is_of_last_parts_which_may_be_shorter(batch: int, walked: float) -> None:
    """1,024 tokens. 134 tiles have three parts, of 11, 11 and 10 blocks: a turn of 300, and 102 last parts. 79 tiles have
    six, of which the last, shorter ones are but a part of the last turn."""
    assert fixed(decode(batch, 1024, 4, 1), per_block_s=1e-6) == pytest.approx(walked * 1e-6)


def test_a_window_is_cut_in_as_many_parts_as_all_the_context() -> None:
    """100 tiles: four parts of 1,024 tokens, eight of 65,536, whose window has 32 blocks."""

    def under(context: int) -> Op:
        return Op.of(
            "attention", "bf16", batch=100, heads=4, kv_heads=1, head_dim=128, kv=102400, window=1024, context=context
        )  # fmt: skip

    assert fixed(under(1024), per_split_s=1e-6) == pytest.approx(4e-6)
    assert fixed(under(65536), per_split_s=1e-6) == pytest.approx(8e-6)
    assert fixed(under(1024), window_s=2e-6) == pytest.approx(2e-6)
    assert fixed(decode(100, 1024, 4, 1), window_s=2e-6) == 0.0


def test_a_merge_waits_for_its_parts_or_for_their_bytes() -> None:
    op = decode(1, 512, 4, 1)
    both = fixed(op, per_split_s=1e-6, partial_s=1e-6)
    left = 4 * 4 * 128 * 8 / 100
    assert both == pytest.approx(((8e-6) ** 4 + (left * 1e-6) ** 4) ** 0.25)


@pytest.mark.parametrize(("megabytes", "share"), [(9, 0.6), (51, 1.0), (30, 0.8)])
def test_blocks_that_lie_in_cache_take_less(megabytes: int, share: float) -> None:
    """Of 50 MB single tokens leave it from a fifth on."""
    op = decode(1, megabytes * 1_000_000 // 512, 4, 1)
    warm, cold = (
        cost(told(**{**TOLD, "per_block_s": 1e-6, "cached": 0.6}), op, cache).fixed_s[0]
        for cache in ("warm", "cold")
    )
    assert warm == pytest.approx(cold * share, rel=1e-3)


def test_more_processors_cut_no_finer() -> None:
    op, hw = decode(25, 256, 4, 1), told(**{**TOLD, "per_block_s": 1e-6, "per_split_s": 1e-7})
    found = [float(cost(replace(hw, multiprocessors=p), op).fixed_s[0]) for p in (50.0, 100.0, 1000.0)]
    assert found[0] > found[1] >= found[2] == pytest.approx(8e-7 + 1e-6)


def test_prompts_have_a_kernel_of_their_own() -> None:
    """Of half the peak, whatever decoding's blocks take."""
    op = decode(1, 4096, 8, 2, q=4096)
    short, long = (fixed(op, prompt_flops=0.5, per_block_s=b) for b in (1e-6, 1e-3))
    assert short == long
    assert cost(told(**TOLD, prompt_flops=0.5), op).compute_s[0] == pytest.approx(
        cost(told(**TOLD, prompt_flops=1.0), op).compute_s[0] * 2
    )
