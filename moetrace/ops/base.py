"""What every op family is made of: Kind (name, family, work) and Seen (all that is known of one op execution)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from moetrace.model import ModelSpec
from moetrace.op import Amounts, OpGroup, element_bytes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of op: its family, its dims that must be known, and its work as a function of the dims alone.

    `work` gets a group of like ops, each dim an array, and gives arrays: ``np.where`` and ``np.maximum``, never ``if`` and
    ``max`` on a dim's value. Whether a dim is known holds for the whole group, so ``if op.has(name)`` is fine.
    """

    name: str
    family: str
    needs: tuple[str, ...]
    work: Callable[[OpGroup], Amounts]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trace shows of one op execution, distinct values only: the input of recognition.

    `shapes` and `dtypes` are those of the operator's inputs (dtypes in moetrace's names, ``""`` where there is none).
    `part` is the recorder's annotation, `role` what the order of ops says of a GEMM. Step facts are None if not known.
    """

    kernel: str
    operator: str = ""
    shapes: tuple[Shape, ...] = ()
    dtypes: tuple[str, ...] = ()
    nbytes: int = 0
    group: int = 0
    stride: int = 0
    part: str = ""
    role: str = ""
    phase: str | None = None
    batch: int | None = None
    tokens: int | None = None
    kv_tokens: int | None = None
    pairs: float | None = None  # of a query and a key that it sees, in the step
    window: int = 0
    model: ModelSpec | None = None
    tp: int = 1
    ep: int = 1
    collective: str = ""  # the collective's own name, as its message states it
    pad: int = 0  # expert widths are padded to a multiple of this, as seen on the hidden size

    @property
    def tensors(self) -> tuple[tuple[Shape, str], ...]:
        """(shape, dtype) of the inputs that are tensors."""
        types = (*self.dtypes, *([""] * len(self.shapes)))
        return tuple((s, t) for s, t in zip(self.shapes, types, strict=False) if s)

    @property
    def model_dtype(self) -> str:
        """The type of the model's activations; bf16 where no model is known."""
        return self.model.act_dtype if self.model else "bf16"

    @property
    def act_dtype(self) -> str:
        """The element type of the first floating-point input, else bf16."""
        floats = (t for _, t in self.tensors if t and not t.startswith("int"))
        return next(floats, "bf16")


def numel(shape: Shape) -> int:
    """Number of elements."""
    return math.prod(shape)


def rows_and_width(shape: Shape) -> tuple[int, int]:
    """A tensor as a matrix: (product of all but the last dim, last dim)."""
    return (numel(shape[:-1]), shape[-1]) if shape else (0, 0)


# Graphs are captured for a few batch sizes and padded up to the next; engines capture at steps of 8 or 16.
_GRAPH_PADDING = 16


def is_fixed(seen: Seen) -> bool:
    """Whether no tensor's rows follow the step's tokens or sequences, so that its size stays when the batch changes.

    Rows are all dims but the last (a vector's one): as many as tokens, sequences or KV tokens, up to a graph's padding
    more, or that many for each expert choice, expert or head. False where the step says neither, or nothing has a shape.
    """
    counts = [n for n in (seen.tokens, seen.batch, seen.kv_tokens) if n]
    if not counts or not seen.tensors:
        return False
    per_token = {m * n for n in (seen.tokens, seen.batch) if n for m in _repeats(seen)}
    for shape, _ in seen.tensors:
        whole = len(shape) == 1
        for rows in shape if whole else shape[:-1]:
            near = any(n <= rows <= n + _GRAPH_PADDING for n in counts)
            if near or rows in per_token or (whole and any(rows % n == 0 for n in counts)):
                return False
    return True


def _repeats(seen: Seen) -> set[int]:
    """How many rows of a flattened tensor may belong to one token."""
    model = seen.model
    if model is None:
        return set(range(1, 65))
    heads, kv = max(1, model.heads // max(1, seen.tp)), max(1, model.kv_heads // max(1, seen.tp))
    return {1, model.topk, model.experts, heads, kv, heads + kv, heads + 2 * kv, 2 * kv}


def act(op: OpGroup) -> float:
    """Bytes of one activation element of an op."""
    return element_bytes(op.act_dtype)


def padded(width: int, multiple: int) -> int:
    """`width` rounded up to a multiple (unchanged for 0)."""
    return -(-width // multiple) * multiple if multiple else width
