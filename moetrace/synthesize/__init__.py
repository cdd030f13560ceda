"""synthesize: a model's shape and a workload -> a Run without a trace.

The Run says what is computed and in which order; its times are all 0, for they are a machine's business: `replay` gives
them. One prefill step computes all prompts, or under a steady load one mixed step works on some beside decoding; then come
decode steps at chosen points of the growing context. `layers` has the ops of a step.

Not synthesized: quantisation of activations as kernels of their own (engines fuse it into norms and activations), the
merging of split attention, copies and index arithmetic round the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

import numpy as np
import pyarrow as pa

from moetrace.errors import ModelError, ScenarioError
from moetrace.forward import Placed, expert_padding, step_ops
from moetrace.given import misfit
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.ops.columns import record_columns
from moetrace.run import Meta, Run, Step, nullable, numbers, ops_table, text_column

MAX_TOKENS = 10**9
# Tokens that an engine works on in one step at most: max_num_batched_tokens of vLLM (8192 for a server on H100 and later),
# chunked_prefill_size of SGLang and max_num_tokens of TensorRT-LLM (8192).
CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` sequences of `input_len` prompt tokens that each yield `output_len` tokens.

    A static batch: all start together, the prefill step yields the first token of each, a decode step every later one. With
    `served`, the load is steady instead: as one sequence ends, the next starts, and its prompt is worked through in parts of
    at most `chunk` tokens beside the decoding of the others (continuous batching). `verify` tokens of each sequence go
    through one decode step (those drafted and one more; 1 without speculation), which yields `yielded` tokens. The host adds
    `host_s` to each step; None: not stated. With `apart` prompts have steps of their own, in which nothing decodes, but in
    those of the data-parallel `groups` that have none (`decodes_on`). `drafts`: the load is a drafting model's, of another's
    sequences. Raises ScenarioError unless all are whole numbers of at least 1 (but `yielded`), of `output_len` at least 2 under
    a steady load.
    """

    batch: int
    input_len: int
    output_len: int
    served: bool = False
    chunk: int = CHUNK
    verify: int = 1
    host_s: float | None = None
    groups: int = 1
    apart: bool = False
    yielded: float = 1.0
    drafts: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "input_len", "output_len", "chunk", "verify", "groups"):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or not 1 <= value <= MAX_TOKENS:
                raise ScenarioError(f"{name} is {value!r}: expected a whole number from 1 to {MAX_TOKENS}")
        yielded: object = self.yielded
        if not isinstance(yielded, (int, float)) or not 1 <= yielded <= MAX_TOKENS:
            raise ScenarioError(f"yielded is {self.yielded!r}: expected a number from 1 to {MAX_TOKENS}")
        if self.served and self.output_len == 1:
            raise ScenarioError(
                "output_len=1: nothing is decoded, so a steady load has no steps beside which prompts are worked through: ask "
                "for serving=static, or for 2 tokens and more"
            )
        if self.batch * (self.input_len + self.output_len) > MAX_TOKENS:
            raise ScenarioError(
                f"batch {self.batch} x ({self.input_len} + {self.output_len}) tokens: at most {MAX_TOKENS} in all"
            )

    @property
    def beside(self) -> tuple[float, int, int]:
        """(prompts, new tokens of each, context of each with them) of a step that works on prompts beside decoding.

        In a steady load each of the `steps` in which a sequence decodes sees ``batch / steps`` prompts arrive, each of which
        takes `chunks` of such steps, or of its own, in which no others arrive (`apart`); where that is below one, one comes at
        a time, and no group works on more than `chunk` tokens. Engines fill a step with the next prompt's tokens where one
        ends, so the mean need not be whole. A prompt longer than `chunk` has the mean of its full steps here. Where groups
        without a prompt decode on, each works on its own as they come, and `working_groups` of them do so at a time.
        """
        new = min(self.input_len, self.chunk)
        if self.decodes_on:
            return self.own_prompts * self.working_groups, new, -(-(self.input_len + new) // 2)
        arrive = self.batch * (1.0 if self.apart else self.chunks) / self.steps
        prompts = max(1.0, min(arrive, self.groups * self.chunk / new))
        return prompts, new, -(-(self.input_len + new) // 2)

    @property
    def steps(self) -> float:
        """Steps in which one sequence decodes `output_len` tokens."""
        return self.output_len / self.yielded

    @property
    def decodes_on(self) -> bool:
        """Whether data-parallel groups without a prompt decode beside another's: drafted tokens hold them back (SGLang,
        managers/scheduler.py: get_next_batch_to_run)."""
        return self.served and self.apart and self.groups > 1 and self.verify == 1

    @property
    def on_beside(self) -> float:
        """Tokens that a sequence decodes beside prompts of groups other than its own, of all after its first."""
        if not self.decodes_on:
            return 0.0
        others = (self.batch - 1) * self.chunks / self.beside[0]
        return min(self.output_len - 1, others * (1 - self.working_groups / self.groups))

    @property
    def after_decode(self) -> float:
        """Share of the steps of prompts alone (`apart`) that follow one of decode alone: the first of each prompt's, as far as
        there are as many steps that decode."""
        decode = (self.output_len - 1) / self.yielded - self.on_beside
        return min(1 / self.chunks, decode / (self.batch * self.chunks / self.beside[0]))

    @property
    def own_prompts(self) -> float:
        """Prompts of one group in a step in which it has any, where others decode on: those that its decode steps end."""
        new, batch = min(self.input_len, self.chunk), self.batch / self.groups
        return max(1.0, min(batch * self.chunks / self.output_len, self.chunk / new))

    @property
    def working_groups(self) -> float:
        """Groups that work on prompts in a step in which any does, where others decode on: the mean, but at least one. In
        `output_len` steps that decode a group has as many more for its prompts."""
        steps = self.batch / self.groups * self.chunks / self.own_prompts
        return max(1.0, self.groups * (steps / (steps + self.output_len)))

    @property
    def decoding_on(self) -> int:
        """Sequences that decode in a step in which other groups work on prompts."""
        return round(self.batch * (1 - self.working_groups / self.groups)) if self.decodes_on else 0

    @property
    def chunks(self) -> float:
        """Full steps' worth of work in one prompt, at least 1: what is left of a long one shares its step with the next."""
        return max(1.0, self.input_len / self.chunk)

    @property
    def parts(self) -> int:
        """Steps that one prompt waits for: the last one of a long one has what is left of it."""
        return -(-self.input_len // self.chunk)

    def contexts(self, windows: Sequence[int] = ()) -> tuple[int, ...]:
        """KV tokens per sequence of the decode steps to synthesize, ascending; none if only one token is asked for.

        The first step, the middle one, the last, and where the context outgrows a sliding window or what an indexer picks:
        between these the KV that a step reads grows in proportion to the step.
        """
        first, last = self.input_len + 1, self.input_len + self.output_len - 1
        if last < first:
            return ()
        inside = {window for window in windows if first < window < last}
        more = self.verify - 1  # that many more are in the cache while they are verified
        return tuple(c + more for c in sorted({first, (first + last) // 2, last} | inside))


def check_workload(given: object) -> None:
    """Raises ScenarioError where a caller gave something else in the place of a Workload."""
    if not isinstance(given, Workload):
        raise ScenarioError(misfit(given, "Workload", "Workload(batch, input_len, output_len) makes one"))


def synthesize(model: ModelSpec | str, workload: Workload) -> Run:
    """The run (kind ``synthesized``) of a workload on one device that holds the whole model, all times 0.

    `model` is a ModelSpec, the name of one in the catalogue or the path of a config.json. Expert ops carry no distinct count,
    so routing is the uniform formula unless a caller knows better. Raises ModelError for experts without a gate, whose work
    the expert ops do not describe.
    """
    check_workload(workload)
    return _synthesized(load_model(model), workload)


@lru_cache(maxsize=8)
def _synthesized(model: ModelSpec, workload: Workload) -> Run:
    steps, passes = passes_of(model, workload)
    return Run(meta_of(model, workload, steps), _table(steps, passes))


def meta_of(model: ModelSpec, workload: Workload, steps: tuple[Step, ...]) -> Meta:
    """The metadata of a workload's run; of a steady load also the prompts of a step and their new tokens (`beside`)."""
    batch, prompt = workload.batch, workload.input_len
    said: dict[str, object] = {"batch": batch, "input_len": prompt, "output_len": workload.output_len}
    if workload.served:
        said["beside"] = workload.beside[:2]
    if workload.served and workload.apart:
        said["apart"] = True
        said["after_decode"] = workload.after_decode
    if workload.decodes_on:
        said["own_prompts"] = workload.own_prompts
    if workload.verify > 1 or workload.drafts:
        said["drafted"] = True
    return Meta(
        kind="synthesized",
        source=f"{model.name}, batch {batch}, {prompt} in, {workload.output_len} out",
        steps=steps,
        model=model,
        model_source="given",
        routing="uniform" if model.experts else "none",
        notes=_notes(model),
        facts={"workload": said},
    )


def passes_of(
    model: ModelSpec, workload: Workload
) -> tuple[tuple[Step, ...], tuple[tuple[Placed, ...], ...]]:
    """The steps of a workload, and the ops of each in order: the rows of `synthesize`. Raises as it does."""
    if model.experts and not model.gated:
        raise ModelError(f"model {model.name!r}: its experts have no gate, which is not supported")
    steps, passes = [], []
    batch, prompt = workload.batch, workload.input_len
    plan = [
        ("prefill", prompt, prompt),
        *(("decode", workload.verify, c) for c in workload.contexts((*model.windows, model.index_topk))),
    ]
    if workload.served:
        plan[0] = ("mixed", workload.verify, prompt + workload.output_len // 2)
    for index, (phase, queries, context) in enumerate(plan):
        apart = phase == "mixed" and workload.apart
        others = workload.decoding_on if apart else 0
        shown = "prefill" if apart else phase
        name = f"decode {context - prompt}" if phase == "decode" else shown
        beside = workload.beside if phase == "mixed" else (0, 0, 0)
        tokens, kv = round(beside[0] * beside[1]), round(beside[0] * beside[2])
        if apart:
            tokens += others
        else:
            tokens, kv = batch * queries + tokens, batch * context + kv
        steps.append(Step(index, name, shown, 0, 0, batch, tokens, kv))
        passes.append(step_ops(model, batch, queries, context, phase != "prefill", beside, apart, others))
    return tuple(steps), tuple(passes)


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
            **{name: numbers(zero) for name in ("rank", "device", "stream", "start_ns", "dur_ns")},
            "step": numbers(step),
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
