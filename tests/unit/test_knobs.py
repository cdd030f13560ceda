"""What each knob does to the ops of a run, and what it says when it cannot apply."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetrace import ops as work_of
from moetrace.errors import ScenarioError
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.knobs import KNOBS, knob_table
from moetrace.replay.scenario import Scenario
from moetrace.routing import ep_max_distinct, popularity_distinct, uniform_distinct
from moetrace.run import Run, Step
from tests.unit.replay_runs import EXPERTS, H100, NODE, TOPK, build, decode_run, recorded_routing


@pytest.fixture(scope="module")
def run() -> Run:
    return decode_run()


def turned(run: Run, *sets: str, hw: object = H100) -> Draft:
    return edited(run, hw, Scenario.of(*sets))  # type: ignore[arg-type]


def ops_of(draft: Draft, kind: str) -> list[Op]:
    """The op of each row of a kind, in order of rows."""
    return [draft.ops[c] for c in draft.cell.tolist() if draft.ops[c].kind == kind]


def refusal(run: Run, *sets: str, hw: object = H100) -> str:
    with pytest.raises(ScenarioError) as error:
        turned(run, *sets, hw=hw)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- engine ----------------------------------------------------------------------------------------------------------
def test_another_version_of_the_engine_is_said(run: Run) -> None:
    assert turned(run, "engine=vllm").notes == turned(run, "engine=vllm@0.19.0").notes == ()
    (said,) = turned(run, "engine=vllm@0.11.2").notes
    assert "the coefficients of h100-sxm are of 0.19.0" in said and "by 42 % more" in said


# -- n_a -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["native", str(TOPK), f"{TOPK}:{TOPK}"])
def test_native_n_a_changes_nothing(run: Run, value: str) -> None:
    draft = turned(run, f"n_a={value}")
    assert draft.ops == draft.origin
    assert draft.notes == ()


def test_n_a_below_native_counts_the_first_choices_of_the_recording(run: Run) -> None:
    draft = turned(run, "n_a=4")
    counts = recorded_routing(2, 16, 2).distinct(4)
    for kind in ("moe_gate_up", "moe_down"):
        assert [op["distinct_est"] for op in ops_of(draft, kind)] == [
            counts[s, k] for s in (0, 1) for k in (0, 1)
        ]
    assert all(op["topk"] == 4 and not op.has("distinct") for op in ops_of(draft, "moe_gate_up"))
    assert {op["topk"] for kind in ("topk", "moe_act", "moe_combine") for op in ops_of(draft, kind)} == {4}
    assert ops_of(draft, "router") == ops_of(Draft.of(run, H100, Scenario()), "router")


def test_every_n_a_moves_through_the_distinct_experts(run: Run) -> None:
    for source in (run, decode_run(recorded=False)):
        distinct = [
            np.mean(
                [work_of.distinct_experts(op)[0] for op in ops_of(turned(source, f"n_a={k}"), "moe_gate_up")]
            )
            for k in (1, 2, 4, 6, 8, 10)
        ]
        assert (np.diff(distinct) > 0).all()


def test_n_a_by_layer(run: Run) -> None:
    draft = turned(run, "n_a=6:2")
    assert [op["topk"] for op in ops_of(draft, "moe_gate_up")] == [6, 2, 6, 2]


def test_n_a_without_recorded_routing_is_the_uniform_formula_and_says_so() -> None:
    draft = turned(decode_run(recorded=False), "n_a=4")
    op = ops_of(draft, "moe_gate_up")[0]
    assert not op.has("distinct") and not op.has("distinct_est")
    assert any("uniform formula" in note for note in draft.notes)


def test_n_a_above_native_is_what_was_counted_by_the_uniform_formulas_ratio_and_says_so(run: Run) -> None:
    draft = turned(run, "n_a=12")
    counted = ops_of(turned(run), "moe_gate_up")[0]["distinct"]
    more = uniform_distinct(EXPERTS, 12, 16) / uniform_distinct(EXPERTS, TOPK, 16)
    assert ops_of(draft, "moe_gate_up")[0]["distinct_est"] == pytest.approx(
        min(EXPERTS, counted * more), abs=1e-3
    )
    assert any("above the 8 experts recorded" in note for note in draft.notes)


def test_n_a_that_cannot_apply(run: Run) -> None:
    assert "there are 64 experts per layer, so n_a is at most 64" in refusal(run, "n_a=65")
    assert "3 values for 2 MoE layers" in refusal(run, "n_a=4:4:4")
    step = Step(0, "decode 0", "decode", 0, 100, 1, 1)
    dense = build([(0, 0, "dense_gate_up bf16 m=1 n=64 k=64", 0, 100)], [step])
    assert "no expert op" in refusal(dense, "n_a=4")
    experts = "tokens=1 hidden=64 inter=64 experts=8 topk=2"
    unlayered = build([(0, -1, f"moe_gate_up bf16 {experts}", 0, 100)], [step])
    assert "does not say the layer" in refusal(unlayered, "n_a=2:1")
    assert [op["topk"] for op in turned(unlayered, "n_a=1").ops] == [1]


def test_steps_without_recorded_routing_change_by_the_ratio_of_one_source(run: Run) -> None:
    """A base that was counted is not held against another source: both n_a follow from popularity, or both from the formula."""
    part = Run(run.meta, run.table(), run.routing.renumbered({0: 0}) if run.routing else None)
    counted = [op["distinct"] for op in ops_of(turned(run), "moe_gate_up")]
    found = [op["distinct_est"] for op in ops_of(turned(part, "n_a=4"), "moe_gate_up")]
    assert part.routing is not None
    assert found[:2] == [part.routing.distinct(4)[0, layer] for layer in (0, 1)]
    for layer in (0, 1):
        touched = (part.routing.distinct(n)[0, layer] for n in (4, TOPK))  # the one step that was recorded
        assert found[2 + layer] == pytest.approx(counted[2 + layer] * np.divide(*touched), abs=1e-3)
    bare = turned(Run(run.meta, run.table()), "n_a=4")
    ratio = uniform_distinct(EXPERTS, 4, 16) / uniform_distinct(EXPERTS, TOPK, 16)
    assert [op["distinct_est"] for op in ops_of(bare, "moe_gate_up")] == pytest.approx(
        [n * ratio for n in counted], abs=1e-3
    )
    assert any("in proportion" in note for note in bare.notes)


def test_routing_drawn_from_popularity_is_so_at_every_n_a(run: Run) -> None:
    assert run.routing is not None
    for n_a in (TOPK, 4):
        draft = turned(run, "routing=popularity", f"n_a={n_a}")
        expected = [popularity_distinct(run.routing.popularity(layer, n_a), 16) for layer in (0, 1)]
        ops = ops_of(draft, "moe_gate_up")
        assert [op["distinct_est"] for op in ops[:2]] == pytest.approx(expected, abs=1e-3)
        assert not any(op.has("distinct") for op in ops)
        assert any("drawn" in note for note in draft.notes)
    assert "no routing was recorded" in refusal(decode_run(recorded=False), "routing=popularity")


# -- batch and context ---------------------------------------------------------------------------------------------
def test_batch_scales_tokens_rows_and_kv(run: Run) -> None:
    draft = turned(run, "batch=64")
    attention = ops_of(draft, "attention")[0]
    assert (attention["batch"], attention["kv"]) == (64, 64 * 256)
    assert {op["m"] for op in ops_of(draft, "qkv_proj")} == {64}
    assert {op["tokens"] for op in ops_of(draft, "moe_down")} == {64}
    assert (draft.steps[0].batch, draft.steps[0].tokens, draft.steps[0].kv_tokens) == (64, 64, 64 * 256)


def test_batch_with_recorded_routing_follows_each_experts_popularity(run: Run) -> None:
    draft = turned(run, "batch=4")
    routing = recorded_routing(2, 16, 2)
    drawn = popularity_distinct(routing.popularity(1), 4)
    op = ops_of(draft, "moe_gate_up")[1]
    assert drawn < op["distinct_est"] < uniform_distinct(EXPERTS, TOPK, 4) * 1.02
    assert any("popularity, evened out" in note for note in draft.notes)


def test_batches_about_the_recorded_one_touch_about_what_it_touched(run: Run) -> None:
    """No more tokens ever touch fewer experts, and the counts lie on the line that the others follow."""
    found = {
        batch: np.mean(
            [work_of.distinct_experts(op)[0] for op in ops_of(turned(run, f"batch={batch}"), "moe_gate_up")]
        )
        for batch in (1, 2, 4, 8, 15, 16, 17, 32, 64, 512)
    }
    values = list(found.values())
    assert values == sorted(values) and found[1] == pytest.approx(TOPK) and values[-1] <= EXPERTS
    assert found[17] - found[16] == pytest.approx(found[16] - found[15], abs=0.3)


def test_a_table_keeps_its_size_at_another_batch_and_this_is_said() -> None:
    table, rows = "elementwise fp32 elements=8388608 writes=0.5 fixed=1", "elementwise bf16 elements=32768"
    step = Step(0, "decode 0", "decode", 0, 3000, 16, 16, 4096)
    draft = turned(build([(0, 0, table, 0, 1000), (0, 0, rows, 2000, 1000)], [step]), "batch=64")
    assert [str(op) for op in ops_of(draft, "elementwise")] == [table, "elementwise bf16 elements=131072"]
    assert any("keep their size" in note and table in note for note in draft.notes)


def test_the_same_batch_changes_nothing(run: Run) -> None:
    draft = turned(run, "batch=16")
    assert draft.ops == draft.origin


def test_batch_needs_to_know_the_batch() -> None:
    step = Step(0, "prefill 0", "prefill", 0, 100)
    run = build([(0, 0, "gemm bf16 m=5 n=64 k=64", 0, 100)], [step])
    assert "does not say the batch of step 'prefill 0'" in refusal(run, "batch=4")


def test_context_sets_what_decode_reads_up_to_the_window() -> None:
    model = load_model("gpt-oss-20b").with_edits(layers=2)
    text = "attention bf16 batch=4 heads=64 kv_heads=8 head_dim=64"
    rows = [(0, layer, f"{text} kv=400", 100 * layer, 50) for layer in (0, 1)]
    rows += [(1, 0, f"{text} kv=400 q=400", 1000, 50)]
    steps = [
        Step(0, "decode 0", "decode", 0, 150, 4, 4, 400),
        Step(1, "prefill 1", "prefill", 1000, 1050, 4, 400, 400),
    ]
    draft = turned(build(rows, steps, model=model), "context=1000")
    sliding, full, prefill = ops_of(draft, "attention")
    assert (sliding["kv"], sliding["window"], sliding["context"]) == (4 * 128, 128, 1000)
    assert full["kv"] == 4000 and not full.has("window") and not full.has("context")
    assert prefill["kv"] == 400
    assert [s.kv_tokens for s in draft.steps] == [4000, 400]
    assert any("prefill steps are left" in note for note in draft.notes)


def test_context_after_batch_takes_the_new_batch(run: Run) -> None:
    op = ops_of(turned(run, "context=1024", "batch=2"), "attention")[0]
    assert op["kv"] == 2 * 1024


def test_context_without_a_decode_step() -> None:
    step = Step(0, "prefill 0", "prefill", 0, 100, 1, 5)
    assert "no decode step" in refusal(
        build([(0, 0, "gemm bf16 m=5 n=64 k=64", 0, 100)], [step]), "context=9"
    )


# -- dtype ---------------------------------------------------------------------------------------------------------
def test_dtype_changes_weights_and_what_activations_must_be(run: Run) -> None:
    for name, dtype in (("fp8", "fp8"), ("int4", "int4/bf16"), ("mxfp4", "mxfp4/bf16")):
        draft = turned(run, f"dtype={name}")
        assert {op.dtype for k in ("moe_gate_up", "qkv_proj", "o_proj") for op in ops_of(draft, k)} == {dtype}
        assert {op.dtype for k in ("lm_head", "router", "norm", "attention") for op in ops_of(draft, k)} == {
            "bf16"
        }
        assert draft.model is not None and draft.model.expert_dtype == name


# -- layers --------------------------------------------------------------------------------------------------------
def test_layers_repeat_in_order_round_what_lies_outside_of_them(run: Run) -> None:
    draft = turned(run, "layers=5")
    first = draft.base.segment[draft.rows] == 0
    layers = [draft.at[c].layer for c in draft.cell[first].tolist()]
    assert layers == [-1] + [k for k in range(5) for _ in range(11)] + [-1, -1]
    kinds = [draft.ops[c].kind for c in draft.cell[first].tolist()]
    assert kinds[0] == "embedding" and kinds[-2] == "lm_head"
    sources = [draft.at[c].source_layer for c in draft.cell[first].tolist()][1::11][:5]
    assert sources == [0, 1, 0, 1, 0]


def test_the_note_names_the_layers_that_repeat(run: Run) -> None:
    for setting, words in (
        ("5", "layers 2 to 4 repeat recorded ones"),
        ("3", "layer 2 repeats a recorded one"),
    ):
        assert any(words in note for note in turned(run, f"layers={setting}").notes)


def test_repeated_layers_keep_the_count_but_as_an_estimate(run: Run) -> None:
    gate_up = ops_of(turned(run, "layers=4"), "moe_gate_up")[:4]
    assert [op.has("distinct") for op in gate_up] == [True, True, False, False]
    assert gate_up[2]["distinct_est"] == gate_up[0]["distinct"]


def test_native_layers_come_from_the_recording_or_the_model(run: Run) -> None:
    assert turned(run, "layers=native").layers == 16
    unknown = decode_run(model=None, native_layers=None)
    assert "depth is not known" in refusal(unknown, "layers=native")


def test_layers_map_dense_to_dense_and_window_to_window() -> None:
    dense = (0, 0, "dense_gate_up bf16 m=1 n=64 k=64", 0, 10)
    moe = (0, 1, "moe_gate_up bf16 tokens=1 hidden=64 inter=64 experts=64 topk=6", 20, 10)
    step = Step(0, "decode 0", "decode", 0, 30, 1, 1)
    deepseek = build(
        [dense, moe], [step], model=load_model("deepseek-v2-lite").with_edits(layers=2), native_layers=27
    )
    draft = turned(deepseek, "layers=native")
    assert len(ops_of(draft, "dense_gate_up")) == 1 and len(ops_of(draft, "moe_gate_up")) == 26
    oss = load_model("gpt-oss-20b").with_edits(layers=2)
    rows = [
        (0, k, f"attention bf16 batch=1 heads=64 kv_heads=8 head_dim=64 kv={128 + k}", 20 * k, 10)
        for k in (0, 1)
    ]
    draft = turned(build(rows, [step], model=oss), "layers=6")
    assert [op["kv"] for op in ops_of(draft, "attention")] == [128, 129] * 3


def test_fewer_layers_leave_the_later_ones_out(run: Run) -> None:
    draft = turned(run, "layers=1")
    assert draft.layers == 1 and len(ops_of(draft, "moe_gate_up")) == 2


def test_layers_without_known_layers() -> None:
    run = build([(0, -1, "gemm bf16 m=1 n=64 k=64", 0, 10)], [Step(0, "decode 0", "decode", 0, 10, 1, 1)])
    assert "does not say which ops belong to which layer" in refusal(run, "layers=4")


# -- tp and ep -----------------------------------------------------------------------------------------------------
def test_tp_cuts_weights_and_heads_and_adds_all_reduces(run: Run) -> None:
    draft = turned(run, "tp=8", hw=NODE)
    assert ops_of(draft, "qkv_proj")[0]["n"] == 3 * 2048 // 8
    assert ops_of(draft, "o_proj")[0]["k"] == 2048 // 8
    assert (ops_of(draft, "attention")[0]["heads"], ops_of(draft, "attention")[0]["kv_heads"]) == (2, 2)
    assert ops_of(draft, "moe_gate_up")[0]["inter"] == 128
    assert ops_of(draft, "moe_gate_up")[0].has("distinct")
    assert ops_of(draft, "lm_head")[0]["n"] == 50304 // 8
    assert ops_of(draft, "norm") == ops_of(Draft.of(run, H100, Scenario()), "norm")
    kinds = [draft.ops[c].kind for c in draft.cell.tolist()]
    assert [kinds[i - 1] for i, k in enumerate(kinds) if k == "all_reduce"] == ["o_proj", "moe_combine"] * 4
    assert [kinds[i - 1] for i, k in enumerate(kinds) if k == "all_gather"] == ["lm_head"] * 2
    assert {(op["bytes"], op["ranks"]) for op in ops_of(draft, "all_reduce")} == {(16 * 2048 * 2, 8)}


def test_tp_divides_the_weights_of_one_rank_by_its_size(run: Run) -> None:
    def weights(draft: Draft) -> float:
        return sum(work_of.work(op).resident_bytes for c in draft.cell.tolist() for op in [draft.ops[c]])

    kinds = ("norm", "router", "embedding")
    whole, cut = Draft.of(run, H100, Scenario()), turned(run, "tp=8", hw=NODE)
    same = sum(work_of.work(op).resident_bytes for k in kinds for op in ops_of(whole, k))
    assert weights(cut) - same == pytest.approx((weights(whole) - same) / 8)


def test_ep_alone_shares_out_experts_and_cuts_attention_over_the_same_gpus(run: Run) -> None:
    draft = turned(run, "ep=8", hw=NODE)
    op = ops_of(draft, "moe_gate_up")[0]
    assert (op["inter"], op["experts"], op["local_experts"], op["topk"]) == (1024, EXPERTS, 8, TOPK)
    assert ops_of(draft, "attention")[0]["heads"] == 2
    assert op["distinct_est"] == recorded_routing(2, 16, 2).distinct(TOPK, 8)[0, 0]
    assert len(ops_of(draft, "all_reduce")) == 8
    assert any("tensor-parallel over 8 GPUs" in note for note in draft.notes)


def test_ep_without_routing_waits_for_the_worst_rank() -> None:
    op = ops_of(turned(decode_run(recorded=False), "ep=8", hw=NODE), "moe_gate_up")[0]
    assert op["distinct_est"] == pytest.approx(ep_max_distinct(EXPERTS, TOPK, 16, 8), abs=1e-4)
    assert op["distinct_est"] > uniform_distinct(EXPERTS, TOPK, 16) / 8


def test_ep_within_tp_cuts_experts_by_what_is_left(run: Run) -> None:
    op = ops_of(turned(run, "tp=8", "ep=4", hw=NODE), "moe_gate_up")[0]
    assert (op["inter"], op["local_experts"]) == (1024 // 2, 16)


def test_kv_heads_are_repeated_where_there_are_fewer_than_gpus() -> None:
    model = load_model("qwen3-30b-a3b").with_edits(layers=1)
    rows = [
        (0, 0, "qkv_proj bf16 m=1 n=5120 k=2048", 0, 10),
        (0, 0, "attention bf16 batch=1 heads=32 kv_heads=4 head_dim=128 kv=100", 20, 10),
    ]
    draft = turned(
        build(rows, [Step(0, "decode 0", "decode", 0, 30, 1, 1, 100)], model=model), "tp=8", hw=NODE
    )
    assert ops_of(draft, "qkv_proj")[0]["n"] == 128 * (4 + 2)
    assert ops_of(draft, "attention")[0]["kv_heads"] == 1


def test_widths_that_do_not_divide_are_refused() -> None:
    row = (0, 0, "dense_gate_up bf16 m=1 n=100 k=64", 0, 10)
    run = build([row], [Step(0, "decode 0", "decode", 0, 10, 1, 1)])
    assert "n=100 of dense_gate_up does not divide by 8" in refusal(run, "tp=8", hw=NODE)
    assert "no experts to speak of; give --model to parse" in refusal(run, "ep=8", hw=NODE)


def test_a_recording_of_one_rank_of_many_keeps_its_parallelism() -> None:
    of_eight = decode_run(gpus=8, tp=8, hardware="node-x8")
    assert "share the model as tp=8 ep=1" in refusal(of_eight, "tp=8", "ep=2", hw=NODE)
    assert turned(of_eight, "tp=8", hw=NODE).ops == Draft.of(of_eight, NODE, Scenario()).ops
    assert "one rank of 8 GPUs" in refusal(of_eight, hw=H100)
    four = replace(NODE, name="node-x4", gpus=4)
    assert "one rank of 8 GPUs" in refusal(of_eight, hw=four)


def test_tp_must_fill_the_machine(run: Run) -> None:
    assert "which tp=1 does not fill: add --set tp=8 or ep=8" in refusal(run, hw=NODE)
    assert "1 GPU(s), which tp=8 does not fill" in refusal(run, "tp=8", hw=H100)


def test_placement_is_for_wafers(run: Run) -> None:
    assert "h100-sxm is not a wafer" in refusal(run, "placement=own")


def test_the_table_has_every_knob_with_a_meaning_and_a_grammar() -> None:
    table = knob_table()
    assert [name for name, _, _ in table] == list(KNOBS)
    assert {"n_a", "batch", "context", "dtype", "layers", "tp", "ep", "placement"} <= set(KNOBS)
    assert all(meaning and grammar for _, meaning, grammar in table)
