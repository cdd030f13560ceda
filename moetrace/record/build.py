"""A model for the built-in workload: a transformers config cut and edited, with random weights or given ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.errors import ModelError, MoetraceError
from moetrace.record.fp8 import check_fused, experts_of, quantise_experts, run_experts

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# How the experts run, and transformers' name of it (5.23, integrations/moe.py).
EXPERTS = {"fused": "grouped_mm", "batched": "batched_mm", "unfused": "eager"}
EXPERT_DTYPES = ("fp8",)  # of the experts alone, the rest in `dtype`
_DENSE_FIRST = "first_k_dense_replace"
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERT_WIDTHS = ("moe_intermediate_size", "intermediate_size")


def build_config(
    raw: dict[str, Any],
    layers: int | None = None,
    n_a: int | None = None,
    n_e: int | None = None,
    expert_width: int | None = None,
) -> Any:
    """The transformers config of these Hugging Face fields, with what is given in place of the model's own.

    `layers` keeps the first so many; `n_a` is the top-k, `n_e` the experts of each layer, `expert_width` the
    intermediate size of each (where a config states shared experts as multiples of it, theirs follows). Raises
    MoetraceError for a value that the model cannot have, ModelError where transformers cannot build it.
    """
    _, transformers = imports()
    fields = {k: v for k, v in raw.items() if k not in ("quantization_config", "auto_map", "architectures")}
    native = fields.get("num_hidden_layers")
    if not isinstance(native, int):
        raise ModelError(
            "model config lacks 'num_hidden_layers' (nested configs are not built; give the text model's)"
        )
    if layers is not None:
        _cut(fields, layers, native)
    _set_experts(fields, n_a, n_e, expert_width)
    try:
        return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (KeyError, ValueError) as refusal:
        raise ModelError(
            f"transformers {transformers.__version__} cannot build this model config: {refusal}"
        ) from refusal


def _cut(fields: dict[str, Any], layers: int, native: int) -> None:
    if not 1 <= layers <= native:
        raise MoetraceError(f"--layers {layers}: the model has 1 to {native}")
    fields["num_hidden_layers"] = layers
    fields |= {k: v[:layers] for k, v in fields.items() if isinstance(v, list) and len(v) == native}
    if layers <= fields.get(_DENSE_FIRST, 0):
        raise MoetraceError(
            f"--layers {layers}: the first {fields[_DENSE_FIRST]} layers of this model are dense"
        )


def _set_experts(fields: dict[str, Any], n_a: int | None, n_e: int | None, expert_width: int | None) -> None:
    counted = next((k for k in EXPERT_COUNTS if fields.get(k)), None)
    if counted is None:
        if n_a or n_e or expert_width:
            raise MoetraceError("--n-a, --n-e and --expert-width: this model has no experts")
        return
    if n_e is not None:
        groups = fields.get("n_group") or 1
        if n_e % groups:
            raise MoetraceError(f"--n-e {n_e}: this model's experts come in {groups} groups of one size")
        fields[counted] = n_e
    if n_a is not None:
        fields["num_experts_per_tok"] = n_a
    if expert_width is not None:
        fields[next(k for k in _EXPERT_WIDTHS if k in fields)] = expert_width
    if not 1 <= fields.get("num_experts_per_tok", 0) <= fields[counted]:
        said = "--n-a" if n_a is not None else "--n-e"
        raise MoetraceError(
            f"{said} {n_a or n_e}: expected n_a, here {fields.get('num_experts_per_tok')}, "
            f"to be 1 to the {fields[counted]} experts"
        )


def build_model(
    config: Any,
    *,
    dtype: str,
    experts: str,
    seed: int,
    device: torch.device,
    weights: Path | None = None,
    expert_dtype: str | None = None,
) -> nn.Module:
    """The model in evaluation mode, on `device`: seeded random weights, or those of a folder of safetensors.

    `dtype` and `experts` are keys of DTYPES and EXPERTS, `expert_dtype` one of EXPERT_DTYPES. Raises ModelError if the
    folder's weights are not this model's, or are quantised, MoetraceError if the experts cannot have that type.
    """
    torch, transformers = imports()
    if expert_dtype is not None and experts == "fused":
        check_fused(device)
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = EXPERTS[experts]
    kind = getattr(torch, DTYPES[dtype])
    if expert_dtype is not None:  # a model without storage says in no time what weights would say in minutes
        with torch.device("meta"):
            experts_of(transformers.AutoModelForCausalLM.from_config(config, dtype=kind))
    if weights is not None:
        model = _load(config, weights, kind).to(device)
    else:
        torch.manual_seed(seed)
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    model.eval()
    if expert_dtype is not None:
        quantise_experts(model)
        run_experts(config, EXPERTS[experts])
    return model


def _load(config: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The weights of a local folder; safetensors only, which cannot hold code, and nothing is fetched."""
    _, transformers = imports()
    from transformers.utils import logging

    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no *.safetensors files there (expected a local folder of weights)")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # transformers would list the layers that are left out, which is what was asked for.
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        model, said = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below, in one line
        )
    except (OSError, RuntimeError, ValueError) as refusal:
        raise ModelError(f"{folder}: {str(refusal).splitlines()[0]}") from refusal
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(said["missing_keys"]) or sorted(str(key) for key in said["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{folder}: not the weights of this model (missing or of another shape: {', '.join(wrong[:3])})"
        )
    return model


def imports() -> tuple[Any, Any]:
    """(torch, transformers). Raises MoetraceError saying what to install."""
    try:
        import torch
        import transformers
    except ImportError as missing:
        raise MoetraceError(f"recording needs {missing.name}: pip install 'moetrace[record]'") from missing
    return torch, transformers


def find_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or, for ``auto``, CUDA where torch sees one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise MoetraceError("--device cuda: torch sees no CUDA device here")
    return torch.device(name)
