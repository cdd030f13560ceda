"""Simulations under a steady load, with drafted tokens, with a price: what each adds to a static batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import ops as work_of
from moetrace.errors import ScenarioError
from moetrace.forward import step_ops
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.parse import parse
from moetrace.replay import Scenario, replay, scenarios, simulate
from moetrace.replay.economics import economics, read_prices
from moetrace.replay.load import read_load, workload_of
from moetrace.replay.measures import STEP_OVERHEAD_S, Draft, first_and_rest
from moetrace.report.facts import report_facts
from moetrace.run import Step
from moetrace.synthesize import Workload, synthesize
from tests.conftest import REPO

OLMOE, H100 = load_model("olmoe-1b-7b"), load_hardware("h100-sxm")
LOAD = Workload(16, 512, 128)


def measured(*sets: str, load: Workload = LOAD, name: str = "tpot", model: str = "olmoe-1b-7b") -> float:
    done = simulate(load_model(model), load, H100, Scenario.of(*sets)).summary
    return float(done["metrics"][name]["value"])


# -- the mixed step ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["olmoe-1b-7b", "deepseek-v2-lite", "gpt-oss-20b", "qwen3-0.6b"])
def test_a_mixed_step_is_a_decode_and_a_prefill_in_one(name: str) -> None:
    model = load_model(name)
    mixed = [op for _, op in step_ops(model, 16, 1, 700, True, (2, 512, 512))]
    decode = [op for _, op in step_ops(model, 16, 1, 700)]
    prefill = [op for _, op in step_ops(model, 2, 512, 512, False)]

    def total(ops: list[object], what: str, *kinds: str) -> float:
        return sum(getattr(work_of.work(op), what) for op in ops if op.kind in kinds)  # type: ignore[attr-defined, arg-type]

    for kinds in (("attention", "mla_attention"), ("moe_gate_up", "moe_down"), ("o_proj",)):
        apart = total(decode, "flops", *kinds) + total(prefill, "flops", *kinds)
        assert total(mixed, "flops", *kinds) == pytest.approx(apart, rel=1e-9)
    assert total(mixed, "weight_bytes", "qkv_proj", "lm_head") < 1.3 * total(
        decode, "weight_bytes", "qkv_proj", "lm_head"
    )
    (head,) = [op for op in mixed if op.kind == "lm_head"]
    assert head["m"] == 16 + 2


def test_prompts_longer_than_a_step_come_in_parts() -> None:
    load = Workload(4, 20_000, 100, served=True)
    assert load.parts == 3 and load.beside == (1, 8192, 14_096)
    assert Workload(256, 128, 64, served=True).beside[0] == 4
    with pytest.raises(ScenarioError, match="chunk"):
        Workload(1, 1, 1, True, 0)


def test_a_steady_load_that_decodes_nothing_is_refused() -> None:
    """Its throughput was all prompts over the time of one of them: 700 times what the steps work through."""
    with pytest.raises(ScenarioError, match=r"output_len=1.*serving=static, or for 2 tokens"):
        simulate(OLMOE, Workload(1000, 8192, 1), H100, Scenario.of("serving=continuous"))


def test_a_model_is_named_as_a_machine_is() -> None:
    named, loaded = (simulate(model, LOAD, "h100-sxm").summary for model in (OLMOE.name, OLMOE))
    assert named == loaded and load_model(OLMOE) is OLMOE


# -- a steady load -------------------------------------------------------------------------------------------------
def test_a_lone_sequence_waits_only_for_the_host() -> None:
    alone = replace(LOAD, batch=1)
    static, served = (measured(*sets, load=alone) for sets in (("routing=skewed",), ("serving=continuous",)))
    assert served == pytest.approx(static + STEP_OVERHEAD_S, rel=1e-6)


@given(st.integers(0, 50_000), st.integers(2, 40), st.sampled_from(["static", "continuous"]))
@settings(max_examples=20)
def test_a_stated_host_adds_its_time_to_every_step(us: int, out: int, serving: str) -> None:
    load = replace(LOAD, output_len=out, served=serving == "continuous", host_s=0.0)
    steps = synthesize(OLMOE, load).meta.steps
    seconds = np.linspace(2e-3, 3e-3, len(steps))
    (first, rest), (later_first, later_rest) = (
        first_and_rest(steps, seconds, replace(load, host_s=host)) for host in (0.0, us * 1e-6)
    )
    waited = load.parts + 0.5 if load.served else 1
    assert later_first == pytest.approx(first + waited * us * 1e-6)
    others = (load.batch - 1) * load.chunks / load.beside[0] if load.served else 0.0
    assert later_rest == pytest.approx(rest + max(out - 1, others) * us * 1e-6)


def test_a_host_of_the_users_takes_the_place_of_the_assumed_one() -> None:
    assert measured("serving=continuous", "host=500us") == pytest.approx(measured("serving=continuous"))
    assert measured("host=2ms") == pytest.approx(measured() + 2e-3)
    with pytest.raises(ScenarioError, match="5ms"):
        measured("host=5")


def test_eager_launches_are_as_sure_as_the_time_of_a_launch() -> None:
    alone = replace(LOAD, batch=1)
    found = simulate(OLMOE, alone, H100, Scenario.of("graph=off")).summary["metrics"]["tpot"]
    assert found["high"] == pytest.approx(2 * found["value"], rel=0.05)
    assert found["low"] < 0.9 * found["value"]


def test_other_prompts_hold_decoding_up_by_less_than_their_prefill() -> None:
    static = measured("routing=skewed")
    served = measured("serving=continuous")
    alone = measured("routing=skewed", load=replace(LOAD, batch=1), name="ttft")
    assert static < served < static + STEP_OVERHEAD_S + 15 * alone / 127


def test_a_steady_load_says_what_it_takes_for_granted() -> None:
    done = simulate(OLMOE, LOAD, H100, Scenario.of("serving=continuous")).summary
    assert done["serving"] == "continuous" and done["label"] == "serving=continuous"
    said = " ".join(done["assumptions"])
    assert "a steady load" in said and "routing=skewed" in said and "static batch" not in said
    assert done["distinct"]["source"] == "routing=skewed"
    stated = simulate(OLMOE, LOAD, H100, Scenario.of("serving=continuous", "routing=uniform")).summary
    assert stated["distinct"]["mean_distinct"] > done["distinct"]["mean_distinct"]
    assert [step["phase"] for step in done["steps"]].count("mixed") == 1


@pytest.mark.parametrize(("batch", "chunk", "queued"), [(32, 512, False), (33, 512, True), (33, 1024, False)])
def test_a_steady_load_whose_prompts_outrun_its_steps_says_so(batch: int, chunk: int, queued: bool) -> None:
    """Prompts of 1,024 tokens in chunks of 512 take two steps each, while each sequence decodes 64."""
    load = replace(LOAD, batch=batch, input_len=1024, output_len=64)
    done = simulate(OLMOE, load, H100, Scenario.of("serving=continuous", f"chunk={chunk}")).summary
    said = [line for line in done["assumptions"] if "more prompts arrive" in line]
    assert len(said) == queued and done["queued"] is queued
    if queued:
        assert "take 66 steps while one decodes 64 tokens" in said[0]


@given(st.integers(1, 5000), st.integers(1, 9000), st.integers(2, 300), st.sampled_from([256, 8192]))
def test_no_step_of_a_steady_load_is_left_out_nor_does_a_faster_one_slow_it(
    batch: int, prompt: int, out: int, chunk: int
) -> None:
    """E2E is no shorter than the steps that work on others' prompts, and not longer where only those that decode are faster."""
    load = Workload(batch, prompt, out, served=True, chunk=chunk, host_s=0.0)
    steps = synthesize(OLMOE, load).meta.steps
    slow, fast = (np.array([step if s.phase == "decode" else 3e-3 for s in steps]) for step in (2e-3, 1e-3))
    (first, rest), (sooner, less) = (first_and_rest(steps, each, load) for each in (slow, fast))
    assert rest >= (batch - 1) * max(1.0, prompt / chunk) / load.beside[0] * 3e-3 * (1 - 1e-9)
    assert sooner <= first and less <= rest * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(2, 3000), st.integers(1, 600))
def test_first_and_rest_are_sums_of_steps(batch: int, prompt: int, out: int) -> None:
    load = Workload(batch, prompt, out)
    contexts = load.contexts()
    steps = (
        Step(0, "prefill", "prefill", 0, 0, batch, batch * prompt, batch * prompt),
        *(Step(i, "d", "decode", 0, 0, batch, batch, batch * c) for i, c in enumerate(contexts, 1)),
    )
    seconds = np.array([2.0, *(0.001 * c for c in contexts)])
    first, rest = first_and_rest(steps, seconds, load)
    assert first == 2.0
    assert rest == pytest.approx(sum(0.001 * (prompt + i) for i in range(1, out)), rel=1e-9)


def test_of_one_token_there_is_no_rest() -> None:
    done = simulate(OLMOE, Workload(4, 64, 1), H100).summary
    assert done["metrics"]["tpot"]["value"] is None and done["metrics"]["ttft"]["value"] > 0


# -- the load as knobs ---------------------------------------------------------------------------------------------
def test_knobs_of_the_load_stand_for_the_workload() -> None:
    scenario = Scenario.of(
        "batch=2", "input_len=64", "output_len=8", "serving=continuous", "chunk=16", "n_a=4"
    )
    load, rest = workload_of(LOAD, scenario)
    assert load == Workload(2, 64, 8, True, 16) and rest.label == "n_a=4"
    assert measured("batch=2") == measured(load=replace(LOAD, batch=2))
    load, sets = read_load(["batch=1,2", "input_len=64", "output_len=8", "n_a=4"])
    assert load == Workload(1, 64, 8) and sets == ["batch=1,2", "n_a=4"]
    with pytest.raises(ScenarioError, match="add --output-len N"):
        read_load(["batch=1", "input_len=64"])


def test_a_recording_has_no_lengths_to_set() -> None:
    from tests.unit.replay_runs import decode_run
    from tests.unit.test_knobs import refusal

    for text in ("input_len=64", "serving=continuous", "draft=qwen3-0.6b", "chunk=512"):
        assert "a recording" in refusal(decode_run(), text)


# -- drafted tokens ------------------------------------------------------------------------------------------------
@given(st.integers(1, 16), st.floats(0, 1))
def test_a_verified_step_yields_one_token_to_all_drafted_and_one(tokens: int, acceptance: float) -> None:
    yielded = Draft(tokens, acceptance, 0, 0).yielded
    assert 1 - 1e-9 <= yielded <= tokens + 1 + 1e-9
    assert yielded == pytest.approx(sum(acceptance**i for i in range(tokens + 1)), rel=1e-6)


def test_drafting_pays_where_tokens_are_accepted() -> None:
    big = {"model": "qwen3-32b", "load": Workload(1, 512, 64)}
    sets = ("draft=qwen3-0.6b", "draft_tokens=4")
    plain, none, most = (
        measured(*more, **big)  # type: ignore[arg-type]
        for more in ((), (*sets, "acceptance=0"), (*sets, "acceptance=0.9"))
    )
    assert most < plain < none
    done = simulate(
        load_model("qwen3-32b"), Workload(1, 512, 64), H100, Scenario.of(*sets, "acceptance=0.9")
    ).summary
    assert done["memory"]["rank"]["draft"] > load_model("qwen3-0.6b").weight_bytes()
    assert any("independently" in text for text in done["assumptions"])


def test_drafting_needs_all_three_knobs() -> None:
    with pytest.raises(ScenarioError, match="there is no default acceptance"):
        measured("draft=qwen3-0.6b", "draft_tokens=4")
    with pytest.raises(ScenarioError, match="0 to 1"):
        Scenario.of("acceptance=1.5")


def test_verified_tokens_go_through_every_layer() -> None:
    run = synthesize(OLMOE, Workload(4, 64, 16, verify=3))
    decode = [step for step in run.meta.steps if step.phase == "decode"]
    assert {step.tokens for step in decode} == {12} and decode[0].kv_tokens == 4 * (64 + 1 + 2)


# -- energy and money ----------------------------------------------------------------------------------------------
def test_energy_and_cost_by_hand() -> None:
    node = load_hardware("h100-sxm-x8")
    found = economics(node, 10_000.0, None, 2.0)
    assert found["power_w"] == 8 * 700 and found["tokens_per_joule"] == pytest.approx(10_000 / 5600)
    assert found["cost_per_million_tokens"] == pytest.approx(16 / 3600 / 10_000 * 1e6)
    assert economics(node, 10_000.0, None)["cost_per_million_tokens"] is None
    assert economics(load_hardware("cs3"), 1000.0, 4)["power_w"] == 4 * 23_000
    assert economics(load_hardware("cpu"), 10.0, None)["tokens_per_joule"] is None
    assert economics(node, None, None, 2.0)["cost_per_million_tokens"] is None
    with pytest.raises(ScenarioError, match="above 0"):
        economics(node, 1.0, None, 0.0)


# -- published accuracy --------------------------------------------------------------------------------------------
def test_published_accuracy_stands_beside_the_edit() -> None:
    lite = load_model("deepseek-v2-lite")

    def told(*sets: str) -> list[tuple[object, object]]:
        facts = simulate(lite, LOAD, H100, Scenario.of(*sets)).summary["accuracy"]
        return [(point["percent"], point["native"]) for point in facts]

    assert told("n_a=4") == [(65.2, 66.0)] and told("n_a=5") == told("n_a=6") == [] == told()
    assert told("n_e=32") == told("prune_inter=50") == [(37.7, 66.0)]
    v3 = simulate(
        load_model("deepseek-v3"), LOAD, load_hardware("h200-sxm-x8"), Scenario.of("tp=8", "n_a=8/6/6")
    )
    assert v3.summary["accuracy"][0]["percent"] == 73.1


def test_tokens_that_a_step_is_said_to_yield_are_an_assumption() -> None:
    def done(*sets: str) -> tuple[float, list[str]]:
        found = simulate(load_model("qwen3-0.6b"), Workload(1, 64, 16), H100, Scenario.of(*sets)).summary
        return found["metrics"]["tpot"]["value"], found["assumptions"]

    (plain, _), (fast, said), (one, _) = done(), done("tokens_per_step=4"), done("tokens_per_step=1")
    assert 0.95 * plain / 4 < fast < plain  # to verify four takes about as long as to decode one
    assert one == pytest.approx(plain)
    assert any("an assumption, not a prediction" in text for text in said)
    with pytest.raises(ScenarioError, match="leave one out"):
        done("tokens_per_step=4", "draft=qwen3-0.6b", "draft_tokens=4", "acceptance=0.7")


# -- a drafting model's own errors, bytes and extrapolation -----------------------------------------------------------
def test_a_drafting_model_is_as_unsure_as_it_is_alone() -> None:
    load = Workload(1, 512, 64)
    drafter = simulate(OLMOE, load, H100).summary["metrics"]["tpot"]
    both = simulate(
        load_model("qwen3-0.6b"),
        load,
        H100,
        Scenario.of("draft=olmoe-1b-7b", "draft_tokens=8", "acceptance=0.5"),
    ).summary
    tpot = both["metrics"]["tpot"]
    yielded = (1 - 0.5**9) / 0.5
    for end, worse in (("low", -1), ("high", 1)):
        drafted = 8 * (drafter[end] - drafter["value"]) / yielded
        assert worse * (tpot[end] - tpot["value"]) >= worse * drafted * 0.99
    assert "drafting model: prefill" in both["beyond_fit"]
    assert any(said.startswith("drafting model: extrapolated") for said in both["assumptions"])


def test_a_drafting_model_takes_wafers_of_its_own_bytes() -> None:
    model, wafer = load_model("qwen3-30b-a3b"), load_hardware("cs3")
    alone = simulate(model, LOAD, wafer).summary
    both = simulate(
        model, LOAD, wafer, Scenario.of("draft=qwen3-32b", "draft_tokens=2", "acceptance=0.5")
    ).summary
    assert (alone["wafers"], both["wafers"]) == (2, 3)
    assert both["economics"]["devices"] == 3
    assert any("% of the wafers' cores, the rest being the model's" in said for said in both["assumptions"])


def test_a_round_is_drafting_and_verifying_by_family() -> None:
    load, sets = Workload(4, 64, 16), ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=1")
    both = simulate(load_model("qwen3-8b"), load, H100, Scenario.of(*sets)).summary
    alone = simulate(load_model("qwen3-0.6b"), load, H100).summary
    rows = both["families"]
    assert sum(f["decode_share"] for f in rows) == pytest.approx(1)
    assert sum(f["prefill_share"] for f in rows) == pytest.approx(1)
    drafting = sum(f["drafting_s"] for f in rows)
    assert drafting == pytest.approx(3 * alone["metrics"]["tpot"]["value"], rel=1e-6)
    tpot, yielded = both["metrics"]["tpot"]["value"], 4
    assert sum(f["decode_s"] for f in rows) == pytest.approx(tpot * yielded, rel=1e-6)
    assert sum(f["prefill_s"] for f in rows) == pytest.approx(both["metrics"]["ttft"]["value"], rel=1e-6)
    assert all(f["drafting_s"] == 0 for f in alone["families"])


def test_the_largest_batch_holds_both_models_and_both_caches() -> None:
    sets = ("draft=qwen3-1.7b", "draft_tokens=3", "acceptance=0.7")
    model, load = load_model("qwen3-8b"), Workload(1, 1000, 1001)
    largest = simulate(model, load, H100, Scenario.of(*sets)).summary["memory"]["largest_batch"]
    each = sum(
        load_model(name).kv_bytes_per_token(0) * layers
        for name, layers in (("qwen3-8b", 36), ("qwen3-1.7b", 28))
    )
    weights = sum(load_model(name).weight_bytes() for name in ("qwen3-8b", "qwen3-1.7b"))
    by_hand = (80e9 - 3e9 - weights) / (each * 2000)
    assert largest == pytest.approx(by_hand, rel=0.01)
    for batch, fits in ((largest, True), (largest + 1, False)):
        again = simulate(model, Workload(batch, 1000, 1001), H100, Scenario.of(*sets)).summary["memory"]
        assert again["fits"] is fits


@pytest.mark.parametrize("sets", [(), ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0.7")])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_steady_load_holds_each_sequence_once_whatever_is_asked(batch: int, sets: tuple[str, ...]) -> None:
    model, scenario = load_model("qwen3-8b"), Scenario.of(*sets)
    static, served = (
        simulate(model, Workload(batch, 1024, 256, kind), H100, scenario).summary["memory"]
        for kind in (False, True)
    )
    assert served["kv_bytes"] == static["kv_bytes"] and served["largest_batch"] == static["largest_batch"]


def test_prices_are_by_machine_or_for_all_others() -> None:
    machines = [load_hardware(name) for name in ("h100-sxm-x8", "cs3", "h200-sxm")]
    assert read_prices(["h100-sxm=2.5,cs3=30"], machines) == {"h100-sxm": 2.5, "cs3": 30}
    assert read_prices(["3", "cs3=30"], machines) == {"h100-sxm": 3, "cs3": 30, "h200-sxm": 3}
    for bad, why in (
        (["2,3"], "of all machines is given twice"),
        (["cs3=2", "cs3=3"], "of cs3 is given twice"),
        (["h100-sxm=2,"], "expected a price"),
        (["b200=2"], "unknown machine 'b200'"),
    ):
        with pytest.raises(ScenarioError, match=why):
            read_prices(bad, machines)


def test_a_drafting_model_under_a_steady_load_works_on_one_prompt_at_a_time() -> None:
    sets = ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0.7")
    model = load_model("qwen3-8b")
    served, static = (
        simulate(model, Workload(32, 1024, 64, served), H100, Scenario.of(*sets)).summary["metrics"]["ttft"][
            "value"
        ]
        for served in (True, False)
    )
    plain = simulate(model, Workload(32, 1024, 64, True), H100).summary["metrics"]["ttft"]["value"]
    drafter = simulate(load_model("qwen3-0.6b"), Workload(32, 1024, 64), H100).summary["metrics"]["ttft"][
        "value"
    ]
    assert (
        plain < served < plain + drafter / 2 and served < static / 4
    )  # not all 32 prompts of the drafting model


def test_each_data_parallel_group_drafts_for_its_own_sequences() -> None:
    node, sets = load_hardware("h100-sxm-x4"), ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0.7")
    model = load_model("olmoe-1b-7b")
    four = simulate(model, Workload(64, 512, 16), node, Scenario.of("dp=4", "ep=4", *sets)).summary
    own = simulate(load_model("qwen3-0.6b"), Workload(16, 512, 16), H100).summary["metrics"]["tpot"]["value"]
    assert sum(f["drafting_s"] for f in four["families"]) == pytest.approx(3 * own, rel=1e-6)


def test_two_models_on_a_wafer_share_out_its_cores() -> None:
    wafer, sets = load_hardware("cs3"), ("draft=qwen3-8b", "draft_tokens=2", "acceptance=0.5")
    model, drafter = load_model("qwen3-8b"), load_model("qwen3-8b")
    both = simulate(model, LOAD, wafer, Scenario.of(*sets)).summary  # 1 to the root of 2 of the cores
    alone = simulate(drafter, LOAD, wafer).summary["metrics"]["tpot"]["value"]
    drafting = sum(f["drafting_s"] for f in both["families"]) / 2
    assert alone < drafting < 2 * alone
    assert any("on 58.6 % of the wafers' cores" in said for said in both["assumptions"])
    whole = simulate(model, LOAD, wafer, Scenario.of("placement=whole", *sets)).summary
    one = simulate(drafter, LOAD, wafer, Scenario.of("placement=whole")).summary["metrics"]["tpot"]["value"]
    assert sum(f["drafting_s"] for f in whole["families"]) / 2 == pytest.approx(one, rel=1e-6)


def test_what_prompts_add_is_held_by_its_interval_where_decoding_is_less_sure() -> None:
    """512 sequences whose every token waits for two prompts: twice the difference of two ends is no end of twice theirs."""
    load = ("batch=512", "input_len=1024", "output_len=32", "serving=continuous", "chunk=512")
    own, rest = read_load((*load, "gpus=2", "tp=2", "engine=vllm"))
    model = load_model("qwen3-30b-a3b")
    ((hw, scenario),) = scenarios(rest, [load_hardware("a100-sxm")], synthesize(model, own), most=1)
    found = simulate(model, own, hw, scenario).summary["metrics"]
    for name in ("ttft", "tpot", "e2e", "output_throughput"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["tpot"]["high"] > 1.05 * found["tpot"]["value"]


def test_a_chunk_without_a_steady_load_would_change_nothing_and_is_refused() -> None:
    with pytest.raises(ScenarioError, match="chunk=64: a static batch works on all prompts in one step"):
        simulate("olmoe-1b-7b", Workload(2, 128, 8), "h100-sxm", Scenario.of("chunk=64"))
    simulate("olmoe-1b-7b", Workload(2, 128, 8, served=True), "h100-sxm", Scenario.of("chunk=64"))


@pytest.mark.parametrize(
    "sets", [("serving=continuous",), ("routing=skewed:1",), ("routing=power_law:1.2", "eplb=8")]
)
def test_a_prediction_edited_again_is_what_both_edits_at_once_give(sets: tuple[str, ...]) -> None:
    """Fewer experts of a simulated run keep the routing that it was simulated with, and send fewer copies of each token."""
    load, node = Workload(32, 512, 16), load_hardware("h100-sxm-x4")
    asked = ("dp=4", "ep=4", *sets)
    made = simulate("olmoe-1b-7b", load, node, Scenario.of(*asked))
    again = replay(made.run, node, Scenario.of("n_a=4"))
    both = simulate("olmoe-1b-7b", load, node, Scenario.of(*asked, "n_a=4"))
    assert again.step_s[:, 0] == pytest.approx(both.prediction.step_s[:, 0], rel=2e-3)
    assert replay(made.run, node).step_s[:, 0] == pytest.approx(made.prediction.step_s[:, 0], rel=1e-9)
    stated = next((text for text in sets if text.startswith("routing")), "routing=skewed")
    assert made.run.meta.routing == f"as stated, {stated}"
    facts, _ = report_facts(made.run, node, ["h100-sxm-x4"], short=True)
    (fewer,) = (answer for answer in facts["answers"] if answer["id"] == "n_a")
    assert f"changes as {stated} has it" in str(fewer)


@pytest.mark.parametrize(
    ("machine", "sets"),
    [
        ("h100-sxm", ("engine=vllm",)),
        ("h100-sxm", ("graph=off",)),
        ("cs3", ("placement=own",)),
        ("h100-sxm-x4", ("tp=4", "kv=fp8")),
        ("h100-sxm-x4", ("dp=4", "ep=4", "eplb=8", "routing=power_law:1.2")),
        ("cs3", ("serving=continuous", "batch=17", "input_len=1000")),
    ],
)
def test_a_prediction_replayed_on_its_machine_is_itself(machine: str, sets: tuple[str, ...]) -> None:
    """So is one that was replayed before: its interval, its memory and where its routing comes from too."""
    made = simulate("olmoe-1b-7b", Workload(4, 64, 8), machine, Scenario.of(*sets)).prediction
    again = replay(made.run, machine)
    for one in (again, replay(again.run, machine)):
        assert one.step_s == pytest.approx(made.step_s, rel=1e-6)
        assert one.summary["memory"] == made.summary["memory"]
        assert one.summary["distinct"]["source"] == made.summary["distinct"]["source"]


def test_an_eager_hosts_launches_are_not_called_a_graphs() -> None:
    made = simulate("olmoe-1b-7b", Workload(4, 64, 8), "h100-sxm", Scenario.of("graph=off"))
    for run in (made.run, replay(made.run, "h100-sxm").run):
        notes = " ".join(run.meta.notes)
        assert "launches op by op, 8 us each" in notes and "as from a CUDA graph" not in notes


@pytest.mark.parametrize(("batch", "serving"), [(8, "static"), (3, "static"), (8, "continuous")])
def test_groups_of_a_prediction_are_not_filled_anew_where_they_would_not_be_alike(
    batch: int, serving: str
) -> None:
    """Eight sequences in four groups, then 16 of them: twice as many in each. Not where a group has one more, or a prompt."""
    load, made = ("dp=4", "ep=4", f"serving={serving}", "pad=none"), []
    for sets in ((f"batch={batch}", *load), ("batch=16", *load)):
        made.append(simulate("olmoe-1b-7b", Workload(4, 64, 8), "h100-sxm-x4", Scenario.of(*sets)).prediction)
    if (batch, serving) == (8, "static"):
        again = replay(made[0].run, "h100-sxm-x4", Scenario.of("batch=16"))
        assert again.step_s == pytest.approx(made[1].step_s, rel=1e-6)
    else:
        with pytest.raises(ScenarioError, match="those of the fullest of dp=4 groups"):
            replay(made[0].run, "h100-sxm-x4", Scenario.of("batch=16"))


def test_an_estimate_that_a_prediction_holds_is_not_called_uniform() -> None:
    made = replay(parse(REPO / "traces/kineto/olmoe-1b-7b-l2-b16-cpu"), "h100-sxm", Scenario.of("n_a=4"))
    again = replay(made.run, "h100-sxm")
    assert made.summary["distinct"]["source"] == "estimate from the recording"
    assert again.summary["distinct"] == made.summary["distinct"] | {"source": "as it was predicted"}


@pytest.mark.parametrize("sets", [("pp=4",), ("dp=4", "ep=4", "overlap=two_batch")])
def test_a_prediction_of_parts_of_steps_is_not_edited_again(sets: tuple[str, ...]) -> None:
    made = simulate("olmoe-1b-7b", Workload(8, 64, 8), "h100-sxm-x4", Scenario.of(*sets))
    with pytest.raises(
        ScenarioError, match=f"prediction with {sets[-1]}, whose ops are one part of each step"
    ):
        replay(made.run, "h100-sxm-x4", Scenario.of("n_a=4"))
    facts, _ = report_facts(made.run, None, None, short=True)
    assert facts["answers"]


@pytest.mark.parametrize("engine", ["any", "sglang"])
@pytest.mark.parametrize("yields", [1, 2, 4])
def test_as_many_prompts_arrive_as_sequences_end(engine: str, yields: int) -> None:
    """A sequence whose steps yield several tokens ends after fewer of them, so more prompts arrive in each."""
    asked = ("serving=continuous", f"engine={engine}", f"tokens_per_step={yields}")
    run = simulate("olmoe-1b-7b", Workload(64, 100, 64), "h100-sxm", Scenario.of(*asked)).run
    assert run.meta.facts["workload"]["beside"][0] == pytest.approx(yields)


def test_drafting_leaves_no_fewer_steps_than_work_on_prompts() -> None:
    """Eight sequences of 32 whole chunks are 224 steps between a sequence's first token and its last, which takes 16."""
    asked = ("serving=continuous", "tokens_per_step=4", "chunk=256")
    done = simulate("olmoe-1b-7b", Workload(8, 8192, 64), "h100-sxm", Scenario.of(*asked)).summary
    mixed = done["steps"][0]["step_s"]
    assert done["queued"] and "steps while one decodes 64 tokens in 16 steps" in " ".join(done["assumptions"])
    assert done["metrics"]["e2e"]["value"] - done["metrics"]["ttft"]["value"] >= 224 * mixed * 0.99
    few = simulate("olmoe-1b-7b", Workload(1, 8192, 64), "h100-sxm", Scenario.of(*asked)).summary
    said = simulate("olmoe-1b-7b", Workload(1, 8192, 64), "h100-sxm", Scenario.of(*asked[::2])).summary
    assert few["queued"] and not said["queued"]  # 32 prompts' steps in 16, and in 64
