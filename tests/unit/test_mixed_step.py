"""A steady load under attention data parallelism: one prompt is one group's, and the others wait."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetrace.forward import step_ops
from moetrace.hardware import load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.draft import Draft
from moetrace.replay.edit import COLLECTIVES, MODULE
from moetrace.replay.editing import with_knobs
from moetrace.replay.mixed_step import busiest_groups
from moetrace.synthesize import Workload, synthesize

NODE = load_hardware("h100-sxm-x4")
SETS = ("dp=4", "ep=4", "routing=uniform")
MODELS = ("deepseek-v3.2", "olmoe-1b-7b", "gpt-oss-20b", "deepseek-v2-lite", "qwen3-next-80b-a3b")


def mixed_ops(model: ModelSpec, load: Workload) -> list[Op]:
    draft = with_knobs(Draft.of(synthesize(model, load), NODE, Scenario.of(*SETS)))
    return [
        draft.ops[cell] for row, cell in zip(draft.rows, draft.cell, strict=True) if not draft.base.step[row]
    ]


def sized(ops: list[Op]) -> list[tuple[str, dict[str, float]]]:
    """Kinds and dims of the ops that one group runs."""
    own = [op for op in ops if op.kind not in MODULE | COLLECTIVES]
    return [
        (op.kind, {name: value for name, value in op.dims if name not in ("rows", "fixed")}) for op in own
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.integers(1, 300),
    st.integers(16, 9000),
    st.integers(2, 600),
    st.integers(1, 3),
)
@example("deepseek-v3.2", 2500, 2500, 2600, 1)  # as many tokens of a prompt as decode
@example("deepseek-v3.2", 1250, 2500, 2600, 2)
@example("qwen3-next-80b-a3b", 2, 24_576, 4, 1)  # two sequences, and one and a half prompts, which is two
def test_the_ops_are_those_of_the_group_with_most_to_do(
    name: str, batch: int, prompt: int, out: int, verify: int
) -> None:
    model = load_model(name).with_edits(layers=4)
    load = Workload(batch, prompt, out, served=True, verify=verify, groups=4)
    prompts, new, seen = load.beside
    assert prompts >= 1 and (prompts == 1 or prompts * new <= 4 * load.chunk)
    own = max(1.0, prompts / 4)
    alone = step_ops(model, -(-batch // 4), verify, prompt + out // 2, True, (own, new, seen))
    ops, own_tokens = mixed_ops(model, load), -(-batch // 4) * verify + round(own * new)
    for (kind, dims), (expected_kind, expected) in zip(
        sized(ops), sized([op for _, op in alone]), strict=True
    ):
        assert kind == expected_kind
        for (
            dim,
            value,
        ) in expected.items():  # a window's keys are not a multiple of the sequences: within a token of each
            near = {"rel": 0.02 if dim == "kv" else 1e-3, "abs": max(1, value / own_tokens)}
            assert dims[dim] == pytest.approx(value, **near), (kind, dim)
    assert {op["tokens"] for op in ops if op.kind == "moe_gate_up"} == {batch * verify + round(prompts * new)}
    sent = {op["tokens"] for op in ops if op.kind in ("moe_dispatch", "moe_collect")}
    assert sent == {own_tokens}


def measured(
    model: str, machine: str, sets: tuple[str, ...], batch: int, prompt: int, out: int
) -> list[float]:
    asked = Scenario.of("serving=continuous", *sets)
    found = simulate(load_model(model), Workload(batch, prompt, out), load_hardware(machine), asked).summary
    return [float(found["metrics"][name]["value"]) for name in ("ttft", "tpot")]


@pytest.mark.parametrize(
    ("model", "machine", "sets", "prompt", "out"),
    [
        ("qwen3-30b-a3b", "h100-sxm-x8", ("dp=8", "ep=8"), 512, 100),
        ("qwen3-30b-a3b", "h100-sxm-x8", ("dp=4", "tp=2"), 1024, 128),
        ("deepseek-v3", "h200-sxm-x8", ("dp=16", "ep=16", "nodes=2"), 2048, 256),
        ("qwen3-30b-a3b", "h100-sxm-x8", ("dp=8", "ep=8"), 16_000, 512),
    ],
)
def test_neither_the_first_token_nor_the_next_comes_sooner_with_more_sequences(
    model: str, machine: str, sets: tuple[str, ...], prompt: int, out: int
) -> None:
    batches = (1, 2, 8, 16, 17, 100, out, out + 1, 3 * out // 2, 2 * out, 2 * out + 1, 8 * out, 8 * out + 1)
    rows = [measured(model, machine, sets, batch, prompt, out) for batch in sorted(batches)]
    for before, after in pairwise(rows):
        assert after[0] >= before[0] * (1 - 1e-9) and after[1] >= before[1] * (1 - 1e-9)


def test_a_prompt_takes_one_group_as_long_whatever_the_others_do() -> None:
    one, four = (measured("olmoe-1b-7b", "h100-sxm-x4", ("dp=4",), n, 4096, 512)[0] for n in (1, 4))
    assert one <= four < 1.02 * one


def test_steps_that_work_on_prompts_are_no_more_than_steps() -> None:
    load = Workload(96, 512, 64, served=True, groups=4)
    assert load.beside == (1.5, 512, 512) == replace(load, groups=1).beside
    assert replace(load, batch=32).beside[0] == 1
    long = Workload(64, 20_480, 128, served=True, groups=4)
    assert long.parts == 3 and long.chunks == 2.5 and long.beside == (1.25, 8192, 14_336)
    assert replace(load, batch=10_000).beside[0] == 4 * (8192 // 512)
    assert replace(load, batch=10_000, input_len=5000).beside[0] == pytest.approx(4 * 8192 / 5000)


# One more token of the prompt, or one more sequence: what is another step's (a prompt that no longer fits in one) is a decode
# step of TTFT, and of a rate of prompts nothing.
@pytest.mark.parametrize(
    "sets",
    [
        ("tp=4",),
        ("dp=4",),
        ("dp=4", "ep=4"),
        ("dp=4", "overlap=two_batch"),
        ("pp=2", "tp=2"),
        ("dp=2", "pp=2"),
    ],
)
@pytest.mark.parametrize("batch", [8, 192, 600])
def test_a_token_more_of_the_prompt_makes_no_jump(sets: tuple[str, ...], batch: int) -> None:
    chunk, out = 512, 64
    lengths = (170, 171, 256, 257, chunk, chunk + 1, 2 * chunk, 2 * chunk + 1, 3 * chunk, 3 * chunk + 1)
    asked = (*sets, f"chunk={chunk}")
    rows = [measured("olmoe-1b-7b", "h100-sxm-x4", asked, batch, prompt, out) for prompt in lengths]
    for (first, each), (later_first, later_each) in pairwise(rows):
        assert later_first >= first * (1 - 2e-3) and later_each >= each * (1 - 2e-3)
    for prompt, (_, each), (_, later) in zip(lengths[::2], rows[::2], rows[1::2], strict=True):
        assert later == pytest.approx(each, rel=max(0.012, 2 / prompt)), prompt


@pytest.mark.parametrize(
    "sets", [("tp=4",), ("dp=4", "ep=4"), ("dp=4", "pp=1", "overlap=two_batch"), ("dp=2", "pp=2")]
)
def test_a_sequence_more_makes_no_jump(sets: tuple[str, ...]) -> None:
    out, counts = 32, (31, 32, 33, 34, 47, 48, 49, 63, 64, 65, 96, 97, 128, 129, 130, 256, 257)
    rows = {n: measured("olmoe-1b-7b", "h100-sxm-x4", sets, n, 2000, out) for n in counts}
    for one, two in pairwise(counts):
        assert rows[two][0] >= rows[one][0] * (1 - 2e-3)
        if two == one + 1:
            assert rows[two] == pytest.approx(rows[one], rel=0.04), (one, two)


def test_half_of_a_lone_prompt_overlaps_the_other_half() -> None:
    def first(*sets: str) -> float:
        return measured("qwen3-30b-a3b", "h100-sxm-x8", ("dp=8", "ep=8", *sets), 8, 4096, 512)[0]

    assert 0.6 * first() < first("overlap=two_batch") < 0.9 * first()


def test_what_is_taken_of_prompts_is_said_where_there_are_any() -> None:
    def said(*sets: str) -> str:
        done = simulate(load_model("olmoe-1b-7b"), Workload(8, 64, 8), NODE, Scenario.of(*sets)).summary
        return " ".join(done["assumptions"])

    assert "a prompt is worked through by one group" in said("dp=4", "serving=continuous")
    assert "a prompt is worked through by one group" not in said("dp=4") + said("tp=4", "serving=continuous")


def test_a_run_whose_batch_was_edited_is_shared_out_in_proportion() -> None:
    run = synthesize(load_model("olmoe-1b-7b"), Workload(8, 64, 8, served=True))
    draft = Draft.of(run, NODE, Scenario.of("dp=4"))
    assert set(busiest_groups(draft, 4)) == {0}
    step = replace(draft.steps[0], batch=16)
    assert not busiest_groups(replace(draft, steps=(step, *draft.steps[1:])), 4)
    assert replay(run, NODE, Scenario.of("batch=16", "dp=4")).summary["phases"]
