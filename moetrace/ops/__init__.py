"""Op families: names -> kinds, facts -> ops, ops -> work. A new op goes into one file here and into no other.

Each family file has KINDS (what there is and its work), KERNELS and OPERATORS (how kernels and framework operators are
named) and `dims` (how an op is built from what a trace shows; `moe_dims` has that of the MoE block). The order of FAMILIES is
the order of matching.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np

from moetrace.op import FloatArray, Op, OpColumns, OpGroup, Work, Works
from moetrace.ops import attention, communication, elementwise, gemm, linear, moe, sparse
from moetrace.ops.base import Kind, Seen
from moetrace.ops.moe import distinct_experts
from moetrace.ops.names import Names, read_names

FAMILIES: tuple[ModuleType, ...] = (communication, sparse, moe, linear, attention, gemm, elementwise)
# Element-wise kernel names are generic: the operator above them, if it says more, decides.
_GENERIC = "elementwise"

KINDS: dict[str, Kind] = {kind.name: kind for module in FAMILIES for kind in module.KINDS}
OTHER = "other"
# Characters of a name that are searched: the longest of templated kernels have a few thousand.
_TELLING = 16_384
LONG_NUMBER = re.compile(r"\d{5,}")  # what numbers a name: an address, a count
# Names of groups of kinds that recognition narrows down later (see parse/parts.py and parse/order.py).
_HOME = {"moe_gemm": moe, **{kind.name: module for module in FAMILIES for kind in module.KINDS}}

FAMILY_NAMES = (
    "experts", "routing", "shared_expert", "attention", "dense_gemm", "norm",
    "elementwise", "communication", "sampling", "embedding", "copy", "other",
)  # fmt: skip

# Framework operators that do no work on the device: they only make views or allocate.
_VIEW = re.compile(
    r"aten::(view|_unsafe_view|reshape|_reshape_alias|t|transpose|permute|expand|expand_as|as_strided|slice|select|unsqueeze|squeeze"
    r"|detach|alias|view_as_complex|view_as_real|narrow|split|split_with_sizes|chunk|unbind|flatten|unflatten|to|type_as|contiguous|numpy_T|movedim|empty\w*|new_empty\w*|resize_\w*"
    r"|result_type|set_|item|is_nonzero|resolve_conj|resolve_neg|lift_fresh|view_as|_has_compatible_shallow_copy_type|diff|_is_all_true|meshgrid"
    r"|zeros|zeros_like|ones|ones_like|full|full_like|new_zeros|new_ones|arange|linspace|rand\w*|pin_memory|is_pinned|broadcast_tensors|promote_types)$"
)


def kernel_kind(name: str) -> str | None:
    """The kind that a device kernel's name says, or None. ``moe_gemm``: an expert GEMM, gate_up or down by its place."""
    return _match(_telling(name), "KERNELS")


def operator_kind(name: str) -> str | None:
    """The kind that a framework operator's name says, or None."""
    return None if is_view(name) else _match(_telling(name), "OPERATORS")


def is_view(name: str) -> bool:
    """Whether a framework operator only makes a view, allocates or asks: no work of its own."""
    return _VIEW.fullmatch(name) is not None


def _telling(name: str) -> str:
    """What patterns are asked about: names that differ in a long number alone are one, for no pattern knows such a number."""
    return LONG_NUMBER.sub("00000", name[:_TELLING])


@lru_cache(maxsize=1)
def _patterns() -> dict[str, tuple[tuple[re.Pattern[str], str], ...]]:
    return {
        table: tuple((re.compile(p), kind) for module in FAMILIES for p, kind in getattr(module, table))
        for table in ("KERNELS", "OPERATORS")
    }


@lru_cache(maxsize=65536)
def _match(name: str, table: str) -> str | None:
    return next((kind for pattern, kind in _patterns()[table] if pattern.search(name)), None)


def recognise(kernel: str, operator: str, own: Names | None = None) -> str:
    """The kind of an op execution from its kernel name and the operator that launched it; ``other`` if neither is known.

    A generic element-wise kernel takes the operator's kind when that says more; under a GEMM's operator it is what runs
    beside the GEMM (a bias, a split-K sum), never the multiply itself. `own` are a user's names, which go before.
    """
    if own is not None and (kind := own.kind(kernel[:_TELLING], operator[:_TELLING])) is not None:
        return kind
    by_kernel = kernel_kind(kernel)
    if by_kernel in (None, _GENERIC) and operator:
        by_operator = operator_kind(operator)
        if by_operator == "gemm" and by_kernel == _GENERIC:
            return "gemm_reduce"
        if by_operator is not None:
            return by_operator
    return by_kernel or OTHER


def communication_names(path: Path) -> Names:
    """A user's table of communication kernels and operators. Raises MoetraceError if it is none."""
    return read_names(path, frozenset(communication.COLLECTIVES))


def build(kind: str, seen: Seen) -> Op:
    """The Op of a recognised kind with the dims that can be known; without dims where they cannot."""
    home = _HOME.get(kind)
    op: Op | None = home.dims(kind, seen) if home is not None else None
    return op if op is not None else Op(kind, seen.act_dtype)


def family(kind: str) -> str:
    """The family of a kind; ``other`` for one that is not known."""
    found = KINDS.get(kind)
    return found.family if found else "experts" if kind == "moe_gemm" else OTHER


def work(op: Op) -> Work:
    """The work of an op; UNKNOWN if its kind is not known or its dims do not suffice."""
    return works([op])(0)


@lru_cache(maxsize=128)
def dims_read(kind: str) -> frozenset[str]:
    """All dims that a kind's formula reads, needed or not: found by asking it, first with those it needs, then with more."""
    found, names = KINDS[kind], frozenset(KINDS[kind].needs)
    while True:
        asked = _Asked(names)
        found.work(OpGroup(kind, "bf16", 1, asked))
        if asked.names <= names:
            return names
        names |= asked.names


class _Asked(Mapping[str, FloatArray]):
    """Dims that are all 1, and the names that were asked for."""

    def __init__(self, known: frozenset[str]) -> None:
        self.known, self.names = known, set[str]()

    def __getitem__(self, name: str) -> FloatArray:
        self.names.add(name)
        if name not in self.known:
            raise KeyError(name)
        return np.ones(1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def works(ops: Sequence[Op] | OpColumns) -> Works:
    """The works of many ops, in order: each kind's formula is called once for all ops with the same dtype and dims."""
    found = Works.empty(ops if isinstance(ops, OpColumns) else OpColumns.of(ops))
    for rows, group in found.ops.groups():
        kind = KINDS.get(group.kind)
        if kind is None or not group.has(*kind.needs):
            continue
        found.fill(rows, kind.work(group))
    return found


__all__ = [
    "FAMILIES", "FAMILY_NAMES", "KINDS", "OTHER", "Kind", "Names", "Seen", "build", "communication_names", "dims_read", "distinct_experts", "family",
    "is_view", "kernel_kind", "operator_kind", "recognise", "work", "works",
]  # fmt: skip
