"""Clocks of ranks: a made offset and drift is found again, outliers or not; links compose; groups with strides are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.parse.ranks import parse_ranks, rank_files
from moetrace.parse.ranks.clocks import Clock, fitted, inverse, linked
from moetrace.parse.ranks.groups import groups, members, strides, told_stride
from moetrace.ranks import Ranks
from tests.made import grid_traces, write

EPOCH = 1_700_000_000_000_000_000
TIMES = EPOCH + np.sort(np.random.default_rng(0).integers(0, 10_000_000_000, 400))
OFFSET = st.integers(-(10**13), 10**13)
DRIFT = st.floats(-1e-4, 1e-4)


@given(OFFSET, DRIFT, st.integers(0, 1000), st.integers(0, 2**32))
def test_a_made_offset_and_drift_is_found_again(offset: int, drift: float, noise: int, seed: int) -> None:
    made, draw = Clock(EPOCH, offset, drift), np.random.default_rng(seed)
    shown = TIMES + offset + np.rint(drift * (TIMES - EPOCH)).astype(np.int64)
    late = np.rint(draw.exponential(noise, TIMES.size)).astype(np.int64) if noise else 0
    found = fitted(TIMES, shown + late, EPOCH)
    off = np.abs(found.aligned(shown) - TIMES)
    assert off.max() <= 3 + 3 * noise  # ns, over ten seconds: 1e-4 alone would be a million
    assert found.error_ns <= 2 + 2 * noise
    assert np.abs(made.aligned(shown) - TIMES).max() <= 2


@given(OFFSET, DRIFT)
def test_a_quarter_of_collectives_far_off_changes_little(offset: int, drift: float) -> None:
    shown = TIMES + offset + np.rint(drift * (TIMES - EPOCH)).astype(np.int64)
    bad = shown.copy()
    bad[::4] += 5_000_000
    found = fitted(TIMES, bad, EPOCH)
    assert np.abs(found.aligned(shown) - TIMES).max() < 20_000


@given(OFFSET, DRIFT, OFFSET, DRIFT)
def test_links_compose_and_turn_round(a: int, b: float, c: int, d: float) -> None:
    one, two = Clock(EPOCH, a, b, 5), Clock(EPOCH, c, d, 7)
    shown = EPOCH + np.array([0, 10**9, 10**10])
    both = one.then(two)
    assert np.abs(both.aligned(shown) - one.aligned(two.aligned(shown))).max() <= 4
    back = inverse(one)
    assert np.abs(back.aligned(one.aligned(shown)) - shown).max() <= 4
    clocks, roots = linked([(2, 3, two), (0, 2, one), (7, 8, one)])
    assert roots == {0: 0, 2: 0, 3: 0, 7: 7, 8: 7}
    assert np.abs(clocks[3].aligned(shown) - both.aligned(shown)).max() <= 4
    assert clocks[3].error_ns == 12


def test_groups_by_ranks_and_stride() -> None:
    assert members(5, (2, 2)) == (5, 7) and members(5, (2, 1)) == (4, 5) and members(5, (2, 4)) == (1, 5)
    assert groups([0, 1, 3], (2, 2)) == [[1, 3]] and groups(range(4), (4, 1)) == [[0, 1, 2, 3]]
    assert strides(2, 8) == [1, 2, 4] and strides(8, 8) == [1]


def test_a_stride_is_told_only_where_ends_tell_it() -> None:
    draw = np.random.default_rng(1)
    of_group = {r: draw.integers(0, 50_000, 40).cumsum() for r in (0, 1)}

    def late(one: int, two: int) -> np.ndarray:
        return of_group[two % 2] - of_group[one % 2] + draw.integers(0, 300, 40)

    assert told_stride(2, 4, range(4), late) == 2
    assert told_stride(2, 4, range(4), lambda one, two: np.full(40, 5)) is None
    assert told_stride(2, 4, range(4), lambda one, two: np.zeros(1, np.int64)) is None
    assert told_stride(2, 4, [0, 2], late) is None  # no neighbours are here to compare with


SENDS = (("allreduce", 2, 1, 4096), ("alltoall", 2, 2, 1024))
CLOCKS = [(0.0, 0.0), (5000.0, 2e-5), (-300.0, -1e-5), (70.0, 0.0)]


def work(step: int, i: int, rank: int) -> float:
    return 50 + ((step * 31 + i * 17 + rank * 29) % 13) * 7


@pytest.mark.parametrize("stated", [False, True], ids=["by their ends", "stated"])
def test_a_grid_of_groups_is_linked_through_those_that_ranks_share(tmp_path, stated: bool) -> None:
    root = tmp_path / "traces"
    root.mkdir()
    for rank, events in enumerate(grid_traces(4, SENDS, CLOCKS, work, steps=20, stated=stated)):
        write(root / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 4})
    facts = parse_ranks(rank_files(root), tmp_path / "out", jobs=1)
    assert {c["collective"].split()[0]: (c["ranks"], c["stride"]) for c in facts["collectives"]} == {
        "all_reduce": (2, 1),
        "all_to_all": (2, 2),
    }
    assert not any("neighbours" in note for note in facts["notes"])
    for own, (ahead, drift) in zip(facts["ranks"], CLOCKS, strict=True):
        assert own["clock"]["of_rank"] == 0
        assert own["clock_offset_s"] * 1e6 == pytest.approx(ahead, abs=0.5)
        assert own["clock_drift_ppm"] == pytest.approx(drift * 1e6, abs=0.5)
        assert own["clock_error_s"] < 1e-6
    # What a rank waits follows from the work: 10 us of each collective are transfer, the rest is waiting.
    for own in facts["ranks"]:
        assert own["transfer_s"] == pytest.approx(40 * 10e-6, rel=0.02)
    run = Ranks.load(tmp_path / "out")
    ops = {t.split()[0]: t for t in run.codes("op")[1] if t.startswith("all_")}
    assert "stride=2" in ops["all_to_all"] and "stride" not in ops["all_reduce"]
