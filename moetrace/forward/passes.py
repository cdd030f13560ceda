"""What a part of a layer needs to know of the pass it is in: its tokens, and the ops that most parts are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moetrace.model import ModelSpec
from moetrace.op import Op

# Prompts that are worked through beside a decode: how many on average, new tokens of each, context of each with them.
Beside = tuple[float, int, int]
NONE: Beside = (0, 0, 0)

# Weight types whose public kernels multiply 16-bit activations (as replay's dtype knob takes them).
_WEIGHT_ONLY = frozenset({"int4", "mxfp4", "nvfp4"})


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: `queries` new tokens in each of `batch` sequences, which then have `context` tokens each.

    Beside a decode, prompts of other sequences may be worked through: (how many on average, new tokens of each, context of each
    with them). A pass over such prompts alone has `mean` of them, as whole sequences as they can be. `others` are tokens of
    other groups, which the experts alone see.
    """

    model: ModelSpec
    batch: int
    queries: int
    context: int
    decode: bool
    beside: Beside = NONE
    mean: float = 0.0
    others: int = 0

    @property
    def tokens(self) -> int:
        prompts, new, _ = self.beside
        own = round(self.mean * self.queries) if self.mean else self.batch * self.queries
        return own + round(prompts * new)

    @property
    def apart(self) -> tuple[Pass, ...]:
        """The decode and the prompts beside it as passes of their own, for what attends to each."""
        prompts, new, seen = self.beside
        if not prompts:
            return (self,)
        alone = replace(self, beside=NONE)
        return alone, replace(
            alone, batch=round(prompts), queries=new, context=seen, decode=False, mean=prompts
        )

    @property
    def mark(self) -> dict[str, int]:
        """A dim of ops that are the prompts' alone, which those that decode may be equal to in size but for it."""
        return {"prompt": 1} if self.mean else {}

    def gemm(self, kind: str, n: int, k: int, dtype: str = "", **more: int) -> Op:
        """A GEMM over all tokens of the pass; weights in the model's own type unless `dtype` says otherwise."""
        return Op.of(
            kind, dtype or weights(self.model.dtype, self.model.act_dtype), m=self.tokens, n=n, k=k, **more
        )

    def small(self, kind: str, **dims: int) -> Op:
        """An op without matrix weights, on activations."""
        return Op.of(kind, self.model.act_dtype, **dims)

    def norm(self, width: int, residual: bool = False, per_token: int = 1) -> Op:
        op = self.small("norm", tokens=self.tokens * per_token, width=width)
        return op.with_dims(residual=1) if residual else op


def weights(dtype: str, act: str) -> str:
    """The dtype text of an op from that of its weights: weight-only formats name the activations' type beside."""
    return f"{dtype}/{act}" if dtype in _WEIGHT_ONLY else dtype


def attention(p: Pass, window: int, heads: dict[str, int]) -> Op:
    """Attention over whole keys and values; a window also needs the keys that its first query sees.

    Kernels that cut a context into parts cut what lies beyond a window too: `context` is a sequence's whole.
    """
    kv = round(p.mean * p.context) if p.mean else p.batch * p.context
    extra = {"q": p.tokens} if p.queries > 1 else {}
    if p.mean:
        extra["pairs"] = round(p.mean * causal_pairs(p.queries, p.context, window))
    if window and p.context > window:
        kv = min(kv, p.batch * window + p.tokens - p.batch)
        extra |= {"window": window, "context": p.context}
    return p.small("attention", batch=p.batch, **heads, kv=kv, **extra)


def causal_pairs(queries: float, context: float, window: float) -> float:
    """Keys that the last `queries` tokens of one sequence see, summed: a window cuts those that would see more."""
    most = min(window, context) if window else context
    first = min(context - queries + 1, most)
    rising = min(most - first + 1, queries)
    return rising * (first + most) / 2 + (queries - rising) * most
