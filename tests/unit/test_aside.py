"""What no request asked for (dummy batches, warm-up, captures, padding), and drafts apart from what verifies them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.attribute import attribute
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.parse import parse, summary
from moetrace.parse.aside import RANGE_NAME, left_out, padding, remarks
from moetrace.parse.doctor import diagnose
from moetrace.parse.steps import StepName
from moetrace.replay import Scenario, replay
from moetrace.run import Run
from tests.made import LAYER, event, write

DECODE = "execute_context_0(0)_generation_4(4)"


def steps(*each: tuple[str, float], inside: str = "") -> list[dict[str, Any]]:
    """Events of steps, one after the other: each one's annotation, and the us of each of its kernels."""
    events, correlation, now = [], 0, 1000.0
    for name, dur in each:
        kernels = [*LAYER * 2, "vllm::rms_norm_kernel", "nvjet_lm_head", "ArgMaxOps"]
        begin, device = now, now + 100
        for i, kernel in enumerate(kernels):
            correlation += 1
            events += [
                event("cudaLaunchKernel", "cuda_runtime", begin + 1 + i, 0.5, tid=7, correlation=correlation),
                event(
                    kernel, "kernel", device, dur, tid=3, pid=0, correlation=correlation, stream=3, device=0
                ),
            ]
            device += dur + 1
        events.append(event(name, "user_annotation", begin, 60, tid=7))
        if inside:
            events.append(event(inside, "user_annotation", begin + 10.4, 5, tid=7))
        now = device + 100
    return events


def parsed(path: Path, events: list[dict[str, Any]], **options: Any) -> Run:
    return parse(write(path, events), model=load_model("olmoe-1b-7b").with_edits(layers=2), **options)


def test_first_steps_that_take_too_long_are_warm_up(tmp_path: Path) -> None:
    run = parsed(tmp_path / "t.json", steps((DECODE, 50.0), (DECODE, 40.0), *[(DECODE, 5.0)] * 5))
    assert [s.index for s in run.meta.steps] == list(range(5)) and run.meta.facts["steps_left_out"] == 2
    assert any("2 of 7 steps are left out: they took more than 3 times" in note for note in run.meta.notes)
    assert run.num_rows == 7 * 31 and (run.numpy("step", -1) < 0).sum() == 2 * 31
    spans = [s["span_s"] for s in summary(run)["steps"]]
    assert max(spans) < 1.01 * min(spans)
    asked = next(a for a in diagnose(run)["answers"] if "only what requests asked" in a["question"])
    assert (asked["answer"], asked["why"][:9]) == ("yes", "2 step(s)")


def test_a_slow_step_later_or_among_few_stays(tmp_path: Path) -> None:
    run = parsed(tmp_path / "a.json", steps(*[(DECODE, 5.0)] * 5, (DECODE, 50.0)))
    assert len(run.meta.steps) == 6 and "steps_left_out" not in run.meta.facts
    assert len(parsed(tmp_path / "b.json", steps((DECODE, 50.0), *[(DECODE, 5.0)] * 3)).meta.steps) == 4


def test_other_sizes_are_no_measure_of_warm_up() -> None:
    big, small = StepName("prefill", 1, 8000), StepName("prefill", 1, 100)
    assert left_out([big, *[small] * 9], np.array([50.0, *[1.0] * 9])) == {}
    assert left_out([small, *[small] * 9], np.array([50.0, *[1.0] * 9])) == {0: "warm-up"}
    assert left_out([small] * 5, np.full(5, np.nan)) == {}


def test_dummy_batches_and_steps_that_capture_a_graph_are_left_out(tmp_path: Path) -> None:
    events = steps((DECODE, 5.0), ("execute_context_0(0)_generation_0(0)", 5.0), (DECODE, 5.0), (DECODE, 5.0))
    begin = min(e["ts"] for e in events)
    events.append(event("cudaStreamBeginCapture", "cuda_runtime", begin + 40, 1, tid=7, correlation=9999))
    run = parsed(tmp_path / "t.json", events)
    assert len(run.meta.steps) == 2
    said = [note for note in run.meta.notes if "left out" in note]
    assert any("computed no request" in note for note in said) and any(
        "captured a graph" in note for note in said
    )


def test_a_trace_of_nothing_else_keeps_its_steps(tmp_path: Path) -> None:
    run = parsed(tmp_path / "t.json", steps(*[("execute_context_0(0)_generation_0(0)", 5.0)] * 3))
    assert len(run.meta.steps) == 3 and any("no step is a request's" in note for note in run.meta.notes)


def test_ranges_of_warm_up_are_left_out_of_their_steps(tmp_path: Path) -> None:
    run = parsed(
        tmp_path / "t.json", steps((DECODE, 5.0), (DECODE, 5.0), inside="engine: warm-up of kernels")
    )
    assert (run.numpy("step", -1) < 0).sum() == 2 * 5
    assert any("10 op(s) in ranges of warm-up" in note for note in run.meta.notes)


@pytest.mark.parametrize(
    "name", ["capture_32_FULL", "_dummy_run", "Warmup", "engine warm_up 3", "profile_run"]
)
def test_names_of_what_no_request_asked_for(name: str) -> None:
    assert RANGE_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["capture_it_all", "swarmup", "dummy", "profile_runner", DECODE, "moetrace.part:router"]
)
def test_other_names(name: str) -> None:
    assert not RANGE_NAME.fullmatch(name)


def test_padding_is_said_in_rows() -> None:
    names = [StepName("decode", 20, 20, padded=32), StepName("decode", 32, 32)]
    (said,) = padding(names)
    assert said.startswith("1 of 2 steps ran a graph captured for more tokens than they have: 12 of 32 rows")
    assert padding(names[1:]) == [] and remarks({}, 2, 0) == []


def speculated(path: Path) -> Run:
    """Four steps that verify three drafted tokens each of 4 sequences, with the draft's work inside of each."""
    events = steps(*[("execute_context_0(0)_generation_4(16)", 5.0)] * 4, inside="gpu_model_runner: draft")
    return parsed(path, events)


def test_verifying_and_drafting_are_phases_of_their_own(tmp_path: Path) -> None:
    run = speculated(tmp_path / "t.json")
    phases = [s.phase for s in run.meta.steps]
    assert phases.count("verify") == 4 and phases.count("draft") == 4
    frame = run.to_pandas(["phase", "layer", "op", "weight_bytes"])
    draft = frame[frame.phase == "draft"]
    assert len(draft) == 4 * 5 and draft.layer.isna().all()
    assert not draft.op.astype(str).str.contains("k=2048").any()  # the target's widths are not the draft's
    assert any(
        "4 step(s) verify drafted tokens (phase verify, 4 tokens a sequence)" in n for n in run.meta.notes
    )
    head = frame[frame.op.astype(str).str.startswith("lm_head")].op.astype(str)
    assert set(head) == {"lm_head bf16 m=16 n=50304 k=2048"}  # every drafted token has its logits


def test_verify_goes_on_into_attribution_and_replay(tmp_path: Path) -> None:
    run = speculated(tmp_path / "t.json")
    h100 = load_hardware("h100-sxm")
    assert set(attribute(run, h100).summary["phases"]) == {"verify", "draft"}
    phases = replay(run, h100, Scenario()).summary["phases"]
    assert set(phases) == {"verify", "draft"}
    assert phases["verify"]["tpot_s"] is None and phases["verify"]["tokens_per_s"] is None
    assert json.dumps(summary(run))


def test_a_draft_without_steps_is_no_step(tmp_path: Path) -> None:
    events = [e for e in steps((DECODE, 5.0), inside="gpu_model_runner: draft") if e["name"] != DECODE]
    assert [s.phase for s in parsed(tmp_path / "t.json", events).meta.steps] == [None]
