"""The report and the quick look as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape

import pytest

import moetrace
from moetrace.report.terminal import show as print_blocks
from tests.conftest import REPO, Answer
from tests.made import decode_trace, write
from tests.numbers import micro
from tests.reports import facts_of
from tests.unit.test_terminal import Terminal

Call = Callable[..., Answer]


@pytest.fixture(scope="module")
def page(run_dir, tmp_path_factory) -> str:
    target = tmp_path_factory.mktemp("page") / "report.html"
    return moetrace.write_report(moetrace.load(run_dir), target).read_text()


def test_answers_in_the_terminal_are_those_of_the_page(page, run_dir, call: Call):
    said = call("show", run_dir).out
    for answer in facts_of(page)["answers"]:
        assert answer["question"] in said and answer["short"] in said and answer["sure"] in said
        for line in answer["lines"]:
            assert line["value"] in said
        html = unescape(page).replace("\xa0", " ")
        assert answer["question"] in html and micro(answer["short"]) in html


def test_show_is_plain_when_piped_and_writes_nothing(run_dir, process: Call):
    before = sorted(p.name for p in run_dir.iterdir())
    answer = process("show", run_dir, "--by", "layer", "--top", "1", "--compare", "h100-sxm")
    assert answer.status == 0, answer.err
    assert "\x1b" not in answer.out and "more row" in answer.out
    assert sorted(p.name for p in run_dir.iterdir()) == before


@pytest.mark.parametrize("by", ["family", "layer", "kind", "kernel", "step"])
def test_show_has_json_of_a_schema_for_every_table(by, run_dir, call: Call):
    said = json.loads(call("show", run_dir, "--by", by, "--top", "2", "--json", "--compare", "h100-sxm").out)
    assert said["schema"] == "moetrace.show/1"
    assert len(said["rows"]) == 2 and said["steps_of"] == "the decode"
    assert next(a["id"] for a in said["answers"]) == "time"


@pytest.mark.parametrize("width", [30, 80, 132, 250])
def test_the_answers_fit_a_terminal_of_any_width(width, run_dir, monkeypatch):
    from moetrace.report import quick
    from moetrace.report.facts import report_facts

    facts, _ = report_facts(moetrace.load(run_dir), machines=["h100-sxm"], short=True)
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    print_blocks(quick.show_report(facts, "family", "families", None, 5), screen)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)


def test_report_of_a_trace_and_a_run_side_by_side(run_dir, tmp_path, process: Call):
    trace = REPO / "traces" / "kineto" / "deepseek-v2-lite-l2-b16-cpu"
    target = tmp_path / "report.html"
    answer = process("report", trace, run_dir, "-o", target, "--compare", "h100-sxm")
    assert answer.status == 0, answer.err
    assert answer.out.startswith(f"written: {target}")
    page = target.read_text()
    models = [facts_of(page, i)["attribution"]["run"]["model"] for i in range(2)]
    assert models == ["deepseek-v2-lite", "olmoe-1b-7b"]
    again = process("report", run_dir, "-o", target, "--compare", "h100-sxm")
    assert again.status == 2 and "--force" in again.err and target.read_text() == page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "{run}", "--hw", "nonsense"), "nonsense"),
        (("show", "{run}", "--phase", "mixed"), "no mixed step"),
        (("show", "{run}", "--compare", "h100-sxm,h100-sxm"), "named twice"),
        (("show", "{trace}"), "which machine"),
        (("show", "missing"), "missing"),
        (("report", "{run}", "-o", "{run}/ops.parquet", "--force"), "part of the run"),
        (("report", "-o", "x.html"), "Missing argument"),
        (("report", "{trace}", "-o", "{tmp}/x.html"), "which machine"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(arguments, said, run_dir, tmp_path, call: Call):
    trace = write(tmp_path / "t.json", decode_trace())
    run = shutil.copytree(run_dir, tmp_path / "run")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    answer = call(*(a.format(run=run, trace=trace, tmp=tmp_path) for a in arguments))
    assert answer.status == 2 and len(answer.error_lines) == 1 and said in answer.err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
