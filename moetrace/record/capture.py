"""torch.profiler started, stopped and written out once, and what of a config is kept.

The trace always parses: torch 2.13's C++ exporter can write names with unescaped quotes (pytorch/kineto,
mended after 2.13 by commit eba157ad), so the Python exporter is used where there is one and every line of it
is checked.
"""

from __future__ import annotations

import gzip
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from moetrace.record.files import TRACE_FILE

if TYPE_CHECKING:
    from torch.profiler import _KinetoProfile

_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "fp8",
}
# Config entries whose text says something about the architecture; any other text may name a person's machine or files.
_CONFIG_TEXTS = frozenset(
    (
        *("model_type", "hidden_act", "hidden_activation", "activation_function", "torch_dtype", "dtype"),
        "mamba_ssm_dtype",
        *("layer_types", "mlp_layer_types", "rope_type", "position_embedding_type", "scoring_func"),
        *("topk_method", "quant_method", "quant_algo", "quant_type", "fmt", "format", "strategy", "type"),
        *("activation_scheme", "modules_to_not_convert", "ignore", "ignored_layers", "exclude"),
        *("exclude_modules", "experts_implementation", "attn_implementation"),
    )
)
_PLAIN = re.compile(r"[\w.*+:-]{1,128}")  # no separator of any path
# Config entries that say nothing about the architecture.
_CONFIG_DROPPED = frozenset(
    (
        *("auto_map", "transformers_version", "id2label", "label2id", "torchscript"),
        *("task_specific_params", "chunk_size_feed_forward", "problem_type", "output_attentions"),
        *("output_hidden_states", "return_dict", "pruned_heads", "is_encoder_decoder"),
    )
)
# Entries in which an exporter states where, on what and for whom it ran.
_OWNER = re.compile(rb'("(?:host_name|username|traceName)"\s*:\s*)"(?:[^"\\\n]|\\.)*"')


def prepared_profiler(cuda: bool, all_threads: bool) -> _KinetoProfile:
    """A profiler of CPU (and CUDA) activity with shapes and without stacks, warmed up: what runs until its
    ``start_trace()`` is not kept.

    `all_threads` lets it be stopped on another thread than it was started on, which otherwise ends the process.
    """
    from torch.profiler import ProfilerActivity, _KinetoProfile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    config = None
    if all_threads:
        from torch._C._profiler import _ExperimentalConfig

        config = _ExperimentalConfig(profile_all_threads=True)
    profiler = _KinetoProfile(activities=activities, record_shapes=True, experimental_config=config)
    profiler.prepare_trace()
    return profiler


def start_profiler(cuda: bool) -> _KinetoProfile:
    """A running profiler of CPU (and CUDA) activity with shapes and without stacks; ``stop_trace()`` ends it."""
    profiler = prepared_profiler(cuda, all_threads=False)
    profiler.start_trace()
    return profiler


def export_trace(profiler: _KinetoProfile, folder: Path) -> dict[str, object]:
    """Write the stopped `profiler`'s trace into `folder` and return what is known about it.

    ``exporter``: python or c++; ``events``: how many events; ``dropped``: events left out because their JSON
    was broken; ``kernels``: those of a GPU; ``valid``: whether the file as a whole parses. No path, host or user name is kept.
    """
    raw = folder / "trace.json"
    python = "use_python_export" in inspect.signature(profiler.export_chrome_trace).parameters
    if python:
        profiler.export_chrome_trace(str(raw), use_python_export=True)
    else:
        profiler.export_chrome_trace(str(raw))
    with (
        raw.open("rb") as source,
        (folder / TRACE_FILE).open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as target,
    ):
        told = _copy_lines(source, target) if python else _copy_whole(source, target)
    raw.unlink()
    return {"exporter": "python" if python else "c++", **told}


def _copy_lines(source: IO[bytes], target: gzip.GzipFile) -> dict[str, object]:
    """Copy a trace of one event per line, leaving out events that do not parse."""
    events = dropped = kernels = 0
    for line in source:
        if line.startswith(b'"traceName"'):
            line = b'"traceName": "' + TRACE_FILE.encode() + b'"\n'  # it holds the path of the file
        elif line.startswith(b'{"ph"'):
            try:
                orjson.loads(line.rstrip(b",\n"))
            except orjson.JSONDecodeError:
                dropped += 1
                continue
            events += 1
            kernels += b'"cat": "kernel"' in line
        else:
            line = _OWNER.sub(rb'\1""', line)
        target.write(line)
    return {"events": events, "dropped": dropped, "kernels": kernels, "valid": True}


def _copy_whole(source: IO[bytes], target: gzip.GzipFile) -> dict[str, object]:
    """Copy a trace of the C++ exporter, rewritten without names if it parses and as it is if it does not."""
    body = source.read()
    try:
        trace = orjson.loads(body)
    except orjson.JSONDecodeError:
        target.write(_OWNER.sub(rb'\1""', body))
        return {"valid": False}
    for key in ("host_name", "username"):
        trace.pop(key, None)
    trace["traceName"] = TRACE_FILE
    target.write(orjson.dumps(trace))
    events = trace["traceEvents"]
    kernels = sum(event.get("cat") == "kernel" for event in events)
    return {"events": len(events), "dropped": 0, "kernels": kernels, "valid": True}


def without_owner(line: bytes) -> bytes:
    """A line of a trace without the names of host, user and file."""
    return _OWNER.sub(rb'\1""', line)


def dtype_name(dtype: object) -> str:
    """moetrace's name of a torch dtype."""
    text = str(dtype).removeprefix("torch.")
    return _DTYPES.get(text, text)


def config_facts(config: object) -> dict[str, Any]:
    """The architecture fields of a Hugging Face config (object or mapping), without code to run and paths."""
    raw = config.to_dict() if hasattr(config, "to_dict") else config
    return _clean(raw) if isinstance(raw, Mapping) else {}


def _clean(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, lists of numbers and nested fields as they are; text only under names known to hold no path."""
    kept: dict[str, Any] = {}
    for key, value in fields.items():
        if (
            not isinstance(key, str)
            or not _PLAIN.fullmatch(key)
            or key.startswith("_")
            or key in _CONFIG_DROPPED
        ):
            continue
        if isinstance(value, Mapping):
            kept[key] = _clean(value)
        elif isinstance(value, (list, tuple)):
            kept[key] = [said for v in value if (said := _plain(key, v)) is not None]
        elif (said := _plain(key, value)) is not None:
            kept[key] = said
    return kept


def _plain(key: str, value: object) -> bool | int | float | str | None:
    """A number, or a text that `key` may hold; None for anything else."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value).removeprefix("torch.")
    return text if key in _CONFIG_TEXTS and _PLAIN.fullmatch(text) else None


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not there."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return None
