"""synthesize: a model's shape and a workload -> a Run without a trace.

The Run says what is computed and in which order; its times are all 0, for they are a machine's business: `replay` gives
them. One prefill step computes all prompts, then come decode steps at chosen points of the growing context. `layers` has
the ops of a step.

Not synthesized: quantisation of activations as kernels of their own (engines fuse it into norms and activations), the
merging of split attention, copies and index arithmetic round the step, chunked prefill, speculative decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from moetrace.errors import ModelError, ScenarioError
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops.columns import record_columns
from moetrace.run import Meta, Run, Step, nullable, ops_table, text_column
from moetrace.synthesize.layers import Placed, expert_padding, step_ops

MAX_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Workload:
    """A static batch: `batch` prompts of `input_len` tokens start together and each yields `output_len` tokens.

    The prefill step yields the first token of each sequence, a decode step every later one. Raises ScenarioError unless
    all three are whole numbers of at least 1.
    """

    batch: int
    input_len: int
    output_len: int

    def __post_init__(self) -> None:
        for name in ("batch", "input_len", "output_len"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
                raise ScenarioError(f"{name} is {value!r}: expected a whole number from 1 to {MAX_TOKENS}")
        if self.batch * (self.input_len + self.output_len) > MAX_TOKENS:
            raise ScenarioError(
                f"batch {self.batch} x ({self.input_len} + {self.output_len}) tokens: at most {MAX_TOKENS} in all"
            )

    def contexts(self, windows: Sequence[int] = ()) -> tuple[int, ...]:
        """KV tokens per sequence of the decode steps to synthesize, ascending; none if only one token is asked for.

        The first step, the middle one, the last, and where the context outgrows a sliding window: between these the
        KV that a step reads grows in proportion to the step.
        """
        first, last = self.input_len + 1, self.input_len + self.output_len - 1
        if last < first:
            return ()
        inside = {window for window in windows if first < window < last}
        return tuple(sorted({first, (first + last) // 2, last} | inside))


@lru_cache(maxsize=8)
def synthesize(model: ModelSpec, workload: Workload) -> Run:
    """The run (kind ``synthesized``) of a workload on one device that holds the whole model, all times 0.

    Expert ops carry no distinct count, so routing is the uniform formula unless a caller knows better. Raises
    ModelError for experts without a gate, whose work the expert ops do not describe.
    """
    if model.experts and not model.gated:
        raise ModelError(f"model {model.name!r}: its experts have no gate, which is not supported")
    steps, passes = [], []
    batch, prompt = workload.batch, workload.input_len
    plan = [("prefill", prompt, prompt), *(("decode", 1, c) for c in workload.contexts(model.windows))]
    for index, (phase, queries, context) in enumerate(plan):
        name = phase if phase == "prefill" else f"decode {context - prompt}"
        steps.append(Step(index, name, phase, 0, 0, batch, batch * queries, batch * context))
        passes.append(step_ops(model, batch, queries, context, phase == "decode"))
    meta = Meta(
        kind="synthesized",
        source=f"{model.name}, batch {batch}, {prompt} in, {workload.output_len} out",
        steps=tuple(steps),
        model=model,
        model_source="given",
        routing="uniform" if model.experts else "none",
        notes=_notes(model),
        facts={"workload": {"batch": batch, "input_len": prompt, "output_len": workload.output_len}},
    )
    return Run(meta, _table(steps, passes))


def _notes(model: ModelSpec) -> tuple[str, ...]:
    said = [
        "ops are those of a serving engine with fused kernels, from the model's shape: no copies, no merging of split "
        "attention, activations quantised inside other kernels"
    ]
    if pad := expert_padding(model):
        said.append(
            f"{model.expert_dtype} experts are read with widths padded to a multiple of {pad}, as kernels store them; "
            "the memory needed counts them unpadded"
        )
    return tuple(said)


def _table(steps: Sequence[Step], passes: Sequence[Sequence[Placed]]) -> pa.Table:
    placed = [row for ops in passes for row in ops]
    size = len(placed)
    step = np.repeat([s.index for s in steps], [len(ops) for ops in passes])
    layer = np.array([at for at, _ in placed], dtype=np.int64)
    distinct = list(dict.fromkeys(op for _, op in placed))
    kinds, phases = sorted({op.kind for op in distinct}), sorted({s.phase or "" for s in steps})
    phase = np.array([phases.index(s.phase or "") for s in steps], dtype=np.int64)[step]
    index = _codes(placed, distinct, lambda op: op)
    zero = np.zeros(size, dtype=np.int64)
    return ops_table(
        {
            **{name: pa.array(zero) for name in ("rank", "device", "stream", "start_ns", "dur_ns")},
            "step": pa.array(step),
            "phase": text_column(phase, phases),
            "layer": nullable(layer, layer < 0, pa.int32()),
            "kernel": text_column(_codes(placed, kinds, lambda op: op.kind), kinds),
            "op_source": text_column(zero, ["model"]),
            "layer_source": text_column(np.where(layer < 0, -1, 0), ["order"]),
            **record_columns(distinct, index, zero),
        }
    )


def _codes(
    placed: Sequence[Placed], known: Sequence[object], what: Callable[[Op], object]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    place = {value: i for i, value in enumerate(known)}
    return np.array([place[what(op)] for _, op in placed], dtype=np.int64)


__all__ = ["Workload", "synthesize"]
