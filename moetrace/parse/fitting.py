"""Which captured graph a replay is of, and what its launches give: by names, by places, or by a longest common order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.formats.events import Events
from moetrace.parse.captured import Captured
from moetrace.parse.graphs import COPIED, Graph
from moetrace.parse.nesting import IntArray, lookup

_AGREED = 0.95  # of the kernels whose kind is known on both sides: names are not always recognised rightly
# Of the kernels of a replay and of a graph that must be alike for the one to be the other's capture.
_FITTING = 0.5
_TABLE = 1 << 25  # cells of a table that an alignment may fill: 128 MB
NO_FIT = "no graph captured for its tokens has these kernels"
_Fit = tuple[Graph, IntArray]  # a graph and, for each kernel of a replay, its launch there; -1: none


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed graph's kernels, and the tokens of its step."""

    kernel: IntArray  # the name's code; COPIED for copies
    parallel: bool  # ran on several streams: then the order of starts is not that of launches
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """For each kernel of a replay the codes of the capture; nothing but a reason where it is refused."""

    reason: str = ""
    found: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    operator: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tensors: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    remark: str = ""
    size: int | None = None  # tokens that the graph was captured for


def solve(replay: Replay, graphs: Sequence[Graph], events: Events, capture: Captured) -> Answer:
    """What the captures say of one replay: of those that fit equally well, what they agree on."""
    sizes = _by_size(graphs, replay.tokens)
    if not sizes:
        have = ", ".join(str(n) for n in sorted({g.tokens for g in graphs if g.tokens is not None})[-8:])
        return Answer(
            f"no graph was captured for the step's {replay.tokens} tokens or more (there is {have})"
        )
    why = NO_FIT
    chosen: list[_Fit] = []
    for group in sizes:
        named = any(g.named for g in group)
        fits = [_exact(replay, g) if named else _in_place(replay, g, events, capture) for g in group]
        chosen = [(g, fit) for g, fit in zip(group, fits, strict=True) if not isinstance(fit, str)]
        why = next((fit for fit in fits if isinstance(fit, str) and fit != NO_FIT), why)
        if chosen or not named:  # without names nothing but the size tells graphs apart
            break
    if not chosen and named and len({g.tokens for g in sizes[0]}) == 1 and sizes[0][0].tokens is not None:
        chosen = _aligned(replay, sizes[0])
    return _agreed(replay, chosen) if chosen else Answer(why)


def _by_size(graphs: Sequence[Graph], tokens: int | None) -> list[list[Graph]]:
    """The graphs that a step of so many tokens can have replayed, nearest size first; all at once if it does not say."""
    if tokens is None:
        return [list(graphs)]
    sizes = sorted({g.tokens for g in graphs if g.tokens is not None and g.tokens >= tokens})
    told = [[g for g in graphs if g.tokens == size] for size in sizes]
    untold = [g for g in graphs if g.tokens is None]
    return [*told, untold] if untold else told


def _exact(replay: Replay, graph: Graph) -> IntArray | str:
    """The launch of each kernel where all names are alike, else why not."""
    return np.arange(len(graph.kernel)) if np.array_equal(replay.kernel, graph.kernel) else NO_FIT


def _in_place(replay: Replay, graph: Graph, events: Events, capture: Captured) -> IntArray | str:
    """The launch of each kernel by its place alone, where the kinds of kernels and operators bear it out, else why not."""
    if len(graph.kernel) != len(replay.kernel):
        return NO_FIT
    if replay.parallel:
        return "its launches name no kernel, and the replay ran on several streams: their order is not told"
    kernels, operators = _sides(replay, graph, events, capture)
    judged = (kernels != "") & (operators != "")
    strict = np.isin(kernels, ("gemm", "attention", "communication", "copy"))
    agree = (kernels == operators) | (~strict & (operators == "light"))
    right = int((agree & judged).sum())
    if not right or right < _AGREED * judged.sum():
        return (
            f"its launches name no kernel, and by their place only {right} of {int(judged.sum())} kernels are of "
            "their operator's kind: the replay has another order"
        )
    return np.where(agree | ~judged, np.arange(len(graph.kernel)), -1)


def _sides(
    replay: Replay, graph: Graph, events: Events, capture: Captured
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
    """For each pair what the kernel and what the operator is by its name, as broadly as both names can say."""

    def of(codes: IntArray, texts: Sequence[str], by_kernel: bool) -> npt.NDArray[np.str_]:
        used, inverse = np.unique(codes, return_inverse=True)
        sides = [_side(texts[c], by_kernel) if c >= 0 else "copy" if c == COPIED else "" for c in used]
        return np.array(sides, dtype="U16")[inverse.reshape(-1)]

    operator = np.where(graph.kernel == COPIED, COPIED, graph.operator)
    return of(replay.kernel, events.texts, True), of(operator, capture.texts, False)


def _side(name: str, by_kernel: bool) -> str:
    kind = ops.kernel_kind(name) if by_kernel else ops.operator_kind(name)
    if kind is None or (by_kernel and kind in ("rope", "kv_write")):  # fused with anything
        return ""
    family = ops.family(kind)
    if family in ("dense_gemm", "shared_expert") or kind == "router":
        return "gemm"
    if family in ("experts", "routing"):
        return "moe"
    if family in ("attention", "norm", "communication"):
        return family
    return "" if by_kernel else "light"


def _aligned(replay: Replay, group: Sequence[Graph]) -> list[_Fit]:
    """The graphs that hold the most of a replay's kernels in order; none if that is too little of either."""
    fits = [(graph, _in_order(replay.kernel, graph.kernel)) for graph in group]
    held = [int((at >= 0).sum()) for _, at in fits]
    whole = [max(len(replay.kernel), len(graph.kernel)) for graph, _ in fits]
    best = max(held)
    return [f for f, n, of in zip(fits, held, whole, strict=True) if n == best and n >= _FITTING * of]


def _in_order(asked: IntArray, names: IntArray) -> IntArray:
    """The place in `names` of each name asked for, such that the most are found in order; -1 for none."""
    short = min(len(asked), len(names))
    head = int(np.append(asked[:short] != names[:short], True).argmax())
    short -= head
    tail = int(np.append(asked[::-1][:short] != names[::-1][:short], True).argmax())
    found = np.full(len(asked), -1, dtype=np.int64)
    found[:head] = np.arange(head)
    found[len(asked) - tail :] = np.arange(len(names) - tail, len(names))
    a, b = asked[head : len(asked) - tail], names[head : len(names) - tail]
    if len(a) * len(b) <= _TABLE:  # else the equal ends alone
        middle = _common(a, b)
        found[head : head + len(a)] = np.where(middle >= 0, middle + head, -1)
    return found


def _common(a: IntArray, b: IntArray) -> IntArray:
    """The place in `b` of each of `a` in a longest common subsequence; -1 for those that are not in it."""
    length = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)  # of the first i of a and the first j of b
    for i, name in enumerate(a.tolist()):
        length[i + 1, 1:] = np.maximum(length[i, 1:], length[i, :-1] + (b == name))
        np.maximum.accumulate(length[i + 1], out=length[i + 1])
    found = np.full(len(a), -1, dtype=np.int64)
    i, j = len(a), len(b)
    while i and j:
        if length[i, j] == length[i - 1, j]:
            i -= 1
        elif length[i, j] == length[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found[i] = j
    return found


def _agreed(replay: Replay, chosen: Sequence[_Fit]) -> Answer:
    """What graphs that fit equally well say alike; a remark where they differ or are larger than the step."""
    found = np.all([at >= 0 for _, at in chosen], axis=0)

    def alike(columns: list[IntArray]) -> IntArray:
        return np.where(np.all([c == columns[0] for c in columns], axis=0), columns[0], -1)

    tensors = [lookup(g.tensors, at) for g, at in chosen]
    same = alike(tensors)
    size, remark = chosen[0][0].tokens, ""
    if any((same != t).any() for t in tensors):
        remark = f"{len(chosen)} captured graphs fit and nothing tells which: shapes are taken where they are alike"
    elif size is not None and replay.tokens is not None and size > replay.tokens:
        remark = f"a step of {replay.tokens} tokens is taken to have run the graph captured for {size}: shapes have {size} rows"
    return Answer("", found, alike([lookup(g.operator, at) for g, at in chosen]), same, remark, size)
