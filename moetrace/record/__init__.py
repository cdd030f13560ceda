"""Recording: torch.profiler traces with annotations, routing and metadata, taken during inference.

The only module that imports torch, transformers and nvtx, and that only inside functions, so that it can be
imported without them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from moetrace.record.recorder import Recorder

__all__ = ["record"]


def record(
    out: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    model_config: object = None,
    model_name: str = "",
    parts: Mapping[str, str] | None = None,
    skip: int = 0,
    warmup: int = 0,
    active: int | None = None,
    routing: bool = True,
    token_ids: bool = False,
    router_extra: int = 0,
    graph_tokens: int | None = None,
    detect: bool = True,
    nvtx: bool = True,
    force: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Recorder:
    """A context manager that records the steps that run inside it into the directory `out`.

    A step is what ``rec.step(...)`` marks or, without any such mark, a forward of the model and what follows until the
    next. `out` then holds ``trace.json.gz`` (torch.profiler, with shapes), ``routing.parquet`` (experts by rank of
    choice, if a router was seen) and ``recording.json`` (metadata). It must not exist, unless `force` and it
    is an older recording. `model`: the module to annotate; without it the first called module that has
    decoder layers. `model_config`: its Hugging Face config (default ``model.config``). `parts`: part ->
    pattern of module names, for modules named otherwise. `skip`: so many first steps are only timed, for what a step
    takes unprofiled; `warmup`: so many then run under the profiler and are dropped; `active`: so many are recorded
    (default: all), and the rest only timed. `token_ids`: also keep which experts each token chose; `router_extra`: also
    the router's next so many choices; `graph_tokens`: the model will run inside CUDA graphs of at most so many tokens. `detect`
    False: only ``rec.step(...)`` makes a step.
    `metadata` is added to recording.json and wins over what is found. Raises OutputError if `out` cannot be
    written, MoetraceError if torch is missing or `model` is not recognised.
    """
    from moetrace.record.recorder import Recorder
    from moetrace.record.settings import Settings

    return Recorder(
        out,
        Settings(
            model=model,
            model_config=model_config,
            model_name=model_name,
            parts=parts,
            skip=skip,
            warmup=warmup,
            active=active,
            routing=routing,
            token_ids=token_ids,
            router_extra=router_extra,
            graph_tokens=graph_tokens,
            detect=detect,
            nvtx=nvtx,
            force=force,
            metadata=metadata or {},
        ),
    )
