"""The draft of a scenario: its knobs applied in the knob table's order, its routing settled."""

from __future__ import annotations

import numpy as np

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.replay.distinct import settle
from moetrace.replay.draft import Draft
from moetrace.replay.edited_again import check_again, fuses
from moetrace.replay.knobs import KNOBS
from moetrace.replay.no_experts import no_experts
from moetrace.replay.padding import by_default
from moetrace.replay.scenario import Scenario
from moetrace.replay.unfused import unrolled
from moetrace.run import Run


def edited(run: Run, hw: Hardware, scenario: Scenario) -> Draft:
    """The draft with every knob of the scenario applied, in the knob table's order, and its routing settled."""
    return unrolled(with_knobs(Draft.of(run, hw, scenario)))


def with_knobs(draft: Draft) -> Draft:
    """The draft with its scenario's knobs applied and its routing settled; experts that run one by one are loops."""
    check_parallelism(draft)
    check_again(draft)
    return turned(fused(draft))


def fused(draft: Draft) -> Draft:
    """The draft with its runs of small operators as one kernel each, where no knob says, and they are a CPU's elsewhere."""
    return KNOBS["fusion"].apply(draft, "runs") if fuses(draft) else draft


def turned(draft: Draft) -> Draft:
    """The draft with its scenario's knobs applied and its routing settled, `fused` already."""
    run, scenario = draft.run, draft.scenario
    chosen = {s.name: s.value for s in scenario.settings}
    if draft.parallel != draft.ran:
        chosen.setdefault("tp", draft.parallel.tp)
    if by_default(draft):
        chosen.setdefault("pad", "engine")
    for name, knob in KNOBS.items():
        if name not in chosen:
            continue
        if knob.not_recorded and run.meta.kind != "synthesized":
            raise ScenarioError(f"{name}: {knob.not_recorded}")
        if not knob.late:
            draft = knob.apply(draft, chosen[name])
    _check_choice(draft)
    draft = settle(draft)
    for name, knob in KNOBS.items():
        if knob.late and name in chosen:
            draft = knob.apply(draft, chosen[name])
    return draft


def _check_choice(draft: Draft) -> None:
    """Raises ScenarioError where more experts are activated than there are."""
    for op in draft.ops:
        if op.has("experts", "topk") and op["topk"] > op["experts"]:
            raise ScenarioError(
                f"n_a={op['topk']:.0f} of {op['experts']:.0f} experts: set n_a to {op['experts']:.0f} or fewer too"
            )


def check_parallelism(draft: Draft) -> None:
    """Raises ScenarioError where the parallelism does not fill the machine, or a rank of many would move to a lone device."""
    meta, hw, gpus = draft.run.meta, draft.hw, draft.gpus
    if meta.hardware == hw.name and draft.parallel == draft.ran:
        return
    if max(meta.tp, meta.ep, meta.gpus) > 1 and gpus != meta.gpus:
        raise ScenarioError(
            f"the recording is {_ranks(draft)} of {meta.gpus} GPUs (tp={meta.tp} ep={meta.ep}) and {hw.name} has {gpus}: it "
            f"can be replayed on a machine of {meta.gpus} GPUs"
        )
    if gpus == meta.gpus and draft.parallel == draft.ran:
        return
    if problem := draft.parallel.problem(gpus, hw.name):
        raise ScenarioError(problem)
    if draft.parallel.ep > 1 and not draft.experts:
        raise no_experts(draft, f"ep={draft.parallel.ep}")


def _ranks(draft: Draft) -> str:
    here = np.unique(draft.run.numpy("rank")).size
    return "one rank" if here < 2 else f"all {here} ranks" if here == draft.run.meta.gpus else f"{here} ranks"
