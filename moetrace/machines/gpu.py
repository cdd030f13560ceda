"""The timing law of GPUs (and, with other figures, of CPUs): each op by the form of its family.

    expected = form(coefficients, work, machine)

A profile names the form of each family and its coefficients (machines/forms has the formulas; the fit: `moetrace
calibrate`). Coefficients belong to (family, dtype, engine), never to a model. Not modelled by any form: clocks, contention
between streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moetrace.errors import ProfileError
from moetrace.hardware import ANY_ENGINE, Family, Hardware
from moetrace.machines import links, seen
from moetrace.machines.forms import FORMS, Cache, Parts, Setting
from moetrace.op import Costs, FloatArray, Rows, Works

IntArray = npt.NDArray[np.int64]
Found: TypeAlias = "Sequence[tuple[str, Family]]"
UNKNOWN_WORK = "unknown: its dims did not suffice"
_NODE = 8  # ranks of a node, wherever an exchange between nodes was measured
_EXCHANGES = ("moe_dispatch", "moe_collect")
_NO_ERROR = 1e-12  # stands for an error of none, whose logarithm there is not
_TOKEN_DIMS = ("tokens", "m", "batch")  # what an op's size is told by, best first


def cost(
    works: Works,
    families: Sequence[str],
    hw: Hardware,
    *,
    engine: str = ANY_ENGINE,
    cache: Cache = "cold",
) -> Costs:
    """Costs of ops on one GPU of `hw`. nan where the work is unknown or the profile has no peak or link for it.

    `families` has one entry per type of op: see `families_of`.
    """
    found, whose = families_of(works, families, hw, engine), engine.partition("@")[0]
    words = [f"{hw.name} {f.provenance} {key}" for key, f in found]
    peak, word = peaks(works, hw, words), works.ops.code
    sent = works["net_ranks"] > 1  # a collective of no bytes takes its floor all the same
    if sent.any() or any(FORMS[f.form].network for _, f in found):
        found, words, word = _collectives(works, sent, hw, found, words)
    compute_s, memory_s, network_s, fixed_s, expected_s, error = (np.zeros(len(works)) for _ in range(6))
    for family, rows in _by_coefficients(found, word):
        some = works.take(rows)
        parts = FORMS[family.form].seconds(family.value, some, Setting(hw, peak[rows], cache, whose))
        compute_s[rows], memory_s[rows] = parts.compute_s, parts.memory_s
        fixed_s[rows], expected_s[rows] = parts.fixed_s, parts.expected_s
        network_s[rows] = 0.0 if parts.network_s is None else parts.network_s
        error[rows] = _beyond(errors(family, some, parts), family, some)
    lower_s = np.maximum(works["bytes_min"] / hw.memory.bytes_per_s, works["flops"] / peak)
    alone = works["net_ranks"] == 1  # no engine launches a collective of one rank
    for column in (compute_s, memory_s, network_s, fixed_s, expected_s, lower_s):
        column[alone] = 0.0
    if sent.any():
        lower_s[sent] = _certain(works.take(np.flatnonzero(sent)), hw)
        expected_s[sent & ~np.array([FORMS[f.form].network for _, f in found])[word]] = np.nan
    parts_s = (compute_s, memory_s, network_s, fixed_s)
    return finish(works.known, parts_s, expected_s, lower_s, error, words, word)


def _collectives(
    works: Works, sent: npt.NDArray[np.bool_], hw: Hardware, found: Found, words: list[str]
) -> tuple[list[tuple[str, Family]], list[str], IntArray]:
    """Coefficients, words and each op's place among them, with those of collectives: alone, a rank sends nothing.

    What a profile has no link or no coefficients for is unknown, and its word says so.
    """
    types, more, told = works.ops.types, list(found), list(words)
    word = np.where(sent, works.ops.code + len(types), works.ops.code)
    far = sent & (works["net_ranks"] > hw.domain_gpus)
    for at, op in enumerate(types):
        key, family = found[at]
        network = FORMS[family.form].network
        more.append((key, family))
        missing = "has no link" if hw.link is None else f"has no coefficients for {op.kind}"
        told.append(words[at] if network and hw.link else f"unknown: profile {hw.name!r} {missing}")
    if hw.link is not None and hw.link.network_bytes_per_s is None and far.any():
        more += more[len(types) :]
        missing = f"gives no network_bytes_per_s, and more than its domain_gpus of {hw.domain_gpus} take part"
        told += [f"unknown: profile {hw.name!r} {missing}"] * len(types)
        word = np.where(far, works.ops.code + 2 * len(types), word)
    return more, told, word


def _certain(works: Works, hw: Hardware) -> FloatArray:
    """Seconds that what collectives send for certain takes on the links, [ops]; nan without a link."""
    out = np.full(len(works), np.nan)
    for code, op in enumerate(works.ops.types):
        rows = works.ops.code == code
        out[rows] = links.certain_bytes(op.kind, works["net_bytes"][rows], works["net_ranks"][rows])
    return out / (hw.link.bytes_per_s if hw.link else np.nan)


def families_of(
    works: Works, families: Sequence[str], hw: Hardware, engine: str = ANY_ENGINE
) -> list[tuple[str, Family]]:
    """Key and coefficients for each type of op; `families` names their op families. Raises ProfileError on another number."""
    types = works.ops.types
    if len(families) != len(types):
        raise ProfileError(f"{len(families)} families for {len(types)} types of op: expected one of each")
    return [hw.family(o.kind, f, o.weight_dtype, engine) for o, f in zip(types, families, strict=True)]


def _by_coefficients(found: Found, word: IntArray) -> Iterator[tuple[Family, Rows]]:
    """(coefficients, rows that take them), rows by their place in `found`; a slice where that is all rows."""
    keys = list(dict.fromkeys(key for key, _ in found))
    if len(keys) == 1:
        yield found[0][1], slice(None)
        return
    member = np.array([keys.index(key) for key, _ in found], dtype=np.int64)[word]
    coefficients = dict(found)
    for at, key in enumerate(keys):
        rows = np.flatnonzero(member == at)
        if rows.size:
            yield coefficients[key], rows


def errors(family: Family, works: Works, parts: Parts) -> FloatArray:
    """The error of each op, [ops]: by the decade of its tokens, its place in it and what its time is made of, where that was
    found, else the family's; beside it, as squares of logarithms, what the form says of ops unlike those that were fitted."""
    own = _own_errors(family, works, parts)
    if parts.further is None:
        return own
    return np.where(parts.further > 0, np.expm1(np.hypot(np.log1p(own), np.log1p(parts.further))), own)


def _beyond(own: FloatArray, family: Family, works: Works) -> FloatArray:
    """Errors of ops, [ops], with what sizes that their fit did not see add (`seen.further`), as squares of logarithms."""
    further = seen.further(family.seen, len(family.error_decades), works.ops)
    return own if further is None else np.where(further > 0, np.expm1(np.hypot(np.log1p(own), further)), own)


def _own_errors(family: Family, works: Works, parts: Parts) -> FloatArray:
    """The error of each op by the family's alone, [ops]."""
    if not family.error_decades:
        return np.full(len(works), family.error)
    tokens = tokens_of(works)
    size = _size(tokens)
    decade = _decade(size)
    place = np.minimum(decade, len(family.error_decades) - 1)
    level = _level(family.error_decades)[place]
    if family.error_terms:
        level = _mixed(family.error_terms, parts.terms, place, level)
    if family.error_rises:
        level += np.log(np.array(family.error_rises))[place] * _place(size, place)
    found = np.exp(level)
    if family.error_apart:
        place = np.minimum(decade, len(family.error_apart) - 1)
        found = np.where(apart(works), np.log1p(np.array(family.error_apart))[place], found)
    if family.carried:
        found = np.hypot(found, np.log1p(family.carried))
    found = np.expm1(found)
    # Where the family's ops have no size, there is one decade for all of them.
    return np.where(np.isnan(size) & (len(family.error_decades) > 1), family.error, found)


def _level(errors: Sequence[float]) -> FloatArray:
    """What is added up of errors: the logarithm of log(1 + error)."""
    return np.asarray(np.log(np.maximum(np.log1p(np.array(errors)), _NO_ERROR)))


def _mixed(
    errors: Mapping[str, tuple[float, ...]],
    terms: Mapping[str, FloatArray],
    place: IntArray,
    without: FloatArray,
) -> FloatArray:
    """Levels of ops whose terms have these errors by decade: their mean, weighed by the terms' seconds."""
    total, weighed = np.zeros(place.size), np.zeros(place.size)
    for name, by_decade in errors.items():
        total += terms[name]
        weighed += terms[name] * _level(by_decade)[place]
    known = total > 0
    return np.where(known, np.divide(weighed, total, out=weighed, where=known), without)


def decade_of(tokens: FloatArray) -> IntArray:
    """0 for 1-9 tokens, 1 for 10-99 and so on, [ops]; 0 where an op has none."""
    return _decade(_size(tokens))


def place_in_decade(tokens: FloatArray, decade: int) -> FloatArray:
    """-0.5 where the decade begins to 0.5 where it ends, by the tokens' logarithm, [ops]; those outside are at its ends and
    what has no tokens is in the middle."""
    return _place(_size(tokens), decade)


def _size(tokens: FloatArray) -> FloatArray:
    return np.asarray(np.log10(np.maximum(tokens, 1.0)))


def _decade(size: FloatArray) -> IntArray:
    return np.nan_to_num(np.floor(size)).astype(np.int64)


def _place(size: FloatArray, decade: IntArray | int) -> FloatArray:
    return np.where(np.isnan(size), 0.0, np.clip(size - decade, 0.0, 1.0) - 0.5)


def apart(works: Works) -> npt.NDArray[np.bool_]:
    """Whether an op runs in its family's other way, whose error is its own, [ops].

    An exchange is of low latency (it names no processors that send, dim `sms`) or leaves a node, an all-reduce is called
    eagerly.
    """
    exchanges = works.ops.by_type([1.0 if op.kind in _EXCHANGES else 0.0 for op in works.ops.types]) > 0
    usual = (works.dim("sms") > 0) & (works["net_ranks"] <= _NODE)
    return np.asarray((exchanges & ~usual) | (works.dim("eager") > 0))


def tokens_of(works: Works) -> FloatArray:
    """What tells an op's size, [ops]: its tokens, a GEMM's rows, an attention's sequences; nan where it has none of these."""
    tokens = np.full(len(works), np.nan)
    for name in _TOKEN_DIMS:
        tokens = np.where(np.isnan(tokens), works.dim(name), tokens)
    return tokens


def peaks(works: Works, hw: Hardware, words: list[str]) -> FloatArray:
    """Peak FLOP/s for each op; inf where it does no FLOPs, nan where the machine has no path for it.

    `words` has a text for each type of op; it becomes the reason where there is no path.
    """
    worked = works["flops"] > 0
    peak = np.full(len(works.ops.types), np.nan)
    for at, op in enumerate(works.ops.types):
        try:
            peak[at] = hw.peak(op.compute_dtype)
        except ProfileError as error:
            if bool(worked[works.ops.code == at].any()):
                words[at] = str(error)
    return np.where(worked, peak[works.ops.code], np.inf)


def finish(
    known: npt.NDArray[np.bool_],
    parts: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    expected_s: FloatArray,
    lower_s: FloatArray,
    error: FloatArray,
    words: Sequence[str],
    word: IntArray,
) -> Costs:
    """Costs from (compute, memory, network, fixed) and the rest; nan throughout where the work or the machine is unknown.

    `words[word]` says where an op's coefficients come from, or why there are none.
    """
    good = known & np.isfinite(expected_s)
    compute_s, memory_s, network_s, fixed_s, expected, lower, spread = (
        np.where(good, column, np.nan) for column in (*parts, expected_s, lower_s, error)
    )
    used, word = _used((*words, UNKNOWN_WORK), np.where(known, word, len(words)))
    return Costs(compute_s, memory_s, network_s, fixed_s, expected, lower, spread, used, word)


def _used(words: Sequence[str], word: IntArray) -> tuple[tuple[str, ...], IntArray]:
    """The words that occur, each once, and each op's place among them."""
    occurs = np.flatnonzero(np.bincount(word, minlength=len(words))).tolist()
    used = tuple(dict.fromkeys(words[i] for i in occurs))
    place = np.zeros(len(words), dtype=np.int64)
    place[occurs] = [used.index(words[i]) for i in occurs]
    return used, place[word]
