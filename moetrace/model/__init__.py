"""ModelSpec: the shape of a dense or Mixture-of-Experts decoder, from a config.json or the catalogue.

`spec` is the shape and what it weighs, `config` reads Hugging Face's dialects, `catalogue` finds a model by
name, path or the dims that a trace shows. A new model is one JSON file in `models/`, a new dialect a line in
`config`.
"""

from __future__ import annotations

from moetrace.model.catalogue import (
    MAX_CONFIG_BYTES,
    infer_model,
    load_config,
    load_model,
    model_names,
    same_shape_as,
)
from moetrace.model.spec import ModelSpec

__all__ = [
    "MAX_CONFIG_BYTES",
    "ModelSpec",
    "infer_model",
    "load_config",
    "load_model",
    "model_names",
    "same_shape_as",
]
