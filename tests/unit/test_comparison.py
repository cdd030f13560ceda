from __future__ import annotations

from typing import Any

from moetrace.report.comparison import replay_report
from moetrace.report.tables import Table, coverage_line, times, without_empty


def _prediction(**changes: Any) -> dict[str, Any]:
    phase = {
        "steps": 4,
        "step_s": 2e-3,
        "low_s": 1.5e-3,
        "high_s": 2.5e-3,
        "measured_s": None,
        "tokens_per_s": 8000.0,
    }
    facts = {
        "hardware": "h100-sxm",
        "label": "n_a=4 layers=native",
        "phases": {"prefill": {**phase, "step_s": 9.0}, "decode": phase},
        "anchored": "unanchored",
        "anchored_share": 0.0,
        "families": [
            {"family": "norm", "step_s": 1e-4, "share": 0.05, "bound": "fixed"},
            {"family": "experts", "step_s": 1e-3, "share": 0.5, "bound": "memory"},
        ],
        "distinct": {"experts": 64, "topk": 4, "mean_distinct": 43.8, "source": "counted"},
        "memory": {"needed_bytes": 14e9, "capacity_bytes": 80e9, "fits": True},
        "wafers": None,
        "ranks": [],
        "assumptions": [],
    }
    return {**facts, **changes}


def _table(*predictions: dict[str, Any]) -> tuple[Table, list[dict[str, str]], list[str]]:
    table, *rest = replay_report(predictions, "olmoe")
    assert isinstance(table, Table)
    return (
        table,
        [dict(zip(table.header, row, strict=True)) for row in table.rows],
        [str(line) for line in rest],
    )


def test_a_row_shows_the_decode_step_and_what_takes_most_of_it() -> None:
    table, [row], _ = _table(_prediction())
    assert "one decode step" in table.title and "unanchored" in table.title
    assert (row["step"], row["80 % interval"], row["tokens/s"]) == ("2.0 ms", "1.5 - 2.5 ms", "8,000")
    assert (row["most time"], row["bound"], row["distinct"]) == ("experts (50 %)", "memory", "43.8/64")
    assert "anchored" not in row


def test_what_all_rows_share_is_said_once() -> None:
    table, rows, _ = _table(_prediction(), _prediction(label="n_a=2 layers=native"))
    assert "replayed with layers=native" in table.title
    assert [row["scenario"] for row in rows] == ["n_a=4", "n_a=2"]
    assert _table(_prediction(label=""))[1][0]["scenario"] == "as recorded"


def test_times_are_compared_with_the_first_row_unless_all_have_a_measurement() -> None:
    fast = {"decode": {**_prediction()["phases"]["decode"], "step_s": 1e-3, "measured_s": 4e-3}}
    _, rows, _ = _table(_prediction(), _prediction(phases=fast))
    assert [row["vs row 1"] for row in rows] == ["1.00 x", "0.500 x"]
    table, [row], _ = _table(_prediction(phases=fast, anchored="partly", anchored_share=0.8))
    assert (row["vs measured"], row["anchored"]) == ("0.250 x", "80 %")
    assert "unanchored" not in table.title


def test_what_does_not_fit_is_named() -> None:
    full = {"needed_bytes": 109e9, "capacity_bytes": 80e9, "fits": False}
    _, _, lines = _table(_prediction(), _prediction(memory=full), _prediction(memory=full, wafers=3))
    assert "row 2 does not fit: it needs 109.0 GB, the machine has 80.0 GB" in lines
    assert "row 3 takes 3 wafers: it needs 109.0 GB, one has 80.0 GB" in lines


def test_assumptions_are_numbered_once_with_the_rows_they_hold_for() -> None:
    said = [["all", "most"], ["all", "most"], ["all"], ["all", "most", "last\x1b"]]
    _, _, lines = _table(*(_prediction(assumptions=texts) for texts in said))
    assert lines == ["Assumptions:", "  1. all", "  2. most [row 1-2, 4]", "  3. last\\x1b [row 4]"]


def test_assumptions_that_differ_in_shares_alone_are_one() -> None:
    said = [["casts take 9 % of 80 %"], ["casts take 44.5 % of 80 %", "other"], ["casts take 10.0 % of 80 %"]]
    _, _, lines = _table(*(_prediction(assumptions=texts) for texts in said))
    assert lines == ["Assumptions:", "  1. casts take 9 to 44.5 % of 80 %", "  2. other [row 2]"]


def test_an_unknown_time_is_a_dash() -> None:
    unknown = {"decode": dict.fromkeys(("step_s", "low_s", "high_s", "measured_s", "tokens_per_s"))}
    _, [row], _ = _table(_prediction(phases=unknown, distinct={}, families=[]))
    assert {row[name] for name in ("step", "tokens/s", "distinct", "most time", "bound", "vs row 1")} == {"-"}


def test_ratios_keep_three_digits() -> None:
    assert [times(v) for v in (0.0005, 1.0, 12.34, 4321.0, None)] == [
        "0.000500 x",
        "1.00 x",
        "12.3 x",
        "4,321 x",
        "-",
    ]


def test_the_coverage_names_what_it_lacks() -> None:
    coverage = {
        "named_share": 0.998,
        "bytes_share": 0.97,
        "layer_share": 0.95,
        "unnamed": [{"kernel": "odd\nkernel", "busy_s": 1e-6, "share": 0.002, "count": 1}],
    }
    assert coverage_line(coverage) == (
        "coverage: 99.8 % of GPU time named, 97.0 % with bytes, 95.0 % with a layer; unnamed: odd\\nkernel (0.2 %)"
    )


def test_only_named_columns_go_and_only_if_empty() -> None:
    table = Table("t", ("a", "b", "c"), (("0", "0", "-"), ("0", "1", "0 %")))
    assert without_empty(table, "b", "c") == Table("t", ("a", "b"), (("0", "0"), ("0", "1")))
