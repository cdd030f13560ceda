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


def test_what_repeats_in_a_trace_that_names_no_step_may_be_steps_and_has_no_layers(tmp_path: Path) -> None:
    kernels = ["first_kernel", *(f"strange_{k}" for _ in range(6) for k in "abcdefg"), "last_kernel"]
    events = []
    for i, kernel in enumerate(kernels):
        events.append(event("cudaLaunchKernel", "cuda_runtime", 10 * i, 2, tid=7, correlation=i + 1))
        events.append(event(kernel, "kernel", 20 + 10 * i, 9, tid=3, correlation=i + 1, stream=3, device=0))
    run = parse(write(tmp_path / "t.json", events))
    assert set(run.column("layer").to_pylist()) == {None}


def test_a_hybrid_without_a_model_has_as_many_layers_as_blocks() -> None:
    """Three layers of linear attention and one of full attention in turn, the former with a norm more."""
    linear, full, topk = [NORM, 1, 2, 3, NORM, 4, NORM, 5, 9, 6], [NORM, 1, 7, 4, NORM, 5, 9, 6], 9
    found = layers_by_period(np.array([900, *(linear * 3 + full) * 6, 901]), 0, NORM, topk)
    sizes = np.bincount(found[found >= 0]).tolist()
    assert sizes == [10, 10, 10, 8] * 6 and found[0] == found[-1] == -1


def test_the_first_and_the_last_layer_may_have_an_op_of_their_own() -> None:
    body = [NORM, 1, 2, 3, 4, NORM, 9, 5, 6]
    first, last = [77, NORM, 8, *body[2:]], [*body[:-1], 88]
    found = layers_by_period(np.array([*first, *body * 10, *last, 901]), 12, NORM, 9)
    assert found.max() == 11 and np.bincount(found[found >= 0]).tolist()[1:11] == [9] * 10
    assert found[1] in (0, -1) and found[3] == 0 and found[-3] == 11 and found[-1] == -1
