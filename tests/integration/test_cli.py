"""The command line as a user has it, on the shipped recording."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest

from moetrace.cli import VERBS
from moetrace.cli.main import cli
from tests.conftest import REPO, Answer

HEAVY = ("numpy", "pandas", "pyarrow", "scipy", "torch", "transformers", "rich")


def _loaded_by(*arguments: str) -> set[str]:
    """Heavy modules in sys.modules after `moetrace ARGS`."""
    code = (
        "import sys; from moetrace.cli.main import run; status = run(sys.argv[1:]);"
        f"sys.stderr.write(','.join(m for m in {HEAVY!r} if m in sys.modules)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPO, check=True
    )
    return set(filter(None, done.stderr.split(",")))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([verb, "-h"] for verb in VERBS)], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert _loaded_by(*arguments) == set()


def test_help_loads_no_verb() -> None:
    code = (
        "import sys; from moetrace.cli.main import run; run(['--help']);"
        "sys.stderr.write(' '.join(m for m in sys.modules if m.startswith('moetrace')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    light = {"moetrace", "moetrace.cli", "moetrace.cli.main", "moetrace.errors", "moetrace.signals"}
    assert set(done.stderr.split()) == light


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_of_verbs_says_what_the_verb_says(verb: str) -> None:
    command = cli.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None and command.name == verb
    assert (command.help or "").split("\n\n")[0].replace("\n", " ").strip() == VERBS[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_both_helps_are_one_and_every_option_is_explained(verb: str, call: Callable[..., Answer]) -> None:
    short, long = call(verb, "-h"), call(verb, "--help")
    assert short == long and short.status == 0
    command = cli.get_command(None, verb)  # type: ignore[arg-type]
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_version_and_no_arguments(call: Callable[..., Answer]) -> None:
    assert re.fullmatch(r"moetrace \S+\n", call("--version").out)
    assert call() == call("-h")


def test_parse_heads_its_summary_with_the_coverage(
    shipped: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    answer = call("parse", shipped, "-o", tmp_path / "run")
    assert answer.status == 0 and answer.err == ""
    assert answer.out.startswith("coverage: ")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "ops.parquet",
        "routing.parquet",
        "run.json",
    ]


def test_parse_json_is_one_document(shipped: Path, call: Callable[..., Answer]) -> None:
    facts = json.loads(call("parse", shipped, "--json").out)
    assert facts["schema"] == "moetrace.parse/1"
    assert facts["coverage"]["named_share"] > 0.95


def test_attribute_writes_a_row_per_op(run_dir: Path, tmp_path: Path, call: Callable[..., Answer]) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    answer = call("attribute", run)
    assert answer.status == 0, answer.err
    assert "experts" in answer.out and "memory" in answer.out
    rows = pq.read_metadata(run / "attribution.parquet").num_rows
    assert rows == pq.read_metadata(run / "ops.parquet").num_rows


@pytest.mark.parametrize("by", ["family", "layer", "kind", "kernel", "step"])
def test_attribute_groups(by: str, run_dir: Path, tmp_path: Path, call: Callable[..., Answer]) -> None:
    answer = call("attribute", run_dir, "--by", by, "--top", "1", "-o", tmp_path / "b.parquet")
    assert answer.status == 0, answer.err
    assert any(line.startswith(by) for line in answer.out.splitlines())
    assert "more rows" in answer.out


@pytest.mark.parametrize("phase", [None, "decode"])
def test_shares_add_up_however_grouped(
    phase: str | None, run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    told = json.loads(call("attribute", run_dir, "--json", "-o", tmp_path / "a.parquet").out)
    here = told if phase is None else told["phases"][phase]
    totals = [sum(row["busy_s"] for row in here[table]) for table in ("families", "kinds", "kernels")]
    assert totals == pytest.approx([totals[0]] * len(totals))
    busy = sum(s["busy_s"] for s in told["steps"] if phase in (None, s["phase"]))
    assert totals[0] == pytest.approx(busy)


def test_a_phase_that_is_not_there_is_one_line(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    answer = call("attribute", run_dir, "--phase", "mixed", "-o", tmp_path / "a.parquet")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert "prefill, decode" in answer.err


def test_a_repeat_changes_nothing_and_another_machine_is_answered_and_needs_force_to_be_kept(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    assert call("attribute", run).status == 0
    before = (run / "attribution.parquet").stat().st_mtime_ns
    assert call("attribute", run, "--by", "layer").status == 0
    assert (run / "attribution.parquet").stat().st_mtime_ns == before
    other = call("attribute", run, "--hw", "h100-sxm")
    assert other.status == 0 and "held against h100-sxm" in other.out
    assert "nothing written" in other.out and "--force" in other.out
    assert (run / "attribution.parquet").stat().st_mtime_ns == before
    refused = call("attribute", run, "--hw", "h100-sxm", "-o", run / "attribution.parquet")
    assert refused.status == 2 and "--force" in refused.err and refused.out == ""
    assert call("attribute", run, "--hw", "h100-sxm", "--force").status == 0
    assert (run / "attribution.parquet").stat().st_mtime_ns != before


def test_a_trace_may_stand_where_a_run_does(
    shipped: Path, run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    for verb in (["attribute"], ["replay", "--hw", "h100-sxm"]):
        from_trace, from_run = (
            json.loads(call(*verb, source, "--json").out) for source in (shipped, run_dir)
        )
        for answer in (from_trace, from_run):
            answer.pop("source", None), answer.pop("written", None)
        assert from_trace == from_run
        if verb == ["attribute"]:
            (run_dir / "attribution.parquet").unlink()
    assert call("export", shipped, "--perfetto", "-o", tmp_path / "t.json").status == 0


def test_replay_compares_machines_and_scenarios(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    arguments = ["replay", run_dir, "--hw", "h100-sxm,cs3", "--set", "n_a=8,4", "--set", "layers=native"]
    facts = json.loads(call(*arguments, "--json").out)
    assert {p["hardware"] for p in facts["predictions"]} == {"h100-sxm", "cs3"}
    text = call(*arguments, "-o", tmp_path / "out").out
    assert "unanchored" in text.splitlines()[0]
    assert "  1. " in text
    runs = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(runs) == len(facts["predictions"])
    assert call("attribute", tmp_path / "out" / runs[0], "--hw", "h100-sxm").status == 0


def test_an_alias_is_the_same_as_set(run_dir: Path, call: Callable[..., Answer]) -> None:
    by_alias = call("replay", run_dir, "--hw", "h100-sxm", "--n-a", "4", "--batch", "8", "--json")
    by_set = call("replay", run_dir, "--hw", "h100-sxm", "--set", "n_a=4", "--set", "batch=8", "--json")
    assert by_alias.status == 0, by_alias.err
    assert json.loads(by_alias.out)["predictions"] == json.loads(by_set.out)["predictions"]


def test_replaying_a_run_where_it_ran_gives_its_measured_times(
    run_dir: Path, call: Callable[..., Answer]
) -> None:
    facts = json.loads(call("replay", run_dir, "--hw", "cpu", "--json").out)["predictions"][0]
    for phase in facts["phases"].values():
        assert phase["step_s"] == phase["measured_s"]
    assert facts["anchored"] == "anchored"


@pytest.mark.parametrize("verb", ["profiles", "models", "knobs"])
def test_catalogues_list_and_are_json_too(verb: str, call: Callable[..., Answer]) -> None:
    text, facts = call(verb), json.loads(call(verb, "--json").out)[verb]
    assert text.status == 0 and len(facts) > 3
    for entry in facts:
        assert entry["name"] in text.out


def test_one_machine_says_what_its_figures_rest_on(tmp_path: Path, call: Callable[..., Answer]) -> None:
    text, facts = call("profiles", "h100-sxm").out, json.loads(call("profiles", "h100-sxm", "--json").out)
    found = next(
        f for f in facts["families"] if (f["family"], f["dtype"], f["engine"]) == ("experts", "fp8", "vllm")
    )
    assert facts["schema"] == "moetrace.profile/1" and facts["engines"]["vllm"] in text
    assert found["provenance"] == "fitted" and found["rows"] > found["shapes"] > 2
    assert 0 < found["held_out_median"] < found["held_out_mean"] < found["error"]
    row = next(line for line in text.splitlines() if line.split()[:3] == ["experts", "fp8", "vllm"])
    assert f"{found['held_out_mean']:.1%}".replace("%", " %") in row and f"{found['rows']:,}" in row
    assert all(source.split()[0] in text for source in facts["sources"].values())


def test_a_machine_that_is_no_gpu_and_one_that_is_not_known(call: Callable[..., Answer]) -> None:
    wafer = call("profiles", "cs3").out.partition("Where")[0]
    assert "fabric" in wafer and not any(word in wafer for word in ("cache", "processors:", "link", "None"))
    node, own = call("profiles", "h20-x8").out, call("profiles", "h100-sxm").out
    assert "H20" in node and "engines measured on another machine" in node and "not this one" in node
    assert "another machine" not in own and "not this one" not in own and "mean" not in wafer
    answer = call("profiles", "h1000")
    assert answer.status == 2 and "h100-sxm" in answer.err


def test_the_timeline_has_every_op(run_dir: Path, tmp_path: Path, call: Callable[..., Answer]) -> None:
    target = tmp_path / "timeline.json"
    assert call("export", run_dir, "--perfetto", "-o", target).status == 0
    events = json.loads(target.read_text())["traceEvents"]
    ops = [e for e in events if "kernel" in e.get("args", {})]
    assert len(ops) == pq.read_metadata(run_dir / "ops.parquet").num_rows
    assert {e["args"]["bound"] for e in ops} & {"memory", "compute", "fixed"}
    assert call("export", run_dir, "--perfetto", "-o", target).status == 2


def test_a_reader_that_leaves_ends_it_quietly(run_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "moetrace", "models"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=REPO,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [("models",), ("--version",), ("knobs", "--json")])
def test_a_disk_without_room_for_what_is_printed_is_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "moetrace", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=REPO,
            text=True,
        )
    said = "moetrace: error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_several_models_are_a_grid(call: Callable[..., Answer]) -> None:
    load = ("--hw", "h100-sxm", "--batch", "1", "--input-len", "8", "--output-len", "2")
    done = call("simulate", "--model", "olmoe-1b-7b,qwen3-8b", *load)
    assert (done.status, done.out) == (2, "") and "several models are a grid: add --grid DIR" in done.err
    assert call("simulate", "--model", "olmoe-1b-7b,qwen3-8b", *load, "--pareto").status == 0


def test_a_run_of_another_version_says_which_way_out(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    for version, way in ((0, "reads 1: parse the trace again"), (99, "reads 1: upgrade moetrace, or parse")):
        old = tmp_path / str(version)
        shutil.copytree(run_dir, old)
        meta = json.loads((old / "run.json").read_text())
        (old / "run.json").write_text(json.dumps({**meta, "version": version}))
        done = call("show", old)
        assert done.status == 2 and way in done.err


def test_recordings_of_two_models_are_not_ranks_of_one_run(
    tmp_path: Path, call: Callable[..., Answer]
) -> None:
    done = call("parse", REPO / "traces" / "kineto", "-o", tmp_path / "out", "--jobs", "1")
    assert done.status == 2 and not (tmp_path / "out").exists()
    assert (
        done.err.endswith("traces of two models are not ranks of one run; parse each by itself\n")
        and done.err.count("\n") == 1
    )


def test_names_of_machines_may_have_a_space_behind_the_comma_and_the_nearest_is_told_in_any_case(
    run_dir: Path, call: Callable[..., Answer]
) -> None:
    assert call("replay", run_dir, "--hw", "h100-sxm, cs3", "--set", "n_a=4").status == 0
    done = call("replay", run_dir, "--hw", "H100-SXM", "--set", "n_a=4")
    assert done.status == 2 and "'H100-SXM': did you mean 'h100-sxm'?" in done.err


def test_the_wheel_holds_the_data(tmp_path: Path) -> None:
    from zipfile import ZipFile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", os.fspath(tmp_path)],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    for folder, pattern in (("hw_profiles", "*.toml"), ("moetrace/models", "*.json")):
        files = sorted((REPO / folder).glob(pattern))
        assert files
        assert {f"moetrace/{f.parent.name}/{f.name}" for f in files} <= names
    assert "moetrace/py.typed" in names
