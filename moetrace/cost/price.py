"""Works x Hardware -> Costs: the only place where work meets a machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moetrace import ops
from moetrace.hardware import ANY_ENGINE, Hardware
from moetrace.machines import gpu, wafer
from moetrace.machines.forms import Cache
from moetrace.model import ModelSpec
from moetrace.op import Costs, FloatArray, Works
from moetrace.ops.gemm import by_kernel
from moetrace.ops.sparse import by_query


@dataclass(frozen=True, slots=True)
class PriceContext:
    """What a law must know beside the op.

    All for the wafer law alone: `model_bytes`, all bytes that must lie on the machine (weights, and KV cache where it counts),
    `layers`, the model's depth, `placement` of weights on a wafer (``spread``, ``own``, ``whole``), `token_flops`, what one
    token takes in all matrices (0: not known), and where another model lies beside it `beside_bytes`, its bytes, and `share`,
    the share of all cores that this one is to have as far as both fit.
    `engine` (``vllm``, ``sglang``, ``trtllm``, ``any``) chooses among coefficients that were fitted apart, with
    ``@VERSION`` how sure they are (`Hardware.family`); `cache` is ``cold``
    in serving, where a layer's weights come from memory at every step, ``warm`` for a micro-benchmark that repeats one op.
    """

    model_bytes: float = 0.0
    layers: int = 0
    placement: str = "spread"
    engine: str = ANY_ENGINE
    cache: Cache = "cold"
    token_flops: float = 0.0
    beside_bytes: float = 0.0
    share: float = 1.0

    def of_model(self, model: ModelSpec, placement: str = "spread") -> PriceContext:
        """The same with what a wafer law must know of a model whose weights, without KV cache, lie on the machine."""
        flops = 2.0 * model.active_params(embedding=False)
        return replace(
            self,
            model_bytes=model.weight_bytes(),
            layers=model.layers,
            placement=placement,
            token_flops=flops,
        )


DEFAULT = PriceContext()


def price(
    works: Works,
    hw: Hardware,
    *,
    context: PriceContext = DEFAULT,
    held: tuple[FloatArray, FloatArray] | None = None,
) -> Costs:
    """Costs of ops on one device of `hw`, one entry per op; all nan where the work is unknown. `held` ([ops] each) stands for
    the context's `model_bytes` and `beside_bytes` where ops of several models are priced together.

    `lower_bound_s` takes the bytes certainly touched and datasheet peaks, `expected_s` the law's coefficients. Raises
    ProfileError on a wafer without the context's model.
    """
    if hw.law == "wafer":
        families = [ops.family(op.kind) for op in works.ops.types]
        own, other = held or (context.model_bytes, context.beside_bytes)
        return wafer.cost(
            works,
            families,
            hw,
            model_bytes=own,
            layers=context.layers,
            placement=context.placement,
            token_flops=context.token_flops,
            beside_bytes=other,
            wanted=context.share,
        )
    works = as_priced(works)
    families = [ops.family(op.kind) for op in works.ops.types]
    return gpu.cost(works, families, hw, engine=context.engine, cache=context.cache)


def as_priced(works: Works) -> Works:
    """The works with each op as a GPU's coefficients know it: its kind (`ops.gemm.by_kernel`), and what of it a kernel takes as
    a sequence (`ops.sparse.by_query`)."""
    works = by_query(works)
    return replace(works, ops=by_kernel(works.ops)) if "b" in works.ops.dims else works
