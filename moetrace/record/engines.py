"""vLLM and SGLang from outside: what tells them apart, how their profiler is driven, what they say of themselves.

Read in the sources of vLLM (0.22, 2026: entrypoints/serve/profile, config/profiler) and SGLang (0.5, 2026:
entrypoints/http_server, managers/io_struct, eplb/expert_distribution); not run against a real server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moetrace.errors import MoetraceError, unknown
from moetrace.record.http import Client, RefusalError

# What an engine says of how it runs, and what it is called in recording.json. Nothing that names a host, user or path.
_SAID = {
    "tp": ("tp_size", "tensor_parallel_size"),
    "dp": ("dp_size", "data_parallel_size"),
    "pp": ("pp_size", "pipeline_parallel_size"),
    "ep": ("ep_size", "expert_parallel_size"),
    "dtype": ("dtype",),
    "kv_cache_dtype": ("kv_cache_dtype",),
    "quantization": ("quantization",),
    "attention_backend": ("attention_backend",),
    "moe_backend": ("moe_runner_backend", "moe_backend"),
    "cuda_graphs_disabled": ("disable_cuda_graph", "enforce_eager"),
    "max_running": ("max_running_requests", "max_num_seqs"),
}
# Fields of SGLang's /start_profile that are the caller's to choose, and their types.
_SGLANG_FIELDS: dict[str, type] = {
    "num_steps": int,
    "start_step": int,
    "profile_by_stage": bool,
    "with_stack": bool,
    "record_shapes": bool,
}


@dataclass(frozen=True, slots=True)
class Engine:
    """A running server. `facts` is what it says of how it runs; `root` the folder or name its weights came from."""

    name: str
    version: str
    model_id: str
    root: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    records_experts: bool = False

    @property
    def ranks(self) -> int:
        """How many traces it writes at least, if it says how many ranks share the model; else 0."""
        told = [n for name in ("tp", "pp") if isinstance(n := self.facts.get(name), int) and n > 0]
        return math.prod(told) if told else 0

    def start(self, client: Client, trace_dir: Path, options: Mapping[str, Any]) -> None:
        """Start the profiler. Raises MoetraceError saying how the server must be started where it cannot."""
        body = None
        if self.name == "sglang":
            body = {"output_dir": str(trace_dir), "activities": ["CPU", "GPU"], "record_shapes": True} | dict(
                options
            )
        try:
            client.post("/start_profile", body)
        except RefusalError as refusal:
            if refusal.status != 404:
                raise
            how = "--profiler-config.profiler=torch --profiler-config.torch_profiler_dir=DIR"
            raise MoetraceError(
                f"this {self.name} server has no /start_profile: start it with {how}"
                if self.name == "vllm"
                else f"this {self.name} server has no /start_profile"
            ) from None

    def stop(self, client: Client, timeout: float) -> None:
        """Stop the profiler, which writes the traces; one that has stopped by itself is no failure."""
        with suppress(RefusalError):
            client.post("/stop_profile", timeout=timeout)

    def options(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The profiler's options, typed. Raises MoetraceError for one that this engine does not take with a request."""
        if given and self.name == "vllm":
            raise MoetraceError(
                "--profile-option: vLLM takes its profiler's options at its start, in --profiler-config "
                "(delay_iterations, max_iterations, warmup_iterations, active_iterations, ...)"
            )
        return {name: _typed(name, text) for name, text in given.items()}


def _typed(name: str, text: str) -> Any:
    if name not in _SGLANG_FIELDS:
        raise MoetraceError(unknown("profile option", name, _SGLANG_FIELDS))
    if _SGLANG_FIELDS[name] is bool and text in ("true", "false"):
        return text == "true"
    if _SGLANG_FIELDS[name] is int and text.isdigit():
        return int(text)
    expected = "true or false" if _SGLANG_FIELDS[name] is bool else "a whole number"
    raise MoetraceError(f"--profile-option {name}={text}: expected {expected}")


def find_engine(client: Client) -> Engine:
    """The engine that answers. Raises MoetraceError if it is neither vLLM nor SGLang, or says nothing of a model."""
    listed = client.get("/v1/models")
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        raise MoetraceError("the server lists no model at /v1/models: expected a vLLM or SGLang server")
    model_id, root = (str(models[0].get(key) or "") for key in ("id", "root"))
    for path in ("/server_info", "/get_server_info"):  # the newer name first
        info = client.get(path)
        if isinstance(info, dict) and "tp_size" in info:
            root = str(info.get("model_path") or root)
            records = info.get("expert_distribution_recorder_mode") is not None
            return Engine("sglang", str(info.get("version", "")), model_id, root, _facts(info), records)
    version = client.get("/version")
    if isinstance(version, dict) and "version" in version:
        return Engine("vllm", str(version["version"]), model_id, root, _facts(models[0]))
    raise MoetraceError(
        "the server answers neither /server_info nor /version: expected a vLLM or SGLang server"
    )


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and short words only: a text with a separator may be a path."""
    found: dict[str, Any] = {}
    for name, keys in _SAID.items():
        value = next((info[k] for k in keys if info.get(k) is not None), None)
        if isinstance(value, (bool, int)) or (isinstance(value, str) and value.replace("_", "").isalnum()):
            found[name] = value
    return found
