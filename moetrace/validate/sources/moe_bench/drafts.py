"""Statements on drafted tokens that do not hang on how many were accepted."""

from __future__ import annotations

import itertools

from moetrace.validate.entry import Estimate
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import model_of, ratio
from moetrace.validate.sources.moe_bench.speed import LENGTH, Ratios, fall, speed

_ACCEPTED = (0.5, 0.7, 0.9)
_DRAFTS = "one sequence, acceptance 0.5, 0.7 and 0.9"


def _drafted(figure: Figure, draft: str, tokens: int, accepted: float, length: int = LENGTH) -> Estimate:
    sets = (f"draft={draft}", f"draft_tokens={tokens}", f"acceptance={accepted}")
    return speed(figure, model_of(figure.model), *sets, batch=1, length=length)


def more_drafts(figure: Figure) -> tuple[Ratios, str]:
    """Each number of drafted tokens against the next smaller one."""
    found = []
    for accepted in _ACCEPTED:
        steps = [_drafted(figure, "qwen3-1.7b", tokens, accepted) for tokens in (1, 3, 5, 8)]
        found += [ratio(b, a, percent=True) for a, b in itertools.pairwise(steps)]
    return found, f"{_DRAFTS}; 1 to 3, 3 to 5 and 5 to 8 tokens of Qwen3-1.7B"


def drafts_by_length(figure: Figure) -> tuple[Ratios, str]:
    """Long against short sequences with the same number of drafted tokens."""
    draft = "qwen3-1.7b" if "1.7B" in figure.metric else "qwen3-4b"
    lengths = (LENGTH, 128)
    found = [fall(*(_drafted(figure, draft, 3, a, n) for n in lengths)) for a in _ACCEPTED]
    return (
        found,
        f"{_DRAFTS}; 3 tokens of {draft}, 128 to 2,048 tokens in and out; beside Qwen3-8B one H100 does not hold the model",
    )
