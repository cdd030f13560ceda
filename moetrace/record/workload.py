"""The built-in workload: a real MoE architecture, prefilled and decoded greedily, and recorded.

Full widths, expert count and top-k unless asked otherwise, fewer layers. Weights are random unless a folder is
given: then tokens mean nothing and a router left to itself is near uniform, which `routing` changes. Times and bytes
of an op depend on neither but through the experts touched. Weights are stored in `dtype` also where the public
checkpoint is quantised.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.errors import ModelError, MoetraceError, unknown
from moetrace.model import load_config, model_names
from moetrace.record import capture, fp8, record
from moetrace.record.build import (
    DTYPES,
    EXPERT_COUNTS,
    EXPERT_DTYPES,
    EXPERTS,
    build_config,
    build_model,
    find_device,
    imports,
)
from moetrace.record.device import saw_no_kernel
from moetrace.record.files import CAPTURE_FILE, TRACE_FILE, check_output
from moetrace.record.forced import Forcing
from moetrace.record.loop import CudaGraph, Graph, Loop
from moetrace.record.modules import find_places

if TYPE_CHECKING:
    import torch
    from torch import nn

    from moetrace.record.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Workload:
    """What to build and to run. `context` is the prompt length of each sequence, `steps` the decode steps.

    `routing` is empty (the router's own), ``uniform``, ``power_law:ALPHA`` or ``recorded:FILE``; `weights` a folder
    of safetensors; `experts` a key of EXPERTS; `expert_dtype` ``fp8`` for the experts alone; `graph` replays the decode step as
    one CUDA graph. `token_ids` and `router_extra` as for `moetrace.record`.
    """

    model: str
    layers: int | None = None
    batch: int = 16
    context: int = 512
    steps: int = 4
    n_a: int | None = None
    n_e: int | None = None
    expert_width: int | None = None
    dtype: str = "bf16"
    expert_dtype: str | None = None
    experts: str = "fused"
    routing: str = ""
    weights: Path | None = None
    graph: bool = False
    prefill: bool = True
    token_ids: bool = False
    router_extra: int = 0
    seed: int = 0
    threads: int | None = None
    device: str = "auto"


def run_workload(
    work: Workload,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Build, run unrecorded (which warms up and times), run again recorded into `out`; return what was found.

    Keys: ``tokens_equal`` (whether both runs chose the same tokens), ``unprofiled_s`` and ``recorded_s`` (seconds of
    each step, prefill first), ``routing_taken`` (share of the prescribed choices that the routers made; None where
    none was prescribed), ``saw_no_kernel`` (whether the profiler recorded a GPU and no kernel of it). Raises ModelError for a
    config that transformers cannot build, MoetraceError if a value makes no sense or torch or transformers are missing.
    """
    _check(work)
    check_output(Path(out), force)
    torch, _ = imports()
    raw = load_config(work.model)
    config = build_config(raw, work.layers, work.n_a, work.n_e, work.expert_width)
    if work.threads:
        torch.set_num_threads(work.threads)
    device = find_device(work.device)
    if work.graph and not _has_graphs(device):
        raise MoetraceError("--graph: CUDA graphs need a CUDA device; leave out --graph here")
    name = _name(work.model)
    weights = "random weights" if work.weights is None else "given weights"
    progress(f"building {name}, {config.num_hidden_layers} of {raw['num_hidden_layers']} layers, {weights}")
    model = build_model(
        config, dtype=work.dtype, experts=work.experts, seed=work.seed, device=device, weights=work.weights,
        expert_dtype=work.expert_dtype,
    )  # fmt: skip
    forcing = _forcing(work, model, config)
    scratch = Path(tempfile.mkdtemp(prefix="moetrace-"))
    try:
        loop = _loop(work, model, config, forcing, scratch)
        # On a GPU the first one loads kernels, and captures the graph.
        rehearsals = 2 if device.type == "cuda" else 1
        with record(
            out,
            model=model,
            model_name=name,
            model_config=_stored_config(work, config),
            force=force,
            skip=rehearsals * (work.steps + work.prefill),
            token_ids=work.token_ids,
            router_extra=work.router_extra,
            graph_tokens=work.batch if work.graph else None,
            metadata=_metadata(work, raw),
        ) as rec:
            if work.graph:
                rec.files[CAPTURE_FILE] = scratch / TRACE_FILE
            told = _run(loop, rec, work.prefill, forcing, rehearsals, progress)
            rec.metadata |= told
        return told | {"saw_no_kernel": saw_no_kernel(rec.told or {})}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if forcing is not None:
            forcing.remove()


def _run(
    loop: Loop,
    rec: Recorder,
    prefill: bool,
    forcing: Forcing | None,
    rehearsals: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Runs the loop unrecorded, so often, and then recorded; what `run_workload` tells of both."""
    progress("running unrecorded, to warm up and to time")
    for _ in range(rehearsals):
        unrecorded, unprofiled_s, taken = _unrecorded(loop, rec, prefill, forcing)
    progress("recording")
    loop.run(rec, prefill)
    return {
        "tokens_equal": loop.chosen == unrecorded,
        "unprofiled_s": unprofiled_s,
        "recorded_s": loop.seconds,
        "routing_taken": taken,
    }


def _has_graphs(device: torch.device) -> bool:
    return str(device.type) == "cuda"


def _forcing(work: Workload, model: nn.Module, config: Any) -> Forcing | None:
    if not work.routing:
        return None
    return Forcing(find_places(model), work.routing, int(config.num_experts_per_tok), work.seed)


def _loop(work: Workload, model: nn.Module, config: Any, forcing: Forcing | None, scratch: Path) -> Loop:
    torch, transformers = imports()
    generator = torch.Generator().manual_seed(work.seed)
    prompt = torch.randint(0, config.vocab_size, (work.batch, work.context), generator=generator)
    cache = transformers.StaticCache(config=config, max_cache_len=work.context + work.steps)
    graph = partial(_traced_capture, work.batch, scratch) if work.graph else None
    where = next(model.parameters()).device
    return Loop(model, prompt.to(where), cache, work.steps, forcing=forcing, graph=graph)


def _traced_capture(batch: int, folder: Path, run: Callable[[], None]) -> Graph:
    """Capture `run` under the profiler: its launches name the operators and shapes of the replayed kernels."""
    import torch
    from torch.profiler import record_function

    profiler = capture.start_profiler(torch.cuda.is_available())
    with record_function(f"capture_{batch}_FULL"):  # as vLLM calls it: the reader takes the batch from it
        graph = CudaGraph(run)
    profiler.stop_trace()
    capture.export_trace(profiler, folder)
    return graph


def _unrecorded(
    loop: Loop, rec: Recorder, prefill: bool, forcing: Forcing | None
) -> tuple[list[list[int]], list[float], float | None]:
    """(tokens, seconds of each step, share of the prescribed routing that was taken) of a run in the recorder's skip."""
    if forcing is None:
        loop.run(rec, prefill)
        return loop.chosen, loop.seconds, None
    with forcing.comparing():
        loop.run(rec, prefill)
    return loop.chosen, loop.seconds, forcing.share_taken


def _stored_config(work: Workload, config: Any) -> dict[str, Any] | None:
    """The config with what is stored otherwise than in `dtype`; None where nothing is."""
    return None if work.expert_dtype is None else {**config.to_dict(), "quantization_config": fp8.CONFIG}


def _metadata(work: Workload, raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "native_layers": raw["num_hidden_layers"],
        "native_topk": raw.get("num_experts_per_tok"),
        "native_experts": next((raw[k] for k in EXPERT_COUNTS if raw.get(k)), None),
        "batch": work.batch,
        "context": work.context,
        "cache_tokens": work.context + work.steps,
        "seed": work.seed,
        "expert_dtype": work.expert_dtype or work.dtype,
        "weights": "random" if work.weights is None else "given",
        "graph": work.graph,
        "routing_prescribed": work.routing.partition(":")[0] + ":file"
        if work.routing.startswith("recorded:")
        else work.routing or None,
        "workload": "built-in: random token ids, prefill, greedy decode, static KV cache",
    }


def _name(model: str) -> str:
    """The catalogue name, else the file's or, for a config.json, its folder's name: never a path."""
    path = Path(model)
    if model in model_names():
        return model
    return path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")


def _check(work: Workload) -> None:
    for name in ("batch", "context", "steps"):
        if getattr(work, name) < 1:
            raise MoetraceError(f"--{name} {getattr(work, name)}: expected at least 1")
    if work.dtype not in DTYPES:
        raise MoetraceError(unknown("dtype", work.dtype, DTYPES))
    if work.experts not in EXPERTS:
        raise MoetraceError(unknown("way to run the experts", work.experts, EXPERTS))
    if work.expert_dtype is not None and (work.expert_dtype not in EXPERT_DTYPES or work.dtype != "bf16"):
        raise MoetraceError(
            f"--expert-dtype {work.expert_dtype}: expected {' or '.join(EXPERT_DTYPES)}, beside --dtype bf16"
        )
    if work.expert_dtype is not None and work.experts not in ("fused", "unfused"):
        raise MoetraceError(f"--expert-dtype {work.expert_dtype}: experts run fused or unfused")
    if work.graph and work.experts == "unfused":
        raise MoetraceError(
            "--graph: a loop over the experts that have tokens asks the device which they are, which a graph cannot; "
            "give --experts fused"
        )
    if work.weights is not None:
        if work.n_e or work.expert_width:
            raise MoetraceError("--weights: given weights have their own --n-e and --expert-width")
        if load_config(work.model).get("quantization_config"):
            raise ModelError(
                "--weights: quantised checkpoints are not loaded; give one in bf16, fp16 or fp32"
            )
