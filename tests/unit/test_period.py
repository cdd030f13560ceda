"""Layers by repetition alone: n ops x layers and a rest, patterns of several layers, and what does not repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.parse import parse
from moetrace.parse.period import layers_by_period
from tests.made import event, write

NORM = 0


def step(layers: int, ops: int, head: int, rest: int) -> list[int]:
    body = [NORM, *range(1, ops)]
    return [*range(1000, 1000 + head), *(body * layers), *range(2000, 2000 + rest)]


@settings(max_examples=100, deadline=None)
@given(st.integers(4, 64), st.integers(4, 30), st.integers(0, 8), st.integers(0, 8), st.booleans())
def test_n_ops_times_layers_and_a_rest(layers: int, ops: int, head: int, rest: int, known: bool) -> None:
    if 2 * layers * ops <= layers * ops + head + rest:
        return
    found = layers_by_period(np.array(step(layers, ops, head, rest)), layers if known else 0, NORM)
    expected = [-1] * head + [i for i in range(layers) for _ in range(ops)] + [-1] * rest
    assert found.tolist() == expected


@pytest.mark.parametrize("depth", [24, 25, 0])
def test_a_pattern_of_two_layers(depth: int) -> None:
    """Sliding and full attention in turn, by kernels of their own."""
    pattern = [NORM, 1, 2, 3, 4, NORM, 1, 5, 6, 3, 4]
    found = layers_by_period(np.array([900, *(pattern * 12), 901]), depth, NORM)
    if depth == 24:
        assert found.tolist() == [-1, *(2 * i + (j >= 5) for i in range(12) for j in range(11)), -1]
    else:  # one repeat is one layer, as far as is known
        assert len(set(found.tolist())) == 13


def test_dense_layers_in_front_are_counted_and_not_placed() -> None:
    dense, moe = [NORM, 1, 2, 3], [NORM, 1, 7, 8, 9]
    found = layers_by_period(np.array(dense * 3 + moe * 58), 61, NORM)
    assert found.max() == 60 and found[12:].min() == 3


def test_what_does_not_repeat_has_no_layers() -> None:
    rng = np.random.default_rng(1)
    assert (layers_by_period(rng.integers(0, 1000, 500)) == -1).all()
    assert (layers_by_period(np.zeros(0, np.int64)) == -1).all()
    assert (
        layers_by_period(np.array(step(40, 6, 0, 0)), 8, NORM) == -1
    ).all()  # more repeats than the model has layers


def test_a_graph_of_kernels_that_nobody_knows_has_layers_and_says_whence(tmp_path: Path) -> None:
    kernels = ["first_kernel", *(f"strange_{k}" for _ in range(6) for k in "abcdefg"), "last_kernel"]
    events = [event("cudaGraphLaunch", "cuda_runtime", 10, 5, tid=7, correlation=1)]
    for i, kernel in enumerate(kernels):
        events.append(event(kernel, "kernel", 20 + 10 * i, 9, tid=3, correlation=1, stream=3, device=0))
    run = parse(write(tmp_path / "t.json", events))
    assert run.numpy("layer").tolist() == [-1, *(i for i in range(6) for _ in range(7)), -1]
    assert run.codes("layer_source")[1][0] in ("order", "period") and set(
        run.column("layer_source").to_pylist()
    ) == {"period", None}
