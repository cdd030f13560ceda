"""dp, pp, two-batch overlap, gpus and nodes: what a rank computes, what is sent, and what a step then takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.replay import Scenario, replay, scenarios, shares, simulate
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.engine import PARTED
from moetrace.replay.memory import attention_params, rank_weights, sequence_bytes
from moetrace.replay.parallel import Parallel
from moetrace.run import Run
from moetrace.synthesize import Workload, synthesize
from tests.unit.test_knobs import ops_of

V3, QWEN = load_model("deepseek-v3"), load_model("qwen3-30b-a3b")
NODE = load_hardware("h200-sxm-x8")
LOAD = Workload(64, 512, 32)


@pytest.fixture(scope="module")
def run() -> Run:
    return synthesize(QWEN, LOAD)


def on_node(run: Run, *sets: str) -> Draft:
    return edited(run, NODE, Scenario.of(*sets))


def tpot(*sets: str, model: str = "qwen3-30b-a3b", hw: object = NODE, load: Workload = LOAD) -> float:
    done = simulate(load_model(model), load, hw, Scenario.of(*sets))  # type: ignore[arg-type]
    return float(done.summary["metrics"]["tpot"]["value"])


def test_halves_in_a_pipeline_leave_communication_only_what_compute_does_not_fill() -> None:
    load = Workload(64, 2000, 32)
    plain, halved = (
        simulate(QWEN, load, NODE, Scenario.of("tp=4", "pp=2", *more)).summary["families"]
        for more in ((), ("overlap=two_batch",))
    )
    shares = [{row["family"]: row["prefill_share"] for row in rows} for rows in (plain, halved)]
    assert shares[1]["communication"] <= shares[0]["communication"] + 0.02


# -- attention data parallel ---------------------------------------------------------------------------------------
def test_each_group_attends_to_its_own_sequences_and_experts_see_all_tokens(run: Run) -> None:
    draft = on_node(run, "dp=8", "ep=8")
    decode = [op for op in ops_of(draft, "attention") if not op.has("q")]
    assert {op["batch"] for op in decode} == {8} and {op["heads"] for op in decode} == {QWEN.heads}
    experts = [op for op in ops_of(draft, "moe_gate_up") if op["tokens"] == 64]
    assert (
        experts
        and {op["local_experts"] for op in experts} == {16}
        and {op["inter"] for op in experts} == {768}
    )
    dispatch, collect = ops_of(draft, "moe_dispatch"), ops_of(draft, "moe_collect")
    assert len(dispatch) == len(collect) == len(ops_of(draft, "moe_down"))
    assert min(op["bytes"] for op in dispatch) == 8 * 8 * 2048 * 2
    assert {(op["topk"], op["ranks"], op["experts"]) for op in dispatch} == {(8, 8, 128)}
    assert not ops_of(draft, "all_reduce")


def test_without_ep_tokens_are_gathered_and_sums_scattered(run: Run) -> None:
    draft = on_node(run, "dp=2", "tp=4")
    assert {op["inter"] for op in ops_of(draft, "moe_down")} == {768 // 8}
    assert {op["ranks"] for op in ops_of(draft, "all_gather")} >= {2}
    assert min(op["bytes"] for op in ops_of(draft, "reduce_scatter")) == 64 * 2048 * 2
    assert {op["heads"] for op in ops_of(draft, "attention")} == {8}


def test_fp8_tokens_are_dispatched_in_one_byte() -> None:
    draft = on_node(synthesize(V3, LOAD), "dp=8", "ep=8")
    assert min(op["bytes"] for op in ops_of(draft, "moe_dispatch")) == 8 * 8 * 7168
    assert min(op["bytes"] for op in ops_of(draft, "moe_collect")) == 8 * 8 * 7168 * 2


def test_dp_of_a_dense_model_is_refused() -> None:
    with pytest.raises(ScenarioError, match="run 8 of them"):
        on_node(synthesize(load_model("qwen3-8b"), LOAD), "dp=8")


# -- pipelines -----------------------------------------------------------------------------------------------------
def test_a_decode_step_goes_through_the_stages_in_parts(run: Run) -> None:
    draft = on_node(run, "pp=8")
    decode = [op for op in ops_of(draft, "attention") if not op.has("q")]
    assert {op["batch"] for op in decode} == {8}
    sends = ops_of(draft, "send_recv")
    assert len(sends) == 7 * len(draft.steps) and min(op["bytes"] for op in sends) == 8 * 2048 * 2
    prefill, first = draft.shares[0], draft.shares[1]
    assert (first.batch, first.times, first.busy) == (8, 1.0, 1.0)
    assert (
        prefill.times == (8 + 7) / 8 and prefill.busy == 8 / 15
    )  # 64 prompts of 512 tokens, in parts of 4,096


@pytest.mark.parametrize(
    ("prompt", "size"), [(2048, 2048), (4096, 2048), (32_000, 8000), (32_768, 8192), (65_536, 8192)]
)
def test_prompts_go_through_the_stages_in_parts_of_their_tokens(prompt: int, size: int) -> None:
    load, node = Workload(1, prompt, 2), load_hardware("h100-sxm-x4")
    draft = edited(synthesize(QWEN, load), node, Scenario.of("pp=4"))
    assert draft.shares[0].times == (prompt / size + 3) / 4
    first = [op for op, at in zip(draft.ops, draft.at, strict=True) if at.step == 0]
    assert {op["tokens"] for op in first if op.kind == "moe_gate_up"} == {size}
    (attention,) = {op for op in first if op.kind == "attention"}
    assert attention["pairs"] == pytest.approx(prompt * (prompt + 1) / 2 * size / prompt, abs=1)
    assert attention["q"] == size and attention["kv"] == (prompt + size) / 2  # of all parts the mean


@pytest.mark.parametrize("prompt", [4096, 65_536, 131_072, 1_000_000])
@pytest.mark.parametrize("model", [QWEN, load_model("gpt-oss-20b"), load_model("deepseek-v2-lite")])
def test_parts_of_a_long_prompt_attend_as_long_as_the_whole_of_it(prompt: int, model: ModelSpec) -> None:
    """A part's kernel reads what came before it: as if that were all of its keys, parts of 131,072 tokens took a sixteenth."""

    def attention_s(machine: str, *sets: str) -> float:
        run = simulate(model, Workload(1, prompt, 2), machine, Scenario.of(*sets)).run.to_pandas()
        mine = run[(run.step == 0) & run.kind.isin(["attention", "mla_attention"])]
        (queries,) = {Op.parse(text)["q"] for text in mine.op}
        return float(mine.dur_ns.sum()) / 1e9 * prompt / queries

    whole = attention_s("h100-sxm")
    assert attention_s("h100-sxm-x2", "pp=2") == pytest.approx(whole, rel=0.1 if prompt > 4096 else 0.3)


@pytest.mark.parametrize(
    "sets", [("pp=4",), ("pp=2", "dp=2"), ("dp=4",), ("dp=4", "ep=4"), ("dp=4", "ep=4", "overlap=two_batch")]
)
def test_a_prompt_is_cut_alike_in_a_static_batch_and_beside_decoding(sets: tuple[str, ...]) -> None:
    """All that is between them is half of a decode step, attention to the one sequence that decodes beside it, and the further
    tiles that its token begins."""
    load, node = Workload(1, 4096, 64, host_s=0.0), load_hardware("h100-sxm-x4")
    alone, served = (
        simulate(QWEN, load, node, Scenario.of(*sets, "routing=uniform", *more)).summary
        for more in ((), ("serving=continuous",))
    )
    begun = served["metrics"]["ttft"]["value"] - alone["metrics"]["tpot"]["value"] / 2
    assert begun == pytest.approx(alone["metrics"]["ttft"]["value"], rel=0.025)
    told = [{row["family"]: row["prefill_s"] for row in found["families"]} for found in (alone, served)]
    for family in ("experts", "dense_gemm", "communication"):
        if family in told[0]:
            assert told[0][family] == pytest.approx(told[1][family], rel=0.02), family


def test_more_stages_than_layers_are_refused(run: Run) -> None:
    with pytest.raises(ScenarioError, match="48 layers"):
        edited(run, load_hardware("h200-sxm-x49"), Scenario.of("pp=49"))


# -- overlap -------------------------------------------------------------------------------------------------------
def test_two_halves_hide_communication_where_it_is_long() -> None:
    """Between nodes and with much to compute; within a node low-latency exchanges are the processors' own work."""
    nodes, sets = load_hardware("h100-sxm-x32"), ("dp=32", "ep=32")
    big = Workload(32 * 256, 2000, 2)
    assert tpot(*sets, "overlap=two_batch", hw=nodes, load=big) < 0.95 * tpot(*sets, hw=nodes, load=big)
    assert tpot(*sets, "overlap=two_batch", hw=nodes, load=Workload(64, 512, 32)) > tpot(
        *sets, hw=nodes, load=Workload(64, 512, 32)
    )  # weights are read twice, and little is sent
    near = ("dp=8", "ep=8")
    assert tpot(*near, "overlap=two_batch") > tpot(*near)
    assert tpot(*near, "overlap=none") == tpot(*near)


def halved(*sets: str, batch: int, prompt: int = 100, served: bool = False) -> dict[str | None, bool]:
    """Whether each kind of step goes in halves, of a load on four GPUs."""
    load = Workload(batch, prompt, 64, served=served, groups=4)
    draft = edited(
        synthesize(QWEN, load), load_hardware("h100-sxm-x4"), Scenario.of("overlap=two_batch", *sets)
    )
    return {step.phase: bool(share.halves) for step, share in zip(draft.steps, draft.shares, strict=True)}


def test_vllm_halves_from_so_many_tokens_of_each_group() -> None:
    vllm = ("dp=4", "ep=4", "engine=vllm")
    assert halved(*vllm, batch=128)["decode"] and not halved(*vllm, batch=127)["decode"]  # one group has 31
    assert (
        halved(*vllm, batch=24)["prefill"] and not halved(*vllm, batch=20)["prefill"]
    )  # 600 tokens each, 500
    assert not halved(*vllm, batch=5, prompt=5000)[
        "prefill"
    ]  # one group has two prompts, the others' second half is empty
    assert halved("dp=4", "ep=4", batch=20) == {"prefill": True, "decode": True}
    assert halved("dp=4", "ep=4", "engine=sglang", batch=20) == {"prefill": True, "decode": True}


def test_vllm_halves_between_groups_alone() -> None:
    assert halved("tp=4", "engine=vllm", batch=256) == {"prefill": False, "decode": False}
    assert halved("tp=4", batch=256) == {"prefill": True, "decode": True}


@pytest.mark.parametrize(("engine", "expected"), [("any", True), ("sglang", False), ("vllm", False)])
def test_groups_without_prompts_keep_the_others_from_halves(engine: str, expected: bool) -> None:
    """Of 128 sequences two prompts come in a step: SGLang's groups disagree, vLLM's second halves would be empty."""
    found = halved("dp=4", "ep=4", f"engine={engine}", batch=128, prompt=4096, served=True)
    assert found == {"mixed": expected, "decode": True}


def test_an_interval_holds_halves_that_hide_half_as_much() -> None:
    """Whatever the ops' own errors; without halves nothing is added."""
    sets = ("dp=8",)
    both = simulate(QWEN, LOAD, NODE, Scenario.of(*sets, "overlap=two_batch")).summary["metrics"]["tpot"]
    alone = simulate(QWEN, LOAD, NODE, Scenario.of(*sets)).summary["metrics"]["tpot"]
    assert both["high"] / both["value"] > 1.02 * alone["high"] / alone["value"]
    assert shares.with_unhidden(np.array([100.0]), np.array([103.0]), np.array([4.0])).tolist() == [105.0]
    assert shares.with_unhidden(np.array([100.0]), np.array([103.0]), np.array([0.0])).tolist() == [103.0]


@pytest.mark.parametrize("sets", [("overlap=two_batch",), ("pp=2",)])
def test_experts_have_what_the_largest_parts_of_all_groups_send(sets: tuple[str, ...]) -> None:
    """Two groups of 3 part into 2 + 1 each, two of 4 and 3 into 2 + 2 and 2 + 1: a sequence more never makes a step shorter."""
    node = load_hardware("h200-sxm-x4" if "pp=2" in sets else "h200-sxm-x2")

    def tokens(batch: int) -> set[float]:
        run = synthesize(QWEN, Workload(batch, 512, 32))
        draft = edited(run, node, Scenario.of("dp=2", *sets))
        cells = zip(draft.ops, draft.at, strict=True)
        return {op["tokens"] for op, at in cells if op.kind == "moe_gate_up" and at.step}

    assert [tokens(n) for n in (4, 5, 6, 7, 8, 9)] == [{2}, {3}, {4}, {4}, {4}, {5}]


@pytest.mark.parametrize(
    ("sets", "parted"), [(("dp=8", "overlap=two_batch"), True), (("tp=4", "pp=2"), True), (("tp=8",), False)]
)
def test_a_run_whose_steps_are_in_parts_says_what_is_idle_in_it(sets: tuple[str, ...], parted: bool) -> None:
    """Of two halves its table has one: `attribute` would call the other's time idle without a word."""
    run = replay(synthesize(QWEN, LOAD), NODE, Scenario.of(*sets)).run
    assert (PARTED in run.meta.notes) == parted


def test_families_add_up_to_the_step_also_where_halves_overlap() -> None:
    done = simulate(QWEN, LOAD, NODE, Scenario.of("dp=8", "ep=8", "overlap=two_batch")).summary
    total = sum(row["decode_s"] for row in done["families"])
    assert total == pytest.approx(done["metrics"]["tpot"]["value"], rel=1e-6)
    assert sum(row["prefill_s"] for row in done["families"]) == pytest.approx(
        done["metrics"]["ttft"]["value"], rel=1e-6
    )


def test_nothing_to_hide_on_one_device(run: Run) -> None:
    with pytest.raises(ScenarioError, match="no collective"):
        edited(run, load_hardware("h200-sxm"), Scenario.of("overlap=two_batch"))


# -- sizes ---------------------------------------------------------------------------------------------------------
def test_gpus_and_nodes_size_the_machine(run: Run) -> None:
    one = load_hardware("h200-sxm")
    pairs = scenarios(["gpus=1,2,8", "tp=2,8"], [one], run)
    assert [(hw.name, s.label) for hw, s in pairs] == [
        ("h200-sxm", "as recorded"), ("h200-sxm-x2", "tp=2"), ("h200-sxm-x8", "tp=8"),
    ]  # fmt: skip
    assert [hw.gpus for hw, _ in scenarios(["nodes=2", "ep=16"], [one], run)] == [16]
    assert tpot("gpus=8", "tp=8", hw=one) == tpot("tp=8")
    with pytest.raises(ScenarioError, match="sized by one of them"):
        scenarios(["nodes=2", "gpus=8", "tp=8"], [one], run)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
)
def test_a_parallelism_fits_where_its_product_is_the_devices(tp: int, ep: int, pp: int, dp: int) -> None:
    p = Parallel(tp, ep, pp, dp)
    fits = p.problem(8, "node") is None
    assert fits == (tp * pp * dp == 8 and (tp * dp) % ep == 0)
    if fits:
        assert p.expert_tp * p.ep == p.stage


# -- memory --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b", "llama-3.2-1b", "llama-4-maverick"]
)
def test_one_rank_holds_the_whole_model(name: str) -> None:
    model = load_model(name)
    assert sum(rank_weights(model, Parallel()).values()) == pytest.approx(model.weight_bytes(), rel=1e-9)
    assert attention_params(model, 1) == model.layer_params(0)["attention"]
    tokens = sequence_bytes(model, Parallel(), 100, "bf16")
    state = sum(model.state_bytes(i) for i in range(model.layers))
    assert tokens == pytest.approx(
        state + 100 * sum(model.kv_bytes_per_token(i) for i in range(model.layers))
    )


def test_the_state_of_linear_attention_is_cut_over_ranks_and_does_not_grow() -> None:
    """Qwen3-Next: 36 states of 2 MiB and their convolutions, and 12 layers of 2 KV heads, of which each rank has one."""
    model = load_model("qwen3-next-80b-a3b")
    state, per_token = 36 * (32 * 128 * 128 * 4 + 8192 * 3 * 2), 12 * 2 * 2 * 256 * 2
    for context in (1, 100_000):
        assert sequence_bytes(model, Parallel(), context, "bf16") == state + per_token * context
        four = sequence_bytes(model, Parallel(4), context, "bf16")
        assert four == pytest.approx(state / 4 + per_token * context / 2)
    assert sequence_bytes(model, Parallel(), 100, "fp8") == state + per_token * 50
    linear, full = attention_params(model, 4, 0), attention_params(model, 4, 3)
    assert linear == model.layer_params(0)["attention"] / 4
    assert full == 2048 * 256 * (3 * 16 / 4 + 2)  # query, its gate and the output; a KV head whole


def test_a_layer_with_linear_attention_is_cut_by_its_heads() -> None:
    run = synthesize(load_model("qwen3-next-80b-a3b"), LOAD)
    d = on_node(run, "tp=8")
    ops = {str(op) for op, at in zip(d.ops, d.at, strict=True) if at.layer == 0}
    assert "linear_conv bf16 batch=64 tokens=64 width=1024 taps=4" in ops
    assert "linear_attention fp32/bf16 batch=64 heads=4 kv_heads=2 head_dim=128 v_dim=128" in ops
    assert {"qkv_proj bf16 m=64 n=1536 k=2048", "qkv_proj bf16 m=64 n=8 k=2048"} <= ops
    assert {"o_proj bf16 m=64 n=2048 k=512", "shared_gate bf16 m=64 n=1 k=2048"} <= ops
    full = {str(op) for op, at in zip(d.ops, d.at, strict=True) if at.layer == 3}
    assert "qkv_proj bf16 m=64 n=1536 k=2048" in full  # 2 of 16 heads twice, one KV head
    with pytest.raises(ScenarioError, match="kv_heads=2 of linear_attention does not divide by 8"):
        on_node(synthesize(load_model("qwen3-next-80b-a3b").with_edits(linear_kv_heads=2), LOAD), "tp=8")


def test_a_layer_of_one_attention_never_stands_for_the_other() -> None:
    """Three recorded layers of Qwen3-Next are all linear: the fourth cannot be made of them."""
    run = synthesize(load_model("qwen3-next-80b-a3b").with_edits(layers=3), LOAD)
    with pytest.raises(ScenarioError, match="layers=4: layer 3 is MoE, and no MoE layer was recorded"):
        edited(run, load_hardware("h100-sxm"), Scenario.of("layers=4"))
    four = synthesize(load_model("qwen3-next-80b-a3b").with_edits(layers=4), LOAD)
    nine = edited(four, load_hardware("h100-sxm"), Scenario.of("layers=9"))
    full = {
        at.layer: at.source_layer for op, at in zip(nine.ops, nine.at, strict=True) if op.kind == "attention"
    }
    assert full == {3: 3, 7: 3}


@pytest.mark.parametrize(
    "p", [Parallel(8), Parallel(8, 8), Parallel(1, 8, 1, 8), Parallel(2, 8, 1, 4), Parallel(4, 1, 2)], ids=str
)
def test_ranks_together_hold_the_model_and_what_is_repeated(p: Parallel) -> None:
    held = {name: size * p.devices for name, size in rank_weights(V3, p).items()}
    own = rank_weights(V3, Parallel())
    assert held["experts"] == pytest.approx(own["experts"], rel=0.08)  # pipeline stages are not all of a size
    assert held["attention"] >= own["attention"] * p.dp * 0.999
    assert sum(held.values()) >= V3.weight_bytes() * 0.999


def test_out_of_memory_says_what_would_fit() -> None:
    load = Workload(512, 8192, 1024)
    memory = simulate(QWEN, load, "h100-sxm").summary["memory"]
    assert memory["fits"] is False and 0 < memory["largest_batch"] < 512
    again = Workload(memory["largest_batch"], 8192, 1024)
    assert simulate(QWEN, again, "h100-sxm").summary["memory"]["fits"] is True
    more = Workload(memory["largest_batch"] + 1, 8192, 1024)
    assert simulate(QWEN, more, "h100-sxm").summary["memory"]["fits"] is False
    assert simulate(V3, LOAD, "h100-sxm").summary["memory"]["largest_batch"] == 0


# -- eager ---------------------------------------------------------------------------------------------------------
def test_eager_waits_for_the_host_where_kernels_are_short() -> None:
    small = Workload(1, 128, 16)
    on, off = (
        tpot(f"graph={how}", model="qwen3-0.6b", hw=load_hardware("b200"), load=small)
        for how in ("on", "off")
    )
    assert off > on * 1.01
    with pytest.raises(ScenarioError, match="not a GPU"):
        simulate(QWEN, small, "cs3", Scenario.of("graph=off"))


def test_an_engine_chooses_its_own_coefficients() -> None:
    small, one = Workload(16, 256, 16), load_hardware("h100-sxm")
    slow = one.families["experts"].with_fixed_times(3)
    hw = replace(
        one, families={**{k: f for k, f in one.families.items() if "@" not in k}, "experts@vllm": slow}
    )
    assert (
        tpot("engine=vllm", hw=hw, load=small)
        > tpot(hw=hw, load=small)
        == tpot("engine=any", hw=hw, load=small)
    )
    with pytest.raises(ScenarioError, match="it has vllm"):
        tpot("engine=sglang", hw=hw, load=small)
    with pytest.raises(ScenarioError, match="no engines"):
        simulate(QWEN, small, "cs3", Scenario.of("engine=vllm"))


def test_queries_normalised_over_all_heads_are_summed_over_ranks_once_a_layer() -> None:
    """MiniMax-M2: each rank has 6 of 48 query heads and 1 of 8 KV heads, and sends two fp32 sums of each token."""
    model = load_model("minimax-m2")
    run = synthesize(model, Workload(4, 32, 2))
    draft = on_node(run, "tp=8")
    decode = [(draft.ops[c], draft.at[c]) for c in draft.cell.tolist()]
    decode = [op for op, at in decode if draft.steps[at.step].phase == "decode"]
    norms = [op["width"] for op in decode if op.kind == "norm" and not op.has("residual")]
    assert norms == [model.hidden, *[48 * 128 // 8, 128] * model.layers]
    sums = [i for i, op in enumerate(decode) if op.kind == "all_reduce" and op["bytes"] == 4 * 2 * 4]
    assert len(sums) == model.layers and {decode[i + 1].kind for i in sums} == {"rope"}
    assert {decode[i].dtype for i in sums} == {"fp32"}
