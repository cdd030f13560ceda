"""The predicted run: its steps at their new times, its metadata and its op table."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.cost import PriceContext
from moetrace.ops.columns import record_columns
from moetrace.replay.anchor import Priced
from moetrace.replay.draft import Draft
from moetrace.replay.edited_again import fuses, made_by
from moetrace.run import LAUNCHED, TPOT, Meta, Step, nullable, numbers, ops_table, text_column

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_ADDED = " (added by the replay)"


def first_rows(draft: Draft) -> IntArray:
    """The first base row of each segment."""
    return np.flatnonzero(np.diff(draft.base.segment, prepend=-1))


def per_step(draft: Draft, spans: IntArray) -> IntArray:
    """ns of each step: that of its slowest rank; 0 for a step without ops."""
    out = np.zeros(len(draft.steps), dtype=np.int64)
    np.maximum.at(out, draft.base.step[first_rows(draft)], spans)
    return out


def steps_at(draft: Draft, begin: IntArray, spans: IntArray) -> tuple[Step, ...]:
    """The edited steps at their new times; a step without ops keeps its own."""
    first = draft.base.step[first_rows(draft)]
    out = []
    for i, step in enumerate(draft.steps):
        mine = np.flatnonzero(first == i)
        if mine.size:
            low, high = int(begin[mine].min()), int((begin[mine] + spans[mine]).max())
            step = replace(step, start_ns=low, end_ns=high)
        out.append(step)
    return tuple(out)


def meta_of(
    draft: Draft,
    steps: tuple[Step, ...],
    assumptions: tuple[str, ...],
    context: PriceContext,
    launch: FloatArray,
) -> Meta:
    """The metadata of the predicted run; `launch` as of `launch_s`."""
    meta, hw = draft.run.meta, draft.hw
    facts = {
        **{name: fact for name, fact in meta.facts.items() if name not in (TPOT, LAUNCHED)},
        **(
            {LAUNCHED: [s.index for s, pace in zip(steps, launch, strict=True) if pace]}
            if launch.any()
            else {}
        ),
        "scenario": made_by(draft),
        **({"fused": True} if fuses(draft) else {}),
        **({"padded": True} if draft.padded else {}),
        "price_context": asdict(context),  # so that attribution prices the run as the replay did
        "measured_on": meta.hardware or meta.device,
        # A TPOT is of the simulation, not of what becomes of it.
        **({} if meta.step_is_token else {TPOT: None}),
    }
    return replace(
        meta,
        kind="predicted",
        steps=steps,
        model=draft.model,
        native_layers=_native_layers(draft),
        device=hw.title,
        device_class=hw.device_class,
        hardware=hw.name,
        gpus=draft.gpus,
        tp=draft.parallel.tp,
        ep=draft.parallel.ep,
        pp=draft.parallel.pp,
        dp=draft.parallel.dp,
        routing=_routing_of(draft),
        notes=assumptions,
        facts=facts,
    )


def _native_layers(draft: Draft) -> int | None:
    """The real model's depth, where it is another than the draft's."""
    meta, edited = draft.run.meta, draft.model
    if meta.native_layers or meta.model is None or edited is None or edited.layers == meta.model.layers:
        return meta.native_layers
    return meta.model.layers


def _routing_of(draft: Draft) -> str:
    """Where distinct experts come from: what the scenario states, else what the run said."""
    stated = draft.scenario.texts().get("routing")
    return f"as stated, routing={stated}" if stated not in (None, "recorded") else draft.run.meta.routing


def table_of(draft: Draft, priced: Priced, start: IntArray, dur: IntArray) -> pa.Table:
    """The predicted op table; launch times and graphs are the recording's and are left out."""
    run, rows = draft.run, draft.base.row[draft.rows]
    kept = ("rank", "device", "stream", "step", "phase", "op_source", "layer_source")
    columns: dict[str, pa.Array] = {n: run.column(n).take(numbers(rows)).combine_chunks() for n in kept}
    layer = np.array([at.layer for at in draft.at], dtype=np.int64)[draft.cell]
    code, kernels = run.codes("kernel")
    kinds = sorted({draft.ops[i].kind for i in np.unique(draft.cell[draft.inserted]).tolist()})
    own = np.array([kinds.index(op.kind) if op.kind in kinds else 0 for op in draft.ops], dtype=np.int64)[
        draft.cell
    ]
    code = np.where(draft.inserted, len(kernels) + own, code[rows])
    distinct = list(dict.fromkeys(draft.ops))
    place = {op: i for i, op in enumerate(distinct)}
    index = np.array([place[op] for op in draft.ops], dtype=np.int64)
    words = list(dict.fromkeys(priced.provenance))
    told = np.array([words.index(p) for p in priced.provenance], dtype=np.int64)[draft.cell]
    error = priced.error[draft.cell]
    return ops_table(
        {
            **columns,
            "layer": nullable(layer, layer < 0, pa.int32()),
            "kernel": text_column(code, [*kernels, *(kind + _ADDED for kind in kinds)]),
            "start_ns": numbers(start),
            "dur_ns": numbers(dur),
            **record_columns(distinct, index[draft.cell], dur),
            "error": nullable(error, np.isnan(error), pa.float64()),
            "provenance": text_column(told, words),
        }
    )
