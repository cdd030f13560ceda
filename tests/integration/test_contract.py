"""What a program may rely on: every verb's --json says its schema and version, and exit statuses mean what docs/cli.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetrace.cli import VERBS
from moetrace.cli.main import cli
from tests.conftest import REPO, Answer
from tests.made import decode_trace, write

Call = Callable[..., Answer]
ASKED = {
    "parse": ("{trace}", "--hw", "h100-sxm"),
    "doctor": ("{trace}", "--hw", "h100-sxm"),
    "show": ("{run}", "--compare", "h100-sxm"),
    "attribute": ("{run}", "-o", "{tmp}/a.parquet"),
    "diff": ("{run}", "{run}"),
    "replay": ("{run}", "--hw", "h100-sxm"),
    "simulate": (
        "--model",
        "olmoe-1b-7b",
        "--hw",
        "h100-sxm",
        "--batch",
        "4",
        "--input-len",
        "32",
        "--output-len",
        "4",
    ),
    "cost": ("{ops}", "--hw", "h100-sxm", "-o", "{tmp}/c.parquet"),
    "schema": (),
    "profiles": (),
    "models": (),
    "knobs": (),
}
# Their JSON is tested where they run: they take long, or record.
ELSEWHERE = {"record", "validate", "calibrate"}
WITHOUT = {"report", "export"}  # they write a file, and say nothing that a program would read


@pytest.fixture(scope="module")
def given(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("contract")
    pq.write_table(pa.table({"op": ["o_proj bf16 m=16 n=2048 k=2048"]}), folder / "ops.parquet")
    trace = write(folder / "t.json", decode_trace())
    return {"run": run_dir, "trace": trace, "ops": folder / "ops.parquet"}


def test_every_verb_with_json_is_tried() -> None:
    with_json = {
        name
        for name in VERBS
        if any("--json" in p.opts for p in cli.get_command(None, name).params)  # type: ignore
    }
    assert with_json == set(ASKED) | ELSEWHERE and set(VERBS) - with_json == WITHOUT


@pytest.mark.parametrize("verb", ASKED)
def test_json_says_its_schema_and_version(
    verb: str, given: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    answer = call(verb, *(word.format(tmp=tmp_path, **given) for word in ASKED[verb]), "--json")
    assert answer.status in (0, 1), answer.err
    said = json.loads(answer.out)
    assert re.fullmatch(r"moetrace\.[a-z-]+/\d+", said["schema"])


def test_exit_statuses_are_those_of_the_page(given: dict[str, Path], call: Call, process: Call) -> None:
    page = (REPO / "docs" / "cli.md").read_text()
    assert set(map(int, re.findall(r"^\| (\d+) \|", page, re.MULTILINE))) == {0, 1, 2, 130, 141, 143}
    run, trace = given["run"], given["trace"]
    assert call("schema").status == 0
    assert call("diff", run, run, "--gate", "step<1ns").status == 1  # a gate that is failed
    assert call("doctor", trace, "--hw", "h100-sxm").status == 1  # something cannot be answered
    for bad in (["show", "missing"], ["nonsense"], ["show"], ["show", run, "--hw", "nonsense"]):
        answer = call(*bad)
        assert answer.status == 2 and len(answer.error_lines) == 1
