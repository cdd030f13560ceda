"""The columns of a run's op table: names, types and meaning, and how columns are made. No other file knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.errors import RunError
from moetrace.files import table_facts, values_of

RUN_VERSION = 1
TABLE_FACTS = table_facts("ops", RUN_VERSION)
TEXT = pa.dictionary(pa.int32(), pa.string())
# verify: a decode step that computes several tokens of a sequence, most of them drafted; draft: the draft model's own step.
PHASES = ("prefill", "decode", "verify", "mixed", "draft")
GENERATING = ("decode", "verify")  # each sequence yields a token or more

# name, type, meaning (with its unit and what null says). The order is the order on disk; docs/schema.md is made from it.
OPS_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("rank", pa.int32(), "rank of the process that recorded the op, from 0"),
    ("device", pa.int32(), "device index as the profiler numbers it; -1 on a CPU"),
    ("stream", pa.int64(), "device stream, or the thread on a CPU"),
    ("step", pa.int32(), "index into the run's steps; null: outside of every step"),
    (
        "phase",
        TEXT,
        "prefill, decode, verify (speculative: several tokens a sequence), mixed or draft (the draft model); null: the trace does not say",
    ),
    (
        "layer",
        pa.int32(),
        "decoder layer from 0; null: not in a layer (embedding, lm_head, sampling, copies) or not known",
    ),
    ("family", TEXT, "op family, such as experts, attention, communication"),
    ("kind", TEXT, "op kind, such as moe_gate_up; `other`: the name was not recognised"),
    ("op", TEXT, "the Op as text: kind, dtype and dims; parses back with moetrace.op.Op.parse"),
    ("kernel", TEXT, "kernel or operator name as recorded"),
    ("start_ns", pa.int64(), "start, ns since the epoch of the recording"),
    ("dur_ns", pa.int64(), "duration in ns"),
    ("launch_ns", pa.int64(), "when the host call that launched it began, ns; null: launch not recorded"),
    ("graph", pa.int64(), "id of the graph launch that replayed it; null: launched by itself"),
    (
        "op_source",
        TEXT,
        "where kind and dims came from: shapes, capture, annotation (around a graph's node when it was made), model, period "
        "(the model, by an op's place in layers that repeat), name or none",
    ),
    (
        "layer_source",
        TEXT,
        "where the layer came from: annotation, module, order, period (repetition alone) or none; null: not known",
    ),
    ("flops", pa.float64(), "floating-point operations at the stated routing; null: dims not known"),
    (
        "weight_bytes",
        pa.float64(),
        "bytes of weights that must be read, scales included; null: dims not known",
    ),
    ("kv_bytes", pa.float64(), "bytes of KV cache read and written; null: dims not known"),
    ("act_bytes", pa.float64(), "bytes of activations read and written; null: dims not known"),
    ("net_bytes", pa.float64(), "bytes that leave this rank; null: dims not known"),
    (
        "intensity",
        pa.float64(),
        "arithmetic intensity, FLOPs per byte of memory; null: no bytes or not known",
    ),
    ("bytes_per_s", pa.float64(), "achieved memory bytes per second; null: not known, or no duration"),
    ("flop_per_s", pa.float64(), "achieved FLOPs per second; null: not known, or no duration"),
    (
        "error",
        pa.float64(),
        "predicted runs: the 80 % interval is dur_ns divided and multiplied by 1 + error; null: not a predicted run",
    ),
    ("provenance", TEXT, "predicted runs: what the duration rests on; null: not a predicted run"),
)
OPS_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in OPS_COLUMNS])
# What a file may lack, as one of a moetrace from before the column: it reads as null, which says that it is not known.
OPTIONAL = frozenset(name for name, _, doc in OPS_COLUMNS if "null" in doc)


def main_phase(phases: Iterable[str]) -> str | None:
    """The phase that a run is about: decode where there is any, else verify, else the first; None of none."""
    have = list(phases)
    return next((phase for phase in (*GENERATING, *have) if phase in have), None)


def codes_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A text column as (code per row, the distinct texts); -1 for null."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    joined = encoded.unify_dictionaries().combine_chunks()
    array = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
    return without_nulls(array.indices, -1).astype(np.int64), array.dictionary.to_pylist()


def text_column(index: npt.NDArray[Any], texts: Sequence[str]) -> pa.DictionaryArray:
    """A dictionary-encoded text column from codes (-1: null) and texts; equal texts are one word of the dictionary."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(distinct) < len(texts):  # pandas takes no dictionary that has a word twice
        place = np.array([distinct[text] for text in texts], dtype=np.int64)
        index, texts = np.where(index < 0, -1, place[np.maximum(index, 0)]), tuple(distinct)
    return pa.DictionaryArray.from_arrays(nullable(index, index < 0, pa.int32()), _texts(texts))


def numbers(values: npt.NDArray[Any], kind: pa.DataType | None = None) -> pa.Array:
    """A column without nulls."""
    return nullable(values, np.zeros(0, dtype=bool), kind)


def nullable(
    values: npt.NDArray[Any], mask: npt.NDArray[np.bool_], kind: pa.DataType | None = None
) -> pa.Array:
    """A column with nulls where `mask` is true."""
    # From buffers: pa.array would import pandas, half of the time of a short verb.
    kind = kind or pa.from_numpy_dtype(values.dtype)
    if pa.types.is_boolean(kind):
        data = _bits(values)
    elif np.can_cast(values.dtype, kind.to_pandas_dtype(), "same_kind"):
        data = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    else:  # such as whole numbers held as floats, which pyarrow checks
        return pa.array(values, type=kind, mask=mask if mask.size else None)
    valid = pa.py_buffer(_bits(~mask)) if mask.any() else None
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(data)])


def without_nulls(column: pa.ChunkedArray | pa.Array, null: float) -> npt.NDArray[Any]:
    """A numeric column with `null` in the place of nulls."""
    # A value of an array: pa.scalar would import pandas.
    return values_of(pc.fill_null(column, numbers(np.array([null]), column.type)[0]))


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.packbits(values.astype(bool, copy=False), bitorder="little")


def _texts(texts: Sequence[str]) -> pa.Array:
    raw = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(ends), pa.py_buffer(b"".join(raw)))


def ops_table(columns: Mapping[str, pa.Array]) -> pa.Table:
    """An op table of the schema from some of its columns; the others are null."""
    unknown = set(columns) - set(OPS_SCHEMA.names)
    if unknown:
        raise RunError(f"no such columns in the ops table: {', '.join(sorted(unknown))}")
    rows = len(next(iter(columns.values())))
    arrays = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in OPS_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=OPS_SCHEMA)


def filled(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """The table with nulls for the columns that its file lacks."""
    for name in columns or OPS_SCHEMA.names:
        if name not in table.column_names:
            table = table.append_column(
                OPS_SCHEMA.field(name), pa.nulls(table.num_rows, OPS_SCHEMA.field(name).type)
            )
    return table.select(list(columns)) if columns else table
