"""The measuring campaign from end to end, in this process, on a model of a few dims: what it writes, and that it resumes."""

from __future__ import annotations

import importlib
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from moetrace.op import Op
from moetrace.ops import KINDS, work
from moetrace.parse import parse
from tests.conftest import REPO
from tests.integration.test_record_workload import CONFIG

pytest.importorskip("torch", reason="needs the record extra")

NOT_DIMS = {
    "kind",
    "dtype",
    "seconds",
    "p10_s",
    "p90_s",
    "repeats",
    "engine",
    "kernel",
    "source",
    "hardware",
    "sm_mhz",
    "mem_mhz",
    "power_w",
}
MODULES = {"run", "plan", "ops", "decode", "log", "clocks"}
Campaign = Callable[..., None]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """benchmarks/campaign/run.py as a module; it imports the files beside it by their bare names."""
    folder, before = str(REPO / "benchmarks" / "campaign"), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(folder)
        for name in (set(sys.modules) - before) & MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small campaign; its model is beside it."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "tiny.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "auto_map"}))
    call(script, folder)
    return folder


def call(script: ModuleType, folder: Path, *options: str) -> None:
    argv, quick = sys.argv, importlib.import_module("ops")
    sample = quick._SAMPLE_S
    quick._SAMPLE_S = 1e-5
    sys.argv = [
        "run.py",
        "-o",
        str(folder / "out"),
        "--small",
        "--model",
        str(folder / "tiny.json"),
        *options,
    ]
    try:
        script.main()
    finally:
        sys.argv, quick._SAMPLE_S = argv, sample


def points(folder: Path) -> list[dict[str, object]]:
    """The points that came to an end, in their order; a line before each says that it was begun."""
    lines = [json.loads(line) for line in (folder / "out" / "points.jsonl").read_text().splitlines()]
    return [line for line in lines if not line.get("begun")]


def test_every_op_is_one_whose_work_is_known_with_its_time_and_spread(made: Path) -> None:
    frame = pd.read_parquet(made / "out" / "ops.parquet")
    assert set(frame.kind) == {"moe_gate_up", "moe_down", "attention", "gemm", "memcpy", "elementwise"}
    assert set(frame.kind) <= set(KINDS)
    assert {"bf16", "fp8", "int8"} <= set(frame.dtype)
    for row in frame.to_dict("records"):
        dims = {k: v for k, v in row.items() if k not in NOT_DIMS and v == v}
        needed = work(Op.of(row["kind"], row["dtype"], **dims))
        assert needed.flops + needed.act_write_bytes > 0
        assert 0 < row["p10_s"] <= row["seconds"] <= row["p90_s"]
    experts = frame[frame.kind == "moe_gate_up"]
    assert sorted(set(experts.distinct)) == [1, 2, 4, 8]
    assert (experts.tokens >= experts.distinct).all()
    assert set(frame.hardware) == {"cpu"}


def test_every_decode_point_has_its_setting_and_distinct_experts(made: Path) -> None:
    frame = pd.read_parquet(made / "out" / "decode.parquet")
    assert set(frame.model) == {"tiny"}
    assert {1, 2} == set(frame.batch)
    assert {"fused", "unfused"} == set(frame.experts)
    assert {"uniform", "power_law:1.2"} == set(frame.routing)
    assert {"bf16", "fp8"} == set(frame.expert_dtype)
    assert {2, 4} == set(frame.n_a)
    assert {8, 128} == set(frame.n_e)
    assert 512 in set(frame.expert_width)
    alone = frame[(frame.batch == 1) & (frame.n_a == 2)]
    assert (alone.distinct == 2).all()
    assert ((frame.p10_s <= frame.seconds) & (frame.seconds <= frame.p90_s) & (frame.p10_s > 0)).all()


def test_the_traces_it_keeps_are_recordings(made: Path) -> None:
    (recording,) = (made / "out" / "traces").iterdir()
    run = parse(recording)
    assert [step.phase for step in run.meta.steps] == ["decode", "decode"]
    assert run.meta.routing == "counted in the recording"
    told = json.loads((made / "out" / "environment.json").read_text())
    assert told["device"]["type"] == "cpu"


def test_what_is_done_is_not_done_again_and_what_broke_off_is(made: Path, script: ModuleType) -> None:
    before = points(made)
    call(script, made)
    assert points(made) == before
    path = made / "out" / "points.jsonl"
    whole = path.read_text()
    path.write_text(whole[: -len(json.dumps(before[-1])) // 2])  # a run that was killed while it wrote
    call(script, made, "--minutes", "0")
    assert points(made) == before[:-1]  # no time: nothing is begun
    call(script, made)
    assert [point["key"] for point in points(made)] == [point["key"] for point in before]


def test_a_point_that_fails_says_why_and_is_tried_again(
    made: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = script.Log(made / "other", None, "cpu")

    def fail() -> dict[str, object]:
        raise RuntimeError("out of memory\nand more")

    log.point("ops", "a", fail)
    log.point("ops", "b", lambda: {"kind": "gemm", "seconds": 1.0})
    log.tables()
    assert "RuntimeError: out of memory\n" in capsys.readouterr().out
    assert len(pd.read_parquet(made / "other" / "ops.parquet")) == 1
    again = script.Log(made / "other", None, "cpu")
    assert (again.wanted("ops", "a"), again.wanted("ops", "b")) == (True, False)
    assert "1 failed" in again.summary()
    for _ in range(2):
        script.Log(made / "other", None, "cpu").point("ops", "a", fail)
    assert not script.Log(made / "other", None, "cpu").wanted("ops", "a")  # three times are enough


def test_a_point_that_killed_the_run_is_tried_behind_all_others(made: Path, script: ModuleType) -> None:
    folder = made / "killed"
    folder.mkdir()
    (folder / "points.jsonl").write_text(
        '{"part": "ops", "key": "a", "begun": true}\n{"part": "ops", "key": "b", "begun": true}\n'
        '{"part": "ops", "key": "b", "seconds": 1.0}\n'
    )
    log = script.Log(folder, None, "cpu")
    assert [log.wanted("ops", key) for key in "abc"] == [True, False, True]
    jobs = sorted((script.Job("ops", key, dict) for key in "ac"), key=lambda job: log.tries("ops", job.key))
    assert [job.key for job in jobs] == ["c", "a"]
    assert "killed" in log.rows["ops", "a"]["error"]


def test_a_device_that_fails_ends_the_run_and_one_without_kernels_the_traces(
    made: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = script.Log(made / "broken", None, "cpu")
    done: list[str] = []

    def job(part: str, key: str, failure: Exception | None) -> object:
        def make() -> dict[str, object]:
            done.append(key)
            if failure is not None:
                raise failure
            return {"seconds": 1.0}

        return script.Job(part, key, make)

    held = script.Held(script.torch.device("cpu"))
    jobs = [
        job("traces", "blind", script.NoKernelsError("no kernel")),
        job("traces", "not tried", None),
        job("ops", "oom", RuntimeError("out of memory")),
        job("ops", "fine", None),
    ]
    assert script._work(log, jobs, held) == ""
    assert done == ["blind", "oom", "fine"]
    assert "no kernel" in log.rows["traces", "blind"]["error"]

    def gone() -> None:
        raise script.BrokenDeviceError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(sys.modules["log"], "_free", gone)
    said = script._work(log, [job("ops", "bad", RuntimeError("x")), job("ops", "later", None)], held)
    assert "illegal memory access" in said and done[-1] == "bad"


def test_a_model_that_is_too_large_is_built_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []

    def fail(*arguments: object) -> None:
        built.append(arguments)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(script, "Built", fail)
    held, point = script.Held(script.torch.device("cpu")), sys.modules["plan"].Point("olmoe-1b-7b", 1, 1)
    for said in ("CUDA out of memory", "cannot be built"):
        with pytest.raises(RuntimeError, match=said):
            held.of(point)
    assert len(built) == 1


def test_clocks_stand_beside_each_point(script: ModuleType, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\nwhile true; do echo '1980, 2619, 512.5'; echo '[N/A], 1, 2'; sleep 0.02; done\n"
    )
    smi.chmod(0o755)
    cpu = script.torch.device("cpu")
    with script.Clocks(cpu, str(smi)) as clocks:
        log = script.Log(tmp_path / "out", None, "cpu", clocks)
        log.point("ops", "a", lambda: {"seconds": bool(time.sleep(1)) + 1.0})
    assert {k: log.rows["ops", "a"][k] for k in ("sm_mhz", "mem_mhz", "power_w")} == {
        "sm_mhz": 1980.0, "mem_mhz": 2619.0, "power_w": 512.5,
    }  # fmt: skip
    with script.Clocks(cpu) as none:
        assert none.since(0.0) == {}


def test_results_are_packed_in_files_of_a_size_that_can_be_carried(
    made: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["log"], "_PART_BYTES", 20_000)
    packed = script.pack(made / "out", tmp_path / "packed")
    assert len(packed) > 1
    again: dict[str, bytes] = {}
    for path in packed:
        with tarfile.open(path) as tar:
            again.update((m.name, file.read()) for m in tar if (file := tar.extractfile(m)) is not None)
    assert again == {
        path.relative_to(made / "out").as_posix(): path.read_bytes()
        for path in (made / "out").rglob("*")
        if path.is_file()
    }


def test_the_full_plan_is_what_was_asked_for(script: ModuleType) -> None:
    """Four models at six batches with n_a below and above native, n_e and width on one, fused and not, graph and eager."""
    plan = sys.modules["plan"]
    found = plan.decode_points(tuple(plan.FULL), False, True)
    assert len(found) == len({p.key for p in found})
    for model, native in (
        ("olmoe-1b-7b", 8),
        ("deepseek-v2-lite", 6),
        ("qwen3-30b-a3b", 8),
        ("mixtral-8x7b", 2),
    ):
        mine = [p for p in found if p.model == model]
        swept = [p for p in mine if p.graph and p.experts == "fused" and p.routing == "uniform"]
        assert {p.batch for p in swept} == {1, 8, 16, 32, 64, 128}
        n_a = {p.n_a for p in swept if p.n_a}
        assert min(n_a) < native < max(n_a)
        assert {(p.experts, p.graph) for p in mine} == {("fused", True), ("fused", False), ("unfused", False)}
        assert {p.batch for p in mine if p.expert_dtype == "fp8" and p.graph} == {1, 8, 16, 32, 64, 128}
        assert {p.batch for p in mine if p.is_first} == {1, 8, 16, 32, 64, 128}
    varied = [p for p in found if p.n_e or p.expert_width]
    assert {p.model for p in varied} == {"olmoe-1b-7b"}
    assert len(plan.traces(tuple(plan.FULL), False, True)) == 12
