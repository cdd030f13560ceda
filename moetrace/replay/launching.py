"""How long the host takes to launch the ops of a step one by one, where no graph holds them and no recording says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.replay.draft import Draft
from moetrace.replay.edit import EXCHANGES
from moetrace.replay.lanes import Lanes
from moetrace.run import Step

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# What one kernel costs the host in eager PyTorch, dispatch and arguments included. 3-5 us of CPU per kernel are known for the
# launch itself, and 16.7 us lie between two launches (the median, profiler on) of a public trace of transformers on an H100:
# the geometric middle, right within a factor of two. A recording's host is as sure, replayed on another chip's machine.
HOST_LAUNCH_S = 8e-6
HOST_LAUNCH_FACTOR = 2.0
# What an op as moetrace models it, which is several kernels and their Python, costs SGLang's host. From nine tables of its
# cookbook (0.5.6 to 0.5.8 on B200, docs/accuracy.md, "Short prompts"): what a prompt of 300 to 600 tokens adds to decoding, and
# the decode step that runs while it is launched; geometric mean of 32 to 86.
SGLANG_LAUNCH_S = 65e-6
# SGLang holds prompts in graphs too from this version on (github.com/sgl-project/sglang, #16331), but not steps of more tokens
# than this with MLA, nor an indexer's, nor data-parallel attention, expert exchanges, pipelines and drafted tokens, and on
# NVIDIA's GPUs alone (docs/advanced_features/piecewise_cuda_graph.md).
_GRAPHS_SINCE = (0, 5, 10)
_GRAPH_TOKENS_MLA = 2048


def launch_s(draft: Draft, source: Hardware | None) -> FloatArray:
    """Host seconds per op of each step, [steps]; 0 where a graph holds them or the recording says when they were launched.

    Raises ScenarioError where a recording's own launches are to be kept and they are those of a graph.
    """
    stated, none = draft.stated("graph"), np.zeros(len(draft.steps))
    if stated == "off" and source is not None and (draft.run.numpy("graph") >= 0).any():
        raise ScenarioError(
            "graph=off: the recording replays a graph, and kernels that a compiler fused into it would not be there in eager "
            "mode; simulate the model"
        )
    if source is not None or stated == "on" or draft.hw.device_class != "gpu":
        return none
    # Rows of a recording are kernels already.
    engine, _, version = str(draft.stated("engine", "")).partition("@")
    by_sglang = engine == "sglang" and draft.run.meta.kind != "measured"
    if stated == "off":
        return none + (SGLANG_LAUNCH_S if by_sglang else HOST_LAUNCH_S)
    if not by_sglang:
        return none
    eager = [step.phase == "prefill" and not _in_graph(draft, step, version) for step in draft.steps]
    return np.where(eager, SGLANG_LAUNCH_S, 0.0)


def ahead_ns(draft: Draft, launch: FloatArray, spans: npt.NDArray[Any]) -> FloatArray:
    """Whole ns by which the host is ahead of the device as each step begins, of `spans` ns and their shape, [steps, ...].

    SGLang launches a step while the one before runs, but not in pipelines and where tokens are drafted (srt/server_args.py:
    disable_overlap_schedule). Of a steady load's steps with prompts the share `after_decode` follows one that decodes, whose
    time is that of the next decode step here; the others follow prompts, whose own launches the host waits for. The mean, so
    that what the host gains is never more than the steps that decode take.
    """
    ahead, behind = np.zeros(spans.shape), np.zeros(spans.shape[1:])
    said = _load_of(draft)
    if said.get("apart", False) and not said.get("drafted", False) and draft.parallel.pp == 1:
        share = said.get("after_decode", 1.0)
        share = share.spread() if isinstance(share, Lanes) else share
        for i in reversed(range(len(draft.steps))):
            if draft.steps[i].phase == "decode":
                behind = spans[i] * share if not launch[i] else np.zeros(spans.shape[1:])
            elif launch[i]:
                ahead[i] = np.rint(behind)
    return ahead


def launches_said(draft: Draft, source: Hardware | None) -> str:
    """How ops follow one another, in words."""
    pace = launch_s(draft, source)
    if not pace.any():
        graph = ", as from a CUDA graph" if draft.hw.device_class == "gpu" else ""
        said = f"ops run back to back on one stream{graph}: no launch gaps and no overlap"
        simulated = draft.run.meta.kind != "measured" and any(step.phase == "prefill" for step in draft.steps)
        newest = draft.stated("engine") == "sglang" and not draft.stated("graph") and simulated
        return said + (
            "; prompts too, as since SGLang 0.5.10 (engine=sglang@0.5.9: of an older one)" if newest else ""
        )
    each = f"op by op, {pace.max() * 1e6:.0f} us each within a factor of two; ops wait for it"
    if pace.all():
        return f"the host launches {each}"
    return f"SGLang's host launches steps with prompts {each} (graph=on: from a graph, as others are)"


def _load_of(draft: Draft) -> Mapping[str, Any]:
    """What the run says of the workload that it was simulated for; nothing of other runs."""
    said: Mapping[str, Any] = draft.run.meta.facts.get("workload", {})
    return said


def _in_graph(draft: Draft, step: Step, version: str) -> bool:
    """Whether SGLang holds a step with prompts in a graph; of no stated version, as those do that were measured."""
    release = tuple(int(digits[0]) for part in version.split(".")[:3] if (digits := re.match(r"\d+", part)))
    ranks, model = draft.parallel, draft.model
    if (
        (version and release < _GRAPHS_SINCE[: len(release)])
        or draft.hw.title.startswith("AMD")
        or ranks.dp > 1
        or ranks.pp > 1
        or any(op.kind in EXCHANGES for op in draft.ops)
    ):
        return False
    if _load_of(draft).get("drafted", False) or (model and model.index_topk):
        return False
    return not (model and model.attention == "mla" and (step.tokens or 0) > _GRAPH_TOKENS_MLA)
