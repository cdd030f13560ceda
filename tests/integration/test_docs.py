"""What the documents say is what the code does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moetrace.cli import VERBS
from moetrace.report.queries import QUERIES
from moetrace.report.schema import TABLES, schema_facts, schema_page
from tests.conftest import REPO, Answer

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "traces").rglob("*.md")])
README = (REPO / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_schema_page_is_what_the_code_generates() -> None:
    assert (REPO / "docs" / "schema.md").read_text() == schema_page(), "run 'make docs'"


@pytest.fixture(scope="module")
def attributed(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a RUN named `run` that has all its tables."""
    import moetrace

    folder = tmp_path_factory.mktemp("queries")
    run = shutil.copytree(run_dir, folder / "run")
    moetrace.attribute(moetrace.load(run), "cpu").save(run / "attribution.parquet")
    return folder


@pytest.mark.parametrize("table", TABLES)
def test_the_queries_run_and_give_the_same_answer(
    table: str, attributed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    monkeypatch.chdir(attributed)
    queries = QUERIES[table]
    assert all(query in schema_page() for query in queries.values())
    found: dict[str, list[tuple[object, float]]] = {"duckdb": duckdb.sql(queries["duckdb"]).fetchall()}
    for name in ("pandas", "polars"):
        names: dict[str, Any] = {}
        exec(queries[name], names)
        answer = names["answer"]
        found[name] = list(answer.items()) if name == "pandas" else answer.rows()
    assert len(capsys.readouterr().out.splitlines()) > 4
    assert len(found["pandas"]) > 1
    for rows in found.values():
        assert dict(rows) == pytest.approx(dict(found["pandas"]))
        assert [value for _, value in rows] == pytest.approx(sorted((v for _, v in rows), reverse=True))


@pytest.mark.parametrize("table", TABLES)
def test_a_column_has_nulls_only_where_the_schema_says_what_they_mean(table: str, attributed: Path) -> None:
    file = pq.read_table(attributed / "run" / f"{table}.parquet")
    columns = {c["name"]: c for c in schema_facts(table)["tables"][table]["columns"]}
    assert file.column_names == list(columns)
    assert [n for n in file.column_names if file.column(n).null_count and not columns[n]["null"]] == []
    assert {c["unit"] for c in columns.values() if c["name"].endswith("_ns")} <= {"ns"}


def test_the_schema_verb_says_what_the_page_says(call: Callable[..., Answer]) -> None:
    facts = json.loads(call("schema", "--json").out)
    assert facts["schema"] == "moetrace.schema/1" and list(facts["tables"]) == list(TABLES)
    text = call("schema").out
    for table in facts["tables"].values():
        assert all(column["name"] in text for column in table["columns"])
    assert "import polars" in call("schema", "routing").out
    assert call("schema", "rooting").status == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (REPO / "docs" / "index.md").read_text()
    assert [
        p.name for p in (REPO / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index
    ] == []


def test_commands_in_the_demo_exist() -> None:
    """Each `moetrace VERB --option` that is shown is one that the command line has."""
    from moetrace.cli.main import cli

    demo = (REPO / "examples" / "demo.sh").read_text()
    shown = re.findall(r"^moetrace ([a-z]+)(.*)$", demo, re.MULTILINE)
    assert {verb for verb, _ in shown} >= {"parse", "attribute", "replay", "export"}
    for verb, rest in shown:
        assert verb in VERBS
        command = cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known


def test_every_verb_is_in_the_readme() -> None:
    assert [verb for verb in VERBS if f"`{verb}`" not in README and f"moetrace {verb}" not in README] == []


def test_the_architecture_page_shows_the_rule_that_the_tests_hold() -> None:
    from tests.unit.test_layers import ROWS

    page = (REPO / "docs" / "architecture.md").read_text()
    drawing = next(b for b in _blocks(page, "") if b.startswith("cli\n"))
    drawn = [set(line.split()) for line in drawing.splitlines()]
    to_come = {"calibrate"}
    assert drawn == [row - to_come for row in ROWS]


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout
    makefile = (REPO / "Makefile").read_text()
    targets = set(next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:])
    assert {line.split()[1] for line in listed.splitlines()} == targets
