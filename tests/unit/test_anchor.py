"""The error of an anchored prediction: what a ratio of two of the law's answers is taken to lose, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.cost import PriceContext
from moetrace.cost.anchors import RATIO_ERROR
from moetrace.hardware import Hardware, combined_error, load_hardware
from moetrace.op import Costs, Op
from moetrace.replay import Scenario, replay
from moetrace.replay.anchor import ONE_CHIP_MOST, _ratio_error, price_ops
from moetrace.run import Run
from tests.unit.replay_runs import decode_run

H100, NODE, H200, B200, A100, MI300X = (
    load_hardware(n) for n in ("h100-sxm", "h100-sxm-x8", "h200-sxm", "b200", "a100-sxm", "mi300x")
)
FITTED, GIVEN = "fitted dense_gemm", "transferred from h100-sxm dense_gemm"
error = st.floats(0, 20)


def costs(hw: Hardware, *errors: float, says: str = FITTED) -> Costs:
    """Costs of which only the errors and their provenance count."""
    any_s = np.ones(len(errors))
    said, whose = f"{hw.name} {says}", np.zeros(len(errors), dtype=np.int64)
    return Costs(any_s, any_s, any_s, any_s, any_s, any_s, np.array(errors, dtype=np.float64), (said,), whose)


def one(
    here: Hardware,
    there: Hardware,
    at_source: float,
    at_target: float,
    *says: str,
    carried: tuple[float, float] = (0.0, 0.0),
    edited: bool = False,
) -> float:
    """The error of one op measured on `here` and predicted on `there`; what their coefficients err by for being another's."""
    recorded, target = (
        costs(hw, e, says=words)
        for hw, e, words in zip((here, there), (at_source, at_target), says or (FITTED, FITTED), strict=True)
    )
    both = np.log1p(np.array(carried))
    return float(_ratio_error(target, recorded, here, there, (both[:1], both[1:]), np.array([edited]))[0])


# -- the rule ------------------------------------------------------------------------------------------------------
def test_the_figures_are_those_that_the_docs_state() -> None:
    assert (RATIO_ERROR, ONE_CHIP_MOST) == (0.5, 0.4)


@given(error, error)
def test_on_one_chip_both_answers_err_and_what_is_wrong_with_the_chip_cancels(
    at_source: float, at_target: float
) -> None:
    both = np.hypot(np.log1p(at_source), np.log1p(at_target))
    expected = np.expm1(min(both, ONE_CHIP_MOST))
    assert one(H100, H100, at_source, at_target) == pytest.approx(expected)
    assert one(H100, NODE, at_source, at_target) == one(NODE, H100, at_source, at_target)
    assert one(H100, NODE, at_source, at_target) == pytest.approx(expected)


@given(error, st.floats(0, 2))
def test_between_a_profile_and_its_donor_only_the_transfer_errs(donor: float, widen: float) -> None:
    wide, close = combined_error(donor, widen), {"rel": 1e-6, "abs": 1e-9}
    assert one(H100, H200, donor, wide, FITTED, GIVEN, carried=(0, widen)) == pytest.approx(widen, **close)
    assert one(H200, H100, wide, donor, GIVEN, FITTED, carried=(widen, 0)) == pytest.approx(widen, **close)
    assert one(NODE, H200, donor, wide, FITTED, GIVEN, carried=(0, widen)) == pytest.approx(widen, **close)


@given(error, error, st.floats(0, 2))
def test_an_edit_errs_no_less_on_another_chip_than_on_the_same(a: float, b: float, widen: float) -> None:
    """Whatever the law's errors at the two sizes: that the widened one may equal the other says nothing of the ratio."""
    wide, close = combined_error(b, widen), {"rel": 1e-6, "abs": 1e-6}
    found = one(H100, H200, a, wide, FITTED, GIVEN, carried=(0, widen), edited=True)
    assert found == pytest.approx(combined_error(one(H100, H100, a, b), widen), **close)
    back = one(H200, H100, wide, a, GIVEN, FITTED, carried=(widen, 0), edited=True)
    assert back == pytest.approx(found, **close)


@given(error, error, st.floats(0, 2))
def test_on_a_chip_of_anothers_coefficients_an_edit_errs_as_its_answers_do(
    a: float, b: float, widen: float
) -> None:
    """What is wrong with the chip does not cancel there (benchmarks/score_ratios.py)."""
    wide = combined_error(a, widen), combined_error(b, widen)
    expected = min(combined_error(*wide), np.expm1(ONE_CHIP_MOST))
    found = one(H200, H200, *wide, GIVEN, GIVEN, carried=(widen, widen), edited=True)
    assert found == pytest.approx(expected, rel=1e-6)


@given(error, error)
def test_between_any_other_two_half_of_both_errs(at_source: float, at_target: float) -> None:
    far = (1 + at_source / 2) * (1 + at_target / 2) - 1
    assert one(H100, A100, at_source, at_target) == pytest.approx(far)
    assert one(A100, H100, at_target, at_source) == pytest.approx(far)
    # Two profiles with the same donor are not each other's donor.
    assert one(H200, MI300X, at_source, at_target, GIVEN, GIVEN) == pytest.approx(far)


@given(error, error)
def test_it_is_never_better_than_exact_and_never_worse_than_both_errors(a: float, b: float) -> None:
    for here, there in ((H100, H100), (H100, A100)):
        assert 0 <= one(here, there, a, b) <= (a + b + a * b) * (1 + 1e-9)


def test_each_op_is_judged_by_its_own_provenance() -> None:
    """A family whose coefficients a transferred profile states itself is not taken to share its donor's error."""
    recorded, target = costs(H100, 0.2, 0.2), costs(H200, 0.5, 0.5)
    target = replace(target, words=(f"h200-sxm {GIVEN}", "h200-sxm assumed norm"), word=np.arange(2))
    carried = np.zeros(2), np.log([1.25, 1.25])
    near, far = _ratio_error(target, recorded, H100, H200, carried, np.zeros(2, dtype=bool))
    assert near == pytest.approx(0.25)
    assert far == pytest.approx(1.1 * 1.25 - 1)


def test_a_measurement_is_no_help_where_another_kernel_runs() -> None:
    """Nor is it then worse than the law alone; between two chips of the same other kernels it is as good as ever."""
    foreign = "transferred from h100-sxm (its kernels do not carry over) mla_attention"
    assert one(H100, B200, 0.1, 7.25, "fitted mla_attention", foreign) == 7.25
    assert one(B200, H100, 7.25, 0.1, foreign, "fitted mla_attention") == 7.25
    gb200, own = load_hardware("gb200"), foreign.replace("h100-sxm", "b200")
    assert one(
        B200, gb200, 1.0, 1.1, foreign, own, carried=(6.3, combined_error(6.3, 0.05))
    ) == pytest.approx(0.05)


def test_an_unknown_error_stays_unknown() -> None:
    assert np.isnan(one(H100, H100, 0.1, float("nan")))
    assert np.isnan(one(H100, A100, 0.1, float("nan")))


# -- as a prediction states it -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run() -> Run:
    return decode_run()


def errors(run: Run, hw: Hardware, *sets: str) -> dict[str, float]:
    """The error of a prediction by kind of op."""
    return {kind: e for kind, (_, e) in predicted(run, hw, *sets).items()}


def predicted(run: Run, hw: Hardware, *sets: str) -> dict[str, tuple[Op, float]]:
    """(op, its error) of a prediction by kind of op."""
    frame = replay(run, hw, Scenario.of(*sets)).run.to_pandas(["kind", "op", "error"])
    rows = zip(frame["kind"], frame["op"], frame["error"], strict=True)
    return {str(kind): (Op.parse(str(op)), float(e)) for kind, op, e in rows}


def law_error(op: Op, hw: Hardware) -> float:
    """The law's own error for an op."""
    return float(price_ops([op], hw, PriceContext()).error[0])


def test_an_edit_on_the_same_chip_errs_by_both_answers_and_only_where_it_edits(run: Run) -> None:
    op, error = predicted(run, H100, "n_a=4")["moe_gate_up"]
    texts = run.to_pandas(["kind", "op"])  # of the last, as `predicted` gives it
    recorded = Op.parse(str(texts[texts["kind"] == "moe_gate_up"]["op"].iloc[-1]))
    both = (np.log1p(law_error(one, H100)) for one in (op, recorded))
    assert error == pytest.approx(np.expm1(np.hypot(*both)))
    found = errors(run, H100, "n_a=4")
    assert found["o_proj"] == found["lm_head"] == found["attention"] == 0.0


def test_from_an_h100_to_an_h200_only_the_transfer_errs(run: Run) -> None:
    given = H200.families["experts"]
    assert given.provenance == "transferred from h100-sxm" and given.carried == pytest.approx(0.1)
    found = errors(run, H200)
    for kind in ("moe_gate_up", "qkv_proj"):
        assert found[kind] == pytest.approx(given.carried)


def test_from_an_h100_to_an_h200_an_edited_op_errs_by_the_edit_too(run: Run) -> None:
    moved, here, both = errors(run, H200), errors(run, H100, "batch=64"), errors(run, H200, "batch=64")
    for kind in ("moe_gate_up", "moe_combine", "topk", "qkv_proj"):
        assert both[kind] > max(moved[kind], here[kind] * 0.8) > 0


def test_from_an_h100_to_an_a100_both_profiles_err(run: Run) -> None:
    found = predicted(run, A100)
    for kind in ("moe_gate_up", "o_proj"):
        op, error = found[kind]
        here, there = law_error(op, H100), law_error(op, A100)
        assert error == pytest.approx((1 + here / 2) * (1 + there / 2) - 1)
