"""Knobs, memory and ranks of a model whose attention is to what an indexer picks."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.forward import step_ops
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.replay import Scenario, simulate
from moetrace.replay.editing import edited
from moetrace.replay.memory import rank_weights, sequence_bytes
from moetrace.replay.parallel import Parallel
from moetrace.run import Run
from moetrace.synthesize import Workload, synthesize
from tests.unit.test_grid_vector import answers, case, is_answered_alike, product

V32, V3 = load_model("deepseek-v3.2"), load_model("deepseek-v3")
SMALL = V32.with_edits(layers=4)
NODE = load_hardware("h200-sxm-x8")


@pytest.fixture(scope="module")
def run() -> Run:
    return synthesize(SMALL, Workload(8, 1000, 3))


def of_decode(run: Run, *sets: str) -> dict[str, list[Op]]:
    """The ops of the first decode step by kind; on one device unless they are shared out."""
    machine = NODE if any(one.startswith("tp") for one in sets) else load_hardware("h200-sxm")
    draft, out = edited(run, machine, Scenario.of(*sets)), dict[str, list[Op]]()
    for op, at in zip(draft.ops, draft.at, strict=True):
        if draft.steps[at.step].phase == "decode" and at.step == 1:
            out.setdefault(op.kind, []).append(op)
    return out


def test_ranks_cut_mlas_heads_and_repeat_the_indexer(run: Run) -> None:
    """TensorRT-LLM's tech blog 15, Parallel Strategy; vLLM's and SGLang's projections of it are replicated linear layers."""
    alone, cut = of_decode(run), of_decode(run, "tp=8")
    assert {op["heads"] for op in cut["sparse_mla"]} == {16} and {
        op["heads"] for op in alone["sparse_mla"]
    } == {128}
    for kind in ("index_proj", "index_weights", "index_prep", "index_write", "index_scores", "index_topk"):
        assert set(cut[kind]) == set(alone[kind])


def test_a_longer_context_is_scored_whole_and_read_as_far_as_it_is_picked(run: Run) -> None:
    for context, read in ((500, 500), (2048, 2048), (5000, 2048)):
        ops = of_decode(run, f"context={context}")
        assert {op["kv"] for op in ops["sparse_mla"]} == {8 * read}
        assert {op["kv"] for op in ops["index_scores"] + ops["index_topk"]} == {8 * context}


def test_a_batch_and_a_type_of_the_cache(run: Run) -> None:
    assert {op["kv"] for op in of_decode(run, "batch=16")["index_scores"]} == {16 * 1001, 16 * 1002}
    narrow = of_decode(run, "kv=fp8")
    assert {op.dtype for op in narrow["sparse_mla"]} == {"fp8/bf16"}
    assert {op.dtype for op in narrow["index_scores"]} == {"fp8"}  # in every cache
    typed = of_decode(run, "dtype=nvfp4")
    assert {op.dtype for op in typed["index_proj"]} == {"nvfp4/bf16"}
    assert {op.dtype for op in typed["index_weights"]} == {"bf16"}


def test_every_rank_holds_the_indexer_and_its_keys() -> None:
    for context in (1000, 100_000):
        more = [sequence_bytes(m, Parallel(8), context, "fp8") for m in (V3, V32)]
        assert more[1] - more[0] == 61 * 132 * context
    weights = [sum(rank_weights(m, Parallel(8)).values()) for m in (V3, V32)]
    own = (1536 * 64 + 7168) * 128 * (1 + 4 / 128**2) + 7168 * 64 * 2
    assert weights[1] - weights[0] == pytest.approx(61 * own)


def test_a_context_that_is_picked_whole_takes_mlas_time_and_the_indexers() -> None:
    """Of a decode step; what the indexer adds is the same ops' time."""
    times = []
    for model in (V3, V32):
        done = simulate(model.with_edits(layers=4), Workload(8, 1000, 2), NODE, Scenario.of("tp=8"))
        table = done.run.table(["op", "dur_ns", "phase"]).to_pydict()
        rows = zip(table["op"], table["dur_ns"], table["phase"], strict=True)
        times.append({op: ns for op, ns, phase in rows if phase == "decode"})
    dense, sparse = times
    own = {op for op in sparse if op.startswith("index_")}
    own.add("norm bf16 tokens=8 width=128")  # of its keys
    renamed = {
        op.replace("sparse_mla", "mla_attention").replace(" chosen=2048", ""): op for op in set(sparse) - own
    }
    assert {op: sparse[name] for op, name in renamed.items()} == dense
    assert len(own) == 8


@pytest.mark.parametrize("name", ["deepseek-v3.2", "glm-5"])
def test_more_context_never_takes_less_and_one_beyond_what_is_picked_takes_less_than_whole(name: str) -> None:
    model = load_model(name).with_edits(layers=4)
    tpot = [
        float(
            simulate(model, Workload(32, n, 2), NODE, Scenario.of("tp=8")).summary["metrics"]["tpot"]["value"]
        )
        for n in (512, 1024, 2046, 2047, 2048, 4096, 16_384, 65_536)
    ]
    assert np.all(np.diff(tpot) >= -1e-9)
    dense = model.with_edits(index_topk=0, index_heads=0, index_dim=0)
    whole = simulate(dense, Workload(32, 65_536, 2), NODE, Scenario.of("tp=8")).summary["metrics"]["tpot"][
        "value"
    ]
    assert tpot[-1] < float(whole)


@pytest.mark.parametrize(
    "sets",
    [("tp=8",), ("dp=8", "ep=8", "serving=continuous"), ("overlap=two_batch", "dp=8", "ep=8"), ("tokens_per_step=2",),
     ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0.7")],
)  # fmt: skip
def test_many_loads_together_are_answered_as_each_alone(sets: tuple[str, ...]) -> None:
    columns = product(batch=[1, 9, 64], input_len=[100, 1900, 2048, 9000], output_len=[2, 300])
    asked = case("deepseek-v3.2", "h200-sxm-x8", *sets)
    together = answers(asked, columns)
    for row in (0, 3, 7, 10, 13, 17, 20, 23):
        is_answered_alike(asked, columns, together, row)


def test_the_wafer_prices_it_and_says_what_was_not_measured() -> None:
    done = simulate("deepseek-v3.2", Workload(1, 4096, 2), "cs3")
    assert float(done.summary["metrics"]["tpot"]["value"]) > 0
    said = " ".join(done.summary["assumptions"])
    assert "index_scores: assumed" in said and "sparse_mla: coefficients of mla_attention" in said


def test_the_ops_of_a_prompt_that_comes_in_chunks_attend_to_what_came_before() -> None:
    """The last 1,000 of 3,000 tokens: the scores of all pairs, and MLA over 2,048 tokens of each query."""
    ops = [op for at, op in step_ops(V32, 2, 1000, 3000, decode=False) if at == 0]
    scores, picked = (next(op for op in ops if op.kind == kind) for kind in ("index_scores", "sparse_mla"))
    assert (scores["kv"], scores["q"]) == (6000, 2000) and (picked["kv"], picked["q"]) == (6000, 2000)
