"""What is known of a run besides its ops: the model, the device, tensor parallelism, the engine.

Each comes from the user, the recorder's metadata or the trace itself, in that order, and says so in a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moetrace.errors import ModelError, TraceError
from moetrace.formats.events import Events
from moetrace.formats.texts import Told
from moetrace.grouping import distinct_rows
from moetrace.hardware import match_device
from moetrace.model import ModelSpec, infer_model
from moetrace.ops.communication import COLLECTIVES, collective_kind
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows

_NORM, _MOE, _SORT, _FUSED = range(4)  # operators whose tensors say something of the model
_TALL = 8192  # rows of a table that only a vocabulary has


class Seen:
    """What the rows of a trace show of the model and its split, gathered batch by batch."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._said = Told(events.texts, _says)
        # What an operator says of the model, and the code of its tensors.
        self._pairs: set[tuple[int, int]] = set()
        # Kinds of collectives that ran -> the largest group that states its size, or 0.
        self.traffic: dict[str, int] = {}
        self.layers = 0  # by annotation
        self.indexer = False
        self.device = -1  # of the first op
        self.on_cpu = False
        self.rows = 0

    @property
    def tensors(self) -> list[int]:
        """Codes of all tensor sets that operators of rows have."""
        return sorted({tensors for _, tensors in self._pairs})

    def saw(self, rows: Rows, kind_index: IntArray, kinds: Sequence[str]) -> None:
        """Takes rows into account."""
        if not self.rows and len(rows):
            self.device = int(rows.device[0])
        self.rows += len(rows)
        self.on_cpu = rows.on_cpu
        self.layers = max(self.layers, int(rows.layer.max(initial=-1)) + 1)
        word = self._said.of(rows.operator)
        first, _ = distinct_rows(word, rows.tensors)
        found = zip(word[first].tolist(), rows.tensors[first].tolist(), strict=True)
        self._pairs |= {pair for pair in found if pair[1] >= 0}
        first, _ = distinct_rows(kind_index, rows.message)
        self.indexer |= any(kinds[code].startswith("index_") for code in np.unique(kind_index).tolist())
        for kind_code, message in zip(kind_index[first].tolist(), rows.message[first].tolist(), strict=True):
            said = self._events.tensor_sets[message] if message >= 0 else None
            kind = (collective_kind(said.collective) if said else None) or kinds[kind_code]
            if kind in COLLECTIVES:
                self.traffic[kind] = max(self.traffic.get(kind, 0), said.group if said else 0)

    def dims(self, layers: int) -> dict[str, int]:
        """Model dims that operators show: hidden and experts from MoE and norm inputs, top-k from routing, vocabulary."""
        seen: dict[str, int] = {}
        for said, tensors in sorted(self._pairs):
            matrices = [s for s in self._events.tensor_sets[tensors].shapes if len(s) == 2]
            table = next((s for s in matrices if s[0] > _TALL and s[1] > 256), None)
            if said == _NORM and matrices:
                seen["hidden"] = max(seen.get("hidden", 0), matrices[0][1])
            elif said == _MOE and len(matrices) >= 2:
                seen["experts"] = matrices[1][1]
            elif said == _SORT and matrices:
                seen["topk"] = matrices[0][1]
            elif said == _FUSED and table and self._events.world_size == 1:  # split over ranks otherwise
                seen["vocab"] = table[0]
        if seen and layers:
            seen["layers"] = layers
        if seen and self.indexer:
            seen["has_indexer"] = 1
        return seen


def _says(operator: str) -> int:
    """Which of these an operator is, by its name; -1 for others."""
    if "norm" in operator:
        return _NORM
    if operator.startswith("triton"):
        return _FUSED if operator.startswith("triton_poi_fused") else -1
    return _MOE if "moe_forward" in operator else _SORT if operator == "SortTokens" else -1


_RECORDED_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def model_of(
    seen: Mapping[str, int], recording: Mapping[str, Any], given: ModelSpec | None
) -> tuple[ModelSpec | None, str, list[str]]:
    """(model, where it came from, remarks). Raises ModelError if a given model has other dims than the trace shows."""
    if given is not None:
        _check_given(given, seen)
        return given, "given", []
    config = recording.get("model_config")
    if isinstance(config, dict):
        weights = _RECORDED_DTYPES.get(str(recording.get("dtype")))
        if weights and not (config.get("dtype") or config.get("torch_dtype") or "text_config" in config):
            # A model built without saying so is not bf16, but what it is.
            config = {**config, "dtype": weights}
        return ModelSpec.from_config(config, str(recording.get("model") or "recorded")), "recorded", []
    inferred = infer_model(seen) if len(seen) > 1 else None
    if inferred is None:
        hint = "give --model NAME or config.json for the bytes of experts and attention"
        return None, "none", [f"the model is not known: {hint}"]
    return inferred[0], "inferred", [inferred[1]]


def recording_cost(recording: Mapping[str, Any]) -> list[str]:
    """What the recorder says that recording cost, as remarks."""
    cost, unknown = recording.get("overhead"), recording.get("overhead_unknown")
    if isinstance(cost, dict):
        with_it, without = cost.get("recorded_step_s"), cost.get("unprofiled_step_s")
        if isinstance(with_it, float) and isinstance(without, float):
            return [
                f"under the recorder a decode step took {1e3 * with_it:.4g} ms, without it {1e3 * without:.4g} ms (medians by "
                "the host's clock): times here are those under the recorder"
            ]
    return [f"what recording cost is not known: {unknown}"] if isinstance(unknown, str) else []


def _check_given(model: ModelSpec, seen: Mapping[str, int]) -> None:
    """Sizes and bytes from another model would be wrong in silence. Depth may differ: layers can be cut or drafted."""
    other = [
        f"{name} {seen[name]} (the model has {getattr(model, name)})"
        for name in ("hidden", "experts", "topk", "vocab")
        if name in seen and seen[name] != getattr(model, name)
    ]
    if other:
        raise ModelError(
            f"model {model.name} is not what ran: the trace shows {', '.join(other)}: give the one that did"
        )


@dataclass(frozen=True, slots=True)
class Split:
    """How the ranks share the model: `tp` ways by width, experts `ep` ways by number. None: not known (when given)."""

    tp: int | None = None
    ep: int | None = None


_GIVE = "--ran-tp and --ran-ep say it otherwise"
_EXCHANGES = ("moe_dispatch", "moe_collect", "all_to_all")


def split(
    events: Events,
    traffic: Mapping[str, int],
    output_sets: Iterable[int],
    model: ModelSpec | None,
    given: Split,
) -> tuple[Split, list[str]]:
    """(the sizes, both known; remarks). What the user gives wins over shapes, shapes over the collectives seen.

    `traffic` is that of `Seen`, `output_sets` the codes of the tensors of the attention output projections.
    Raises TraceError for sizes that do not divide the model or the number of ranks.
    """
    _check(given, events.world_size, model)
    world, notes = events.world_size, []
    tp, shown = given.tp, _shown_tp(events, output_sets, model) if world > 1 else None
    if tp is None and shown is not None:
        tp, width, full = shown
        notes.append(
            f"tensor parallel over {tp} of {world} ranks: the attention output is {width} of {full} wide"
        )
    ep, exchanged = given.ep, world > 1 and any(kind in traffic for kind in _EXCHANGES)
    if tp is None:
        tp, said = _assumed_tp(world, traffic, exchanged, model)
        notes += said
    if ep is None:
        ep = world if exchanged and (model is None or model.experts) else 1
        if ep > 1:
            notes.append(
                f"experts are taken as shared out over all {ep} ranks, for tokens are exchanged: {_GIVE}"
            )
    notes += _expert_remarks(tp, ep, given, model)
    return Split(tp, ep), notes


def _check(given: Split, world: int, model: ModelSpec | None) -> None:
    for name, size in (("--ran-tp", given.tp), ("--ran-ep", given.ep)):
        if size is not None and (size < 1 or (world > 1 and world % size)):
            raise TraceError(
                f"{name} {size}: expected a divisor of the {world} rank(s) that the trace is one of"
            )
    if model is not None and model.heads and model.heads % (given.tp or 1):
        raise TraceError(f"--ran-tp {given.tp}: the {model.heads} heads of {model.name} do not divide by it")
    if model is not None and model.experts and model.experts % (given.ep or 1):
        raise TraceError(
            f"--ran-ep {given.ep}: the {model.experts} experts of {model.name} do not divide by it"
        )


def _shown_tp(events: Events, sets: Iterable[int], model: ModelSpec | None) -> tuple[int, int, int] | None:
    """(size, width of one rank's attention output, full width), where the output projections' shapes show them."""
    if model is None:
        return None
    full = model.heads * (model.v_dim if model.attention == "mla" else model.head_dim)
    shapes = [events.tensor_sets[t].shapes for t in sorted(sets)]
    for width in {m[0][1] for s in shapes if len(m := [x for x in s if len(x) == 2]) >= 2}:
        if width and full % width == 0 and events.world_size % (full // width) == 0:
            return full // width, width, full
    return None


def _assumed_tp(
    world: int, traffic: Mapping[str, int], exchanged: bool, model: ModelSpec | None
) -> tuple[int, list[str]]:
    """(size, remarks) where no shape shows it: the group that all-reduces, if it states its size, else all ranks."""
    if world == 1:
        return 1, []
    if "all_reduce" not in traffic:
        why = "attention is taken as whole on each" if exchanged else "each is taken to hold the whole model"
        return 1, [f"one of {world} ranks, and no all-reduce was seen: {why}; {_GIVE}"]
    tp = traffic["all_reduce"] or world
    if model is not None and model.heads and model.heads % tp:
        return 1, [
            f"one of {world} ranks, but the {model.heads} heads do not divide by {tp}: priced as if whole; {_GIVE}"
        ]
    return tp, [
        f"taken as tensor parallel over {tp} of {world} ranks: all-reduces were seen, no shapes; {_GIVE}"
    ]


def _expert_remarks(tp: int, ep: int, given: Split, model: ModelSpec | None) -> list[str]:
    if model is None or not model.experts or max(tp, ep) == 1:
        return []
    if ep > 1:
        others = max(1, ep // tp)
        return [
            f"one rank is taken to hold {-(-model.experts // ep)} of {model.experts} experts, "
            f"and their tokens to come from {others} group(s) of ranks with as many tokens each: the trace shows one rank"
        ]
    how = "given" if given.ep else "not shown; --ran-ep if whole experts are shared out instead"
    return [f"an expert's width on one rank is taken as 1/{tp} of {model.expert_inter}, padded to 128: {how}"]


# torch names traces <worker>.<time>.pt.trace.json, and the worker <host>_<process> unless told otherwise.
_TORCH_NAME = re.compile(r"(.*)\.\d{9,}(\.pt\.trace\.json(?:\.gz)?)")
_RANK = re.compile(r"(?i)(?<![a-z0-9])(?:rank|[tpde]p)[-_]?\d{1,5}(?![a-z0-9])")


def source_of(name: str) -> str:
    """A trace file's name without the host, process and time that torch puts there; ranks stay."""
    found = _TORCH_NAME.fullmatch(name)
    if not found:
        return name
    ranks = [rank.replace("-", "").replace("_", "") for rank in _RANK.findall(found[1].replace("_", "-"))]
    return "-".join(["trace", *ranks]) + found[2]


def device_of(events: Events, seen: Seen, recording: Mapping[str, Any]) -> tuple[str, str | None]:
    """(name of the device, profile that it matches)."""
    if seen.on_cpu:
        own = recording.get("device")
        return (str(own.get("name", "CPU")) if isinstance(own, dict) else "CPU"), "cpu"
    blocks = [d for d in events.devices if d.get("id") == seen.device] or list(events.devices[:1])
    if not blocks:
        return "", None
    name, memory, sms = (blocks[0].get(key) for key in ("name", "totalGlobalMem", "numSms"))
    profile = match_device(
        str(name or ""), memory if isinstance(memory, int) else None, sms if isinstance(sms, int) else None
    )
    return str(name or profile or ""), profile


def engine_of(events: Events, recording: Mapping[str, Any]) -> str | None:
    """The engine that ran, by its annotations and operators."""
    if recording:
        served = recording.get("engine")
        return str(served) if served in ("vllm", "sglang") else "transformers, recorded by moetrace"
    seen = {engine for text in events.texts for engine, said in _ENGINES if said(text)}
    return next((engine for engine, _ in _ENGINES if engine in seen), None)


# Of TensorRT-LLM the operators and annotations of its PyTorch backend; its kernels alone run in other engines too.
_ENGINES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("sglang", lambda text: text.startswith("step[")),
    ("vllm", lambda text: "vllm::" in text),
    ("tensorrt-llm", lambda text: text.startswith(("trtllm::", "[Executor] _forward_step"))),
)
