"""Distinct experts after pruning, from counts of further choices by rank, against the same tokens followed one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.errors import RunError
from moetrace.replay.editing import edited
from moetrace.replay.scenario import Scenario
from moetrace.routing import Routing, RoutingBuilder
from moetrace.routing.pruned import kept_experts, pruned_distinct
from moetrace.routing.tokens import TOKENS_FILE, save_token_routing
from moetrace.run import Run
from tests.unit.replay_runs import EXPERTS, H100, TOPK, decode_run

Ids = dict[tuple[int, int], "np.ndarray[Any, Any]"]


def recorded(tokens: int, skew: float, further: int = 8, steps: int = 24, layers: int = 1) -> tuple[Routing, Ids]:  # fmt: skip
    """(counts, ids by step and layer) of tokens on eight topics, experts of power-law popularity `skew`."""
    rng, builder, ids = np.random.default_rng(5), RoutingBuilder(EXPERTS), {}
    for step in range(steps):
        for layer in range(layers):
            scores = -skew * np.log(np.arange(1, EXPERTS + 1)) + rng.gumbel(size=(tokens, EXPERTS))
            scores += 2 * rng.normal(size=(8, EXPERTS))[rng.integers(0, 8, tokens)]
            ids[step, layer] = np.argsort(-scores, axis=1)[:, : TOPK + further]
            builder.add(step, layer, ids[step, layer])
    return builder.build(TOPK), ids


def followed(routing: Routing, ids: Ids, experts: int, popular: bool) -> dict[tuple[int, int], int]:
    """Distinct experts where every token takes its first TOPK kept choices."""
    out = {}
    for (step, layer), chosen in ids.items():
        kept = set(kept_experts(routing.popularity(layer, TOPK), experts, popular).tolist())
        out[step, layer] = len({e for row in chosen.tolist() for e in [e for e in row if e in kept][:TOPK]})
    return out


@pytest.mark.parametrize(("experts", "popular"), [(48, True), (48, False), (32, True)])
@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [4, 16, 64])
def test_the_estimate_is_that_of_the_tokens_within_its_spread(
    tokens: int, skew: float, experts: int, popular: bool
) -> None:
    routing, ids = recorded(tokens, skew)
    found, true = pruned_distinct(routing, TOPK, experts, popular), followed(routing, ids, experts, popular)
    error = np.array([found[place].distinct - count for place, count in true.items()])
    spread = np.array([found[place].spread for place in true])
    assert abs(error.mean()) < 0.35 and np.sqrt(np.mean(error**2)) < 1.6 * np.sqrt(np.mean(spread**2)) + 0.05


@pytest.mark.parametrize("popular", [True, False])
def test_one_token_is_followed_exactly(popular: bool) -> None:
    routing, ids = recorded(1, 1.0, further=16)
    found = pruned_distinct(routing, TOPK, 48, popular)
    for place, count in followed(routing, ids, 48, popular).items():
        assert (found[place].distinct, found[place].spread) == (
            pytest.approx(count),
            pytest.approx(0, abs=1e-6),
        )


def test_all_experts_kept_is_what_was_counted() -> None:
    routing, _ = recorded(16, 1.0, layers=2)
    found = pruned_distinct(routing, 4, EXPERTS, True)
    assert {k: v.distinct for k, v in found.items()} == pytest.approx(routing.distinct(4))
    assert found[0, 0].spread == pytest.approx(0) and found[0, 1].spread > 1  # other states would reach it


def test_choices_that_are_lacking_go_to_kept_experts_and_reach_no_more_than_there_are() -> None:
    routing, _ = recorded(64, 0.0, further=1)
    found = pruned_distinct(routing, TOPK, 12, False)
    assert all(0 < one.distinct <= 12 + 1e-9 for one in found.values())


def test_a_what_if_takes_it_and_says_so() -> None:
    routing, _ = recorded(16, 1.0, steps=2, layers=2)
    plain = decode_run()
    run = Run(plain.meta, plain.table(), routing)
    found = pruned_distinct(routing, TOPK, 48, True)
    draft = edited(run, H100, Scenario.of("n_e=48@popular"))
    ops = [draft.ops[c] for c in draft.cell.tolist() if draft.ops[c].kind == "moe_gate_up"]
    assert [op["distinct_est"] for op in ops] == [
        round(found[s, k].distinct, 2) for s in (0, 1) for k in (0, 1)
    ]
    assert any("further choices" in note and "standard deviation" in note for note in draft.notes)
    without = edited(plain, H100, Scenario.of("n_e=48@popular"))
    assert not any("further choices" in note for note in without.notes)


# -- with the choices kept token by token --------------------------------------------------------------------------


def by_token(folder: Path, routing: Routing, ids: Ids) -> Routing:
    """The same routing with what each token chose beside it."""
    routing.save(folder / "routing.parquet")
    parts = ((step, layer, np.arange(len(rows)), rows) for (step, layer), rows in ids.items())
    save_token_routing(folder / TOKENS_FILE, EXPERTS, parts)
    return Routing.load(folder / "routing.parquet")


@pytest.mark.parametrize(("experts", "popular"), [(48, True), (40, False)])
@pytest.mark.parametrize("n_a", [TOPK, 4])
def test_tokens_are_followed_exactly(tmp_path: Path, experts: int, popular: bool, n_a: int) -> None:
    routing, ids = recorded(16, 1.0, further=EXPERTS - TOPK, steps=3, layers=2)
    found = pruned_distinct(by_token(tmp_path, routing, ids), n_a, experts, popular)
    kept = {k: set(kept_experts(routing.popularity(k, n_a), experts, popular).tolist()) for k in (0, 1)}
    for (step, layer), rows in ids.items():
        true = {e for row in rows.tolist() for e in [e for e in row if e in kept[layer]][:n_a]}
        one = found[step, layer]
        assert (one.distinct, one.lacking) == (len(true), 0)
        assert (one.spread > 0) == (layer > 0)  # in layers after the first the states would change


def test_what_lies_beyond_the_recorded_choices_is_estimated_and_told(tmp_path: Path) -> None:
    routing, ids = recorded(16, 1.0, further=2, steps=2)
    one = pruned_distinct(by_token(tmp_path, routing, ids), TOPK, 32, False)[0, 0]
    assert one.lacking is not None and 0 < one.lacking < 0.5 and one.spread > 0
    assert one.distinct <= 32


@pytest.mark.parametrize("further", [EXPERTS - TOPK, 1])
def test_a_what_if_is_exact_by_token_and_says_how_far(tmp_path: Path, further: int) -> None:
    routing, ids = recorded(16, 1.0, further=further, steps=2, layers=2)
    plain = decode_run()
    run = Run(plain.meta, plain.table(), by_token(tmp_path, routing, ids)).save(tmp_path / "run")
    found = pruned_distinct(routing, TOPK, 48, True)
    draft = edited(run, H100, Scenario.of("prune_inter=25"))
    ops = [draft.ops[c] for c in draft.cell.tolist() if draft.ops[c].kind == "moe_gate_up"]
    kept = kept_experts(routing.popularity(0, TOPK), 48, False)
    if further > 1:
        rows = ids[0, 0].tolist()
        true = {e for row in rows for e in [e for e in row if e in set(kept.tolist())][:TOPK]}
        assert ops[0]["distinct_est"] == len(true) != round(found[0, 0].distinct, 2)
        assert any("after pruning are exact for the hidden states recorded" in note for note in draft.notes)
    else:
        assert any("% of choices that lie beyond the recorded ones" in note for note in draft.notes)


def test_tokens_of_another_routing_are_refused(tmp_path: Path) -> None:
    routing, ids = recorded(4, 1.0, steps=2)
    with pytest.raises(RunError, match="holds other tokens than the counts beside it"):
        pruned_distinct(by_token(tmp_path, routing, {(0, 0): ids[0, 0]}), TOPK, 48, True)


def test_steps_are_renumbered_and_written_again(tmp_path: Path) -> None:
    routing, ids = recorded(4, 1.0, steps=3)
    some = by_token(tmp_path, routing, ids).renumbered({2: 0, 1: 5})
    (tmp_path / "again").mkdir()
    some.save(tmp_path / "again" / "routing.parquet")
    again = Routing.load(tmp_path / "again" / "routing.parquet")
    assert again.by_token is not None
    read = [np.concatenate(column) for column in zip(*again.by_token.parts(), strict=True)]
    assert sorted(set(read[0].tolist())) == [0, 5]
    assert read[4][read[0] == 0].reshape(4, -1).tolist() == ids[2, 0].tolist()


def test_a_damaged_table_of_tokens_is_one_line(tmp_path: Path) -> None:
    routing, ids = recorded(4, 1.0, steps=1)
    with_tokens = by_token(tmp_path, routing, ids)
    save_token_routing(tmp_path / TOKENS_FILE, EXPERTS, [(0, 0, np.arange(4), ids[0, 0] + EXPERTS)])
    with pytest.raises(RunError, match="out of range"):
        pruned_distinct(with_tokens, TOPK, 48, True)
    whole = (tmp_path / TOKENS_FILE).read_bytes()
    (tmp_path / TOKENS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="not a table of tokens"):
        Routing.load(tmp_path / "routing.parquet")
