"""moetrace cost as a user has it: a file in, a file out, one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Answer

ROWS = (
    "op_name,moe_dtype,num_tokens,hidden_size,inter_size,num_experts,topk,moe_tp_size,moe_ep_size,distribution,latency\n"
    "moe_experts,bfloat16,16,2048,768,128,8,1,4,power_law_1.2,0.11\n"
    "moe_experts,fp8,64,2048,768,128,8,2,1,balanced,0.09\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "ops.csv"
    path.write_text(ROWS)
    return path


def test_a_table_in_public_terms_gets_its_costs(
    table: Path, tmp_path: Path, process: Callable[..., Answer]
) -> None:
    out, kept = tmp_path / "costs.parquet", tmp_path / "loads.parquet"
    done = process("cost", str(table), "--hw", "h100-sxm", "-o", str(out), "--routing-cache", str(kept))
    assert done.status == 0 and "2 ops on h100-sxm in" in done.out and f"written: {out}" in done.out
    priced = pq.read_table(out).to_pylist()
    assert all(row["low_s"] < row["time_s"] < row["high_s"] and row["latency"] for row in priced)
    assert [row["provenance"].rpartition(", ")[2] for row in priced] == [
        "power_law_1.2 routing",
        "balanced routing",
    ]
    again = process(
        "cost",
        str(table),
        "--hw",
        "h100-sxm",
        "-o",
        str(out),
        "--routing-cache",
        str(kept),
        "--force",
        "--json",
    )
    said = json.loads(again.out)
    assert (said["schema"], said["rows"], said["bad_rows"]) == ("moetrace.cost/1", 2, 0)
    assert pq.read_table(out).to_pylist() == priced


def test_bad_rows_stop_it_or_are_marked(table: Path, tmp_path: Path, process: Callable[..., Answer]) -> None:
    table.write_text(ROWS.replace(",128,8,2,1", ",128,800,2,1"))
    out = tmp_path / "costs.parquet"
    done = process("cost", str(table), "--hw", "h100-sxm", "-o", str(out))
    assert done.status == 2 and not out.exists()
    assert "row 2: topk is above experts" in done.err and len(done.err.splitlines()) == 1
    done = process("cost", str(table), "--hw", "h100-sxm", "-o", str(out), "--keep-going")
    assert done.status == 0 and "1 row could not be priced" in done.out
    assert [row["problem"] is None for row in pq.read_table(out).to_pylist()] == [True, False]


def test_measured_points_anchor_the_rest(table: Path, tmp_path: Path, process: Callable[..., Answer]) -> None:
    anchors, out = tmp_path / "anchors.csv", tmp_path / "costs.parquet"
    anchors.write_text("\n".join(ROWS.splitlines()[:2]) + "\n")  # its latency is in ms
    done = process("cost", str(table), "--hw", "h100-sxm", "-o", str(out), "--anchor", str(anchors))
    assert done.status == 0, done.err
    first, second = pq.read_table(out).to_pylist()
    assert first["time_s"] == pytest.approx(0.11e-3) and (first["anchor"], second["anchor"]) == (1, None)
