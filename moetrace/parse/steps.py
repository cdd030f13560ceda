"""Steps: which annotation an op belongs to, what the annotation says, which kernels are strays.

Understood: moetrace's own ranges, vLLM's ``execute_...`` (plain and detailed), SGLang's ``step[...]``, ATOM's
``decode[...]`` and torch's ``ProfilerStep#n``. A trace without any of them becomes one step of unknown phase.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from moetrace.formats.events import Events
from moetrace.parse.nesting import IntArray, exposed


@dataclass(frozen=True, slots=True)
class StepName:
    """What a step's annotation says; None where it does not."""

    phase: str | None
    batch: int | None = None
    tokens: int | None = None
    kv_tokens: int | None = None
    note: str = ""
    recorded: int | None = field(default=None, compare=False)  # the recorder's own number of the step


def _phase(prefills: int, decodes: int) -> str:
    return "mixed" if prefills and decodes else "prefill" if prefills else "decode"


def _moetrace(m: re.Match[str]) -> StepName:
    return StepName(m[2], int(m[3]), int(m[4]), int(m[5]), recorded=int(m[1]))


_SUMS = re.compile(r"sq(\d+)sk(\d+)sqsq\d+sqsk\d+")


def _vllm(m: re.Match[str]) -> StepName:
    """``execute_[T_]context_N(x)_generation_M(y)``; x and y are token counts, or sums sq (queries) and sk (KV tokens)."""
    contexts, generations = int(m[1]), int(m[3])
    detail = [_SUMS.fullmatch(m[2]), _SUMS.fullmatch(m[4])]
    phase, batch = _phase(contexts, generations), contexts + generations
    if all(detail):
        return StepName(
            phase, batch, sum(int(d[1]) for d in detail if d), sum(int(d[2]) for d in detail if d)
        )
    first = [int(re.match(r"\d*", part)[0] or 0) for part in (m[2], m[4])]  # type: ignore[index]
    if phase == "prefill":  # "888_788544": tokens and a sum of squares
        return StepName(
            phase,
            batch,
            sum(first),
            first[0],
            "KV length taken as the prompt tokens of the step: no cached prefix assumed",
        )
    return StepName(phase, batch, sum(first))


def _sglang(m: re.Match[str]) -> StepName:
    phase = {"DECODE": "decode", "EXTEND": "prefill", "MIXED": "mixed", "PREFILL": "prefill"}.get(
        m[1].upper()
    )
    batch = int(m[2])
    return StepName(phase, batch, int(m[3]) if m[3] else batch if phase == "decode" else None)


def _atom(m: re.Match[str]) -> StepName:
    return StepName(m[1], int(m[2]), int(m[3]) if m[3] else None)


# Most telling first; the first that matches any annotation in a trace names its steps.
_NAMES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], StepName]], ...] = (
    (re.compile(r"moetrace\.step#(\d+) (prefill|decode|mixed) batch=(\d+) tokens=(\d+) kv=(\d+)"), _moetrace),
    (re.compile(r"execute_(?:\d+_)?context_(\d+)\(([^)]*)\)_generation_(\d+)\(([^)]*)\)"), _vllm),
    (re.compile(r"step\[(\w+) bs=(\d+)(?: toks=(\d+))?.*\]"), _sglang),
    (re.compile(r"(decode|prefill)\[bs=(\d+)(?: tok=(\d+))?.*\]"), _atom),
    (
        re.compile(r"execute_new_(\d+)_cached_(\d+)"),
        lambda m: StepName(_phase(int(m[1]), int(m[2])), int(m[1]) + int(m[2])),
    ),
    (re.compile(r"ProfilerStep#\d+"), lambda _: StepName(None)),
)


def describe(name: str) -> tuple[int, StepName] | None:
    """(rank among the kinds of step annotation, what it says), or None if a name is no step's."""
    for i, (pattern, read) in enumerate(_NAMES):
        found = pattern.fullmatch(name)
        if found:
            return i, read(found)
    return None


def step_ranges(events: Events, candidates: IntArray) -> tuple[IntArray, list[StepName]]:
    """The ranges that are steps, by start: those of the most telling kind present, outermost only, and what they say."""
    said = {code: describe(events.texts[code]) for code in np.unique(events.name[candidates]).tolist()}
    kinds = [d[0] for d in said.values() if d]
    if not kinds:
        return np.zeros(0, np.int64), []
    best = min(kinds)
    codes = [code for code, d in said.items() if d and d[0] == best]
    chosen = candidates[np.isin(events.name[candidates], codes)]
    chosen = chosen[np.argsort(events.start[chosen], kind="stable")]
    names = [said[int(code)] for code in events.name[chosen]]
    return chosen, [d[1] for d in names if d]


_STRAY_SHARE = 0.1  # of the busy time of the rest: more than that is a part of the step that came late


def drop_strays(step: IntArray, start: IntArray, end: IntArray, count: int) -> tuple[IntArray, list[str]]:
    """Takes kernels that lie apart from the rest of their step out of it; one sentence for each step that lost some.

    Apart: beyond a gap longer than everything on the busier side of it, first to last, and with little work of its own.
    """
    step, notes = step.copy(), []
    for i in range(count):
        rows = np.flatnonzero(step == i)
        rows = rows[np.argsort(start[rows], kind="stable")]
        while len(rows) > 1:
            busy, gap = exposed(start[rows], end[rows])
            cut = int(np.argmax(gap))
            left, right = int(busy[:cut].sum()), int(busy[cut:].sum())
            keep, lose = (rows[:cut], rows[cut:]) if left > right else (rows[cut:], rows[:cut])
            if gap[cut] <= end[keep].max() - start[keep].min() or min(left, right) > _STRAY_SHARE * max(
                left, right
            ):
                break
            step[lose] = -1
            where = "after" if left > right else "earlier than"
            lost = (end[lose] - start[lose]).sum() / 1e3
            notes.append(
                f"step {i}: {len(lose)} stray op(s) {gap[cut] / 1e6:.1f} ms {where} the rest, {lost:.1f} us busy, "
                "left out of the step"
            )
            rows = keep
    return step, notes


def complete(name: StepName, given_kv: int | None) -> StepName:
    """A step's facts with the KV length that the user gave per sequence, where the trace has none."""
    if name.kv_tokens is None and given_kv is not None and name.batch is not None:
        return replace(name, kv_tokens=given_kv * name.batch)
    return name
