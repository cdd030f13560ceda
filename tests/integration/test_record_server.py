"""`moetrace record --server` against fakes that speak the endpoints of vLLM and SGLang."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moetrace.parse import parse
from moetrace.record import routing_export, traces
from moetrace.routing import Routing
from tests.conftest import Answer
from tests.fake_server import SECRET, FakeEngine, serving

pytest.importorskip("torch", reason="SGLang's expert files need the record extra")

Call = Callable[..., Answer]
LOAD = ("--batch", "4", "--context", "6", "--steps", "2", "--timeout", "20")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_POLL_S", 0.02)
    monkeypatch.setattr(traces, "_QUIET_S", 0.3)
    monkeypatch.setattr(routing_export, "_POLL_S", 0.02)


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[FakeEngine]:
    (tmp_path / "engine").mkdir()
    with serving("vllm", tmp_path / "engine") as fake:
        yield fake


@pytest.fixture
def sglang(tmp_path: Path) -> Iterator[FakeEngine]:
    (tmp_path / "engine").mkdir()
    with serving("sglang", tmp_path / "engine") as fake:
        yield fake


def facts_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "recording.json").read_text())
    return facts


def said_nothing_private(out: Path) -> None:
    import gzip

    for path in (p for p in out.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        for canary in (SECRET, "canary-key", "canary-text", str(out.parent)):
            assert canary.encode() not in raw, f"{canary} in {path.name}"


def test_vllm_under_the_built_in_load(call: Call, vllm: FakeEngine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = call("record", "--server", vllm.url, "--trace-dir", vllm.folder, *LOAD, "-o", out)
    assert (answer.status, answer.err) == (0, "")
    assert "recorded vllm 0.22.0" in answer.out
    assert [path for _, path, _ in vllm.asked if "profile" in path] == ["/start_profile", "/stop_profile"]
    assert next(body for _, path, body in vllm.asked if path == "/start_profile") is None
    load = next(body for _, path, body in vllm.asked if path == "/v1/completions")
    assert {k: load[k] for k in ("model", "temperature", "ignore_eos")} == {
        "model": "qwen",
        "temperature": 0,
        "ignore_eos": True,
    }
    assert vllm.loads == [(4, 6, 4), (4, 6, 3), (4, 6, 3)]  # warm-up, timed, profiled
    prompts = [body["prompt"] for _, path, body in vllm.asked if path == "/v1/completions"]
    assert prompts[0] != prompts[1] != prompts[2]  # a prefix cache would know them
    facts = facts_of(out)
    assert (facts["engine"], facts["model"]) == ("vllm", "qwen3-30b-a3b")
    assert facts["routing"]["source"].startswith("none: ")
    assert (facts["batch"], facts["context"], facts["decode_steps"]) == (4, 6, 2)
    assert facts["trace"] == {"ranks": 1, "expected_ranks": 1, "files": 2}
    assert min(facts["unprofiled_load_s"], facts["recorded_load_s"]) > 0
    assert sorted(p.name for p in out.iterdir()) == ["capture.json.gz", "recording.json", "trace.json.gz"]
    said_nothing_private(out)
    run = parse(out, kv_len=8)
    assert (run.meta.engine, run.meta.model and run.meta.model.name) == ("vllm", "qwen3-30b-a3b")
    assert [(s.phase, s.batch) for s in run.meta.steps] == [("decode", 4)] * 2


def test_vllms_own_export_of_routing_is_counted(call: Call, vllm: FakeEngine, tmp_path: Path) -> None:
    vllm.routed = True
    assert (
        call("record", "--server", vllm.url, "--trace-dir", vllm.folder, *LOAD, "-o", tmp_path / "out").status
        == 0
    )
    assert facts_of(tmp_path / "out")["routing"]["source"].startswith("vllm routed_experts")
    routing = Routing.load(tmp_path / "out" / "routing.parquet")
    assert (routing.experts, routing.topk, routing.steps, routing.layers) == (128, 8, (0, 1, 2), (0, 1, 2))
    assert [routing.tokens(step, 0) for step in routing.steps] == [24, 4, 4]


def test_sglang_with_its_expert_recorder_and_profile_options(
    call: Call, sglang: FakeEngine, tmp_path: Path
) -> None:
    out, options = (
        tmp_path / "out",
        ("--profile-option", "num_steps=2", "--profile-option", "with_stack=false"),
    )
    where = ("--expert-dir", sglang.folder, "--trace-dir", sglang.folder)
    answer = call("record", "--server", sglang.url, *where, *LOAD, *options, "-o", out, "--json")
    assert (answer.status, answer.err) == (0, "")
    asked = [path for _, path, _ in sglang.asked if "profile" in path or "expert" in path]
    assert asked == [
        "/start_expert_distribution_record",
        "/start_profile",
        "/stop_profile",
        "/stop_expert_distribution_record",
        "/dump_expert_distribution_record",
    ]
    body = next(body for _, path, body in sglang.asked if path == "/start_profile")
    assert body == {
        "output_dir": str(sglang.folder),
        "activities": ["CPU", "GPU"],
        "record_shapes": True,
        "num_steps": 2,
        "with_stack": False,
    }
    facts = json.loads(answer.out)
    assert facts["engine_facts"] == {"tp": 1, "ep": 1, "dtype": "bfloat16", "attention_backend": "fa3"}
    assert facts["profile_options"] == {"num_steps": "2", "with_stack": "false"}
    said_nothing_private(out)
    run = parse(out, kv_len=8)
    assert run.meta.engine == "sglang"
    assert "by their order and tokens" in run.meta.routing
    assert any(" distinct=16" in op for op in run.to_pandas().op.unique())


def test_sglang_without_a_recorder_says_so_and_gets_a_folder_of_its_own(
    call: Call, sglang: FakeEngine, tmp_path: Path
) -> None:
    sglang.experts = None  # to start it then would end the server
    answer = call(
        "record", "--server", sglang.url, "--expert-dir", sglang.folder, *LOAD, "-o", tmp_path / "out"
    )
    assert (answer.status, "routing: none" in answer.out) == (0, True)
    assert not any("expert" in path for _, path, _ in sglang.asked)
    body = next(body for _, path, body in sglang.asked if path == "/start_profile")
    assert not Path(body["output_dir"]).exists()


def test_live_traffic_is_recorded_without_a_load(call: Call, vllm: FakeEngine, tmp_path: Path) -> None:
    live = ("--live", "0.05", "--timeout", "20", "--trace-dir", vllm.folder)
    assert call("record", "--server", vllm.url, *live, "-o", tmp_path / "out").status == 0
    assert vllm.loads == []
    facts = facts_of(tmp_path / "out")
    assert (facts["workload"], facts["batch"]) == ("live traffic", None)


def test_prompts_of_a_file(call: Call, vllm: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "canary-text é"}\nplain canary-text\n')
    load = ("--prompts", tmp_path / "p.jsonl", *LOAD, "--trace-dir", vllm.folder)
    assert call("record", "--server", vllm.url, *load, "-o", tmp_path / "out").status == 0
    last = [body for _, path, body in vllm.asked if path == "/v1/completions"][-1]
    assert last["prompt"] == ["canary-text é", "plain canary-text"] * 2
    said_nothing_private(tmp_path / "out")


def test_a_trace_that_is_still_being_written_is_waited_for(
    call: Call, vllm: FakeEngine, tmp_path: Path
) -> None:
    vllm.slow_s = 0.3
    old = vllm.folder / "rank0.1.pt.trace.json.gz"
    old.write_bytes(b"an older one")
    assert (
        call("record", "--server", vllm.url, "--trace-dir", vllm.folder, *LOAD, "-o", tmp_path / "out").status
        == 0
    )
    assert len(parse(tmp_path / "out", kv_len=8).meta.steps) == 2


def test_an_api_key_is_sent_and_kept_nowhere(
    call: Call, vllm: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.key = "canary-key"
    ask = ("record", "--server", vllm.url, "--trace-dir", vllm.folder, *LOAD, "-o", tmp_path / "out")
    answer = call(*ask)
    assert (answer.status, "401" in answer.err) == (2, True)
    answer = call(*ask, "--api-key-env", "NO_SUCH_KEY")
    assert (answer.status, "NO_SUCH_KEY" in answer.err) == (2, True)
    monkeypatch.setenv("THE_KEY", "canary-key")
    assert call(*ask, "--api-key-env", "THE_KEY").status == 0
    said_nothing_private(tmp_path / "out")


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "expected http"),
        ("ftp://127.0.0.1", "expected http"),
        ("127.0.0.1:8000", "expected http"),
        ("http://", "expected http"),
        ("http://user:word@127.0.0.1:8000", "without a user"),
        ("http://127.0.0.1:notaport", "expected http"),
        ("http://127.0.0.1:CLOSED", "no answer"),
    ],
)
def test_a_url_that_is_none_or_nobodys(call: Call, tmp_path: Path, url: str, said: str) -> None:
    url = url.replace("CLOSED", str(closed_port()))
    answer = call("record", "--server", url, "-o", tmp_path / "out")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert said in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_another_host_is_refused_and_one_at_home_followed(
    call: Call, vllm: FakeEngine, tmp_path: Path
) -> None:
    vllm.redirect = "http://localhost:1"
    answer = call("record", "--server", vllm.url, "-o", tmp_path / "out")
    assert (answer.status, "redirects to another host" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"profiler": False}, (), "torch_profiler_dir=DIR"),
        ({}, ("--trace-dir", "elsewhere"), "no such folder"),
        ({}, ("--profile-option", "num_steps=2"), "--profiler-config"),
        ({}, ("--profile-option", "x"), "NAME=VALUE"),
        ({}, ("--layers", "2"), "--layers is of the built-in workload"),
        ({}, ("--prompts", "nowhere.txt"), "cannot be read"),
        ({}, ("--model", "qwen3-31b"), "qwen3-30b-a3b"),
        ({"broken": "/v1/models"}, (), "answers 500: it broke"),
        ({"broken": "/v1/completions"}, (), "answers 500"),
        ({"breaks_profiled": True}, (), "answers 500"),
        ({"garbage": "/v1/models"}, (), "not JSON"),
        ({"garbage": "/v1/completions"}, (), "not JSON"),
        ({"garbage": "/version"}, (), "not JSON"),
        ({"broken": "/start_profile"}, (), "answers 500"),
        ({"sleeps": "/v1/models"}, ("--timeout", "0.1"), "timed out"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    call: Call, vllm: FakeEngine, tmp_path: Path, change: dict[str, Any], options: tuple[str, ...], said: str
) -> None:
    for name, value in change.items():
        setattr(vllm, name, value)
    where = () if "--trace-dir" in options else ("--trace-dir", vllm.folder)
    answer = call("record", "--server", vllm.url, *where, *LOAD, *options, "-o", tmp_path / "out")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert said in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]
    assert vllm.profiling is None  # whatever happened, the profiler does not go on


def test_no_trace_in_time_and_no_trace_dir(call: Call, vllm: FakeEngine, tmp_path: Path) -> None:
    answer = call("record", "--server", vllm.url, *LOAD, "-o", tmp_path / "out")
    assert (answer.status, "--trace-dir is needed" in answer.err) == (2, True)
    (tmp_path / "other").mkdir()
    short = (*LOAD[:-1], "0.5", "--trace-dir", tmp_path / "other")
    answer = call("record", "--server", vllm.url, *short, "-o", tmp_path / "out")
    assert (answer.status, "no new trace came within 0.5 s" in answer.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("steps=2", "num_steps"),
        ("num_steps=two", "expected a whole number"),
        ("with_stack=1", "expected true or false"),
    ],
)
def test_an_option_that_sglang_does_not_take(
    call: Call, sglang: FakeEngine, tmp_path: Path, option: str, said: str
) -> None:
    answer = call("record", "--server", sglang.url, *LOAD, "--profile-option", option, "-o", tmp_path / "out")
    assert (answer.status, said in answer.err) == (2, True), answer.err


def test_options_of_a_server_need_one(call: Call, tmp_path: Path) -> None:
    answer = call("record", "--model", "olmoe-1b-7b", "--live", "3", "-o", tmp_path / "out")
    assert (answer.status, "--live needs --server" in answer.err) == (2, True)
    answer = call("record", "-o", tmp_path / "out")
    assert (answer.status, "--model" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("1-TP-1.trace.json.gz", "1-TP-0.trace.json.gz"), ("1-TP-0", "1-TP-1")),
        (
            ("1-TP-0-EXTEND.trace.json.gz", "1-TP-0-DECODE.trace.json.gz", "1-TP-1-DECODE.trace.json.gz"),
            ("1-TP-0-DECODE", "1-TP-1-DECODE"),
        ),
        (("1-TP-0-DP-1-EP-0.trace.json.gz", "1-TP-1-DP-0-EP-1.trace.json.gz"), ("1-TP-1-DP-0-EP-1", "1-TP-0-DP-1-EP-0")),
        (("h_1.async_llm.2.pt.trace.json.gz", "rank3.1.pt.trace.json.gz"), ("rank3.1.pt",)),
        (
            [f"dp{d}_pp0_tp{t}_dcp0_ep0_rank{t}.1.pt.trace.json.gz" for d in (1, 0) for t in (1, 0)],
            [f"dp{d}_pp0_tp{t}_dcp0_ep0_rank{t}.1.pt" for d in (0, 1) for t in (0, 1)],
        ),
        (("h_1.async_llm.2.pt.trace.json.gz",), ()),
    ],
)  # fmt: skip
def test_one_trace_of_each_rank_is_kept_in_their_order(
    tmp_path: Path, names: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = traces.by_rank([tmp_path / name for name in names])
    assert [path.name.removesuffix(".trace.json.gz") for path in found] == list(kept)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_all_ranks_become_one_folder_that_parse_reads_as_ranks(
    engine: str, call: Call, tmp_path: Path
) -> None:
    folder, out = tmp_path / "engine", tmp_path / "out"
    folder.mkdir()
    with serving(engine, folder) as fake:
        fake.ranks, fake.slow_s, fake.routed = 4, 0.05, True
        ask = (
            "record",
            "--server",
            fake.url,
            "--trace-dir",
            folder,
            "--expert-dir",
            folder,
            *LOAD,
            "-o",
            out,
        )
        assert call(*ask).status == 0
        assert call(*ask).status == 2  # it exists
        assert call(*ask, "--force").status == 0
        (out / "rank-0" / "mine.txt").write_text("of the user")
        refused = call(*ask, "--force")
        assert (refused.status, "files that are not a recording's (rank-0)" in refused.err) == (2, True)
        (out / "rank-0" / "mine.txt").unlink()
    assert sorted(p.name for p in out.iterdir()) == [f"rank-{r}" for r in range(4)]
    said_nothing_private(out)
    for rank in range(4):
        facts = facts_of(out / f"rank-{rank}")
        assert facts["parallelism"] == {"world_size": 4, "rank": rank}
        assert facts["trace"]["ranks"] == facts["trace"]["expected_ranks"] == 4
        assert (out / f"rank-{rank}" / "routing.parquet").is_file()
    parsed = call("parse", out, "-o", tmp_path / "run", "--kv-len", "8", "--json")
    assert parsed.status == 0, parsed.err
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == [
        f"rank-{r}" for r in range(4)
    ]


def test_a_rank_that_does_not_come_is_told(call: Call, sglang: FakeEngine, tmp_path: Path) -> None:
    """The server says two ranks, one writes: kept is what came, and recording.json says that one is missing."""
    sglang.tp = 2
    ask = ("--trace-dir", sglang.folder, *LOAD[:-1], "0.5")
    assert call("record", "--server", sglang.url, *ask, "-o", tmp_path / "out").status == 0
    assert facts_of(tmp_path / "out")["trace"] == {"ranks": 1, "expected_ranks": 2, "files": 1}
