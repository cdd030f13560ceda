"""The fenced blocks of a page, which of them are examples, and which say that they are not run here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO

# schema.md is made by code, and tests/integration/test_docs.py runs its queries in three libraries.
PAGES = [
    p
    for p in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md")))
    if p.name != "schema.md"
]  # fmt: skip
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)[ ]*$", re.DOTALL | re.MULTILINE
)
LABEL = re.compile(r"^\*not run here: (?P<why>[^\n]+)\*\n\n?\Z", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:moetrace|pip|python3?|make|nsys|sh|vllm|git) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where its body stands in the page, and the reason why it is not run, if it says one."""

    page: Path
    line: int
    language: str
    body: str
    start: int
    not_run: str | None
    follows: bool  # nothing but blank lines between it and the block before

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def shows_commands(self) -> bool:
        return self.language == "text" and self.body.startswith("$ ")


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text() if text is None else text
    found, end = [], 0
    for match in FENCE.finditer(text):
        label = LABEL.search(text, end, match.start())
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start()) + 1,
                match["language"],
                match["body"],
                match.start("body"),
                label["why"] if label else None,
                not text[end : match.start()].strip(),
            )
        )
        end = match.end()
    return found


def sessions(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a `text` block, each with the lines that are shown below it."""
    found: list[tuple[str, list[str]]] = []
    lines = iter(block.body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = f"{command}\n{next(lines)}"
            found.append((command, []))
        else:
            found[-1][1].append(line)
    return found


def commands(block: Block) -> list[str]:
    """The commands of an `sh` block, without comments; a line that ends with a backslash goes on in the next."""
    joined = block.body.replace("\\\n", " ")
    return [
        line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
