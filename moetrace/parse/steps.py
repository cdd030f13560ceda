"""Steps: what their annotations say, and which kernels are strays (`places`: which step an op belongs to).

Understood: moetrace's own ranges, vLLM's ``execute_...`` (plain and detailed), SGLang's ``step[...]``, ATOM's
``decode[...]``, TensorRT-LLM's ``_forward_step`` and torch's ``ProfilerStep#n``. A trace without any of them becomes one
step of unknown phase.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moetrace.formats.events import Events
from moetrace.grouping import rows_of_groups
from moetrace.parse.nesting import IntArray, exposed
from moetrace.run import GENERATING


@dataclass(frozen=True, slots=True)
class Attended:
    """What some sequences attend to: `tokens` queries, `kv_tokens` keys, `pairs` of a query and a key that it sees."""

    batch: int
    tokens: int
    kv_tokens: int
    pairs: float


@dataclass(frozen=True, slots=True)
class StepName:
    """What a step's annotation says; None where it does not. `halves`: its prefills and its decodes, where told apart.

    `padded`: the tokens that the replayed graph was captured for, where they are more than `tokens`. Not `stated`: a piece of
    time that stands for a step.
    """

    phase: str | None
    batch: int | None = None
    tokens: int | None = None
    kv_tokens: int | None = None
    note: str = ""
    recorded: int | None = field(default=None, compare=False)  # the recorder's own number of the step
    halves: tuple[Attended, Attended] | None = None
    padded: int | None = None
    stated: bool = True

    @property
    def pairs(self) -> float | None:
        return sum(half.pairs for half in self.halves) if self.halves else None


DUMMY, CAPTURE = "dummy", "capture"  # phases of steps that are no request's, and so of none that is kept


def _phase(prefills: int, decodes: int) -> str:
    return "mixed" if prefills and decodes else "prefill" if prefills else "decode" if decodes else DUMMY


def _moetrace(m: re.Match[str]) -> StepName:
    return StepName(m[2], int(m[3]), int(m[4]), int(m[5]), recorded=int(m[1]))


_SUMS = re.compile(r"sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)")
_MOST = 1 << 40  # sequences or tokens of a step: beyond is damage
_TOO_LONG = re.compile(r"\d{19}")


def _attended(batch: int, sums: re.Match[str]) -> Attended:
    """From the sums over sequences of queries q, keys k, q q and q k: q new tokens see q k - q (q - 1) / 2 keys."""
    sq, sk, sqsq, sqsk = (int(sums[i]) for i in range(1, 5))
    return Attended(batch, sq, sk, max(0.0, sqsk - (sqsq - sq) / 2))


def _vllm(m: re.Match[str]) -> StepName:
    """``execute_[T_]context_N(x)_generation_M(y)``; x and y are token counts, or sums sq (queries) and sk (KV tokens)."""
    contexts, generations = int(m[1]), int(m[3])
    phase, batch = _phase(contexts, generations), contexts + generations
    prefills, decodes = _SUMS.fullmatch(m[2]), _SUMS.fullmatch(m[4])
    if prefills and decodes:
        halves = (_attended(contexts, prefills), _attended(generations, decodes))
        tokens, keys = sum(h.tokens for h in halves), sum(h.kv_tokens for h in halves)
        return StepName(phase, batch, tokens, keys, halves=halves)
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


# SGLang's ForwardMode (sglang/srt/model_executor/forward_batch_info.py); IDLE is a rank without requests.
_FORWARD_MODES = {
    "DECODE": "decode", "EXTEND": "prefill", "PREFILL": "prefill", "SPLIT_PREFILL": "prefill", "MIXED": "mixed",
    "TARGET_VERIFY": "verify", "DRAFT_EXTEND": "draft", "DRAFT_EXTEND_V2": "draft", "IDLE": DUMMY,
}  # fmt: skip


def _sglang(m: re.Match[str]) -> StepName:
    phase = _FORWARD_MODES.get(m[1].upper())
    batch = int(m[2])
    return StepName(phase, batch, int(m[3]) if m[3] else batch if phase == "decode" else None)


def _atom(m: re.Match[str]) -> StepName:
    return StepName(m[1], int(m[2]), int(m[3]) if m[3] else None)


def _trtllm(m: re.Match[str]) -> StepName:
    """TensorRT-LLM counts requests, and newer versions the prompt tokens; a request that generates has one token."""
    prefills, decodes = int(m[1]), int(m[3])
    tokens = decodes + int(m[2]) if m[2] else None if prefills else decodes
    return StepName(_phase(prefills, decodes), prefills + decodes, tokens)


# Most telling first; the first that matches any annotation in a trace names its steps.
_NAMES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], StepName]], ...] = (
    (
        re.compile(
            r"moetrace\.step#(\d+) (prefill|decode|verify|mixed|draft) batch=(\d+) tokens=(\d+) kv=(\d+)"
        ),
        _moetrace,
    ),
    (re.compile(r"execute_(?:\d+_)?context_(\d+)\(([^)]*)\)_generation_(\d+)\(([^)]*)\)"), _vllm),
    (re.compile(r"step\[(\w+) bs=(\d+)(?: toks=(\d+))?.*\]"), _sglang),
    (re.compile(r"(decode|prefill)\[bs=(\d+)(?: tok=(\d+))?.*\]"), _atom),
    (
        re.compile(
            r"(?:\[Executor\] )?(?:_forward_step(?: \d+)?|executeStep): "
            r"(\d+) ctx reqs, (?:(\d+) ctx tokens, )?(\d+) gen reqs"
        ),
        _trtllm,
    ),
    (
        re.compile(r"execute_new_(\d+)_cached_(\d+)"),
        lambda m: StepName(_phase(int(m[1]), int(m[2])), int(m[1]) + int(m[2])),
    ),
    (re.compile(r"ProfilerStep#\d+"), lambda _: StepName(None)),
)


# The draft's own forwards, inside of a step or beside it (vLLM, vllm/v1/worker/gpu_model_runner.py).
_DRAFT_RANGE, _DRAFT = re.compile(r"gpu_model_runner: draft"), -1


def describe(name: str) -> tuple[int, StepName] | None:
    """(rank among the kinds of step annotation, what it says), or None if a name is not a step's or its numbers are absurd.

    A decode step with more tokens than sequences verifies drafted ones: its phase is verify.
    """
    if _TOO_LONG.search(name):
        return None
    if _DRAFT_RANGE.fullmatch(name):
        return _DRAFT, StepName("draft")
    for i, (pattern, read) in enumerate(_NAMES):
        found = pattern.fullmatch(name)
        if found:
            said = read(found)
            if said.phase == "decode" and said.batch and (said.tokens or 0) > said.batch:
                said = replace(said, phase="verify")
            numbers = (said.batch, said.tokens, said.kv_tokens, said.recorded)
            return (i, said) if max(n or 0 for n in numbers) < _MOST else None
    return None


def step_ranges(events: Events, candidates: IntArray) -> tuple[IntArray, list[StepName]]:
    """The ranges that are steps, by start: those of the most telling kind present and the draft's own, and what they say."""
    said = {code: describe(events.texts[code]) for code in np.unique(events.name[candidates]).tolist()}
    kinds = [d[0] for d in said.values() if d and d[0] != _DRAFT]
    if not kinds:
        return np.zeros(0, np.int64), []
    best = min(kinds)
    codes = [code for code, d in said.items() if d and d[0] in (best, _DRAFT)]
    chosen = candidates[np.isin(events.name[candidates], codes)]
    chosen = chosen[np.argsort(events.start[chosen], kind="stable")]
    names = [said[int(code)] for code in events.name[chosen]]
    return chosen, [d[1] for d in names if d]


_STRAY_SHARE = 0.1  # of the busy time of the rest: more than that is a part of the step that came late


def drop_strays(
    step: IntArray, start: IntArray, end: IntArray, count: int, first: int = 0
) -> tuple[IntArray, list[str]]:
    """Takes kernels that lie apart from the rest of their step out of it; one sentence for each step that lost some.

    The steps are `count` from `first` on.
    Apart: beyond a gap longer than everything on the busier side of it, first to last, and with little work of its own.
    Where most of several steps have such ops they are how a step goes, and the gap is idle time that counts: all stay.
    """
    whole, step, notes = step, step.copy(), []
    for i, rows in enumerate(rows_of_groups(step - first, count), first):
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
    losing = len(np.unique(whole[step != whole]))
    if losing > max(1, count // 2):
        told = (
            f"{losing} of {count} steps have op(s) far apart from the rest: idle time of the step, not strays"
        )
        return whole, [told]
    return step, notes


def verifying(names: Sequence[StepName]) -> list[str]:
    """A sentence where steps verify drafted tokens."""
    verify, draft = ([n for n in names if n.phase == phase] for phase in ("verify", "draft"))
    if not verify:
        return []
    wide = [n.tokens / n.batch for n in verify if n.tokens and n.batch]
    each = f", {sum(wide) / len(wide):.3g} tokens a sequence" if wide else ""
    apart = (
        f"the draft's {len(draft)} are a phase of their own"
        if draft
        else "the draft's own work is not annotated"
    )
    return [
        f"{len(verify)} step(s) verify drafted tokens (phase verify{each}); {apart}; how many were accepted is not recorded"
    ]


def unused_kv(names: Sequence[StepName], given_kv: int | None) -> list[str]:
    """A sentence where the KV length that the user gave per sequence is not what `complete` left in the decode steps."""
    if given_kv is None:
        return []
    decodes = [n for n in names if n.phase in GENERATING]
    said = [n for n in decodes if n.kv_tokens not in (None, given_kv * (n.batch or 0))]
    given = f"the given KV length, {given_kv} per sequence, is not used"
    if said:
        here = "here" if len(said) == len(decodes) else f"in {len(said)} of {len(decodes)} decode steps"
        return [
            f"{given} {here}: the trace itself says {said[0].kv_tokens} KV tokens for {said[0].batch} sequences"
        ]
    if all(n.kv_tokens is None for n in decodes):
        return [f"{given}: the trace shows no decode step with its number of sequences"]
    return []


def complete(name: StepName, given_kv: int | None) -> StepName:
    """A step's facts with the KV length that the user gave per sequence, where the trace has none."""
    if name.kv_tokens is None and given_kv is not None and name.batch is not None:
        return replace(name, kv_tokens=given_kv * name.batch)
    return name
