"""What a trace holds beside the steps that requests asked for: dummy batches, warm-up, captures of graphs. It is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moetrace.parse.nesting import IntArray
from moetrace.parse.steps import CAPTURE, DUMMY, StepName

# What engines and people call such ranges: vLLM's and SGLang's captures, vLLM's dummy and profile runs, anybody's warm-up.
RANGE_NAME = re.compile(
    r"capture_\d{1,9}_\w+|(?i:(?:.*[^a-z])?(?:dummy_?(?:run|batch)|warm[-_ ]?up|profile_run)(?:[^a-z].*)?)"
)
CAPTURE_CALL = re.compile(r"(cuda|hip|cu)StreamBeginCapture")
_SLOW = 3.0  # times the median of the others of its kind: what a first step takes that still loads, compiles or allocates
_LEAST = 4  # others of its kind, below which nothing is known of how long one takes
_WARM = "warm-up"
_SAID = {
    DUMMY: "computed no request (dummy batches of an idle rank)",
    CAPTURE: "captured a graph",
    _WARM: f"took more than {_SLOW:.0f} times the median of the later ones of their kind (warm-up)",
}


def left_out(names: Sequence[StepName], span_ns: npt.NDArray[np.float64]) -> dict[int, str]:
    """The steps that are none of a request's, and why: dummy, capture or warm-up. `span_ns` of a step without ops is nan.

    Warm-up are the first steps of a phase, as long as each takes more than three times the median of the later ones with
    as many sequences and tokens, of which there must be four.
    """
    out = {i: str(name.phase) for i, name in enumerate(names) if name.phase in (DUMMY, CAPTURE)}
    phases: dict[str | None, list[int]] = {}
    for i, name in enumerate(names):
        if i not in out and np.isfinite(span_ns[i]):
            phases.setdefault(name.phase, []).append(i)
    for steps in phases.values():
        for place, i in enumerate(steps):
            like = (names[i].batch, names[i].tokens)
            others = [span_ns[k] for k in steps[place + 1 :] if (names[k].batch, names[k].tokens) == like]
            if len(others) < _LEAST or span_ns[i] <= _SLOW * float(np.median(others)):
                break
            out[i] = _WARM
    return out


def remarks(out: Mapping[int, str], steps: int, ops: int) -> list[str]:
    """Sentences on what was left out: steps, and `ops` in ranges that are called so."""
    counts = Counter(out.values())
    if counts and counts.total() == steps:
        return [
            f"no step is a request's: {', '.join(f'{n} {_SAID[why]}' for why, n in counts.items())}; all are kept"
        ]
    said = [f"{n} of {steps} steps are left out: they {_SAID[why]}" for why, n in counts.items()]
    if ops:
        said.append(
            f"{ops} op(s) in ranges of warm-up, dummy runs and graph captures are left out of the steps"
        )
    return said


def padding(names: Sequence[StepName]) -> list[str]:
    """A sentence where graphs were replayed for more tokens than the step has."""
    wide = [n for n in names if n.padded]
    if not wide:
        return []
    real, run = sum(n.tokens or 0 for n in wide), sum(n.padded or 0 for n in wide)
    return [
        f"{len(wide)} of {len(names)} steps ran a graph captured for more tokens than they have: {run - real} of {run} rows "
        "are padding, which is in the work and in no count of tokens"
    ]


def renumbered(names: Sequence[StepName], out: Mapping[int, str]) -> tuple[list[StepName], IntArray]:
    """(the steps that stay, the new number of each and -1 for the others, with one -1 more for rows of no step)."""
    stay = [i for i in range(len(names)) if i not in out]
    number = np.full(len(names) + 1, -1, dtype=np.int64)
    number[stay] = np.arange(len(stay))
    return [names[i] for i in stay], number
