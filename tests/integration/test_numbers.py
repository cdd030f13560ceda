"""The page, the tables, the JSON and the Parquet of one run say the same numbers: all of them, of every shipped recording."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

import moetrace
from tests.conftest import REPO, Answer
from tests.numbers import BY, Figures, micro, page_table, plain, same, table_after
from tests.reports import bulk_of, facts_of

Call = Callable[..., Answer]
SHIPPED = sorted(p.name for p in (REPO / "traces" / "kineto").iterdir() if p.is_dir())
ONE = ("--compare", "h100-sxm")  # a prediction on one machine: what is compared needs none
PHASES = ("prefill", "decode")  # in the order in which the page numbers them


@pytest.fixture(scope="module", params=SHIPPED)
def run(request, tmp_path_factory):
    """A shipped recording as a RUN with its attribution."""
    folder = tmp_path_factory.mktemp("numbers") / "run"
    found = moetrace.parse(REPO / "traces" / "kineto" / request.param)
    found.save(folder)
    moetrace.attribute(moetrace.load(folder)).save(folder / "attribution.parquet")
    return folder


@pytest.fixture(scope="module")
def figures(run) -> Figures:
    return Figures(run)


@pytest.fixture(scope="module")
def page(run) -> str:
    return moetrace.write_report(moetrace.load(run), run.parent / "report.html").read_text()


@pytest.mark.parametrize("phase", PHASES)
def test_tables_are_those_of_the_parquet(phase, run, figures, page, call: Call):
    attributed = json.loads(call("attribute", run, "--json").out)["phases"][phase]
    facts = facts_of(page)["attribution"]["phases"][phase]
    for by, table in BY.items():
        wanted, shown = figures.groups(phase, by), figures.terminal(phase, by)
        asked = ("--by", by, "--phase", phase, "--top", "500")
        sources, tables = [attributed[table], facts[table]], [call("attribute", run, *asked).out]
        if by in ("family", "layer"):
            sources.append(json.loads(call("show", run, *asked, *ONE, "--json").out)["rows"])
            tables.append(call("show", run, *asked, *ONE).out)
        for rows in sources:
            assert [row[by] for row in rows if not same(row, wanted[row[by]])] == []
            assert {row[by] for row in rows} == set(wanted)
        for said in tables:
            cells = table_after(said, f"Time of the {phase} steps by {by}")
            assert set(cells) == set(shown)
            for row, found in cells.items():
                assert {heading: shown[row][heading] for heading in found} == found
        found = page_table(page, f"r0-t-{PHASES.index(phase)}-{by}")
        assert {row: texts for row, texts in found.items() if row != "none"} == figures.page(phase, by)


def test_headlines_are_those_of_the_parquet_in_every_output(run, figures, page, call: Call):
    said, shown = call("show", run).out, json.loads(call("show", run, "--json").out)
    facts = {answer["id"]: answer for answer in facts_of(page)["answers"]}
    assert list(facts.values()) == shown["answers"]
    for key, texts in figures.headlines().items():
        answer = facts[key]
        inside = " ".join([answer["short"], answer["sure"], *(" ".join(x.values()) for x in answer["lines"])])
        card = plain(page.split(f'class="card" data-answer="{key}"', 1)[1].split("Evidence", 1)[0])
        for text in texts:
            assert text in inside and text in said and micro(text) in card, (key, text)


def test_predictions_are_those_of_replay(run, page, call: Call):
    what = facts_of(page)["what_if"]
    native, fewer = what["native_n_a"], what["fewer_n_a"]
    assert {r["n_a"] for r in what["n_a"]} == set(range(1, native + 1))
    scenario = ("--set", f"layers={what['depth']}", "--set", f"n_a={native},{fewer}")
    for machine in ("h100-sxm", "cs3"):
        said = json.loads(call("replay", run, "--hw", machine, *scenario, "--json").out)["predictions"]
        ends = [[p["phases"]["decode"][k] for k in ("step_s", "low_s", "high_s")] for p in said]
        curves = [r for r in what["n_a"] if r["hardware"] == machine and r["n_a"] in (native, fewer)]
        found = [[r[k] for k in ("step_s", "low_s", "high_s")] for r in curves]
        assert sorted(found) == [pytest.approx(end) for end in sorted(ends)] and len(found) >= 2
        row = next(m for m in what["machines"] if m["hardware"] == machine)
        assert [row[k] for k in ("step_s", "low_s", "high_s")] in [pytest.approx(end) for end in ends]


def test_what_the_page_draws_is_in_the_parquet(run, figures, page):
    bulk = bulk_of(page)
    steps, points = bulk["steps"], bulk["points"]
    assert steps["span_s"] == pytest.approx(figures.steps.span_s.tolist(), rel=1e-4)
    assert steps["lower_bound_s"] == pytest.approx(
        figures.rows.groupby("step").lower_bound_s.sum().tolist(), rel=1e-4
    )
    distinct = figures.rows.groupby(["op", "phase"], observed=True, dropna=False)
    assert sum(points["count"]) == len(figures.rows) and len(points["count"]) == distinct.ngroups
    texts = points["texts"]
    medians = distinct.dur_ns.median() / 1e9
    for op, phase, median, count in zip(
        points["op"], points["phase"], points["median_s"], points["count"], strict=True
    ):
        key = texts["op"][op], texts["phase"][phase]
        assert median == pytest.approx(medians[key], rel=1e-4) and count == len(distinct.get_group(key))


def test_changing_one_duration_is_noticed(run, tmp_path, call: Call):
    """The comparison itself: a RUN whose JSON is of another recording does not pass for it."""
    import pyarrow.parquet as pq

    other = shutil.copytree(run, tmp_path / "run")
    table = pq.read_table(other / "attribution.parquet")
    first = table.column("dur_ns").to_pylist()
    first[-1] += 1_000_000
    exposed = table.column("exposed_ns").to_pylist()
    exposed[-1] += 1_000_000
    for name, values in (("dur_ns", first), ("exposed_ns", exposed)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), [values])
    pq.write_table(table, other / "attribution.parquet")
    rows = json.loads(call("show", run, *ONE, "--json").out)["rows"]
    wanted = Figures(other).groups("decode", "family")
    assert any(not same(row, wanted[row["family"]]) for row in rows)
