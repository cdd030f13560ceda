"""ModelSpec: the shape of a dense or Mixture-of-Experts decoder, its parameters and the bytes that they take.

Biases, q/k norms and vision towers are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from moetrace.errors import ModelError, unknown
from moetrace.model.config import spec_fields
from moetrace.model.fields import MAX_LAYERS, is_whole
from moetrace.model.sparse import index_key_bytes, index_params, index_problem
from moetrace.op import dtypes, element_bytes

_POSITIVE = ("hidden", "layers", "vocab", "heads", "kv_heads", "head_dim", "moe_every")


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
    experts. With MLA, `head_dim` is nope_dim + rope_dim and `kv_heads` is `heads`.

    With `full_every` (0: none) layer i has full attention if ``(i + 1) % full_every == 0`` and else linear
    attention by the gated delta rule (arXiv 2412.06464): `linear_heads` value heads of `linear_v_dim`, whose
    state has `linear_dim` rows in `state_dtype`, share `linear_kv_heads` heads of keys and queries; a short
    convolution over `linear_conv` tokens goes before. `output_gate`: full attention's output is gated by a
    second half of the query projection; `shared_gate`: the shared expert's by one logit.

    With `index_topk` (0: none) MLA attends to so many tokens of each query at most, which an indexer of
    `index_heads` heads of `index_dim` picks in every layer (see sparse.py).

    `max_context` is the longest sequence that the config allows, in tokens (0: it does not say). Raises ModelError
    on a nonsensical value.
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
    qk_norm: str = ""
    tie_embeddings: bool = False
    full_every: int = 0
    linear_heads: int = 0
    linear_kv_heads: int = 0
    linear_dim: int = 0
    linear_v_dim: int = 0
    linear_conv: int = 0
    state_dtype: str = "fp32"
    output_gate: bool = False
    shared_gate: bool = False
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    max_context: int = 0

    def __post_init__(self) -> None:
        if not self.windows and is_whole(self.layers) and self.layers <= MAX_LAYERS:
            object.__setattr__(self, "windows", (0,) * self.layers)
        if problem := _problem(self):
            raise ModelError(f"model {self.name!r}: {problem}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str, where: str = "") -> ModelSpec:
        """The spec of a Hugging Face config; `where` (default: the name) is what errors call its origin.

        Raises ModelError naming the field that is missing, of the wrong kind or out of range.
        """
        where = where or f"config of {name!r}"
        values = spec_fields(config, where)
        try:
            return cls(name=name, **values)
        except ModelError as error:
            raise ModelError(f"{where}: {str(error).removeprefix(f'model {name!r}: ')}") from None

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
        windows = data.get("windows", ())
        if not isinstance(windows, (list, tuple)):
            raise ModelError(f"model record: windows is {windows!r}, expected a list of whole numbers")
        return cls(**{**data, "windows": tuple(windows)})

    def with_edits(self, **edits: Any) -> ModelSpec:
        """This spec with fields replaced; another `layers` repeats or cuts the pattern of windows.

        Raises ModelError on an unknown field or a nonsensical value.
        """
        names = [f.name for f in fields(self)]
        if odd := [name for name in edits if name not in names]:
            raise ModelError(unknown("model field", odd[0], names))
        layers = edits.get("layers", self.layers)
        if "windows" not in edits and is_whole(layers) and layers <= MAX_LAYERS:
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

    def is_linear(self, layer: int) -> bool:
        """Whether this layer has linear attention, which keeps a state and no KV cache."""
        self._check_layer(layer)
        return self.full_every > 0 and (layer + 1) % self.full_every != 0

    @property
    def linear_widths(self) -> tuple[int, int]:
        """Elements of (keys, values) of one token in a layer with linear attention; queries are as wide as keys."""
        return self.linear_kv_heads * self.linear_dim, self.linear_heads * self.linear_v_dim

    @property
    def has_indexer(self) -> bool:
        """Whether attention is to tokens that an indexer picks."""
        return self.index_topk > 0

    @property
    def query_width(self) -> int:
        """Columns of full attention's query projection, with its output gate if it has one."""
        return (2 if self.output_gate else 1) * self.heads * self.head_dim

    def expert_bytes(self, dtype: str | None = None, scales: bool = True) -> float:
        """Bytes of one expert's gate, up and down, in `dtype` or as stored, with its quantisation scales."""
        return self._ffn(self.expert_inter) * element_bytes(dtype or self.expert_dtype, scales)

    def layer_params(self, layer: int) -> dict[str, int]:
        """Parameters of one layer by part: attention, indexer, router, experts (all of them), shared, dense, norms."""
        moe = self.is_moe(layer)
        return {
            "attention": self._linear_params() if self.is_linear(layer) else self._attention_params(),
            **index_params(self.hidden, self.q_lora, self.index_heads, self.index_dim),
            "router": self.hidden * (self.experts + self.shared_gate) if moe else 0,
            "experts": self.experts * self._ffn(self.expert_inter) if moe else 0,
            "shared": self._ffn(self.shared_inter) if moe else 0,
            "dense": 0 if moe else self._ffn(self.dense_inter),
            "norms": 2 * self.hidden,
        }

    def layer_weight_bytes(self, layer: int) -> float:
        """Resident weight bytes of one layer, all its experts included, with quantisation scales."""
        types = {"experts": self.expert_dtype, "router": self.act_dtype, "norms": self.act_dtype}
        types["index_weights"] = self.act_dtype
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
        + rope elements (DeepSeek-V2, arXiv 2405.04434, section 2.1), an indexer its key beside them; linear attention
        nothing (see `state_bytes`).
        """
        if self.is_linear(layer):
            return 0.0
        elements = (
            self.kv_lora + self.rope_dim if self.attention == "mla" else 2 * self.kv_heads * self.head_dim
        )
        return elements * element_bytes(dtype) + float(index_key_bytes(self.index_dim))

    def state_bytes(self, layer: int) -> float:
        """Bytes that one sequence keeps in this layer whatever its length; 0 but for linear attention.

        The delta rule's state of each value head, and the last inputs of the short convolution.
        """
        if not self.is_linear(layer):
            return 0.0
        keys, values = self.linear_widths
        last = (2 * keys + values) * (self.linear_conv - 1) * element_bytes(self.act_dtype)
        return self.linear_dim * values * element_bytes(self.state_dtype) + last

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
            out = self.heads * self.head_dim
            return self.hidden * (self.query_width + out + 2 * self.kv_heads * self.head_dim)
        query = self.heads * self.head_dim
        q = self.hidden * self.q_lora + self.q_lora * query if self.q_lora else self.hidden * query
        compress = self.hidden * (self.kv_lora + self.rope_dim)
        expand = self.kv_lora * self.heads * (self.nope_dim + self.v_dim)
        return q + compress + expand + self.heads * self.v_dim * self.hidden

    def _linear_params(self) -> int:
        """Projections in (q, k, v, z; beta and decay per head) and out, convolution, decay's A and bias, the output's norm."""
        keys, values = self.linear_widths
        projected = 2 * keys + 2 * values + 2 * self.linear_heads + values
        return (
            self.hidden * projected
            + (2 * keys + values) * self.linear_conv
            + 2 * self.linear_heads
            + self.linear_v_dim
        )

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.layers:
            raise ModelError(f"model {self.name!r} has layers 0 to {self.layers - 1}, not {layer}")


def _problem(s: ModelSpec) -> str | None:
    """The sentence for the first value that no model has; None if all is well."""
    for f in fields(s):
        value = getattr(s, f.name)
        low = int(f.name in _POSITIVE)
        if f.type == "int" and not is_whole(value, low):
            return f"{f.name} is {value!r}, expected a whole number of at least {low}"
        if f.type == "str" and not isinstance(value, str):
            return f"{f.name} is {value!r}, expected a text"
        if f.name.endswith("dtype") and value not in dtypes():
            return unknown("dtype", str(value), dtypes())
    has_dense = not s.experts or s.first_dense > 0 or s.moe_every > 1
    no_latent = 0 in (s.kv_lora, s.rope_dim, s.nope_dim, s.v_dim)
    no_state = 0 in (s.linear_heads, s.linear_kv_heads, s.linear_dim, s.linear_v_dim, s.linear_conv)
    rules = (
        (s.layers > MAX_LAYERS, f"layers is {s.layers}, more than {MAX_LAYERS}"),
        (s.heads % s.kv_heads, f"heads ({s.heads}) is not a multiple of kv_heads ({s.kv_heads})"),
        (s.attention not in ("gqa", "mla"), f"attention is {s.attention!r}, not 'gqa' or 'mla'"),
        (s.attention == "mla" and no_latent, "mla needs kv_lora, rope_dim, nope_dim and v_dim"),
        (
            s.full_every == 1,
            "full_every is 1, which leaves no layer to linear attention (0: full attention in all)",
        ),
        (s.full_every and s.attention == "mla", "linear attention beside mla is not supported"),
        (s.full_every and no_state, "linear attention needs linear_heads, _kv_heads, _dim, _v_dim and _conv"),
        (
            s.full_every and not no_state and s.linear_heads % s.linear_kv_heads,
            f"linear_heads ({s.linear_heads}) is not a multiple of linear_kv_heads ({s.linear_kv_heads})",
        ),
        (s.output_gate and s.attention == "mla", "an output gate beside mla is not supported"),
        (s.experts and not 1 <= s.topk <= s.experts, f"topk is {s.topk}, expected 1 to {s.experts} experts"),
        (s.topk and not s.experts, f"topk is {s.topk} but there are no experts"),
        (s.experts and not s.expert_inter, "expert_inter is 0 but there are experts"),
        (has_dense and not s.dense_inter, "dense_inter is 0 but there are dense layers"),
        (s.qk_norm not in ("", "head", "width"), f"qk_norm is {s.qk_norm!r}, expected '', 'head' or 'width'"),
        (len(s.windows) != s.layers, f"windows has {len(s.windows)} entries for {s.layers} layers"),
        (not all(is_whole(w) for w in s.windows), "a window is not a whole number of tokens"),
    )
    return next((sentence for broken, sentence in rules if broken), None) or index_problem(
        s.attention, s.q_lora, s.index_heads, s.index_dim, s.index_topk
    )
