"""A steady load under an engine whose prompts have steps of their own (SGLang): what a prompt adds, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.errors import ScenarioError
from moetrace.model import load_model
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.measures import STEP_OVERHEAD_S
from moetrace.replay.simulation import Simulation
from moetrace.synthesize import Workload, synthesize

OLMOE = load_model("olmoe-1b-7b")


def served(*sets: str, load: Workload, hw: str = "h100-sxm", engine: str = "sglang") -> Simulation:
    return simulate(OLMOE, load, hw, Scenario.of("serving=continuous", f"engine={engine}", *sets))


def value(done: Simulation, name: str) -> float:
    return float(done.summary["metrics"][name]["value"])


@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (2, 1), (32, 1), (33, 33 / 32), (128, 4)])
def test_others_prompts_hold_decoding_up_for_whole_steps(batch: int, prompts: float) -> None:
    """32 steps to a sequence: from 33 sequences on more than one prompt comes between two of them."""
    load = Workload(batch, 256, 32)
    assert load.beside[0] == pytest.approx(prompts)
    done = served(load=load)
    steps = done.summary["steps"]
    assert [step["name"] for step in steps[:1]] == ["prefill"] and steps[0]["context"] == 256
    decode = sum(step["step_s"] * step["stands_for"] for step in steps) / 31
    others = (batch - 1) / prompts * (steps[0]["step_s"] + STEP_OVERHEAD_S)
    assert value(done, "tpot") == pytest.approx(decode + STEP_OVERHEAD_S + others / 31)
    assert not done.summary["queued"]


def test_the_step_of_a_prompt_is_that_of_a_static_batch_of_it() -> None:
    alone = simulate(OLMOE, Workload(1, 300, 8), "h100-sxm", Scenario.of("engine=sglang", "routing=skewed"))
    done = served(load=Workload(8, 300, 8))
    assert done.summary["steps"][0]["step_s"] == alone.summary["steps"][0]["step_s"]
    assert "processed in steps of their own" in done.summary["assumptions"][0]


@pytest.mark.parametrize("engine", ["any", "vllm", "trtllm@1.0", "sglang@0.5.6"])
def test_the_engine_decides_whether_prompts_are_beside_decoding(engine: str) -> None:
    done = served(load=Workload(16, 256, 32), engine=engine)
    apart = engine.startswith("sglang")
    assert done.summary["steps"][0]["name"] == ("prefill" if apart else "mixed")
    where = "in steps of their own" if apart else "beside decoding"
    assert f"processed {where}" in done.summary["assumptions"][0]


def test_a_long_prompts_parts_follow_each_other_without_a_decode_step_between() -> None:
    """TTFT: half a step, then 1,024 tokens in two steps of a chunk, and the host beside each."""
    done = served("chunk=512", load=Workload(4, 1024, 64))
    first, middle = done.summary["steps"][0]["step_s"], done.summary["steps"][2]["step_s"]
    waited = (middle + STEP_OVERHEAD_S) / 2 + 2 * (first + STEP_OVERHEAD_S)
    assert value(done, "ttft") == pytest.approx(waited, rel=1e-3)


def test_nothing_decodes_in_a_prompts_step() -> None:
    """So its tokens are the prompts' alone, and so are the sequences of its last ops and of its attention."""
    run = synthesize(OLMOE, Workload(64, 100, 32, served=True, apart=True))
    assert run.meta.steps[0].tokens == 200 and run.meta.steps[0].phase == "prefill"
    ops = run.to_pandas()
    ops = ops[ops.step == 0]
    assert set(ops[ops.kind == "lm_head"].op) == {"lm_head bf16 m=2 n=50304 k=2048"}
    (attention,) = set(ops[ops.kind == "attention"].op)
    assert "batch=2 " in attention and "q=200" in attention


@pytest.mark.parametrize(
    ("drafted", "batch", "tokens"), [((), 256, 2 * 200 + 2 * 64), (("tokens_per_step=2",), 128, 4 * 200)]
)
def test_a_group_has_its_prompts_alone_under_attention_data_parallelism(
    drafted: tuple[str, ...], batch: int, tokens: int
) -> None:
    """Four groups: two prompts to each of those that work on any, whose projections see 200 tokens. The experts see also
    what the two other groups of 64 decode; where tokens are drafted, all four wait, and there are eight prompts in a step."""
    done = served("dp=4", "ep=4", *drafted, load=Workload(batch, 100, 32), hw="h100-sxm-x4")
    ops = done.run.to_pandas()
    ops = ops[ops.step == ops.step.min()]
    assert {op.split(" m=")[1].split()[0] for op in ops[ops.kind == "qkv_proj"].op} == {"200"}
    assert {op.split(" m=")[1].split()[0] for op in ops[ops.kind == "lm_head"].op} == {"2"}
    assert all(f"tokens={tokens} " in op for op in ops[ops.kind == "moe_gate_up"].op)
    said = " ".join(done.summary["assumptions"])
    assert ("which data-parallel groups that have none decode" in said) == (not drafted)
    assert ("the other groups wait at the experts" in said) == bool(drafted)


def groups_of(
    batch: int, groups: int = 4, chunk: int = 8192, input_len: int = 100, verify: int = 1
) -> Workload:
    return Workload(batch, input_len, 32, served=True, chunk=chunk, verify=verify, groups=groups, apart=True)


@pytest.mark.parametrize("batch", [1, 4, 11, 64, 256, 1000])
def test_a_sequence_loses_the_steps_of_its_own_groups_prompts_alone(batch: int) -> None:
    done = served("dp=4", "ep=4", load=Workload(batch, 100, 32), hw="h100-sxm-x4")
    steps, load = done.summary["steps"], groups_of(batch)
    first = steps[0]["step_s"] + STEP_OVERHEAD_S
    decode = sum(step["step_s"] * step["stands_for"] for step in steps) / 31 + STEP_OVERHEAD_S
    others = (batch - 1) / load.beside[0]
    on = min(31.0, others * (1 - load.working_groups / 4))
    assert value(done, "tpot") == pytest.approx((others * first + (31 - on) * decode) / 31)
    assert value(done, "e2e") >= others * first


@pytest.mark.parametrize("chunk", [50, 300, 8192])
def test_all_prompts_are_worked_through_in_as_many_steps_as_there_are(chunk: int) -> None:
    """While one sequence decodes 32 tokens: as many as its group works on prompts in, and those; all of them have prompts from
    where one group's no longer has a step of its own. Nothing jumps there."""
    before = 0.0
    for batch in range(1, 600):
        load = groups_of(batch, chunk=chunk)
        own = batch / 4 * load.chunks / load.own_prompts
        steps = batch * load.chunks / load.beside[0]
        assert steps <= (own + 32) * (1 + 1e-9)
        assert load.working_groups == 1 or steps == pytest.approx(own + 32)
        assert 1 <= load.working_groups < 4 and before <= steps <= before + load.chunks + 1e-9
        before = steps


@pytest.mark.parametrize("batch", [1, 33, 600])
def test_one_group_and_drafted_tokens_have_the_prompts_that_they_had(batch: int) -> None:
    alone, drafted = groups_of(batch, groups=1), groups_of(batch, verify=2)
    mixed = Workload(batch, 100, 32, served=True, groups=4)
    assert alone.beside == Workload(batch, 100, 32, served=True).beside and alone.decoding_on == 0
    assert drafted.beside == mixed.beside and drafted.decoding_on == 0


@pytest.mark.parametrize("chunk", [64, 128, 300, 8192])
def test_no_prompt_arrives_while_all_groups_work_on_prompts(chunk: int) -> None:
    """Where tokens are drafted: so many come after a step that decodes, in however many parts each is worked through."""
    load = replace(groups_of(48, input_len=300, verify=2, chunk=chunk), yielded=2.0)
    assert load.beside[0] == pytest.approx(48 * 2 / 32)
    assert groups_of(48, input_len=300, verify=2, chunk=chunk).beside[0] == pytest.approx(48 / 32)
    assert replace(load, batch=300).beside[0] == pytest.approx(min(300 * 2 / 32, 4 * max(1, chunk / 300)))


def test_a_step_in_which_others_decode_is_no_shorter_than_theirs() -> None:
    """16 tokens of a prompt are attended to sooner than what 64 sequences of 9,000 decode."""
    done = served("dp=4", "ep=4", "chunk=16", load=Workload(256, 9000, 8), hw="h100-sxm-x4")
    first, *decode = (step["step_s"] for step in done.summary["steps"])
    assert first < min(decode)
    assert value(done, "ttft") >= 9000 / 16 * min(decode)


def test_it_is_a_prefill_step_by_every_name() -> None:
    """Nothing decodes in it, so neither `attribute --phase prefill` nor what is said of it calls it `mixed`."""
    done = served(load=Workload(16, 2048, 32))
    assert {step["phase"] for step in done.summary["steps"]} == {"prefill", "decode"}
    assert set(done.run.to_pandas().phase) == {"prefill", "decode"}
    assert "prefill" in done.summary["beyond_fit"] and "mixed" not in done.summary["beyond_fit"]
    assert "mixed" not in " ".join(done.summary["assumptions"])


@pytest.mark.parametrize(
    ("made", "then", "said"),
    [
        ("sglang", "vllm", "stay in steps of their own; that engine works on them beside decoding"),
        ("vllm", "sglang@0.5.6", "stay beside decoding; that engine works on them in steps of their own"),
    ],
)
def test_a_prediction_under_another_engine_says_where_its_prompts_stay(
    made: str, then: str, said: str
) -> None:
    run = served("pad=none", load=Workload(8, 300, 8), engine=made).run
    found = replay(run, "h100-sxm", Scenario.of(f"engine={then}"))
    assert any(said in note for note in found.summary["assumptions"])
    same = replay(run, "h100-sxm", Scenario.of(f"engine={made}@9"))
    assert not any("prompts stay" in note for note in same.summary["assumptions"])
    static = simulate(OLMOE, Workload(8, 300, 8), "h100-sxm", Scenario.of(f"engine={made}", "pad=none")).run
    assert not any(
        "prompts stay" in note
        for note in replay(static, "h100-sxm", Scenario.of(f"engine={then}")).summary["assumptions"]
    )


def test_nothing_is_drafted_between_a_prompts_parts() -> None:
    """Two more drafted tokens make the half step longer that a prompt waits for, whatever its own parts are."""

    def more(chunk: int) -> float:
        one, three = (
            value(
                served(
                    "draft=qwen3-0.6b", f"draft_tokens={tokens}", "acceptance=0.5", f"chunk={chunk}", "graph=on",
                    load=Workload(8, 4096, 64),
                ),
                "ttft",
            )
            for tokens in (1, 3)
        )  # fmt: skip
        return three - one

    assert more(512) == pytest.approx(more(4096), rel=1e-6)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_another_batch_of_a_saved_steady_load_says_that_its_prompts_shrink(engine: str) -> None:
    run = served("pad=none", load=Workload(8, 300, 8), engine=engine).run

    def said(batch: int) -> bool:
        notes = replay(run, "h100-sxm", Scenario.of(f"batch={batch}")).summary["assumptions"]
        return any("one whole prompt, or a chunk" in note for note in notes)

    assert said(4) and not said(8)


@pytest.mark.parametrize("yielded", [0.5, float("nan"), "2", None])
def test_tokens_that_a_step_yields_are_a_number_of_at_least_one(yielded: object) -> None:
    with pytest.raises(ScenarioError, match=r"yielded is .*: expected a number from 1"):
        Workload(1, 2, 3, yielded=yielded)  # type: ignore[arg-type]
