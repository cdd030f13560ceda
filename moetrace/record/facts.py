"""What recording.json says: the metadata that a trace lacks, and what the recording cost.

No environment variable, host or user name, path, token or prompt is among it; see `capture.config_facts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from statistics import median
from typing import TYPE_CHECKING, Any

from moetrace import __version__
from moetrace.record import capture
from moetrace.record.counted import Counted
from moetrace.record.device import device_facts
from moetrace.record.settings import Settings

if TYPE_CHECKING:
    from torch import nn

RECORDING_VERSION = 1
_N_A = ("num_experts_per_tok", "experts_per_token", "moe_topk", "top_k")
_N_E = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(slots=True)
class StepFacts:
    """One step, as in recording.json. `kv_tokens`: KV-cache tokens read, summed over sequences.

    `padding`: how many of the `tokens` the attention mask calls padding. `seconds`: on the host's clock from its
    start to its end, without waiting for the device.
    """

    index: int
    phase: str
    batch: int
    tokens: int
    kv_tokens: int
    complete: bool = False
    padding: int = 0
    seconds: float = 0.0

    @property
    def range_name(self) -> str:
        sizes = f"batch={self.batch} tokens={self.tokens} kv={self.kv_tokens}"
        return f"moetrace.step#{self.index} {self.phase} {sizes}"


def now() -> str:
    """The date and time of a recording, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def model_facts(model: nn.Module | None, given: object, name: str) -> dict[str, Any]:
    """The model: name, config, n_a, n_e, dtype, how it runs its experts and attention, and on what."""
    import torch

    config = getattr(model, "config", None)
    fields = capture.config_facts(config if given is None else given)
    weight = None if model is None else next(model.parameters(), None)
    nested = fields.get("text_config")
    text = nested if isinstance(nested, Mapping) else fields
    return {
        "model": name or fields.get("model_type", ""),
        "model_class": None if model is None else type(model).__name__,
        "model_config": fields,
        "native_layers": text.get("num_hidden_layers"),
        "n_a": next((text[key] for key in _N_A if text.get(key)), None),
        "n_e": next((text[key] for key in _N_E if text.get(key)), None),
        "dtype": None if weight is None else capture.dtype_name(weight.dtype),
        "weights": "given",
        "engine": "transformers" if _is_transformers(model) else "torch",
        "experts_implementation": getattr(config, "_experts_implementation", None),
        "attention_implementation": getattr(config, "_attn_implementation", None),
        "torch": torch.__version__,
        "transformers": capture.version("transformers"),
        "device": device_facts(None if weight is None else weight.device),
        "parallelism": _parallelism(model),
    }


def _is_transformers(model: nn.Module | None) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def _parallelism(model: nn.Module | None) -> dict[str, Any]:
    """Ranks of the process group, this one's number, and the tensor parallelism transformers was told."""
    from torch import distributed

    placed = getattr(model, "hf_device_map", None)
    facts: dict[str, Any] = {"world_size": 1, "rank": 0, "tp": getattr(model, "_tp_size", None)}
    if distributed.is_available() and distributed.is_initialized():
        facts |= {"world_size": distributed.get_world_size(), "rank": distributed.get_rank()}
    return facts | {"devices": len({str(d) for d in placed.values()}) if isinstance(placed, Mapping) else 1}


def run_facts(ended: str, steps: Sequence[StepFacts], outside: Sequence[StepFacts]) -> dict[str, Any]:
    """The recorded steps, those timed outside of the window, and what recording a step cost."""
    return {
        "schema": RECORDING_VERSION,
        "moetrace": __version__,
        "ended": ended,
        "batch": max((step.batch for step in steps), default=None),
        "steps": [asdict(step) for step in steps],
        "recorded_s": [step.seconds for step in steps],
        "unprofiled": [
            {
                key: value
                for key, value in asdict(step).items()
                if key in ("phase", "batch", "tokens", "kv_tokens", "seconds")
            }
            for step in outside
        ],
        "overhead": overhead(steps, outside),
        "overhead_unknown": _why_unknown(steps, outside),
    }


def recording_facts(
    settings: Settings,
    *,
    run: Mapping[str, Any],
    model: nn.Module | None,
    nvtx: bool,
    annotated: bool,
    marked: bool,
    counted: Counted | None,
    others: Sequence[str],
) -> dict[str, Any]:
    """All that recording.json says but the trace's name: `run` (see `run_facts`), model, window, and how steps were told."""
    return {
        **run,
        **model_facts(model, settings.model_config, settings.model_name),
        "graph_mode": "eager" if settings.graph_tokens is None else "cuda graph",
        "models_not_recorded": list(others),
        "nvtx": nvtx,
        "annotations": annotated,
        "steps_told_by": "marks" if marked else "forwards of the model",
        "window": {"skip": settings.skip, "warmup": settings.warmup, "active": settings.active},
        "routing": routing_facts(counted, settings.router_extra),
    }


def overhead(steps: Sequence[StepFacts], outside: Sequence[StepFacts]) -> dict[str, Any] | None:
    """Medians of whole decode steps inside and outside of the window, of the most recorded batch; None without both."""
    decode = [step for step in steps if step.phase == "decode" and step.complete]
    sizes = [(step.batch, step.tokens) for step in decode]
    if not sizes:
        return None
    size = max(set(sizes), key=sizes.count)
    inside = [step.seconds for step in decode if (step.batch, step.tokens) == size]
    plain = [s.seconds for s in outside if s.phase == "decode" and s.complete and (s.batch, s.tokens) == size]
    if not plain:
        return None
    return {
        "phase": "decode",
        "batch": size[0],
        "recorded_steps": len(inside),
        "unprofiled_steps": len(plain),
        "recorded_step_s": round(median(inside), 6),
        "unprofiled_step_s": round(median(plain), 6),
        "ratio": round(median(inside) / max(median(plain), 1e-9), 4),
    }


def _why_unknown(steps: Sequence[StepFacts], outside: Sequence[StepFacts]) -> str | None:
    """Why `overhead` is None; None where it is not."""
    if overhead(steps, outside) is not None:
        return None
    if not any(step.phase == "decode" and step.complete for step in steps):
        return "no whole decode step was recorded"
    if any(step.phase == "decode" for step in outside):
        return "the decode steps that ran outside of the recorded window were of another batch"
    return (
        "no decode step ran outside of the recorded window: the program ended within it (--skip N only times the first N "
        "steps, a smaller --active leaves the last ones unrecorded)"
    )


def routing_facts(counted: Counted | None, extra: int) -> dict[str, Any]:
    """Where the routing came from and what is left out of it."""
    if counted is None or not counted.sources:
        return {"source": "none"}
    facts: dict[str, Any] = {
        "source": ", ".join(sorted(counted.sources)),
        "order": "descending router score",
        "tokens": "all tokens of each step but padding",
        "chosen": counted.k,
        "by_token": counted.has_tokens,
    }
    if extra:
        facts |= {"extra": extra, "layers_without_extra": sorted(counted.unranked)}
    if counted.refused:
        facts |= {"calls_left_out": len(counted.refused), "first_reason": counted.refused[0]}
    return facts
