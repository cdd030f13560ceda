"""Every example of README.md and docs/ runs as it stands, or says visibly that it is not run here, and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.pages import COMMAND, PAGES, blocks, sessions
from tests.examples.run import Failed, Page, kept, same

pytest.importorskip("torch", reason="needs the record extra")

# Blocks labelled `not run here`, by page. One more is a decision: can it not be run on a CPU, from PyPI, in a second?
NOT_RUN = {"README.md": 1, "campaign.md": 1, "formats.md": 1, "ranks.md": 1, "recording.md": 6}
# Pages that recompute the published figures, which takes half a minute, share one process.
VALIDATED = [p for p in PAGES if any(re.search(r"moetrace[ .]validate", b.body) for b in blocks(p))]
TOGETHER = [[p] for p in PAGES if p not in VALIDATED] + [VALIDATED]


@pytest.mark.parametrize("pages", TOGETHER, ids=lambda pages: "-".join(p.stem for p in pages))
def test_the_examples_of_a_page_run_and_print_what_it_shows(
    pages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for page in pages:
        folder = tmp_path / page.stem
        folder.mkdir()
        monkeypatch.chdir(folder)
        compare(page, folder)


def compare(page: Path, folder: Path) -> None:
    for block, outputs in Page(page, folder).outputs():
        shown = [s for _, s in sessions(block)] if block.shows_commands else [block.body.splitlines()]
        for said, lines in zip(outputs, shown, strict=True):
            wanted = kept(said, lines)
            assert same(said, lines), f"{block.name}: run 'make docs'; it prints\n" + "\n".join(wanted)


def test_what_is_not_run_says_so_and_is_counted() -> None:
    found = {page.name: [b for b in blocks(page) if b.not_run] for page in PAGES}
    assert {name: len(labelled) for name, labelled in found.items() if labelled} == NOT_RUN
    assert all(len(b.not_run or "") > 8 for labelled in found.values() for b in labelled)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_block_says_what_it_is(page: Path) -> None:
    """Commands stand in `sh`, or with their output in `text`: a fence without a language holds a drawing or a formula."""
    hidden = [
        b.name
        for b in blocks(page)
        if b.language in {"", "text"} and not b.shows_commands and COMMAND.search(b.body)
    ]
    assert hidden == []
    assert {b.language for b in blocks(page)} <= {"", "text", "sh", "python", "toml", "sql", "json"}


def test_a_page_that_shows_something_else_or_hides_a_command_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    fence = "```"
    page.write_text(f"{fence}python\nprint(6 * 7)\n{fence}\n\n{fence}text\n41\n{fence}\n")
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        compare(page, tmp_path)
    page.write_text(f"{fence}sh\nrm -r everything\n{fence}\n")
    with pytest.raises(Failed, match="not a command that the tests run"):
        compare(page, tmp_path)
    page.write_text(f"{fence}sh\nmoetrace parse nowhere -o run\n{fence}\n")
    with pytest.raises(Failed, match="ends with 2"):
        compare(page, tmp_path)
    page.write_text(f"*not run here: it takes a GPU*\n\n{fence}sh\nrm -r everything\n{fence}\n")
    compare(page, tmp_path)
    assert [b.not_run for b in blocks(page)] == ["it takes a GPU"]


def test_speed_is_not_compared_and_dots_stand_for_the_rest() -> None:
    assert same(["worked out in 254.8 ms", "x"], ["worked out in 1.2 s", "..."])
    assert not same(["worked out in 254.8 ms"], ["worked out at 1.2 s"])
