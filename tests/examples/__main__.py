"""Pastes the output of every example into its page: `python -m tests.examples [PAGE...]`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.examples.pages import PAGES, Block, sessions
from tests.examples.run import Page, kept, same


def pasted(block: Block, outputs: list[list[str]]) -> str:
    """The block's body with these outputs; one that differs only in speed stays as it is."""
    if not block.shows_commands:
        shown = block.body.splitlines()
        return (
            block.body
            if same(outputs[0], shown)
            else "".join(f"{line.rstrip()}\n" for line in kept(outputs[0], shown))
        )
    lines: list[str] = []
    for (command, shown), said in zip(sessions(block), outputs, strict=True):
        lines.append(f"$ {command}")
        lines += shown if same(said, shown) else [line.rstrip() for line in kept(said, shown)]
    return "".join(f"{line}\n" for line in lines)


def paste(page: Path) -> bool:
    """Runs the page's examples and writes their output into it; whether anything changed."""
    text = page.read_text()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / page.stem
        folder.mkdir()
        os.chdir(folder)
        done = [(block, pasted(block, outputs)) for block, outputs in Page(page, folder).outputs()]
    new = text
    for block, body in reversed(done):
        new = new[: block.start] + body + new[block.start + len(block.body) :]
    if new != text:
        page.write_text(new)
    return new != text


def main(names: list[str]) -> None:
    os.environ["COLUMNS"] = "80"
    pages = [p for p in PAGES if not names or p.name in {Path(n).name for n in names}]
    for page in pages:
        print(f"{'changed' if paste(page) else 'as it was'}: {page.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
