"""Blocks to a stream: rich tables on a terminal, plain aligned text anywhere else; and JSON.

Plain text is never cut or wrapped, so that it can be searched and cut into columns by other tools.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import east_asian_width

from moetrace.report.tables import Block, Table, clean

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def show(blocks: Sequence[Block], stream: TextIO | None = None) -> None:
    """Prints the blocks to `stream` (stdout), with an empty line round each table."""
    out = stream or sys.stdout
    if out.isatty():
        _show_rich(blocks, out)
    else:
        out.write(plain(blocks))


def show_json(value: Any, stream: TextIO | None = None) -> None:
    """Prints a JSON-able value, indented; numbers that are not finite become null."""
    import orjson

    flags = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    (stream or sys.stdout).write(orjson.dumps(value, option=flags).decode() + "\n")


quiet: ContextVar[bool] = ContextVar("quiet", default=False)  # whether no progress is shown


@contextmanager
def progress(
    what: str, stream: TextIO | None = None, after_s: float = 1.0
) -> Iterator[Callable[[float], None]]:
    """A callback for the share done of something long: a bar on a terminal once `after_s` have passed, nothing when piped or
    while `quiet` is set."""
    out = stream or sys.stderr
    if quiet.get() or not out.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(file=out), transient=True)
    task, begin = bar.add_task(what, total=1.0), time.monotonic()

    def tell(share: float) -> None:
        if not bar.live.is_started and time.monotonic() - begin > after_s:
            bar.start()
        bar.update(task, completed=share)

    try:
        yield tell
    finally:
        bar.stop()


def note(text: str) -> None:
    """A line about what is going to be done, beside the output; nothing while `quiet` is set."""
    if not quiet.get():
        print(clean(text), file=sys.stderr)


def plain(blocks: Sequence[Block]) -> str:
    """The blocks as text without colour, each line as long as it is."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            lines.append(block)
        else:
            gap = [""] if lines and lines[-1] else []
            lines += [*gap, *_plain_table(block), ""]
    return "\n".join(lines).rstrip("\n") + "\n" if lines else ""


def _width(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _plain_table(table: Table) -> list[str]:
    grid = [table.header, *table.rows]
    widths = [max(_width(row[i]) for row in grid) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - _width(cell))
            cells.append(cell + pad if i < table.left else pad + cell)
        return "  ".join(cells).rstrip()

    return [table.title, line(table.header), "  ".join("-" * w for w in widths), *map(line, table.rows)]


def _show_rich(blocks: Sequence[Block], stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    for block in blocks:
        if isinstance(block, str):
            console.print(Text(block))
            continue
        console.print(Text(block.title, style="bold"))
        room = console.width - sum(_least_widths(block))
        gap = min(2, room // max(1, len(block.header) - 1))
        if room >= 0 and gap:
            console.print(_rich_table(block, gap))
            console.print()
        else:  # one line per cell, where columns cannot be
            for row in block.rows:
                cells = zip(block.header, row, strict=True)
                console.print(Text("\n".join(f"{name}: {cell}" for name, cell in cells)))
                console.print()


def _least_widths(table: Table) -> list[int]:
    """What each column needs when words and headers may wrap between words, and numbers may not wrap."""
    widths = []
    for i, (header, *cells) in enumerate(zip(table.header, *table.rows, strict=True)):
        words = [part for cell in cells for part in cell.split()] if i < table.left else cells
        widths.append(max(map(_width, [*words, *header.split()]), default=0))
    return widths


def _rich_table(table: Table, gap: int) -> RichTable:
    from textwrap import fill

    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    # The box puts one space between columns, the padding what is left of the gap.
    grid = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, gap - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
    )
    for i, (name, least) in enumerate(zip(table.header, _least_widths(table), strict=True)):
        words = i < table.left
        grid.add_column(
            Text(name if words else fill(name, least)),
            justify="left" if words else "right",
            no_wrap=not words,
            min_width=least,
        )
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
