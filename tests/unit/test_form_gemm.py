"""The form of GEMMs: hand-worked times, its steps at their edges, and what it must never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.hardware import Hardware, load_hardware
from moetrace.machines import gpu
from moetrace.machines.forms.tiles import waves
from moetrace.op import Costs, Op

BASE = load_hardware("h100-sxm")
TOLD = {
    "t0_s": 3e-6, "eta_bw": 0.5, "eta_flops": 0.5, "per_k_s": 1e-9, "per_k_row_s": 1e-11, "split_s": 4e-6,
    "misaligned_s": 1e-6, "blend": 2.0,
}  # fmt: skip


def told(**value: float) -> Hardware:
    """A machine of 100 processors, 2 TB/s and 1 PFLOP/s with these coefficients for its GEMMs."""
    family = replace(BASE.families["dense_gemm"], form="gemm", value={**TOLD, **value})
    return replace(
        BASE, families={**BASE.families, "dense_gemm": family}, multiprocessors=100.0, peaks={"bf16": 1e15},
        memory=replace(BASE.memory, bytes_per_s=2e12),
    )  # fmt: skip


def cost(hw: Hardware, m: float, n: float, k: float, **dims: float) -> Costs:
    return gpu.cost(ops.works([Op.of("gemm", m=m, n=n, k=k, **dims)]), ["dense_gemm"], hw)


def seconds(hw: Hardware, m: float, n: float, k: float, **dims: float) -> float:
    return float(cost(hw, m, n, k, **dims).expected_s[0])


def test_a_gemm_by_hand() -> None:
    """32 x 4096 by 4096 x 4096: tiles of 16 rows x 128, 2 x 32 of them, less than one turn of 2 x 100."""
    one = cost(told(), 32, 4096, 4096)
    memory = (4096 * 4096 + 2 * 32 * 4096) * 2 / 1e12
    compute = 2 * 32 * 4096 * 4096 / 5e14
    serial, shared = 4096 * (1e-9 + 1e-11 * 16), 0.64 * 4096 * (1e-9 + 1e-11 * 16)
    assert serial - shared < 4e-6  # sharing its loop out does not pay
    assert one.memory_s[0] == pytest.approx(memory) and one.compute_s[0] == pytest.approx(compute)
    assert one.fixed_s[0] == pytest.approx(3e-6 + serial)
    assert one.expected_s[0] == pytest.approx(3e-6 + np.sqrt(memory**2 + compute**2 + serial**2))


def test_a_long_reduction_over_few_outputs_is_shared_out() -> None:
    """One tile of 65,536 k: alone 76 us, over 100 processors 0.76 us and what the sharing costs."""
    whole = 65536 * (1e-9 + 1e-11 * 16)
    assert cost(told(), 16, 128, 65536).fixed_s[0] == pytest.approx(3e-6 + 4e-6 + whole / 100)
    assert cost(told(split_s=1e-2), 16, 128, 65536).fixed_s[0] == pytest.approx(3e-6 + whole)


def test_a_batch_of_gemms_has_that_many_tiles() -> None:
    hw = told(split_s=1e-2)
    one, many = (cost(hw, 16, 128, 4096, b=b).fixed_s[0] - 3e-6 for b in (1, 1000))
    assert many == pytest.approx(one * 5)  # 1000 tiles, two at a time on 100 processors


@pytest.mark.parametrize("rows", [32, 64, 128])
def test_the_tile_doubles_where_half_the_rows_pass_a_power_of_two(rows: int) -> None:
    """32 rows are two tiles of 16, 33 two of 32, up to 128 rows a tile: the serial loop grows with the tile."""
    hw = told(split_s=1e-2, misaligned_s=0.0)
    below, at, above = (cost(hw, m, 128, 8192).fixed_s[0] - 3e-6 for m in (rows - 1, rows, rows + 1))
    assert below == at == pytest.approx(8192 * (1e-9 + 1e-11 * rows / 2))
    assert above == pytest.approx(8192 * (1e-9 + 1e-11 * rows))


def test_rows_that_four_does_not_divide_cost_more() -> None:
    hw = told()
    assert seconds(hw, 8, 1024, 512) < seconds(hw, 9, 1024, 512)
    assert cost(hw, 9, 1024, 512).fixed_s[0] - cost(hw, 8, 1024, 512).fixed_s[0] == pytest.approx(1e-6)


def test_one_more_tile_than_processors_begins_a_turn() -> None:
    """200 tiles fill 100 processors two by two; the next turn fills over a short ramp, so that no machine is an edge."""
    assert waves(np.array([0.01, 1.0, 1.15, 1.5, 2.0, 2.075])).tolist() == pytest.approx([1, 1, 2, 2, 2, 2.5])


@given(st.floats(0, 100), st.floats(0, 100))
def test_turns_never_fall_as_tiles_grow(a: float, b: float) -> None:
    low, high = sorted((a, b))
    one, two = waves(np.array([low, high]))
    assert 1 <= one <= two and two <= high + 1


gemms = st.tuples(st.integers(1, 4096), st.integers(1, 70000), st.integers(1, 70000))


@given(gemms, st.floats(1, 8), st.sampled_from(["memory", "peak", "processors"]))
def test_never_slower_with_more_of_a_resource(shape: tuple[int, int, int], more: float, what: str) -> None:
    hw = told()
    faster = {
        "memory": replace(hw, memory=replace(hw.memory, bytes_per_s=hw.memory.bytes_per_s * more)),
        "peak": replace(hw, peaks={"bf16": 1e15 * more}),
        "processors": replace(hw, multiprocessors=hw.multiprocessors * more),
    }[what]
    assert seconds(faster, *shape) <= seconds(hw, *shape) * (1 + 1e-12)


@given(gemms, st.floats(1e-9, 1e-4))
def test_continuous_in_processors(shape: tuple[int, int, int], step: float) -> None:
    hw = told()
    near = replace(hw, multiprocessors=hw.multiprocessors * (1 + step))
    assert seconds(near, *shape) == pytest.approx(seconds(hw, *shape), rel=100 * step)


@given(gemms)
def test_twice_the_rates_halve_their_parts_and_leave_the_rest(shape: tuple[int, int, int]) -> None:
    hw = told()
    twice = replace(hw, memory=replace(hw.memory, bytes_per_s=4e12), peaks={"bf16": 2e15})
    one, two = cost(hw, *shape), cost(twice, *shape)
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
    ],
)
def test_near_what_was_measured_on_h100(
    engine: str, dtype: str, m: int, n: int, k: int, measured: float
) -> None:
    """NVIDIA AIConfigurator public performance tables (Apache-2.0): vLLM 0.19 on H100 SXM."""
    works = ops.works([Op.of("gemm", dtype, m=m, n=n, k=k)])
    found = gpu.cost(works, ["dense_gemm"], BASE, engine=engine)
    assert found.expected_s[0] == pytest.approx(measured, rel=0.2)
