"""Which experts were chosen, as the engines tell it: with vLLM's answers, or by SGLang's expert-distribution recorder."""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.errors import MoetraceError
from moetrace.model import ModelSpec
from moetrace.record.http import Client, RefusalError
from moetrace.record.routing_files import read_routing
from moetrace.routing import Routing, RoutingBuilder, RoutingLog

IntArray = np.ndarray[Any, np.dtype[np.int64]]
_PATTERN = "expert_distribution_recorder_*.pt"
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class ExpertRecords:
    """SGLang's recorder, begun: its files come into `folder` when it is told to dump."""

    folder: Path
    before: frozenset[Path]

    @classmethod
    def begin(cls, client: Client, folder: Path) -> ExpertRecords:
        """Start recording. Raises MoetraceError if the folder is not there or the server refuses."""
        if not folder.is_dir():
            raise MoetraceError(
                f"--expert-dir {folder}: no such folder here (the server's SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR)"
            )
        client.post("/start_expert_distribution_record")
        return cls(folder, frozenset(folder.glob(_PATTERN)))

    def collect(self, client: Client, timeout: float, spec: ModelSpec | None) -> tuple[Routing | None, str]:
        """(what was recorded, where it comes from). Where there is nothing the routing is None, and the text says why."""
        with suppress(RefusalError):
            client.post("/stop_expert_distribution_record")
        client.post("/dump_expert_distribution_record", timeout=timeout)
        deadline, size = time.monotonic() + timeout, -1
        while time.monotonic() < deadline:
            new = sorted(set(self.folder.glob(_PATTERN)) - self.before)
            total = sum(p.stat().st_size for p in new)
            if new and total == size:
                told = read_routing(new[0])
                if isinstance(told, RoutingLog):
                    if spec is None and told.counts:
                        return None, "none: counts by expert need the model's top-k (give the model)"
                    told, _ = told.routing(*((spec.experts, spec.topk) if spec is not None else (None, None)))
                return told, "sglang expert-distribution recorder"
            size = total
            time.sleep(_POLL_S)
        return None, "none: SGLang's recorder wrote no file"


def of_answer(answer: Mapping[str, Any], context: int, spec: ModelSpec | None) -> tuple[Routing | None, str]:
    """(routing, source) of vLLM's ``routed_experts`` in an answer of /v1/completions; (None, "none") without them.

    Each holds ids [tokens fed, layers, k], the prompt's first. Step 0 is the prompts, step t the t-th token of each: what
    ran together if all prompts were prefilled at once. Layers that are all zero hold no experts.
    """
    fed = [_ids(choice) for choice in answer.get("choices") or () if isinstance(choice, Mapping)]
    known = [ids for ids in fed if ids is not None]
    if not known or len(known) != len(fed) or len({ids.shape[1:] for ids in known}) != 1:
        return None, "none"
    experts = spec.experts if spec is not None and spec.experts else int(max(ids.max() for ids in known)) + 1
    builder = RoutingBuilder(experts)
    layers = [layer for layer in range(known[0].shape[1]) if any(ids[:, layer].any() for ids in known)]
    length = min(len(ids) for ids in known)
    for step in range(length - context + 1):
        for layer in layers:
            rows = [
                ids[:context, layer] if step == 0 else ids[context + step - 1, layer][None] for ids in known
            ]
            builder.add(step, layer, np.concatenate(rows))
    return builder.build(), "vllm routed_experts, steps as if all prompts were prefilled at once"


def _ids(choice: Mapping[str, Any]) -> IntArray | None:
    text = choice.get("routed_experts")
    if not isinstance(text, str):
        return None
    try:
        ids = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError) as error:
        raise MoetraceError(f"the server's routed_experts are not a base64 array ({error})") from None
    if ids.ndim != 3 or not np.issubdtype(ids.dtype, np.integer):
        raise MoetraceError(
            f"the server's routed_experts are {ids.dtype} {list(ids.shape)}, expected ids [tokens, layers, k]"
        )
    chosen: IntArray = ids.astype(np.int64)
    return chosen
