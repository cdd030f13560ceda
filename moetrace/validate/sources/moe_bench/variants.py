"""Statements on variants of Mixtral-8x7B: expert width, number of experts and n_a."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from moetrace.model import load_model
from moetrace.validate.entry import Estimate, RefusalError
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import fits, machine_of, model_of, ratio
from moetrace.validate.sources.moe_bench.speed import LENGTH, Ratios, fall, speed

_FFN = (1792, 14336)
_VARIANT_EXPERTS, _VARIANT_ACTIVE = (8, 16, 32, 64), (1, 2, 4, 8)


def _variant(figure: Figure, ffn: int, experts: int, active: int) -> Estimate:
    spec = replace(
        load_model(model_of(figure.model)),
        name=f"mixtral-8x7b with {experts} experts of width {ffn}, n_a {active}",
        experts=experts,
        topk=active,
        expert_inter=ffn,
    )
    machine = machine_of(figure.hw, figure.whole("n_gpus") or 1)
    split = () if machine.gpus == 1 else (f"tp={machine.gpus}",)
    if not fits(spec, machine, (16, LENGTH, LENGTH), *split):
        raise RefusalError(f"{spec.name} does not fit {machine.name}")
    return speed(figure, spec)


def _cells(figure: Figure, cells: Iterable[tuple[tuple[int, int, int], ...]]) -> list[list[Estimate]]:
    """The variants (width, experts, n_a) of each cell; one that does not fit empties its cell."""
    found = []
    for cell in cells:
        with suppress(RefusalError):
            found.append([_variant(figure, *variant) for variant in cell])
    if not found:
        raise RefusalError("none of its variants fits")
    return found


def by_width(figure: Figure) -> tuple[Ratios, str]:
    """Mean throughput at the large expert width over that at the small one."""
    means = []
    for ffn in _FFN:
        cells = _cells(figure, [((ffn, e, k),) for e in _VARIANT_EXPERTS for k in _VARIANT_ACTIVE])
        means.append((sum(cell[0].value for cell in cells) / len(cells), len(cells), cells[0][0]))
    (narrow, many, first), (wide, few, last) = means
    change = replace(ratio(last, first), value=100 * (wide / narrow - 1))
    cells_of = len(_VARIANT_EXPERTS) * len(_VARIANT_ACTIVE)
    return [
        change
    ], f"mean throughputs over 8 to 64 experts and n_a 1 to 8; {many} and {few} of {cells_of} cells fit"


def by_active(figure: Figure) -> tuple[Ratios, str]:
    """n_a 1 against 8, at the widths that the row names."""
    widths = {"small FFN": _FFN[:1], "large FFN": _FFN[1:], "FFN=14336": _FFN[1:]}.get(
        figure.other_knob, _FFN
    )
    fewer = figure.metric == "throughput_gap_nact_1_vs_8"
    cells = _cells(figure, [((ffn, e, 1), (ffn, e, 8)) for ffn in widths for e in _VARIANT_EXPERTS])
    found = [fall(eight, one) if fewer else ratio(one, eight, percent=True) for one, eight in cells]
    note = "a gap is taken as what is lost of the throughput at n_a 1" if fewer else ""
    return found, "; ".join(t for t in (note, f"{len(cells)} cells fit") if t)


def by_experts(figure: Figure) -> tuple[Ratios, str]:
    """64 experts against 8 at the small width."""
    cells = _cells(figure, [((_FFN[0], 64, k), (_FFN[0], 8, k)) for k in _VARIANT_ACTIVE])
    return [ratio(many, few, percent=True) for many, few in cells], "expert width 1,792"
