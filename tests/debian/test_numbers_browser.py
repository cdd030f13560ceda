"""What Chromium renders of a report are the numbers of the Parquet: tables, headlines and what pointing at a chart says."""

from __future__ import annotations

import pytest

import moetrace
from moetrace import units
from tests.conftest import REPO
from tests.debian.browser import Opened
from tests.numbers import BY, Figures, micro

pytestmark = pytest.mark.debian
SHIPPED = sorted(p.name for p in (REPO / "traces" / "kineto").iterdir() if p.is_dir())
PHASES = ("prefill", "decode")
CELLS = "rows => rows.map(r => [...r.cells].map(c => c.innerText.replaceAll('\\u00a0', ' ').trim()))"


@pytest.fixture(scope="module", params=SHIPPED)
def shown(request, browser, tmp_path_factory):
    """(the report of a shipped recording in Chromium, the figures of its RUN)."""
    folder = tmp_path_factory.mktemp("numbers") / "run"
    moetrace.parse(REPO / "traces" / "kineto" / request.param).save(folder)
    run = moetrace.load(folder)
    moetrace.attribute(run).save(folder / "attribution.parquet")
    with Opened(browser, moetrace.write_report(run, folder.parent / "report.html")) as opened:
        yield opened, Figures(folder)
        assert opened.said == []


@pytest.mark.parametrize("phase", PHASES)
def test_every_row_of_the_tables(phase, shown):
    opened, figures = shown
    panel = opened.page.locator("#r0-breakdown")
    panel.get_by_role("button", name=phase, exact=True).click()
    for by in BY:
        panel.get_by_role("button", name=by, exact=True).click()
        rows = panel.locator(".tab:visible tbody tr").evaluate_all(CELLS)
        assert {row[0]: row[1:] for row in rows if row[0] != "none"} == figures.page(phase, by)


def test_every_headline(shown):
    opened, figures = shown
    for key, texts in figures.headlines().items():
        card = opened.page.locator(f".card[data-answer={key}]").inner_text().replace("\xa0", " ")
        assert [text for text in texts if micro(text) not in card] == []


def test_what_the_charts_say_when_pointed_at(shown):
    opened, figures = shown
    timeline = opened.canvas("timeline")
    for span in figures.spans("decode"):
        timeline.press("ArrowRight")
        assert micro(units.seconds(span)) in opened.tip().splitlines()[0].replace("\xa0", " ")
    timeline.press("Escape")
    roofline = opened.canvas("roofline")
    ops = figures.rows.groupby(["op", "phase"], observed=True).dur_ns.agg(["sum", "median"])
    for (op, phase), row in ops.sort_values("sum", ascending=False).head(5).iterrows():
        roofline.press("ArrowRight")
        tip = opened.tip().replace("\xa0", " ")
        assert tip.startswith(op) and f"{phase}, " in tip
        assert f"median {micro(units.seconds(row['median'] / 1e9))}" in tip
