"""What a recording is asked to hold, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from moetrace.errors import MoetraceError

if TYPE_CHECKING:
    from torch import nn

_COUNTS = {"skip": 0, "warmup": 0, "active": 1, "router_extra": 0, "graph_tokens": 1}


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `moetrace.record`; see there. Raises MoetraceError for a value that makes no sense.

    Beyond those: `experts_only` passes over models without experts; `nsys` says that nsys waits for the window's range, and
    records the GPU instead of torch.profiler.
    """

    model: nn.Module | None = None
    model_config: object = None
    model_name: str = ""
    parts: Mapping[str, str] | None = None
    skip: int = 0
    warmup: int = 0
    active: int | None = None
    routing: bool = True
    token_ids: bool = False
    router_extra: int = 0
    graph_tokens: int | None = None
    detect: bool = True
    nvtx: bool = True
    force: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    experts_only: bool = False
    nsys: bool = False

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise MoetraceError(f"record({name}={value!r}): expected a whole number from {least}")
        try:
            orjson.dumps(dict(self.metadata), default=str)
        except (TypeError, ValueError) as error:
            raise MoetraceError(f"record(metadata=...) cannot be written as JSON: {error}") from None
        if self.graph_tokens is not None and self.model is None:
            raise MoetraceError(
                "record(graph_tokens=...) needs model= too, whose routers get buffers before the capture"
            )

    def window(self, step: int) -> str:
        """What happens to the `step`-th step from 0: it is before, warmup, active or after."""
        if step < self.skip:
            return "before"
        if step < self.skip + self.warmup:
            return "warmup"
        if self.active is None or step < self.skip + self.warmup + self.active:
            return "active"
        return "after"
