"""Routing logs of other tools -> Routing: CSV and JSON lists of expert ids, and histograms of experts.

Read are: CSV with one row per token and layer (ids in one cell, as moe-beyond writes them) or one per layer and expert
(with a count); JSON ``{layer: {expert: count}}`` (MindSpeed), lists of passes of such layers, layers as lists of ids or of
counts; JSON lines with a layer and ids. Not supported: which sequence a token belongs to. Ids are taken to be in
order of choice; counts by expert say nothing of it, which the Routing then says too.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.errors import RunError
from moetrace.routing.builder import RoutingBuilder
from moetrace.routing.distinct import IntArray
from moetrace.routing.drawn import dealt_ids
from moetrace.routing.recorded import Routing

MAX_BYTES = 512 << 20
_MAX_ID = 1 << 16
_LAYER = ("layer", "layer_id", "layer_idx", "layer_index")
_STEP = ("step", "pass", "pass_id", "forward_pass_id", "batch_id", "iteration")
_IDS = ("activated_expert_ids", "expert_ids", "topk_ids", "topk_experts", "experts", "topk_idx")
_EXPERT, _COUNT = ("expert", "expert_id"), ("count", "tokens", "hits", "n")
_WRAPPED = ("passes", "records", "steps", "layers", "logical_count")
_DUMMY = 32  # so many tokens with the same experts are no text
_Key = tuple[int, int]
_MOST_CHOICES = 1 << 27  # of one step and layer: each becomes an id in memory


@dataclass(slots=True)
class RoutingLog:
    """What a log tells by (step, layer): expert ids [tokens, k] of each token, or the counts [experts] of all together."""

    where: str
    ids: dict[_Key, list[IntArray]] = field(default_factory=dict)
    counts: dict[_Key, IntArray] = field(default_factory=dict)

    def add_ids(self, step: int, layer: int, ids: object) -> None:
        """Tokens of a step at a layer: one token's ids, or a list of them."""
        table = _numbers(ids, self.where)
        table = table.reshape(1, -1) if table.ndim == 1 else table
        if table.ndim != 2 or not table.shape[1]:
            raise RunError(f"{self.where}: expected lists of expert ids for the tokens of layer {layer}")
        self.ids.setdefault((step, layer), []).append(table)

    def add_counts(self, step: int, layer: int, counts: Any) -> None:
        """How many tokens chose each expert, by expert or as a list over all of them; none in a layer without any."""
        if not len(counts):
            return
        if isinstance(counts, Mapping):
            experts = _numbers([_whole(e, self.where) for e in counts], self.where)
            table = np.zeros(int(experts.max(initial=0)) + 1, dtype=np.int64)
            np.add.at(table, experts, _numbers(list(counts.values()), self.where, ids=False))
        else:
            table = _numbers(counts, self.where, ids=False)
        before = self.counts.get((step, layer), np.zeros(0, dtype=np.int64))
        size = max(table.size, before.size)
        self.counts[step, layer] = np.pad(before, (0, size - before.size)) + np.pad(
            table, (0, size - table.size)
        )

    def routing(self, experts: int | None = None, topk: int | None = None) -> tuple[Routing, list[str]]:
        """(the routing, remarks) for a model of `experts` with top-k `topk`; without them, as many as the log shows.

        Counts by expert need `topk`: it tells how many tokens they stand for. Steps whose tokens all chose the same experts
        are a warm-up's and left out. Raises RunError where the log cannot be of such a model.
        """
        seen = [int(t.max(initial=0)) + 1 for tables in self.ids.values() for t in tables]
        seen += [c.size for c in self.counts.values()]
        if not seen:
            raise RunError(f"{self.where}: holds no routing")
        if experts is not None and max(seen) > experts:
            raise RunError(f"{self.where}: names expert {max(seen) - 1}, the model has {experts}")
        builder, remarks = RoutingBuilder(experts or max(seen)), list[str]()
        dummies = self._dummies()
        if dummies:
            remarks.append(
                f"{len(dummies)} step(s) of the routing log, whose tokens all chose alike, are left out"
            )
        for (step, layer), tables in self.ids.items():
            if step not in dummies:
                for table in tables:
                    builder.add(step, layer, table)
        for (step, layer), counts in self.counts.items():
            if counts.any():
                builder.add(step, layer, self._dealt(counts, step, layer, topk))
        routing = builder.build(ordered=not self.counts)
        if topk is not None and routing.topk < topk:
            raise RunError(f"{self.where}: each token has {routing.topk} experts, the model gives it {topk}")
        return routing, remarks

    def _dealt(self, counts: IntArray, step: int, layer: int, topk: int | None) -> IntArray:
        """Ids with these counts. They stand for counts only: who had what together is not known."""
        if topk is None:
            raise RunError(f"{self.where}: counts by expert need the model's top-k (give the model)")
        if counts.astype(float).sum() > _MOST_CHOICES:
            raise RunError(f"{self.where}: more than {_MOST_CHOICES} choices in step {step}, layer {layer}")
        tokens, rest = divmod(int(counts.sum()), topk)
        if rest or not tokens or counts.max() > tokens:
            raise RunError(
                f"{self.where}: the {counts.sum()} choices of step {step}, layer {layer} are not those of tokens with "
                f"{topk} experts each"
            )
        return dealt_ids(counts, tokens, np.random.default_rng(0))

    def _dummies(self) -> set[int]:
        alike: dict[int, bool] = {}
        for (step, _), tables in self.ids.items():
            table = np.concatenate(tables) if len({t.shape[1] for t in tables}) == 1 else tables[0]
            same = len(table) >= _DUMMY and bool((table == table[0]).all())
            alike[step] = same and alike.get(step, True)
        return {step for step, same in alike.items() if same}


def read_log(path: Path) -> RoutingLog:
    """The log in a .csv, .json or .jsonl file. Raises RunError: unreadable, too large, or of no form known here."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_BYTES:
        raise RunError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    text, log = raw.decode("utf-8-sig", errors="replace"), RoutingLog(str(path))
    if path.suffix.lower() == ".csv":
        _read_csv(text, log)
    else:
        _read_json(text, log)
    return log


def _read_csv(text: str, log: RoutingLog) -> None:
    rows = csv.DictReader(io.StringIO(text))
    names = {_plain(name): name for name in rows.fieldnames or () if name}
    layer, step, ids, expert, count = (
        _find(names, known) for known in (_LAYER, _STEP, _IDS, _EXPERT, _COUNT)
    )
    if layer is None or (ids is None and (expert is None or count is None)):
        raise RunError(
            f"{log.where}: expected the columns layer and expert_ids (ids of a token), or layer, expert and count; "
            f"there are {', '.join(rows.fieldnames or ()) or 'none'}"
        )
    try:
        for row in rows:
            at = (_whole(row[step], log.where) if step else 0, _whole(row[layer], log.where))
            if ids is not None:
                log.add_ids(*at, [int(n) for n in re.findall(r"-?\d+", row[ids] or "")])
            else:
                log.add_counts(*at, {row[str(expert)]: _whole(row[str(count)], log.where)})
    except csv.Error as error:
        raise RunError(f"{log.where}: line {rows.line_num}: {error}") from None


def _read_json(text: str, log: RoutingLog) -> None:
    try:
        found = json.loads(text)
    except RecursionError:
        raise RunError(f"{log.where}: nested too deeply") from None
    except ValueError:
        found = list(_lines(text, log.where))
    for key in _WRAPPED:
        if isinstance(found, dict) and isinstance(found.get(key), (list, dict)):
            found = found[key]
            break
    if isinstance(found, dict) and _find({_plain(k): k for k in found}, _LAYER) is None:
        _add_pass(log, 0, found)
    elif isinstance(found, (list, dict)) and found:
        for number, one in enumerate([found] if isinstance(found, dict) else found):
            _add_record(log, number, one)
    else:
        raise RunError(
            f"{log.where}: expected an object by layer, a list of passes, or lines with a layer and expert ids"
        )


def _lines(text: str, where: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise RunError(f"{where}: line {number} is not JSON") from None


def _add_record(log: RoutingLog, number: int, record: object) -> None:
    """One pass by layers, or one layer of a pass with its number and ids."""
    if not isinstance(record, dict):
        _add_pass(log, number, record)
        return
    names = {_plain(name): name for name in record}
    layer, step, ids = (_find(names, known) for known in (_LAYER, _STEP, _IDS))
    if layer is not None and ids is not None:
        log.add_ids(
            _whole(record[step], log.where) if step else 0, _whole(record[layer], log.where), record[ids]
        )
        return
    inside = _find(names, ("layers", "logical_count", "experts_by_layer"))
    _add_pass(log, _whole(record[step], log.where) if step else number, record[inside] if inside else record)


def _add_pass(log: RoutingLog, step: int, layers: object) -> None:
    items: Iterable[tuple[Any, Any]]
    if isinstance(layers, Mapping):
        items = layers.items()
    elif isinstance(layers, list):
        items = enumerate(layers)
    else:
        raise RunError(f"{log.where}: pass {step} is neither an object by layer nor a list of layers")
    for layer, told in items:
        number = _whole(re.sub(r"^\D*", "", str(layer)), log.where)
        if isinstance(told, list) and told and isinstance(told[0], list):
            log.add_ids(step, number, told)
        elif isinstance(told, (Mapping, list)):
            log.add_counts(step, number, told)
        else:
            raise RunError(f"{log.where}: layer {layer} of pass {step} holds neither ids nor counts")


def _find(names: Mapping[str, str], known: tuple[str, ...]) -> str | None:
    return next((names[name] for name in known if name in names), None)


def _plain(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_")


def _whole(value: object, where: str) -> int:
    try:
        number = int(str(value).strip())
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 31:
        raise RunError(f"{where}: {value!r} is not a whole number from 0")
    return number


def _numbers(values: object, where: str, ids: bool = True) -> IntArray:
    try:
        table = np.asarray(values)
    except ValueError:
        table = np.asarray(["ragged"])
    if table.size and (not np.issubdtype(table.dtype, np.integer) or table.min() < 0):
        raise RunError(f"{where}: expected whole numbers from 0, as many for each token")
    if ids and table.size and table.max() >= _MAX_ID:
        raise RunError(f"{where}: {table.max()} is not the number of an expert")
    return table.astype(np.int64)
