"""Intervals drawn from held-out errors: they hold 80 % by decade and way of running, and say how wide they are for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from moetrace import ops
from moetrace.calibrate.interval import coverage, interval, on_other_half
from moetrace.machines.forms import Parts
from moetrace.op import Op, Works

RANDOM = np.random.default_rng(0)


def works(tokens: list[int], **dims: int) -> Works:
    return ops.works([Op.of("gemm", "bf16", m=t, n=4096, k=4096, **dims) for t in tokens])


def parts(rows: int, **terms: npt.NDArray[np.float64]) -> Parts:
    """Ops of a second each, whose time is all one term unless `terms` say otherwise."""
    none, whole = np.zeros(rows), np.ones(rows)
    return Parts(none, none, whole, whole, terms=terms or {"launch": whole})


def names(shapes: int, rows: int = 1) -> npt.NDArray[np.str_]:
    return np.repeat([f"s{i}" for i in range(shapes)], rows)


def test_each_decade_holds_its_share() -> None:
    tokens = [5] * 400 + [50] * 400
    scale = np.repeat([0.02, 0.2], 400)
    off = RANDOM.normal(0, 1, 800) * scale
    found = interval(off, works(tokens), parts(800), names(800))
    told = coverage(np.repeat([0, 1], 400), off, found.of(works(tokens), parts(800)))
    assert [(c.decade, c.rows) for c in told] == [(None, 800), (0, 400), (1, 400)]
    assert all(0.78 <= c.covered <= 0.82 for c in told)
    assert all(1.7 < c.width < 2.1 and 1.7 < c.spread < 2.1 for c in told[1:])  # errors are normal: 1.9
    assert all(c.normal == pytest.approx(1.9, abs=0.03) for c in told[1:])
    assert told[2].median == pytest.approx(0.2 * 0.67, rel=0.2)


def test_each_term_has_the_error_of_the_ops_that_it_makes() -> None:
    """Ops half of one term and half of another are off by the geometric mean of what either is off by."""
    memory = RANDOM.uniform(0, 1, 4000)
    off = RANDOM.normal(0, 1, 4000) * 0.04**memory * 0.16 ** (1 - memory)
    made = parts(4000, launch=1 - memory, memory=memory, compute=np.zeros(4000))
    found = interval(off, works([5] * 4000), made, names(4000))
    fixed, streams, unseen = (found.error_terms[name][0] for name in ("launch", "memory", "compute"))
    assert np.log1p(streams) == pytest.approx(1.28 * 0.04, rel=0.1)
    assert np.log1p(fixed) == pytest.approx(1.28 * 0.16, rel=0.1)
    assert streams < unseen < fixed  # what no row has lies between those that some have
    halves = parts(1, launch=np.full(1, 2e-6), memory=np.full(1, 2e-6), compute=np.zeros(1))
    half = np.log1p(replace(found, error_rises=()).of(works([5]), halves)[0])
    assert half == pytest.approx(np.sqrt(np.log1p(streams) * np.log1p(fixed)))


def test_unlike_rows_ask_for_wider_intervals_than_twice_the_median_error() -> None:
    """Rows whose normal errors are known exactly, between 1 and 30 %: no interval that holds 80 % of each is narrower."""
    scale = np.exp(RANDOM.uniform(np.log(0.01), np.log(0.3), 20_000))
    (told, _) = coverage(
        np.zeros(20_000, dtype=int), RANDOM.normal(0, 1, 20_000) * scale, np.expm1(1.2816 * scale)
    )
    assert told.covered == pytest.approx(0.8, abs=0.01)
    assert told.width == pytest.approx(told.normal, abs=0.1)
    assert told.normal > 2.1


def test_no_term_is_far_better_or_worse_known_than_all() -> None:
    """A term that no op is made of alone is not told apart by continuing what small shares of it did."""
    few = RANDOM.uniform(0, 0.1, 400)
    off = RANDOM.normal(0, 1, 400) * 0.05 * np.exp(30 * few)
    found = interval(off, works([5] * 400), parts(400, launch=1 - few, split=few), names(400))
    assert np.log1p(found.error_terms["split"][0]) < 20 * np.log1p(found.error_terms["launch"][0])
    assert np.log1p(found.error_terms["split"][0]) > 2 * np.log1p(found.error_terms["launch"][0])


def test_errors_rise_over_a_decade() -> None:
    """Of ops that err in proportion to a power of their tokens, each end of a decade has the error of its own ops."""
    tokens = RANDOM.integers(100, 1000, 4000).tolist()
    off = RANDOM.normal(0, 1, 4000) * 0.02 * (np.array(tokens) / 100) ** 0.6
    found = interval(off, works(tokens), parts(4000), names(4000))
    first, middle, last = np.log1p(found.of(works([100, 316, 999]), parts(3)))
    assert first == pytest.approx(1.28 * 0.02, rel=0.15) and last == pytest.approx(
        1.28 * 0.02 * 10**0.6, rel=0.15
    )
    assert middle == pytest.approx(np.sqrt(first * last), rel=0.01)


def test_an_op_that_has_no_size_is_in_the_middle_of_the_only_decade() -> None:
    none = ops.works([Op.of("all_gather", "bf16", bytes=1e6, ranks=8)] * 100)
    found = interval(RANDOM.normal(0, 0.1, 100), none, parts(100), names(100))
    assert found.error_rises == (1.0,)
    assert np.log1p(found.of(none, parts(100))) == pytest.approx(np.log1p(found.error_terms["launch"][0]))


def test_a_decade_of_few_rows_takes_the_nearest_of_its_neighbours() -> None:
    tokens = [5] * 100 + [50] * 100 + [500] * 3
    off = np.concatenate([RANDOM.normal(0, 0.01, 100), RANDOM.normal(0, 0.3, 100), np.zeros(3)])
    found = interval(off, works(tokens), parts(203), names(203))
    assert found.error_decades[2] > 0.5 * found.error_decades[1] > 5 * found.error_decades[0]


def test_few_rows_are_held_as_a_further_one_asks_for() -> None:
    """Drawn from 30 rows, an interval holds 80 % of many more, not fewer."""
    held = []
    for _ in range(40):
        off = RANDOM.normal(0, 0.05, 1030)
        found = interval(off[:30], works([5] * 30), parts(30), names(30))
        held.append((np.abs(off[30:]) <= np.log1p(found.of(works([5] * 1000), parts(1000)))).mean())
    assert 0.79 < np.mean(held) < 0.84


def test_ops_that_run_another_way_have_errors_of_their_own() -> None:
    exchange = [Op.of("moe_dispatch", "bf16", tokens=4, topk=8, hidden=64, experts=64, bytes=1, ranks=8)]
    normal = [exchange[0].with_dims(sms=24)]
    both = ops.works(exchange * 100 + normal * 100)
    off = np.concatenate([RANDOM.normal(0, 0.2, 100), RANDOM.normal(0, 0.02, 100)])
    found = interval(off, both, parts(200), names(200))
    stated = found.of(both, parts(200))
    assert len(found.error_apart) == 1 and stated[0] > 5 * stated[-1]
    assert interval(off[:100], ops.works(exchange * 100), parts(100), names(100)).error_apart == ()


def test_few_shapes_that_run_another_way_are_held_as_a_further_one_asks_for() -> None:
    """Of eleven shapes, each off as a whole, 80 % of the rows lie within the ninth's error; a twelfth asks for the tenth's."""
    usual = [Op.of("moe_dispatch", "bf16", tokens=4, topk=8, hidden=64, experts=64, bytes=1, ranks=8, sms=24)]
    abroad = [usual[0].with_dims(ranks=16)]
    off = np.concatenate([np.full(100, 0.001), np.repeat(np.arange(1, 12) / 100, 10)])
    both = ops.works(usual * 100 + abroad * 110)
    (few,) = interval(off, both, parts(210), np.concatenate([names(100), names(11, 10)])).error_apart
    (many,) = interval(off, both, parts(210), names(210)).error_apart
    assert few == pytest.approx(np.expm1(0.10)) and many == pytest.approx(np.expm1(0.09))


def test_intervals_are_scored_on_shapes_that_they_were_not_drawn_from() -> None:
    """A shape is off as a whole: an interval of some shapes holds fewer rows of the others than of its own."""
    shape = np.repeat([f"s{i}" for i in range(20)], 15)
    own = np.random.default_rng(0)
    off = np.repeat(own.normal(0, 0.2, 20), 15) + own.normal(0, 0.01, 300)
    (every, one) = on_other_half(off, works([5] * 300), parts(300), shape)
    assert every.rows == one.rows == 300 and every.covered == one.covered < 0.78
