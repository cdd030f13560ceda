"""cost: a table of ops gets the very costs that single ops have, whatever its form, and bad rows are named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import cost, load, ops
from moetrace.cost import PriceContext, bulk, price
from moetrace.cost.table import read_ops
from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.op import Op, OpColumns
from moetrace.routing import rank_load

H100 = load_hardware("h100-sxm")
WARM = PriceContext(cache="warm")
EXPERT = {"kind": "moe_experts", "dtype": "bf16", "hidden": 2048, "inter": 768, "experts": 128, "topk": 8}
OPS = (
    Op.of("gemm", m=16, n=4096, k=2048),
    Op.of("moe_gate_up", "fp8", tokens=16, hidden=2048, inter=768, experts=128, topk=8, distinct=60),
    Op.of("attention", "fp8/bf16", batch=4, heads=32, kv_heads=4, head_dim=128, kv=8192),
    Op.of("norm", tokens=16, width=2048, residual=1),
    Op.of("all_reduce", bytes=65536, ranks=4),
    Op.of("mla_attention", batch=4, heads=16, kv_lora=512, rope=64, kv=4000),
)


def alone(op: Op) -> list[float]:
    one = price(ops.works([op]), H100, context=WARM)[0]
    return [one.expected_s, one.memory_s, one.compute_s, one.network_s, one.fixed_s, one.lower_bound_s]


def row_of(table: pa.Table, row: int) -> list[float]:
    names = ("time_s", "memory_s", "compute_s", "network_s", "fixed_s", "lower_bound_s")
    return [table.column(name)[row].as_py() for name in names]


def as_dims(some: list[Op]) -> pa.Table:
    names = sorted({name for op in some for name, _ in op.dims})
    return pa.table(
        {
            "kind": [op.kind for op in some],
            "dtype": [op.dtype for op in some],
            **{name: [op.get(name) for op in some] for name in names},
        }
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from(OPS), min_size=1, max_size=12), st.booleans())
def test_each_row_costs_what_its_op_costs_alone(some: list[Op], texts: bool) -> None:
    table = pa.table({"op": [str(op) for op in some]}) if texts else as_dims(some)
    priced = cost(table, "h100-sxm")
    for row, op in enumerate(some):
        assert row_of(priced, row) == pytest.approx(alone(op), rel=1e-12)
        time, low, high = (priced.column(name)[row].as_py() for name in bulk.TIMES)
        assert low < time < high and high * low == pytest.approx(time**2)


def test_what_a_table_says_comes_through_unchanged_and_beside_it_the_cost() -> None:
    table = (
        as_dims(list(OPS[:1]))
        .append_column("latency", pa.array([0.5]))
        .append_column("note", pa.array(["x"]))
    )
    priced = cost(table, H100)
    assert priced.select(table.column_names).equals(table)
    added = [name for name in priced.column_names if name not in table.column_names]
    assert set(added) == set(bulk.MADE) - {"problem", "anchor"}
    assert (
        priced.column("bound")[0].as_py() == "memory" and "h100-sxm" in priced.column("provenance")[0].as_py()
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_kind_of_file_gives_the_same(suffix: str, tmp_path: Path) -> None:
    frame = as_dims(list(OPS)).to_pandas()
    path = tmp_path / f"ops.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert cost(path, H100).column("time_s").equals(cost(frame, H100).column("time_s"))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["uniform", "balanced", "power_law:1.2"]),
    st.sampled_from([1, 4, 40, 300]),
    st.sampled_from([(1, 1), (2, 1), (4, 4), (1, 8)]),
)
def test_routing_and_ranks_of_whole_moe_ops(routing: str, tokens: int, ranks: tuple[int, int]) -> None:
    tp, ep = ranks
    row = {**EXPERT, "tokens": tokens, "moe_tp": tp, "moe_ep": ep, "routing": routing}
    priced = cost(pd.DataFrame([row]), H100)
    load = rank_load([routing], 128, 8, tokens, ep)
    what = "distinct" if routing == "balanced" else "distinct_est"
    local = {"local_experts": 128 // ep} if ep > 1 else {}
    dims = {"hidden": 2048, "inter": 768 / tp, "experts": 128, "topk": 8, "tokens": tokens, **local}
    op = Op.of("moe_experts", **dims, **{what: float(load.distinct[0])}, rows=float(load.rows[0]))
    assert row_of(priced, 0) == pytest.approx(alone(op), rel=1e-12)
    assert priced.column("provenance")[0].as_py().endswith(f", {routing} routing")


def test_a_number_as_routing_is_the_distinct_experts() -> None:
    op = Op.of("moe_experts", tokens=16, hidden=2048, inter=768, experts=128, topk=8, distinct=50)
    for routing in (50, 50.0, "50"):
        priced = cost(pd.DataFrame([{**EXPERT, "tokens": 16, "routing": routing}]), H100)
        assert row_of(priced, 0) == pytest.approx(alone(op), rel=1e-12)
        assert priced.column("provenance")[0].as_py().endswith("counted routing")
    silent = cost(pd.DataFrame([{**EXPERT, "tokens": 16}]), H100)
    assert silent.column("provenance")[0].as_py().endswith("uniform routing")


def test_names_of_public_tables_mean_the_same() -> None:
    public = {
        "op_name": "generation_attention", "attn_dtype": "bfloat16", "kv_cache_dtype": "fp8", "batch_size": 4,
        "num_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "isl": 1, "step": 2047, "window_size": 0.0,
        "latency": 0.1,
    }  # fmt: skip
    assert row_of(cost(pd.DataFrame([public]), H100), 0) == pytest.approx(alone(OPS[2]), rel=1e-12)
    windowed = cost(pd.DataFrame([{**public, "window_size": 128.0}]), H100)
    op = OPS[2].with_dims(kv=4 * 128, window=128)
    assert row_of(windowed, 0) == pytest.approx(alone(op), rel=1e-12)


BAD = [
    ({"kind": "gem"}, "unknown kind 'gem'"),
    ({"dtype": "fp9"}, "unknown dtype 'fp9'"),
    ({"topk": 200}, "topk is above experts"),
    ({"hidden": None}, "moe_experts lacks the dim hidden"),
    ({"hidden": -1}, "hidden is below 1"),
    ({"hidden": 0}, "hidden is below 1"),
    ({"tokens": 1.5}, "tokens is not a whole number"),
    ({"tokens": 1e30}, "tokens is above 2.14748e"),
    ({"tokens": float("inf")}, "tokens is above 2.14748e"),
    ({"tokens": float("nan")}, "moe_experts lacks the dim tokens"),
    ({"moe_tp": 1.5}, "moe_tp is not a whole number"),
    ({"local_experts": 129}, "local_experts is above experts"),
    ({"rows": -2.0}, "rows is negative"),
    ({"rows": 129.0}, "rows are above tokens x topk"),
    ({"tokens": "many"}, "tokens is not a number"),
    ({"moe_ep": 3}, "experts do not divide by moe_ep"),
    ({"moe_tp": 5}, "inter does not divide by moe_tp"),
    ({"moe_tp": 0}, "moe_tp is not a whole number from 1"),
    ({"routing": "zipf"}, "routing 'zipf'"),
    ({"routing": "129"}, "distinct experts that cannot be"),
    ({"routing": "7"}, "distinct experts that cannot be"),  # of all experts each token touches 8
    ({"dtype": None}, "dtype is empty"),
    ({"distinct": 7}, "distinct is a number of experts that cannot be"),
    ({"distinct": 129}, "distinct is a number of experts that cannot be"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_row_is_named_or_marked(change: dict[str, object], words: str) -> None:
    good = {**EXPERT, "tokens": 16, "moe_tp": 1, "moe_ep": 1, "routing": "uniform"}
    frame = pd.DataFrame([good, {**good, **change}, good])
    with pytest.raises(ScenarioError, match=f"^1 bad row.*row 2: .*{words}"):
        cost(frame, H100)
    priced = cost(frame, H100, keep_going=True)
    assert [text is None for text in priced.column("problem").to_pylist()] == [True, False, True]
    assert words in priced.column("problem")[1].as_py()
    times = priced.column("time_s").to_pylist()
    assert (
        times[0] == times[2] == cost(pd.DataFrame([good]), H100).column("time_s")[0].as_py()
        and times[1] is None
    )


@pytest.mark.parametrize(
    ("hw", "asked", "words"),
    [
        ("h100-sxm", {"engine": "vlm"}, "unknown value of engine 'vlm': did you mean 'vllm'"),
        ("h100-sxm", {"cache": "hot"}, "unknown value of cache 'hot'.* cold, warm|warm, cold"),
        ("cpu", {"engine": "vllm"}, "cpu is not a GPU"),
    ],
)
def test_an_engine_or_cache_that_there_is_not_is_refused(hw: str, asked: dict[str, Any], words: str) -> None:
    """A mistaken engine was taken for one that nobody measured, and priced."""
    with pytest.raises(ScenarioError, match=words):
        cost({"op": [str(OPS[0])]}, hw, **asked)
    for engine in ("any", "vllm", "vllm@0.19", "sglang_triton"):
        assert cost({"op": [str(OPS[0])]}, "h100-sxm", engine=engine).num_rows == 1


@pytest.mark.filterwarnings("error")
def test_no_formula_sees_the_numbers_of_a_bad_row() -> None:
    huge = {
        "batch": 1e308,
        "heads": 1e308,
        "kv_heads": 8.0,
        "head_dim": 128,
        "kv": 1e300,
        "m": np.inf,
        "n": 64,
        "k": 64,
    }
    found = cost(
        pd.DataFrame([{"kind": kind, "dtype": "bf16", **huge} for kind in ("attention", "gemm", "rope")]),
        H100,
        keep_going=True,
    )
    assert found.column("time_s").null_count == 3


def test_an_op_text_that_cannot_be_read_is_a_bad_row() -> None:
    table = pa.table({"op": [str(OPS[0]), "gemm bf16 m=wide", None, "gemm bf16 m=1"]})
    problems = cost(table, H100, keep_going=True).column("problem").to_pylist()
    assert problems[0] is None and "m=wide" in problems[1] and problems[2] == "op is empty"
    assert "lacks the dim n" in problems[3]


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("gemm bf16 m=0 n=64 k=64", "m is below 1"),
        ("gemm bf16 m=1.5 n=64 k=64", "m is not a whole number"),
        ("gemm bf16 m=99999999999 n=64 k=64", "m is above 2.14748e"),
        ("gemm bf16 m=1 n=2000000 k=2000000", "its bytes exceed the memory of h100-sxm"),
        ("attention bf16 batch=4 heads=32 kv_heads=5 head_dim=128 kv=8192", "not a multiple of kv_heads"),
        ("attention bf16 batch=4 heads=32 kv_heads=4 head_dim=128 kv=3", "below batch"),
        ("all_reduce bf16 bytes=64", "all_reduce lacks the dim ranks"),
        ("all_reduce bf16 bytes=0 ranks=2", "bytes is below 1"),
        ("all_reduce bf16 bytes=64 ranks=2 eager=2", "eager is neither 0 nor 1"),
        ("moe_module bf16 tokens=3 hidden=64 inter=64 experts=8 topk=2 gated=2", "gated is neither 0 nor 1"),
        ("attention bf16 batch=4 heads=32 kv_heads=4 head_dim=128 kv=8192.5", None),  # a mean context
        ("moe_down bf16 tokens=4 hidden=64 inter=64 experts=8 topk=2 distinct_est=4.6 rows=6.5", None),
        ("attention bf16 batch=4 heads=32 kv_heads=4 head_dim=128 kv=8192 window=0", None),  # as if not given
    ],
)
def test_what_no_tensor_can_be_is_named_and_what_is_an_expectation_may_be_a_fraction(
    op: str, words: str | None
) -> None:
    problem = cost({"op": [op]}, H100, keep_going=True).column("problem")[0].as_py()
    assert problem is None if words is None else words in problem


def test_a_bad_dim_is_named_as_the_table_names_its_column() -> None:
    row = {"op_name": "moe", "moe_dtype": "fp8", "num_tokens": 0, "hidden_size": 64, "inter_size": 64}
    frame = pd.DataFrame([{**row, "num_experts": 8, "topk": 2}])
    with pytest.raises(ScenarioError, match="row 1: num_tokens is below 1"):
        cost(frame, H100)


def test_what_a_law_reads_beside_the_work_is_a_column_too() -> None:
    rows = {"kind": ["all_reduce"] * 2, "dtype": ["bf16"] * 2, "bytes": [1024] * 2, "ranks": [2] * 2}
    graph, eager = cost({**rows, "eager": [0, 1]}, H100, engine="vllm").column("time_s").to_pylist()
    text = cost({"op": ["all_reduce bf16 bytes=1024 ranks=2 eager=1"]}, H100, engine="vllm")
    assert eager > 2 * graph and text.column("time_s")[0].as_py() == eager


def test_rows_of_two_types_with_one_fault_are_a_table_that_pandas_takes() -> None:
    table = {"kind": ["gemm", "gemm"], "dtype": ["bf16", "fp8"], "m": [1, 1], "n": [64, 64]}
    found = cost(table, H100, keep_going=True).to_pandas()
    assert found["problem"].tolist() == ["gemm lacks the dim k"] * 2


def test_an_op_that_the_machine_cannot_price_says_why() -> None:
    table = pa.table({"op": ["all_reduce bf16 bytes=1024 ranks=2"]})
    with pytest.raises(ScenarioError, match=r"row 1: .*has no link"):
        cost(table, "cpu")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"kind": ["gemm"]}, "expected kind, dtype and the dims"),
        ({"op": ["gemm bf16 m=1 n=2 k=3"], "time_s": [1.0]}, "column time_s already"),
        ({"kind": ["gemm"], "gemm_dtype": ["bf16"], "attn_dtype": ["bf16"]}, "both say dtype"),
    ],
)
def test_a_table_that_cannot_be_priced_at_all(columns: dict[str, list[object]], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        cost(columns, H100)


def test_things_that_are_no_table(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="an int is not a table"):
        cost(3, H100)  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match=r"is a RUN and no table: its ops are in .*ops\.parquet"):
        load(shipped).save(tmp_path / "run")
        cost(tmp_path / "run", H100)
    with pytest.raises(ScenarioError, match="ends in"):
        cost("ops.xlsx", H100)


def test_the_table_of_a_run_is_priced_beside_what_it_says_of_its_own_times(shipped: Path) -> None:
    table = load(shipped).table()
    priced = cost(table, H100, keep_going=True)
    names = [f"run_{name}" if name in ("error", "provenance") else name for name in table.column_names]
    assert priced.column_names[: len(names)] == names
    assert priced.column("run_provenance").equals(table.column("provenance"))
    assert not priced.column("provenance").equals(table.column("provenance"))


def test_every_op_of_a_run_is_taken_as_it_is_written(shipped: Path) -> None:
    """Also those that read operands of unlike sizes; what the recording does not say stays a bad row."""
    run = load(shipped)
    table = pa.table({"op": sorted({str(op) for op in run.distinct_ops[1]})})
    priced = cost(table, H100, keep_going=True)
    problems = {p for p in priced.column("problem").to_pylist() if p}
    assert problems <= {"elementwise lacks the dim elements"}
    assert any("reads=1.0" in text for text in table.column("op").to_pylist())


def test_a_column_that_is_there_twice_is_refused_in_every_form(tmp_path: Path) -> None:
    names, row = ["kind", "dtype", "tokens", "tokens", "width"], ["norm", "bf16", 4, 5, 64]
    (tmp_path / "ops.csv").write_text(",".join(names) + "\n" + ",".join(map(str, row)) + "\n")
    table = pa.Table.from_arrays([pa.array([value]) for value in row], names=names)
    for form in (tmp_path / "ops.csv", table):
        with pytest.raises(ScenarioError, match="several columns tokens"):
            cost(form, H100)
    with pytest.raises(ScenarioError, match=r"Duplicate column names found: .*tokens"):
        cost(pd.DataFrame([row], columns=names), H100)


def test_a_wafer_prices_the_ops_of_a_model_that_shares_its_cores() -> None:
    table = {
        "op": [
            "qkv_proj bf16 m=1 n=5120 k=2048",
            "moe_experts bf16 tokens=1 hidden=2048 inter=768 experts=128 topk=8",
        ]
    }
    with pytest.raises(ScenarioError, match="follows from the model: name it"):
        cost(table, "cs3")
    with pytest.raises(ScenarioError, match="h100-sxm is none"):
        cost(table, H100, model="qwen3-30b-a3b")
    spread, own = (
        cost(table, "cs3", model="qwen3-30b-a3b", placement=where).to_pandas() for where in ("spread", "own")
    )
    assert (spread.time_s > spread.lower_bound_s).all() and spread.provenance.str.contains(
        "2 wafers, spread"
    ).all()
    assert own.time_s[1] > spread.time_s[1]


@pytest.mark.parametrize(
    ("name", "text"), [("a.parquet", "no"), ("a.csv", ""), ("a.jsonl", "{"), ("none.csv", None)]
)
def test_files_that_cannot_be_read(name: str, text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ScenarioError, match=name):
        cost(tmp_path / name, H100)


def test_no_rows_are_no_error() -> None:
    empty = as_dims(list(OPS[:1])).slice(0, 0)
    priced = cost(empty, H100)
    assert priced.num_rows == 0 and set(bulk.TIMES) <= set(priced.column_names)


def test_batches_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = as_dims([OPS[i % len(OPS)] for i in range(50)])
    whole = cost(table, H100)
    monkeypatch.setattr(bulk, "_CHUNK", 7)
    monkeypatch.setattr(sys.modules["moetrace.cost.reading"], "BATCH", 11)
    assert cost(table, H100).to_pydict() == whole.to_pydict()
    pq.write_table(table, tmp_path / "in.parquet")
    how = bulk.Pricing(H100, WARM)
    tally = bulk.cost_file(tmp_path / "in.parquet", tmp_path / "out.parquet", how, lambda share: None)
    assert (tally.rows, tally.bad) == (50, 0)
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == whole.to_pydict()


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"op": ["gemm bf16 m=1"]}), tmp_path / "in.parquet")
    with pytest.raises(ScenarioError, match="lacks the dim n"):
        bulk.cost_file(
            tmp_path / "in.parquet", tmp_path / "out.parquet", bulk.Pricing(H100, WARM), lambda share: None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize("kind", sorted(ops.KINDS))
def test_the_dims_of_a_kind_are_those_its_formula_reads(kind: str) -> None:
    read = ops.dims_read(kind)
    assert set(ops.KINDS[kind].needs) <= read
    columns = OpColumns.of([Op.of(kind, **dict.fromkeys(sorted(read), 1))])
    assert ops.works(columns).known.all() and np.isfinite(ops.works(columns)["bytes"]).all()


def test_a_power_law_is_dealt_as_the_engines_own_tables_deal_it() -> None:
    row = {**EXPERT, "kind": "moe_module", "tokens": 1, "moe_ep": 8, "routing": "power_law:1.2"}
    one = pa.Table.from_pylist([row])
    first = rank_load(["power_law:1.2"], 128, 8, 1, 8, ties="first").distinct[0]
    spread = rank_load(["power_law:1.2"], 128, 8, 1, 8, ties="spread").distinct[0]
    assert first > spread
    touched = {
        engine: read_ops(one, engine).ops.column("distinct_est")[0] for engine in ("trtllm", "vllm", "any")
    }
    assert touched == {"trtllm": first, "vllm": spread, "any": spread}
