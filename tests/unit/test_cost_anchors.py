"""Costs relative to measured points: which anchor serves an op, and how its measurement carries over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import cost
from moetrace.cost.anchors import anchored_s
from moetrace.errors import ScenarioError

EXPERT = {"kind": "moe_experts", "dtype": "bf16", "hidden": 2048, "inter": 768, "experts": 128, "topk": 8}
TIMES = st.floats(1e-6, 1e-2)
SHARE = st.floats(0, 1)


def told(measured: float, anchor: float, floor: float, law: float) -> float:
    return float(anchored_s(*(np.array([value]) for value in (measured, anchor, floor, law)))[0])


def frame(tokens: list[int], **more: object) -> pd.DataFrame:
    return pd.DataFrame([{**EXPERT, "tokens": n, "routing": "uniform", **more} for n in tokens])


@given(TIMES, TIMES, SHARE)
def test_an_anchors_own_op_is_as_measured(measured: float, law: float, floor: float) -> None:
    assert told(measured, law, floor, law) == pytest.approx(measured)


@given(TIMES, st.floats(0.5, 2), st.floats(1, 1.05))
def test_work_is_multiplied_and_a_floor_added(anchor: float, ratio: float, more: float) -> None:
    """Near an anchor, before what it says wears off."""
    measured, law = anchor * ratio, anchor * more
    worn = (more - 1) * abs(ratio - 1) / 2 + 1e-9  # of the first order in both
    assert told(measured, anchor, 0.0, law) == pytest.approx(measured * more, rel=2 * worn)
    assert told(measured, anchor, 1.0, law) == pytest.approx(
        measured + law - anchor, rel=2 * worn + 0.01 * (more - 1)
    )


@given(TIMES, st.floats(0.3, 3), st.floats(20, 50))
def test_far_from_its_anchor_an_op_is_told_by_the_law(anchor: float, ratio: float, far: float) -> None:
    near = abs(np.log(told(anchor * ratio, anchor, 0.0, anchor * 1.5) / (anchor * 1.5)))
    away = abs(np.log(told(anchor * ratio, anchor, 0.0, anchor * far) / (anchor * far)))
    assert away <= near + 1e-12 and away < 0.7 * abs(np.log(ratio)) + 1e-12


@given(TIMES, TIMES, TIMES, st.floats(0, 0.99))
def test_one_goes_over_smoothly_into_the_other(
    measured: float, anchor: float, law: float, floor: float
) -> None:
    ends = sorted(told(measured, anchor, share, law) for share in (0.0, 1.0))
    value, near = (told(measured, anchor, share, law) for share in (floor, floor + 1e-7))
    assert ends[0] * (1 - 1e-9) <= value <= max(ends[1], value if floor < 1 else 0)
    assert near == pytest.approx(value, rel=1e-3)
    assert value > 0


@given(TIMES, TIMES, TIMES, SHARE, st.floats(1, 3))
def test_more_by_the_law_is_never_less(
    measured: float, anchor: float, law: float, floor: float, more: float
) -> None:
    assert told(measured, anchor, floor, law * more) >= told(measured, anchor, floor, law) * (1 - 1e-12)


def test_an_op_of_prompts_is_told_by_an_anchor_of_its_size() -> None:
    op = "qkv_proj bf16 m=64 n=512 k=128 b=128"
    anchors = pd.DataFrame({"op": [op], "seconds": [1e-4]})
    found = cost(pd.DataFrame({"op": [f"{op} prompt=1"]}), "h100-sxm", anchor=anchors).to_pandas()
    assert found.time_s[0] == pytest.approx(1e-4)


def test_a_table_is_told_relative_to_its_nearest_anchors() -> None:
    plain = cost(frame([1, 16, 64]), "h100-sxm").to_pandas()
    anchors = frame([1, 64]).assign(seconds=[plain.time_s[0] * 1.3, plain.time_s[2] * 0.9])
    found = cost(frame([1, 2, 64, 128]), "h100-sxm", anchor=anchors).to_pandas()
    assert found.anchor.tolist() == [1, 1, 2, 2]
    assert found.time_s[[0, 2]].tolist() == pytest.approx(anchors.seconds.tolist())
    far = cost(frame([128]), "h100-sxm").to_pandas()
    assert 0.85 < found.time_s[3] / far.time_s[0] < 1.0
    assert all(text.endswith(", from an anchor") for text in found.provenance)


def test_only_ops_of_the_same_shape_are_served_best_of_the_same_routing() -> None:
    rows = pd.concat([frame([16]), frame([16], inter=1536), frame([16], routing="balanced")])
    anchors = pd.concat([frame([32], routing="balanced"), frame([32])]).assign(latency=[0.3, 0.2])
    found = cost(rows, "h100-sxm", anchor=anchors).to_pandas()
    assert found.anchor.tolist()[0] == 2 and np.isnan(found.anchor[1]) and found.anchor[2] == 1
    assert found.time_s[1] == cost(frame([16], inter=1536), "h100-sxm").to_pandas().time_s[0]


def test_a_measurement_on_another_chip_carries_over_with_both_errors() -> None:
    here = frame([16]).assign(seconds=3e-4)
    same, other = (
        cost(frame([16]), machine, anchor=here.assign(hardware="h100-sxm")).to_pandas()
        for machine in ("h100-sxm-x4", "h200-sxm")
    )
    assert same.time_s[0] == pytest.approx(3e-4) and 1.8e-4 < other.time_s[0] < 2.7e-4
    assert other.high_s[0] / other.time_s[0] >= same.high_s[0] / same.time_s[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seconds": -1.0}, "row 1: its time is -1 s"),
        ({"seconds": 1.0, "topk": 500}, "row 1: topk is above experts"),
        ({}, "expected a column seconds"),
    ],
)
def test_anchors_that_cannot_be_are_one_line(change: dict[str, float], words: str, tmp_path: Path) -> None:
    path = tmp_path / "anchors.csv"
    frame([16]).assign(**change).to_csv(path, index=False)
    with pytest.raises(ScenarioError, match=words):
        cost(frame([16]), "h100-sxm", anchor=path)


def test_a_time_stands_in_one_column() -> None:
    table = frame([1, 16]).assign(seconds=1e-4, latency=0.2)
    with pytest.raises(ScenarioError, match="anchors: columns seconds and latency both say the time"):
        cost(table, "h100-sxm", anchor=table)
    with pytest.raises(ScenarioError, match="anchors: expected a column seconds"):
        cost(table, "h100-sxm", anchor=frame([1]))
    found = [
        cost(frame([4]), "h100-sxm", anchor=frame([1, 16]).assign(**{name: [scale * 1e-4, scale * 2e-4]}))
        for name, scale in (("seconds", 1.0), ("latency", 1e3), ("latency_ms", 1e3), ("latency_us", 1e6))
    ]
    assert len({round(one["time_s"][0].as_py(), 12) for one in found}) == 1


@pytest.mark.parametrize(
    ("scale", "refused"), [(50.0, False), (1 / 50, False), (1e3, True), (1e6, True), (1e-3, True)]
)
def test_times_in_another_unit_are_no_anchors(scale: float, refused: bool) -> None:
    """Units are a thousand apart."""
    measured = cost(frame([1, 16, 256]), "h100-sxm").to_pandas()
    table = frame([1, 16, 256]).assign(seconds=measured["time_s"] * scale)
    if not refused:
        assert cost(table, "h100-sxm", anchor=table).num_rows == 3
        return
    with pytest.raises(
        ScenarioError,
        match=r"anchors: times are .* x what the law expects .*their unit is another than their column says",
    ):
        cost(table, "h100-sxm", anchor=table)


def test_anchors_times_are_numbers() -> None:
    with pytest.raises(ScenarioError, match=r"anchors: the column seconds is \w*string: expected numbers"):
        cost(frame([1]), "h100-sxm", anchor=frame([1]).assign(seconds="1 ms"))


def test_a_collective_of_one_rank_neither_anchors_nor_is_anchored() -> None:
    """It takes nothing, of which no measurement is a multiple; one beside others would have made them all unknown."""
    sends = pd.DataFrame({"kind": "all_reduce", "dtype": "bf16", "bytes": 65536.0, "ranks": [1.0, 8.0]})
    measured = sends.assign(seconds=[2e-6, 9e-6])
    with pytest.raises(ScenarioError, match="row 1: a rank alone"):
        cost(sends, "h100-sxm", anchor=measured)
    found = cost(sends, "h100-sxm", anchor=measured[1:])["time_s"].to_pylist()
    assert found == pytest.approx([0.0, 9e-6])


def gemms(shapes: list[tuple[int, int]], rows: list[int], dtype: str = "bf16") -> pd.DataFrame:
    made = [{"kind": "gemm", "dtype": dtype, "m": m, "n": n, "k": k} for n, k in shapes for m in rows]
    return pd.DataFrame(made)


def test_ops_of_other_shapes_follow_all_anchors_of_their_kind_together() -> None:
    """A machine 1.3 times as slow as the law says: three shapes tell that of a fourth, one of them alone does not."""
    shapes = [(4096, 2048), (2048, 4096), (8192, 1024), (1024, 8192)]
    here, other = gemms(shapes[:3], [16, 64]), gemms(shapes[3:], [16, 32])
    law = cost(here, "h100-sxm").to_pandas()
    anchors = here.assign(seconds=law.time_s * 1.3)
    plain, told = (cost(other, "h100-sxm", anchor=a).to_pandas() for a in (None, anchors))
    assert told.anchor.isna().all() and told.provenance.str.contains("anchors of its kind").all()
    assert (told.time_s / plain.time_s).tolist() == pytest.approx([1.3 ** (3 / 4)] * 2, rel=1e-6)
    assert (told.high_s / told.time_s > plain.high_s / plain.time_s).all()  # anchors differ from their pool
    few = cost(other, "h100-sxm", anchor=anchors[:4]).to_pandas()
    assert few.time_s.tolist() == plain.time_s.tolist()


def test_a_pool_counts_by_half_in_another_type_or_regime_and_widens_for_the_rest() -> None:
    shapes = [(4096, 2048), (2048, 4096), (8192, 1024)]
    here = gemms(shapes, [16, 64])
    anchors = here.assign(seconds=cost(here, "h100-sxm").to_pandas().time_s * 2)
    same, small, narrow, both = (
        [cost(ops, "h100-sxm", anchor=a).to_pandas() for a in (None, anchors)]
        for ops in (gemms([(1024, 8192)], [m], d) for d in ("bf16", "fp8") for m in (32, 1))
    )
    shift = [float(np.log(told.time_s[0] / plain.time_s[0])) for plain, told in (same, small, narrow, both)]
    whole = np.log(2) * 3 / 4
    assert shift == pytest.approx([whole, whole / 2, whole / 2, whole / 4], rel=1e-6)
    left = [float(np.log(told.high_s[0] / told.time_s[0])) for _, told in (same, small)]
    assert left[1] > left[0] + 0.2  # the half that was not taken


def test_on_a_chip_of_anothers_coefficients_half_of_the_laws_error_cancels() -> None:
    """B200 takes H100's coefficients: anchors that agree leave half of the error, and nothing beside it."""
    here, other = gemms([(4096, 2048), (2048, 4096), (8192, 1024)], [16, 64]), gemms([(1024, 8192)], [16])
    anchors = here.assign(seconds=cost(here, "b200").to_pandas().time_s)
    plain, told = (cost(other, "b200", anchor=a).to_pandas() for a in (None, anchors))
    wide, narrow = (float(np.log(each.high_s[0] / each.time_s[0])) for each in (plain, told))
    assert narrow == pytest.approx(wide / 2)


def test_another_kind_says_nothing() -> None:
    here = gemms([(4096, 2048), (2048, 4096), (8192, 1024)], [16])
    anchors = here.assign(seconds=1e-3)
    plain, told = (cost(frame([16]), "h100-sxm", anchor=a).to_pandas() for a in (None, anchors))
    assert told.time_s.tolist() == plain.time_s.tolist() and told.high_s.tolist() == plain.high_s.tolist()


def test_a_table_without_anchors_is_refused() -> None:
    with pytest.raises(ScenarioError, match="anchors: the table holds no rows"):
        cost(frame([16]), "h100-sxm", anchor=frame([16], seconds=1e-4).head(0))
