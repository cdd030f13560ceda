"""What a prediction takes for granted, one sentence each, beside what its knobs said."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Hardware
from moetrace.replay.anchor import KEPT, UNPRICED, Priced, chip
from moetrace.replay.distinct import UNIFORM
from moetrace.replay.draft import EXPERTS, Draft

IntArray = npt.NDArray[np.int64]


def assumptions_of(draft: Draft, source: Hardware | None, priced: Priced, measured: IntArray) -> list[str]:
    """What the prediction takes for granted beside what the knobs said."""
    meta, hw = draft.run.meta, draft.hw
    said = _of_anchor(draft, source)
    how, own = priced.how[draft.cell], ~draft.inserted
    total = max(1, int(measured[own].sum()))
    dark, kept = (_share(int(measured[own & (how == k)].sum()) / total) for k in (UNPRICED, KEPT))
    if (own & (how == UNPRICED)).any():
        said.append(
            f"ops whose work is not known count as nothing, {dark} of the measured time: steps are too short by their part"
        )
    if (how == KEPT).any() and source is not None and chip(source) != chip(hw):
        said.append(
            f"ops whose work is not known, {kept} of the measured time, are kept as measured, within a factor of two"
        )
    if draft.base.outside:
        said.append(f"{draft.base.outside} op(s) outside of every step are left out")
    native = meta.native_layers
    if native and 0 < draft.layers < native and "layers" not in draft.scenario.texts():
        said.append(
            f"{draft.layers} of the model's {native} layers were recorded and replayed: --set layers=native gives the real "
            "depth"
        )
    return said


def _of_anchor(draft: Draft, source: Hardware | None) -> list[str]:
    """What is taken for granted because of where the measurement was made."""
    meta, hw = draft.run.meta, draft.hw
    if source is not None:
        same = hw.name == source.name
        return (
            []
            if same
            else ["idle time is the recording's: the host launches as fast there, dependency gaps stay"]
        )
    if meta.kind != "measured":
        why = f"the run is {meta.kind}, not measured"
    elif meta.device_class != hw.device_class:
        why = f"the recording was made on a {meta.device_class}, and {hw.name} is a {hw.device_class}"
    else:
        why = f"the machine of the recording ({meta.device or 'not named'}) has no profile"
    said = [
        f"unanchored: {why}, so only ops, dims, order and routing carry over and every time is the law's",
        "ops run back to back on one stream, as from a CUDA graph: no launch gaps and no overlap",
    ]
    if meta.device_class == "cpu" and draft.scenario.get("fusion", "runs") == "recorded":
        said.append("each recorded operator is one kernel there: a serving engine fuses many small ones")
    guessed = (op for op in draft.ops if op.kind in EXPERTS and op.has("experts", "topk", "tokens"))
    if any(not op.has("distinct") and not op.has("distinct_est") for op in guessed):
        said.append(UNIFORM)
    return [text for text in said if text not in draft.notes]


def _share(part: float) -> str:
    return f"{100 * part:.1f} %" if part >= 0.001 else "under 0.1 %"
