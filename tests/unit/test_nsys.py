"""Made-up nsys exports: schemas of several ages, links and ranges, and files that mean no good."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import stat
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import OutputError, TraceError
from moetrace.formats import kineto, nsys, nsys_file, piles
from moetrace.formats.events import KERNEL, LAUNCH, MEMCPY, MEMSET, OPERATOR, RANGE
from moetrace.parse import parse
from moetrace.run import Run
from tests.made_nsys import API, EPOCH, GRAPHS, KERNEL_TABLE, NVTX, call, kernel, pid, save, small, span, tid


def listed(events, *classes):
    """(name, start, dur) of the events of some classes, by start."""
    return [
        (events.texts[events.name[i]], int(events.start[i]), int(events.dur[i]))
        for i in events.where(*classes)
    ]


def test_an_export_becomes_events(tmp_path):
    events = formats.read(save(tmp_path / "t.sqlite", **small()))
    assert listed(events, KERNEL) == [("nvjet_qkv", EPOCH + 120, 10)]
    assert listed(events, LAUNCH) == [("cudaLaunchKernel", EPOCH + 105, 2)]
    assert listed(events, RANGE) == [("execute_context_0(0)_generation_4(4)", EPOCH + 100, 10)]
    key = {int(events.correlation[i]) for i in events.where(KERNEL, LAUNCH)}
    assert len(key) == 1 and key != {-1}
    assert len({int(events.lane[i]) for i in events.where(RANGE, LAUNCH)}) == 1


def test_steps_are_found_and_the_remark_says_how_far_ranges_reach(tmp_path):
    run = parse(save(tmp_path / "t.sqlite", **small()))
    (step,) = run.meta.steps
    assert (step.phase, step.batch) == ("decode", 4)
    assert any("1 of 1 kernels lie in an NVTX range" in note for note in run.meta.notes)
    assert run.meta.facts["kernels_in_ranges"] == 1


@pytest.mark.parametrize(
    "absent", ["TARGET_INFO_SESSION_START_TIME", "StringIds", NVTX, API, "CUPTI_ACTIVITY_KIND_MEMCPY"]
)
def test_any_table_may_be_absent(absent, tmp_path):
    tables = {name: rows for name, rows in small().items() if name != absent}
    run = parse(save(tmp_path / "t.sqlite", **tables))
    assert run.num_rows == 1
    assert run.codes("kernel")[1] == (["name 1"] if absent == "StringIds" else ["nvjet_qkv"])
    assert run.numpy("start_ns")[0] == 120 + (0 if absent.startswith("TARGET") else EPOCH)


@pytest.mark.parametrize(
    "column",
    ["deviceId", "streamId", "globalPid", "demangledName", "correlationId", "endGlobalTid", "eventType",
     "nameId", "textId", "globalTid"],
)  # fmt: skip
def test_any_column_may_be_absent(column, tmp_path):
    tables = {
        name: [{c: v for c, v in row.items() if c != column} for row in rows]
        for name, rows in small().items()
    }
    events = formats.read(save(tmp_path / "t.sqlite", **tables))
    assert len(events.where(KERNEL)) == len(events.where(LAUNCH)) == len(events.where(RANGE)) == 1
    assert events.counts["damaged"] == 0
    linked = events.correlation[events.where(KERNEL)[0]] == events.correlation[events.where(LAUNCH)[0]] >= 0
    assert linked == (column not in ("correlationId",))


def test_rows_without_times_are_counted_and_left_out(tmp_path):
    rows = [kernel(120, 5), {**kernel(130, 6), "start": None}, {**kernel(140, 7), "end": 139}]
    zero = {**kernel(0, 8), "end": 0}  # what nsys leaves of a graph node it lost
    events = formats.read(save(tmp_path / "t.sqlite", **small(**{KERNEL_TABLE: [*rows, zero]})))
    assert len(events.where(KERNEL)) == 1
    assert events.counts["damaged"] == 3
    assert any("3 of 6 row(s) have no sound times" in said for said in formats.remarks(events.counts))


def test_names_are_the_first_there_is_by_id_or_as_text(tmp_path):
    kernels = [
        kernel(1, 1, name=1, shortName=2),
        kernel(2, 2, name=None, shortName=2),
        kernel(3, 3, name="as text", shortName=2),
        kernel(4, 4, name=99),
        kernel(5, 5, name=None),
    ]
    strings = [{"id": 1, "value": "long"}, {"id": 2, "value": "short"}]
    events = formats.read(save(tmp_path / "t.sqlite", **{KERNEL_TABLE: kernels, "StringIds": strings}))
    assert [name for name, _, _ in listed(events, KERNEL)] == ["long", "short", "as text", "name 99", ""]


def test_registered_and_plain_range_texts(tmp_path):
    ranges = [span(1, 9, None, textId=1), span(2, 8, "plain é ✓", textId=1)]
    tables = small(**{NVTX: ranges, "StringIds": [{"id": 1, "value": "registered"}]})
    events = formats.read(save(tmp_path / "t.sqlite", **tables))
    assert [name for name, _, _ in listed(events, RANGE)] == ["registered", "plain é ✓"]


def test_ranges_that_are_read_and_ranges_that_are_not(tmp_path):
    ranges = [
        span(1, 9, "push/pop"),
        span(2, 8, "start/end", kind=60),
        span(4, None, "never closed"),
        span(5, None, "mark", kind=34),
        span(6, None, "domain", kind=75),
    ]
    events = formats.read(save(tmp_path / "t.sqlite", **small(**{NVTX: ranges})))
    assert [name for name, _, _ in listed(events, RANGE)] == ["push/pop", "start/end"]
    assert events.counts["unclosed"] == 1
    assert events.counts["damaged"] == 0


def test_a_range_that_ends_on_another_thread_is_of_every_thread_that_launches(tmp_path):
    """Begun by a scheduler, ended by a worker: what a third thread launches meanwhile lies in it."""
    step = "execute_context_0(0)_generation_4(4)"
    path = save(
        tmp_path / "t.sqlite",
        **{
            KERNEL_TABLE: [kernel(120, 5), kernel(140, 6), kernel(300, 7), kernel(400, 8, process=2)],
            API: [
                call(105, 5, thread=3),
                call(106, 6, thread=1),
                call(250, 7, thread=3),
                call(107, 8, process=2),
            ],
            NVTX: [
                span(100, 200, step, kind=60, thread=1, endGlobalTid=tid(1, 2)),
                span(104, 107, "aten::mm", thread=3),
            ],
        },
    )
    frame = parse(path, gpu=0).to_pandas(["start_ns", "step", "op"])
    assert frame.step.fillna(-1).tolist() == [0, 0, -1]
    assert [op.startswith("gemm") for op in frame.op] == [True, True, True]
    assert parse(path, gpu=1).meta.facts["kernels_in_ranges"] == 0
    events = formats.read(path, gpu=0)
    assert events.counts["events"] == 3 + 3 + 2
    assert len(events.where(RANGE)) == 2  # once for each of the two threads that launch


CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "intermediate_size": 64, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip


def two_processes(**more):
    """The same correlation id in two processes, each on a GPU of its own."""
    return {
        KERNEL_TABLE: [kernel(120, 5, process=1, name="a"), kernel(121, 5, process=2, name="b", deviceId=1)],
        API: [call(105, 5, process=1), call(106, 5, process=2), call(107, 5, process=3)],
        NVTX: [span(100, 110, "moetrace.step#0 decode batch=2 tokens=2 kv=8", process=p) for p in (1, 2)],
        **more,
    }


def test_each_process_and_gpu_is_a_rank(tmp_path):
    path = save(tmp_path / "t.sqlite", **two_processes())
    assert formats.nsys_ranks(path) == 2
    for i, name in enumerate("ab"):
        run = parse(path, gpu=i)
        frame = run.to_pandas(["kernel", "launch_ns", "device", "step", "rank"])
        assert frame.to_numpy().tolist() == [[name, 105 + i, i, 0, i]]
        assert run.meta.gpus == 2 and run.meta.facts["kernels_in_ranges"] == 1
    with pytest.raises(
        TraceError, match=r"holds 2 ranks \(2 process\(es\), 2 GPU\(s\)\).*moetrace parse FILE -o DIR"
    ):
        parse(path)
    with pytest.raises(TraceError, match=r"no number 2"):
        parse(path, gpu=2)


def test_one_process_on_several_gpus_is_as_many_ranks(tmp_path):
    kernels = [kernel(100 + i, i, deviceId=i % 4, name=f"k{i % 4}") for i in range(1, 9)]
    path = save(tmp_path / "t.sqlite", **{KERNEL_TABLE: kernels, API: [call(50 + i, i) for i in range(1, 9)]})
    assert formats.nsys_ranks(path) == 4
    for gpu in range(4):
        frame = parse(path, gpu=gpu).to_pandas(["kernel", "device", "rank", "launch_ns"])
        assert frame.kernel.tolist() == [f"k{gpu}"] * 2 and set(frame.device) == set(frame["rank"]) == {gpu}
        assert frame.launch_ns.notna().all()


def test_several_processes_on_one_gpu_are_as_many_ranks(tmp_path):
    path = save(tmp_path / "t.sqlite", **{KERNEL_TABLE: [kernel(100 + p, 5, process=p) for p in (1, 2, 3)]})
    assert formats.nsys_ranks(path) == 3
    assert [parse(path, gpu=i).numpy("start_ns").tolist() for i in range(3)] == [[101], [102], [103]]


def test_copies_where_no_kernel_ran_are_no_rank(tmp_path):
    copies = [
        {**kernel(130, 6), "bytes": 8, "copyKind": 1},
        {**kernel(131, 7, deviceId=1), "bytes": 8, "copyKind": 1},
    ]
    path = save(tmp_path / "t.sqlite", **small(CUPTI_ACTIVITY_KIND_MEMCPY=copies))
    run = parse(path)
    assert run.num_rows == 2
    assert any(note.startswith("1 copies and sets on GPUs") for note in run.meta.notes)


def test_parse_makes_a_run_of_each_rank(tmp_path, process):
    packed = tmp_path / "two.sqlite.gz"
    packed.write_bytes(gzip.compress(save(tmp_path / "t.sqlite", **two_processes()).read_bytes()))
    done = process("parse", packed, "-o", tmp_path / "out", "--jobs", "1")
    assert done.status == 0, done.err
    assert "2 of 2 kernels lie in an NVTX range" in done.out
    assert "share its clock" in done.out and "who waits for whom is not told" in done.out
    ranks = json.loads((tmp_path / "out" / "ranks.json").read_bytes())["ranks"]
    assert [(r["clock"]["of_rank"], r["clock_offset_s"], r["wait_s"]) for r in ranks] == [(0, 0.0, None)] * 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "rank-0",
        "rank-1",
        "ranks.json",
        "ranks.parquet",
    ]
    for i, name in enumerate("ab"):
        run = Run.load(tmp_path / "out" / f"rank-{i}")
        assert run.codes("kernel")[1] == [name] and run.meta.source == "two.sqlite.gz"
    done = process("attribute", packed, "--hw", "h100-sxm")
    assert done.status == 2 and "holds 2 ranks" in done.err


def test_the_ranks_of_a_recording_have_its_facts(tmp_path, process):
    """What `record --nsys` wrote, with the calls of two processes in one export."""
    recording = tmp_path / "recorded"
    recording.mkdir()
    save(recording / "trace.sqlite", **two_processes())
    facts = {"model": "tiny", "model_config": CONFIG, "native_layers": 7, "engine": "transformers"}
    (recording / "recording.json").write_text(json.dumps(facts))
    done = process("parse", recording, "-o", tmp_path / "out", "--jobs", "1")
    assert done.status == 0, done.err
    for rank in range(2):
        meta = Run.load(tmp_path / "out" / f"rank-{rank}").meta
        assert meta.model.name == "tiny" and meta.model_source == "recorded" and meta.native_layers == 7
        assert meta.source == "recorded" and meta.engine == "transformers, recorded by moetrace"
    assert parse(recording, gpu=1).meta.native_layers == 7
    assert parse(recording / "trace.sqlite", gpu=1).meta.native_layers == 7  # the file alone, too
    done = process("parse", recording / "trace.sqlite", "-o", tmp_path / "alone", "--jobs", "1")
    assert done.status == 0 and Run.load(tmp_path / "alone" / "rank-1").meta.model.name == "tiny"
    (recording / "recording.json").write_text("[")
    done = process("parse", recording, "--jobs", "1")
    assert done.status == 2 and "recording.json is damaged" in done.err and len(done.error_lines) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_an_export_behind_a_url_is_copied(tmp_path, process, monkeypatch, packed):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    name = "t.sqlite.gz" if packed else "t.sqlite"
    for tables, folder in ((small(), "one"), (two_processes(), "two")):
        (tmp_path / folder).mkdir()
        path = save(tmp_path / folder / "t.sqlite", **tables)
        if packed:
            (tmp_path / folder / name).write_bytes(gzip.compress(path.read_bytes()))
    run = parse(f"file://{tmp_path / 'one' / name}")
    assert run.table().equals(parse(tmp_path / "one" / name).table()) and run.meta.source == name
    two = f"file://{tmp_path / 'two' / name}"
    with pytest.raises(TraceError, match=r"file://.* holds 2 ranks"):
        parse(two)
    assert parse(two, gpu=1).table().equals(parse(tmp_path / "two" / name, gpu=1).table())
    assert list(scratch.iterdir()) == []
    done = process("parse", two, "-o", tmp_path / "out", "--jobs", "1")
    assert done.status == 0, done.err
    assert Run.load(tmp_path / "out" / "rank-1").meta.source == name
    assert process("doctor", two).status == 1
    monkeypatch.setattr(piles, "_MARGIN", 1 << 60)
    with pytest.raises(OutputError, match="MiB free"):
        parse(two, gpu=0)
    assert list(scratch.iterdir()) == []


def test_a_process_may_number_its_gpus_otherwise(tmp_path):
    devices = [{"gpuId": 3, "cudaId": 0, "pid": 1}, {"gpuId": 5, "cudaId": 0, "pid": 2}]
    gpus = [
        {"id": i, "name": "NVIDIA H100 80GB HBM3", "totalMemory": 85 << 30, "smCount": 132} for i in (3, 5)
    ]
    tables = {KERNEL_TABLE: [kernel(1, 1, process=1), kernel(2, 1, process=2)], "TARGET_INFO_GPU": gpus}
    path = save(tmp_path / "t.sqlite", **tables, TARGET_INFO_CUDA_DEVICE=devices)
    first, events = (formats.read(path, gpu=i) for i in range(2))
    assert first.device[first.where(KERNEL)].tolist() == [3]
    assert events.device[events.where(KERNEL)].tolist() == [5]
    assert events.devices[1] == {
        "id": 5, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 85 << 30, "numSms": 132,
    }  # fmt: skip
    assert parse(path, gpu=1).meta.device == "NVIDIA H100 80GB HBM3"


def test_copies_and_sets_have_bytes_and_a_direction(tmp_path):
    copy = {**kernel(1, 1), "bytes": 4096, "copyKind": 1}
    odd = {**kernel(2, 2), "bytes": None, "copyKind": 77}
    tables = {
        "CUPTI_ACTIVITY_KIND_MEMCPY": [copy, odd],
        "CUPTI_ACTIVITY_KIND_MEMSET": [{**kernel(3, 3), "bytes": 64}],
    }
    events = formats.read(save(tmp_path / "t.sqlite", **tables))
    assert [name for name, _, _ in listed(events, MEMCPY, MEMSET)] == ["Memcpy HtoD", "Memcpy", "Memset"]
    assert events.nbytes[events.where(MEMCPY, MEMSET)].tolist() == [4096, 0, 64]


def test_a_graph_whose_kernels_were_not_traced(tmp_path):
    tables = small(
        **{GRAPHS: [kernel(120, 5, graphId=9)], API: [call(105, 5, name="cudaGraphLaunch_v10000")]}
    )
    del tables[KERNEL_TABLE]
    path = save(tmp_path / "t.sqlite", **tables)
    run = parse(path)
    assert run.codes("kernel")[1] == ["whole CUDA graph"]
    assert run.to_pandas().graph.notna().all()
    assert run.to_pandas().family.tolist() == ["other"]
    assert any("--cuda-graph-trace=node" in note for note in run.meta.notes)
    assert run.meta.facts["kernels"] == 0


def test_nodes_of_a_graph_share_its_launch(tmp_path):
    tables = small(
        **{
            KERNEL_TABLE: [kernel(120 + 20 * i, 5, graphNodeId=i) for i in range(4)],
            API: [call(105, 5, name="cudaGraphLaunch_v10000")],
        }
    )
    frame = parse(save(tmp_path / "t.sqlite", **tables)).to_pandas()
    assert len(frame) == 4
    assert frame.graph.nunique() == 1 and frame.graph.notna().all()
    assert (frame.step == 0).all()


def emitted(tmp_path, text):
    """(class, name, shapes) of a range with this text."""
    events = formats.read(save(tmp_path / "t.sqlite", **small(**{NVTX: [span(100, 110, text)]})))
    (i,) = events.where(RANGE, OPERATOR)
    shapes = events.tensor_sets[events.tensors[i]].shapes if events.tensors[i] >= 0 else None
    return int(events.cls[i]), events.texts[events.name[i]], shapes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aten::mm, op_id = 3", (OPERATOR, "aten::mm", None)),
        ("aten::mm", (OPERATOR, "aten::mm", None)),
        ("FlashAttnFunc, seq = 4, op_id = 9", (OPERATOR, "FlashAttnFunc", None)),
        ("aten::mm, op_id = 3, sizes = [[2, 4], [4, 8]]", (OPERATOR, "aten::mm", ((2, 4), (4, 8)))),
        (
            "aten::mul, seq = 6, op_id = 8, sizes = [[4, 2], [], []], input_op_ids = [(1,0), (0,-1)]",
            (OPERATOR, "aten::mul", ((4, 2), (), ())),
        ),
        ("aten::cat, op_id = 1, sizes = [[[1, 2], [3, 4]], []]", (OPERATOR, "aten::cat", ((1, 2), (3, 4), ()))),
        ("triton_poi_fused_0, op_id = 1, sizes = [[8]]", (OPERATOR, "triton_poi_fused_0", ((8,),))),
        ("aten::mm, op_id = 3, sizes = [[2, 4], [", (RANGE, "aten::mm, op_id = 3, sizes = [[2, 4], [", None)),
        ("aten::mm, op_id = 3, sizes = [2, 4]", (OPERATOR, "aten::mm", None)),
        ("ProfilerStep#3, op_id = 7", (RANGE, "ProfilerStep#3", None)),
        ("{'Module': 'model.layers.0', 'sizes = ': 1}", (RANGE, "{'Module': 'model.layers.0', 'sizes = ': 1}", None)),
        ("gpu_model_runner: forward", (RANGE, "gpu_model_runner: forward", None)),
        (", op_id = 3", (RANGE, ", op_id = 3", None)),
        ("two\nlines, op_id = 3", (RANGE, "two\nlines", None)),
    ],
)  # fmt: skip
def test_what_emit_nvtx_wrote(text, expected, tmp_path):
    assert emitted(tmp_path, text) == expected


def test_operators_of_emit_nvtx_reach_the_kernels(tmp_path):
    ranges = [
        span(90, 190, "ProfilerStep#0, op_id = 1"),
        span(100, 150, "aten::linear, op_id = 2, sizes = [[4, 64], [32, 64]]"),
        span(101, 140, "aten::mm, op_id = 3, sizes = [[4, 64], [64, 32]]"),
    ]
    run = parse(save(tmp_path / "t.sqlite", **small(**{NVTX: ranges})))
    assert [str(op) for op in run.codes("op")[1]] == ["gemm bf16 m=4 n=32 k=64"]


# Ways in


def test_gzip_is_read_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    plain = save(tmp_path / "t.sqlite", **small())
    packed = tmp_path / "t.sqlite.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert listed(formats.read(packed), KERNEL) == listed(formats.read(plain), KERNEL)
    packed.write_bytes(gzip.compress(plain.read_bytes()[:5000]))
    with pytest.raises(TraceError, match="damaged"):
        formats.read(packed)
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-20])
    with pytest.raises(TraceError, match="truncated gzip"):
        formats.read(packed)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_decompression_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.sqlite.gz"
    data = save(tmp_path / "t.sqlite", **small()).read_bytes()
    bomb.write_bytes(gzip.compress(data + bytes(64 << 20)))
    with pytest.raises(TraceError, match=r"bomb\.sqlite\.gz expands to more than .* times its size"):
        formats.read(bomb)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 * 4096})())
    with pytest.raises(TraceError, match="half of the free disk"):
        formats.read(bomb)


def test_a_report_is_exported_by_the_nsys_on_the_path(tmp_path, monkeypatch):
    report = tmp_path / "r.nsys-rep"
    report.write_bytes(b"whatever a report is")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(TraceError, match=r"no nsys is on the PATH.*nsys export --type sqlite"):
        formats.read(report)
    tool = tmp_path / "bin" / "nsys"
    tool.parent.mkdir()
    made = save(tmp_path / "made.sqlite", **small())
    tool.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[1:6] == ['export', '--type', 'sqlite', '-f', 'true']\n"
        f"assert sys.argv[6] == '-o' and sys.argv[8] == {str(report)!r}\nshutil.copy({str(made)!r}, sys.argv[7])\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert listed(formats.read(report), KERNEL) == [("nvjet_qkv", EPOCH + 120, 10)]
    tool.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nif '--help' in sys.argv:\n    print('  --include-blobs=')\nelse:\n"
        f"    assert sys.argv[8:] == ['--include-blobs=true', {str(report)!r}]\n"
        f"    shutil.copy({str(made)!r}, sys.argv[7])\n"
    )
    assert len(formats.read(report).where(KERNEL)) == 1
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nprint('one\\nImporter missing', file=sys.stderr)\nsys.exit(3)\n"
    )
    with pytest.raises(TraceError, match=r"status 3: Importer missing") as caught:
        formats.read(report)
    assert "\n" not in str(caught.value)


def test_odd_file_names(tmp_path):
    events = formats.read(save(tmp_path / "a ?mode=rwc#é%41.sqlite", **small()))
    assert len(events.where(KERNEL)) == 1


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    path = save(tmp_path / "t.json", **small())
    assert nsys.sniff(path.read_bytes()[:64]) and not kineto.sniff(path.read_bytes()[:64])
    assert len(formats.read(path).where(KERNEL)) == 1


# Bad content


def refused(path, *hints):
    with pytest.raises(TraceError) as caught:
        parse(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said
    for hint in hints:
        assert hint in said


def test_another_database(tmp_path):
    refused(save(tmp_path / "places.sqlite", bookmarks=[{"id": 1}]), "not an nsys export", NVTX)


def test_ranges_alone_are_nothing_to_attribute(tmp_path):
    refused(
        save(tmp_path / "t.sqlite", **{NVTX: [span(1, 2, "a")]}),
        "1 NVTX range",
        "nothing to attribute",
        "cuda",
    )


def test_launches_alone_are_nothing_to_parse(tmp_path):
    refused(save(tmp_path / "t.sqlite", **{API: [call(1, 1)]}), "no kernels")


def test_empty_tables(tmp_path):
    path = tmp_path / "t.sqlite"
    connection = sqlite3.connect(path)
    for table in (KERNEL_TABLE, API, NVTX):
        connection.execute(f"CREATE TABLE {table} (start INTEGER, end INTEGER)")
    connection.commit()
    refused(path, "nothing to attribute")


def test_a_view_in_place_of_a_table_is_never_run(tmp_path):
    path = save(tmp_path / "t.sqlite", **{NVTX: [span(1, 2, "a")]})
    connection = sqlite3.connect(path)
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS start, i AS end FROM n"
    )
    connection.execute(f"CREATE VIEW {KERNEL_TABLE} AS {endless}")
    connection.commit()
    refused(path, KERNEL_TABLE, "not a table")


def test_a_virtual_table_is_never_opened(tmp_path):
    path = save(tmp_path / "t.sqlite", **{NVTX: [span(1, 2, "a")]})
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    virtual = f"CREATE VIRTUAL TABLE {API} USING nosuch(x)"
    connection.execute("INSERT INTO sqlite_master VALUES ('table', ?, ?, 0, ?)", (API, API, virtual))
    connection.commit()
    connection.close()
    refused(path)


def test_the_environment_is_never_read(tmp_path, monkeypatch):
    path = save(
        tmp_path / "t.sqlite", **small(TARGET_INFO_SYSTEM_ENV=[{"name": "env", "value": "TOKEN=hunter2"}])
    )
    asked = []

    def connect(file):
        connection = plain(file)
        connection.set_trace_callback(asked.append)
        return connection

    plain = nsys_file._connect
    monkeypatch.setattr(nsys_file, "_connect", connect)
    events = formats.read(path)
    assert len(asked) > 5
    assert not any("ENV" in query or "*" in query for query in asked)
    assert not any("hunter2" in text for text in events.texts)


def test_the_connection_cannot_write(tmp_path):
    connection = nsys_file._connect(save(tmp_path / "t.sqlite", **small()))
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM NVTX_EVENTS")
    assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)


ODD = st.one_of(
    st.none(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text(max_size=8), st.binary(max_size=8),
    st.sampled_from([0, 1, 5, 59, 60, 100, 120, pid(1), tid(1), -(1 << 63), 1 << 62, -(1 << 62)]),
)  # fmt: skip
COLUMNS = {
    KERNEL_TABLE: ["start", "end", "deviceId", "streamId", "correlationId", "globalPid", "demangledName"],
    "CUPTI_ACTIVITY_KIND_MEMCPY": ["start", "end", "bytes", "copyKind", "correlationId", "globalPid"],
    API: ["start", "end", "globalTid", "correlationId", "nameId"],
    NVTX: ["start", "end", "eventType", "text", "textId", "globalTid", "endGlobalTid"],
    "StringIds": ["id", "value"],
    "TARGET_INFO_GPU": ["id", "name", "totalMemory", "smCount"],
    "TARGET_INFO_CUDA_DEVICE": ["gpuId", "cudaId", "pid"],
    "TARGET_INFO_SESSION_START_TIME": ["utcEpochNs"],
}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_values_of_any_type_cost_their_row_at_most(data, tmp_path_factory):
    tables = small()
    for name, columns in COLUMNS.items():
        rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, ODD)), max_size=3))
        tables[name] = [*tables.get(name, []), *rows]
    tables = {name: rows for name, rows in tables.items() if rows}
    path = save(tmp_path_factory.mktemp("odd") / "t.sqlite", **tables)
    ranks = formats.nsys_ranks(path)
    names = {name for i in range(ranks) for name in parse(path, gpu=i).codes("kernel")[1]}
    renamed = any(row["id"] == 1 for row in tables["StringIds"][len(small()["StringIds"]) :])
    assert renamed or "nvjet_qkv" in names


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    whole = bytearray(save(folder / "t.sqlite", **small()).read_bytes())
    for at in data.draw(st.lists(st.integers(16, len(whole) - 1), min_size=1, max_size=20)):
        whole[at] = data.draw(st.integers(0, 255))
    path = folder / "d.sqlite"
    path.write_bytes(whole[: data.draw(st.integers(20, len(whole)))])
    try:
        parse(path)
    except TraceError as err:
        assert "\n" not in str(err) and str(path) in str(err)


@pytest.mark.parametrize("kept", [16, 100, 4096, 9000])
def test_a_truncated_file_says_so(kept, tmp_path):
    whole = save(tmp_path / "t.sqlite", **small()).read_bytes()
    path = tmp_path / "cut.sqlite"
    path.write_bytes(whole[:kept])
    refused(path, "damaged", "export")


def test_a_huge_text_is_refused_or_cut(tmp_path):
    path = save(tmp_path / "t.sqlite", **small(**{NVTX: [span(1, 2, "x" * (20 << 20))]}))
    if sys.version_info >= (3, 11):
        refused(path, "too big")
    else:
        assert max(map(len, formats.read(path).texts)) <= 16384


def test_a_long_text_is_cut(tmp_path):
    events = formats.read(save(tmp_path / "t.sqlite", **small(**{NVTX: [span(1, 2, "x" * 100_000)]})))
    assert max(map(len, events.texts)) == 16384


def test_text_that_is_not_utf8(tmp_path):
    path = save(tmp_path / "t.sqlite", **small(**{NVTX: [span(1, 2, "name-of-a-range")]}))
    data = path.read_bytes()
    assert data.count(b"name-of-a-range") == 1
    path.write_bytes(data.replace(b"name-of-a-range", b"name-\xff\xfe-a-range"))
    assert listed(formats.read(path), RANGE)[0][0] == "name-\ufffd\ufffd-a-range"


def test_a_damaged_name_in_the_schema(tmp_path):
    path = save(tmp_path / "t.sqlite", **small())
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CR\xe9ATE TAB\xe9E"))
    refused(path, "damaged")


def test_more_rows_than_the_file_can_hold(tmp_path, monkeypatch):
    path = save(tmp_path / "t.sqlite", **small())
    monkeypatch.setattr(nsys_file, "_LEAST_ROW", os.path.getsize(path) + 1)
    refused(path, "more rows than the file can hold")


def test_progress_goes_up(tmp_path):
    told = []
    formats.read(save(tmp_path / "t.sqlite", **small()), told.append)
    assert told == sorted(told) and len(told) > 3 and 0 <= told[0] < told[-1] == 1
