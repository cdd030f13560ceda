"""Sizes of decode graphs: an engine captures its decode step for some batches, and pads others to the next of them.

The lists, of engines as they come: vLLM's counts tokens (github.com/vllm-project/vllm, vllm/config/vllm.py:
_set_cudagraph_sizes; with drafted tokens rounded up to whole sequences, vllm/config/compilation.py:
adjust_cudagraph_sizes_for_spec_decode), SGLang's sequences (github.com/sgl-project/sglang, python/sglang/srt/server_args.py:
_generate_cuda_graph_batch_sizes; of what is gathered over attention's tp ranks, or goes in halves, only multiples:
get_batch_sizes_to_capture) and TensorRT-LLM's too (github.com/NVIDIA/TensorRT-LLM, tensorrt_llm/llmapi/llm_args.py:
CudaGraphConfig, with `enable_padding`, which its own configurations set: examples/configs/curated). Data-parallel groups are
padded alike, to the size of the one with most. Where no engine is named it is vLLM's list, sizes that all three capture up to
128.

What padded rows do: projections, norms, router, shared experts and dense layers compute them, all-reduces and gathers carry
them. Attention finds no key for them (one in SGLang), the cache is not written, and the logits are those of real rows. Experts:
vLLM gives them none (VLLM_MOE_SKIP_PADDING, pull requests 46428, 48979 and 50757: on since mid-2026), nor does SGLang under
expert parallelism (layers/moe/topk.py: num_token_non_padded). Without it they choose (pull request 25852), and in TensorRT-LLM
(_torch/pyexecutor/cuda_graph_runner.py: one dummy request, repeated): rows alike choose as one sequence more. In SGLang they
are alike until it has held more sequences at once (its buffers keep their tokens), in older vLLM, whose buffers prompts went
through, they are not: `routed` lets them choose as further tokens would.
Not modelled: steps with prompts, which vLLM pads too up to 512 tokens, and batches beyond the largest graph, which run without
one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE
from moetrace.op import Op
from moetrace.replay import edit
from moetrace.replay.draft import At, Draft
from moetrace.replay.lanes import Lanes, each
from moetrace.replay.sharing import shares_of
from moetrace.run import GENERATING

VLLM = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))  # tokens; on Blackwell up to 1024
SGLANG = (1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 513, 16))  # on one to three H100s up to 256
SGLANG_DRAFTED = (
    *range(1, 9),
    *range(10, 33, 2),
    *range(40, 65, 4),
    *range(72, 257, 8),
    *range(272, 513, 16),
)
TRTLLM = (1, 2, 4, *range(8, 129, 8), *range(192, 2049, 64))  # up to the largest batch that it is built for
# What works on the real rows alone.
_REAL_ROWS = frozenset({
    "attention", "attention_reduce", "mla_attention", "linear_attention", "linear_conv", "kv_write", "lm_head", "sampling",
})  # fmt: skip
_CHOSEN = {
    "none": "choose no expert (pad=routed: they do)",
    "alike": "choose experts as one sequence more does, being alike (pad=routed: as further tokens would)",
    "routed": "choose experts as further tokens would (pad=routed)",
}
_AFTER_LAYERS = frozenset({"all_gather", "elementwise"})  # of the logits, where they belong to no layer


def graph_size(engine: str, batch: float, queries: float, multiple: float = 1) -> int:
    """Sequences of the graph that `batch` of them run in, of `queries` tokens each; `batch` where no graph is as large.

    `multiple` is what SGLang's sizes must divide by.
    """
    count, each_has = int(batch), int(queries)
    if engine == "sglang":
        sizes = SGLANG if each_has == 1 else SGLANG_DRAFTED
        return next((n for n in sizes if n >= count and n % int(multiple) == 0), count)
    if engine == "trtllm":
        return next((n for n in TRTLLM if n >= count), count)
    found = (-(-tokens // each_has) for tokens in VLLM if tokens > (count - 1) * each_has)
    return next((n for n in found if n * each_has <= VLLM[-1]), count)


def by_default(draft: Draft) -> bool:
    """Whether decode steps are padded without being asked to: those of a simulation, on GPUs, in graphs.

    A recording's ops have the rows that ran.
    """
    on_gpu = draft.hw.device_class == "gpu"
    return draft.run.meta.kind == "synthesized" and on_gpu and draft.scenario.get("graph") != "off"


@dataclass(frozen=True, slots=True)
class _Grown:
    """Rows of a decode step: of the rank with most, real and padded, of all groups, and those of all that choose experts."""

    real: Any
    padded: Any
    all_real: Any
    all_padded: Any
    choosing: Any

    def of(self, op: Op, at: At) -> Op:
        """An op of the step with its padded rows."""
        if op.kind in _REAL_ROWS or (at.layer < 0 and op.kind in _AFTER_LAYERS):
            return op
        if op.kind in edit.MODULE:
            return edit.scaled(op, self.choosing, self.all_real)
        if op.kind in edit.EXCHANGES and self.choosing is self.all_real:
            return op
        if op.kind == "reduce_scatter":
            return edit.scaled(op, self.all_padded, self.all_real)
        return edit.scaled(op, self.padded, self.real)


def padded(draft: Draft, asked: str, routed: bool = False) -> Draft:
    """The draft with the rows of each decode step padded to the size of the engine's graph; `routed` ones choose experts as
    further tokens would.

    Raises ScenarioError where no graph is there, or a step's batch is not known.
    """
    _check_graphs(draft, asked)
    engine = str(draft.stated("engine", ANY_ENGINE)).partition("@")[0]
    alike = engine == "trtllm" or (engine == "sglang" and draft.parallel.ep == 1)
    grown: dict[int, _Grown] = {}
    said: dict[tuple[int, int], None] = {}
    for i, (step, share) in enumerate(zip(draft.steps, shares_of(draft, asked), strict=True)):
        if step.phase not in GENERATING:
            continue
        halves = 1 + share.halves  # engines pad the whole, then halve it
        batch: Any = draft.batch_of(i)
        queries = step.tokens // batch if step.tokens else 1
        rows = -(-_size(engine, halves * share.batch, queries, _multiple(draft, engine)) // halves)
        every, real = rows * share.groups, share.total
        if _equal(every, real):
            continue
        more = rows > share.batch
        # Groups with a sequence less have the rows of the others in any case.
        groups = share.groups * more + share.fewer * (1 - more)
        grown[i] = _Grown(
            share.batch, rows, real, every, every if routed else real + groups if alike else real
        )
        if isinstance(rows, int) and rows != share.batch:
            said[share.batch, rows] = None
    if not grown:
        return draft
    draft = draft.rewrite(lambda op, at: grown[at.step].of(op, at) if at.step in grown else op)
    note = _note(engine, list(said), "routed" if routed else "alike" if alike else "none") if said else ""
    return replace(draft.noted(*([note] if note else [])), padded=True)


def _size(engine: str, batch: Any, queries: Any, multiple: int) -> Any:
    """`graph_size`, also of many scenarios."""
    found = each(graph_size, engine, batch, queries, multiple)
    return round(found) if isinstance(found, Lanes) else found


def _equal(one: Any, two: Any) -> bool:
    """Whether two numbers are the same, in all scenarios of Lanes."""
    found = one == two
    return bool(found.values.all()) if isinstance(found, Lanes) else bool(found)


def _multiple(draft: Draft, engine: str) -> int:
    """What the sizes of SGLang's graphs must divide by: tp of attention where groups gather their tokens, 2 for halves."""
    if engine != "sglang":
        return 1
    halves = 2 if draft.scenario.get("overlap") == "two_batch" else 1
    return halves * (draft.parallel.tp if draft.parallel.dp > 1 else 1)


def _note(engine: str, sizes: list[tuple[int, int]], chosen: str) -> str:
    """What is said of steps of so many sequences, which run as so many; `chosen` says how padded rows choose experts."""
    named = {"sglang": ("SGLang", SGLANG), "trtllm": ("TensorRT-LLM", TRTLLM)}
    whose, captured = named.get(engine, ("vLLM", VLLM))
    run = ", ".join(f"{real} sequences run as {rows}" for real, rows in sizes)
    return (
        f"decode steps run in graphs of the sizes that {whose} captures ({', '.join(map(str, captured[:7]))} ...): {run}; "
        f"padded rows have no attention and no logits, and {_CHOSEN[chosen]}; pad=none leaves them out"
    )


def _check_graphs(draft: Draft, asked: str) -> None:
    """Raises ScenarioError where there are no graphs whose sizes a step could be padded to."""
    if draft.hw.device_class != "gpu":
        raise ScenarioError(
            f"{asked}: {draft.hw.name} is not a GPU, and its steps are not padded to sizes of graphs"
        )
    if draft.stated("graph") == "off":
        raise ScenarioError(
            f"{asked}: kernels that the host launches one by one (graph=off) are of no graph's size"
        )
