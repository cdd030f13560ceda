"""Other tools' logs of routing, and how they meet the steps of a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.errors import RunError
from moetrace.hardware import load_hardware
from moetrace.parse import parse
from moetrace.record.routing_files import read_routing
from moetrace.replay import Scenario, replay
from moetrace.routing import Routing, RoutingBuilder, RoutingLog
from tests.made import decode_trace, write

IDS = [[0, 3], [3, 1], [2, 3]]


def log(folder: Path, name: str, text: object) -> RoutingLog:
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    found = read_routing(path)
    assert isinstance(found, RoutingLog)
    return found


def expected(steps: int = 1) -> Routing:
    builder = RoutingBuilder(4)
    for step in range(steps):
        builder.add(step, 5, np.array(IDS))
    return builder.build()


PER_TOKEN: dict[str, Any] = {
    "moe-beyond.csv": "Layer ID,Batch Number,Token,Activated Expert IDs\n"
    + "".join(f'5,0,the,"{ids}"\n' for ids in IDS),
    "spaces.csv": "layer_id,expert_ids\n" + "".join(f"5,{a} {b}\n" for a, b in IDS),
    "passes.json": [{"5": IDS}],
    "named.json": {"passes": [{"pass": 0, "layers": {"layer_5": IDS}}]},
    "by-layer.json": {"5": IDS},
    "lines.jsonl": "".join(
        json.dumps({"layer": 5, "batch_id": 0, "topk_experts": [ids]}) + "\n" for ids in IDS
    ),
}


@pytest.mark.parametrize("name", sorted(PER_TOKEN))
def test_ids_by_token_are_read_in_order_of_choice(tmp_path: Path, name: str) -> None:
    routing, remarks = log(tmp_path, name, PER_TOKEN[name]).routing(4, 2)
    assert routing.equals(expected())
    assert (routing.ordered, remarks) == (True, [])
    assert routing.distinct(1) == {(0, 5): 3}


COUNTED: dict[str, Any] = {
    "mindspeed.json": {"5": {"0": 1, "1": 1, "2": 1, "3": 3}},
    "lists.json": [{"4": [], "5": [1, 1, 1, 3]}],
    "histogram.csv": "layer,expert,count\n5,0,1\n5,1,1\n5,2,1\n5,3,3\n",
}


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_counts_by_expert_tell_loads_and_no_order(tmp_path: Path, name: str) -> None:
    found = log(tmp_path, name, COUNTED[name])
    routing, _ = found.routing(4, 2)
    assert (routing.ordered, routing.tokens(0, 5), routing.distinct()) == (False, 3, {(0, 5): 4})
    assert routing.popularity(5).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    with pytest.raises(RunError, match="not the order of choice"):
        routing.distinct(1)
    routing.save(tmp_path / "routing.parquet")
    again = read_routing(tmp_path / "routing.parquet")
    assert isinstance(again, Routing)
    assert again.equals(routing)
    with pytest.raises(RunError, match="top-k"):
        found.routing()
    with pytest.raises(RunError, match="not those of tokens with 4"):
        found.routing(4, 4)


def test_a_warm_up_of_tokens_that_all_chose_alike_is_left_out(tmp_path: Path) -> None:
    found = log(tmp_path, "a.json", [{"5": [[0, 1]] * 64}, {"5": IDS}])
    routing, remarks = found.routing(4, 2)
    assert routing.steps == (1,)
    assert "1 step(s)" in remarks[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "columns layer and expert_ids"),
        ("a.csv", "layer,tokens\n1,2\n", "columns layer"),
        ("a.csv", "layer,expert_ids\nx,1 2\n", "'x' is not a whole number"),
        ("a.csv", "layer,expert_ids\n1,\n", "lists of expert ids"),
        ("a.csv", "layer,expert_ids\n1,1 -2\n", "whole numbers from 0"),
        ("a.csv", "layer,expert_ids\n1,1 99999999999\n", "not the number of an expert"),
        ("a.json", "", "expected an object by layer"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "3", "expected an object by layer"),
        ("a.json", '{"1": {"0": "many"}}', "whole numbers"),
        ("a.json", '{"1": [[1, 2], [3]]}', "as many for each token"),
        ("a.json", '{"1": {"-1": 2}}', "'-1' is not a whole number"),
        ("a.json", "[5]", "neither an object by layer"),
        ("a.json", "[[5]]", "neither ids nor counts"),
        ("a.json", '{"1": [1, "x"]}', "whole numbers"),
    ],
)
def test_what_is_no_log_is_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=said) as refused:
        read = read_routing(tmp_path / name)
        assert isinstance(read, RoutingLog)
        read.routing(4, 2)
    assert "\n" not in str(refused.value)


def test_a_log_of_another_model_is_refused(tmp_path: Path) -> None:
    found = log(tmp_path, "a.json", {"5": IDS})
    with pytest.raises(RunError, match="names expert 3, the model has 3"):
        found.routing(3, 2)
    with pytest.raises(RunError, match="2 experts, the model gives it 4"):
        found.routing(8, 4)
    with pytest.raises(RunError, match="holds no routing"):
        RoutingLog("a.json").routing(3, 2)


# Onto the steps of a trace: Qwen3-30B-A3B has 128 experts, 8 a token.


def passes(*tokens: int, seed: int = 0) -> RoutingLog:
    found, random = RoutingLog("made"), np.random.default_rng(seed)
    for step, n in enumerate(tokens):
        for layer in range(3):
            found.add_ids(step, layer, random.permuted(np.tile(np.arange(128), (n, 1)), axis=1)[:, :8])
    return found


def run_with(path: Path, told: RoutingLog) -> Any:
    trace = write(path / "t.json", decode_trace(batch=4))
    return parse(trace, model="qwen3-30b-a3b", kv_len=100, routing=told)


def test_passes_that_fit_the_steps_are_counted_exactly(tmp_path: Path) -> None:
    told = passes(400, 4, 4)
    run = run_with(tmp_path, told)
    distinct = told.routing(128, 8)[0].distinct()
    frame = run.to_pandas()
    for step in (0, 1):
        for layer in range(3):
            op = frame[(frame.step == step) & (frame.layer == layer) & (frame.kind == "moe_gate_up")].op.iloc[
                0
            ]
            assert f" distinct={distinct[step + 1, layer]}" in op
    assert "by their order and tokens" in run.meta.routing
    assert run.routing is not None
    assert run.routing.steps == (0, 1)


def test_passes_that_fit_nowhere_or_twice_give_an_estimate_from_their_popularity(tmp_path: Path) -> None:
    for told in (passes(4, 4, 4), passes(7)):
        run = run_with(tmp_path, told)
        assert "popularity" in run.meta.routing
        ops = [op for op in run.to_pandas().op.unique() if op.startswith("moe_gate_up")]
        assert all("distinct_est=" in op for op in ops)
        run.save(tmp_path / "run", force=True)
    predicted = replay(run, load_hardware("h100-sxm"), Scenario.of("n_a=4"))
    assert predicted.run.to_pandas().op.str.contains("distinct_est=").any()


def test_loads_without_an_order_serve_a_replay_at_fewer_choices(tmp_path: Path) -> None:
    told = RoutingLog("made")
    for layer in range(3):
        told.add_counts(0, layer, np.r_[np.full(16, 20), np.full(64, 0), np.full(48, 10)])
    run = run_with(tmp_path, told)
    predicted = replay(run, load_hardware("h100-sxm"), Scenario.of("n_a=4"))
    ops = [op for op in predicted.run.to_pandas().op.unique() if op.startswith("moe_gate_up")]
    estimates = [float(op.split("distinct_est=")[1].split()[0]) for op in ops]
    assert 10 < min(estimates) <= max(estimates) < 16  # 4 tokens x 4 choices, few among 64 experts


def test_routing_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    told = passes(4)
    told.add_ids(0, 0, [[200, 1, 2, 3, 4, 5, 6, 7]])
    with pytest.raises(RunError, match="200"):
        run_with(tmp_path, told)
    with pytest.raises(RunError, match="4 experts, qwen3-30b-a3b has 128"):
        parse(tmp_path / "t.json", model="qwen3-30b-a3b", kv_len=100, routing=expected())
