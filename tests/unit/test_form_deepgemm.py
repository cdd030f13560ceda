"""DeepGEMM's choice of a block, against its rule worked out by hand and at the edges that public measurements show."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.machines.forms import deepgemm


def chosen(
    m: int, n: int, k: int = 7168, batch: int = 1, processors: float = 132.0
) -> tuple[float, float, bool]:
    rows, columns, slow, _ = deepgemm.blocks(*(np.array([float(x)]) for x in (m, n, k, batch)), processors)
    return rows[0], columns[0], bool(slow[0] == 1.0)


def test_a_block_alone_is_slower_the_larger_it_is_beyond_128_x_128() -> None:
    """Measured per outputs at long reductions: 128 x 144 a tenth slower, 160 by half, 192 and 256 x 128 3.4 times."""
    shapes = {(257, 6144): 1 / 64, (512, 5120): 1 / 8, (256, 12288): 1.0, (256, 16384): 1.0, (256, 8192): 0.0}
    for (m, n), slow in shapes.items():
        found = deepgemm.blocks(*(np.array([float(x)]) for x in (m, n, 7168, 1)), 132.0)
        assert found[2][0] == pytest.approx(slow)


@pytest.mark.parametrize(
    ("m", "n", "paired"),
    [
        (160, 8192, True),  # 64 x 96, two turns
        (160, 6144, False),  # 64 x 144, one turn: nothing is shared
        (160, 65536, False),  # 256 x 128: neighbours share the rows
    ],
)
def test_pairs_of_rows_share_columns_that_are_as_many_in_several_turns(m: int, n: int, paired: bool) -> None:
    found = deepgemm.blocks(*(np.array([float(x)]) for x in (m, n, 7168, 1)), 132.0)
    assert bool(found[3][0]) is paired


@pytest.mark.parametrize(
    ("m", "n", "rows", "columns", "alone"),
    [
        # 128 blocks of one turn: 64 columns of 112 wide, narrower ones take a second turn
        (128, 7168, 64, 112, False),
        (256, 8192, 128, 128, False),
        # measured 2.5 times as long as their neighbours: 193 to 256 rows of 12,288, 257 of 8,192, 769 of 3,072 but not of 3,584
        (192, 12288, 64, 144, False), (193, 12288, 128, 192, True), (256, 12288, 128, 192, True), (257, 12288, 128, 144, False),
        (256, 16384, 256, 128, True), (257, 8192, 128, 192, True), (512, 6144, 128, 192, True), (512, 5120, 128, 160, False),
        (769, 3072, 128, 192, True), (769, 3584, 128, 112, False), (1024, 4096, 256, 128, True), (4097, 1024, 128, 128, False),
        # many turns: neighbours share what they read
        (4096, 7168, 256, 128, False),
    ],
)  # fmt: skip
def test_blocks_are_chosen_as_its_heuristics_do(m: int, n: int, rows: int, columns: int, alone: bool) -> None:
    assert chosen(m, n) == (rows, columns, alone)


@pytest.mark.parametrize(("m", "n"), [(28025, 694), (108, 43010), (129, 9000)])
def test_a_reduction_shorter_than_a_stage_is_one(m: int, n: int) -> None:
    """Else outputs alone would count, and the smallest blocks, in hundreds of turns, would seem as good as any."""
    for k in (1, 3, 127):
        assert chosen(m, n, k) == chosen(m, n, 128)


def test_many_ops_are_chosen_as_each_alone() -> None:
    random = np.random.default_rng(0)
    drawn = [random.integers(1, most, 20000).astype(float) for most in (9000, 9000, 9000, 9)]
    many = deepgemm.blocks(*drawn, 132.0)
    for at in (0, 8191, 8192, 19999):
        one = deepgemm.blocks(*(part[at : at + 1] for part in drawn), 132.0)
        assert [part[at] for part in many] == [part[0] for part in one]


@pytest.mark.parametrize(
    ("m", "n", "rows", "columns"),
    [
        # 64 rows up to 64 of them, 128 above; the fewest turns of 132 processors, then the fullest, then the narrowest
        (32, 2048, 64, 16), (64, 2048, 64, 16), (65, 2048, 128, 16), (64, 2560, 64, 24), (256, 2048, 128, 32),
        (129, 8192, 128, 128), (129, 10240, 128, 80), (1024, 4096, 128, 128),
        # fewer than 32 rows are the columns of a block of 128 rows of the weights
        (1, 4096, 16, 128), (16, 4096, 16, 128), (31, 4096, 16, 128), (31, 16384, 32, 128),
    ],
)  # fmt: skip
def test_blocks_by_the_former_rule(m: int, n: int, rows: int, columns: int) -> None:
    found = deepgemm.former_blocks(np.array([float(m)]), np.array([float(n)]), np.ones(1), 132.0)
    assert (found[0][0], found[1][0]) == (rows, columns)


def test_the_blocks_of_a_batch_count_together() -> None:
    """256 x 12288 fill one turn with the largest blocks, twice that another: as 128 times a half of the columns would."""
    assert chosen(256, 12288) == (128, 192, True)
    assert not chosen(256, 12288, batch=2)[2] and chosen(256, 6144, batch=2) == (128, 192, True)
    # 8 GEMMs of 128 x 1024, by the former rule: 16 columns take four turns, 64 the first to take one, 72 to 120 fill it less
    one, eight = (
        deepgemm.former_blocks(np.array([128.0]), np.array([1024.0]), np.array([float(batch)]), 132.0)
        for batch in (1, 8)
    )
    assert (one[1][0], eight[1][0]) == (16, 64)


def test_few_rows_are_read_in_blocks_of_as_few() -> None:
    read = deepgemm.loaded(np.array([1.0, 16, 17, 32, 33, 65]), np.array([64.0, 64, 64, 64, 64, 128]))
    assert read.tolist() == [16, 16, 32, 32, 64, 128]
