"""The built-in workload: a real MoE architecture with random weights, prefilled and decoded greedily, and
recorded.

Full widths, expert count and top-k, fewer layers. What it is not: a trained model. The router's weights are
random, so routing is near uniform, and the tokens mean nothing; times and bytes of an op do not depend on
either but through the experts touched. Weights are stored in `dtype` also where the public checkpoint is
quantised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.errors import ModelError, MoetraceError, unknown
from moetrace.model import load_config, model_names
from moetrace.record import record
from moetrace.record.files import check_output

if TYPE_CHECKING:
    import torch
    from torch import nn

    from moetrace.record.recorder import Recorder

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
EXPERTS = ("grouped_mm", "batched_mm", "eager")
_DENSE_FIRST = "first_k_dense_replace"


@dataclass(frozen=True, slots=True)
class Workload:
    """What to build and to run. `context` is the prompt length of each sequence, `steps` the decode steps."""

    model: str
    layers: int | None = None
    batch: int = 16
    context: int = 512
    steps: int = 4
    n_a: int | None = None
    dtype: str = "bf16"
    experts: str = "grouped_mm"
    prefill: bool = True
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

    Keys: ``tokens_equal`` (whether both runs chose the same tokens), ``unprofiled_s`` and ``recorded_s``
    (seconds of each step, prefill first). Raises ModelError for a config that transformers cannot build,
    MoetraceError if a value makes no sense or torch or transformers are missing.
    """
    _check(work)
    check_output(Path(out), force)
    torch, transformers = _imports()
    raw = load_config(work.model)
    config = build_config(raw, work.layers, work.n_a)
    if work.threads:
        torch.set_num_threads(work.threads)
    device = _device(work.device)
    name = _name(work.model)
    progress(
        f"building {name}, {config.num_hidden_layers} of {raw['num_hidden_layers']} layers, random weights"
    )
    model = build_model(config, work, device)
    generator = torch.Generator().manual_seed(work.seed)
    prompt = torch.randint(0, config.vocab_size, (work.batch, work.context), generator=generator).to(device)
    cache = transformers.StaticCache(config=config, max_cache_len=work.context + work.steps)
    loop = _Loop(model, prompt, cache, work)
    progress("running once unrecorded, to warm up and to time")
    loop.run(None)
    unrecorded, unprofiled_s = loop.chosen, loop.seconds
    cache.reset()
    progress("recording")
    with record(out, model=model, model_name=name, force=force, metadata=_metadata(work, raw)) as rec:
        loop.run(rec)
        told = {
            "tokens_equal": loop.chosen == unrecorded,
            "unprofiled_s": unprofiled_s,
            "recorded_s": loop.seconds,
        }
        rec.metadata |= told
    return told


def build_config(raw: dict[str, Any], layers: int | None, n_a: int | None) -> Any:
    """The transformers config of these Hugging Face fields, cut to `layers` and with top-k `n_a` if given."""
    _, transformers = _imports()
    fields = {k: v for k, v in raw.items() if k not in ("quantization_config", "auto_map", "architectures")}
    native = fields.get("num_hidden_layers")
    if not isinstance(native, int):
        raise ModelError(
            "model config lacks 'num_hidden_layers' (nested configs are not built; give the text model's)"
        )
    if layers is not None:
        if not 1 <= layers <= native:
            raise MoetraceError(f"--layers {layers}: the model has 1 to {native}")
        fields["num_hidden_layers"] = layers
        fields |= {k: v[:layers] for k, v in fields.items() if isinstance(v, list) and len(v) == native}
        if layers <= fields.get(_DENSE_FIRST, 0):
            raise MoetraceError(
                f"--layers {layers}: the first {fields[_DENSE_FIRST]} layers of this model are dense"
            )
    if n_a is not None:
        _set_topk(fields, n_a)
    try:
        return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (KeyError, ValueError) as refusal:
        raise ModelError(
            f"transformers {transformers.__version__} cannot build this model config: {refusal}"
        ) from refusal


def _set_topk(fields: dict[str, Any], n_a: int) -> None:
    counts = (fields.get(k) for k in ("num_experts", "num_local_experts", "n_routed_experts"))
    experts = next((n for n in counts if n), 0)
    if "num_experts_per_tok" not in fields or not 1 <= n_a <= experts:
        raise MoetraceError(f"--n-a {n_a}: expected 1 to the model's {experts} experts")
    fields["num_experts_per_tok"] = n_a


def build_model(config: Any, work: Workload, device: torch.device) -> nn.Module:
    """The model in evaluation mode with seeded random weights, made on `device`."""
    torch, transformers = _imports()
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = work.experts
    torch.manual_seed(work.seed)
    with device:
        dtype = getattr(torch, DTYPES[work.dtype])
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model


class _Loop:
    """Prefill, then greedy decode: the same with a recorder and without one."""

    def __init__(self, model: nn.Module, prompt: torch.Tensor, cache: Any, work: Workload) -> None:
        self._model = model
        self._prompt = prompt
        self._cache = cache
        self._work = work
        self.chosen: list[list[int]] = []
        self.seconds: list[float] = []

    def run(self, rec: Recorder | None) -> None:
        import torch

        self.chosen, self.seconds = [], []
        batch, context = self._prompt.shape
        with torch.no_grad():
            tokens = self._step(rec if self._work.prefill else None, "prefill", self._prompt, batch * context)
            for i in range(self._work.steps):
                tokens = self._step(rec, "decode", tokens, batch * (context + i + 1))

    def _step(self, rec: Recorder | None, phase: str, inputs: torch.Tensor, kv_tokens: int) -> torch.Tensor:
        step = (
            nullcontext()
            if rec is None
            else rec.step(phase, batch=inputs.shape[0], tokens=inputs.numel(), kv_tokens=kv_tokens)
        )
        began = time.perf_counter()
        with step:
            logits = self._model(input_ids=inputs, past_key_values=self._cache, logits_to_keep=1).logits
            with nullcontext() if rec is None else rec.part("sampling"):
                tokens: torch.Tensor = logits[:, -1].argmax(-1, keepdim=True)
        self.chosen.append(tokens.flatten().tolist())  # waits for the device, so that the time is the step's
        self.seconds.append(round(time.perf_counter() - began, 6))
        return tokens


def _metadata(work: Workload, raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "native_layers": raw["num_hidden_layers"],
        "native_topk": raw.get("num_experts_per_tok"),
        "batch": work.batch,
        "context": work.context,
        "cache_tokens": work.context + work.steps,
        "seed": work.seed,
        "weights": "random",
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
        raise MoetraceError(unknown("experts implementation", work.experts, EXPERTS))


def _imports() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as missing:
        raise MoetraceError(f"recording needs {missing.name}: pip install 'moetrace[record]'") from missing
    return torch, transformers


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise MoetraceError("--device cuda: torch sees no CUDA device here")
    return torch.device(name)
