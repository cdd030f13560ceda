"""ModelSpec: the shape of a dense or Mixture-of-Experts decoder, from a config.json or the catalogue.

The catalogue is `models/*.json`, public values under Hugging Face field names. Not supported, and refused by
name: linear attention and state-space layers, expert lists that differ by layer, quantisation methods without
a known width. Code that a config points at (`auto_map`) is never loaded. Biases, q/k norms and vision towers
are not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.errors import ModelError, unknown
from moetrace.op import dtypes, element_bytes

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MAX_CONFIG_BYTES = 4 << 20
_MAX_LAYERS = 4096
_MAX_VALUE = 1 << 31
_POSITIVE = ("hidden", "layers", "vocab", "heads", "kv_heads", "head_dim", "moe_every")

# Names that public configs use for the same thing, first found wins.
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_TOPK = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "num_selected_experts")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_KEPT = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude", "exclude_modules")
_HF_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_BITS = {
    ("int", "4"): "int4",
    ("int", "8"): "int8",
    ("float", "8"): "fp8",
    ("float", "8 block"): "fp8_block",
    ("float", "4 by 16"): "nvfp4",
    ("float", "4 by 32"): "mxfp4",
}
_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4"}
_UNGATED_ACTIVATIONS = ("relu2", "relu", "gelu_new")
_INFER_KEYS = (
    "hidden",
    "layers",
    "vocab",
    "heads",
    "kv_heads",
    "head_dim",
    "experts",
    "topk",
    "expert_inter",
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of one decoder. Widths are elements, unsharded and unpadded, as the config states them.

    `experts` is n_e (0: a dense model), `topk` n_a, `expert_inter` d_e; `shared_inter` is the total width of
    the shared experts (0: none) and `dense_inter` that of a dense layer. Layer i is MoE if ``i >=
    first_dense`` and ``(i - first_dense) % moe_every == 0``. `windows` has one entry per layer: the sliding
    window in tokens, 0 where attention is full; a chunked layer (Llama 4) has its chunk size, the most that
    it ever reads.

    `act_dtype` is the element type of activations, embedding, lm_head, router and norms, which no scheme read
    here quantises; `dtype` that of the other weights outside the experts, `expert_dtype` that of the routed
    experts. With MLA, `head_dim` is nope_dim + rope_dim and `kv_heads` is `heads`. Raises ModelError on a
    nonsensical value.
    """

    name: str
    architecture: str
    hidden: int
    layers: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    attention: str = "gqa"
    q_lora: int = 0
    kv_lora: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    v_dim: int = 0
    experts: int = 0
    topk: int = 0
    expert_inter: int = 0
    shared_inter: int = 0
    dense_inter: int = 0
    first_dense: int = 0
    moe_every: int = 1
    windows: tuple[int, ...] = ()
    dtype: str = "bf16"
    expert_dtype: str = "bf16"
    act_dtype: str = "bf16"
    gated: bool = True
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        if not self.windows and _whole(self.layers) and self.layers <= _MAX_LAYERS:
            object.__setattr__(self, "windows", (0,) * self.layers)
        if problem := _problem(self):
            raise ModelError(f"model {self.name!r}: {problem}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str, where: str = "") -> ModelSpec:
        """The spec of a Hugging Face config; `where` (default: the name) is what errors call its origin.

        Raises ModelError naming the field that is missing, of the wrong kind or out of range.
        """
        return _from_config(config, name, where or f"config of {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; `from_dict` gives an equal spec back."""
        return asdict(self) | {"windows": list(self.windows)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The spec that `to_dict` wrote. Raises ModelError on a missing or unknown field."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(set(data) - known):
            raise ModelError(f"model record: {unknown('field', str(odd[0]), known)}")
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        if lacking := [name for name in needed if name not in data]:
            raise ModelError(f"model record lacks the field {lacking[0]!r}")
        return cls(**{**data, "windows": tuple(data.get("windows", ()))})

    def with_edits(self, **edits: Any) -> ModelSpec:
        """This spec with fields replaced; another `layers` repeats or cuts the pattern of windows.

        Raises ModelError on an unknown field or a nonsensical value.
        """
        names = [f.name for f in fields(self)]
        if odd := [name for name in edits if name not in names]:
            raise ModelError(unknown("model field", odd[0], names))
        layers = edits.get("layers", self.layers)
        if "windows" not in edits and _whole(layers) and layers <= _MAX_LAYERS:
            edits["windows"] = tuple(self.windows[i % self.layers] for i in range(layers))
        return replace(self, **edits)

    def is_moe(self, layer: int) -> bool:
        """Whether this layer has routed experts."""
        self._check_layer(layer)
        return (
            self.experts > 0
            and layer >= self.first_dense
            and (layer - self.first_dense) % self.moe_every == 0
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with routed experts."""
        return tuple(layer for layer in range(self.layers) if self.is_moe(layer))

    def window(self, layer: int) -> int:
        """Sliding window of this layer in tokens, 0 if its attention is full."""
        self._check_layer(layer)
        return self.windows[layer]

    def expert_bytes(self, dtype: str | None = None, scales: bool = True) -> float:
        """Bytes of one expert's gate, up and down, in `dtype` or as stored, with its quantisation scales."""
        return self._ffn(self.expert_inter) * element_bytes(dtype or self.expert_dtype, scales)

    def layer_params(self, layer: int) -> dict[str, int]:
        """Parameters of one layer by part: attention, router, experts (all of them), shared, dense, norms."""
        moe = self.is_moe(layer)
        return {
            "attention": self._attention_params(),
            "router": self.hidden * self.experts if moe else 0,
            "experts": self.experts * self._ffn(self.expert_inter) if moe else 0,
            "shared": self._ffn(self.shared_inter) if moe else 0,
            "dense": 0 if moe else self._ffn(self.dense_inter),
            "norms": 2 * self.hidden,
        }

    def layer_weight_bytes(self, layer: int) -> float:
        """Resident weight bytes of one layer, all its experts included, with quantisation scales."""
        types = {"experts": self.expert_dtype, "router": self.act_dtype, "norms": self.act_dtype}
        return sum(
            n * element_bytes(types.get(part, self.dtype)) for part, n in self.layer_params(layer).items()
        )

    def weight_bytes(self) -> float:
        """Resident weight bytes of all layers, the embedding, and lm_head unless it is tied."""
        layers = sum(self.layer_weight_bytes(layer) for layer in range(self.layers))
        return layers + self._outer_params() * element_bytes(self.act_dtype)

    def kv_bytes_per_token(self, layer: int, dtype: str = "bf16") -> float:
        """Bytes that one token adds to this layer's KV cache.

        GQA keeps a key and a value per KV head; MLA one compressed vector and the shared rotary key, kv_lora
        + rope elements (DeepSeek-V2, arXiv 2405.04434, section 2.1).
        """
        self._check_layer(layer)
        elements = (
            self.kv_lora + self.rope_dim if self.attention == "mla" else 2 * self.kv_heads * self.head_dim
        )
        return elements * element_bytes(dtype)

    def params(self) -> int:
        """Parameters of the decoder with its embeddings; biases and q/k norms (under 0.1 %) are left out."""
        return self._outer_params() + sum(sum(self.layer_params(i).values()) for i in range(self.layers))

    def active_params(self, embedding: bool = True) -> int:
        """Parameters at work for one token: `topk` of the experts, everything else.

        Most model cards count the embedding table here although a token reads one row of it (OLMoE, Mixtral,
        Qwen3, DeepSeek-V3). That of gpt-oss leaves it out (arXiv 2508.10925, table 1), and the figure of
        DeepSeek-V2-Lite fits only without it: ``embedding=False``.
        """
        idle = len(self.moe_layers) * (self.experts - self.topk) * self._ffn(self.expert_inter)
        table = 0 if embedding or self.tie_embeddings else self.vocab * self.hidden
        return self.params() - idle - table

    def _ffn(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width

    def _outer_params(self) -> int:
        return self.vocab * self.hidden * (1 if self.tie_embeddings else 2) + self.hidden

    def _attention_params(self) -> int:
        if self.attention == "gqa":
            return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        query = self.heads * self.head_dim
        q = self.hidden * self.q_lora + self.q_lora * query if self.q_lora else self.hidden * query
        compress = self.hidden * (self.kv_lora + self.rope_dim)
        expand = self.kv_lora * self.heads * (self.nope_dim + self.v_dim)
        return q + compress + expand + self.heads * self.v_dim * self.hidden

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.layers:
            raise ModelError(f"model {self.name!r} has layers 0 to {self.layers - 1}, not {layer}")


def _problem(s: ModelSpec) -> str | None:
    """The sentence for the first value that no model has; None if all is well."""
    for f in fields(s):
        value = getattr(s, f.name)
        low = int(f.name in _POSITIVE)
        if f.type == "int" and not _whole(value, low):
            return f"{f.name} is {value!r}, expected a whole number of at least {low}"
        if f.name.endswith("dtype") and value not in dtypes():
            return unknown("dtype", str(value), dtypes())
    has_dense = not s.experts or s.first_dense > 0 or s.moe_every > 1
    no_latent = 0 in (s.kv_lora, s.rope_dim, s.nope_dim, s.v_dim)
    rules = (
        (s.layers > _MAX_LAYERS, f"layers is {s.layers}, more than {_MAX_LAYERS}"),
        (s.heads % s.kv_heads, f"heads ({s.heads}) is not a multiple of kv_heads ({s.kv_heads})"),
        (s.attention not in ("gqa", "mla"), f"attention is {s.attention!r}, not 'gqa' or 'mla'"),
        (s.attention == "mla" and no_latent, "mla needs kv_lora, rope_dim, nope_dim and v_dim"),
        (s.experts and not 1 <= s.topk <= s.experts, f"topk is {s.topk}, expected 1 to {s.experts} experts"),
        (s.topk and not s.experts, f"topk is {s.topk} but there are no experts"),
        (s.experts and not s.expert_inter, "expert_inter is 0 but there are experts"),
        (has_dense and not s.dense_inter, "dense_inter is 0 but there are dense layers"),
        (len(s.windows) != s.layers, f"windows has {len(s.windows)} entries for {s.layers} layers"),
        (not all(_whole(w) for w in s.windows), "a window is not a whole number of tokens"),
    )
    return next((sentence for broken, sentence in rules if broken), None)


def _whole(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < _MAX_VALUE


@dataclass(frozen=True, slots=True)
class _Config:
    """A config with the name that errors give its origin."""

    data: Mapping[str, Any]
    where: str

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def find(self, names: tuple[str, ...]) -> int | None:
        """The first of these fields that is set, as a whole number; None if none is."""
        name = next((name for name in names if self.has(name)), None)
        if name is None:
            return None
        value = self.data[name]
        if not _whole(value):
            raise ModelError(f"{self.where}: {name} is {value!r}, expected a whole number")
        return int(value)

    def number(self, *names: str) -> int:
        value = self.find(names)
        if value is None:
            also = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise ModelError(f"{self.where}: lacks the field {names[0]!r}{also}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.data.get(name, default))

    def items(self, name: str, of: type = int) -> list[Any]:
        """A field that lists whole numbers (or text); empty where it is not set."""
        value = self.data.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
            raise ModelError(f"{self.where}: {name} is {value!r}, expected a list of {of.__name__}")
        return value


def _decoder(config: Mapping[str, Any], where: str) -> _Config:
    """The language model's part of a config, with what an outer config says for the whole."""
    for _ in range(3):
        inner = next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), None)
        if inner is None:
            break
        shared = ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
        config = {**{k: config[k] for k in shared if k in config}, **inner}
    return _Config(config, where)


def _from_config(config: Mapping[str, Any], name: str, where: str) -> ModelSpec:
    c = _decoder(config, where)
    kind = str(c.data.get("model_type") or "")
    if not kind:
        raise ModelError(f"{where}: lacks the field 'model_type'")
    layers = c.number("num_hidden_layers")
    if not 1 <= layers <= _MAX_LAYERS:
        raise ModelError(f"{where}: num_hidden_layers is {layers}, expected 1 to {_MAX_LAYERS}")
    act = _act_dtype(c)
    dtype, expert_dtype = _weight_dtypes(c, act)
    values: dict[str, Any] = {
        "layers": layers,
        "dtype": dtype,
        "expert_dtype": expert_dtype,
        "act_dtype": act,
        "hidden": c.number("hidden_size"),
        "vocab": c.number("vocab_size"),
        "windows": tuple(_window(c, kind, layer) for layer in range(layers)),
        "gated": c.data.get("hidden_act", "silu") not in _UNGATED_ACTIVATIONS,
        # Hugging Face's own default is per class: tied for Gemma, not for any MoE family read here.
        "tie_embeddings": c.flag("tie_word_embeddings", kind.startswith("gemma")),
    }
    try:
        return ModelSpec(
            name=name, architecture=kind, **values, **_attention(c), **_feed_forward(c, kind, layers)
        )
    except ModelError as error:
        raise ModelError(f"{where}: {str(error).removeprefix(f'model {name!r}: ')}") from None


def _attention(c: _Config) -> dict[str, Any]:
    heads = c.number("num_attention_heads")
    if not heads:
        raise ModelError(f"{c.where}: num_attention_heads is 0")
    if c.has("kv_lora_rank"):
        nope, rope = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim")
        return {
            "attention": "mla", "heads": heads, "kv_heads": heads, "head_dim": nope + rope,
            "q_lora": c.find(("q_lora_rank",)) or 0, "kv_lora": c.number("kv_lora_rank"),
            "nope_dim": nope, "rope_dim": rope, "v_dim": c.number("v_head_dim"),
        }  # fmt: skip
    kv_heads = c.find(("num_key_value_heads", "num_kv_heads"))
    head_dim = c.find(("head_dim",))
    if head_dim is None and c.number("hidden_size") % heads:
        raise ModelError(
            f"{c.where}: lacks 'head_dim', and hidden_size is not a multiple of num_attention_heads"
        )
    return {
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": c.number("hidden_size") // heads if head_dim is None else head_dim,
    }


def _feed_forward(c: _Config, kind: str, layers: int) -> dict[str, Any]:
    dense = c.find(("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"))
    experts = c.find(_EXPERTS) or 0
    if not experts:
        return {"dense_inter": c.number("intermediate_size", "ffn_hidden_size")}
    topk = c.number(*_TOPK)
    inter = c.number("moe_intermediate_size", "intermediate_size")
    llama4 = kind.startswith("llama4")
    shared = c.find(("shared_expert_intermediate_size", "shared_intermediate_size"))
    if shared is None:
        # Llama 4 has one shared expert as wide as a routed one and no field for it.
        shared = inter * (1 if llama4 else c.find(_SHARED) or 0)
    first, every = _moe_pattern(c, layers)
    return {
        "experts": experts,
        "topk": topk,
        "expert_inter": inter,
        "shared_inter": shared,
        "dense_inter": dense or 0,
        "first_dense": first,
        "moe_every": every,
    }


def _moe_pattern(c: _Config, layers: int) -> tuple[int, int]:
    """(first_dense, moe_every) of a config, by whichever fields its family uses."""
    start = c.find(("first_k_dense_replace", "moe_layer_start_index")) or 0
    step = c.find(("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval")) or 1
    per_layer = isinstance(c.data.get("moe_layer_freq"), list)
    if types := c.items("mlp_layer_types", str):
        moe = [i for i, named in enumerate(types) if named != "dense"]
    elif c.has("moe_layers"):
        moe = sorted(c.items("moe_layers"))
    elif per_layer:
        moe = [i for i, on in enumerate(c.items("moe_layer_freq")) if on]
    elif (freq := c.find(("moe_layer_freq",)) or 1) > 1:
        moe = [i for i in range(start, layers) if i % freq == 0]
    else:
        moe = [i for i in range(start, layers) if (i + 1) % step == 0]
    dense = c.items("mlp_only_layers")
    moe = [i for i in moe if i not in dense and i < layers]
    first = moe[0] if moe else layers
    every = moe[1] - first if len(moe) > 1 else max(layers - first, 1)
    if moe != list(range(first, layers, every)):
        raise ModelError(f"{c.where}: its MoE layers {moe} follow no regular step, which is not supported")
    return first, every


def _window(c: _Config, kind: str, layer: int) -> int:
    """Window of one layer, by the rules of its family (0: full attention)."""
    size = c.find(("sliding_window",)) or 0
    if types := c.items("layer_types", str):
        named = types[layer % len(types)]
        if named not in ("full_attention", "sliding_attention", "chunked_attention"):
            raise ModelError(f"{c.where}: layer type {named!r} is not supported (only softmax attention is)")
        if named == "full_attention":
            return 0
        return c.number("sliding_window" if named == "sliding_attention" else "attention_chunk_size")
    if kind.startswith("llama4"):
        rope = c.items("no_rope_layers")
        interval = c.find(("no_rope_layer_interval",)) or 4
        chunked = rope[layer % len(rope)] if rope else (layer + 1) % interval
        return (c.find(("attention_chunk_size",)) or 0) if chunked else 0
    if c.data.get("use_sliding_window") is False:
        return 0
    if kind in ("gpt_oss", "gemma2"):
        return size if layer % 2 == 0 else 0
    if pattern := c.find(("sliding_window_pattern",)):
        return size if (layer + 1) % pattern else 0
    if c.has("use_sliding_window"):
        return size if layer >= (c.find(("max_window_layers",)) or 0) else 0
    return size


def _act_dtype(c: _Config) -> str:
    """The config's own element type; bf16 where it states none, as gpt-oss's does not."""
    named = str(c.data.get("dtype") or c.data.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if named not in _HF_DTYPES:
        raise ModelError(f"{c.where}: {unknown('torch_dtype', named, _HF_DTYPES)}")
    return _HF_DTYPES[named]


def _weight_dtypes(c: _Config, act: str) -> tuple[str, str]:
    """(dtype outside the experts, dtype of the experts) by the quantization_config, if any."""
    q = c.data.get("quantization_config")
    if not isinstance(q, Mapping):
        return act, act
    method = str(q.get("quant_method") or "")
    stored = _stored(q, method.replace("_", "-"))
    if stored is None:
        raise ModelError(f"{c.where}: quantization_config of quant_method {method!r} is not understood")
    kept = json.dumps([q.get(name) for name in _KEPT])
    # A list of parts left unquantised that names the attention means that only the experts are quantised.
    return (act if stored == "mxfp4" or "attn" in kept else stored), stored


def _stored(q: Mapping[str, Any], method: str) -> str | None:
    """Element type of quantised weights by the method's own fields; None if they are not understood."""
    if method in ("fp8", "fbgemm-fp8"):
        return "fp8_block" if q.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq"):
        return _BITS.get(("int", str(q.get("bits", q.get("w_bit")))))
    if method == "modelopt":
        return _MODELOPT.get(str(q.get("quant_algo")))
    if method == "compressed-tensors":
        groups = q.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            return None
        if weights.get("strategy") == "block":
            return _BITS.get((str(weights.get("type")), f"{weights.get('num_bits')} block"))
        fine = f"{weights.get('num_bits')} by {weights.get('group_size')}"
        kind = str(weights.get("type", "int"))
        return _BITS.get((kind, fine)) or _BITS.get((kind, str(weights.get("num_bits"))))
    return "mxfp4" if method == "mxfp4" else None


@cache
def model_names() -> tuple[str, ...]:
    """Names of the models in the catalogue, sorted."""
    found = (entry.name for entry in _catalogue().iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


def _catalogue() -> Traversable:
    return resources.files("moetrace").joinpath("models")


def load_config(name_or_path: str) -> dict[str, Any]:
    """The config behind a catalogue name, a config.json or a folder that holds one, without `_source`.

    Fit to build a transformers config from: ``AutoConfig.for_model(**load_config("olmoe-1b-7b"))``. Raises
    ModelError.
    """
    return {k: v for k, v in _read(name_or_path)[0].items() if k != "_source"}


def load_model(name_or_path: str) -> ModelSpec:
    """The spec behind a catalogue name, a Hugging Face config.json or a folder that holds one.

    Raises ModelError, one line: no such name or file, not JSON, larger than 4 MiB, a field missing or
    nonsensical.
    """
    config, where, name = _read(name_or_path)
    return ModelSpec.from_config(config, name, where)


def _read(name_or_path: str) -> tuple[dict[str, Any], str, str]:
    """(config, what errors call it, name of the model)."""
    if name_or_path in model_names():
        text = _catalogue().joinpath(f"{name_or_path}.json").read_text("utf-8")
        return json.loads(text), f"model {name_or_path!r}", name_or_path
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
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

    Keys of `seen`: hidden, layers, vocab, heads, kv_heads, head_dim, experts, topk, expert_inter, those that
    are known. One dim alone is never enough. Raises ModelError on another key.
    """
    if odd := [key for key in seen if key not in _INFER_KEYS]:
        raise ModelError(unknown("dim to infer a model from", odd[0], _INFER_KEYS))
    if len(seen) < 2:
        return None
    specs = [load_model(name) for name in model_names()]
    fits = [spec for spec in specs if all(getattr(spec, key) == value for key, value in seen.items())]
    if len(fits) != 1:
        return None
    said = ", ".join(f"{key} {seen[key]}" for key in _INFER_KEYS if key in seen)
    said = f"model {fits[0].name} inferred from the trace ({said}): no other in the catalogue has these"
    return fits[0], said
