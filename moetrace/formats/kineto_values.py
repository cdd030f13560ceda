"""What a field of a Kineto event says, whatever JSON it holds: times, whole numbers, shapes, messages of collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any

from moetrace.formats.events import Tensors

INT64 = 1 << 63
_MOST_DIGITS = 20  # before the point: more us than that are no time
_RANK = re.compile(r"\d{1,7}")
_MOST_TEXT = 300  # characters of a list of ranks
_DTYPE = {
    "float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16", "long int": "int64", "long": "int64",
    "int": "int32", "c10::Float8_e4m3fn": "fp8", "c10::Float8_e4m3fnuz": "fp8", "c10::Float8_e5m2": "fp8",
    "unsigned char": "int8", "signed char": "int8", "bool": "int8", "short": "fp16",
}  # fmt: skip
_NCCL_DTYPE = {
    "Float": 4, "Double": 8, "BFloat16": 2, "Half": 2, "Long": 8, "Int": 4, "Byte": 1, "Char": 1, "Bool": 1, "Short": 2,
    "Float8_e4m3fn": 1, "Float8_e4m3fnuz": 1, "Float8_e5m2": 1, "Float8_e5m2fnuz": 1,
}  # fmt: skip


def ns(value: Any) -> int | None:
    """Microseconds of any JSON type as whole nanoseconds, None for damage. Exact for a text and a Decimal of any size."""
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            return None
    if isinstance(value, Decimal):
        return round(value * 1000) if value.is_finite() and value.adjusted() < _MOST_DIGITS else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1000
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    low = math.floor(value)
    return low * 1000 + round((value - low) * 1000)


def whole(value: Any, default: int = 0) -> int:
    """An int from an int, an integral float or digits (ROCm writes bytes as text); else the default."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 20 else None
    if isinstance(value, float | Decimal):
        value = int(value) if value == value // 1 else None
    return value if isinstance(value, int) and abs(value) < INT64 else default


def tensors_of(args: Mapping[str, Any]) -> Tensors | None:
    dims = args.get("Input Dims", args.get("Input dims"))
    if not isinstance(dims, list):
        return None
    types = args.get("Input type")
    types = types if isinstance(types, list) else []
    pairs = list(_flat(dims, types))
    return Tensors(tuple(s for s, _ in pairs), tuple(t for _, t in pairs))


def _flat(dims: list[Any], types: list[Any]) -> Iterator[tuple[tuple[int, ...], str]]:
    """(shape, dtype) per input; a list of tensors becomes its members."""
    for i, shape in enumerate(dims):
        dtype = _DTYPE.get(str(types[i]), "") if i < len(types) else ""
        if not isinstance(shape, list):
            yield (), ""
        elif shape and isinstance(shape[0], list):
            yield from (
                (tuple(whole(n) for n in member), dtype) for member in shape if isinstance(member, list)
            )
        else:
            yield tuple(whole(n) for n in shape), dtype


def message_of(args: Mapping[str, Any]) -> Tensors | None:
    """What NCCL kernels say of their message; its bytes are those that one rank gives."""
    if "Collective name" not in args:
        return None
    name = str(args["Collective name"])
    width = _NCCL_DTYPE.get(str(args.get("dtype")).removeprefix("c10::"), 0)
    elements = whole(args.get("In msg nelems"))
    if not re.search(
        r"gather|scatter|all_?to_?all", name.lower()
    ):  # these put out another number than they take
        elements = max(elements, whole(args.get("Out msg nelems")))
    stride = _stride(args.get("Process Group Ranks"))
    return Tensors(
        nbytes=elements * width, group=whole(args.get("Group size")), collective=name, stride=stride
    )


def _stride(said: Any) -> int:
    """The distance between the ranks of a group, from a text as ``[0, 2, 4]``, long ones cut; 0: not told, or uneven."""
    ranks = [int(n) for n in _RANK.findall(str(said or "")[:_MOST_TEXT])]
    apart = {b - a for a, b in pairwise(ranks)}
    return max(0, apart.pop()) if len(apart) == 1 else 0
