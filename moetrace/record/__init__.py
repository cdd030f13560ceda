"""Recording: torch.profiler traces with annotations, routing and metadata, taken during inference.

The only room that imports torch, transformers and nvtx, and that only inside functions, so that it can be
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
    warmup: int = 0,
    routing: bool = True,
    nvtx: bool = True,
    force: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Recorder:
    """A context manager that records the steps marked inside it into the directory `out`.

    `out` then holds ``trace.json.gz`` (torch.profiler, with shapes), ``routing.parquet`` (experts by rank of
    choice, if a router was seen) and ``recording.json`` (metadata). It must not exist, unless `force` and it
    is an older recording. `model`: the module to annotate; without it the first called module that has
    decoder layers. `model_config`: its Hugging Face config (default ``model.config``). `parts`: part ->
    pattern of module names, for modules named otherwise. `warmup`: so many first steps are not recorded.
    `metadata` is added to recording.json and wins over what is found. Raises OutputError if `out` cannot be
    written, MoetraceError if torch is missing or `model` is not recognised.
    """
    from moetrace.record.recorder import Recorder

    return Recorder(
        out,
        model=model,
        model_config=model_config,
        model_name=model_name,
        parts=parts,
        warmup=warmup,
        routing=routing,
        nvtx=nvtx,
        force=force,
        metadata=metadata,
    )
