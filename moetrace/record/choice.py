"""Which experts a router chose, best first, from what it gave out: the same for what hooks held and what a graph left.

Nothing here waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

UNKNOWN = -1  # in place of an expert beyond the chosen: the router does not choose by the top of one score


def chosen_experts(
    logits: torch.Tensor | None,
    weights: torch.Tensor | None,
    ids: torch.Tensor | None,
    router: nn.Module,
    topk: int,
    extra: int = 0,
) -> torch.Tensor | None:
    """Expert ids [tokens, k + extra] with the first choice first, or None where the router gave too little to know.

    The order is that of the score by which the router chose: its weight, or for routers with a correction
    bias (DeepSeek-V3, arXiv 2412.19437, 2.1.2) sigmoid(logit) + bias. Equal scores keep the router's own
    order. Without ids they are the top-k of the logits, which is what softmax routers take since softmax
    keeps order. With `extra`, the experts that would be next follow: UNKNOWN for a token whose chosen experts are
    not the top of the scores (routers that choose within groups), and none without logits.
    """
    bias = getattr(router, "e_score_correction_bias", None)
    every = None if logits is None else _choice_scores(logits, bias)
    if ids is None:
        if every is None or not topk:
            return None
        return _ranking(every, topk + extra)
    chosen = ids.reshape(-1, ids.shape[-1]).long()
    scores = None
    if weights is not None and (bias is None or every is None):
        scores = weights.reshape(chosen.shape)
    elif every is not None:
        scores = every.gather(1, chosen)
    if scores is not None:
        order = scores.argsort(dim=1, descending=True, stable=True)
        chosen = chosen.gather(1, order)
    return chosen if not extra or every is None else _with_next(chosen, every, extra)


def _choice_scores(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    every = logits.reshape(-1, logits.shape[-1]).float()
    return every if bias is None else every.sigmoid() + bias.detach().float().to(every.device)


def _ranking(every: torch.Tensor, k: int) -> torch.Tensor:
    return every.argsort(dim=1, descending=True, stable=True)[:, :k]


def _with_next(chosen: torch.Tensor, every: torch.Tensor, extra: int) -> torch.Tensor:
    """`chosen` and the next `extra` of the others, where no other has a higher score than a chosen one.

    Equal scores are common in bf16, and the router may have taken either.
    """
    import torch

    least = every.gather(1, chosen).min(dim=1, keepdim=True).values
    others = every.scatter(1, chosen, -torch.inf)
    follows = _ranking(others, min(extra, every.shape[1] - chosen.shape[1]))
    same = least >= others.max(dim=1, keepdim=True).values
    return torch.cat((chosen, follows.where(same, torch.full_like(follows, UNKNOWN))), dim=1)
