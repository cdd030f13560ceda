from __future__ import annotations

import io
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.report import attributed, simulation, tables, terminal
from moetrace.report.tables import Table, clean, shorten

TABLE = Table("Times", ("family", "ops", "time"), (("experts", "12", "1.5 ms"), ("attention", "3", "-")))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_is_aligned_and_has_no_escapes() -> None:
    text = terminal.plain(["head", TABLE, "tail"])
    assert text == (
        "head\n"
        "\n"
        "Times\n"
        "family     ops    time\n"
        "---------  ---  ------\n"
        "experts     12  1.5 ms\n"
        "attention    3       -\n"
        "\n"
        "tail\n"
    )


def test_wide_characters_keep_columns_aligned() -> None:
    lines = terminal.plain([Table("t", ("name", "n"), (("専門家", "1"), ("ab", "2")))]).splitlines()
    assert lines[3] == "専門家  1"
    assert lines[4] == "ab      2"


def test_nothing_to_show_is_nothing() -> None:
    assert terminal.plain([]) == ""


def test_a_long_plain_row_is_neither_cut_nor_wrapped() -> None:
    name = "k" * 500
    assert any(name in line for line in terminal.plain([Table("t", ("name",), ((name,),))]).splitlines())


def test_a_pipe_gets_plain_text_and_a_terminal_every_cell(monkeypatch) -> None:
    pipe, screen = io.StringIO(), Terminal()
    monkeypatch.setenv("TERM", "dumb")
    terminal.show([TABLE], pipe)
    terminal.show([TABLE], screen)
    assert pipe.getvalue() == terminal.plain([TABLE])
    for cell in ("experts", "attention", "12", "1.5 ms"):
        assert cell in screen.getvalue()


def test_a_narrow_terminal_folds_instead_of_dropping(monkeypatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    terminal.show([Table("t", ("name", "n"), (("a_rather_long_kernel_name", "123456789"),))], screen)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert all(len(line.rstrip()) <= 20 for line in text.splitlines())
    assert Counter("a_rather_long_kernel_name123456789") <= Counter(text)


def test_markup_in_a_name_is_text(monkeypatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    terminal.show([Table("[bold]t[/bold]", ("[red]n",), (("void f[int]()",),)), "[/x]"], screen)
    assert "[bold]t[/bold]" in screen.getvalue()
    assert "void f[int]()" in screen.getvalue()
    assert "[/x]" in screen.getvalue()


def test_json_has_null_for_what_is_not_finite() -> None:
    out = io.StringIO()
    terminal.show_json({"a": float("nan"), 3: [1.5]}, out)
    assert json.loads(out.getvalue()) == {"a": None, "3": [1.5]}


@given(st.text(st.characters()))
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert len(cleaned.splitlines()) <= 1
    if text.isprintable():
        assert cleaned == text


def test_an_escape_sequence_does_not_reach_the_terminal() -> None:
    assert clean("\x1b[31mred\u202e\n") == "\\x1b[31mred\\u202e\\n"


@given(st.text(), st.integers(8, 80))
def test_a_shortened_name_fits_and_keeps_its_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= width
    if len(clean(text)) > width:
        assert clean(text).startswith(short.split("...")[0][:3])
        assert short.endswith(clean(text)[-1])


def test_progress_is_silent_when_piped_and_a_bar_on_a_terminal() -> None:
    piped, shown, quick = io.StringIO(), Terminal(), Terminal()
    for stream, after_s in ((piped, 0.0), (shown, -1.0), (quick, 60.0)):
        with terminal.progress("reading x", stream, after_s) as tell:
            tell(0.5)
    assert piped.getvalue() == "" == quick.getvalue()
    assert "reading x" in shown.getvalue() and "50 %" in shown.getvalue()


def test_counts_agree_with_their_verbs_and_multiples_have_no_bare_point() -> None:
    one, two = ([str(b) for b in attributed._flag_lines({"cache-resident": n, "suspect": n})] for n in (1, 2))
    assert one[0].startswith("1 op beats its lower bound with") and one[1].startswith("1 op beats its lower")
    assert two[0].startswith("2 ops beat their lower bound with") and two[1].startswith("2 ops beat their")
    assert [tables.times(x) for x in (347.0, 1.0, 0.5, 12.34, 1500.0)] == [
        "347 x",
        "1.00 x",
        "0.500 x",
        "12.3 x",
        "1,500 x",
    ]


def test_shares_of_time_with_bytes_are_shown_where_they_are_not_all() -> None:
    family = {"family": "experts", "count": 1, "busy_s": 1.0, "share": 1.0, "bytes": None, "flops": None}
    part = tables._family_table([{**family, "bytes_share": 0.25, "bytes_per_s": 4.0}], "GPU")
    assert "25.0 %" in part.rows[0] and part.rows[0][part.header.index("bytes")] == "-"
    assert "with bytes" not in tables._family_table([{**family, "bytes_share": 1.0}], "GPU").header


def test_quiet_shows_no_progress_even_on_a_terminal() -> None:
    stream = Terminal()
    token = terminal.quiet.set(True)
    try:
        with terminal.progress("work", stream, 0.0) as tell:
            tell(0.5)
    finally:
        terminal.quiet.reset(token)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("per_s", "shown"), [(0.00127, "0.0013"), (5.696, "5.7"), (9.99, "10"), (10.4, "10"), (2547.2, "2,547")]
)
def test_few_tokens_a_second_are_not_none(per_s: float, shown: str) -> None:
    assert simulation._rate(per_s) == shown
