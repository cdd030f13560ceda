"""Run on disk: what is read back, and what is refused in one line that names the field or the column."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetrace.attribute import attribute
from moetrace.errors import RunError
from moetrace.model import load_model
from moetrace.run import OPS_SCHEMA, Meta, Run, Step, ops_table


def made(path: Path) -> Path:
    meta = Meta(
        "measured", "t.json", (Step(0, "decode 0", "decode", 0, 10, 4, 4, 80),), load_model("qwen3-8b"),
        notes=("one",), facts={"events": 3},
    )  # fmt: skip
    Run(meta, ops_table({"step": pa.array(np.zeros(3, np.int32)), "dur_ns": pa.array([1, 2, 3])})).save(path)
    return path


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = Run.load(made(tmp_path / "run"))
    assert run.meta == Meta.from_dict(json.loads(json.dumps(run.meta.to_dict())))
    assert (run.meta.steps[0].kv_tokens, run.meta.notes, run.numpy("dur_ns").tolist()) == (
        80,
        ("one",),
        [1, 2, 3],
    )


DAMAGE: dict[str, tuple[Any, str]] = {
    "kind": (7, "kind is '7', expected a text"),
    "steps": ("all", "steps is 'all', expected a list of steps"),
    "notes": ("one", "notes is 'one', expected a list of texts"),
    "tp": ("8", "tp is '8', expected a whole number"),
    "gpus": (True, "gpus is 'True', expected a whole number"),
    "ep": (1.5, "ep is '1.5'"),
    "hardware": (["cs3"], "hardware is .*, expected a text or null"),
    "facts": ([], "facts is .*, expected an object"),
    "model": ("qwen", "model is 'qwen', expected a model or null"),
    "version": (99, "run version 99, this moetrace reads 1"),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_field_of_the_wrong_kind_is_named(field: str, tmp_path: Path) -> None:
    file = made(tmp_path / "run") / "run.json"
    value, words = DAMAGE[field]
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(RunError, match=words) as caught:
        Run.load(tmp_path / "run")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"phase": 7}, r"steps\[0\].phase is '7', expected a text or null"),
        ({"start_ns": "0"}, r"steps\[0\].start_ns is '0'"),
        ({"batch": [4]}, r"steps\[0\].batch"),
        (None, r"steps\[0\] is not an object"),
    ],
)
def test_a_step_of_the_wrong_kind_is_named(step: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    file = made(tmp_path / "run") / "run.json"
    raw = json.loads(file.read_text())
    raw["steps"] = [step and {**raw["steps"][0], **step}]
    file.write_text(json.dumps(raw))
    with pytest.raises(RunError, match=words):
        Run.load(tmp_path / "run")


@pytest.mark.parametrize(
    "text", ["[]", "7", "{}", "null", '{"version": 1}', '{"version": 1, "kind": "measured"}']
)
def test_a_document_that_is_no_metadata(text: str, tmp_path: Path) -> None:
    (made(tmp_path / "run") / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run.json is not a run's metadata|has run version"):
        Run.load(tmp_path / "run")


def test_a_model_record_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    file = made(tmp_path / "run") / "run.json"
    raw = json.loads(file.read_text())
    for field, value in (("name", 7), ("windows", 7), ("heads", "x"), ("attention", None)):
        file.write_text(json.dumps({**raw, "model": {**raw["model"], field: value}}))
        with pytest.raises(RunError, match=f"run.json .*{field} is"):
            Run.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tpot", 7),
        ("tpot", {"expected_s": 1.0}),
        ("tpot", {"expected_s": 1, "low_s": "x", "high_s": 2, "of_steps": True}),
        ("workload", {"after_decode": "x"}),
        ("workload", {"after_decode": [1]}),
        ("workload", {"after_decode": -5}),
        ("workload", {"drafted": "no"}),
        ("launched", [[1], 2]),
        ("launched", "abc"),
        ("workload", 7),
    ],
)
def test_what_a_simulation_states_is_read_as_it_was_written_or_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    file = made(tmp_path / "run") / "run.json"
    raw = json.loads(file.read_text())
    stated = {"expected_s": 0.02, "low_s": 0.01, "high_s": 0.03, "of_steps": False}
    file.write_text(json.dumps({**raw, "facts": {**raw["facts"], "tpot": stated}}))
    assert Run.load(tmp_path / "run").meta.tpot == stated
    file.write_text(json.dumps({**raw, "facts": {**raw["facts"], name: value}}))
    with pytest.raises(RunError, match=rf"run.json .*facts\.{name}.*: expected"):
        Run.load(tmp_path / "run")


def test_a_table_of_another_schema_is_one_short_line(tmp_path: Path) -> None:
    file = made(tmp_path / "run") / "ops.parquet"
    whole = pq.read_table(file)

    def refused(table: pa.Table, words: str, column: str) -> None:
        pq.write_table(table, file)
        run = Run.load(tmp_path / "run")
        for read in (lambda: run.column(column), run.table):
            with pytest.raises(RunError, match=words) as caught:
                read()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300

    refused(pa.table({"a": [1]}), "lacks the columns", "dur_ns")
    refused(whole.drop_columns(["dur_ns"]), "lacks the columns dur_ns:", "dur_ns")
    place = whole.column_names.index("dur_ns")
    refused(
        whole.set_column(place, "dur_ns", pa.array(["1", "2", "3"])), "has string in column dur_ns", "dur_ns"
    )


def test_text_columns_may_be_plain_and_columns_may_be_added(tmp_path: Path) -> None:
    file = made(tmp_path / "run") / "ops.parquet"
    whole = pq.read_table(file)
    place = whole.column_names.index("kernel")
    plain = whole.set_column(place, "kernel", pa.array(["a", "b", "a"])).append_column(
        "later", pa.array([1, 2, 3])
    )
    pq.write_table(plain, file)
    run = Run.load(tmp_path / "run")
    assert run.codes("kernel")[1] == ["a", "b"]
    assert run.table(["later"]).num_columns == 1 and set(run.table().column_names) > set(OPS_SCHEMA.names)


def test_files_of_older_and_newer_minor_versions_are_read(run_dir, tmp_path):
    """An older one lacks a column added since, a newer one has columns, keys and fields that are not known here."""
    whole = Run.load(run_dir)
    facts = whole.table().schema.metadata
    for name, change in (
        ("older", lambda t: t.drop_columns(["provenance", "graph", "launch_ns"])),
        ("newer", lambda t: t.append_column("power_w", pa.nulls(t.num_rows, pa.float64()))),
    ):
        folder = shutil.copytree(run_dir, tmp_path / name)
        pq.write_table(change(whole.table()).replace_schema_metadata(facts), folder / "ops.parquet")
    meta = json.loads((tmp_path / "newer" / "run.json").read_text())
    meta["weather"] = {"outside": "rain"}
    meta["steps"][0]["mood"] = "calm"
    (tmp_path / "newer" / "run.json").write_text(json.dumps(meta))
    older, newer = Run.load(tmp_path / "older"), Run.load(tmp_path / "newer")
    assert older.column("graph").null_count == older.num_rows
    assert older.table(["graph", "kind"]).column_names == ["graph", "kind"]
    assert set(older.table().column_names) == set(whole.table().column_names)
    expected = attribute(whole).summary["families"]
    assert attribute(newer).summary["families"] == attribute(older).summary["families"] == expected
    assert "power_w" in newer.save(tmp_path / "again").table().column_names
