"""Parts of a step that works on prompts, cut between any two of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moetrace.forward import causal_pairs
from moetrace.op import Op
from moetrace.replay import edit
from moetrace.replay.draft import At
from moetrace.replay.lanes import largest, smallest

Shared = Callable[[Op, At], Op]  # what of an op a rank computes at a time


def part_of_tokens(new: Any, old: Any) -> Shared:
    """An op at `new` of the `old` tokens of a step that works on prompts.

    A part of a prompt attends to what came before it: the parts have the whole's pairs of queries and keys among them, and each
    reads the keys before its own too, in the mean over the parts.
    """

    def change(op: Op, at: At) -> Op:
        if not op.has("q", "kv", "batch"):
            return edit.scaled(op, new, old)
        batch, keys, queries = op["batch"], op["kv"] / op["batch"], op["q"] / op["batch"]
        seen = op.get("pairs")
        if seen is None:
            seen = batch * causal_pairs(queries, keys, op.get("window") or op.get("chosen") or 0)
        sequences = largest(1, batch * new / old)
        own = batch * queries * new / old / sequences
        read = keys - (queries - own) / 2
        if op.has("window"):
            read = smallest(read, own + op["window"])
        return edit.scaled(op, new, old).with_dims(
            kv=round(sequences * read), pairs=round(seen * (new / old))
        )

    return change
