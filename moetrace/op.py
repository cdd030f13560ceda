"""Op, Work, Cost: the three values all else is made of.

An `Op` says what is computed (kind, dtype, dims), a `Work` what that takes (FLOPs, bytes, messages: no machine in it), a
`Cost` how long it takes on one machine. `Works` and `Costs` are the same two as columns, one entry per distinct op, so
that a machine's timing law is a few lines of numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from moetrace.errors import MoetraceError

FloatArray = npt.NDArray[np.float64]

# Bytes per element, and bytes of scales per element that travel with it (block size in the comment).
_DTYPE_BYTES: dict[str, tuple[float, float]] = {
    "fp64": (8.0, 0.0),
    "fp32": (4.0, 0.0),
    "bf16": (2.0, 0.0),
    "fp16": (2.0, 0.0),
    "fp8": (1.0, 0.0),  # one scale per tensor
    "fp8_block": (
        1.0,
        4.0 / (128 * 128),
    ),  # DeepSeek-V3: fp32 scale per 128 x 128 tile (arXiv 2412.19437, 3.3)
    "int8": (1.0, 0.0),  # one scale per output channel, negligible
    "int4": (0.5, 2.0 / 128),  # fp16 scale per group of 128 (AWQ/GPTQ default)
    "mxfp8": (1.0, 1.0 / 32),  # OCP Microscaling 1.0: E8M0 scale per 32
    "mxfp4": (0.5, 1.0 / 32),  # OCP Microscaling 1.0
    "nvfp4": (0.5, 1.0 / 16),  # E4M3 scale per 16
    "int64": (8.0, 0.0),
    "int32": (4.0, 0.0),
}
# The peak that multiplies this dtype: block and microscaled forms use the tensor-core rate of their elements.
_COMPUTE = {"fp8_block": "fp8", "mxfp8": "fp8", "mxfp4": "fp4", "nvfp4": "fp4"}

_DIM = re.compile(r"([a-z][a-z0-9_]*)=(-?[0-9]+(?:\.[0-9]+)?)")


def dtypes() -> tuple[str, ...]:
    """Names of all element types an op may have."""
    return tuple(_DTYPE_BYTES)


def element_bytes(dtype: str, scales: bool = True) -> float:
    """Bytes that one element of `dtype` takes, with its share of scales unless `scales` is false."""
    if dtype not in _DTYPE_BYTES:
        raise MoetraceError(f"unknown dtype {dtype!r}: there are {', '.join(_DTYPE_BYTES)}")
    body, scale = _DTYPE_BYTES[dtype]
    return body + scale if scales else body


@dataclass(frozen=True, slots=True)
class Op:
    """What one kernel or operator computes.

    `dtype` names the weights' element type; ``"mxfp4/bf16"`` means mxfp4 weights times bf16 activations. Dims are whole
    numbers, but for ``distinct_est`` (an expectation). The text form ``kind dtype name=value ...`` parses back to an
    equal Op and is what the `op` column of a Run holds.
    """

    kind: str
    dtype: str = "bf16"
    dims: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, kind: str, dtype: str = "bf16", **dims: float) -> Op:
        """An Op from keyword dims, in the order given."""
        return cls(kind, dtype, tuple(dims.items()))

    @property
    def weight_dtype(self) -> str:
        return self.dtype.split("/")[0]

    @property
    def act_dtype(self) -> str:
        return self.dtype.split("/")[-1]

    @property
    def compute_dtype(self) -> str:
        """The dtype whose peak bounds the multiply-adds: that of the activations."""
        return _COMPUTE.get(self.act_dtype, self.act_dtype)

    def get(self, name: str, default: float | None = None) -> float | None:
        """A dim's value, or `default`."""
        return next((value for key, value in self.dims if key == name), default)

    def __getitem__(self, name: str) -> float:
        value = self.get(name)
        if value is None:
            raise MoetraceError(f"op {str(self)!r} has no dim {name!r}")
        return value

    def has(self, *names: str) -> bool:
        """Whether all of these dims are known."""
        known = {key for key, _ in self.dims}
        return all(name in known for name in names)

    def with_dims(self, **dims: float | None) -> Op:
        """This op with some dims set, or dropped where None."""
        merged: dict[str, float | None] = {**dict(self.dims), **dims}
        return replace(self, dims=tuple((k, v) for k, v in merged.items() if v is not None))

    def __str__(self) -> str:
        return " ".join([self.kind, self.dtype, *(f"{k}={_number(v)}" for k, v in self.dims)])

    @classmethod
    def parse(cls, text: str) -> Op:
        """The Op of a text form. Raises MoetraceError naming the part that is not understood."""
        kind, _, rest = text.partition(" ")
        dtype, _, dims = rest.partition(" ")
        pairs: list[tuple[str, float]] = []
        for part in dims.split():
            found = _DIM.fullmatch(part)
            if not found:
                raise MoetraceError(f"op {text!r}: {part!r} is not name=number")
            pairs.append((found[1], float(found[2]) if "." in found[2] else int(found[2])))
        if not kind or not dtype:
            raise MoetraceError(
                f"op {text!r} lacks a kind or a dtype (expected 'kind dtype name=number ...')"
            )
        return cls(kind, dtype, tuple(pairs))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.4f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Work:
    """What one op takes, on any machine. Bytes are those that must cross from memory if nothing is cached.

    `weight_bytes` is the expectation at the stated routing; `weight_bytes_min` what is touched for certain (the counted
    distinct experts, else the k of one token). `net_bytes` leave each rank, in `net_steps` dependent messages.
    `experts` is the number of distinct experts expected on this rank, `rows` the token rows those experts multiply.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    weight_bytes_min: float = 0.0
    kv_read_bytes: float = 0.0
    kv_write_bytes: float = 0.0
    act_read_bytes: float = 0.0
    act_write_bytes: float = 0.0
    net_bytes: float = 0.0
    net_ranks: float = 0.0
    experts: float = 0.0
    rows: float = 0.0
    launches: float = 1.0
    resident_bytes: float = 0.0  # weights held for this op, touched or not: all experts, the whole matrix
    known: bool = True  # False: the dims did not suffice, so the record is empty, not zero

    @property
    def bytes(self) -> float:
        return (
            self.weight_bytes
            + self.kv_read_bytes
            + self.kv_write_bytes
            + self.act_read_bytes
            + self.act_write_bytes
        )

    @property
    def kv_bytes(self) -> float:
        return self.kv_read_bytes + self.kv_write_bytes

    @property
    def act_bytes(self) -> float:
        return self.act_read_bytes + self.act_write_bytes

    @property
    def bytes_min(self) -> float:
        """Bytes that are touched for certain."""
        return self.bytes - self.weight_bytes + self.weight_bytes_min

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, FLOPs per byte; nan where nothing moves."""
        return self.flops / self.bytes if self.bytes else float("nan")


UNKNOWN = Work(known=False)

_WORK_COLUMNS = tuple(f.name for f in fields(Work) if f.name != "known")


@dataclass(frozen=True, slots=True)
class Works:
    """The works of many distinct ops as columns; `ops` are the ops themselves, in the same order."""

    ops: tuple[Op, ...]
    column: dict[str, FloatArray]
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, ops: Sequence[Op], works: Iterable[Work]) -> Works:
        rows = list(works)
        return cls(
            tuple(ops),
            {name: np.array([getattr(w, name) for w in rows], dtype=np.float64) for name in _WORK_COLUMNS},
            np.array([w.known for w in rows], dtype=bool),
        )

    def __getitem__(self, name: str) -> FloatArray:
        """A column by a Work field's name, or one of the sums ``bytes``, ``bytes_min``, ``kv_bytes``, ``act_bytes``."""
        c = self.column
        if name == "kv_bytes":
            return c["kv_read_bytes"] + c["kv_write_bytes"]
        if name == "act_bytes":
            return c["act_read_bytes"] + c["act_write_bytes"]
        if name == "bytes":
            return c["weight_bytes"] + self["kv_bytes"] + self["act_bytes"]
        if name == "bytes_min":
            return c["weight_bytes_min"] + self["kv_bytes"] + self["act_bytes"]
        return c[name]

    def dim(self, name: str, default: float = float("nan")) -> FloatArray:
        """A dim of the ops as a column, `default` where an op has none."""
        values = (op.get(name) for op in self.ops)
        return np.array([default if value is None else value for value in values], dtype=np.float64)

    def take(self, index: npt.NDArray[np.int64]) -> Works:
        """The works at some places, in the order given."""
        column = {name: values[index] for name, values in self.column.items()}
        return Works(tuple(self.ops[i] for i in index.tolist()), column, self.known[index])

    def __len__(self) -> int:
        return len(self.ops)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that one op takes on one machine, split by what they are spent on.

    `expected_s` is the law's answer at the stated routing; it need not be the sum of the parts, which may overlap.
    `lower_bound_s` is what no correct measurement can beat. The 80 % interval is `expected_s` divided and multiplied by
    ``1 + error``. `provenance` says where the coefficients come from.
    """

    compute_s: float
    memory_s: float
    network_s: float
    fixed_s: float
    expected_s: float
    lower_bound_s: float
    error: float
    provenance: str

    @property
    def bound(self) -> str:
        """The largest part: ``compute``, ``memory``, ``network`` or ``fixed``."""
        parts = {
            "memory": self.memory_s,
            "compute": self.compute_s,
            "network": self.network_s,
            "fixed": self.fixed_s,
        }
        return max(parts, key=lambda name: parts[name])


PARTS = ("memory_s", "compute_s", "network_s", "fixed_s")
BOUNDS = tuple(part.removesuffix("_s") for part in PARTS)


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of many distinct ops as columns (seconds; `error` relative); unknown works cost nan."""

    compute_s: FloatArray
    memory_s: FloatArray
    network_s: FloatArray
    fixed_s: FloatArray
    expected_s: FloatArray
    lower_bound_s: FloatArray
    error: FloatArray
    provenance: tuple[str, ...]

    def __getitem__(self, index: int) -> Cost:
        figures = {
            f.name: float(getattr(self, f.name)[index]) for f in fields(Cost) if f.name != "provenance"
        }
        return Cost(**figures, provenance=self.provenance[index])

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def bound(self) -> npt.NDArray[np.int64]:
        """Index into BOUNDS of the largest part of each op; -1 where the cost is unknown."""
        parts = np.vstack([getattr(self, part) for part in PARTS])
        known = ~np.isnan(self.expected_s)
        return np.where(known, np.argmax(np.nan_to_num(parts), axis=0), -1)
