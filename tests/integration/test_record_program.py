"""`moetrace record -- script.py`: a user's program, unchanged, under the recorder."""

from __future__ import annotations

import getpass
import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import moetrace
from moetrace.errors import MoetraceError
from moetrace.parse import parse
from moetrace.record.script import Program, Ran, run_program
from moetrace.record.settings import Settings
from moetrace.routing import Routing
from tests.conftest import REPO, Answer

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")

# As in the documentation of transformers; the first prompt is padded on the left.
GENERATE = """
import sys
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = torch.randint(2, 97, (3, 7), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(inputs)
mask[0, :2] = 0
tokens = model.generate(inputs, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
print(tokens[:, 7:].tolist())
"""
STEPS = 6
LOAD = "import sys, torch\nfrom transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained({!r})\n"
CALL = "model.generate(torch.ones(2, 4, dtype=torch.long), max_new_tokens=3, min_new_tokens=3)\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMoE on disk, as a user has one."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        "olmoe", vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_experts=8, num_experts_per_tok=3, intermediate_size=16, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("models") / "tiny-olmoe"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Callable[..., Ran]:
    """Runs code that has `model`, in this process, recorded into ``out``."""

    def inner(code: str, **settings: Any) -> Ran:
        (tmp_path / "script.py").write_text(LOAD.format(str(checkpoint)) + code)
        program = Program(str(tmp_path / "script.py"), ("one", "--two"))
        return run_program(program, tmp_path / "out", Settings(experts_only=True, **settings))

    return inner


def facts_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "recording.json").read_text())
    return facts


def test_an_unmodified_generate_script_in_one_command(checkpoint: Path, tmp_path: Path) -> None:
    """The same tokens, the script's own output and status; then parts by layer, and the experts that each step touched."""
    (tmp_path / "generate.py").write_text(GENERATE + "sys.exit(5)\n")
    environment = {**os.environ, "PYTHONPATH": str(REPO), "MOETRACE_CANARY": "sing-no-song"}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words, "generate.py", str(checkpoint)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    plain = python()
    done = python("-m", "moetrace", "record", "-o", "out", "--token-ids", "--router-extra", "2", "--")
    assert (done.returncode, done.stdout) == (5, plain.stdout), done.stderr
    assert "recorded 1 prefill and 5 decode step(s) of OlmoeForCausalLM" in done.stderr

    out = tmp_path / "out"
    facts = facts_of(out)
    assert [(s["phase"], s["tokens"], s["kv_tokens"], s["padding"]) for s in facts["steps"]] == [
        ("prefill", 21, 19, 2), *(("decode", 3, 19 + 3 * i, 0) for i in range(1, STEPS))
    ]  # fmt: skip
    assert (facts["n_a"], facts["n_e"], facts["engine"], facts["ended"]) == (
        3,
        8,
        "transformers",
        "SystemExit",
    )

    parsed = parse(out)
    table = parsed.to_pandas()
    kinds = table.groupby("layer")["kind"].agg(set)
    assert all(kinds[layer] >= {"router", "moe_gate_up", "moe_down"} for layer in (0, 1))
    tokens = pd.read_parquet(out / "routing_tokens.parquet")
    chosen = tokens[tokens.rank_of_choice <= 3]
    assert tokens.rank_of_choice.max() == 5
    # A first decode step that took long, as on a busy machine, is left out as warm-up: the others keep their own experts.
    here = {step.kv_tokens: number for number, step in enumerate(parsed.meta.steps)}
    number = {s["index"]: here[s["kv_tokens"]] for s in facts["steps"] if s["kv_tokens"] in here}
    assert len(number) + parsed.meta.facts.get("steps_left_out", 0) == STEPS and len(number) >= STEPS - 1
    chosen = chosen[chosen.step.isin(number)].assign(step=lambda rows: rows.step.map(number))
    exact = chosen.groupby(["step", "layer"])["expert"].nunique().to_dict()
    assert parsed.routing is not None and parsed.routing.distinct() == exact
    assert len(exact) == len(number) * 2
    prefill = chosen[(chosen.step == 0) & (chosen.layer == 0)]
    assert sorted(set(prefill.token)) == list(range(2, 21))  # without the padding
    ops = {(op.step, op.layer): op for op in table[table.kind == "moe_down"].itertuples()}
    assert {at: f"distinct={exact[at]}" in op.op for at, op in ops.items()} == dict.fromkeys(exact, True)

    kept = b"".join(p.read_bytes() for p in out.iterdir() if p.suffix != ".gz")
    kept += gzip.decompress((out / "trace.json.gz").read_bytes())
    for secret in (
        "sing-no-song",
        str(tmp_path),
        "tiny-olmoe",
        f'"{getpass.getuser()}"',
        f'"{socket.gethostname()}"',
    ):
        assert secret.encode() not in kept


def test_a_program_finds_its_own_arguments_name_and_path(run: Callable[..., Ran], tmp_path: Path) -> None:
    before = list(sys.path)
    seen = (
        "pathlib.Path(sys.argv[0]).with_name('seen').write_text(repr((sys.argv[1:], __name__, sys.path[0])))"
    )
    ran = run(CALL + "import pathlib; " + seen)
    assert (ran.status, ran.error) == (0, None)
    assert (tmp_path / "seen").read_text() == repr((["one", "--two"], "__main__", str(tmp_path)))
    assert sys.path == before


@pytest.mark.parametrize(
    ("code", "status", "ended"),
    [
        ("raise ValueError(3)", 1, "ValueError"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "SystemExit"),
        ("sys.exit()", 0, "complete"),
        ("sys.exit('no luck')", 1, "SystemExit"),
    ],
)
def test_however_it_ends_what_was_captured_is_a_valid_recording(
    code: str, status: int, ended: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = run(CALL + code)
    assert ran.status == status
    assert facts_of(tmp_path / "out")["ended"] == ended
    assert len(parse(tmp_path / "out").meta.steps) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "script.py"]


def test_an_interrupt_inside_a_forward_marks_that_step(run: Callable[..., Ran], tmp_path: Path) -> None:
    stop = (
        "def stop(*_):\n    raise KeyboardInterrupt\nmodel.model.layers[1].register_forward_pre_hook(stop)\n"
    )
    assert run(CALL + stop + CALL).status == 130
    assert [s["complete"] for s in facts_of(tmp_path / "out")["steps"]] == [True, True, True, False]
    assert len(parse(tmp_path / "out").meta.steps) == 4


def test_steps_outside_of_the_window_are_timed_and_the_cost_is_stated(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    run(CALL * 3, skip=2, warmup=1, active=3)
    facts = facts_of(tmp_path / "out")
    assert [s["phase"] for s in facts["steps"]] == ["prefill", "decode", "decode"]
    assert [s["phase"] for s in facts["unprofiled"]] == ["prefill", "decode", "prefill", "decode", "decode"]
    cost = facts["overhead"]
    assert (cost["recorded_steps"], cost["unprofiled_steps"], cost["batch"]) == (2, 3, 2)
    assert cost["ratio"] == pytest.approx(cost["recorded_step_s"] / cost["unprofiled_step_s"], rel=1e-3)
    assert facts["overhead_unknown"] is None
    assert any("under the recorder a decode step took" in note for note in parse(tmp_path / "out").meta.notes)


@pytest.mark.parametrize(
    ("code", "window", "why"),
    [
        (CALL, {}, "the program ended within it"),
        (CALL + CALL.replace("ones(2", "ones(5"), {"active": 3}, "were of another batch"),
        (CALL, {"active": 1}, "no whole decode step was recorded"),
    ],
)
def test_where_the_cost_is_not_known_the_recording_and_the_run_say_why(
    code: str, window: dict[str, int], why: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    run(code, **window)
    facts = facts_of(tmp_path / "out")
    assert facts["overhead"] is None and why in facts["overhead_unknown"]
    notes = parse(tmp_path / "out").meta.notes
    assert any(note.startswith("what recording cost is not known: ") and why in note for note in notes)


def test_a_second_model_with_experts_is_told_of(checkpoint: Path, tmp_path: Path) -> None:
    """Only the first is recorded; one that was called and is gone is told of as well as one that is held."""
    (tmp_path / "two.py").write_text(
        LOAD.format(str(checkpoint)) + CALL + "config = model.config\n"
        "class Second(type(model)):\n    pass\n"
        "class Third(type(model)):\n    pass\n"
        f"Second(config).generate{CALL.partition('generate')[2]}held = Third(config)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "moetrace", "record", "-o", "out", "--", "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "note: one model is recorded, the first with experts that is called; not Second, Third" in done.stderr
    )
    facts = facts_of(tmp_path / "out")
    assert facts["models_not_recorded"] == ["Second", "Third"]
    assert facts["model_class"] == "OlmoeForCausalLM" and len(facts["steps"]) == 3


def test_a_model_that_generates_on_another_thread_is_recorded(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = run("import threading\nthreading.Thread(target=lambda: " + CALL.strip() + ").start()")
    assert (ran.status, ran.said) == (0, "")
    parsed = parse(tmp_path / "out")
    assert len(parsed.meta.steps) == 3
    assert {0, 1} <= set(parsed.column("layer").to_pylist())
    assert threading.active_count() < 20


def test_a_dense_model_is_passed_over_unless_its_modules_are_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, transformers\n"
        "c = transformers.LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,"
        " num_key_value_heads=2, intermediate_size=16)\n"
        "transformers.LlamaForCausalLM(c)(torch.ones(1, 4, dtype=torch.long))\n"
    )
    ran = run_program(Program(str(script)), tmp_path / "out", Settings(experts_only=True))
    assert (
        "no model with decoder layers and experts ran (LlamaForCausalLM ran, which has no experts)"
        in ran.said
    )
    parts = {"dense_mlp": "model.layers.*.mlp"}
    ran = run_program(Program(str(script)), tmp_path / "out", Settings(experts_only=True, parts=parts))
    assert ran.recording is not None and ran.recording["model_class"] == "LlamaForCausalLM"


def test_a_full_disk_is_one_line_and_the_programs_status_stays(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        ran = run(CALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ran.status, ran.recording) == (0, None)
    assert ran.said == f"{tmp_path / 'out'}: the recording could not be written: File too large"
    assert [p.name for p in tmp_path.iterdir()] == ["script.py"]


def test_a_place_where_nothing_may_be_written_is_told_before_the_program_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit(9)")
    with pytest.raises(MoetraceError, match="cannot write"):
        run_program(Program(str(tmp_path / "script.py")), Path("/proc/nowhere/out"), Settings())
    with pytest.raises(MoetraceError, match="no such script"):
        run_program(Program(str(tmp_path / "none.py")), tmp_path / "out", Settings())


def test_a_module_is_run_as_python_does(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: Any, checkpoint: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    code = LOAD.format(str(checkpoint)) + CALL + "raise ValueError(*sys.argv[1:], __package__)\n"
    (tmp_path / "mine" / "gen.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        call("record", "-o", "out", "-m", "mine.gen", "--active", "-o")
    assert left.value.code == 1
    assert facts_of(tmp_path / "out")["ended"] == "ValueError"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "out"], "nothing to record: give a program after --, or --model, or --server"),
        (["-o", "out", "--batch", "4", "--", "x.py"], "--batch is not about a program"),
        (["-o", "out", "--skip", "4", "--model", "olmoe-1b-7b"], "--skip is about a program"),
        (["-o", "out", "--", "x.py"], "x.py: no such script"),
        (["-o", "out", "--", "."], ".: a directory without __main__.py"),
        (["-o", "out", "--", "-m"], "-m: the module's name is missing"),
        (["-o", "out", "--part", "router", "--", "x.py"], "expected PART=PATTERN"),
    ],
)
def test_bad_use_is_one_line(
    words: list[str], said: str, call: Callable[..., Answer], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("record", *words)
    assert answer.status == 2
    assert len(answer.error_lines) == 1 and said in answer.err
    assert list(tmp_path.iterdir()) == []


def test_without_nsys_it_says_how_to_get_one(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = call("record", "--nsys", "-o", str(tmp_path / "out"), "--", "x.py")
    assert answer.status == 2
    assert "apt-get install nsight-systems" in answer.err


def test_an_old_nsys_and_a_new_nvtx_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from moetrace.record import capture
    from moetrace.record.nsys import find_nsys

    (tmp_path / "nsys").write_text("#!/bin/sh\necho NVIDIA Nsight Systems version 2023.4.4\n")
    (tmp_path / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(capture, "version", lambda _: "0.2.17")
    with pytest.raises(MoetraceError, match=r"pip install nvtx==0\.2\.11"):
        find_nsys()
    monkeypatch.setattr(capture, "version", lambda _: "0.2.11")
    assert find_nsys() == str(tmp_path / "nsys")


def test_marked_and_found_steps_give_the_same_routing_and_sizes(checkpoint: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)

    def loop(rec: Any) -> None:
        inputs, cache = torch.arange(2, 10).reshape(2, 4), transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            for i in range(3):
                if rec is not None:
                    rec.step(
                        "decode" if i else "prefill", batch=2, tokens=inputs.numel(), kv_tokens=8 + 2 * i
                    )
                inputs = model(input_ids=inputs, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)

    with moetrace.record(tmp_path / "found", model=model):
        loop(None)
    with moetrace.record(tmp_path / "marked", model=model) as rec:
        model(torch.ones(1, 3, dtype=torch.long))  # told from its forward, and dropped at the first mark
        loop(rec)
    found, marked = (Routing.load(tmp_path / name / "routing.parquet") for name in ("found", "marked"))
    assert found.equals(marked)
    sizes = [
        [(s["phase"], s["batch"], s["tokens"], s["kv_tokens"]) for s in facts_of(tmp_path / name)["steps"]]
        for name in ("found", "marked")
    ]
    assert sizes[0] == sizes[1]
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert [len(parse(tmp_path / name).meta.steps) for name in ("found", "marked")] == [3, 3]


def test_a_function_that_was_wrapped_is_itself_again(checkpoint: Path, tmp_path: Path) -> None:
    from transformers.generation.utils import GenerationMixin

    before = (torch.nn.Module.__call__, GenerationMixin.generate)
    with pytest.raises(ZeroDivisionError), moetrace.record(tmp_path / "out"):
        assert before != (torch.nn.Module.__call__, GenerationMixin.generate)
        _ = 1 / 0
    assert before == (torch.nn.Module.__call__, GenerationMixin.generate)
