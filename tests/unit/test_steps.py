"""Step annotations in every form that engines write, which of them count, and kernels that are strays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.formats.events import DEVICE_RANGE, KERNEL, LAUNCH, RANGE, Events, EventsBuilder
from moetrace.parse.places import Places
from moetrace.parse.rows import op_rows
from moetrace.parse.steps import StepName, complete, describe, drop_strays, step_ranges, verifying
from moetrace.run import PHASES

SPEECH = "execute_{}_context_{}(sq{}sk{}sqsq{}sqsk{})_generation_{}(sq{}sk{}sqsq{}sqsk{})"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # vLLM: requests and tokens
        ("execute_context_0(0)_generation_32(32)", StepName("decode", 32, 32)),
        ("execute_context_0(0)_generation_1(4)", StepName("verify", 1, 4)),  # speculative: tokens > requests
        ("execute_context_0(0)_generation_0(0)", StepName("dummy", 0, 0)),
        ("execute_context_2(600)_generation_30(30)", StepName("mixed", 32, 630)),
        ("execute_context_1(888_788544)_generation_0(0)", StepName("prefill", 1, 888, 888)),
        # vLLM, detailed: sums of query lengths and KV lengths
        (SPEECH.format(32, 0, 0, 0, 0, 0, 32, 32, 55086, 32, 55086), StepName("decode", 32, 32, 55086)),
        (SPEECH.format(888, 1, 888, 888, 788544, 788544, 0, 0, 0, 0, 0), StepName("prefill", 1, 888, 888)),
        (SPEECH.format(90, 1, 80, 100, 6400, 8000, 10, 10, 5000, 10, 5000), StepName("mixed", 11, 90, 5100)),
        # vLLM, older
        ("execute_new_3_cached_0", StepName("prefill", 3)),
        ("execute_new_0_cached_16", StepName("decode", 16)),
        ("execute_new_1_cached_16", StepName("mixed", 17)),
        # SGLang
        ("step[DECODE bs=64]", StepName("decode", 64, 64)),
        ("step[EXTEND bs=2 toks=14721]", StepName("prefill", 2, 14721)),
        ("step[MIXED bs=2]", StepName("mixed", 2)),
        ("step[TARGET_VERIFY bs=8 toks=32]", StepName("verify", 8, 32)),
        ("step[DRAFT_EXTEND bs=8 toks=32]", StepName("draft", 8, 32)),
        ("step[IDLE bs=0]", StepName("dummy", 0)),
        ("gpu_model_runner: draft", StepName("draft")),
        # ATOM
        ("decode[bs=64 tok=64 d=64]", StepName("decode", 64, 64)),
        ("prefill[bs=2 tok=1024 p=2]", StepName("prefill", 2, 1024)),
        # TensorRT-LLM
        ("[Executor] _forward_step 7: 0 ctx reqs, 64 gen reqs", StepName("decode", 64, 64)),
        ("[Executor] _forward_step 7: 2 ctx reqs, 900 ctx tokens, 30 gen reqs", StepName("mixed", 32, 930)),
        ("_forward_step: 2 ctx reqs, 0 gen reqs", StepName("prefill", 2)),
        ("executeStep: 0 ctx reqs, 0 gen reqs", StepName("dummy", 0, 0)),
        # torch and moetrace
        ("ProfilerStep#12", StepName(None)),
        ("moetrace.step#4 decode batch=16 tokens=16 kv=2064", StepName("decode", 16, 16, 2064)),
    ],
)
def test_annotations_in_every_form(name: str, said: StepName) -> None:
    found = describe(name)
    assert found is not None
    # The remark on how a number was come by is for people.
    assert StepName(found[1].phase, found[1].batch, found[1].tokens, found[1].kv_tokens) == said


def test_assumptions_and_the_recorder_s_own_number_are_kept() -> None:
    prefill, own = (
        describe("execute_context_1(888_788544)_generation_0(0)"),
        describe("moetrace.step#4 prefill batch=1 tokens=8 kv=8"),
    )
    assert prefill is not None and "no cached prefix" in prefill[1].note
    assert own is not None and own[1].recorded == 4 and own[1].note == ""


@pytest.mark.parametrize(
    "name",
    [
        "capture_32_FULL", "capture_8192_PIECEWISE", "capture_32_DECODE", "## Call CompiledFxGraph fabc ##",
        "nccl:_all_gather_base", "gpu_model_runner: forward", "step", "step[]", "step[DECODE]", "decode[tok=4]",
        "execute_context_0(0)_generation_32", "execute_context_x(0)_generation_32(32)", "my ProfilerStep#1", "",
    ],
)  # fmt: skip
def test_other_annotations_are_no_steps(name: str) -> None:
    assert describe(name) is None


@given(st.text(max_size=60))
def test_any_name_is_a_step_or_none(name: str) -> None:
    found = describe(name)
    assert found is None or found[1].phase in (None, *PHASES, "dummy")


@given(st.integers(0, 99), st.integers(0, 9999), st.integers(0, 99), st.integers(0, 9999))
def test_phase_and_batch_follow_the_requests(
    contexts: int, prompt: int, generations: int, tokens: int
) -> None:
    found = describe(f"execute_context_{contexts}({prompt})_generation_{generations}({tokens})")
    assert found is not None
    decode = "verify" if prompt + tokens > generations else "decode"
    phase = (
        "mixed" if contexts and generations else "prefill" if contexts else decode if generations else "dummy"
    )
    assert (found[1].phase, found[1].batch, found[1].tokens) == (
        phase,
        contexts + generations,
        prompt + tokens,
    )


def ranges(*rows: tuple[str, int, int]) -> Events:
    builder = EventsBuilder()
    for name, start, dur in rows:
        builder.add(RANGE, name, start, dur, lane=1)
    return builder.build()


def test_the_most_telling_kind_of_annotation_names_the_steps_in_order_of_time() -> None:
    events = ranges(
        ("ProfilerStep#0", 0, 100), ("step[DECODE bs=8]", 60, 30), ("nccl:all_reduce", 5, 1), ("step[MIXED bs=2]", 10, 40)
    )  # fmt: skip
    chosen, names = step_ranges(events, events.where(RANGE))
    assert events.start[chosen].tolist() == [10, 60]
    assert [n.phase for n in names] == ["mixed", "decode"]
    only = ranges(("ProfilerStep#1", 100, 90), ("ProfilerStep#0", 0, 90))
    chosen, names = step_ranges(only, only.where(RANGE))
    assert only.start[chosen].tolist() == [0, 100] and names == [StepName(None)] * 2


def test_no_annotation_is_no_step() -> None:
    for events in (ranges(), ranges(("capture_32_FULL", 0, 10))):
        chosen, names = step_ranges(events, events.where(RANGE))
        assert len(chosen) == 0 and names == []


def strays(*rows: tuple[int, int, int]) -> tuple[list[int], list[str]]:
    step, start, dur = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    before = step.copy()
    found, notes = drop_strays(step, start, start + dur, int(step.max()) + 1 if len(step) else 0)
    assert (step == before).all()  # a copy is answered
    return found.tolist(), notes


BODY = [(0, i * 1000, 900) for i in range(100)]


def test_a_kernel_far_before_or_behind_its_step_is_taken_out_and_reported() -> None:
    found, notes = strays((0, -463_000_000, 5000), *BODY)
    assert found == [-1] + [0] * 100
    assert len(notes) == 1 and notes[0].startswith(
        "step 0: 1 stray op(s) 463.0 ms earlier than the rest, 5.0 us busy"
    )
    found, notes = strays(*BODY, (0, 5_000_000, 5000), (0, 5_001_000, 100))
    assert found == [0] * 100 + [-1, -1] and "2 stray op(s) 4.9 ms after the rest" in notes[0]
    found, notes = strays((0, -10_000_000, 50), *BODY, (0, 5_000_000, 50))
    assert found == [-1] + [0] * 100 + [-1] and len(notes) == 2


def test_what_belongs_stays() -> None:
    assert strays(*BODY) == ([0] * 100, [])
    assert strays(*BODY, (0, 180_000, 5000)) == ([0] * 101, [])  # a gap shorter than the rest of the step
    halves = [*BODY, *((0, 10_000_000 + i * 1000, 900) for i in range(50))]
    assert strays(*halves) == ([0] * 150, [])  # as much work as that is the step itself, come late
    assert strays((0, 5, 3)) == ([0], []) and strays() == ([], [])
    assert strays((0, 5, 0), (0, 5, 0)) == ([0, 0], [])  # no times at all


def test_steps_are_looked_at_one_by_one_and_rows_may_be_unsorted() -> None:
    later = [(1, 10**9 + i * 1000, 900) for i in range(100)]
    rows = [*later[::-1], (1, 10**9 - 50_000_000, 10), (-1, 0, 5), *BODY]
    found, notes = strays(*rows)
    assert found == [1] * 100 + [-1, -1] + [0] * 100
    assert len(notes) == 1 and notes[0].startswith("step 1: 1 stray")


def test_a_given_kv_length_fills_in_only_what_is_not_said() -> None:
    assert complete(StepName("decode", 4, 4), 100) == StepName("decode", 4, 4, 400)
    assert complete(StepName("decode", 4, 4, 7), 100) == StepName("decode", 4, 4, 7)
    assert complete(StepName("decode"), 100) == StepName("decode")
    assert complete(StepName("decode", 4, 4), None) == StepName("decode", 4, 4)


def launched(*rows: tuple[int, int, int], notes: tuple[tuple[int, str, int, int, int], ...]) -> Events:
    """Kernels (launch thread or -1, launch time, start), each 10 long; annotations (class, name, lane, start, dur)."""
    builder = EventsBuilder()
    for i, (thread, moment, start) in enumerate(rows):
        if thread >= 0:
            builder.add(LAUNCH, "cudaLaunchKernel", moment, 1, lane=thread, correlation=i)
        builder.add(KERNEL, "k", start, 10, lane=7, device=0, correlation=i)
    for cls, name, lane, start, dur in notes:
        builder.add(cls, name, start, dur, lane=lane)
    return builder.build()


def placed(events: Events) -> tuple[list[int], list[StepName], list[str]]:
    rows, places = op_rows(events), Places(events)
    places.weigh(rows)
    step_of, names, said = places.choose()
    return step_of(rows).tolist(), names, said


FIRST, SECOND = "step[DECODE bs=8]", "step[DECODE bs=9]"
HOST = ((RANGE, FIRST, 1, 0, 100), (RANGE, SECOND, 1, 1000, 100))
DEVICE = ((DEVICE_RANGE, FIRST, 7, 300, 60), (DEVICE_RANGE, SECOND, 7, 1300, 60))


def test_ops_belong_to_the_step_that_launched_them_however_late_they_run() -> None:
    events = launched(
        *((1, 5, 310 + i) for i in range(20)),
        (1, 500, 600),
        (1, 90, 1310),
        (1, 1005, 1330),
        notes=(*HOST, *DEVICE),
    )
    step, names, said = placed(events)
    assert step == [0] * 20 + [-1, 0, 1]
    assert [n.batch for n in names] == [8, 9] and said == []


def test_launches_of_another_thread_belong_to_the_step_of_that_time() -> None:
    rows = ((2, 5, 310), (2, 90, 1310), (2, 1005, 1330))
    step, _, said = placed(launched(*rows, notes=HOST))
    assert step == [0, 0, 1] and len(said) == 1 and "other threads" in said[0]
    mostly = (*(((1, 5 + i, 310 + 10 * i)) for i in range(20)), (2, 1005, 1330))
    step, _, said = placed(launched(*mostly, notes=HOST))
    assert step == [0] * 20 + [-1] and said == []  # what another thread does beside is left out


def test_steps_of_several_threads_that_overlap_are_not_told_by_time() -> None:
    both = (*HOST, (RANGE, FIRST, 3, 50, 100))
    step, _, said = placed(launched((2, 5, 310), (2, 1005, 1330), notes=both))
    assert step == [-1, -1] and said == []


def test_without_launches_the_device_s_annotations_place_the_ops() -> None:
    rows = ((-1, 0, 310), (-1, 0, 340), (-1, 0, 1310), (-1, 0, 5000))
    step, names, said = placed(launched(*rows, notes=(*HOST, *DEVICE)))
    assert step == [0, 0, 1, -1] and [n.batch for n in names] == [8, 9]
    assert len(said) == 1 and "device's annotations" in said[0]
    assert placed(launched(*rows, notes=DEVICE)) == (step, names, [])  # nothing else to go by


def test_a_step_annotated_on_two_streams_is_one() -> None:
    copies = tuple((cls, name, 8, start + 20, 10) for cls, name, _, start, _ in DEVICE)
    events = launched((-1, 0, 310), (-1, 0, 325), (-1, 0, 1310), notes=(*copies, *DEVICE))
    step, names, _ = placed(events)
    assert step == [0, 0, 1] and len(names) == 2


def test_with_nothing_else_the_time_of_the_op_itself_places_it() -> None:
    step, names, said = placed(launched((-1, 0, 10), (-1, 0, 1010), (-1, 0, 500), notes=HOST))
    assert step == [0, -1, 1] and len(names) == 2 and "at which ops ran" in said[0]


def test_without_annotations_there_are_no_steps_to_place() -> None:
    assert placed(launched((1, 5, 10), notes=())) == ([-1], [], [])


def test_an_op_that_comes_late_in_every_step_is_no_stray() -> None:
    """Sampling 5 ms behind the rest of each of three steps: idle time that the user wants to see."""
    start = np.array([0, 5_000_000, 10_000_000, 15_000_000, 20_000_000, 25_000_000])
    end = start + np.array([100_000, 1_000] * 3)
    step = np.array([0, 0, 1, 1, 2, 2])
    kept, notes = drop_strays(step, start, end, 3)
    assert kept.tolist() == step.tolist() and len(notes) == 1 and "3 of 3 steps" in notes[0]
    once, told = drop_strays(step[:3], start[:3], end[:3], 2)
    assert once.tolist() == [0, -1, 1] and "stray" in told[0]


def test_steps_that_verify_drafts_are_said() -> None:
    plain, wide = StepName("decode", 8, 8), StepName("verify", 8, 32)
    assert verifying([plain, StepName("prefill", 1, 900)]) == []
    (said,) = verifying([plain, wide, wide, StepName("draft")])
    assert said.startswith(
        "2 step(s) verify drafted tokens (phase verify, 4 tokens a sequence); the draft's 1 are"
    )
