"""What each cell's ops take on the target: anchored to their measurement where that is fair, else by the law alone.

A measurement anchors only on the same class of device and from a machine with a profile: then the prediction is
``measured x model(target) / model(source)``, or from one token ``measured + model(target) - model(source)``, never below
the target's lower bound. An op that changed in nothing, on the same chip, keeps its measured time to the ns; where its
layer is a copy of a recorded one, with the error of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext, price
from moetrace.cost.anchors import between_chips
from moetrace.errors import ScenarioError
from moetrace.hardware import FOREIGN, Hardware
from moetrace.op import Costs, Op
from moetrace.replay.draft import Draft

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Held = tuple[FloatArray, FloatArray]  # bytes of the model and of one beside it, by cell

# How a cell's duration is found.
SAME, SCALED, ADDED, MODEL, KEPT, UNPRICED = range(6)
WORDS = (
    "measured",
    "measured x model(target)/model(source)",
    "measured + model(target) - model(source)",
    "model",
    "measured, not modelled",
    "not priced",
)
ANCHORED = (SAME, SCALED, ADDED)
COPIED = ", on another layer of its kind"

# On one chip an op told from another size of it is off by both answers' errors, as if these had nothing to do with each other:
# of pairs of sizes measured on an H100 or an A100 and priced with its own coefficients that holds 81 to 84 %, half of one error
# 36 to 47 % (benchmarks/score_ratios.py). What is wrong with a whole chip cancels: priced with the other's coefficients 80 % of
# the pairs are off by 0.16 (GEMMs), 0.23 (experts) and 0.36 (attention), in logarithms, whatever such a profile states of one
# answer. With its errors widened as those of a transferred profile are, this holds 97, 93 and 84 % of them.
ONE_CHIP_MOST = 0.4

_TRANSFERRED = "transferred from"
# An op whose work is not known, kept as measured on another machine of its class: right within a factor of two.
KEPT_ERROR = 1.0

# 37 years. Halves that overlap and pipelines take twice as long at most, and ends are sums of several.
LONGEST_NS = 2.0**60
TOO_LONG = (
    "the times of this load come to more than 36 years, upper ends included, which whole ns of 64 bits do not hold: ask for "
    "fewer or shorter sequences"
)


@dataclass(frozen=True, slots=True)
class Priced:
    """The cells of a draft on the target. Arrays are by cell; `seconds` is the law's answer, nan if there is none."""

    how: IntArray
    factor: FloatArray  # SCALED: times the measured duration
    added_s: FloatArray  # ADDED: plus the measured duration
    floor_s: FloatArray
    seconds: FloatArray
    error: FloatArray
    bound: IntArray
    provenance: tuple[str, ...]

    def durations(self, cell: IntArray, measured_ns: IntArray) -> IntArray:
        """The predicted duration of each row in ns, given its cell and measured duration. Shapes [rows].

        Raises ScenarioError where all of them together, at their longest, are no time that whole ns of 64 bits hold.
        """
        how, measured = self.how[cell], measured_ns.astype(np.float64)
        added = np.maximum(measured + self.added_s[cell] * 1e9, self.floor_s[cell] * 1e9)
        modelled = self.seconds[cell] * 1e9
        choices: list[FloatArray] = [measured, measured * self.factor[cell], added, modelled, measured]
        chosen = np.select([how == i for i in range(len(choices))], choices, default=0.0)
        if float((chosen * (1.0 + np.nan_to_num(self.error[cell]))).sum()) > LONGEST_NS:
            raise ScenarioError(TOO_LONG)
        return np.asarray(np.rint(chosen), dtype=np.int64)


def price_cells(
    draft: Draft,
    source: Hardware | None,
    here: PriceContext,
    there: PriceContext,
    copies: FloatArray,
    held: Held | None = None,
) -> Priced:
    """What every cell takes on the draft's machine. `source` is the machine of the measurement, None if it anchors nothing.

    `here` and `there` are the price contexts of the recorded and of the edited run, `copies` the error of each cell that
    repeats another layer (`copy_error`), `held` what stands for the bytes in `there` where cells are of several models.
    """
    target = price_ops(draft.ops, draft.hw, there, held)
    origins = [origin or op for op, origin in zip(draft.ops, draft.origin, strict=True)]
    recorded = price_ops(origins, source, here) if source is not None else None
    size = len(draft.ops)
    how, factor, added = np.full(size, MODEL), np.ones(size), np.zeros(size)
    unknown = np.isnan(target.expected_s)
    error, copied = np.array(target.error, dtype=np.float64), np.zeros(size, dtype=bool)
    if recorded is None or source is None:
        how[unknown] = UNPRICED
        error[unknown] = np.nan
    else:
        how = _how(draft, source, unknown | np.isnan(recorded.expected_s))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = target.expected_s / recorded.expected_s
        usable = np.isfinite(ratio)
        how = np.where(~usable & np.isin(how, (SCALED, ADDED)), KEPT, how)
        factor = np.where(usable, ratio, 1.0)
        added = np.nan_to_num(target.expected_s - recorded.expected_s)
        carried = _carried(draft.ops, source, draft.hw, there)
        edited = np.array(
            [not _alike(op, origin) for op, origin in zip(draft.ops, origins, strict=True)], dtype=bool
        )
        ratio_error = _ratio_error(target, recorded, source, draft.hw, carried, edited)
        error = np.where(np.isin(how, (SCALED, ADDED)), ratio_error, error)
        kept = 0.0 if source.chip == draft.hw.chip else KEPT_ERROR
        error = np.where(how == KEPT, kept, np.where(how == SAME, 0.0, error))
        other = np.array([at.layer != at.source_layer for at in draft.at])
        copied = other & np.isin(how, (*ANCHORED, KEPT))
        error = np.where(copied, np.expm1(np.hypot(np.log1p(error), np.log1p(copies))), error)
    words = tuple(
        _words(h, copy, text)
        for h, copy, text in zip(how.tolist(), copied.tolist(), target.provenance, strict=True)
    )
    return Priced(
        how, factor, added, np.nan_to_num(target.lower_bound_s), target.expected_s, error, target.bound, words
    )


def _words(how: int, copied: bool, law: str) -> str:
    """The provenance of a cell's duration; `law` says where the law's coefficients come from."""
    word = WORDS[how] + (COPIED if copied else "")
    return word if how in (SAME, KEPT, UNPRICED) else f"{word}: {law}"


def _carried(
    ops: Sequence[Op], source: Hardware, hw: Hardware, context: PriceContext
) -> tuple[FloatArray, FloatArray]:
    """What the law's coefficients err by for being another machine's on `source` and on `hw`, per op; logarithms."""
    kinds = [(op.kind, op.weight_dtype) for op in ops]
    found = {
        (kind, dtype): [
            math.log1p(m.family(kind, work_of.family(kind), dtype, context.engine)[1].carried)
            for m in (source, hw)
        ]
        for kind, dtype in dict.fromkeys(kinds)
    }
    one, other = np.array([found[kind] for kind in kinds]).reshape(-1, 2).T
    return one, other


def _ratio_error(
    target: Costs,
    recorded: Costs,
    source: Hardware,
    hw: Hardware,
    carried: tuple[FloatArray, FloatArray],
    edited: npt.NDArray[np.bool_],
) -> FloatArray:
    """The error of measured x model(target) / model(source), per op.

    On the same chip both answers' errors, as independent of each other, and at most `ONE_CHIP_MOST`. Between a profile and the
    one that its coefficients came from, the error of that transfer (of `carried`, what one has beyond the other), for an op
    that is `edited` too with what the edit errs by on one chip, and the law's own where kernels did not carry over. Between any
    other two, half of both: kernels differ, and what one lost says little of the other.
    """
    # What both answers have of a transfer is the same kernels' in both, what one has beyond it the transfer's.
    here, there = carried
    one, other = (
        _without(np.log1p(costs.error), _without(own, theirs))
        for costs, own, theirs in ((target, there, here), (recorded, here, there))
    )
    edit = np.minimum(np.hypot(one, other), ONE_CHIP_MOST)
    if source.chip == hw.chip:
        return np.asarray(np.expm1(edit))
    far = between_chips(target.error, recorded.error)
    transfer = np.hypot(_without(there, here), _without(here, there))
    near = np.expm1(np.hypot(transfer, np.where(edited, edit, 0.0)))
    names = {source.chip, hw.chip}
    texts = zip(target.provenance, recorded.provenance, strict=True)
    linked = [
        any(f"{_TRANSFERRED} {name} " in f"{text} " for name in names for text in pair) for pair in texts
    ]
    # Another kernel on one of the chips: what was measured of the other says nothing of it (docs/accuracy.md).
    pairs = zip(target.provenance, recorded.provenance, strict=True)
    foreign = [(FOREIGN in one) != (FOREIGN in other) for one, other in pairs]
    return np.where(foreign, np.maximum(target.error, recorded.error), np.where(linked, near, far))


def _without(whole: FloatArray, part: FloatArray) -> FloatArray:
    """What is left of an error (its logarithm) once a part of it is known; nothing where that is all of it, or more."""
    return np.sqrt(np.maximum(whole**2 - part**2, 0.0))


def _how(draft: Draft, source: Hardware, unknown: npt.NDArray[np.bool_]) -> IntArray:
    """How each cell is found where the measurement anchors."""
    same_chip, same_machine = source.chip == draft.hw.chip, source.name == draft.hw.name
    out = []
    for op, origin, dark in zip(draft.ops, draft.origin, unknown.tolist(), strict=True):
        if origin is None:
            out.append(UNPRICED if dark else MODEL)
        elif _alike(op, origin) and (
            same_machine or (same_chip and work_of.family(op.kind) != "communication")
        ):
            out.append(SAME)
        elif dark:
            out.append(KEPT)
        else:
            out.append(ADDED if _tokens(origin) == 1 else SCALED)
    return np.array(out, dtype=np.int64)


def _alike(op: Op, origin: Op) -> bool:
    """Whether two ops do the same: equal but for whether their distinct experts are counted or taken over."""
    if op == origin:
        return True
    plain = op.with_dims(distinct=None, distinct_est=None)
    if plain != origin.with_dims(distinct=None, distinct_est=None):
        return False
    return work_of.distinct_experts(op)[0] == work_of.distinct_experts(origin)[0]


def _tokens(op: Op) -> float | None:
    return next((op[dim] for dim in ("tokens", "m", "q", "batch") if op.has(dim)), None)


def price_ops(ops: Sequence[Op], hw: Hardware, context: PriceContext, held: Held | None = None) -> Costs:
    """The costs of ops on a machine, in order; equal ops are priced once. `held` as of `price`."""
    keys: Sequence[Any] = (
        ops if held is None else list(zip(ops, *(part.tolist() for part in held), strict=True))
    )
    where = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    index = np.array([where[key] for key in keys], dtype=np.int64)
    if held is None:
        return price(work_of.works(list(where)), hw, context=context).take(index)
    works = work_of.works([key[0] for key in where])
    own, other = (np.array([key[part] for key in where]) for part in (1, 2))
    return price(works, hw, context=context, held=(own, other)).take(index)
