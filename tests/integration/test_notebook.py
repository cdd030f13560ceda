"""The shipped notebook runs from top to bottom, and what it shows renders."""

from __future__ import annotations

import os

import nbclient
import nbformat
import pytest

import moetrace
from moetrace import units
from tests.conftest import REPO
from tests.reports import SCRIPT


def test_the_notebook_runs_and_its_values_render(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(REPO / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is shipped without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(REPO / "examples")}}
    )
    client.execute()
    shown = [
        output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output
    ]
    assert len(shown) == sum(cell.cell_type == "code" for cell in notebook.cells)
    assert sum("text/html" in data for data in shown) == 3
    assert sum("image/png" in data or "<Figure" in data["text/plain"] for data in shown) == 2
    assert "experts" in shown[-1]["text/html"]


def test_what_a_notebook_renders_is_escaped() -> None:
    run = moetrace.load(REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu")
    hostile = run.with_meta(hardware=SCRIPT)
    assert SCRIPT not in hostile._repr_html_() and "&lt;script&gt;" in hostile._repr_html_()


def test_a_prediction_renders_what_its_summary_says() -> None:
    run = moetrace.load(REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu")
    found = moetrace.replay(run.with_meta(source=SCRIPT), "h100-sxm", moetrace.Scenario.of("n_a=6"))
    shown = found._repr_html_()
    assert "n_a=6 on h100-sxm: unanchored" in shown and SCRIPT not in shown
    for phase, facts in found.summary["phases"].items():
        assert (
            phase in shown
            and units.seconds(facts["step_s"]) in shown
            and units.seconds(facts["high_s"]) in shown
        )
    for family in found.summary["families"]:
        assert f"<td>{family['family']}</td><td>{units.seconds(family['step_s'])}</td>" in shown


def test_a_report_renders_as_its_page_in_a_frame() -> None:
    run = moetrace.load(REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu")
    shown = moetrace.make_report(run.with_meta(source=SCRIPT), machines=[])._repr_html_()
    assert (
        shown.startswith('<iframe sandbox="allow-scripts"') and shown.count("<") == 2
    )  # the frame's own tags
    assert "&lt;!doctype html&gt;" in shown and "62.9\u00a0%" in shown


def test_figures_show_the_run_and_name_a_phase_that_is_not_there() -> None:
    run = moetrace.load(REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu")
    steps = moetrace.plot_steps(run).axes[0]
    assert sum(bar.get_height() for group in steps.containers for bar in group) == pytest.approx(
        sum(s.end_ns - s.start_ns for s in run.meta.steps) / 1e6
    )
    held = moetrace.attribute(run)
    decode = held.summary["phases"]["decode"]
    families = moetrace.plot_families(held).axes[0]
    assert sum(bar.get_width() for group in families.containers for bar in group) == pytest.approx(
        1e3 * sum(row["busy_s"] for row in decode["families"]) / decode["steps"]
    )
    with pytest.raises(moetrace.MoetraceError, match="no mixed steps: there are prefill, decode"):
        moetrace.plot_families(held, "mixed")
