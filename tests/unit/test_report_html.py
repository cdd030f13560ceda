from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import import_module
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import moetrace
from moetrace.cli.main import cli as moetrace_cli
from moetrace.errors import OutputError, RunError
from moetrace.report.html import make_report, svg, write_page, write_report
from moetrace.report.html.page import embedded, family_class, render, step_stats, tight, trimmed
from tests.made import decode_trace, write
from tests.reports import HOSTILE, bulk_of, facts_of, hostile_events, many_shapes, tiled

MB = 1_000_000
VOID = {"meta", "link", "br", "img", "input", "hr", "col"}


class Elements(HTMLParser):
    """Every element that a page's text opens, with its attributes; what is left open at the end is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def run(run_dir):
    return moetrace.load(run_dir)


@pytest.fixture(scope="module")
def page(run):
    return render([make_report(run)])


def test_the_page_is_well_formed_and_its_ids_are_its_own(page):
    elements = Elements(page)
    assert elements.open == []
    assert len(elements.ids) == len(set(elements.ids))
    links = {a["href"][1:] for t, a in elements.found if t == "a" and a.get("href", "").startswith("#")}
    assert links <= set(elements.ids)
    wanted = "answers timeline breakdown waterfall roofline routing n_a machines ranks assumptions"
    assert {f"r0-{name}" for name in wanted.split()} <= set(elements.ids)


def test_nothing_in_the_page_names_an_address_to_fetch(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        for name in ("src", "srcset", "action", "data", "poster"):
            assert name not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_only_the_project_s_own_script_may_run(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "innerHTML" not in scripts[0] and "eval(" not in scripts[0]


def test_a_chart_takes_its_own_height_before_it_is_drawn(page):
    """Else a canvas of 300 x 260 that is 1,200 wide is 1,040 high, and the page jumps when it is drawn."""
    charts = dict(re.findall(r'<canvas class="draw[^"]*" data-chart="(\w+)" height="(\d+)"', page))
    styled = dict(re.findall(r'canvas\[data-chart="(\w+)"\] { height: (\d+)px; }', page))
    assert set(charts) == {"timeline", "roofline", "heat"} and styled == charts


def test_a_report_of_a_recording_is_small_and_a_long_or_wide_one_grows_little(run, page):
    assert len(page) < MB
    assert len(render([make_report(tiled(run, 1000), machines=["h100-sxm"])])) < 2 * MB
    wide = bulk_of(render([make_report(many_shapes(run, 5000), machines=[])]))
    assert len(wide["points"]["count"]) == 5000


def test_shapes_beyond_the_limit_are_counted_and_said(run, monkeypatch):
    monkeypatch.setattr("moetrace.report.html.page.MAX_POINTS", 50)
    page = render([make_report(many_shapes(run, 80), machines=[])])
    assert len(bulk_of(page)["points"]["count"]) == 50
    assert "80 distinct ops" in page and "The 50 with most time are drawn" in page


def test_points_and_steps_in_the_page_are_the_run_s_to_seven_digits(run, page):
    bulk, held = bulk_of(page), moetrace.attribute(run)
    frame = held.table.to_pandas()
    points = bulk["points"]
    assert sum(points["count"]) == len(frame[frame.step.notna()])
    assert sum(points["total_s"]) == pytest.approx(frame.dur_ns.sum() / 1e9, rel=1e-4)
    assert bulk["steps"]["span_s"] == pytest.approx([s["span_s"] for s in held.summary["steps"]], rel=1e-6)
    first = frame[frame.op == points["texts"]["op"][points["op"][0]]]
    assert points["lower_s"][0] == pytest.approx(first.lower_bound_s.iloc[0], rel=1e-6)


def test_several_runs_stand_side_by_side_and_one_is_shown(run):
    page = render([make_report(run, machines=[]), make_report(tiled(run, 12), machines=[])])
    elements = Elements(page)
    articles = [a for t, a in elements.found if t == "article"]
    assert [("hidden" in a) for a in articles] == [False, True]
    assert len(elements.ids) == len(set(elements.ids)) and "Runs side by side" in page
    assert facts_of(page, 1)["step_stats"]["decode"]["steps"] == 12


def test_hostile_texts_are_words_in_the_page_and_never_markup(tmp_path):
    trace = write(
        tmp_path / "t.json", hostile_events(decode_trace(), long=10 * MB), **{HOSTILE[0]: HOSTILE[0]}
    )
    run = moetrace.parse(trace, hardware="h100-sxm")
    clean = moetrace.parse(write(tmp_path / "c.json", decode_trace()), hardware="h100-sxm")
    page = render([make_report(run)])
    assert len(page) < MB
    elements, harmless = Elements(page), Elements(render([make_report(clean)]))
    names = [{t for t, _ in x.found} for x in (elements, harmless)]
    assert names[0] == names[1] and elements.open == []
    assert sum(t == "script" for t, _ in elements.found) == sum(t == "script" for t, _ in harmless.found) == 3
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", page)
    assert not any(k.startswith("on") for _, a in elements.found for k in a)
    assert "&lt;/script&gt;" in page


def test_hostile_metadata_of_a_run_is_words_too(run):
    bad = HOSTILE[0]
    from dataclasses import replace

    steps = tuple(replace(s, name=bad) for s in run.meta.steps)
    model = replace(run.meta.model, name=bad)
    odd = run.with_meta(
        source=bad, engine=bad, device=bad, notes=(bad,), routing=bad, steps=steps, model=model
    )
    page = render([make_report(odd, machines=["h100-sxm"])])
    assert sum(t == "script" for t, _ in Elements(page).found) == 3
    assert "<img" not in page and facts_of(page)["attribution"]["run"]["source"].startswith("</script>")


@given(
    st.recursive(
        st.text() | st.integers(-5, 5) | st.none(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=8,
    )
)
def test_embedded_json_reads_back_and_ends_no_element(value):
    import json

    kept = trimmed(value)
    text = embedded(kept)
    assert json.loads(text) == kept
    assert not re.search("[<>&\u2028\u2029]", text)


@given(st.text())
def test_texts_of_the_page_are_short_and_printable(text):
    assert len(trimmed(text)) <= 300 and trimmed(text).isprintable()


def test_numbers_stay_with_their_units():
    assert tight("5.7 ms to 5.5 ms, 12.0 us") == "5.7\xa0ms to 5.5\xa0ms, 12.0\xa0µs"
    assert tight("-4.2 %; 3 steps, 2.62 x") == "-4.2\xa0%; 3 steps, 2.62\xa0x"
    assert family_class("experts") == "f-experts" and family_class('x" onload="') == "f-other"


def test_the_sources_of_a_machine_are_said_in_full(run):
    machine = moetrace.load_hardware("h100-sxm")
    assert max(map(len, machine.sources.values())) > 300  # where names of a trace are cut
    assert make_report(run, machine, []).facts["machine"]["sources"] == dict(machine.sources)


def test_outliers_are_told_from_the_middle_half():
    def step(i, span):
        return {"index": i, "phase": "decode", "span_s": span, "critical": "memory"}

    spans = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 5.0]
    found = step_stats([step(i, s) for i, s in enumerate(spans)])["decode"]
    assert found["outliers"] == 1 and found["worst"][0]["index"] == 6 and found["median_s"] == 1.0
    few = step_stats([step(i, s) for i, s in enumerate([1.0, 1.0, 9.0])])["decode"]
    assert few["outliers"] == 0  # three steps have no middle half to speak of


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 10)), min_size=1, max_size=6), st.booleans())
def test_a_chart_keeps_its_points_inside_and_is_xml(points, log):
    points = [(x, y, y, y, '<&"') for x, y in sorted(points)]
    series = [svg.Series("a<b", "s0", tuple(points)), svg.Series("none", "s1", ())]
    drawn = svg.chart(series, "x", "y", [x for x, *_ in points], y_from=0.0, y_to=10.0, log=log)
    tree = ElementTree.fromstring(str(drawn))
    _, _, width, height = map(float, tree.get("viewBox").split())
    dots = [e for e in tree if e.get("data-tip")]
    assert len(dots) == len(points)
    assert all(0 <= float(e.get("cx")) <= width and 0 <= float(e.get("cy")) <= height for e in dots)


def test_labels_at_the_lines_ends_do_not_cover_one_another():
    same = tuple(
        svg.Series(f"m{i}", f"s{i}", ((1, 0.0, 0.0, 0.0, ""), (2, 0.0, 0.0, 0.0, ""))) for i in range(5)
    )
    tree = ElementTree.fromstring(str(svg.chart(same, "x", "y", [1, 2], y_from=0.0, y_to=1.0)))
    heights = sorted(float(e.get("y")) for e in tree if e.get("class") == "name")
    assert min(np.diff(heights)) >= 15.9 and heights[-1] < 340


def test_a_report_is_written_whole_or_not_at_all(run, tmp_path):
    assert write_report(run, tmp_path / "r.html", machines=[]).read_text().startswith("<!doctype html>")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_page([make_report(run, machines=[])], tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "r.html"]
    with pytest.raises(RunError, match="at least one run"):
        write_report([], tmp_path / "x.html")


def test_a_long_run_says_what_memory_it_takes(run_dir, tmp_path, monkeypatch):
    module = import_module("moetrace.cli.report")
    monkeypatch.setattr(module, "_MANY", 10)
    # By the whole command line: a verb on its own would keep a help option without -h for the tests after it.
    result = CliRunner().invoke(
        moetrace_cli, ["report", str(run_dir), "-o", str(tmp_path / "r.html"), "--compare", "h100-sxm"]
    )
    assert result.exit_code == 0 and "ops are held in memory, about 0.2 GB" in result.stderr
    assert "held in memory" not in result.stdout


def test_waits_for_launches_of_a_prediction_are_not_said_to_be_measured():
    load = moetrace.Workload(batch=4, input_len=64, output_len=8)
    told = moetrace.simulate("qwen3-30b-a3b", load, "h100-sxm", moetrace.Scenario.of("graph=off"))
    page = render([make_report(told.run, machines=[])])
    (said,) = re.findall(r'<span class="what">launch waits</span>.*?<span class="note">(.*?)</span>', page)
    assert said == "as predicted"
