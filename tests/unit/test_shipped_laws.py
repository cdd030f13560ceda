"""What must hold of every shipped GPU profile and its fitted coefficients, whatever the op, engine and cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops as work_of
from moetrace.cost.price import PriceContext, price
from moetrace.hardware import Hardware, load_hardware, profile_names
from moetrace.op import Costs, Op

MACHINES = {name: hw for name in profile_names() if (hw := load_hardware(name)).law == "gpu"}
RESOURCES = ("bandwidth", "cache", "peak", "processors", "link", "network")
# A turn of the processors fills within 0.15 of one: 1 % fewer of them adds 7 % where a second turn begins, and so much more
# where a turn is of several tiles beside each other, which count for little but the first: up to 14 times was seen.
STEEPEST = 50.0
RATES = ("bandwidth", "peak", "link", "network")


def size(most: int) -> st.SearchStrategy[int]:
    """1 to `most`, each magnitude as likely."""
    return st.floats(0, float(np.log(most))).map(lambda x: int(np.exp(x)))


def attention(batch: int, context: int, group: int, kv: int, dim: int, window: int) -> Op:
    cut = {"window": window, "context": context} if 0 < window < context else {}
    read = batch * min(context, window or context)
    heads = {"heads": kv * group, "kv_heads": kv, "head_dim": dim}
    return Op.of("attention", "bf16", batch=batch, **heads, kv=read, **cut)


def prefill(kind: str, sequences: int, queries: int, before: int, heads: int, group: int) -> Op:
    dims = {
        "batch": sequences,
        "heads": heads,
        "q": sequences * queries,
        "kv": sequences * (queries + before),
    }
    if kind == "mla_attention":
        return Op.of(kind, "bf16", **dims, kv_lora=512, rope=64)
    return Op.of(kind, "bf16", **dims, kv_heads=max(1, heads // group), head_dim=128)


def module(kind: str, dtype: str, tokens: int, experts: int, inter: int, ranks: int, share: float) -> Op:
    local = max(1, experts // ranks)
    dims = {"tokens": tokens, "hidden": 4096, "inter": inter, "experts": experts, "topk": 4}
    part = {"local_experts": local, "rows": tokens * 4 * local / experts} if ranks > 1 else {}
    return Op.of(kind, dtype, **dims, distinct=max(1.0, share * min(local, tokens * 4)), **part)


def exchange(kind: str, tokens: int, hidden: int, ranks: int, sms: int) -> Op:
    dims = {"tokens": tokens, "topk": 8, "hidden": hidden, "experts": 256}
    sent = tokens * 8 * hidden * 2
    return Op.of(kind, "bf16", bytes=sent, ranks=ranks, **dims, **({"sms": sms} if sms else {}))


RANKS = st.sampled_from([2, 3, 4, 8, 16, 64])
DTYPES = st.sampled_from(["bf16", "fp8", "fp8_block"])
OPS = st.one_of(
    st.builds(
        lambda d, m, n, k: Op.of("gemm", d, m=m, n=n, k=k), DTYPES, size(20_000), size(70_000), size(70_000)
    ),
    st.builds(
        lambda d, m, n, k, b: Op.of("o_proj", d, m=m, n=n, k=k, b=b),
        DTYPES, size(20_000), size(2000), size(2000), size(256),
    ),
    st.builds(
        attention,
        size(512), size(131_072), st.sampled_from([1, 4, 32, 33, 64]), st.sampled_from([1, 2, 8]),
        st.sampled_from([64, 128, 192, 256]), st.sampled_from([0, 0, 128, 4096]),
    ),
    st.builds(
        lambda b, q, c, h: Op.of("mla_attention", "bf16", batch=b, heads=h, kv_lora=512, rope=64, kv=b * c, q=b * q),
        size(4096), st.sampled_from([1, 1, 2, 4]), size(131_072), size(128),
    ),
    st.builds(
        prefill, st.sampled_from(["attention", "mla_attention"]), size(32), size(16_384), size(16_384),
        st.sampled_from([8, 32, 64]), st.sampled_from([1, 4, 64]),
    ),
    st.builds(
        lambda d, b, q, c, h: Op.of(
            "sparse_mla", d, batch=b, heads=h, kv_lora=512, rope=64, kv=b * min(c, 2048 * q), q=b * q, chosen=2048
        ),
        st.sampled_from(["bf16", "fp8/bf16"]), size(512), size(4096), size(131_072), size(128),
    ),
    st.builds(
        lambda kind, b, q, c, h: Op.of(
            kind, "fp8" if "scores" in kind else "fp32", batch=b, heads=h, head_dim=128, kv=b * c, q=b * q, chosen=2048
        ),
        st.sampled_from(["index_scores", "index_topk"]), size(512), size(4096), size(131_072), size(128),
    ),
    st.builds(
        module,
        st.sampled_from(["moe_module", "moe_gate_up", "moe_down"]), DTYPES, size(4000),
        st.sampled_from([8, 64, 128, 256]), size(8192), st.sampled_from([1, 2, 8, 64]), st.floats(0, 1),
    ),
    st.builds(
        lambda kind, b, n, eager: Op.of(kind, "bf16", bytes=b, ranks=n, **({"eager": 1} if eager else {})),
        st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]), size(1 << 31), RANKS,
        st.booleans(),
    ),
    st.builds(
        exchange, st.sampled_from(["moe_dispatch", "moe_collect"]), size(4096), size(8192), RANKS,
        st.sampled_from([0, 20, 100]),
    ),
)  # fmt: skip
CASES = st.tuples(
    st.lists(OPS, min_size=1, max_size=8),
    st.sampled_from(sorted(MACHINES)),
    st.sampled_from(["any", "vllm", "sglang", "trtllm"]),
    st.sampled_from(["cold", "warm"]),
)
Case = tuple[list[Op], str, str, str]


def more(hw: Hardware, factor: float, *what: str) -> Hardware:
    """The machine with so many times as much of each resource."""
    by = {name: factor if name in what else 1.0 for name in RESOURCES}
    memory, link = hw.memory, hw.link
    assert hw.multiprocessors is not None
    if link is not None:
        network = link.network_bytes_per_s
        network = None if network is None else network * by["network"]
        link = replace(link, bytes_per_s=link.bytes_per_s * by["link"], network_bytes_per_s=network)
    return replace(
        hw,
        memory=replace(
            memory,
            bytes_per_s=memory.bytes_per_s * by["bandwidth"],
            cache_bytes=memory.cache_bytes * by["cache"],
        ),
        link=link,
        peaks={name: peak * by["peak"] for name, peak in hw.peaks.items()},
        multiprocessors=hw.multiprocessors * by["processors"],
    )


def priced(case: Case, factor: float = 1.0, *what: str) -> Costs:
    made, name, engine, cache = case
    hw = more(MACHINES[name], factor, *what)
    return price(work_of.works(made), hw, context=PriceContext(engine=engine, cache=cache))  # type: ignore[arg-type]


@given(CASES, st.floats(1, 20), st.sampled_from(RESOURCES))
def test_never_slower_with_more_of_any_resource(case: Case, factor: float, what: str) -> None:
    before, after = priced(case).expected_s, priced(case, factor, what).expected_s
    assert np.all(np.isnan(before) | (after <= before * (1 + 1e-9)))


@given(CASES, st.floats(-1e-4, 1e-4), st.sampled_from(RESOURCES))
def test_continuous_and_nowhere_steep_in_any_resource(case: Case, step: float, what: str) -> None:
    before, after = priced(case).expected_s, priced(case, 1 + step, what).expected_s
    assert np.allclose(after, before, rtol=STEEPEST * abs(step) + 1e-9, atol=0, equal_nan=True)


@given(CASES)
def test_twice_the_rates_halve_their_parts_and_leave_the_rest(case: Case) -> None:
    one, two = priced(case), priced(case, 2.0, *RATES)
    for part in ("memory_s", "compute_s", "network_s"):
        assert getattr(two, part) == pytest.approx(getattr(one, part) / 2, rel=1e-9, nan_ok=True), part
    assert two.fixed_s == pytest.approx(one.fixed_s, rel=1e-9, nan_ok=True)


@given(CASES)
def test_expected_lies_between_the_bound_and_the_sum_of_its_parts(case: Case) -> None:
    found = priced(case)
    known = ~np.isnan(found.expected_s)
    whole = found.memory_s + found.compute_s + found.network_s + found.fixed_s
    assert np.all((found.expected_s <= whole * (1 + 1e-9))[known])
    if case[3] == "cold":  # repeats of what the cache holds may beat it
        assert np.all((found.lower_bound_s <= found.expected_s * (1 + 1e-9))[known])


def many() -> list[Op]:
    """Two thousand ops of all families, each magnitude of their sizes as likely: what chance alone would seldom find."""
    rng = np.random.default_rng(0)

    def to(most: int) -> int:
        return int(np.exp(rng.uniform(0.0, np.log(most))))

    def of(*values: int) -> int:
        return values[rng.integers(len(values))]

    out = []
    for i in range(250):
        dtype, heads, batch = ("bf16", "fp8", "fp8_block")[i % 3], to(128), to(2048)
        mla = {"heads": heads, "kv_lora": 512, "rope": 64, "q": batch * of(1, 1, 2, 4)}
        out += [
            Op.of("gemm", dtype, m=to(20_000), n=to(70_000), k=to(70_000)),
            Op.of("o_proj", dtype, m=to(20_000), n=to(2000), k=to(2000), b=to(256)),
            attention(
                to(512),
                to(131_072),
                of(1, 4, 32, 33, 64),
                of(1, 2, 8),
                of(64, 128, 192, 256),
                of(0, 0, 128, 4096),
            ),
            Op.of("mla_attention", ("bf16", "fp8")[i % 2], batch=batch, kv=batch * to(131_072), **mla),
            prefill(
                ("attention", "mla_attention")[i % 2],
                to(32),
                to(4096),
                to(16_384),
                of(8, 32, 64),
                of(1, 4, 64),
            ),
            module(
                ("moe_module", "moe_down")[i % 2],
                dtype,
                to(4000),
                of(8, 64, 256),
                to(8192),
                of(1, 2, 8),
                rng.uniform(),
            ),
            Op.of(("all_reduce", "all_gather")[i % 2], "bf16", bytes=to(1 << 31), ranks=of(2, 4, 8)),
            exchange(("moe_dispatch", "moe_collect")[i % 2], to(4096), to(8192), of(2, 4, 8, 16), of(0, 20)),
        ]
    return out


MANY = many()


@pytest.mark.parametrize("engine", ["any", "vllm", "sglang", "trtllm", "sglang_triton"])
@pytest.mark.parametrize("name", ["h100-sxm", "a100-sxm", "l40s", "b200"])
def test_of_many_sizes_none_is_steep_and_none_beats_its_bound(name: str, engine: str) -> None:
    """Where its bytes exceed the cache a benchmark's op has no less than its bound either. Of some benchmarks' keys and values
    only a share are bytes of their own (`fetched`)."""
    hw, works = MACHINES[name], work_of.works(MANY)
    warm = priced((MANY, name, engine, "warm"))
    for what in ("bandwidth", "cache", "processors"):
        for step in (-1e-4, 1e-4):
            near = priced((MANY, name, engine, "warm"), 1 + step, what).expected_s
            off = np.abs(near / warm.expected_s - 1.0)
            assert np.nanmax(off) <= STEEPEST * 1e-4, MANY[int(np.nanargmax(off))]
    families = [
        hw.family(op.kind, work_of.family(op.kind), op.weight_dtype, engine)[1] for op in works.ops.types
    ]
    share = np.array([each.value.get("fetched", 1.0) for each in families])[works.ops.code]
    known = (works["bytes"] * share > hw.memory.cache_bytes) & ~np.isnan(warm.expected_s)
    assert known.sum() > 300
    below = known & (warm.lower_bound_s * share > warm.expected_s * (1 + 1e-9))
    assert not below.any(), [str(MANY[i]) for i in np.flatnonzero(below)]
