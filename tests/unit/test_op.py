"""Op, Work, Cost and their columns: the text form, element sizes, and columns that agree with the values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import MoetraceError
from moetrace.op import BOUNDS, UNKNOWN, Cost, Costs, Op, OpColumns, Work, Works, dtypes, element_bytes

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
WHOLE = st.integers(-(10**15), 10**15)
ESTIMATE = st.floats(-1e6, 1e6).map(lambda value: round(value, 4))  # what the text form keeps
DTYPE = st.sampled_from(dtypes())
OPS = st.builds(
    lambda kind, weight, act, dims: Op(
        kind, weight if act is None else f"{weight}/{act}", tuple(dims.items())
    ),
    NAMES,
    DTYPE,
    st.none() | DTYPE,
    st.dictionaries(NAMES, WHOLE | ESTIMATE, max_size=6),
)
SIZES = st.floats(0, 1e15)
WORKS = st.builds(Work, **{f.name: SIZES for f in fields(Work) if f.name != "known"}, known=st.booleans())


@given(OPS)
def test_text_parses_back_to_an_equal_op(op: Op) -> None:
    text = str(op)
    again = Op.parse(text)
    assert again == op and hash(again) == hash(op)
    assert str(again) == text and "\n" not in text and not text.endswith(" ")


def test_the_text_form() -> None:
    op = Op.of("moe_down", "mxfp4/bf16", tokens=32, hidden=3072, inter=3072, distinct_est=31.55)
    assert str(op) == "moe_down mxfp4/bf16 tokens=32 hidden=3072 inter=3072 distinct_est=31.55"
    assert str(Op("other")) == "other bf16" and Op.parse("other bf16") == Op("other")
    assert str(Op.of("x", a=2.0, b=-3, c=0.5)) == "x bf16 a=2 b=-3 c=0.5"


@pytest.mark.parametrize("value", [31.99999, 1e-5, -1e-5])
def test_an_estimate_that_rounds_to_a_whole_number_still_parses(value: float) -> None:
    op = Op.parse(str(Op.of("moe_down", distinct_est=value)))
    assert op["distinct_est"] == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks a kind or a dtype"),
        ("norm", "lacks a kind or a dtype"),
        ("norm bf16 tokens", "'tokens' is not name=number"),
        ("norm bf16 tokens=16 width=wide", "'width=wide' is not name=number"),
        ("norm bf16 Tokens=16", "'Tokens=16' is not name=number"),
        ("norm bf16 tokens=1e5", "is not name=number"),
        ("norm bf16 tokens=nan", "is not name=number"),
    ],
)
def test_text_that_is_no_op_is_refused_with_its_part(text: str, words: str) -> None:
    with pytest.raises(MoetraceError, match=words) as caught:
        Op.parse(text)
    assert "\n" not in str(caught.value)


@given(OPS, st.dictionaries(NAMES, WHOLE | st.none(), max_size=4))
def test_with_dims_sets_and_drops(op: Op, edits: dict[str, int | None]) -> None:
    before, edited = dict(op.dims), op.with_dims(**edits)
    assert (edited.kind, edited.dtype) == (op.kind, op.dtype)
    assert dict(edited.dims) == {k: v for k, v in {**before, **edits}.items() if v is not None}
    assert op.dims == tuple(before.items())  # the op itself is as it was
    kept = [name for name in before if edits.get(name, 0) is not None]
    assert [name for name, _ in edited.dims][: len(kept)] == kept


def test_dims_are_asked_by_name() -> None:
    op = Op.of("router", m=16, n=64, k=0)
    assert op["k"] == 0 and op.get("k") == 0 and op.get("window") is None and op.get("window", 7) == 7
    assert op.has("m", "n", "k") and op.has() and not op.has("m", "b")
    with pytest.raises(MoetraceError, match="'router bf16 m=16 n=64 k=0' has no dim 'b'"):
        op["b"]
    with pytest.raises(FrozenInstanceError):
        op.kind = "gemm"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("dtype", "weight", "act", "compute"),
    [
        ("bf16", "bf16", "bf16", "bf16"),
        ("mxfp4/bf16", "mxfp4", "bf16", "bf16"),
        ("mxfp4/mxfp8", "mxfp4", "mxfp8", "fp8"),
        ("fp8_block", "fp8_block", "fp8_block", "fp8"),
        ("nvfp4", "nvfp4", "nvfp4", "fp4"),
    ],
)
def test_the_activations_choose_the_peak(dtype: str, weight: str, act: str, compute: str) -> None:
    op = Op("gemm", dtype)
    assert (op.weight_dtype, op.act_dtype, op.compute_dtype) == (weight, act, compute)


def test_element_bytes_with_scales_and_without() -> None:
    # One E8M0 byte per 32 (OCP MX 1.0), one E4M3 byte per 16 (NVFP4), fp32 per 128 x 128 (arXiv 2412.19437).
    assert 32 * element_bytes("mxfp4") == 17 and 32 * element_bytes("mxfp8") == 33
    assert 16 * element_bytes("nvfp4") == 9
    assert 128 * 128 * element_bytes("fp8_block") == 128 * 128 + 4
    assert 128 * element_bytes("int4") == 66
    bare = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int64": 8, "int32": 4}
    for dtype, size in bare.items():
        assert element_bytes(dtype) == element_bytes(dtype, scales=False) == size
    for dtype in dtypes():
        assert element_bytes(dtype, scales=False) <= element_bytes(dtype)
    with pytest.raises(MoetraceError, match="unknown dtype 'fp3': there are fp64"):
        element_bytes("fp3")


@given(st.lists(WORKS, max_size=5))
def test_columns_are_the_properties_of_each_work(rows: list[Work]) -> None:
    ops = [Op.of("x", n=i) for i in range(len(rows))]
    columns = Works.of(ops, rows)
    assert len(columns) == len(rows) and list(columns.ops) == ops
    assert columns.known.tolist() == [w.known for w in rows]
    names = [f.name for f in fields(Work) if f.name != "known"]
    for name in [*names, "bytes", "bytes_min", "kv_bytes", "act_bytes"]:
        found = columns[name]
        assert found.dtype == np.float64 and found.shape == (len(rows),)
        assert found == pytest.approx([getattr(w, name) for w in rows], rel=1e-9, abs=1e-3)


def test_a_work_adds_up() -> None:
    w = Work(
        flops=120, weight_bytes=10, weight_bytes_min=4, kv_read_bytes=20, kv_write_bytes=1, act_read_bytes=5,
        act_write_bytes=4, net_bytes=1000, resident_bytes=999,
    )  # fmt: skip
    assert (w.bytes, w.kv_bytes, w.act_bytes, w.bytes_min) == (40, 21, 9, 34)
    assert w.intensity == 3
    assert Work(weight_bytes=1e17, act_read_bytes=1).bytes_min == 1  # not lost beside the weights
    assert np.isnan(Work(flops=1).intensity)  # nothing moves
    assert not UNKNOWN.known and UNKNOWN.bytes == 0 and replace(w, known=False) != w


def test_the_bound_is_the_largest_part() -> None:
    parts = {"compute_s": 1.0, "memory_s": 3.0, "network_s": 2.0, "fixed_s": 0.5}
    rest = {"expected_s": 4.0, "lower_bound_s": 3.0, "error": 0.1, "provenance": "made up"}
    for i, name in enumerate(BOUNDS):
        cost = Cost(**{**parts, f"{name}_s": 9.0}, **rest)  # type: ignore[arg-type]
        assert cost.bound == name
        nan = np.array([np.nan])
        columns = {f.name: np.array([getattr(cost, f.name)]) for f in fields(Cost) if f.name != "provenance"}
        known = Costs(**columns, words=("made up",), word=np.zeros(1, dtype=np.int64))
        assert known.bound.tolist() == [i] and known[0] == cost and len(known) == 1
        unknown = Costs(**dict.fromkeys(columns, nan), words=("",), word=np.zeros(1, dtype=np.int64))
        assert unknown.bound.tolist() == [-1]


@given(st.lists(OPS, max_size=8))
def test_columns_of_ops_give_the_ops_back(ops: list[Op]) -> None:
    columns = OpColumns.of(ops)
    assert len(columns) == len(ops)
    for again, op in zip(columns, ops, strict=True):
        assert (again.kind, again.dtype, dict(again.dims)) == (op.kind, op.dtype, dict(op.dims))


@given(st.lists(OPS, max_size=8))
def test_groups_hold_every_row_once_and_all_that_it_knows(ops: list[Op]) -> None:
    seen: list[int] = []
    for rows, group in OpColumns.of(ops).groups():
        here = np.arange(len(ops))[rows].tolist()
        seen += here
        assert group.size == len(here)
        for place, row in enumerate(here):
            op = ops[row]
            assert (group.kind, group.dtype) == (op.kind, op.dtype)
            assert {name: values[place] for name, values in group.dims.items()} == dict(op.dims)
    assert sorted(seen) == list(range(len(ops)))


def test_a_dim_of_a_group_is_an_array_or_its_default() -> None:
    ((_, group),) = OpColumns.of(
        [Op.of("x", "int4/bf16", a=0, b=2), Op.of("x", "int4/bf16", a=3, b=4)]
    ).groups()
    assert group["a"].tolist() == [0, 3] and np.asarray(group.given("a", 7.0)).tolist() == [7, 3]
    assert group.get("c", 5.0) == 5.0 and group.given("c", 6.0) == 6.0 and group.get("c") is None
    assert group.has("a", "b") and not group.has("a", "c")
    assert (group.weight_dtype, group.act_dtype) == ("int4", "bf16")
    with pytest.raises(MoetraceError, match="ops of kind 'x' have no dim 'c'"):
        group["c"]


def test_columns_by_name_and_by_type() -> None:
    columns = OpColumns.of([Op.of("x", a=1), Op.of("y", b=2), Op.of("x", a=3)])
    assert columns.types == (Op("x"), Op("y"))
    assert columns.by_type([10.0, 20.0]).tolist() == [10, 20, 10]
    assert columns.column("a", 0.0).tolist() == [1, 0, 3]
    assert np.isnan(columns.column("c")).all() and columns.column("c", 4.0).tolist() == [4, 4, 4]
