"""What a trace lacks is found, and the engine's own settings are named."""

from __future__ import annotations

import json

import pytest

import moetrace
from moetrace.cli import doctor as verb
from moetrace.parse import parse
from moetrace.parse.doctor import diagnose
from moetrace.parse.remedies import ENGINES, command, remedy
from tests.made import decode_trace, event, rank_traces, write

WAITS = "Do ranks wait for each other?"


def answers(path, engine=None, **options):
    facts = diagnose(parse(path, **options), engine)
    return {a["question"]: a for a in facts["answers"]}, facts


def test_decode_steps_without_shapes(tmp_path):
    found, facts = answers(write(tmp_path / "t.json", decode_trace(steps=4)))
    assert facts["engine"] == "vllm" and facts["recorded_by"] == "torch.profiler" and not facts["whole"]
    assert found["What does a decode step take (TPOT)?"]["answer"] == "yes"
    assert found["Where does the device's time go?"]["answer"] == "yes"
    sizes = found["Which sizes does each op have?"]
    assert sizes["answer"] == "no" and "torch_profiler_record_shapes" in sizes["fix"]
    assert found["What does each layer cost?"]["answer"] == "partly"
    assert found["Is the trace whole?"]["answer"] == "yes"
    assert "What does each kernel of a replayed graph do?" not in found
    assert WAITS not in found
    assert "enable-return-routed-experts" in facts["capture"]


def test_few_steps_and_a_graph_that_hides_its_kernels(tmp_path):
    found, _ = answers(write(tmp_path / "t.json", decode_trace(steps=2, graph=True)))
    steps, graph = (
        found["What does a decode step take (TPOT)?"],
        found["What does each kernel of a replayed graph do?"],
    )
    assert steps["answer"] == "partly" and steps["why"].startswith("2 decode")
    assert graph["answer"] == "no" and "--capture-trace" in graph["fix"]


def test_no_steps_and_the_settings_of_the_engine_that_is_given(tmp_path):
    kernels = [e for e in decode_trace() if e["cat"] == "kernel"]
    found, facts = answers(write(tmp_path / "t.json", kernels), "tensorrt-llm")
    step = found["What does a decode step take (TPOT)?"]
    assert step["answer"] == "no" and "TLLM_PROFILE_START_STOP" in step["fix"]
    assert "TLLM_TORCH_PROFILE_TRACE" in facts["capture"]
    launches = found["Does the device wait for the host?"]
    assert launches["answer"] == "no" and launches["why"].startswith("the launch was recorded for 0 %")


def test_missing_ranks(tmp_path):
    path = write(tmp_path / "t.json", decode_trace(), distributedInfo={"rank": 0, "world_size": 8})
    found, _ = answers(path)
    assert found[WAITS]["answer"] == "no" and found[WAITS]["why"].startswith("1 of 8 ranks")


def test_the_profiler_shows(tmp_path):
    extra = [
        event("torch/nn/modules/module.py(1): f", "python_function", 1000, 5, tid=7),
        event("Activity Buffer Request", "overhead", 1000, 5, tid=7),
    ]
    path = write(tmp_path / "t.json", decode_trace() + extra)
    found, _ = answers(path)
    seen = found["Are the times those of a run that is not profiled?"]
    assert seen["answer"] == "partly" and "1 Python calls" in seen["why"] and "1 pauses" in seen["why"]
    assert "with_stack" in seen["fix"]
    spoilt = write(tmp_path / "u.json", decode_trace() + extra)
    text = spoilt.read_text()
    spoilt.write_text(text.replace('"ph": "X"', '"ph": X', 1))  # the slow way, event by event, counts alike
    counts = parse(spoilt).meta.facts
    assert (counts["python_calls"], counts["profiler_overheads"]) == (1, 1)


def test_a_file_that_is_cut_off(tmp_path):
    path = write(tmp_path / "t.json", decode_trace())
    path.write_bytes(path.read_bytes()[:-600])
    found, _ = answers(path)
    assert found["Is the trace whole?"]["answer"] == "no" and "cut off" in found["Is the trace whole?"]["why"]


def test_only_the_host_was_recorded(tmp_path):
    events = [e for e in decode_trace() if e["cat"] != "kernel"]
    events.append(event("aten::mm", "cpu_op", 1001, 5, tid=7))
    found, _ = answers(write(tmp_path / "t.json", events))
    time = found["Where does the device's time go?"]
    assert time["answer"] == "no" and "activities CPU and CUDA" in time["fix"]


def test_the_engine_by_its_operators(tmp_path):
    events = [*decode_trace(), event("trtllm::fused_moe", "cpu_op", 900, 1, tid=7)]
    events = [e for e in events if "vllm" not in e["name"]]
    assert parse(write(tmp_path / "t.json", events)).meta.engine == "tensorrt-llm"


@pytest.mark.parametrize("engine", [*ENGINES, None])
@pytest.mark.parametrize("nsys", [False, True])
def test_every_engine_has_a_command_and_remedies(engine, nsys):
    assert verb.ENGINES == ENGINES
    assert ("nsys profile" in command(engine, nsys)) == nsys
    assert ("--cuda-graph-trace=node" in remedy("graph", engine, nsys)) == nsys
    assert remedy("steps", engine, nsys)


def test_the_process_says_by_its_status_what_it_found(tmp_path, process):
    trace = write(tmp_path / "t.json", decode_trace())
    answer = process("doctor", trace)
    assert answer.status == 1 and answer.err == ""
    assert "What would answer the rest:" in answer.out and "to capture it again: vllm serve" in answer.out
    facts = json.loads(process("doctor", trace, "--json").out)
    assert facts["schema"] == "moetrace.doctor/1" and facts["whole"] is False
    assert process("doctor", tmp_path / "none.json").status == 2


def test_a_shipped_recording_lacks_nothing(shipped, process):
    answer = process("doctor", shipped)
    assert answer.status == 0 and answer.out.endswith("nothing is missing\n")


STEPS, ASKED = "What does a decode step take (TPOT)?", "Do steps compute only what requests asked for?"


def test_steps_without_a_phase_are_not_said_to_lack_annotations(tmp_path):
    plain = [e for e in decode_trace() if e["cat"] == "kernel"]
    named = [event(f"ProfilerStep#{i}", "user_annotation", 1000 * i, 900, 1) for i in range(3)]
    launches = [e for e in decode_trace() if e["cat"] in ("kernel", "cuda_runtime")]
    bare, facts = answers(write(tmp_path / "bare.json", plain))
    assert bare[STEPS]["why"].startswith("no annotation says") and ASKED not in bare
    assert "model tells" not in str(facts["answers"])
    steps, _ = answers(write(tmp_path / "steps.json", [*launches, *named]))
    assert steps[STEPS]["why"].endswith("annotated, none as prefill or decode") and ASKED not in steps


def test_the_padding_of_a_graph_without_its_capture_is_not_known(tmp_path):
    found, _ = answers(write(tmp_path / "t.json", decode_trace(steps=4, graph=True)))
    assert found[ASKED]["answer"] == "partly" and "only its capture tells" in found[ASKED]["why"]
    found, _ = answers(write(tmp_path / "eager.json", decode_trace(steps=4)))
    assert found[ASKED]["answer"] == "yes"


def test_the_trace_of_a_graph_s_capture_is_known_as_one(tmp_path):
    launches = [e for e in decode_trace() if e["cat"] in ("kernel", "cuda_runtime", "cpu_op")]
    tid = next(e["tid"] for e in launches if e["cat"] == "cuda_runtime")
    around = event("capture_32_FULL", "user_annotation", -10, 1e6, tid)
    found, _ = answers(write(tmp_path / "t.json", [around, *launches]))
    assert found[STEPS]["answer"] == "no" and "a graph's capture" in found[STEPS]["why"]
    assert "--capture-trace" in found[STEPS]["fix"]


def test_ranks_are_asked_together(tmp_path, process):
    for rank, events in enumerate(rank_traces([100, 130], clocks=[0, 70])):
        write(tmp_path / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 2})
    done = process("doctor", tmp_path, "--json")
    assert done.status == 1, done.err
    found = {a["question"]: a for a in json.loads(done.out)["answers"]}
    assert found[WAITS]["answer"] == "yes"


def test_nothing_is_asked_of_a_run_that_nobody_recorded(tmp_path, process):
    """It was said to be recorded by torch.profiler, with nothing missing or an engine that was not recognised."""
    moetrace.replay(moetrace.synthesize("olmoe-1b-7b", moetrace.Workload(1, 8, 2)), "h100-sxm").run.save(
        tmp_path / "run"
    )
    answer = process("doctor", tmp_path / "run")
    assert answer.status == 2 and "a predicted run: nothing was recorded of it" in answer.err
