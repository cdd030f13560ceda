"""What the documents say is what the code does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moetrace.cli import VERBS
from moetrace.report.schema import schema_page
from tests.conftest import REPO, Answer

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "traces").rglob("*.md")])
README = (REPO / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_schema_page_is_what_the_code_generates() -> None:
    assert (REPO / "docs" / "schema.md").read_text() == schema_page(), "run 'make docs'"


def _runs_pandas(code: str) -> bool:
    return "import pandas" in code


@pytest.mark.parametrize(
    "number", range(len([b for b in _blocks(schema_page(), "python") if _runs_pandas(b)]))
)
def test_the_pandas_queries_of_the_schema_page_run(number: int, run_dir: Path, tmp_path: Path) -> None:
    import moetrace

    run = shutil.copytree(run_dir, tmp_path / "run")
    moetrace.attribute(moetrace.load(run), moetrace.load_hardware("cpu")).save(run / "attribution.parquet")
    code = [b for b in _blocks(schema_page(), "python") if _runs_pandas(b)][number]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2


def test_columns_that_queries_name_exist() -> None:
    from moetrace.attribute import ATTRIBUTION_COLUMNS
    from moetrace.run import OPS_COLUMNS

    known = {name for name, _, _ in (*OPS_COLUMNS, *ATTRIBUTION_COLUMNS)}
    for query in _blocks(schema_page(), "sql"):
        words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)*\b", query.split("FROM")[0])) - {"sum", "ms", "e"}
        assert words and words <= known
    for query in _blocks(schema_page(), "python"):
        assert set(re.findall(r'pl\.col\("(\w+)"\)', query)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (REPO / "docs" / "index.md").read_text()
    assert [
        p.name for p in (REPO / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index
    ] == []


def test_commands_in_the_readme_and_the_demo_exist() -> None:
    """Each `moetrace VERB --option` that is shown is one that the command line has."""
    from moetrace.cli.main import cli

    commands = "\n".join([*_blocks(README, ""), (REPO / "examples" / "demo.sh").read_text()])
    shown = re.findall(r"^(?:\$ )?moetrace ([a-z]+)(.*)$", commands, re.MULTILINE)
    assert {verb for verb, _ in shown} >= {"parse", "attribute", "replay", "export"}
    for verb, rest in shown:
        assert verb in VERBS
        command = cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known


@pytest.mark.parametrize("number", range(len(_blocks(README, "text"))))
def test_the_output_in_the_readme_is_what_is_printed(number: int, process: Callable[..., Answer]) -> None:
    """A block is a command and its output; a line of dots stands for the rest."""
    command, *shown = _blocks(README, "text")[number].splitlines()
    answer = process(*command.removeprefix("$ moetrace ").split(), cwd=REPO)
    assert answer.status == 0, answer.err
    kept = shown.index("...") if "..." in shown else None
    assert answer.out.splitlines()[:kept] == shown[:kept], (
        f"paste the output of {command!r} into README.md anew"
    )


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
