"""synthesize and simulate: ops against hand counts and real traces, bytes against the model, measures against formulas."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.cost.price import PriceContext, price
from moetrace.errors import ModelError, ScenarioError
from moetrace.forward import NO_LAYER, step_ops
from moetrace.hardware import load_hardware
from moetrace.machines.wafer import crossings_s
from moetrace.model import ModelSpec, load_model, model_names
from moetrace.model.sparse import index_key_bytes
from moetrace.op import Op, element_bytes
from moetrace.ops import family, work, works
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.simulation import step_weights
from moetrace.run import OPS_SCHEMA, Step
from moetrace.synthesize import Workload, synthesize
from tests.integration.test_real_traces import FOLDER, kineto

H100 = load_hardware("h100-sxm")
WAFER = load_hardware("cs3")
GQA = ["norm", "qkv_proj", "rope", "kv_write", "attention", "o_proj", "norm"]
QK_NORM = ["norm", "qkv_proj", "norm", "norm", "rope", "kv_write", "attention", "o_proj", "norm"]
ROUTED = ["router", "topk", "moe_align", "moe_gate_up", "moe_act", "moe_down", "moe_combine"]
SHARED = ["shared_gate_up", "shared_act", "shared_down"]
DENSE = ["dense_gate_up", "activation", "dense_down"]
MLA_IN, MLA_OUT = ["qkv_proj", "rope", "kv_write", "mla_attention", "o_proj", "o_proj"], ["norm"]
Q_LORA = ["norm", "qkv_proj", "norm", "norm", "qkv_proj"]  # one GEMM down for queries and latent, one up
NO_Q_LORA = ["norm", "qkv_proj", "qkv_proj", "norm"]


def of_layer(model: ModelSpec, layer: int, **how: Any) -> list[Op]:
    queries, context, decode = (how.get(k, d) for k, d in (("queries", 1), ("context", 64), ("decode", True)))
    beside = how.get("beside", (0, 0, 0))
    return [op for at, op in step_ops(model, 4, queries, context, decode, beside) if at == layer]


def small(name: str, layers: int = 4) -> ModelSpec:
    return load_model(name).with_edits(layers=layers)


def metric(model: ModelSpec, workload: Workload, *sets: str, hw: Any = H100) -> dict[str, float]:
    metrics = simulate(model, workload, hw, Scenario.of(*sets)).summary["metrics"]
    return {name: m["value"] for name, m in metrics.items()}


# -- which ops -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "layer", "kinds"),
    [
        ("mixtral-8x7b", 0, GQA + ROUTED),
        ("qwen3-8b", 1, QK_NORM + DENSE),
        ("olmoe-1b-7b", 3, QK_NORM + ROUTED),
        ("qwen1.5-moe-a2.7b", 2, GQA + SHARED + ROUTED),
        ("gpt-oss-20b", 5, GQA + [k for k in ROUTED if k != "moe_act"]),
        ("deepseek-v2-lite", 0, NO_Q_LORA + MLA_IN + MLA_OUT + DENSE),
        ("deepseek-v2-lite", 1, NO_Q_LORA + MLA_IN + MLA_OUT + SHARED + ROUTED),
        ("deepseek-v3", 60, Q_LORA + MLA_IN + MLA_OUT + SHARED + ROUTED),
    ],
)
def test_a_decode_layer_has_the_ops_that_a_hand_count_gives(name: str, layer: int, kinds: list[str]) -> None:
    assert [op.kind for op in of_layer(load_model(name), layer)] == kinds


def test_prefill_of_mla_expands_keys_and_values() -> None:
    ops = of_layer(load_model("deepseek-v3"), 5, queries=64, decode=False)
    assert not any(op.has("b") or op.kind == "mla_attention" for op in ops)
    assert Op.of("qkv_proj", "fp8_block", m=256, n=128 * 256, k=512) in ops
    attention = next(op for op in ops if op.kind == "attention")
    assert (attention["head_dim"], attention["v_dim"], attention["kv"], attention["q"]) == (
        192,
        128,
        256,
        256,
    )


def test_absorbed_projections_of_mla_by_hand() -> None:
    ops = of_layer(load_model("deepseek-v3"), 5)
    gemms = [(op.get("b", 1), op["m"], op["n"], op["k"]) for op in ops if op.kind in ("qkv_proj", "o_proj")]
    assert gemms == [
        (1, 4, 1536 + 576, 7168),
        (1, 4, 128 * 192, 1536),
        (128, 4, 512, 128),
        (128, 4, 128, 512),
        (1, 4, 7168, 128 * 128),
    ]


def test_ops_outside_of_the_layers_in_order() -> None:
    model = load_model("gpt-oss-20b")
    decode = [op for at, op in step_ops(model, 8, 1, 100) if at == NO_LAYER]
    assert [str(op) for op in decode] == [
        "embedding bf16 tokens=8 hidden=2880 vocab=201088",
        "norm bf16 tokens=8 width=2880 residual=1",
        "lm_head bf16 m=8 n=201088 k=2880",
        "sampling fp32 tokens=8 vocab=201088",
    ]
    prefill = [op for at, op in step_ops(model, 8, 100, 100, decode=False) if at == NO_LAYER]
    assert prefill[0]["tokens"] == 800
    assert [op["m"] for op in prefill if op.kind == "lm_head"] == [8]
    assert Op.of("elementwise", "bf16", elements=8 * 2880) in prefill


def test_a_window_caps_what_its_layers_read() -> None:
    model = load_model("gpt-oss-20b")  # even layers: window 128
    read = {
        context: [
            next(op for op in of_layer(model, layer, context=context) if op.kind == "attention")["kv"]
            for layer in (0, 1)
        ]
        for context in (100, 128, 1000)
    }
    assert read == {100: [400, 400], 128: [512, 512], 1000: [512, 4000]}
    first = next(
        op for op in of_layer(model, 0, queries=1000, context=1000, decode=False) if op.kind == "attention"
    )
    assert (first["kv"], first["window"], first["context"], first["q"]) == (4000, 128, 1000, 4000)


def test_a_kernel_that_cuts_what_lies_beyond_a_window_is_priced_as_measured_rows_are() -> None:
    sliding = load_model("gpt-oss-20b")
    made = next(op for op in of_layer(sliding, 0, context=8192) if op.kind == "attention")
    assert str(made) == (
        "attention bf16 batch=4 heads=64 kv_heads=8 head_dim=64 kv=512 window=128 context=8192"
    )
    within = made.with_dims(context=None)
    whole, short = price(works([made, within]), H100, context=PriceContext(engine="trtllm")).expected_s
    assert whole > short


# -- work against the model's own figures --------------------------------------------------------------------------
def weight_bytes(model: ModelSpec, **how: Any) -> float:
    """Weights that the GEMMs, experts and hidden-wide norms of one pass read; q/k norms are in no ModelSpec."""
    queries, decode = how.get("queries", 1), how.get("decode", True)
    ops = [op for _, op in step_ops(model, 100_000, queries, queries + 1, decode)]
    return sum(
        work(op).weight_bytes
        for op in ops
        if op.kind != "embedding" and (op.kind != "norm" or op["width"] == model.hidden)
    )


@pytest.mark.parametrize("name", [n for n in model_names() if load_model(n).expert_dtype != "mxfp4"])
@pytest.mark.parametrize("decode", [True, False])
def test_a_huge_batch_reads_all_the_models_weights_once(name: str, decode: bool) -> None:
    model = load_model(name)
    table = 0 if model.tie_embeddings else model.vocab * model.hidden * element_bytes(model.act_dtype)
    # Its q/k norms are as wide.
    olmoe = 2 * model.layers * model.hidden * 2 if model.architecture == "olmoe" else 0
    read = weight_bytes(model, queries=1 if decode else 2, decode=decode)
    # A gated norm is as wide as a value head; A and its bias are what the delta rule's kernel has in its registers.
    linear = sum(model.is_linear(i) for i in range(model.layers))
    table += linear * (2 * model.linear_heads + model.linear_v_dim) * 2
    assert read - olmoe == pytest.approx(model.weight_bytes() - table, rel=1e-9)


def test_mxfp4_experts_are_read_with_their_padding() -> None:
    model = load_model("gpt-oss-20b")
    table = model.vocab * model.hidden * 2
    experts = model.layers * model.experts * model.expert_bytes()
    padding = experts * ((3072 / 2880) ** 2 - 1)
    assert weight_bytes(model) == pytest.approx(model.weight_bytes() - table + padding, rel=1e-9)
    assert any(
        "padded to a multiple of 256" in note for note in synthesize(model, Workload(1, 2, 2)).meta.notes
    )


@pytest.mark.parametrize("name", [n for n in model_names() if load_model(n).expert_dtype != "mxfp4"])
def test_a_token_multiplies_the_active_parameters(name: str) -> None:
    model = load_model(name)
    flops = sum(
        work(op).flops
        for _, op in step_ops(model, 4, 1, 100)
        if op.has("m", "n", "k") or (family(op.kind) == "experts" and op.kind != "moe_act")
    )
    norms = (2 * model.layers + 1) * model.hidden
    keys, values = model.linear_widths
    small = (2 * keys + values) * model.linear_conv + 2 * model.linear_heads + model.linear_v_dim
    norms += small * sum(model.is_linear(i) for i in range(model.layers))  # no matrix of these is multiplied
    table = model.vocab * model.hidden if model.tie_embeddings else 0
    active = model.active_params(embedding=False) - norms
    assert table == 0 or active > table  # a tied table is counted once, as lm_head
    assert flops == pytest.approx(2 * 4 * active, rel=1e-9)


@pytest.mark.parametrize("name", model_names())
def test_attention_reads_the_kv_cache_once_and_writes_one_token(name: str) -> None:
    model, batch, context = load_model(name), 4, 20_000
    ops = [op for _, op in step_ops(model, batch, 1, context)]
    keys = index_key_bytes(model.index_dim)  # an indexer reads all of its own, and MLA what it picks
    held = sum(
        batch
        * (
            (model.kv_bytes_per_token(i) - keys)
            * min(context, model.index_topk or model.window(i) or context)
            + keys * context
        )
        for i in range(model.layers)
    )
    state = batch * sum(model.state_bytes(i) for i in range(model.layers))  # read and written, at any length
    assert sum(work(op).kv_read_bytes for op in ops) == pytest.approx(held + state)
    assert sum(work(op).kv_write_bytes for op in ops) == pytest.approx(
        batch * sum(model.kv_bytes_per_token(i) for i in range(model.layers)) + state
    )


def test_a_layer_with_linear_attention_by_hand() -> None:
    """Qwen3-Next: keys and queries of 16 heads of 128, values and their gate of 32; two prompts of 50 beside 4 sequences."""
    model = load_model("qwen3-next-80b-a3b")
    ops = of_layer(model, 0, context=100, beside=(2, 50, 50))
    assert [str(op) for op in ops[1:9]] == [
        "qkv_proj bf16 m=104 n=12288 k=2048",
        "qkv_proj bf16 m=104 n=64 k=2048",
        "linear_conv bf16 batch=4 tokens=4 width=8192 taps=4",
        "linear_conv bf16 batch=2 tokens=100 width=8192 taps=4 prompt=1",
        "linear_attention fp32/bf16 batch=4 heads=32 kv_heads=16 head_dim=128 v_dim=128",
        "linear_attention fp32/bf16 batch=2 heads=32 kv_heads=16 head_dim=128 v_dim=128 q=100 prompt=1",
        "norm bf16 tokens=3328 width=128 residual=1 writes=1",
        "o_proj bf16 m=104 n=2048 k=4096",
    ]
    full = [str(op) for op in of_layer(model, 3, context=100)]
    assert "qkv_proj bf16 m=4 n=9216 k=2048" in full and "o_proj bf16 m=4 n=2048 k=4096" in full
    assert "shared_gate bf16 m=4 n=1 k=2048" in full and not any(op.startswith("linear") for op in full)


def of_attention(context: int, decode: bool = True, queries: int = 1, batch: int = 4) -> list[str]:
    """The ops of DeepSeek-V3.2's first layer between its norms."""
    ops = [op for at, op in step_ops(load_model("deepseek-v3.2"), batch, queries, context, decode) if at == 0]
    return [str(op) for op in ops[1 : [op.kind for op in ops].index("dense_gate_up") - 1]]


def test_a_layer_with_an_indexer_by_hand() -> None:
    """DeepSeek-V3.2: 64 heads of 128 score 8,192 tokens of each of four sequences, 2,048 of which MLA attends to."""
    ops = of_attention(8192)
    assert ops[4:12] == [
        "index_proj fp8_block m=4 n=8192 k=1536",
        "index_proj fp8_block m=4 n=128 k=7168",
        "index_weights bf16 m=4 n=64 k=7168",
        "norm bf16 tokens=4 width=128",
        "index_prep fp8/bf16 elements=32768",
        "index_write fp8/bf16 tokens=4 head_dim=128",
        "index_scores fp8 heads=64 head_dim=128 batch=4 kv=32768",
        "index_topk fp32 chosen=2048 batch=4 kv=32768",
    ]
    assert "sparse_mla bf16 batch=4 heads=128 kv_lora=512 rope=64 kv=8192 chosen=2048" in ops
    dense = [op for at, op in step_ops(load_model("deepseek-v3"), 4, 1, 8192) if at == 0]
    assert set(ops) >= {str(op) for op in dense[1:5]}  # its other projections are MLA's own


@pytest.mark.parametrize(("context", "read"), [(2047, 2047), (2048, 2048), (2049, 2048)])
def test_a_context_up_to_what_is_picked_is_read_whole(context: int, read: int) -> None:
    picked = next(op for op in of_attention(context) if op.startswith("sparse_mla"))
    assert f" kv={4 * read} " in picked
    assert f"index_scores fp8 heads=64 head_dim=128 batch=4 kv={4 * context}" in of_attention(context)


def test_drafted_tokens_pick_each_their_own() -> None:
    """Three queries of a sequence read up to three times as many tokens, and no more than there are."""
    assert "kv=24576 chosen=2048 q=12" in next(op for op in of_attention(9000, queries=3) if "sparse" in op)
    assert "kv=20000 chosen=2048 q=12" in next(op for op in of_attention(5000, queries=3) if "sparse" in op)


@pytest.mark.parametrize("context", [2048, 2049])
def test_a_prompt_longer_than_what_is_picked_is_attended_to_in_the_latent(context: int) -> None:
    ops = of_attention(context, decode=False, queries=context, batch=1)
    long = context > 2048
    assert any(op.startswith("sparse_mla") for op in ops) == long
    assert any(op.startswith("attention") for op in ops) != long
    assert any("n=32768 k=512" in op for op in ops) != long  # keys and values expanded
    assert any(op.startswith("index_scores") for op in ops)


def test_prompts_beside_a_decode_are_taken_apart_by_their_own_length() -> None:
    model = load_model("deepseek-v3.2")
    ops = [op for at, op in step_ops(model, 4, 1, 1000, True, (1.5, 1000, 3000)) if at == 0]
    picked = [str(op) for op in ops if op.kind == "sparse_mla"]
    assert picked == [
        "sparse_mla bf16 batch=4 heads=128 kv_lora=512 rope=64 kv=4000 chosen=2048",
        "sparse_mla bf16 batch=2 heads=128 kv_lora=512 rope=64 kv=4500 chosen=2048 q=1500 pairs=3070308",
    ]
    # 2,001 to 2,048 tokens are seen by the first 48 queries of each, 2,048 by the other 952
    assert round(1.5 * (sum(range(2001, 2049)) + 952 * 2048)) == 3070308
    assert [op["kv"] for op in ops if op.kind == "index_scores"] == [4000, 4500]


def test_a_decode_is_synthesized_where_its_context_outgrows_what_is_picked() -> None:
    steps = synthesize("deepseek-v3.2", Workload(1, 2000, 200)).meta.steps
    assert 2048 in [step.kv_tokens for step in steps]
    assert 2048 not in [
        step.kv_tokens for step in synthesize("deepseek-v3", Workload(1, 2000, 200)).meta.steps
    ]


def test_every_op_of_every_model_has_known_work() -> None:
    for name in model_names():
        for decode, queries in ((True, 1), (False, 16)):
            ops = {op for _, op in step_ops(load_model(name), 2, queries, 16, decode)}
            assert [str(op) for op in ops if not work(op).known or family(op.kind) == "other"] == []


# -- against real engines ------------------------------------------------------------------------------------------
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real traces at {FOLDER}")
def test_gpt_oss_has_the_ops_that_vllm_launched() -> None:
    from moetrace.parse import parse

    name = "mi300x-vllm-gptoss20b-decode-b32"
    run = parse(kineto(f"{name}-graph"), capture_trace=kineto(f"{name}-capture"))
    recorded = Counter(map(str, run.table(["op"]).column("op").to_pylist()))
    made = Counter(str(op) for _, op in step_ops(load_model("gpt-oss-20b"), 32, 1, 1721))
    full = "attention bf16 batch=32 heads=64 kv_heads=8 head_dim=64 kv="
    made = Counter({op.replace(f"{full}{32 * 1721}", f"{full}55086"): n for op, n in made.items()})
    align = next(op for op in made if op.startswith("moe_align"))
    assert recorded[align] == 3 * made[align]  # that engine sorts in three kernels
    of_engine = ("memcpy", "elementwise", "attention_reduce", "moe_align")
    assert {op: n for op, n in recorded.items() if not op.startswith(of_engine)} == {
        op: n for op, n in made.items() if not op.startswith(("sampling", "moe_align"))  # the trace has no sampling
    }  # fmt: skip


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real traces at {FOLDER}")
def test_qwen3_has_the_ops_that_sglang_launched() -> None:
    from moetrace.parse import parse

    run = parse(kineto("mi300x-sglang-qwen3-8b-decode-b32-graph"), model="qwen3-8b")
    recorded = Counter(map(str, run.table(["op"]).column("op").to_pylist()))
    made = Counter(str(op) for _, op in step_ops(load_model("qwen3-8b"), 32, 1, 1025))
    attention = "attention bf16 batch=32 heads=32 kv_heads=8 head_dim=128 kv="
    made = Counter({op.replace(f"{attention}{32 * 1025}", f"{attention}32785"): n for op, n in made.items()})
    first = "norm bf16 tokens=32 width=4096"
    made[f"{first} residual=1"] += made.pop(first)  # there layer 0 runs the kernel that adds a residual, too
    del made[
        "embedding bf16 tokens=32 hidden=4096 vocab=151936"
    ]  # a gather kernel, which the parser cannot tell
    assert {op: recorded[op] for op in made} == made


# -- the run -------------------------------------------------------------------------------------------------------
def test_the_run_has_the_schema_and_its_steps() -> None:
    run = synthesize(load_model("olmoe-1b-7b"), Workload(16, 512, 100))
    assert run.table().schema.equals(OPS_SCHEMA)
    assert (run.meta.kind, run.meta.routing, run.meta.tp) == ("synthesized", "uniform", 1)
    assert [(s.name, s.phase, s.tokens, s.kv_tokens) for s in run.meta.steps] == [
        ("prefill", "prefill", 16 * 512, 16 * 512),
        ("decode 1", "decode", 16, 16 * 513),
        ("decode 50", "decode", 16, 16 * 562),
        ("decode 99", "decode", 16, 16 * 611),
    ]
    assert set(run.table().column("dur_ns").to_pylist()) == {0}
    assert run.table().column("flops").null_count == 0


def test_a_synthesized_run_replays_like_any_other(tmp_path: Any) -> None:
    run = synthesize(small("olmoe-1b-7b"), Workload(4, 64, 8)).save(tmp_path / "run")
    direct = replay(run, H100, Scenario.of("n_a=4", "dtype=fp8", "layers=8"))
    assert direct.summary["anchored"] == "unanchored" and direct.run.meta.kind == "predicted"
    assert direct.summary["distinct"]["topk"] == 4


@pytest.mark.parametrize(
    "bad", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (True, 1, 1), (1.0, 1, 1), (10**6, 10**6, 1)]
)
def test_a_workload_that_makes_no_sense_is_refused(bad: tuple[Any, ...]) -> None:
    with pytest.raises(ScenarioError, match=r"expected|at most"):
        Workload(*bad)


def test_experts_without_a_gate_are_refused() -> None:
    with pytest.raises(ModelError, match="no gate"):
        synthesize(replace(load_model("olmoe-1b-7b"), gated=False), Workload(1, 1, 2))


# -- which decode steps, and what they stand for -------------------------------------------------------------------
LENGTHS = st.tuples(st.integers(1, 5000), st.integers(1, 3000), st.lists(st.integers(1, 6000), max_size=3))


def decode_steps(contexts: tuple[int, ...], batch: int = 3) -> tuple[Step, ...]:
    first = Step(0, "prefill", "prefill", 0, 0, batch, batch, batch)
    return (
        first,
        *(Step(i, "d", "decode", 0, 0, batch, batch, batch * c) for i, c in enumerate(contexts, 1)),
    )


@given(LENGTHS)
def test_synthesized_steps_stand_for_all_decode_steps(lengths: tuple[int, int, list[int]]) -> None:
    prompt, out, windows = lengths
    contexts = Workload(3, prompt, out).contexts(windows)
    weights = step_weights(decode_steps(contexts))
    assert weights[0] == 0 and weights.sum() == pytest.approx(out - 1)
    every = np.arange(prompt + 1, prompt + out)
    for window in [*windows, 0]:  # what a window reads is a line with a kink at the window
        read = np.array([min(c, window or c) for c in contexts])
        assert float(weights[1:] @ read) == pytest.approx(np.minimum(every, window or every).sum())


def test_one_token_has_no_decode_step() -> None:
    metrics = simulate(small("olmoe-1b-7b"), Workload(4, 64, 1), H100).summary["metrics"]
    assert metrics["tpot"]["value"] is None and metrics["itl"]["high"] is None
    assert metrics["e2e"]["value"] == metrics["ttft"]["value"] > 0


# -- measures ------------------------------------------------------------------------------------------------------
def test_measures_follow_their_definitions() -> None:
    model, w = small("gpt-oss-20b"), Workload(16, 512, 256)
    result = simulate(model, w, H100)
    m, steps = {k: v["value"] for k, v in result.summary["metrics"].items()}, result.summary["steps"]
    assert m["ttft"] == steps[0]["step_s"]
    assert m["e2e"] == pytest.approx(m["ttft"] + sum(s["step_s"] * s["stands_for"] for s in steps))
    assert m["tpot"] == pytest.approx((m["e2e"] - m["ttft"]) / 255)
    assert m["tpot"] == pytest.approx(m["itl"] * (16 * 256 - 1) / 255)  # how the two definitions relate
    assert m["throughput"] == pytest.approx(16 * (512 + 256) / m["e2e"])
    assert m["output_throughput"] == pytest.approx(16 * 256 / m["e2e"])
    assert m["user_speed"] == pytest.approx(1 / m["tpot"])
    for measure in result.summary["metrics"].values():
        assert measure["low"] < measure["value"] < measure["high"]


def test_steps_and_families_add_up_to_the_predicted_run() -> None:
    result = simulate(small("deepseek-v2-lite"), Workload(8, 128, 64), H100)
    steps = result.run.meta.steps
    assert [s["step_s"] for s in result.summary["steps"]] == [
        pytest.approx((s.end_ns - s.start_ns) / 1e9) for s in steps
    ]
    families = result.summary["families"]
    assert sum(f["decode_s"] for f in families) == pytest.approx(result.summary["metrics"]["tpot"]["value"])
    assert sum(f["prefill_s"] for f in families) == pytest.approx(result.summary["metrics"]["ttft"]["value"])
    assert sum(f["decode_share"] for f in families) == pytest.approx(1)
    error = result.run.table(["error"]).column("error")
    assert error.null_count == 0


def test_memory_is_said_by_part_and_too_big_a_model_does_not_fit() -> None:
    w = Workload(16, 1000, 25)
    memory = simulate(load_model("qwen3-30b-a3b"), w, H100).summary["memory"]
    model = load_model("qwen3-30b-a3b")
    assert memory["weight_bytes"] == model.weight_bytes()
    assert memory["kv_bytes"] == pytest.approx(16 * 1024 * 48 * model.kv_bytes_per_token(0))
    assert memory["needed_bytes"] == pytest.approx(
        memory["weight_bytes"] + memory["kv_bytes"] + memory["framework_bytes"]
    )
    assert memory["fits"] is True
    assert simulate(small("deepseek-v3", 61), w, H100).summary["memory"]["fits"] is False


def test_the_batch_knob_gives_what_synthesizing_that_batch_gives() -> None:
    for name in ("gpt-oss-20b", "deepseek-v2-lite"):
        knob = metric(small(name), Workload(4, 300, 50), "batch=24")
        assert knob == {k: pytest.approx(v) for k, v in metric(small(name), Workload(24, 300, 50)).items()}


def test_context_is_the_workloads_business() -> None:
    with pytest.raises(ScenarioError, match="input and output lengths"):
        simulate(small("olmoe-1b-7b"), Workload(1, 8, 8), H100, Scenario.of("context=64"))


def test_what_lies_beyond_the_fit_is_said() -> None:
    def said(w: Workload) -> str:
        return " ".join(simulate(small("olmoe-1b-7b"), w, H100).summary["assumptions"])

    most = f"experts tokens above {H100.families['experts'].seen['tokens'][1]:g}"
    assert f"prefill: attention by q, {most}" in said(Workload(64, 512, 8)).replace(
        "dense_gemm m above 16384, ", ""
    )
    assert "prefill: attention by q" in said(Workload(4, 128, 8)) and "decode:" not in said(
        Workload(4, 128, 8)
    )
    decode = said(Workload(600, 2, 8)).partition("decode: ")[2].partition(";")[0]
    assert "attention batch above 512" in decode.split(", ")
    assert "static batch" in said(Workload(4, 128, 8)) and "uniform formula" in said(Workload(4, 128, 8))


# -- parallelism and wafers ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "qwen3-235b-a22b"])
def test_tensor_parallel_ranks_share_the_attention_weights(name: str) -> None:
    model = small(name)
    node = replace(H100, name="node-x4", base="h100-sxm", gpus=4)
    run = simulate(model, Workload(4, 16, 2), node, Scenario.of("tp=4")).run
    step = run.to_pandas(["step", "kind", "op", "layer"]).query("step == 1 and layer == 1")
    own = [Op.parse(str(t)) for t in step[step.kind.isin(["qkv_proj", "o_proj"])].op]
    whole = [op for op in of_layer(model, 1, context=17) if op.kind in ("qkv_proj", "o_proj")]
    # The latent, on each rank.
    repeated = {model.q_lora + model.kv_lora + model.rope_dim, model.kv_lora + model.rope_dim}
    for mine, op in zip(own, whole, strict=True):
        parts = 1 if model.attention == "mla" and op["n"] in repeated else 4
        assert work(mine).weight_bytes == pytest.approx(work(op).weight_bytes / parts), str(op)
    assert Counter(step.kind)["all_reduce"] == 2


def test_a_decode_step_on_wafers_sends_its_own_tokens_not_the_prefills() -> None:
    model, w = load_model("mixtral-8x7b"), Workload(4, 2048, 64)
    summary = simulate(model, w, WAFER).summary
    assert summary["wafers"] == 3
    network = next(f for f in summary["families"] if f["family"] == "communication")
    assert network["decode_s"] == pytest.approx(crossings_s(WAFER, 3, 4 * model.hidden * 2), abs=2e-9)
    assert network["prefill_s"] == pytest.approx(crossings_s(WAFER, 3, 4 * 2048 * model.hidden * 2), abs=2e-9)


# -- properties ----------------------------------------------------------------------------------------------------
MODELS = st.sampled_from(["olmoe-1b-7b", "gpt-oss-20b", "deepseek-v2-lite", "qwen1.5-moe-a2.7b"])
TIMES = ("ttft", "tpot", "e2e")


@settings(max_examples=25, deadline=None)
@given(MODELS, st.integers(1, 300), st.integers(1, 300), st.integers(1, 2000), st.integers(2, 600))
def test_more_batch_never_takes_less_time(name: str, batch: int, more: int, prompt: int, out: int) -> None:
    """But for GEMMs whose rows four divides, which need not be aligned first (`misaligned_s`, docs/laws.md)."""
    model = small(name, 2)
    few, many = (metric(model, Workload(b, prompt, out)) for b in (batch, batch + more))
    step_s = (10 * model.layers + 2) * H100.family("gemm", "dense_gemm", "bf16")[1]["misaligned_s"]
    aligned = {"ttft": step_s, "tpot": step_s, "e2e": out * step_s}
    assert [t for t in TIMES if many[t] < few[t] * (1 - 1e-6) - aligned[t]] == []


@settings(max_examples=25, deadline=None)
@given(MODELS, st.integers(1, 300), st.integers(1, 1000), st.integers(1, 3))
def test_fewer_active_experts_are_never_slower(name: str, batch: int, prompt: int, n_a: int) -> None:
    model, w = small(name, 2), Workload(batch, prompt, 16)
    native, fewer = metric(model, w), metric(model, w, f"n_a={n_a}")
    assert [t for t in TIMES if fewer[t] > native[t] * (1 + 1e-6)] == []


@settings(max_examples=25, deadline=None)
@given(MODELS, st.integers(1, 64), st.integers(1, 3000), st.integers(2, 300), st.integers(1, 2000))
def test_longer_prompts_take_no_less_time_but_for_the_last_block(
    name: str, batch: int, prompt: int, out: int, more: int
) -> None:
    """A step takes less by what its attentions no longer clear of a last block, at most `empty_s` a turn, where one block more
    than `whole_blocks` lets a kernel cut a sequence, by those that it walked one after the other, and where a window begins
    with a block, by the one that it touches no more (docs/laws.md)."""
    model = small(name, 2)
    short, long = (metric(model, Workload(batch, p, out)) for p in (prompt, prompt + more))
    kind = "mla_attention" if model.kv_lora else "attention"
    law = H100.family(kind, "attention", "bf16")[1]
    turns = 1 + batch * model.heads / H100.multiprocessors
    block_s = law["block_s"] or law["per_block_s"] + law["per_wide_s"] * model.head_dim / 128
    touched_s = block_s * any(model.windows)
    step_s = model.layers * ((law["empty_s"] + touched_s) * turns + block_s * law["whole_blocks"])
    cleared = {"ttft": step_s, "tpot": step_s, "e2e": out * step_s}
    assert [t for t in TIMES if long[t] < short[t] * (1 - 1e-6) - cleared[t]] == []


@settings(max_examples=15, deadline=None)
@given(MODELS, st.integers(1, 128), st.integers(1, 512), st.integers(2, 64))
def test_faster_memory_and_peaks_never_slow_it(name: str, batch: int, prompt: int, out: int) -> None:
    faster = replace(
        H100,
        peaks={k: 2 * v for k, v in H100.peaks.items()},
        memory=replace(H100.memory, bytes_per_s=2 * H100.memory.bytes_per_s),
    )
    model, w = small(name, 2), Workload(batch, prompt, out)
    here, there = metric(model, w), metric(model, w, hw=faster)
    assert all(there[t] <= here[t] for t in TIMES) and there["ttft"] >= here["ttft"] / 2
