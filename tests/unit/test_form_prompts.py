"""Attention of prompts: hand-worked tiles, pairs and turns, and speeds that the kernel's authors published."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moetrace import ops
from moetrace.hardware import load_hardware
from moetrace.machines import gpu
from moetrace.machines.forms import FORMS, prompts
from moetrace.machines.forms.base import Setting
from moetrace.op import Costs, Op
from moetrace.validate.figure import shipped
from moetrace.validate.sources import kernels
from tests.unit.test_form_attention import cost, told


def prompt(
    tokens: int, heads: int = 8, kv_heads: int = 8, sequences: int = 1, dim: int = 128, **dims: float
) -> Op:
    rows = sequences * tokens
    return Op.of(
        "attention", "bf16", batch=sequences, heads=heads, kv_heads=kv_heads, head_dim=dim, kv=rows, q=rows, **dims
    )  # fmt: skip


def walked(op: Op) -> prompts.Walks:
    return prompts.walks(ops.works([op]), 128.0, 128.0)


def test_tiles_under_a_causal_mask_walk_the_blocks_up_to_their_last_query() -> None:
    """Four tiles a head walk one, two, three and four blocks: 2.5 in the mean."""
    walk = walked(prompt(512))
    assert walk.count[0] == 32
    assert walk.longest[0] == 4
    assert walk.blocks[0] == pytest.approx(2.5, rel=0.002)
    assert walk.pairs[0] == pytest.approx(32 * 128 * 2.5 * 128, rel=0.002)


def test_without_a_mask_they_walk_all() -> None:
    assert walked(prompt(512, pairs=512 * 512)).blocks[0] == 4


def test_heads_that_share_keys_fill_a_tile_together() -> None:
    """Of eight heads 16 queries fill a tile, which walk the blocks up to the last of these."""
    walk = walked(prompt(512, heads=8, kv_heads=1))
    assert walk.count[0] == 32
    assert walk.blocks[0] == pytest.approx(2.5, rel=0.01)


def test_a_window_bounds_the_longest_tile() -> None:
    assert walked(prompt(8192)).longest[0] == 64
    assert walked(prompt(8192, window=1024)).longest[0] == 10


def test_matrix_units_and_exponentials_take_turns() -> None:
    """All processors busy: FLOPs of whole tiles at the share of the peak, an exponential for each of their pairs."""
    hw = replace(load_hardware("h100-sxm"), multiprocessors=100.0, clock_hz=2e9)
    walk = walked(prompt(16384))
    matrix_s, special_s = prompts.busy(walk, Setting(hw, np.full(1, 1e15)), 1.0, 0.5, 100.0)
    assert matrix_s[0] == pytest.approx(512 * walk.pairs[0] / 0.5e15)
    assert special_s[0] == pytest.approx(walk.pairs[0] / (16 * 100 * 2e9))


def test_the_longest_tile_ends_last() -> None:
    """Two tiles of a head on a hundred processors: the second walks both blocks, and nothing is faster than that."""
    hw = replace(load_hardware("h100-sxm"), multiprocessors=100.0, clock_hz=2e9)
    matrix_s, _ = prompts.busy(
        walked(prompt(256, heads=1, kv_heads=1)), Setting(hw, np.full(1, 1e15)), 1.0, 1.0, 100.0
    )
    assert matrix_s[0] == pytest.approx(512 * 128 * 256 / 1e13)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "sglang_triton", "trtllm"])
@pytest.mark.parametrize("machine", ["h100-sxm", "a100-sxm"])
def test_a_few_queries_do_not_walk_the_context_once_for_each_tile_of_decoding(
    machine: str, engine: str
) -> None:
    """8 x 16 rows took SGLang's Triton five times as long as 8 x 64: they were decoding's tiles of 16 rows up to 128."""
    op = [prompt(q, heads=64, sequences=16).with_dims(kv=16 * 8192) for q in (4, 8, 16, 32)]
    found = gpu.cost(ops.works(op), ["attention"], load_hardware(machine), engine=engine).expected_s
    assert all(more > 0.6 * less for less, more in itertools.pairwise(found))


@pytest.mark.parametrize("engine", ["any", "vllm", "sglang", "sglang_triton", "trtllm"])
@pytest.mark.parametrize("machine", ["h100-sxm", "a100-sxm"])
def test_more_processors_never_take_longer(machine: str, engine: str) -> None:
    """Few tiles of one peak: by the processors at hand, half of its own for each of twice as many, they took up to nine times
    as long."""
    hw, works = load_hardware(machine), ops.works([prompt(640, heads, 1) for heads in (1, 4)])

    def seconds(processors: float) -> np.ndarray:
        return gpu.cost(
            works, ["attention"], replace(hw, multiprocessors=processors), engine=engine
        ).expected_s

    found = [seconds(processors) for processors in (80.0, 108.0, 132.0, 133.0, 264.0, 1500.0)]
    assert all(np.all(more <= less * (1 + 1e-12)) for less, more in itertools.pairwise(found))


def test_a_kernel_without_a_share_for_prompts_prices_them_as_decoding() -> None:
    op = prompt(4096)
    assert cost(told(), op).expected_s[0] != cost(told(prompt_flops=0.9), op).expected_s[0]
    few = prompt(4, sequences=8)  # fills no tile: decoding
    assert cost(told(), few).expected_s[0] == cost(told(prompt_flops=0.9), few).expected_s[0]


# Width of heads, and whether a causal mask is on; of heads 256 wide there is one panel.
PANELS = ((64, False), (64, True), (128, False), (128, True), (256, True))


def published(width: int, causal: bool) -> tuple[list[Op], np.ndarray]:
    """(the ops of the published speeds of FlashAttention-3, the seconds that these say); arXiv 2407.08608, figure 5."""
    told = [f for f in shipped() if f.kind == "FA3" and f" {width} wide" in f.other_knob]
    told = [f for f in told if ("causal" in f.other_knob) == causal]
    found = [kernels.prompt_of(f) for f in told]
    pairs = [
        op["q"] * float(f.input_len) * (0.5 if causal else 1.0) for op, f in zip(found, told, strict=True)
    ]
    flops = [4 * n * op["heads"] * width for n, op in zip(pairs, found, strict=True)]
    seconds = [n / (float(f.value) * 1e12) for n, f in zip(flops, told, strict=True)]
    assert len(found) == 6
    return found, np.array(seconds)


def priced(found: list[Op], engine: str) -> Costs:
    return gpu.cost(ops.works(found), ["attention"], load_hardware("h100-sxm"), engine=engine, cache="warm")


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize(("width", "causal"), PANELS)
def test_published_speeds_of_flashattention_3(width: int, causal: bool, engine: str) -> None:
    """Nothing was fitted to them. Heads 256 wide are up to a fifth too fast, and many short prompts of them too slow: the law
    launches a merge that a batch of one length does not."""
    found, seconds = published(width, causal)
    off = np.abs(seconds / priced(found, engine).expected_s - 1.0)
    assert max(off[2:]) < (0.3 if width == 256 else 0.13)
    if width < 256:
        assert max(off) < 0.25


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_intervals_of_prompts_hold_four_fifths_of_the_published_speeds(engine: str) -> None:
    """Decoding's own interval held thirteen of the thirty."""
    held = 0
    for width, causal in PANELS:
        found, seconds = published(width, causal)
        costs = priced(found, engine)
        held += int((np.abs(np.log(costs.expected_s / seconds)) <= np.log1p(costs.error)).sum())
    assert 23 <= held <= 25


def test_decoding_has_no_further_error() -> None:
    assert told_further("h100-sxm", "sglang", prompt(1, sequences=64)) == 0
    assert told_further("h100-sxm", "sglang", prompt(4096)) == prompts.FURTHER
    assert told_further("h100-sxm", "trtllm", prompt(1, sequences=64)) == 0
    assert told_further("h100-sxm", "trtllm", prompt(4096)) == prompts.FURTHER_OTHERS


def told_further(machine: str, engine: str, op: Op) -> float:
    hw, works = load_hardware(machine), ops.works([op])
    family = hw.family("attention", "attention", "bf16", engine)[1]
    parts = FORMS[family.form].seconds(family.value, works, Setting(hw, np.full(1, hw.peak("bf16"))))
    assert parts.further is not None
    return float(parts.further[0])
