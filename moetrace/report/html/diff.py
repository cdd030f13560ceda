"""What changed between two runs as one HTML file, in the report's style."""

from __future__ import annotations

from pathlib import Path

import moetrace
from moetrace.diff import Diff
from moetrace.files import write_whole
from moetrace.report import diff as words
from moetrace.report.html.page import assets, embedded, environment, packed, trimmed

MAX_ROWS = 500  # rows of a table in the page, those that changed most


def write_diff(found: Diff, path: Path) -> int:
    """Writes the page of a diff, whole or not at all, and returns its size in bytes."""
    text = render_diff(found).encode("utf-8", "backslashreplace")
    write_whole(path, lambda part: part.write_bytes(text))
    return len(text)


def render_diff(found: Diff) -> str:
    """The page's text."""
    from markupsafe import Markup

    facts = trimmed(found.facts)
    for table in words.TABLES.values():
        facts[table] = facts[table][:MAX_ROWS]
    return environment().get_template("diff.html.j2").render(
        f=facts,
        words=words,
        left_out={name: max(0, len(found.facts[name]) - MAX_ROWS) for name in words.TABLES.values()},
        version=moetrace.__version__,
        facts_json=Markup(embedded(facts)),  # noqa: S704 made safe by `embedded`
        bulk=packed({}),
        **assets(),
    )  # fmt: skip
