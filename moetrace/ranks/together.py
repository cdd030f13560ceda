"""What is known of the ranks of a run together: their summary, metadata, clocks and routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from moetrace.errors import RunError
from moetrace.routing import ROUTING_COLUMNS, Routing
from moetrace.run import Meta, Run

SCHEMA = "moetrace.ranks/"


def summary_of(data: bytes, path: object) -> dict[str, Any]:
    """The summary that `ranks.json` holds. Raises RunError if it is not one."""
    try:
        facts = orjson.loads(data)
        ok = str(facts["schema"]).startswith(SCHEMA) and all(int(r["rank"]) >= 0 for r in facts["ranks"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as err:
        raise RunError(
            f"{path} is not the summary of ranks ({err}): parse the traces again with --force"
        ) from err
    if not ok or not facts["ranks"]:
        raise RunError(f"{path} is not the summary of ranks: parse the traces again with --force")
    return dict(facts)


def numbers(facts: Mapping[str, Any]) -> list[int]:
    """The numbers of the ranks in a summary."""
    return [int(r["rank"]) for r in facts["ranks"]]


def shifts(runs: Mapping[int, Run], clocks: Mapping[int, Any]) -> dict[int, int]:
    """What to take off each rank's aligned clock, ns, so that parts that share no collective begin together."""
    first = next(iter(runs))
    begin = runs[first].meta.steps[0].start_ns if runs[first].meta.steps else 0
    home = (clocks[first] or {}).get("of_rank", first)
    root_begin: dict[int, int] = {}
    out = {}
    for rank, run in runs.items():
        clock = clocks[rank]
        root = clock["of_rank"] if clock else rank
        if rank == first or (clock and root == home) or not run.meta.steps:
            out[rank] = 0
            continue
        root_begin.setdefault(root, run.meta.steps[0].start_ns - begin)
        out[rank] = root_begin[root]
    return out


def meta_of(runs: Mapping[int, Run], facts: Mapping[str, Any], left_out: list[int], name: str) -> Meta:
    """What is known of all ranks together: the first rank's, and the sentences of all."""
    first = next(iter(runs.values())).meta
    notes = list(facts.get("notes", ()))
    own = [n for run in runs.values() for n in run.meta.notes if not n.startswith("one of ")]
    notes += list(dict.fromkeys(own))
    unaligned = [r["rank"] for r in facts["ranks"] if r.get("clock") is None and r["rank"] in runs]
    if unaligned and len(runs) > 1:
        notes.append(
            f"no collective aligns the clocks of {_listed(unaligned)}: their first step is put where the first rank's begins"
        )
    if left_out:
        notes.append(
            f"{_listed(left_out)} left out of the whole: another number of steps than the first rank's"
        )
    counted: dict[str, Any] = {}
    for run in runs.values():
        for key, value in run.meta.facts.items():
            if isinstance(value, int) and not isinstance(value, bool):
                counted[key] = counted.get(key, 0) + value
            else:
                counted.setdefault(key, value)
    return replace(
        first,
        source=name,
        notes=tuple(notes),
        gpus=max(first.gpus, len(runs)),
        facts={**counted, "ranks": len(runs)},
    )


def work(values: list[int | None], meta: Meta) -> int | None:
    """A step's sequences or tokens over all ranks: what each says where each has all, else the sum over groups."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    if meta.dp == 1 and len(set(known)) == 1:
        return known[0]
    return sum(known) * max(1, meta.dp) // len(known) if meta.dp > 1 else sum(known) // max(1, meta.tp)


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' if ranks[1:] else ''} {', '.join(map(str, ranks[:5]))}{', ...' if ranks[5:] else ''}"


def together(told: Sequence[Routing]) -> Routing | None:
    """The routing of all tokens: that of any rank where all tell it alike, else each different one added."""
    different: list[Routing] = []
    for one in told:
        if not any(one.equals(other) for other in different):
            different.append(one)
    if not different or len({r.experts for r in different}) > 1:
        return None
    if len(different) == 1:
        return different[0]
    first = different[0]
    names = [name for name, _, _ in ROUTING_COLUMNS]
    columns = [np.concatenate([getattr(r, n) for r in different]) for n in names]
    keys, which = np.unique(np.stack(columns[:4], axis=1), axis=0, return_inverse=True)
    count = np.bincount(which.reshape(-1), weights=columns[4]).astype(np.int64)
    step, layer, expert, choice = keys.T
    return Routing(
        first.experts, step, layer, expert, choice, count, first.chosen, all(r.ordered for r in different)
    )
