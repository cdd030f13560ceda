"""The border: numbers that nothing can have go no further than the readers, whatever the format."""

from __future__ import annotations

import pytest

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.parse import parse, summary
from tests.made import event, write


def kernel(**args):
    return event("nvjet_x", "kernel", 20, 9, tid=7, stream=7, **{"device": 0, **args})


@pytest.mark.parametrize(
    ("what", "events", "top"),
    [
        ("rank", [kernel()], {"distributedInfo": {"rank": 1 << 40, "world_size": 8}}),
        ("world size", [kernel()], {"distributedInfo": {"rank": 0, "world_size": 1 << 62}}),
    ],
)
def test_absurd_ranks_are_refused_in_one_line(tmp_path, what, events, top):
    path = write(tmp_path / "t.json", events, **top)
    with pytest.raises(TraceError, match=f"damaged: {what} ") as refusal:
        formats.read(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ([4, 8], True), ([0, 8], True), ([-4, 8], False), ([1 << 62, 1 << 62], False), ([0, 1 << 62], False),
        ([1 << 30] * 40, False), ([], True),
    ],
)  # fmt: skip
def test_shapes_that_no_tensor_has_count_as_not_recorded(tmp_path, shape, kept):
    dims = {"Input Dims": [shape, [8, 2]], "Input type": ["c10::BFloat16"] * 2}
    path = write(tmp_path / "t.json", [event("aten::mm", "cpu_op", 0, 9, tid=1, **dims)])
    (tensors,) = formats.read(path).tensor_sets
    assert tensors.shapes == (tuple(shape) if kept else (), (8, 2))
    assert tensors.dtypes == ("bf16", "bf16")
    summary(parse(path, model="gpt-oss-20b"))


def test_byte_counts_that_cannot_be_count_as_not_recorded(tmp_path):
    message = {"Collective name": "allreduce", "dtype": "Float", "In msg nelems": -5, "Group size": -8}
    events = [
        event("Memcpy DtoD", "gpu_memcpy", 0, 9, tid=7, stream=7, device=0, bytes=-50),
        event("ncclDevKernel_AllReduce", "kernel", 20, 9, tid=7, stream=7, device=0, **message),
    ]
    read = formats.read(write(tmp_path / "t.json", events))
    assert read.nbytes.tolist() == [0, 0]
    assert (read.tensor_sets[0].nbytes, read.tensor_sets[0].group) == (0, 0)


@pytest.mark.parametrize(
    "name",
    [
        "step[DECODE bs=99999999999999999999999999]",
        f"step[DECODE bs={'9' * 5000}]",
        f"step[DECODE bs={1 << 41}]",
        f"moetrace.step#{'9' * 30} decode batch=1 tokens=5 kv=7",
        f"moetrace.layer#{1 << 40}",
        f"moetrace.layer#{10**30}",
        f"nn.Module: DecoderLayer_{10**30}",
    ],
)
def test_annotations_with_absurd_numbers_say_nothing(tmp_path, name):
    cat = "python_function" if name.startswith("nn.") else "user_annotation"
    events = [
        event(name, cat, 0, 50, tid=1),
        event("cudaLaunchKernel", "cuda_runtime", 5, 1, tid=1, correlation=3),
        kernel(correlation=3),
    ]
    run = parse(write(tmp_path / "t.json", events))
    run.save(tmp_path / "run")
    assert run.meta.steps[0].phase is None
    assert run.numpy("layer").tolist() == [-1]


def test_attention_over_nothing_is_no_work(tmp_path):
    dims = {"Input Dims": [[0, 8, 0, 64]] * 3, "Input type": ["c10::BFloat16"] * 3}
    events = [event("aten::_scaled_dot_product_flash_attention", "cpu_op", 0, 9, tid=1, **dims)]
    assert parse(write(tmp_path / "t.json", events)).numpy("flops", 0.0).tolist() == [0.0]


def test_a_recording_s_metadata_must_be_an_object(tmp_path):
    write(tmp_path / "trace.json", [kernel()])
    (tmp_path / "recording.json").write_text("5")
    with pytest.raises(TraceError, match=r"recording\.json is damaged"):
        parse(tmp_path)


def test_an_absurd_depth_of_the_real_model_is_not_believed(tmp_path):
    for depth in (-5, 10**30):
        path = write(tmp_path / "t.json", [kernel()], moetrace={"native_layers": depth})
        run = parse(path, model="gpt-oss-20b")
        assert run.meta.native_layers == 24


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("node17.corp.example_4242.1700000000.pt.trace.json", "trace.pt.trace.json"),
        ("host-a_99.1700000000123456789.pt.trace.json.gz", "trace.pt.trace.json.gz"),
        ("dp0_pp0_tp3_rank3.1700000000123.pt.trace.json.gz", "trace-dp0-pp0-tp3-rank3.pt.trace.json.gz"),
        ("vllm-box-rank-5.1700000000123.pt.trace.json", "trace-rank5.pt.trace.json"),
        ("mine.json.gz", "mine.json.gz"),
        ("qwen3_64.trace.json", "qwen3_64.trace.json"),
    ],
)
def test_a_run_keeps_no_host_or_process_of_the_trace_s_file_name(tmp_path, name, kept):
    from moetrace.parse.facts import source_of

    assert source_of(name) == kept
    if name.endswith(".json"):
        assert parse(write(tmp_path / name, [kernel()])).meta.source == kept


def test_an_impossible_device_costs_no_more_than_its_number(tmp_path):
    events = formats.read(write(tmp_path / "t.json", [kernel(device=1 << 40), kernel(device=3)]))
    assert sorted(events.device.tolist()) == [-1, 3]
