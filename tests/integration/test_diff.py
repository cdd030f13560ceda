"""`moetrace diff` as CI uses it: a process, its exit status, its JSON and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.reports import facts_of


@pytest.fixture(scope="module")
def predicted(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, process: Callable[..., Answer]
) -> Path:
    folder = tmp_path_factory.mktemp("diff") / "predicted"
    assert process("replay", run_dir, "--hw", "h100-sxm", "--set", "n_a=8,4", "-o", folder).status == 0
    return folder


def test_a_gate_decides_the_exit_status(
    predicted: Path, process: Callable[..., Answer], tmp_path: Path
) -> None:
    before, after = predicted / "h100-sxm.n_a=4", predicted / "h100-sxm.n_a=8"
    page = tmp_path / "diff.html"
    failed = process("diff", before, after, "--gate", "tpot<+3%", "--gate", "tpot<+50%", "-o", page)
    assert (failed.status, failed.err) == (1, "")
    assert "gate tpot<+3%: FAILED" in failed.out and "gate tpot<+50%: passed" in failed.out
    assert facts_of(page.read_text())["gates"][0]["result"] == "failed"
    assert process("diff", after, before, "--gate", "tpot<+3%").status == 0
    wrong = process("diff", after, before, "--gate", "tpot<+3")
    assert wrong.status == 2 and len(wrong.error_lines) == 1


def test_table_page_and_json_tell_the_same(
    predicted: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    before, after = predicted / "h100-sxm.n_a=8", predicted / "h100-sxm.n_a=4"
    facts = json.loads(call("diff", before, after, "--json").out)
    assert facts["schema"] == "moetrace.diff/1"
    assert facts["differences"] == [
        {"what": "n_a", "before": 8, "after": 4},
        {"what": "edits", "before": "n_a=8", "after": "n_a=4"},
    ]
    assert facts["families"][0]["family"] == "experts" and facts["families"][0]["change_s"] < 0
    assert call("diff", before, after, "-o", tmp_path / "d.html").status == 0
    assert facts_of((tmp_path / "d.html").read_text())["families"] == facts["families"]
    again = call("diff", before, after, "-o", tmp_path / "d.html")
    assert again.status == 2 and "--force" in again.err


def test_a_recording_and_itself_differ_in_nothing(shipped: Path, call: Callable[..., Answer]) -> None:
    same = call("diff", shipped, shipped, "--gate", "tpot<+1%")
    assert same.status == 0 and "no change" in same.out and "nothing changed" in same.out
