"""How long the sequences of a scenario's steps get, against the longest that the model is made for.

Beyond it the arithmetic of a step is what it is, and so its time; but what the model would say there is not, and engines
refuse such requests. So the number stays, and is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from moetrace.model import ModelSpec
from moetrace.replay.measures import context_of
from moetrace.run import Step


def longest(steps: Sequence[Step]) -> int:
    """Tokens of the longest sequence of any step (where a step's are not alike, of a mean one); 0 where none says."""
    return max((context_of(step) for step in steps), default=0)


def context_facts(model: ModelSpec | None, steps: Sequence[Step]) -> dict[str, Any]:
    """``longest`` and ``limit`` in tokens (None: not known), and ``within``: whether the model is made for such sequences."""
    tokens, limit = longest(steps) or None, (model.max_context if model else 0) or None
    within = None if tokens is None or limit is None else tokens <= limit
    return {"longest": tokens, "limit": limit, "within": within}


def all_within(known: Iterable[bool | None]) -> bool | None:
    """Whether all of several models are made for it: no if one is not, not known if one's is not."""
    said = set(known)
    return False if False in said else None if None in said else True


def too_long(model: ModelSpec | None, steps: Sequence[Step]) -> str:
    """The sentence on sequences that are longer than the model is made for; "" where none is, or nothing says."""
    facts = context_facts(model, steps)
    if model is None or facts["within"] is not False:
        return ""
    return (
        f"sequences of {facts['longest']:,} tokens are longer than the {facts['limit']:,} that {model.name} is made for "
        "(positions in its config, with rope scaling where it states one): engines refuse them unless told otherwise, and the "
        "times are those of the arithmetic alone"
    )
