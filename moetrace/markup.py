"""Small HTML tables for notebooks, everything in them escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_LONGEST = 200


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a caption; long texts are cut."""
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f'<caption style="text-align:left">{_text(title)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return escape(value if len(value) <= _LONGEST else value[:_LONGEST] + "...")
