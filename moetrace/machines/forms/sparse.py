"""The forms of an indexer's kernels: its scores of a whole context, and the choice of the highest.

    scores  : compute  = 2 head_dim heads pairs / peak + 4 heads pairs / fp32 peak
              expected = t0 + max(bytes / (eta_bw x bandwidth), compute)
    select  : walk     = turns x cycles x values of a row's part / clock, turns = max(1, rows / processors)
              parts    = processors / rows, at most as many as a row has of `part` values, at least 1
              expected = t0 + max(bytes / (eta_bw x bandwidth), walk)

Scores (DeepGEMM's fp8_mqa_logits, in decode over pages): matrix units multiply a tile of keys with all heads of a query, then
each product goes through the vector units: ReLU, and a multiply-add with the head's weight, two instructions, of which a lane
does one in the time in which the fp32 peak counts two FLOPs. That these take turns is inferred: DeepGEMM reaches 0.89 of H20's
FP8 peak and 0.58 of H200's, where matrix units take 8.5 and 2 cycles for a query and a key, and vector units one.

Choice (radix selects of vLLM, SGLang and TensorRT-LLM): one block looks through a row of scores. What a value takes of its
processor, counted in shared memory and filtered, is assumed to be a cycle, nearer to published times of B200 than bytes are
(docs/accuracy.md). Idle processors share a row that is longer than `part` (vLLM's persistent kernel: 32,768 values).
Sources: github.com/deepseek-ai/DeepGEMM, tests/test_attention.py; github.com/vllm-project/vllm, pull request 37421.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting
from moetrace.machines.forms.tiles import PAGED, from_memory
from moetrace.op import FloatArray, Works

_CLOCK = 1.5e9  # of a machine whose clock no profile says
_SCORE_BYTES = 4.0
_VECTOR_FLOPS = 4.0  # that the fp32 peak counts in two instructions of a lane


def scores(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of an indexer's scores, [ops]."""
    dim = works.dim("head_dim")
    pairs = works["flops"] / (2.0 * (dim + 1.0))  # of a query and a key, times heads
    vector = at.hw.peaks.get("fp32")
    compute_s = 2.0 * dim * pairs / at.peak + _VECTOR_FLOPS * pairs / (vector or at.peak)
    return _parts(c, works, at, {"compute": np.where(works["flops"] > 0, compute_s, 0.0)})


def select(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of the choice of the highest scores of each row, [ops]."""
    rows = np.maximum(works["rows"], 1.0)
    values, processors = works["act_read_bytes"] / _SCORE_BYTES / rows, at.hw.multiprocessors
    parts = np.clip(processors / rows, 1.0, np.maximum(1.0, values / c["part"]))
    turns = np.maximum(1.0, rows / processors)
    return _parts(c, works, at, {"walk": turns * c["cycles"] * values / parts / (at.hw.clock_hz or _CLOCK)})


def _parts(c: Mapping[str, float], works: Works, at: Setting, beside: Mapping[str, FloatArray]) -> Parts:
    """A launch, then the longer of memory and what goes on beside it."""
    launch_s = c["t0_s"] * works["launches"]
    far = from_memory(works["bytes"], 0.0, at, PAGED)
    memory_s = works["bytes"] * far / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    nothing = np.zeros_like(memory_s)
    compute_s, walk_s = beside.get("compute", nothing), beside.get("walk", nothing)
    expected_s = launch_s + np.maximum.reduce((memory_s, compute_s, walk_s))
    terms = {"launch": launch_s, "memory": memory_s, **beside}
    return Parts(compute_s, memory_s, launch_s + walk_s, expected_s, terms=terms)


SCORES = Form(SCHEMAS["scores"], scores, ("head_dim",))
SELECT = Form(SCHEMAS["select"], select)
