"""Serving engines as people write them, read in one way wherever one is stated. Light: the command line reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from moetrace.errors import ScenarioError, unknown

# A name, then a version: behind @, == or a space, or behind - or _ where it has a dot, for these may be in a name too.
_STATED = re.compile(
    r"([a-z](?:[a-z0-9_-]*?[a-z0-9])?)(?:(?:\s*(?:@|==)\s*|\s+)v?([0-9]\S*)|[-_]v?([0-9]+\.\S*))?"
)
_TENSORRT_LLM = re.compile(r"(?:tensor[ _-]?rt|trt)[ _-]?llm(?![a-z_])")
_VERSION = re.compile(r"\d+(\.\w+)*")


def stated(text: str) -> tuple[str, str] | None:
    """(name, version) of an engine as a profile's keys have it, "" for a version that is not said; None if it is no name.

    ``vLLM 0.19.0``, ``vllm-0.19.0`` and ``vllm@v0.19.0`` are ``vllm`` and ``0.19.0``, ``TensorRT-LLM`` is ``trtllm``.
    """
    found = _STATED.fullmatch(_TENSORRT_LLM.sub("trtllm", text.strip().lower(), count=1))
    return (found[1].replace("-", "_"), found[2] or found[3] or "") if found else None


def engine_among(known: Iterable[str], what: str, text: str) -> str:
    """A stated engine as ``sglang`` or ``sglang@0.4.4``. Raises ScenarioError if it is not known, or its version is none."""
    found, head = stated(text), text.partition("@")[0]
    name, version = found or stated(head) or (head, "")
    if name not in known:
        raise ScenarioError(unknown(f"value of {what}", name if version else head, known))
    if not found or (version and (name == "any" or not _VERSION.fullmatch(version))):
        raise ScenarioError(
            f"{what}={text}: expected an engine and its version, such as sglang@0.4.4, or the engine alone"
        )
    return f"{name}@{version}" if version else name


__all__ = ["engine_among", "stated"]
