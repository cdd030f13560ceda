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
expert parallelism (layers/moe/topk.py: num_token_non_padded). SGLang without it (pull request 25852), TensorRT-LLM and older
vLLM let them choose; what they choose is not known, from one token's experts, where they are alike, to those of as many
tokens (`routed`). Not modelled: steps with prompts, which vLLM pads too up to 512 tokens, and batches beyond the largest graph,
which run without one.
"""

from __future__ import annotations

from dataclasses import replace
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
_CHOSEN = edit.MODULE | edit.EXCHANGES  # of rows that chose experts
_OF_ALL = edit.MODULE | {"reduce_scatter"}  # of the rows of all data-parallel groups
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


def padded(draft: Draft, asked: str, routed: bool = False) -> Draft:
    """The draft with the rows of each decode step padded to the size of the engine's graph; `routed` ones choose experts, as
    many tokens would, and so come before the routing is settled.

    Raises ScenarioError where no graph is there, or a step's batch is not known.
    """
    _check_graphs(draft, asked)
    engine = str(draft.stated("engine", ANY_ENGINE)).partition("@")[0]
    grown: dict[
        int, tuple[Any, Any, Any, Any]
    ] = {}  # by step: rows of a rank and of all groups, padded and real
    said: dict[tuple[int, int], None] = {}
    for i, (step, share) in enumerate(zip(draft.steps, shares_of(draft, asked), strict=True)):
        if step.phase not in GENERATING:
            continue
        halves = 1 + share.halves  # engines pad the whole, then halve it
        batch: Any = draft.batch_of(i)
        queries = step.tokens // batch if step.tokens else 1
        whole = _size(engine, halves * share.batch, queries, _multiple(draft, engine))
        rows = -(-whole // halves)
        every = rows * share.groups
        if not _equal(every, share.total):  # groups with a sequence less have the rows of the others too
            grown[i] = rows, share.batch, every, share.total
            if isinstance(rows, int) and rows != share.batch:
                said[share.batch, rows] = None
    if not grown:
        return draft

    def change(op: Op, at: At) -> Op:
        kept = op.kind in _REAL_ROWS or (op.kind in _CHOSEN and not routed)
        if at.step not in grown or kept or (at.layer < 0 and op.kind in _AFTER_LAYERS):
            return op
        rows, real, all_rows, all_real = grown[at.step]
        if op.kind in _OF_ALL:
            return edit.scaled(op, all_rows, all_real)
        return edit.scaled(op, rows, real)

    draft = replace(draft.rewrite(change), padded=True)
    return draft.noted(_note(engine, list(said), routed)) if said else draft


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


def _note(engine: str, sizes: list[tuple[int, int]], routed: bool) -> str:
    """What is said of steps of so many sequences, which run as so many."""
    whose, captured = {"sglang": ("SGLang", SGLANG), "trtllm": ("TensorRT-LLM", TRTLLM)}.get(
        engine, ("vLLM", VLLM)
    )
    run = ", ".join(f"{real} sequences run as {rows}" for real, rows in sizes)
    experts = (
        "choose experts as further tokens would (pad=routed)"
        if routed
        else "choose no expert (pad=routed: they do)"
    )
    return (
        f"decode steps run in graphs of the sizes that {whose} captures ({', '.join(map(str, captured[:7]))} ...): {run}; "
        f"padded rows have no attention and no logits, and {experts}; pad=none leaves them out"
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
