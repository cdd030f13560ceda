"""Op: what one kernel or operator computes, and the bytes of its element types."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moetrace.errors import MoetraceError
from moetrace.given import misfit

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


class Typed:
    """What the two halves of a dtype text say: ``"mxfp4/bf16"`` is mxfp4 weights times bf16 activations."""

    __slots__ = ()
    dtype: str

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


@dataclass(frozen=True, slots=True)
class Op(Typed):
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

    def get(self, name: str, default: float | None = None) -> float | None:
        """A dim's value, or `default`."""
        for key, value in self.dims:
            if key == name:
                return value
        return default

    def __getitem__(self, name: str) -> float:
        value = self.get(name)
        if value is None:
            raise MoetraceError(f"op {str(self)!r} has no dim {name!r}")
        return value

    def has(self, *names: str) -> bool:
        """Whether all of these dims are known."""
        known = [key for key, _ in self.dims]  # few: looking through them is faster than a set
        for name in names:  # noqa: SIM110 - asked of every op by every knob: three times as fast as all()
            if name not in known:
                return False
        return True

    def with_dims(self, **dims: float | None) -> Op:
        """This op with some dims set, or dropped where None."""
        merged: dict[str, float | None] = {**dict(self.dims), **dims}
        return Op(self.kind, self.dtype, tuple([(k, v) for k, v in merged.items() if v is not None]))

    def __str__(self) -> str:
        return " ".join([self.kind, self.dtype, *(f"{k}={_number(v)}" for k, v in self.dims)])

    @classmethod
    def parse(cls, text: str) -> Op:
        """The Op of a text form. Raises MoetraceError naming the part that is not understood."""
        if not isinstance(text, str):
            raise MoetraceError(misfit(text, "op", "expected text such as 'norm bf16 tokens=4 width=2048'"))
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
