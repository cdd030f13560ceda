"""The catalogue and config files: name or path -> ModelSpec; dims seen in a trace -> the one that has them.

The catalogue is `models/*.json`, public values under Hugging Face field names. An entry of the same shape as another one
(DeepSeek-R1 as DeepSeek-V3) names it in `_same_shape_as` and holds no values of its own but how long a sequence may be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.errors import ModelError, unknown
from moetrace.given import misfit
from moetrace.model.spec import ModelSpec

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MAX_CONFIG_BYTES = 4 << 20
_ABOUT = ("_source", "_note", "_same_shape_as")  # what an entry says of itself
INFER_KEYS = (  # dims that tell models apart
    "hidden",
    "layers",
    "vocab",
    "heads",
    "kv_heads",
    "head_dim",
    "experts",
    "topk",
    "expert_inter",
    "has_indexer",
)


@cache
def model_names() -> tuple[str, ...]:
    """Names of the models in the catalogue, sorted."""
    found = (entry.name for entry in _catalogue().iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


def _catalogue() -> Traversable:
    return resources.files("moetrace").joinpath("models")


def same_shape_as(name: str) -> str | None:
    """The catalogue entry whose shape an entry shares, if it has none of its own."""
    return _entry(name).get("_same_shape_as")


def _entry(name: str) -> dict[str, Any]:
    return dict(json.loads(_catalogue().joinpath(f"{name}.json").read_text("utf-8")))


def load_config(name_or_path: str) -> dict[str, Any]:
    """The config behind a catalogue name, a config.json or a folder that holds one, without what an entry says of itself.

    Fit to build a transformers config from: ``AutoConfig.for_model(**load_config("olmoe-1b-7b"))``. Raises
    ModelError.
    """
    return {k: v for k, v in _read(name_or_path)[0].items() if k not in _ABOUT}


def load_model(name_or_path: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """The spec behind a catalogue name, a Hugging Face config.json or a folder that holds one; a ModelSpec as it is, so that
    what takes a model takes its name too.

    Raises ModelError, one line: no such name or file, not JSON, larger than 4 MiB, a field missing or
    nonsensical.
    """
    if isinstance(name_or_path, ModelSpec):
        return name_or_path
    if not isinstance(name_or_path, str | os.PathLike):
        raise ModelError(
            misfit(name_or_path, "model", "expected a name, a config.json's path or a ModelSpec")
        )
    if not os.fspath(name_or_path).strip():
        raise ModelError("no model is named: expected a name of 'moetrace models' or a config.json's path")
    config, where, name = _read(os.fspath(name_or_path))
    return ModelSpec.from_config(config, name, where)


def _read(name_or_path: str) -> tuple[dict[str, Any], str, str]:
    """(config, what errors call it, name of the model)."""
    if name_or_path in model_names():
        own = _entry(name_or_path)
        shape = own.get("_same_shape_as")
        return ({**_entry(shape), **own} if shape else own), f"model {name_or_path!r}", name_or_path
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        listed = path.name.casefold()  # of a Hugging Face name, such as Qwen/Qwen3-30B-A3B
        if "/" in name_or_path and listed in model_names():
            raise ModelError(
                f"no model config at {path}: expected a config.json, or the name {listed!r} of the catalogue"
            )
        if path.suffix == ".json" or "/" in name_or_path:
            raise ModelError(
                f"no model config at {path}: expected a config.json, or one of {', '.join(model_names())}"
            )
        raise ModelError(f"{unknown('model', name_or_path, model_names())}; or give a config.json's path")
    config = _parse_file(path)
    stated = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    return config, str(path), stated or (path.resolve().parent.name if path.stem == "config" else path.stem)


def _parse_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ModelError(f"{path}: larger than 4 MiB, so not a model config")
    try:
        config = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: not JSON (expected a Hugging Face config.json)") from None
    if not isinstance(config, dict):
        raise ModelError(
            f"{path}: holds a {type(config).__name__}, expected a JSON object with a model's fields"
        )
    return config


def infer_model(seen: Mapping[str, int]) -> tuple[ModelSpec, str] | None:
    """The one catalogue model that agrees with all dims seen, and a sentence saying so; None if not one.

    Its `max_context` is the longest of all that have its shape: the trace does not tell them apart.

    Keys of `seen`: hidden, layers, vocab, heads, kv_heads, head_dim, experts, topk, expert_inter, has_indexer
    (0 where it is not said), those that are known. One dim alone is never enough. Raises ModelError on another key.
    """
    if odd := [key for key in seen if key not in INFER_KEYS]:
        raise ModelError(unknown("dim to infer a model from", odd[0], INFER_KEYS))
    if len(seen) < 2:
        return None
    specs = [load_model(name) for name in model_names() if not same_shape_as(name)]
    # A trace shows an indexer's kernels where there is one: DeepSeek-V3 and V3.2 have all other dims alike.
    wanted = {"has_indexer": 0, **seen}
    fits = [spec for spec in specs if all(getattr(spec, key) == value for key, value in wanted.items())]
    if len(fits) != 1:
        return None
    alike = [name for name in model_names() if same_shape_as(name) == fits[0].name]
    longest = max(model.max_context for model in (fits[0], *map(load_model, alike)))
    said = ", ".join(f"{key} {seen[key]}" for key in INFER_KEYS if key in seen)
    said = f"model {fits[0].name} inferred from the trace ({said}): no other in the catalogue has these"
    return fits[0].with_edits(max_context=longest), said
