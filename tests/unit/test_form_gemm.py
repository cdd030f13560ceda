"""The form of GEMMs: hand-worked times, its steps at their edges, and what it must never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.hardware import Hardware, Memory, load_hardware
from moetrace.machines import gpu
from moetrace.machines.forms.tiles import waves
from moetrace.op import Costs, Op

BASE = load_hardware("h100-sxm")
TOLD = {
    "t0_s": 3e-6, "reach_s": 0.0, "eta_bw": 0.5, "eta_flops": 0.5, "per_k_s": 1e-9, "per_k_row_s": 1e-11, "per_tile_s": 2e-6,
    "per_turn_s": 2e-6, "alone": 0.0, "uneven": 0.0, "chosen_for": 0.0, "split_s": 4e-6,
    "split_tile_s": 1e-6, "convert": 2.0, "per_empty_s": 2e-13, "waits": 0.5, "misaligned_s": 1e-6,
    "blend": 2.0, "blend_flops": 3.0, "picks": 1.0, "splits": 1.0,
    "few_rows": 0.0, "few_columns": 0.0, "short_rows": 0.0, "narrow_rows": 0.0, "crowd": 0.0, "per_empty_tile_s": 4e-12,
    "copies": 0.0, "cached": 1.0, "paired_rows": 0.0, "pads": 0.0, "least_rows": 16.0, "half_rows": 0.0, "narrow_columns": 0.0,
}  # fmt: skip
RULE = {
    "picks": 0.0, "splits": 0.0, "few_rows": 16.0, "few_columns": 1280.0, "short_rows": 128.0, "narrow_rows": 64.0,
}  # fmt: skip


def one_tile(k: float, rows: float, columns: float) -> float:
    """Seconds of one tile by the coefficients above."""
    area = rows * columns / 16384
    return 2e-6 * area + k * (1e-9 + 1e-11 * 128 * area)


def walk(turns: float, k: float, rows: float, columns: float, persists: bool = True) -> float:
    """Seconds of so many whole turns: of a further one the root of squares of loop and start, and a quarter of a tile's start
    before all; or their sum."""
    one = one_tile(k, rows, columns)
    loop = one - 2e-6 * rows * columns / 16384
    first, further = (one + 5e-7, np.hypot(2e-6, loop)) if persists else (one, 2e-6 + loop)
    return float(first + (waves(np.array(turns)) - 1) * further)


def told(**value: float) -> Hardware:
    """A machine of 100 processors, 2 TB/s and 1 PFLOP/s with these coefficients for its GEMMs."""
    family = replace(BASE.families["dense_gemm"], form="gemm", value={**TOLD, **value})
    return replace(
        BASE, families={"dense_gemm": family}, multiprocessors=100.0, peaks={"bf16": 1e15, "fp8": 2e15},
        memory=replace(BASE.memory, bytes_per_s=2e12),
    )  # fmt: skip


def cost(hw: Hardware, m: float, n: float, k: float, dtype: str = "bf16", **dims: float) -> Costs:
    return gpu.cost(ops.works([Op.of("gemm", dtype, m=m, n=n, k=k, **dims)]), ["dense_gemm"], hw)


def seconds(hw: Hardware, m: float, n: float, k: float, **dims: float) -> float:
    return float(cost(hw, m, n, k, **dims).expected_s[0])


def test_a_gemm_by_hand() -> None:
    """32 x 4096 by 4096 x 4096: 64 tiles of 32 rows x 64 are less than one turn of 100 processors and take least."""
    one = cost(told(), 32, 4096, 4096)
    memory = (4096 * 4096 + 2 * 32 * 4096) * 2 / 1e12
    compute = 2 * 32 * 4096 * 4096 / 5e14
    serial = one_tile(4096, 32, 64)
    assert serial * 0.36 < 4e-6  # sharing its loop out does not pay
    assert one.memory_s[0] == pytest.approx(memory) and one.compute_s[0] == pytest.approx(compute)
    assert one.fixed_s[0] == pytest.approx(3e-6 + serial)
    delivered, waited = np.hypot(memory, serial), serial / 2
    assert one.expected_s[0] == pytest.approx(
        3e-6 + (delivered**3 + (compute + waited) ** 3 - waited**3) ** (1 / 3)
    )


@pytest.mark.parametrize(("waits", "longer"), [(0.0, 2 ** (1 / 3)), (1.0, 2.0)])
def test_arithmetic_hides_all_of_a_loop_but_what_waits(waits: float, longer: float) -> None:
    """Bytes that take nothing; arithmetic as long as the loops: beside them, or after what it waits for."""
    hw = told(splits=0.0, waits=waits, t0_s=0.0, misaligned_s=0.0)
    fast = replace(hw, memory=replace(hw.memory, bytes_per_s=1e30))
    walk = cost(fast, 64, 4096, 4096).fixed_s[0]
    even = replace(fast, peaks={"bf16": 2 * 64 * 4096 * 4096 / walk / 0.5})
    one = cost(even, 64, 4096, 4096)
    assert one.compute_s[0] == pytest.approx(walk) and one.expected_s[0] == pytest.approx(longer * walk)
    assert cost(fast, 64, 4096, 4096).expected_s[0] > walk
    none = replace(fast, peaks={"bf16": 1e40})
    assert seconds(none, 64, 4096, 4096) == pytest.approx(walk)


def test_a_long_reduction_over_few_outputs_is_shared_out() -> None:
    """One tile of 65,536 k: alone 71 us, over 100 processors 0.71 us and what the sharing and its partial sums cost."""
    whole, area = one_tile(65536, 16, 64), 16 * 64 / 16384
    hw = told(splits=1.0)
    assert cost(hw, 16, 64, 65536).fixed_s[0] == pytest.approx(3e-6 + 4e-6 + whole / 100 + 1e-6 * area)
    assert cost(told(splits=0.0), 16, 64, 65536).fixed_s[0] == pytest.approx(3e-6 + whole)


def test_a_library_takes_the_tile_that_takes_least() -> None:
    """256 x 256 outputs, 128 times: tiles of 64 x 64 fill many turns, one of 128 x 256 each makes it three."""
    hw = told(splits=0.0)
    takes = {
        tile: np.ceil(256 / tile[0]) * np.ceil(256 / tile[1]) * 128 / 100
        for tile in ((64, 64), (64, 128), (128, 128), (128, 256))
    }
    least = min(float(waves(np.array(turns))) * one_tile(512, *tile) for tile, turns in takes.items())
    assert cost(hw, 256, 256, 512, b=128).fixed_s[0] - 3e-6 == pytest.approx(least)


@pytest.mark.parametrize(("least", "m", "rows"), [(16, 1, 16), (16, 17, 32), (64, 1, 64), (64, 64, 64)])
def test_a_tile_that_is_picked_has_as_many_rows_as_the_library_goes_down_to(
    least: float, m: int, rows: int
) -> None:
    hw = told(splits=0.0, least_rows=least, misaligned_s=0.0)
    assert cost(hw, m, 64, 4096).fixed_s[0] - 3e-6 == pytest.approx(one_tile(4096, rows, 64))


def test_deepgemms_largest_blocks_are_slow_in_a_single_turn() -> None:
    """256 x 12288 take 128 blocks of 128 x 192 on 132 processors; 256 x 8192 take 128 of 128 x 128, as ever. 192 and 112
    columns do not divide 128."""
    for n, k, factor in ((12288, 4096, 3.6 * 1.1), (8192, 4096, 1.0), (7168, 4096, 1.1)):
        slow, usual = (
            cost(told(**DEEPGEMM | {"alone": a, "uneven": u}), 256, n, k) for a, u in ((2.6, 0.1), (0.0, 0.0))
        )
        assert slow.fixed_s[0] - 3e-6 == pytest.approx((usual.fixed_s[0] - 3e-6) * factor)
        assert (slow.memory_s[0], slow.compute_s[0]) == (usual.memory_s[0], usual.compute_s[0])


@pytest.mark.parametrize(
    ("m", "n", "rows", "columns"),
    [
        (16, 2048, 16, 64), (17, 1280, 16, 64), (17, 1281, 32, 64), (32, 2048, 32, 64), (33, 2048, 64, 64),
        (65, 4096, 64, 64), (128, 4096, 64, 64), (128, 4097, 64, 128), (129, 4096, 128, 128),
    ],
)  # fmt: skip
def test_tiles_of_32_rows_and_narrow_ones_for_few_columns_step_where_the_rule_says(
    m: int, n: int, rows: int, columns: int
) -> None:
    hw = told(**RULE, half_rows=32.0, narrow_columns=4096.0, misaligned_s=0.0)
    turns = np.ceil(m / rows) * np.ceil(n / columns) / 100
    took = walk(float(turns), 8192, rows, columns, persists=m > 64)
    assert cost(hw, m, n, 8192).fixed_s[0] - 3e-6 == pytest.approx(took)


def test_an_odd_row_of_blocks_reads_the_weights_once_more() -> None:
    """160 x 8192 are three rows of 64 in two turns; 224 are two of 128, 160 x 6144 one turn. Not where a cache holds them."""
    hw = told(**DEEPGEMM)
    for m, n, k, again in (
        (160, 8192, 8192, 1.0),
        (224, 8192, 8192, 0.0),
        (160, 6144, 8192, 0.0),
        (160, 8192, 1024, 0.0),
    ):
        weights, others = 2 * n * k, 2 * m * (n + k)
        one = cost(hw, m, n, k)
        assert one.memory_s[0] * 1e12 == pytest.approx(weights * (1 + again) + others)


def test_a_launch_begins_later_where_its_weights_come_from_memory() -> None:
    """6 x 4 MB lie in 50 MB, 6 x 16 MB do not; nor any in serving."""
    late, usual = (told(copies=6.0, reach_s=reach) for reach in (1e-6, 0.0))
    for n, cache, reach in ((2000, "warm", 0.0), (8000, "warm", 1e-6), (2000, "cold", 1e-6)):
        works = ops.works([Op.of("gemm", "bf16", m=16, n=n, k=1024)])
        one, none = (
            gpu.cost(works, ["dense_gemm"], hw, cache="warm" if cache == "warm" else "cold")
            for hw in (late, usual)
        )
        assert one.expected_s[0] - none.expected_s[0] == pytest.approx(reach)
        assert one.fixed_s[0] - none.fixed_s[0] == pytest.approx(reach)


def test_a_batch_of_gemms_has_that_many_tiles() -> None:
    hw = told(**RULE)
    one, many = (cost(hw, 16, 64, 4096, b=b).fixed_s[0] - 3e-6 for b in (1, 1000))
    assert one == pytest.approx(walk(1, 4096, 16, 64, persists=False))
    assert many == pytest.approx(
        walk(10, 4096, 16, 64, persists=False)
    )  # 1000 tiles, one at a time on 100 processors


@pytest.mark.parametrize(
    ("m", "n", "rows", "columns"),
    [
        (16, 2048, 16, 64), (17, 2048, 64, 64), (17, 1280, 16, 64), (17, 1281, 64, 64), (64, 2048, 64, 64),
        (65, 2048, 64, 128), (65, 1280, 64, 128), (128, 2048, 64, 128), (129, 2048, 128, 128), (4096, 2048, 128, 128),
    ],
)  # fmt: skip
def test_tiles_by_a_rule_step_where_it_says(m: int, n: int, rows: int, columns: int) -> None:
    hw = told(**RULE, misaligned_s=0.0)
    turns = np.ceil(m / rows) * np.ceil(n / columns) / 100
    took = walk(float(turns), 8192, rows, columns, persists=m > 64)
    assert cost(hw, m, n, 8192).fixed_s[0] - 3e-6 == pytest.approx(took)


def test_pairs_of_tiles_begin_where_the_kernel_says() -> None:
    """Of 128 rows each: 257 take four in pairs and three alone; up to 256 and from 385 on it is the same."""
    paired, alone = (told(**RULE, paired_rows=rows, misaligned_s=0.0) for rows in (64.0, 0.0))
    ratios = {
        m: (cost(paired, m, 12800, 8192).fixed_s[0] - 3e-6) / (cost(alone, m, 12800, 8192).fixed_s[0] - 3e-6)
        for m in (64, 128, 256, 257, 384, 385, 512)
    }
    more = walk(4, 8192, 128, 128) / walk(3, 8192, 128, 128)
    assert ratios == pytest.approx({64: 1, 128: 1, 256: 1, 257: more, 384: more, 385: 1, 512: 1})


def test_filling_empty_rows_takes_time_where_tiles_are_many() -> None:
    """129 rows in two tiles of 128: 127 of 256 are empty, of two bytes each. None where 40 tiles run, half of it where 60 do,
    all from 80 on: of one tile, in series, and of all that hold empty rows."""
    hw, never = told(**RULE, crowd=80.0, misaligned_s=0.0), told(**RULE, misaligned_s=0.0)
    for m, tiles, crowding in (
        (129, 20, 0),
        (129, 30, 0.5),
        (129, 40, 1),
        (129, 400, 1),
        (257, 27, 1),
        (256, 40, 0),
    ):
        slow, usual = cost(hw, m, 128 * tiles, 4096), cost(never, m, 128 * tiles, 4096)
        fill = (2e-13 * tiles + 4e-12) * 127 * 4096 * 2 * crowding
        assert slow.fixed_s[0] - usual.fixed_s[0] == pytest.approx(fill, abs=1e-15)
        assert (slow.compute_s[0], slow.memory_s[0]) == (usual.compute_s[0], usual.memory_s[0])
        assert slow.expected_s[0] >= usual.expected_s[0]


def test_activations_in_eight_bits_were_converted_before() -> None:
    """Two passes of two bytes in and one out for each of 1024 x 4096; 16-bit ones are as they come."""
    hw, none = told(), told(convert=0.0)
    more = cost(hw, 1024, 512, 4096, "fp8").expected_s[0] - cost(none, 1024, 512, 4096, "fp8").expected_s[0]
    assert more == pytest.approx(2 * 3 * 1024 * 4096 / 2e12)
    assert seconds(hw, 1024, 512, 4096) == seconds(none, 1024, 512, 4096)


def test_a_further_turns_tiles_have_a_start_and_end_of_their_own() -> None:
    """100 processors: 100 tiles begin once, 300 begin anew twice, beside the loop of another one from 65 rows on."""
    hw = told(**RULE, per_turn_s=5e-7, misaligned_s=0.0)
    loop = one_tile(64, 64, 64) - 2e-6 / 4
    for tiles, took in ((100, 2e-6 / 4 + loop), (300, 2e-6 / 4 + loop + 2 * (5e-7 + loop))):
        assert cost(hw, 64, 64 * tiles, 64).fixed_s[0] - 3e-6 == pytest.approx(took)
    loop = one_tile(64, 64, 128) - 2e-6 / 2
    took = 2e-6 * (1 / 2 + 1 / 4) + loop + 2 * np.hypot(5e-7, loop)
    assert cost(hw, 65, 128 * 150, 64).fixed_s[0] - 3e-6 == pytest.approx(took)


@pytest.mark.parametrize(("chosen_for", "turns"), [(0.0, 1 + 0.01 / 0.15), (100.0, 2.0)])
def test_one_tile_more_than_the_processors_of_a_kernel_is_a_whole_turn(
    chosen_for: float, turns: float
) -> None:
    """101 tiles of 64 x 128 on 100 processors; of a machine that it was not set up for, a little more than one."""
    hw = told(**RULE | {"short_rows": 1e9}, chosen_for=chosen_for)
    one = one_tile(4096, 64, 128)
    took = one + 5e-7 + (turns - 1) * np.hypot(2e-6, one - 1e-6)
    assert cost(hw, 64 * 101, 128, 4096).fixed_s[0] - 3e-6 == pytest.approx(took)


def test_results_are_written_in_16_bits_whatever_was_multiplied() -> None:
    """FP8 weights and activations of one byte, bf16 results of two."""
    wide, narrow = (cost(told(convert=0.0), 1024, 512, 4096, dtype).memory_s[0] for dtype in ("bf16", "fp8"))
    assert wide * 1e12 == pytest.approx(2 * (512 * 4096 + 1024 * 4096 + 1024 * 512))
    assert narrow * 1e12 == pytest.approx(512 * 4096 + 1024 * 4096 + 2 * 1024 * 512)


def test_activations_that_a_warm_cache_holds_beside_the_weights_are_read_from_it() -> None:
    """1792 x 7168 in bf16 are 26 MB of 50, 4096 x 7168 are 59; results are written all the same."""
    for rows, share in ((1792, 0.25), (4096, 1.0)):
        works = ops.works([Op.of("gemm", "bf16", m=rows, n=32, k=7168)])
        warm = gpu.cost(works, ["dense_gemm"], told(copies=5.0, cached=0.25), cache="warm").memory_s[0]
        expected = (
            works["weight_bytes"][0] * 0.25 + works["act_read_bytes"][0] * share + works["act_write_bytes"][0]
        )
        assert warm * 1e12 == pytest.approx(expected)


def test_copies_of_weights_that_fit_a_warm_cache_take_a_share_of_their_time() -> None:
    """5 x 4 MB lie in 50 MB, 5 x 16 MB do not, nor any in serving; of activations those that are read lie there in both."""
    hw = told(copies=5.0, cached=0.25)
    small, large = (ops.works([Op.of("gemm", "bf16", m=16, n=n, k=1024)]) for n in (2000, 8000))
    for works, share in ((small, 0.25), (large, 1.0)):
        warm, cold = (
            gpu.cost(works, ["dense_gemm"], hw, cache=cache).memory_s[0] for cache in ("warm", "cold")
        )
        weights, read, out = (
            works[part][0] / 1e12 for part in ("weight_bytes", "act_read_bytes", "act_write_bytes")
        )
        assert warm == pytest.approx(weights * share + read * 0.25 + out)
        assert cold == pytest.approx(weights + read + out)
        assert gpu.cost(works, ["dense_gemm"], told(), cache="warm").memory_s[0] == cold


def test_all_that_a_call_of_one_copy_moves_lies_in_a_warm_cache_where_it_fits() -> None:
    """64 matrices of 512 x 128: with 256 rows 29 MB of 50, with 512 rows 50; serving's are read and written in memory."""
    hw = told(copies=1.0, cached=0.25)
    for rows, share in ((256, 0.25), (512, 1.0)):
        works = ops.works([Op.of("batched_gemm", "bf16", m=rows, n=512, k=128, b=64)])
        warm, cold = (gpu.cost(works, ["dense_gemm"], hw, cache=c).memory_s[0] for c in ("warm", "cold"))
        assert cold == pytest.approx(works["bytes"][0] / 1e12) and warm == pytest.approx(share * cold)


@given(st.integers(1, 4096), st.integers(1, 128), st.floats(1, 8))
def test_more_memory_bandwidth_or_cache_never_slows_a_warm_one(rows: int, heads: int, more: float) -> None:
    hw = told(copies=1.0, cached=0.25)
    works = ops.works([Op.of("batched_gemm", "bf16", m=rows, n=512, k=128, b=heads)])

    def warm(memory: Memory) -> float:
        machine = replace(hw, memory=memory)
        return float(gpu.cost(works, ["dense_gemm"], machine, cache="warm").expected_s[0])

    one = warm(hw.memory) * (1 + 1e-12)
    assert warm(replace(hw.memory, bytes_per_s=hw.memory.bytes_per_s * more)) <= one
    assert warm(replace(hw.memory, cache_bytes=hw.memory.cache_bytes * more)) <= one


@pytest.mark.parametrize(
    ("machine", "engine", "dtype", "n", "k", "heads", "m", "measured"),
    [
        ("h100-sxm", "sglang", "bf16", 512, 128, 8, 1, 4.0e-6),
        ("h100-sxm", "sglang", "bf16", 128, 512, 64, 256, 7.8e-6),  # results stay in the cache
        ("h100-sxm", "trtllm", "bf16", 512, 128, 64, 512, 22.5e-6),  # and no longer do
        ("h100-sxm", "sglang", "fp8", 128, 512, 64, 512, 68.6e-6),
        ("h100-sxm", "trtllm", "fp8", 128, 512, 2, 16, 6.7e-6),
        ("a100-sxm", "trtllm", "bf16", 512, 128, 2, 16, 6.7e-6),
    ],
)  # fmt: skip
def test_batched_gemms_are_near_what_was_measured(
    machine: str, engine: str, dtype: str, n: int, k: int, heads: int, m: int, measured: float
) -> None:
    """NVIDIA AIConfigurator public performance tables (Apache-2.0): SGLang 0.5.14 and 0.5.10, TensorRT-LLM 1.3.0rc10, 1.0.0."""
    works = ops.works([Op.of("batched_gemm", dtype, m=m, n=n, k=k, b=heads)])
    found = gpu.cost(works, ["dense_gemm"], load_hardware(machine), engine=engine, cache="warm")
    assert found.expected_s[0] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("m", "k", "more"),
    [(8, 512, 0), (9, 512, 1), (1, 512, 1 / 3), (2, 512, 1), (8, 128, 0.5), (8, 129, 0), (9, 128, 1.5)],
)
def test_rows_that_four_does_not_divide_cost_more_and_so_do_reductions_of_one_block(
    m: int, k: int, more: float
) -> None:
    padded, usual = (cost(told(misaligned_s=s), m, 1024, k).fixed_s[0] for s in (1e-6, 0.0))
    assert padded - usual == pytest.approx(more * 1e-6)


@pytest.mark.parametrize(
    ("m", "bytes_moved"), [(160, 0), (161, 2 * 161 * 4096), (163, 2 * 163 * 4096), (164, 0)]
)
def test_rows_that_are_padded_are_copied_as_they_are_converted(m: int, bytes_moved: float) -> None:
    """Twice a byte for each element, in and out, at `convert` over the bandwidth: 2 over 2 TB/s."""
    padded, usual = (cost(told(pads=p, misaligned_s=0.0), m, 1024, 4096, "fp8_block") for p in (1.0, 0.0))
    assert padded.expected_s[0] - usual.expected_s[0] == pytest.approx(bytes_moved * 1e-12, rel=1e-3)


def test_one_more_tile_than_processors_begins_a_turn() -> None:
    """100 tiles fill 100 processors; the next turn fills over a short ramp, so that no machine is an edge."""
    assert waves(np.array([0.01, 1.0, 1.15, 1.5, 2.0, 2.075])).tolist() == pytest.approx([1, 1, 2, 2, 2, 2.5])


@given(st.floats(0, 100), st.floats(0, 100))
def test_turns_never_fall_as_tiles_grow(a: float, b: float) -> None:
    low, high = sorted((a, b))
    one, two = waves(np.array([low, high]))
    assert 1 <= one <= two and two <= high + 1


gemms = st.tuples(st.integers(1, 4096), st.integers(1, 70000), st.integers(1, 70000))
DEEPGEMM = {"picks": 2.0, "chosen_for": 132.0, "splits": 0.0, "alone": 2.6, "uneven": 0.1, "crowd": 40.0}
FORMER = {**DEEPGEMM, "picks": 3.0}
kernels = st.sampled_from([{}, {**RULE, "crowd": 40.0}, DEEPGEMM, FORMER])


@given(kernels, gemms, st.floats(1, 8), st.sampled_from(["memory", "peak", "processors"]))
def test_never_slower_with_more_of_a_resource(
    kernel: dict[str, float], shape: tuple[int, int, int], more: float, what: str
) -> None:
    hw = told(**kernel)
    faster = {
        "memory": replace(hw, memory=replace(hw.memory, bytes_per_s=hw.memory.bytes_per_s * more)),
        "peak": replace(hw, peaks={"bf16": 1e15 * more}),
        "processors": replace(hw, multiprocessors=hw.multiprocessors * more),
    }[what]
    assert seconds(faster, *shape) <= seconds(hw, *shape) * (1 + 1e-12)


@given(kernels, gemms, st.floats(1e-9, 1e-4))
def test_continuous_in_processors(kernel: dict[str, float], shape: tuple[int, int, int], step: float) -> None:
    hw = told(**kernel)
    near = replace(hw, multiprocessors=hw.multiprocessors * (1 + step))
    assert seconds(near, *shape) == pytest.approx(seconds(hw, *shape), rel=100 * step)


@given(kernels, gemms, st.sampled_from(["bf16", "fp8"]))
def test_twice_the_rates_halve_their_parts_and_leave_the_rest(
    kernel: dict[str, float], shape: tuple[int, int, int], dtype: str
) -> None:
    hw = told(**kernel)
    twice = replace(hw, memory=replace(hw.memory, bytes_per_s=4e12), peaks={"bf16": 2e15, "fp8": 4e15})
    one, two = cost(hw, *shape, dtype), cost(twice, *shape, dtype)
    assert one.expected_s[0] <= (one.memory_s + one.compute_s + one.fixed_s)[0] * (1 + 1e-12)
    assert two.memory_s[0] == one.memory_s[0] / 2 and two.compute_s[0] == one.compute_s[0] / 2
    assert two.fixed_s[0] == one.fixed_s[0]
    assert one.lower_bound_s[0] <= one.expected_s[0]


@pytest.mark.parametrize(
    ("engine", "dtype", "m", "n", "k", "measured"),
    [
        ("vllm", "bf16", 16, 4096, 4096, 15.9e-6),  # weights of 33.6 MB, near the memory's rate
        ("vllm", "bf16", 1, 32, 16384, 6.2e-6),  # one tile, its reduction shared out
        ("vllm", "bf16", 128, 12288, 12288, 108.7e-6),
        ("vllm", "fp8_block", 16, 1024, 16384, 51.4e-6),  # no sharing: 2.6 ns per k
        ("vllm", "fp8", 512, 16384, 512, 14.7e-6),  # four turns of tiles that do little but begin and end
        ("vllm", "fp8", 16384, 128, 65536, 1648e-6),  # converting its input takes most of it
        ("trtllm", "fp8_block", 129, 3072, 3072, 19.3e-6),  # 256 rows take 12.0 us
        ("trtllm", "fp8_block", 256, 3072, 3072, 12.0e-6),
    ],
)
def test_near_what_was_measured_on_h100(
    engine: str, dtype: str, m: int, n: int, k: int, measured: float
) -> None:
    """NVIDIA AIConfigurator public performance tables (Apache-2.0): vLLM 0.19 and TensorRT-LLM 1.3.0rc10 on H100 SXM."""
    works = ops.works([Op.of("gemm", dtype, m=m, n=n, k=k)])
    found = gpu.cost(works, ["dense_gemm"], BASE, engine=engine)
    assert found.expected_s[0] == pytest.approx(measured, rel=0.2)
