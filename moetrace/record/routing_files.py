"""Any file that says which experts were chosen -> RoutingLog or Routing; the only reader of torch's .pt files."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.errors import MoetraceError, RunError
from moetrace.routing import Routing, RoutingLog, read_log

_MAX_PT = 2 << 30
# What torch's reader raises for bytes that are not as it expects, beside its own RuntimeError.
_DAMAGED = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, RuntimeError, EOFError, ValueError),
    *(LookupError, ArithmeticError, AttributeError, TypeError, AssertionError, MemoryError),
)


def read_routing(path: Path) -> Routing | RoutingLog:
    """What a routing.parquet (or the folder of one), a .pt of SGLang's recorder, a CSV or a JSON log says.

    Raises RunError for another file or a damaged one, MoetraceError where torch is needed and missing.
    """
    if path.is_dir():
        return Routing.load(path / "routing.parquet")
    if path.suffix == ".parquet":
        return Routing.load(path)
    return _read_pt(path) if path.suffix in (".pt", ".pth") else read_log(path)


def _read_pt(path: Path) -> RoutingLog:
    """SGLang's expert-distribution file (srt/eplb/expert_distribution.py): counts by pass, or ids by token.

    Loaded with ``weights_only``, so that nothing in it can run.
    """
    try:
        import torch
    except ImportError as missing:
        raise MoetraceError(
            f"{path}: .pt files need {missing.name}: pip install 'moetrace[record]'"
        ) from missing
    try:
        if _unpacked_bytes(path) > _MAX_PT:
            raise RunError(f"{path}: larger than {_MAX_PT >> 30} GiB")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _DAMAGED as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: not a .pt file of tensors ({why})") from None
    if not isinstance(found, Mapping):
        raise RunError(f"{path}: holds a {type(found).__name__}, expected SGLang's expert distribution")
    log = RoutingLog(str(path))
    if "logical_count" in found:
        _add_counts(log, _array(found["logical_count"], 3, path))
    elif isinstance(found.get("records"), list):
        mapping = found.get("last_physical_to_logical_map")
        logical = None if mapping is None else _array(mapping, 2, path)
        for number, record in enumerate(found["records"]):
            _add_record(log, number, record, logical, path)
    else:
        raise RunError(
            f"{path}: has neither 'logical_count' nor 'records', so is not SGLang's expert distribution"
        )
    return log


def _unpacked_bytes(path: Path) -> int:
    """Bytes of the file, or of what is packed in it if that is more: a small archive can unpack to any size."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        return size
    with zipfile.ZipFile(path) as archive:
        return max(size, sum(entry.file_size for entry in archive.infolist()))


def _add_counts(log: RoutingLog, counts: np.ndarray[Any, Any]) -> None:
    """[passes, layers, experts]; passes of a ring buffer that never ran are zero."""
    used = np.flatnonzero(counts.any(axis=(1, 2)))
    for step, at in enumerate(used.tolist()):
        for layer in np.flatnonzero(counts[at].any(axis=1)).tolist():
            log.add_counts(step, layer, counts[at, layer])


def _add_record(
    log: RoutingLog, number: int, record: object, logical: np.ndarray[Any, Any] | None, path: Path
) -> None:
    if not isinstance(record, Mapping) or not {"topk_ids_of_layer", "global_physical_count"} & set(record):
        raise RunError(f"{path}: record {number} has neither ids nor counts")
    by_token = "topk_ids_of_layer" in record
    table = _array(
        record["topk_ids_of_layer" if by_token else "global_physical_count"], 3 if by_token else 2, path
    )
    if logical is not None and len(logical) < len(table):
        raise RunError(
            f"{path}: record {number} has {len(table)} layers, the map of physical experts {len(logical)}"
        )
    if by_token:
        for layer, ids in enumerate(table):
            chosen = ids[(ids >= 0).any(axis=1)]  # rows of -1 are padding
            chosen = chosen[:, (chosen >= 0).all(axis=0)] if len(chosen) else chosen
            if chosen.size:
                log.add_ids(
                    number, layer, chosen if logical is None else _logical(logical[layer], chosen, path)
                )
        return
    for layer, counts in enumerate(table):
        if counts.any():
            log.add_counts(
                number, layer, counts if logical is None else _summed(logical[layer], counts, path)
            )


def _logical(mapping: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
    if ids.max() >= len(mapping):
        raise RunError(f"{path}: names physical expert {ids.max()} of {len(mapping)}")
    found: np.ndarray[Any, Any] = mapping[ids]
    return found


def _summed(mapping: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
    if len(mapping) != len(counts) or mapping.min() < 0 or mapping.max() >= len(mapping):
        raise RunError(f"{path}: its map of physical experts does not fit its counts")
    return np.bincount(mapping, counts, mapping.max() + 1).astype(np.int64)


def _array(tensor: object, dims: int, path: Path) -> np.ndarray[Any, Any]:
    import torch

    whole = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.dim() != dims
        or tensor.dtype not in whole
        or (tensor.layout, tensor.device.type) != (torch.strided, "cpu")
    ):
        raise RunError(f"{path}: expected a whole-number tensor of {dims} dims")
    if tensor.nbytes > tensor.untyped_storage().nbytes():  # strides of 0 claim any size
        raise RunError(f"{path}: a tensor of {tuple(tensor.shape)} is larger than what is stored of it")
    found: np.ndarray[Any, Any] = tensor.to(torch.int64).numpy()
    return found
