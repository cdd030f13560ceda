"""Routing: formulas against simulation, recorded counts against a plain recount, files refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import OutputError, RunError, ScenarioError
from moetrace.routing import (
    ROUTING_VERSION,
    Routing,
    RoutingBuilder,
    ep_blocks,
    ep_max_distinct,
    popularity_distinct,
    uniform_distinct,
    uniform_spread,
)


def choose(rng: np.random.Generator, samples: int, tokens: int, experts: int, topk: int) -> np.ndarray:
    """Uniform choices without replacement, [samples, tokens, topk]."""
    return np.argsort(rng.random((samples, tokens, experts)), axis=-1)[..., :topk]


def touched(ids: np.ndarray, experts: int) -> np.ndarray:
    """Whether each expert was chosen by any token, [samples, experts]."""
    return np.stack([np.isin(np.arange(experts), sample) for sample in ids])


SHAPES = [(8, 2, 3), (16, 4, 8), (64, 8, 1), (64, 8, 16), (32, 4, 32), (60, 4, 20)]


@pytest.mark.parametrize(("experts", "topk", "tokens"), SHAPES)
def test_uniform_mean_and_spread_match_simulation(experts: int, topk: int, tokens: int) -> None:
    hit = touched(choose(np.random.default_rng(1), 2000, tokens, experts, topk), experts)
    counts = hit.sum(axis=1)
    spread = uniform_spread(experts, topk, tokens)
    assert counts.mean() == pytest.approx(
        uniform_distinct(experts, topk, tokens), abs=4 * spread / 2000**0.5 + 1e-9
    )
    assert counts.std() == pytest.approx(spread, rel=0.08, abs=1e-9)


@pytest.mark.parametrize(("experts", "topk", "tokens"), SHAPES)
@pytest.mark.parametrize("ep", [2, 4, 7, 8])
def test_worst_rank_matches_simulation(experts: int, topk: int, tokens: int, ep: int) -> None:
    hit = touched(choose(np.random.default_rng(2), 2000, tokens, experts, topk), experts)
    rank = ep_blocks(experts, ep)
    worst = np.stack([hit[:, rank == r].sum(axis=1) for r in range(ep)]).max(axis=0)
    error = 4 * worst.std() / 2000**0.5 + 1e-3  # the floor: all samples may agree
    assert worst.mean() == pytest.approx(ep_max_distinct(experts, topk, tokens, ep), abs=error)


def test_known_figures() -> None:
    assert uniform_distinct(128, 8, 16) == pytest.approx(82.4, abs=0.05)  # Qwen3-30B-A3B (arXiv 2511.02237)
    assert uniform_distinct(32, 4, 32) == pytest.approx(31.55, abs=0.005)  # gpt-oss-20b, batch 32
    # One token of DeepSeek-V3 (8 of 256 experts) on 8 ranks: 2.56 experts on the worst, 1 on average.
    assert ep_max_distinct(256, 8, 1, 8) == pytest.approx(2.56, abs=0.005)
    assert uniform_distinct(256, 8, 1) / 8 == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.data())
def test_bounds_and_monotony(experts: int, data: st.DataObject) -> None:
    topk = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(1, 200))
    ep = data.draw(st.integers(1, experts))
    mean = uniform_distinct(experts, topk, tokens)
    assert topk - 1e-9 <= mean <= min(experts, tokens * topk) + 1e-9
    assert mean <= uniform_distinct(experts, topk, tokens + 1) + 1e-9
    assert mean <= uniform_distinct(experts, min(topk + 1, experts), tokens) + 1e-9
    assert 0 <= uniform_spread(experts, topk, tokens) <= experts / 2 + 1e-9
    worst = ep_max_distinct(experts, topk, tokens, ep)
    assert mean / ep - 1e-6 <= worst <= min(mean, -(-experts // ep)) + 1e-6
    assert worst <= ep_max_distinct(experts, topk, tokens + 1, ep) + 1e-6
    if ep == 1:
        assert worst == pytest.approx(mean)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 100), st.data())
def test_popularity_never_exceeds_uniform(q: list[float], tokens: int, data: st.DataObject) -> None:
    popularity = np.array(q)
    found = popularity_distinct(popularity, tokens)
    assert found <= uniform_distinct(len(q), popularity.sum(), tokens) + 1e-9
    assert found <= popularity_distinct(popularity, tokens + 1) + 1e-9
    ep = data.draw(st.integers(1, len(q)))
    worst = ep_max_distinct(len(q), 1, tokens, ep, popularity)
    assert found / ep - 1e-9 <= worst <= found + 1e-9
    if ep == 1:
        assert worst == pytest.approx(found)


def test_popular_worst_rank_matches_simulation() -> None:
    q = np.linspace(0.02, 0.6, 24)
    rng = np.random.default_rng(3)
    hit = (rng.random((3000, 5, 24)) < q).any(axis=1)
    worst = hit.reshape(3000, 4, 6).sum(axis=2).max(axis=1)
    assert worst.mean() == pytest.approx(ep_max_distinct(24, 0, 5, 4, q), abs=4 * worst.std() / 3000**0.5)


def test_arrays_and_edges() -> None:
    tokens = np.array([0, 1, 16, 10**9])
    mean = uniform_distinct(128, 8, tokens)
    assert isinstance(mean, np.ndarray) and mean.tolist() == [
        uniform_distinct(128, 8, int(t)) for t in tokens
    ]
    assert mean[0] == 0 and mean[1] == pytest.approx(8) and mean[3] == 128
    assert uniform_spread(128, 8, tokens)[[0, 1, 3]] == pytest.approx([0, 0, 0], abs=1e-5)
    assert uniform_spread(1, 1, 5) == 0
    q = np.full(128, 8 / 128)
    assert popularity_distinct(q, tokens) == pytest.approx(mean)
    assert popularity_distinct(np.array([1.0, 0.0]), 7) == 1
    assert ep_max_distinct(256, 8, 10**6, 64) == pytest.approx(4)
    assert ep_max_distinct(8, 2, 0, 4) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: uniform_distinct(8, 9, 1), "n_a is 9 of 8 experts"),
        (lambda: uniform_distinct(8, 2, -1), "tokens is -1"),
        (lambda: popularity_distinct(np.array([1.5]), 1), "within 0 to 1"),
        (lambda: popularity_distinct(np.array([float("nan")]), 1), "within 0 to 1"),
        (lambda: ep_max_distinct(8, 2, 1, 9), "ep is 9: expected 1 to 8"),
        (lambda: ep_max_distinct(8, 2, 1, 2, np.ones(7)), "7 entries for 8 experts"),
        (lambda: ep_max_distinct(2048, 2, 1, 2), "at most 1000"),
    ],
)
def test_nonsense_is_refused(call: object, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        call()  # type: ignore[operator]


def recorded(seed: int = 0) -> tuple[dict[tuple[int, int], np.ndarray], Routing]:
    """Ids by (step, layer), skewed so that experts differ, and the Routing of them."""
    rng = np.random.default_rng(seed)
    favour = np.linspace(0, 1.5, 12)
    ids = {
        (step, layer): np.argsort(-(rng.gumbel(size=(5 + step, 12)) + favour), axis=1)[:, :4]
        for step in (1, 0, 3)
        for layer in (2, 1)
    }
    builder = RoutingBuilder(12)
    for (step, layer), chosen in ids.items():
        builder.add(step, layer, chosen[:2])
        builder.add(step, layer, chosen[2:])
    return ids, builder.build()


@pytest.mark.parametrize("n_a", [1, 2, 3, 4])
def test_recorded_counts_match_a_plain_recount(n_a: int) -> None:
    ids, routing = recorded()
    assert (routing.steps, routing.layers, routing.experts, routing.topk) == ((0, 1, 3), (1, 2), 12, 4)
    distinct, skew, on_worst = routing.distinct(n_a), routing.load_skew(n_a), routing.distinct(n_a, ep=4)
    assert list(distinct) == sorted(ids) == list(routing.token_counts())
    for key, chosen in ids.items():
        cut = chosen[:, :n_a]
        load = np.bincount(cut.ravel(), minlength=12)
        assert routing.tokens(*key) == routing.token_counts()[key] == len(chosen)
        assert distinct[key] == len(set(cut.ravel().tolist()))
        assert skew[key] == pytest.approx(load.max() / load.mean())
        assert on_worst[key] == max((load[r : r + 3] > 0).sum() for r in (0, 3, 6, 9))
        assert n_a <= distinct[key] <= min(12, n_a * len(chosen))
    for layer in routing.layers:
        everything = np.concatenate([chosen[:, :n_a] for (_, at), chosen in ids.items() if at == layer])
        q = routing.popularity(layer, n_a)
        assert q == pytest.approx(np.bincount(everything.ravel(), minlength=12) / len(everything))
        assert q.sum() == pytest.approx(n_a)
        one = routing.popularity(layer, n_a, steps=[3])
        assert one == pytest.approx(np.bincount(ids[3, layer][:, :n_a].ravel(), minlength=12) / 8)


def test_recut_at_native_is_the_recording_and_fewer_choices_never_touch_more() -> None:
    _, routing = recorded()
    assert routing.distinct(4) == routing.distinct() and routing.load_skew(4) == routing.load_skew()
    cuts = [routing.distinct(n_a) for n_a in (1, 2, 3, 4)]
    assert all(less[key] <= more[key] for less, more in pairwise(cuts) for key in less)
    assert routing.distinct(ep=1) == routing.distinct()


def test_what_was_not_recorded_is_refused() -> None:
    _, routing = recorded()
    for call, words in (
        (lambda: routing.distinct(5), "n_a is 5: routing was recorded for each token's first 4 choices"),
        (lambda: routing.popularity(1, 0), "n_a is 0"),
        (lambda: routing.popularity(9), r"layer 9 \(recorded: steps 0 to 3, layers 1 to 2\)"),
        (lambda: routing.popularity(1, steps=[2]), "no routing was recorded for step 2"),
        (lambda: routing.tokens(2, 1), "no routing was recorded for step 2, layer 1"),
    ):
        with pytest.raises(RunError, match=words):
            call()
    with pytest.raises(ScenarioError, match="ep is 13"):
        routing.distinct(ep=13)
    uneven = RoutingBuilder(12)
    uneven.add(0, 0, [[1, 2, 3]])
    uneven.add(0, 1, [[1, 2]])
    assert uneven.build().distinct() == {(0, 0): 3, (0, 1): 2}
    with pytest.raises(RunError, match="first 2 choices"):
        uneven.build().distinct(3)


def test_builder_refuses_what_is_not_routing() -> None:
    builder = RoutingBuilder(8)
    builder.add(0, 0, np.array([[0, 7]]))
    for ids, words in (
        (np.array([0, 1]), r"shape \[tokens, k\]"),
        (np.array([[0.0, 1.0]]), "whole numbers"),
        (np.array([[0, 8]]), "layer 0 has experts 0 to 8, expected 0 to 7"),
        (np.array([[-1, 0]]), "experts -1 to 0"),
        (np.array([[3, 3]]), "the same expert twice"),
        (np.array([[1, 2, 3]]), "added with k 2, now with 3"),
    ):
        with pytest.raises(RunError, match=words):
            builder.add(0, 0, ids)
    assert builder.build().distinct() == {(0, 0): 2}


def test_an_empty_recording_answers_nothing() -> None:
    empty = RoutingBuilder(8).build()
    assert len(empty) == 0 and empty.distinct() == {} and empty.load_skew() == {} and empty.steps == ()
    with pytest.raises(RunError, match="recorded: steps none"):
        empty.popularity(0)


def test_values_are_frozen() -> None:
    _, routing = recorded()
    with pytest.raises(ValueError, match="read-only"):
        routing.count[0] = 5
    with pytest.raises(AttributeError):
        routing.experts = 3  # type: ignore[misc]


def test_save_and_load(tmp_path: Path) -> None:
    _, routing = recorded()
    file = tmp_path / "routing.parquet"
    routing.save(file)
    routing.save(file)  # replaces
    again = Routing.load(file)
    assert (
        again.equals(routing) and again.topk == routing.topk and not again.equals(RoutingBuilder(12).build())
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["routing.parquet"]
    schema = pq.read_schema(file)
    kinds = {field.name: str(field.type) for field in schema}
    assert kinds == {
        "step": "int32", "layer": "int32", "expert": "int32", "rank_of_choice": "int16", "count": "int64",
    }  # fmt: skip
    assert all(b"doc" in field.metadata for field in schema)
    with pytest.raises(OutputError, match="cannot be written"):
        routing.save(tmp_path / "no" / "routing.parquet")
    empty = tmp_path / "empty.parquet"
    RoutingBuilder(3).build().save(empty)
    assert len(Routing.load(empty)) == 0 and Routing.load(empty).experts == 3


def stamped(version: str = str(ROUTING_VERSION), **columns: list[int | None]) -> pa.Table:
    full = {"step": [0], "layer": [0], "expert": [0], "rank_of_choice": [1], "count": [1], **columns}
    stamp = {"moetrace.routing.version": version, "moetrace.routing.experts": "4"}
    return pa.table(full).replace_schema_metadata(stamp)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (stamped().replace_schema_metadata(None), "not a routing table"),
        (stamped().drop_columns(["expert"]), "expected the columns step, layer, expert"),
        (stamped(version="2"), "routing version 2, this moetrace reads up to 1"),
        (stamped(count=[None]), "has nulls or is not of whole numbers"),
        (stamped(expert=[4]), "expert reaches 4 to 4, expected 0 to 3"),
        (stamped(rank_of_choice=[0]), "rank_of_choice reaches 0"),
        (stamped(count=[0]), "a count below 1"),
        (stamped(step=[-1]), "negative step"),
    ],
)
def test_a_table_of_another_kind_is_refused(tmp_path: Path, table: pa.Table, words: str) -> None:
    file = tmp_path / "routing.parquet"
    pq.write_table(table, file)
    with pytest.raises(RunError, match=words) as caught:
        Routing.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1", json.dumps({}).encode()])
def test_a_file_that_is_not_parquet_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "routing.parquet"
    file.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read as a routing table") as caught:
        Routing.load(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        RunError, match=r"absent\.parquet: cannot be read as a routing table \(No such file or directory\)"
    ):
        Routing.load(tmp_path / "absent.parquet")
