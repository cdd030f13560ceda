"""A hostile trace: markup, quotes, control characters and names of 10 MB break no verb, and no line that it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.made import decode_trace, write
from tests.reports import HOSTILE, SCRIPT, hostile_events

Call = Callable[..., Answer]
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
GIVEN = ("--hw", "h100-sxm")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("hostile") / "t.json", hostile_events(decode_trace(), long=10_000_000)
    )


@pytest.fixture(scope="module")
def run(trace: Path) -> Path:
    """The trace as a RUN, with hostile metadata beside."""
    import moetrace

    found = moetrace.parse(trace, hardware="h100-sxm")
    steps = tuple(s for s in found.meta.steps)
    hostile = found.with_meta(
        source=HOSTILE[0], engine=HOSTILE[1], device=HOSTILE[2], notes=HOSTILE, steps=steps
    )
    hostile.save(trace.parent / "run")
    return trace.parent / "run"


def said_cleanly(answer: Answer, *statuses: int) -> None:
    assert answer.status in statuses, answer.err[-2000:]
    for said in (answer.out, answer.err):
        assert not CONTROLS.search(said)
        assert "Traceback" not in said
        assert max(map(len, said.splitlines()), default=0) < 1000


@pytest.mark.parametrize(
    "words",
    [
        ("parse", "{trace}", *GIVEN),
        ("doctor", "{trace}", *GIVEN),
        ("show", "{trace}", *GIVEN, "--compare", "h100-sxm", "--by", "kernel"),
        ("show", "{run}", "--compare", "h100-sxm", "--by", "family"),
        ("show", "{run}", "--compare", "h100-sxm", "--by", "step"),
        ("attribute", "{trace}", *GIVEN, "--by", "kernel"),
        ("diff", "{run}", "{trace}", "--by", "op", "--all", "--gate", "step<1s"),
        ("replay", "{run}", "--hw", "h200-sxm"),
    ],
    ids=lambda words: " ".join(w for w in words[:1] + words[-2:] if "{" not in w),
)
def test_a_verb_prints_words_alone(words: tuple[str, ...], trace: Path, run: Path, call: Call) -> None:
    said_cleanly(call(*(word.format(trace=trace, run=run) for word in words)), 0, 1)


def test_files_made_of_it_hold_no_markup_and_are_read(
    trace: Path, run: Path, tmp_path: Path, call: Call
) -> None:
    said_cleanly(call("diff", run, trace, "-o", tmp_path / "d.html"), 0)
    page = (tmp_path / "d.html").read_text()
    assert SCRIPT not in page and page.count("<script") == page.count("</script>") and len(page) < 2_000_000
    said_cleanly(call("export", run, "--perfetto", "-o", tmp_path / "t.json"), 0)
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_hostile_figures_and_ops_are_refused_or_scored_in_words(tmp_path: Path, call: Call) -> None:
    """`validate --on` and `cost` take tables of a user's own: texts in them are data too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for place, bad in enumerate(HOSTILE):
        rows = {
            "op": [f"o_proj bf16 m=16 n=2048 k=2048 {bad}", bad],
            "hardware": [bad, "h100_sxm"],
            "latency": [1.0, 2.0],
        }
        pq.write_table(pa.table(rows), tmp_path / f"{place}.parquet")
        said_cleanly(call("cost", tmp_path / f"{place}.parquet", *GIVEN, "-o", tmp_path / "c.parquet"), 2)
        said_cleanly(
            call(
                "cost",
                tmp_path / f"{place}.parquet",
                *GIVEN,
                "--keep-going",
                "-o",
                tmp_path / f"k{place}.parquet",
            ),
            0,
            2,
        )
    head = "id,source,model,hw,n_gpus,parallelism,precision,batch,input_len,output_len,n_a,n_e,other_knob,"
    head += "metric,value,unit,how_read"
    named = [bad.replace('"', '""').replace("\r\n", " ") for bad in HOSTILE]
    text = "\n".join(
        [head, *(f'X{i}-1,"{bad}","{bad}",h100,1,,,1,1,1,,,,"{bad}",1,s,' for i, bad in enumerate(named))]
    )
    (tmp_path / "figures.csv").write_text(text)
    from moetrace.report.ledger import ledger_report
    from moetrace.report.terminal import show
    from moetrace.validate import entries, summary
    from moetrace.validate.figure import read
    from moetrace.validate.ledger import table_of
    from tests.unit.test_terminal import Terminal

    screen = Terminal()
    show(ledger_report(summary(table_of(list(entries(read(tmp_path / "figures.csv")))))), screen)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert not CONTROLS.search(plain) and "hacked" in plain
