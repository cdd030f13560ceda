"""Every table that a verb writes has the columns that `moetrace schema` says, and the example queries answer alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moetrace
from moetrace.cli.main import run as command
from moetrace.cli.schema import NAMES
from moetrace.cli.tables import TABLES
from moetrace.files import table_facts, write_parquet
from moetrace.report.queries import QUERIES
from moetrace.report.schema import schema_facts, schema_page
from moetrace.routing import Routing, read_loads
from moetrace.routing.tokens import save_token_routing
from moetrace.run import Run
from moetrace.validate import LEDGER_VERSION, entries
from moetrace.validate.figure import shipped
from moetrace.validate.ledger import table_of
from tests.conftest import Answer
from tests.made import decode_trace, write

FILES = {
    "ops": "run/ops.parquet",
    "attribution": "run/attribution.parquet",
    "routing": "run/routing.parquet",
    "routing_tokens": "rec/routing_tokens.parquet",
    "ranks": "out/ranks.parquet",
    "scenarios": "grid/scenarios",
    "breakdown": "grid/breakdown",
    "cost": "costs.parquet",
    "ledger": "ledger.parquet",
    "loads": "routing.parquet",
}


@pytest.fixture(scope="module")
def made(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every table, by the name that the example queries call it."""
    folder = tmp_path_factory.mktemp("tables")
    run = shutil.copytree(run_dir, folder / "run")
    moetrace.attribute(moetrace.load(run), "cpu").save(run / "attribution.parquet")
    routing = Routing.load(run / "routing.parquet")
    tokens = [(0, layer, routing.expert[:16], routing.expert[:32].reshape(16, 2)) for layer in (0, 1)]
    (folder / "rec").mkdir()
    save_token_routing(folder / "rec" / "routing_tokens.parquet", routing.experts, tokens)
    for rank in (0, 1):
        events = decode_trace()
        group = [e for e in events if e["cat"] == "kernel"][::5]
        for event in group:
            # Rank 1 arrives later.
            event["ts"], event["dur"] = event["ts"] + 2 * rank, event["dur"] - 2 * rank
            event["name"] = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
            event["args"] = {
                **event["args"],
                "Collective name": "allreduce",
                "In msg nelems": 4096,
                "Group size": 2,
            }
        about = {"distributedInfo": {"rank": rank, "world_size": 2, "backend": "nccl"}}
        (folder / "traces").mkdir(exist_ok=True)
        write(folder / "traces" / f"rank{rank}.json", events, **about)
    moe = "moe_experts bf16 hidden=2048 inter=768 experts=128 topk=8"
    rows = [f"{moe} tokens={2**n}" for n in range(0, 13, 2)] + [
        f"o_proj bf16 m={n} n=2048 k=2048" for n in (16, 4096)
    ]
    routings = ["power_law:1.2", "balanced"] * 3 + ["uniform", None, None]
    write_parquet(pa.table({"op": rows, "routing": routings}), folder / "ops.parquet", {})
    for words in (
        ["parse", folder / "traces", "--hw", "h100-sxm", "--jobs", "1", "-o", folder / "out"],
        ["cost", folder / "ops.parquet", "--hw", "h100-sxm", "-o", folder / "costs.parquet",
         "--routing-cache", folder / "routing.parquet"],
        ["simulate", "--model", "olmoe-1b-7b", "--hw", "h100-sxm", "--batch", "1,4,16", "--n-a", "8,65",
         "--input-len", "64", "--output-len", "8",
         "--grid", folder / "grid"],
    ):  # fmt: skip
        assert command([str(word) for word in words]) == 0, words
    some = table_of(list(islice(entries(shipped()[::12]), 40)))
    write_parquet(some, folder / "ledger.parquet", table_facts("ledger", LEDGER_VERSION))
    return folder


def read(folder: Path, table: str) -> pa.Table:
    return pq.read_table(folder / FILES[table])


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_that_the_schema_says(table: str, made: Path) -> None:
    found = read(made, table)
    said = {c["name"]: c for c in schema_facts(TABLES, table)["tables"][table]["columns"]}
    more = {"scenarios": {"batch", "n_a", "input_len", "output_len"}, "cost": {"op", "routing"}}.get(
        table, set()
    )
    optional = {"anchor", "problem"} if table == "cost" else set()
    assert set(found.column_names) - more == set(said) - optional
    for name, column in said.items():
        if name not in found.column_names:
            continue
        kind = found.schema.field(name).type
        text = pa.types.is_dictionary(kind) or pa.types.is_string(kind)
        assert (column["type"] == "text") if text else (column["type"] == str(kind)), name
        assert not found.column(name).null_count or column["null"], name
    assert {c["unit"] for c in said.values() if c["name"].endswith("_ns")} <= {"ns"}


@pytest.mark.parametrize("table", TABLES)
def test_the_file_says_its_table_and_version(table: str, made: Path) -> None:
    said = schema_facts(TABLES, table)["tables"][table]
    stamp = read(made, table).schema.metadata
    assert stamp[b"moetrace.table"] == table.encode()
    assert (int(stamp[b"moetrace.version"]), int(stamp[b"moetrace.minor"])) == (
        said["version"],
        said["minor"],
    )


def answers(table: str) -> dict[str, list[tuple[object, float]]]:
    """What each of the example queries answers, in the folder that is current."""
    import duckdb

    found: dict[str, list[tuple[object, float]]] = {"duckdb": duckdb.sql(QUERIES[table]["duckdb"]).fetchall()}
    for name in ("pandas", "polars"):
        names: dict[str, Any] = {}
        exec(QUERIES[table][name], names)
        answer = names["answer"]
        found[name] = list(answer.items()) if name == "pandas" else answer.rows()
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_queries_run_and_give_the_same_answer(
    table: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    assert all(query in schema_page(schema_facts(TABLES)) for query in QUERIES[table].values())
    found = answers(table)
    assert len(capsys.readouterr().out.splitlines()) > 4
    assert len(found["pandas"]) > 1
    for rows in found.values():
        assert dict(rows) == pytest.approx(dict(found["pandas"]))
        assert [value for _, value in rows] == pytest.approx(sorted((v for _, v in rows), reverse=True))


@pytest.mark.parametrize("table", TABLES)
def test_a_newer_minor_versions_file_answers_the_same_queries(
    table: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a column more, which nobody here knows; who reads the table himself reads it too."""
    monkeypatch.chdir(made)
    before = answers(table)
    shutil.copytree(made, tmp_path / "newer")
    place = tmp_path / "newer" / FILES[table]
    for file in [place] if place.is_file() else sorted(place.iterdir()):
        whole = pq.read_table(file)
        newer = whole.append_column("power_w", pa.nulls(whole.num_rows, pa.float64()))
        stamp = {**whole.schema.metadata, b"moetrace.minor": b"7"}
        pq.write_table(newer.replace_schema_metadata(stamp), file)
    monkeypatch.chdir(tmp_path / "newer")
    for tool, rows in answers(table).items():
        assert dict(rows) == dict(before[tool])
    if table in ("ops", "routing"):
        newer_run, old = Run.load("run"), Run.load(made / "run")
        assert (
            newer_run.num_rows == old.num_rows and newer_run.routing is not None and old.routing is not None
        )
        assert newer_run.routing.equals(old.routing)
    if table == "loads":
        assert read_loads(Path("routing.parquet")) == pq.read_table(made / "routing.parquet").num_rows


def test_the_schema_verb_says_what_the_page_says(call: Callable[..., Answer]) -> None:
    assert tuple(NAMES) == tuple(TABLES)
    facts = json.loads(call("schema", "--json").out)
    assert facts["schema"] == "moetrace.schema/1" and list(facts["tables"]) == list(TABLES)
    text = call("schema").out
    for table in facts["tables"].values():
        assert all(column["name"] in text for column in table["columns"])
    assert "import polars" in call("schema", "routing").out
    assert call("schema", "rooting").status == 2
