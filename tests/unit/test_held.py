"""One rank of an expert-parallel group counts distinct experts and rows on its own experts, or says that it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.hardware import load_hardware
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.parse.ranks import parse_ranks, rank_files
from moetrace.parse.summary import summary
from moetrace.ranks import Ranks
from moetrace.replay import Scenario
from moetrace.replay.editing import edited
from moetrace.routing import Routing, RoutingBuilder
from moetrace.run import Run
from tests.made import event, write
from tests.unit.test_parallel import EXCHANGED, TENSOR

E, K, T = 128, 8, 32
STEP = "execute_context_0(0)_generation_32(32)"
EXPERT_OPS = ("moe_gate_up", "moe_down")


def chosen(tokens: int = T, seed: int = 3, k: int = K) -> np.ndarray[Any, Any]:
    """Ids [tokens, k] in order of choice, the first experts chosen far more often."""
    rng = np.random.default_rng(seed)
    scores = np.log(1.0 / np.arange(1, E + 1)) + rng.gumbel(size=(tokens, E))
    return np.asarray(np.argsort(-scores, axis=1)[:, :k])


def routing(ids: np.ndarray[Any, Any], chosen: int = 0) -> Routing:
    builder = RoutingBuilder(E)
    builder.add(0, 0, ids)
    return builder.build(chosen)


def trace(path: Path, kernels: list[str], rank: int, world: int, step: str = STEP) -> Path:
    """One step of these kernels, replayed as a graph, on one rank of `world`."""
    events = [
        event(step, "user_annotation", 0, 30, tid=7),
        event("cudaGraphLaunch", "cuda_runtime", 10, 5, tid=7, correlation=1),
    ]
    for i, kernel in enumerate(kernels):
        events.append(event(kernel, "kernel", 20 + 10 * i, 9, tid=3, correlation=1, stream=3, device=0))
    return write(path, events, distributedInfo={"rank": rank, "world_size": world})


def parsed(
    tmp_path: Path, told: Routing, rank: int = 0, world: int = 2, kernels: list[str] = TENSOR, **options: Any
) -> Run:
    file = trace(tmp_path / f"rank{rank}.json", kernels, rank, world)
    return parse(file, model="qwen3-30b-a3b", routing=told, **{"ran_tp": 2, "ran_ep": 2, **options})


def op(run: Run, kind: str) -> Op:
    return next(Op.parse(text) for text in run.codes("op")[1] if text.startswith(f"{kind} "))


def said(run: Run, text: str) -> bool:
    return any(text in note for note in run.meta.notes)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_counts_what_falls_on_its_own_experts(tmp_path: Path, rank: int) -> None:
    ids = chosen()
    own = ids[(ids >= 64 * rank) & (ids < 64 * (rank + 1))]
    run = parsed(tmp_path, routing(ids), rank)
    for kind in EXPERT_OPS:
        assert (op(run, kind)["distinct"], op(run, kind)["rows"]) == (len(set(own.tolist())), own.size)
    assert op(run, "moe_act")["rows"] == own.size and not op(run, "moe_act").has("distinct")
    rows = run.to_pandas(["kind", "weight_bytes", "act_bytes"]).set_index("kind")
    matrix = 2048 * 768 * 2
    assert rows.weight_bytes["moe_down"] == len(set(own.tolist())) * matrix
    assert rows.act_bytes["moe_down"] == own.size * (768 + 2048) * 2
    assert said(run, f"block {rank} of 2 in contiguous blocks") and run.meta.own_experts
    assert summary(run)["steps"][0]["distinct_experts"] == {"0": len(set(own.tolist()))}


def test_a_rank_that_no_token_chose_reads_no_expert(tmp_path: Path) -> None:
    run = parsed(tmp_path, routing(np.tile(np.arange(K), (T, 1))), rank=1)
    assert (op(run, "moe_down")["distinct"], op(run, "moe_down")["rows"]) == (0, 0)
    assert run.to_pandas(["kind", "weight_bytes"]).set_index("kind").weight_bytes["moe_down"] == 0


def test_one_rank_holds_all_experts_without_ep(tmp_path: Path) -> None:
    ids = chosen()
    run = parsed(tmp_path, routing(ids), ran_ep=1)
    assert op(run, "moe_down")["distinct"] == len(set(ids.ravel().tolist()))
    assert not op(run, "moe_down").has("rows") and not run.meta.own_experts


def test_a_trace_that_states_no_rank_is_given_the_mean_rank_and_says_so(tmp_path: Path) -> None:
    ids = chosen()
    run = parsed(tmp_path, routing(ids), world=1)
    found = op(run, "moe_down")
    assert found["distinct_est"] == len(set(ids.ravel().tolist())) / 2
    assert not found.has("distinct") and not found.has("rows")
    assert said(run, "which of 2 blocks of experts this rank holds is not known")
    assert "estimated" in run.meta.routing and not run.meta.own_experts


def test_routing_of_the_ranks_own_tokens_is_no_count_of_all_that_reach_its_experts(tmp_path: Path) -> None:
    """Attention data parallel: 32 tokens on each of two ranks, 64 at the experts; the routing is of one rank's."""
    ids = chosen()
    run = parsed(tmp_path, routing(ids), rank=1, kernels=EXCHANGED, ran_tp=1)
    found = op(run, "moe_down")
    q = np.bincount(ids.ravel(), minlength=E)[64:] / T
    assert found["tokens"] == 2 * T and not found.has("distinct")
    assert found["distinct_est"] == pytest.approx(float(np.sum(1 - (1 - q) ** (2 * T))), abs=1e-4)
    assert found["rows"] == pytest.approx(2 * T * q.sum())
    assert said(run, "of this rank's own tokens") and "estimated" in run.meta.routing
    # At a smaller n_a the few own tokens are not counted either: the estimate changes in proportion.
    draft = edited(run, load_hardware("h100-sxm-x2"), Scenario.of("n_a=4"))
    fewer = next(o for o in draft.ops if o.kind == "moe_down")
    own = ids[:, :4]
    assert len(set(own[own >= 64].tolist())) < fewer["distinct_est"] < found["distinct_est"]
    assert fewer["rows"] == pytest.approx(found["rows"] / 2, abs=1e-4)


def test_experts_cut_in_width_too_have_no_known_place(tmp_path: Path) -> None:
    run = parsed(tmp_path, routing(chosen()), rank=1, world=4, ran_tp=4)
    assert op(run, "moe_down").has("distinct_est") and not op(run, "moe_down").has("distinct")
    assert said(run, "experts are cut in width too")


def test_passes_that_match_no_step_are_estimated_on_the_own_experts(tmp_path: Path) -> None:
    ids = chosen(40)
    run = parsed(tmp_path, routing(ids), rank=1)
    q = np.bincount(ids.ravel(), minlength=E)[64:] / 40
    assert op(run, "moe_down")["distinct_est"] == pytest.approx(float(np.sum(1 - (1 - q) ** T)), abs=1e-4)
    assert said(run, "estimated from popularity") and "estimated" in run.meta.routing


def test_ranks_of_a_folder_each_count_their_own_and_keep_them_at_another_n_a(tmp_path: Path) -> None:
    ids = chosen()
    (tmp_path / "in").mkdir()
    for rank in (0, 1):
        trace(tmp_path / "in" / f"trace-rank{rank}.json", TENSOR, rank, 2)
    options = {"model": "qwen3-30b-a3b", "routing": routing(ids), "ran_tp": 2, "ran_ep": 2}
    parse_ranks(rank_files(tmp_path / "in"), tmp_path / "out", jobs=1, options=options)
    for rank in (0, 1):
        own = ids[(ids >= 64 * rank) & (ids < 64 * (rank + 1))]
        assert op(Run.load(tmp_path / "out" / f"rank-{rank}"), "moe_down")["distinct"] == len(
            set(own.tolist())
        )
    run = Ranks.load(tmp_path / "out")
    draft = edited(run, load_hardware("h100-sxm-x2"), Scenario.of("n_a=4"))
    few = ids[:, :4]
    want = [float(len(set(few[(few >= 64 * r) & (few < 64 * (r + 1))].tolist()))) for r in (0, 1)]
    assert want[0] != want[1]
    assert sorted(o["distinct_est"] for o in draft.ops if o.kind == "moe_down") == sorted(want)
