"""Printed runs of served models (SRV): what is simulated for a row, and that what a row leaves open is not guessed."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from pathlib import Path

import pytest

import moetrace
from moetrace.errors import ScenarioError
from moetrace.replay.launching import SGLANG_LAUNCH_S
from moetrace.validate import entries, validate
from moetrace.validate.entry import NOT_SIMULATED, PREDICTED, Entry
from moetrace.validate.figure import COLUMNS, Figure, shipped
from moetrace.validate.ledger import summary, table_of
from tests.conftest import REPO


def run(**given: str) -> Figure:
    told = {"id": "SRV-9", "model": "gpt-oss-20b", "hw": "H100", "n_gpus": "1", "parallelism": "TP1"}
    load = {"precision": "mxfp4", "batch": "16", "input_len": "64", "output_len": "32"}
    printed = {"other_knob": "engine=vllm", "metric": "tpot", "value": "5", "unit": "ms"}
    return Figure(**{**dict.fromkeys(COLUMNS, ""), **told, **load, **printed, **given})


def entry(**given: str) -> Entry:
    (found,) = entries([run(**given)])
    return found


def setting(**given: str) -> str:
    found = entry(**given)
    assert found.estimate, found.note
    return found.estimate.setting


def test_several_in_flight_are_a_steady_load_and_one_alone_is_a_static_batch() -> None:
    assert "--batch 2 " in setting(batch="2") and "serving=continuous" in setting(batch="2")
    assert "--batch 1 " in setting(batch="1") and "serving" not in setting(batch="1")
    alone = entry(batch="1")
    model = moetrace.load_model("gpt-oss-20b")
    told = moetrace.simulate(
        model, moetrace.Workload(1, 64, 32), "h100-sxm", moetrace.Scenario.of("engine=vllm")
    )
    assert alone.estimate and alone.estimate.value == pytest.approx(
        1e3 * told.summary["metrics"]["tpot"]["value"]
    )


def test_the_mean_in_flight_goes_before_the_most() -> None:
    text = setting(other_knob="engine=vllm; in_flight=13.61")
    assert "--batch 14 " in text and "engine=vllm" in text


def test_the_time_between_tokens_is_the_time_per_token_and_a_speed_is_its_inverse() -> None:
    tpot, itl = entry(), entry(metric="itl")
    assert tpot.estimate and itl.estimate and tpot.estimate.value == itl.estimate.value
    both, out = (
        entry(metric=name, unit="tok/s", batch="1").estimate for name in ("throughput", "output_throughput")
    )
    assert both and out and both.value == pytest.approx(out.value * (64 + 32) / 32)


def test_a_steady_load_says_what_uniform_routing_gives() -> None:
    skewed = entry()
    assert skewed.estimate and "uniform routing gives" in skewed.note
    even = float(skewed.note.split("gives ")[1].split()[0])
    assert even > skewed.estimate.value  # more distinct experts
    assert entry(batch="1").note == ""


def test_groups_share_the_ranks_of_tensor_parallelism() -> None:
    text = setting(n_gpus="8", parallelism="TP8 attnDP4 EP8", batch="64")
    assert "tp=2" in text and "dp=4" in text and "ep=8" in text
    assert "dp=" not in setting(n_gpus="8", parallelism="TP8", batch="64")


def test_a_type_is_set_where_the_checkpoint_has_another() -> None:
    assert "dtype" not in setting() and "dtype=fp8" in setting(precision="fp8")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"n_gpus": "8", "parallelism": "TP4"}, "parallelism 'TP4' of 8 GPUs"),
        ({"n_gpus": "8", "parallelism": "TP8 attnDP3"}, "parallelism 'TP8 attnDP3'"),
        ({"n_gpus": "8", "parallelism": "TP8 PP2"}, "parallelism 'TP8 PP2'"),
        ({"n_gpus": "8", "parallelism": ""}, "parallelism ''"),
        ({"output_len": ""}, "not stated: output_len"),
        ({"batch": "64k"}, "batch '64k': expected a whole number"),
        ({"batch": "8.0"}, "batch '8.0': expected a whole number"),
        ({"hw": "H20-3e"}, "no profile"),
        ({"unit": "s"}, "no prediction is made of tpot in s"),
        ({"model": "gpt-6"}, "not in the catalogue"),
        ({"precision": ""}, "not stated: precision"),
        ({"n_gpus": "8", "parallelism": "tp8"}, "expected TP8"),
        ({"n_gpus": "8", "parallelism": "TP8 DeepEP"}, "parallelism 'TP8 DeepEP'"),
        ({"other_knob": "engine=vllm; graphs=off"}, "did you mean 'graph'"),
        ({"other_knob": "engine=vllm; speculative"}, "other_knob has 'speculative'"),
        ({"other_knob": "engine=vllm; tp=8"}, "other_knob has 'tp=8'"),
        ({"other_knob": "in_flight=many"}, "in_flight=many"),
        ({"other_knob": "in_flight=90"}, "at most 16"),
        ({"other_knob": "in_flight=2", "batch": "1"}, "at most 1"),
        ({"value": "-3"}, "not above zero"),
        ({"value": "fast"}, "not a number"),
        ({"value": "1,5"}, "'1,5' is not a number"),
        ({"value": "12,34.5"}, "not a number"),
        ({"value": "1_0"}, "not a number"),
        ({"batch": "\N{SUPERSCRIPT TWO}"}, "expected a whole number"),
        ({"n_a": "few"}, "n_a=few"),
        ({"metric": "p99_ttft"}, "but of itl in ms, tpot in ms, ttft in ms"),
    ],
)
def test_what_a_row_leaves_open_is_not_guessed(given: dict[str, str], why: str) -> None:
    found = entry(**given)
    assert found.verdict == NOT_SIMULATED and why in found.note


def test_commas_of_thousands_are_read() -> None:
    for text in ("1,234.5", "~1,234.5", "1234.5"):
        assert run(value=text).measured == 1234.5


def test_what_a_row_states_is_what_is_simulated() -> None:
    """Another n_a or n_e, and any knob: a setting left unread would be a prediction of another run."""
    assert "n_a=2" in setting(n_a="2") and "n_a" not in setting(n_a="4")  # gpt-oss's own
    assert "n_e=16" in setting(n_e="16") and "n_e" not in setting(n_e="32")
    text = setting(other_knob="engine=vllm;kv=fp8; in_flight=8 ;QUEUED")
    assert "kv=fp8" in text and "engine=vllm " in text and "--batch 8 " in text
    fewer, own = entry(n_a="2").estimate, entry().estimate
    assert fewer and own and fewer.value < own.value
    assert "uniform routing" not in entry(other_knob="engine=vllm; routing=uniform").note
    assert "qwen3-235b-a22b" in setting(
        model="Qwen/Qwen3-235B-A22B-FP8", precision="fp8", n_gpus="8", parallelism="TP8"
    )


def test_rows_of_ones_own_are_summed_up_apart_from_the_shipped_ones() -> None:
    own = run(source="my cluster")
    ledger = table_of([*entries([own, next(f for f in shipped() if f.kind == "SRV")])])
    names = {group["name"]: group["rows"] for group in summary(ledger)["groups"]["source"]}
    assert names["SRV, yours: my cluster"] == 1 and len(names) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{head}\n", "no row: expected a figure in each"),
        ("{head}\n{row},more\n", "line 2: more cells than columns"),
        ("{head}\n{row}\n{other}\n", "SRV-9 is the id of another figure already"),
        ("{head},batch\n{row},64\n", "more than one column batch"),
        ("{head},engine\n{row},sglang\n", "the column engine would not be read: state it in other_knob"),
    ],
)
def test_tables_that_would_be_read_askew_are_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        validate(written(tmp_path, text))


def test_a_spreadsheet_s_mark_is_no_column_and_the_same_row_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[Figure.__module__], "shipped", list)
    ledger = validate(written(tmp_path, "\ufeff{head}\n{row}\n{row}\n"))
    assert ledger["id"].to_pylist() == ["SRV-9"] and ledger["verdict"].to_pylist() == [PREDICTED]


def written(folder: Path, text: str) -> Path:
    row, other = (
        ",".join(getattr(one, name) for name in COLUMNS) for one in (run(source="mine"), run(value="6"))
    )
    (folder / "mine.csv").write_text(
        text.format(head=",".join(COLUMNS), row=row, other=other), encoding="utf-8"
    )
    return folder / "mine.csv"


def test_the_runs_that_a_constant_was_set_from_say_so() -> None:
    rows = [found for found in entries(shipped_runs()) if "was set from nine runs" in found.note]
    table = (REPO / "docs" / "accuracy.md").read_text().partition("| us an op |")[2].partition("\n\n")[0]
    assert len(rows) == 9 == len(table.splitlines()) - 2
    for row in rows:
        model = "-".join(row.figure.model.split("-")[:2])
        line = next(line for line in table.splitlines() if line.startswith(f"| {model}"))
        assert f", {row.figure.input_len}, {row.figure.batch}" in line


def shipped_runs() -> list[Figure]:
    return [figure for figure in shipped() if figure.kind == "SRV"]


def test_shipped_runs_are_all_predicted_and_no_table_is_taken_whole() -> None:
    rows = [figure for figure in shipped() if figure.kind in ("SRV", "TTF")]
    tables = Counter((row.source, row.model, row.hw, row.precision) for row in rows)
    assert len(rows) >= 100 and max(tables.values()) <= 12
    assert {found.verdict for found in entries(rows)} == {PREDICTED}


def test_the_pages_tell_how_far_off_printed_runs_are() -> None:
    """Errors of the time per token: a speed is turned round."""
    found = list(entries([figure for figure in shipped() if figure.kind == "SRV"]))
    off: dict[str, list[float]] = {}
    for one in found:
        assert one.error is not None
        error = one.error if one.figure.unit == "ms" else 1 / (1 + one.error) - 1
        for name in (one.figure.hw.split("-")[0], "all"):
            off.setdefault(name, []).append(error)
    short = {name: f"{-100 * statistics.median(errors):.0f} %" for name, errors in off.items()}
    held = f"{100 * statistics.mean(bool(one.within) for one in found):.0f} %"
    page, readme = (" ".join((REPO / name).read_text().split()) for name in ("docs/accuracy.md", "README.md"))
    runs = {name: f"on {name} ({len(off[name])}" for name in off}
    assert f"Of {len(found)} runs {sum(e < 0 for e in off['all'])} took longer than predicted" in page
    assert (
        f"The predicted time per token is {short['all']} too short in the median: {short['B200']} {runs['B200']} runs)"
        in page
    )
    for name in ("MI300X", "H20", "A100"):
        assert f"{short[name]} {runs[name]})" in page and f"{short[name]} {runs[name]})" in readme
    assert f"{short['B200']} too short {runs['B200']} runs)" in readme
    assert f"The interval held {held}." in page and f"the interval held {held} of them" in readme


def test_the_page_tells_how_far_off_the_first_token_of_one_request_is() -> None:
    found = list(entries([figure for figure in shipped() if figure.kind == "TTF"]))
    page = " ".join((REPO / "docs" / "accuracy.md").read_text().split())
    short = -100 * statistics.median(one.error for one in found if one.error is not None)
    held = sum(bool(one.within) for one in found)
    assert f"(kind TTF: {len(found)} medians of the same runs" in page
    assert (
        f"comes out {short:.0f} % too short in the median, and the interval holds {held} of {len(found)};"
        in page
    )


def test_the_page_s_launches_of_short_prompts_are_the_constant_s() -> None:
    """Their geometric mean, which the page prints in whole us an op."""
    page = (REPO / "docs" / "accuracy.md").read_text()
    table = page.partition("| us an op |")[2].partition("\n\n")[0].splitlines()[2:]
    printed = [float(row.split("|")[5]) for row in table]
    assert len(printed) == 9
    assert statistics.geometric_mean(printed) * 1e-6 == pytest.approx(SGLANG_LAUNCH_S, rel=0.02)


def test_the_pages_tell_how_far_off_single_sequences_are_by_model() -> None:
    """Medians of one at a time, and of DeepSeek-R1 in flight, as accuracy.md's sentences have them."""
    page = " ".join((REPO / "docs" / "accuracy.md").read_text().split())
    alone: dict[tuple[str, str], list[float]] = {}
    flying, even = [], []
    for one in entries([figure for figure in shipped() if figure.kind == "SRV"]):
        assert one.error is not None and one.estimate
        name = one.figure.model, one.figure.hw.split("-")[0]
        if one.figure.batch == "1":
            error = one.error if one.figure.unit == "ms" else 1 / (1 + one.error) - 1
            alone.setdefault(name, []).append(error)
        elif name == ("DeepSeek-R1", "B200"):
            flying.append(one.error)
            even.append(float(one.note.split("uniform routing gives ")[1].split()[0]) / one.measured - 1)
    off = {name: f"{100 * abs(statistics.median(errors)):.0f} %" for name, errors in alone.items()}
    mine, uniform = 100 * statistics.median(flying), 100 * statistics.median(even)
    for sentence in (
        f"Qwen3-30B-A3B on A100 by {off['Qwen3-30B-A3B', 'A100']}, on H20 by {off['Qwen3-30B-A3B', 'H20']}, "
        f"Qwen3-235B-A22B on B200 by {off['Qwen3-235B-A22B-Instruct-2507', 'B200']}, GLM-4.6 by {off['GLM-4.6', 'B200']};",
        f"MiniMax-M2.5 by {off['MiniMax-M2.5', 'H100']} on H100 (SGLang 0.5.9) and by {off['MiniMax-M2.5', 'B200']} on B200",
        f"gpt-oss-120b on B200 one at a time ({off['gpt-oss-120b', 'B200']})",
        f"in flight {-mine:.0f} % too short, {uniform:.0f} % too long with uniform",
    ):
        assert sentence in page, sentence
