"""Experts in fp8: weights stored as e4m3 with one scale per output channel, rows quantised with one scale each.

That is what engines call per-channel weights and dynamic per-token activations (torch's "rowwise" scaling). Router,
attention, norms and head stay as they are. Fused is one `torch._scaled_grouped_mm` for all experts, which needs a GPU
that has it (H100 on); unfused is a `torch._scaled_mm` per expert that has tokens, which runs on a CPU too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moetrace.errors import MoetraceError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Of transformers' names of the ways to run experts (`build.EXPERTS`), those that have a way in fp8.
NAMES = {"grouped_mm": "moetrace_fp8_fused", "eager": "moetrace_fp8_unfused"}
_MOST = 448.0  # the largest e4m3 number
_LEAST = 1e-12  # so that a row of zeros has a scale
_WEIGHTS = ("gate_up_proj", "down_proj")
# What a quantised checkpoint's config says: the experts are fp8, and nothing else.
CONFIG = {
    "quant_method": "fp8",
    "modules_to_not_convert": ["self_attn", "gate", "router", "shared_expert", "lm_head"],
}


def quantise_experts(model: nn.Module) -> None:
    """Stores the experts' weights in fp8, in place, and registers both ways to run them with transformers.

    Raises MoetraceError where `experts_of` does.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    for module in experts_of(model):
        for name in _WEIGHTS:
            _quantise(module, name)
    ALL_EXPERTS_FUNCTIONS.register(NAMES["grouped_mm"], _experts(_grouped))
    ALL_EXPERTS_FUNCTIONS.register(NAMES["eager"], _experts(_one_by_one))


def experts_of(model: nn.Module) -> list[Any]:
    """The modules whose weights `quantise_experts` stores, one per MoE layer.

    Raises MoetraceError for experts with biases, with transposed weights or not stored together.
    """
    found = [m for m in model.modules() if all(hasattr(m, name) for name in (*_WEIGHTS, "has_bias"))]
    if not found or any(m.has_bias or m.is_transposed or not m.has_gate for m in found):
        raise MoetraceError(
            "--expert-dtype fp8: this model's experts have biases or another layout; it is made for those of OLMoE, "
            "Qwen-MoE, DeepSeek and Mixtral"
        )
    return found


def run_experts(config: Any, way: str) -> None:
    """Has the quantised experts of `config`'s model run in this way (transformers' name). Raises MoetraceError."""
    if way not in NAMES:
        raise MoetraceError("--expert-dtype fp8: experts run fused or unfused")
    config._experts_implementation = NAMES[way]


def check_fused(device: torch.device) -> None:
    """Raises MoetraceError where torch has no grouped fp8 GEMM."""
    import torch

    if device.type != "cuda" or not hasattr(torch, "_scaled_grouped_mm"):
        raise MoetraceError(
            f"--expert-dtype fp8: torch {torch.__version__} has no grouped fp8 GEMM for {device.type}; give --experts unfused"
        )


def _quantise(module: nn.Module, name: str) -> None:
    import torch
    from torch import nn

    weight = getattr(module, name).detach()
    stored, scale = _scaled_rows(weight)
    setattr(module, name, nn.Parameter(stored, requires_grad=False))
    module.register_buffer(f"{name}_scale", scale.squeeze(-1).to(torch.float32), persistent=False)


def _scaled_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the rows in fp8, what each is multiplied with to be itself, [..., 1])."""
    import torch

    scale = (rows.abs().amax(dim=-1, keepdim=True).float() + _LEAST) / _MOST
    return (rows / scale).to(torch.float8_e4m3fn), scale


def _experts(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The forward of an experts module: rows sorted by expert, `linear` up, the gate, `linear` down, summed by weight."""

    def forward(
        self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        import torch

        tokens, k = top_k_index.shape
        expert, order = torch.sort(top_k_index.reshape(-1))
        ends = torch.searchsorted(expert, torch.arange(self.num_experts, device=expert.device), right=True)
        ends = ends.to(torch.int32)
        rows = hidden_states[order // k]
        gated = self._apply_gate(linear(rows, self.gate_up_proj, self.gate_up_proj_scale, ends))
        out = (
            linear(gated, self.down_proj, self.down_proj_scale, ends) * top_k_weights.reshape(-1)[order, None]
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel(), device=order.device)
        return out[back].view(tokens, k, -1).sum(dim=1).to(hidden_states.dtype)

    return forward


def _grouped(
    rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """rows [n, in] by expert x weight [experts, out, in] -> [n, out]; expert e has the rows before ``ends[e]``."""
    import torch

    small, each = _scaled_rows(rows)
    out: torch.Tensor = torch._scaled_grouped_mm(
        small, weight.transpose(-2, -1), each.squeeze(-1), scale, offs=ends, out_dtype=rows.dtype
    )
    return out


def _one_by_one(
    rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """As `_grouped`, with one GEMM for each expert that has rows: waits for the device to know which."""
    import torch

    small, each = _scaled_rows(rows)
    out = rows.new_empty(len(rows), weight.shape[1])
    low = 0
    for number, high in enumerate(ends.tolist()):
        if high > low:
            out[low:high] = torch._scaled_mm(
                small[low:high], weight[number].t(), each[low:high], scale[number][None], out_dtype=rows.dtype
            )
        low = high
    return out
