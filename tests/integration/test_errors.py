"""Bad use and bad input, each in a process of its own: exit 2, one line that helps, nothing left."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPO, Answer

Process = Callable[..., Answer]


def _refused(answer: Answer, *hints: str) -> None:
    assert answer.status == 2, answer
    assert len(answer.error_lines) == 1, answer.err
    assert answer.err.startswith("moetrace: error: ")
    assert answer.out == ""
    for hint in hints:
        assert hint in answer.err


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def trace_file(shipped: Path) -> Path:
    return next(shipped.glob("trace.json*"))


BAD_TRACES = {
    "not a trace.json": b'{"hello": [1, 2, 3]}',
    "text.json": b"once upon a time\n",
    "list.json": b"[]",
    "empty.json": b"",
    "empty.json.gz": gzip.compress(b""),
    "binary.bin": bytes(range(256)),
    "odd\x1b[31m.json": b"nonsense",
}


@pytest.mark.parametrize("name", BAD_TRACES)
def test_what_is_not_a_trace(name: str, tmp_path: Path, process: Process) -> None:
    trace = _write(tmp_path / name, BAD_TRACES[name])
    answer = process("parse", trace, "-o", tmp_path / "run")
    _refused(answer, name.replace("\x1b", "\\x1b"))
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_trace_gives_what_it_holds_and_says_so(
    share: float, trace_file: Path, tmp_path: Path, process: Process
) -> None:
    plain = gzip.decompress(trace_file.read_bytes())
    cut = _write(tmp_path / "cut.json", plain[: int(len(plain) * share)])
    packed = _write(tmp_path / "cut.json.gz", gzip.compress(plain)[: int(len(gzip.compress(plain)) * share)])
    for file in (cut, packed):
        answer = process("parse", file, "-o", tmp_path / "run", "--force")
        if answer.status:
            _refused(answer, file.name)
        else:
            assert "the file is cut off" in " ".join(answer.out.split()) and not answer.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "run") == ["cut.json", "cut.json.gz"]


@pytest.mark.parametrize(
    "verb", [["parse"], ["attribute"], ["replay", "--hw", "cs3"], ["export", "--perfetto", "-o", "t.json"]]
)
def test_a_file_that_does_not_exist(verb: list[str], tmp_path: Path, process: Process) -> None:
    _refused(process(*verb, "absent.json", cwd=tmp_path), "absent.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["cost", "absent.parquet", "--hw", "h100-sxm", "-o", "out.parquet"],
        ["cost", "absent.jsonl", "--hw", "h100-sxm", "-o", "out.parquet"],
        ["calibrate", "absent.csv", "--hw", "h100-sxm"],
        ["validate", "--on", "absent.csv"],
        ["simulate", "--model", "olmoe-1b-7b", "--hw", "absent.toml"],
    ],
)
def test_a_table_that_does_not_exist(command: list[str], tmp_path: Path, process: Process) -> None:
    name = next(word for word in command if word.startswith("absent"))
    answer = process(*(str(tmp_path / word) if word in (name, "out.parquet") else word for word in command))
    _refused(answer, name, "No such file or directory")
    assert "Errno" not in answer.err and answer.err.count(name) == 1


def test_a_directory_that_is_no_run(tmp_path: Path, process: Process) -> None:
    (tmp_path / "thing").mkdir()
    _refused(process("attribute", tmp_path / "thing"), "thing")


@pytest.mark.parametrize("damage", ["run.json", "ops.parquet"])
def test_a_damaged_run(damage: str, run_dir: Path, tmp_path: Path, process: Process) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / damage).write_bytes(b"{torn")
    _refused(process("attribute", run, "--hw", "cpu"), damage)


def test_unknown_names_say_what_exists(run_dir: Path, process: Process) -> None:
    _refused(process("attribute", run_dir, "--hw", "h100"), "'h100'", "h100-sxm")
    _refused(process("replay", run_dir, "--hw", "h100-sxm,nope"), "'nope'", "cs3")
    _refused(process("replay", run_dir, "--hw", "cs3", "--set", "n_b=4"), "'n_b'", "n_a")
    _refused(process("parse", run_dir / "run.json", "--model", "gpt-5"), "gpt-5")


NONSENSE = {
    "--set n_a": "n_a",
    "--set n_a=": "n_a",
    "--set n_a=many": "many",
    "--set n_a=0": "0",
    "--set n_a=65": "64",
    "--set n_a=4:4:4:4:4": "5",
    "--set n_a=4 --set n_a=6": "n_a",
    "--set n_a=4 --n-a 4": "n_a",
    "--n-a 4 --n-a 6": "n_a",
    "--set tp=2": "tp",
    "--set dtype=fp3": "fp3",
    "--set placement=own": "placement",
    "--batch -3": "-3",
}


@pytest.mark.parametrize("settings", NONSENSE)
def test_settings_that_make_no_sense(settings: str, run_dir: Path, tmp_path: Path, process: Process) -> None:
    answer = process("replay", run_dir, "--hw", "h100-sxm", *settings.split(), "-o", tmp_path / "out")
    _refused(answer, NONSENSE[settings])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [[], ["--set", "tp=4"], ["--tp", "16"], ["--ep", "3"]], ids=" ".join)
def test_parallelism_must_match_the_machine(settings: list[str], run_dir: Path, process: Process) -> None:
    _refused(process("replay", run_dir, "--hw", "h100-sxm-x8", *settings), "8")


PROFILE_DAMAGE = {
    "unknown key": lambda text: text + "\n[datasheet.extra]\nspeed = 3\n",
    "negative": lambda text: _first_number(text, "-1.0"),
    "text": lambda text: _first_number(text, '"fast"'),
    "not toml": lambda text: text + "\n[[[",
}


def _first_number(text: str, value: str) -> str:
    """The profile with its memory bandwidth replaced."""
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if "bytes_per_s" in line and "=" in line)
    lines[place] = f"{lines[place].split('=')[0]}= {value}"
    return "\n".join(lines)


@pytest.mark.parametrize("damage", PROFILE_DAMAGE)
def test_a_bad_profile(damage: str, run_dir: Path, tmp_path: Path, process: Process) -> None:
    text = (REPO / "hw_profiles" / "h100-sxm.toml").read_text()
    profile = _write(tmp_path / "mine.toml", PROFILE_DAMAGE[damage](text).encode())
    _refused(process("attribute", run_dir, "--hw", profile, "-o", tmp_path / "a.parquet"), "mine.toml")
    assert list(tmp_path.iterdir()) == [profile]


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_experts_per_tok", "vocab_size"])
def test_a_config_that_lacks_a_field(field: str, trace_file: Path, tmp_path: Path, process: Process) -> None:
    config = json.loads((REPO / "moetrace" / "models" / "olmoe-1b-7b.json").read_text())
    del config[field]
    model = _write(tmp_path / "config.json", json.dumps(config).encode())
    trace = shutil.copy(trace_file, tmp_path / trace_file.name)
    _refused(process("parse", trace, "--model", model, "-o", tmp_path / "run"), field, "config.json")
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_is_kept(
    shipped: Path, run_dir: Path, tmp_path: Path, process: Process
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    _refused(process("parse", shipped, "-o", run), "--force")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    kept = _write(tmp_path / "t.json", b"mine")
    _refused(process("export", run, "--perfetto", "-o", kept), "--force")
    assert kept.read_bytes() == b"mine"


def test_force_does_not_remove_what_is_not_ours(shipped: Path, tmp_path: Path, process: Process) -> None:
    precious = _write(tmp_path / "thesis.tex", b"years of work")
    _refused(process("parse", shipped, "-o", tmp_path, "--force"), "thesis.tex")
    assert precious.read_bytes() == b"years of work"


@pytest.mark.parametrize("name", ["run.json", "ops.parquet", "routing.parquet"])
def test_the_facts_of_a_run_are_no_output(name: str, run_dir: Path, tmp_path: Path, process: Process) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    _refused(process("attribute", run, "-o", run / name, "--force"), name, "part of the run")
    _refused(process("export", run, "--perfetto", "-o", run / name, "--force"), name, "part of the run")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


@pytest.mark.parametrize("inside", [".", "more", "more/deep"])
def test_predictions_do_not_go_into_a_run(
    inside: str, run_dir: Path, tmp_path: Path, process: Process
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    before = sorted(p.name for p in run.iterdir())
    _refused(process("replay", run, "--hw", "cs3", "-o", run / inside, "--force"), "run", "another directory")
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_machine_named_twice(run_dir: Path, tmp_path: Path, process: Process) -> None:
    _refused(process("replay", run_dir, "--hw", "cs3,cs3", "-o", tmp_path / "out"), "cs3", "twice")
    _refused(process("replay", run_dir, "--hw", "cs3", "--hw", "cs3"), "cs3", "twice")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_runs_names_them(run_dir: Path, tmp_path: Path, process: Process) -> None:
    for n_a in (4, 8):
        shutil.copytree(run_dir, tmp_path / "out" / f"h100-sxm.n_a={n_a}")
    _refused(process("attribute", tmp_path / "out"), "holds the runs h100-sxm.n_a=4, h100-sxm.n_a=8")


def test_a_directory_of_one_run_and_nothing_else_is_that_run(
    run_dir: Path, tmp_path: Path, process: Process
) -> None:
    """As `simulate -o` writes it; a file beside it may be the trace that is meant, so the run is named then."""
    shutil.copytree(run_dir, tmp_path / "out" / "h100-sxm.n_a=4")
    shown = process("show", tmp_path / "out", "--by", "layer")
    assert shown.status == 0 and shown.out == process("show", run_dir, "--by", "layer").out
    (tmp_path / "out" / "other.json").write_text("{}")
    _refused(process("show", tmp_path / "out"), "holds the runs h100-sxm.n_a=4")


def test_one_refused_row_writes_none(run_dir: Path, tmp_path: Path, process: Process) -> None:
    arguments = ["replay", run_dir, "--hw", "h100-sxm", "--set", "n_a=8,4", "-o", tmp_path / "out"]
    assert process(*arguments).status == 0
    first, second = sorted((tmp_path / "out").iterdir())
    shutil.rmtree(first)
    _refused(process(*arguments), second.name)
    assert list((tmp_path / "out").iterdir()) == [second]


def test_a_place_that_cannot_be_written(run_dir: Path, tmp_path: Path, process: Process) -> None:
    wall = _write(tmp_path / "file", b"")
    _refused(process("export", run_dir, "--perfetto", "-o", wall / "t.json"), "t.json")
    _refused(process("replay", run_dir, "--hw", "cs3", "-o", wall / "out"), "out")


def test_reading_options_of_a_run_are_refused(run_dir: Path, process: Process) -> None:
    _refused(process("attribute", run_dir, "--model", "olmoe-1b-7b"), "model", "trace")


def test_bad_use(process: Process) -> None:
    _refused(process("parse"), "TRACE")
    _refused(process("attribute", "x", "--by", "colour"), "colour", "family")
    _refused(process("atribute"), "atribute")
    _refused(process("replay", "x"), "--hw")


def test_an_interrupt_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, moetrace.cli.main as m, moetrace.cli.options as o\n"
        "import moetrace.parse as _; p = sys.modules['moetrace.parse']\n"
        "def wait(*a, **k):\n    import time; print('ready', flush=True); time.sleep(60)\n"
        "p.open_run = wait\n"
        "sys.exit(m.run(['parse', 'x', '-o', 'run']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO), "PATH": ""},
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (130, "moetrace: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []
