"""What the documents say is what the code does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from moetrace.cli import VERBS
from moetrace.cli.tables import TABLES
from moetrace.hardware import load_hardware
from moetrace.report.schema import schema_facts, schema_page
from tests.conftest import REPO

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "traces").rglob("*.md")])
README = (REPO / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_schema_page_is_what_the_code_generates() -> None:
    assert (REPO / "docs" / "schema.md").read_text() == schema_page(schema_facts(TABLES)), "run 'make docs'"


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


def test_the_machine_that_is_shown_is_one(tmp_path: Path) -> None:
    [shown] = _blocks((REPO / "docs" / "hardware.md").read_text(), "toml")
    (tmp_path / "mine.toml").write_text(shown)
    machine = load_hardware(tmp_path / "mine.toml")
    assert machine.name == "mine" and machine.memory.capacity_bytes == 60e9


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
