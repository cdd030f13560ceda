"""What beside its ops decides how long a draft takes: the machine that anchors it, what the law asks, crossings."""

from __future__ import annotations

from moetrace.cost import PriceContext
from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE, Hardware, load_hardware
from moetrace.machines.wafer import crossings_s
from moetrace.replay import memory
from moetrace.replay.draft import Draft
from moetrace.run import Run


def source_of(run: Run, hw: Hardware) -> Hardware | None:
    """The machine whose measurement anchors a prediction on `hw`; None if none does."""
    meta = run.meta
    if meta.kind != "measured" or meta.hardware is None or meta.device_class != hw.device_class:
        return None
    return hw if meta.hardware == hw.name else load_hardware(meta.hardware)


def keeps_gaps(draft: Draft, source: Hardware | None) -> bool:
    """Whether ops keep the recorded idle time between them: where the recording anchors them and no graph removes it."""
    return source is not None and draft.scenario.get("graph") != "on"


def context_of(draft: Draft, need: memory.Need, beside: memory.Beside | None = None) -> PriceContext:
    """What the law of the draft's machine must know beside the ops; `beside` is another model on the same wafers.

    Raises ScenarioError for a wafer and a model of no size.
    """
    if draft.hw.device_class != "wafer":
        return PriceContext(engine=str(draft.stated("engine", ANY_ENGINE)))
    if not need.model_bytes:
        raise ScenarioError(
            f"{draft.hw.name}: how many bytes the model takes is not known; parse with --model"
        )
    depth = max(1, draft.layers, draft.model.layers if draft.model else 0)
    return PriceContext(
        need.model_bytes,
        depth,
        str(draft.stated("placement", "spread")),
        token_flops=2.0 * draft.model.active_params(embedding=False) if draft.model else 0.0,
        beside_bytes=beside.need.model_bytes if beside else 0.0,
        share=beside.share if beside else 1.0,
    )


def crossing_ns(draft: Draft, need: memory.Need) -> list[int]:
    """ns that each step spends between wafers."""
    if draft.hw.device_class != "wafer" or not need.wafers:
        return [0] * len(draft.steps)
    hidden = draft.model.hidden if draft.model else 0
    sent = ((step.tokens or step.batch or 0) * hidden * 2.0 for step in draft.steps)
    return [round(crossings_s(draft.hw, need.wafers, nbytes) * 1e9) for nbytes in sent]
