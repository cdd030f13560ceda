"""Fusing runs of small ops: what must stay, what becomes one, and that it never lengthens a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetrace import ops as work_of
from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.fuse import fuse
from moetrace.run import Run, Step
from moetrace.synthesize import Workload
from tests.conftest import REPO
from tests.unit.replay_runs import H100, build, decode_run, olmoe

NODE, WAFER, CPU = (load_hardware(name) for name in ("h100-sxm-x8", "cs3", "cpu"))
SHIPPED = ("olmoe-1b-7b-l2-b16-cpu", "deepseek-v2-lite-l2-b16-cpu")
ON_CPU = {"hardware": "cpu", "device_class": "cpu", "device": "CPU"}
PLAIN = settings(max_examples=60, deadline=None)
SAID = "run inside a neighbour's kernel"

# Ops by what engines run as one kernel; "tiny" ones go with any neighbour, None stands alone.
POOL: dict[str | None, tuple[str, ...]] = {
    None: (
        "qkv_proj bf16 m=16 n=2048 k=2048",
        "moe_gate_up bf16 tokens=16 hidden=2048 inter=1024 experts=64 topk=8",
        "attention bf16 batch=16 heads=16 kv_heads=16 head_dim=128 kv=4096",
        "all_reduce bf16 bytes=65536 ranks=8",
        "embedding bf16 tokens=16 hidden=2048",
        "memcpy bf16 bytes=1000",
    ),
    "norm": (
        "norm bf16 tokens=16 width=2048",
        "norm fp32 tokens=16 width=2048",
        "norm fp32 tokens=16 width=2048 writes=0",
        "norm fp32 tokens=16 width=1",
        "norm bf16 tokens=1 width=64",
    ),
    "pointwise": (
        "elementwise bf16 elements=32768 reads=2",
        "elementwise fp32 elements=9000",
        "rope bf16 elements=16384",
        "activation bf16 elements=20000 reads=2",
    ),
    "tiny": (
        "elementwise bf16",
        "elementwise int64 elements=1",
        "elementwise fp32 elements=1500",
        "rope bf16 elements=1024",
    ),
    "topk": ("topk fp32 tokens=16 experts=64 topk=8",),
    "rows": (
        "moe_align bf16 tokens=16 experts=64 topk=8",
        "moe_align bf16 tokens=16 experts=64 topk=8 hidden=2048 copies=8",
        "moe_combine bf16 tokens=16 hidden=2048 topk=8",
    ),
    "act": (
        "moe_act bf16 tokens=16 inter=1024 topk=8 reads=1",
        "moe_act bf16 tokens=16 inter=1024 topk=8",
        "expert_act bf16 elements=3072",
        "expert_act bf16 elements=3072 reads=2",
    ),
    "kv": ("kv_write bf16 elements=512", "kv_write bf16 elements=8192", "kv_write bf16"),
    "sampling": ("sampling fp32 tokens=16 vocab=50304",),
}
CLASS = {text: name for name, texts in POOL.items() for text in texts}
# The fused form of an op is of its class too: in bf16, and cache writes of any size.
KINDS = {text.split()[0]: name for text, name in CLASS.items() if name not in (None, "tiny")}
Ops = list[tuple[int, int, str]]  # step, layer, op

K_AND_V = ["kv_write bf16 elements=8192", "kv_write bf16 elements=512"]
# Tiny, yet more than the small norm and cache write of one token move.
SIX_KB = "elementwise bf16 elements=1500"
CLASS[SIX_KB] = "tiny"


@st.composite
def launches(draw: st.DrawFn) -> Ops:
    """Two steps of ops in any order, those of a layer together."""
    texts = st.lists(st.sampled_from([*CLASS]), max_size=12)
    found = [
        (step, layer, text)
        for step in (0, 1)
        for layer in draw(st.sampled_from([(-1,), (0,), (-1, 0, 1, -1), (0, 1)]))
        for text in draw(texts)
    ]
    return found or [(0, -1, "norm bf16 tokens=1 width=64")]


def cpu_run(ops: Ops, **more: object) -> Run:
    rows = [(step, layer, text, 1000 * i, 900) for i, (step, layer, text) in enumerate(ops)]
    steps = []
    for step in sorted({step for step, *_ in ops}):
        mine = [start for s, _, _, start, _ in rows if s == step]
        steps.append(Step(step, f"decode {step}", "decode", min(mine), max(mine) + 900, 16, 16))
    return build(rows, steps, **{**ON_CPU, **more})


def draft_of(run: Run, hw: Hardware = H100) -> Draft:
    return Draft.of(run, hw, Scenario())


def listed(draft: Draft) -> Ops:
    """(step, layer, op) of each row."""
    step = draft.base.step[draft.rows].tolist()
    return [(s, draft.at[c].layer, str(draft.ops[c])) for s, c in zip(step, draft.cell.tolist(), strict=True)]


def fused_texts(texts: Sequence[str], layer: int = 0) -> list[str]:
    return [text for _, _, text in listed(fuse(draft_of(cpu_run([(0, layer, t) for t in texts]))))]


def of_class(text: str) -> str | None:
    return CLASS[text] if text in CLASS else KINDS[text.split()[0]]


def runs_of(ops: Ops) -> list[tuple[int, int, str | None]]:
    """(step, layer, class) of the runs, told in the simplest way: tiny ops count only where nothing else is about."""
    found: list[tuple[int, int, str | None]] = []
    for (step, layer), here in groupby(ops, key=lambda row: row[:2]):
        for alone, block in groupby(here, key=lambda row: of_class(row[2]) is None):
            names = [of_class(text) for _, _, text in block]
            if not alone:
                names = [name for name, _ in groupby(n for n in names if n != "tiny")] or ["tiny"]
            found += [(step, layer, name) for name in names]
    return found


def nbytes(text: str) -> float:
    return work_of.work(Op.parse(text)).bytes


def elements_written(ops: Ops) -> dict[tuple[int, int], float]:
    total: Counter[tuple[int, int]] = Counter()
    for step, layer, text in ops:
        if text.startswith("kv_write"):
            total[step, layer] += int(Op.parse(text).get("elements") or 0)
    return dict(total)


def step_s(run: Run, hw: Hardware, *sets: str) -> float:
    return float(replay(run, hw, Scenario.of(*sets)).summary["phases"]["decode"]["step_s"])


# -- any order of ops ----------------------------------------------------------------------------------------------
@PLAIN
@given(launches())
def test_each_run_of_one_class_becomes_one_op_in_its_place(ops: Ops) -> None:
    """So none crosses a layer, a step, or an op that stands alone, and no class is lost."""
    before = draft_of(cpu_run(ops))
    after = listed(fuse(before))
    assert [(step, layer, of_class(text)) for step, layer, text in after] == runs_of(listed(before))


@PLAIN
@given(launches())
def test_what_stands_alone_is_as_it_was(ops: Ops) -> None:
    before = draft_of(cpu_run(ops))
    draft = fuse(before)
    assert [row for row in listed(draft) if of_class(row[2]) is None] == [
        row for row in listed(before) if of_class(row[2]) is None
    ]
    assert (draft.rows[1:] > draft.rows[:-1]).all()


@PLAIN
@given(launches())
def test_cache_writes_add_up_in_each_layer_of_each_step(ops: Ops) -> None:
    before = draft_of(cpu_run(ops))
    assert elements_written(listed(fuse(before))) == elements_written(listed(before))


@PLAIN
@given(launches(), st.booleans())
@example([(0, 0, "norm bf16 tokens=1 width=64"), (0, 0, SIX_KB), (0, 0, "rope bf16 elements=16384")], True)
@example([(0, 0, "elementwise fp32 elements=1500"), (0, 0, "elementwise fp32 elements=1500")], True)
def test_fusing_twice_changes_nothing(ops: Ops, model: bool) -> None:
    once = fuse(draft_of(cpu_run(ops, model=olmoe(2) if model else None)))
    twice = fuse(once)
    assert listed(twice) == listed(once)
    assert twice.notes == once.notes and sum(SAID in note for note in once.notes) <= 1


@PLAIN
@given(st.lists(st.sampled_from([*POOL["pointwise"], *POOL["tiny"]]), min_size=2, max_size=8))
def test_a_run_moves_no_less_than_any_of_its_ops_does_in_bf16(texts: list[str]) -> None:
    (one,) = fused_texts(texts)
    assert nbytes(one) == max(nbytes(text.replace("fp32", "bf16")) for text in texts)


@settings(max_examples=30, deadline=None)
@given(launches(), st.sampled_from(["h100-sxm", "a100-sxm", "mi300x", "cs3"]))
def test_a_step_with_fusion_is_never_longer_than_without(ops: Ops, name: str) -> None:
    run, hw = cpu_run(ops, model=olmoe(2)), load_hardware(name)
    assert step_s(run, hw, "fusion=runs") <= step_s(run, hw, "fusion=recorded")


# -- cases ---------------------------------------------------------------------------------------------------------
EIGHT = [
    "norm bf16 tokens=16 width=2048",
    "norm fp32 tokens=16 width=2048",
    "norm fp32 tokens=16 width=2048 writes=0",
    "norm fp32 tokens=16 width=1",
    "norm fp32 tokens=16 width=1",
    "norm fp32 tokens=16 width=2048",
    "norm fp32 tokens=16 width=2048 writes=0.5",
    "norm bf16 tokens=16 width=2048",
]


def test_the_eight_operators_of_a_norm_are_one_norm_in_bf16() -> None:
    assert fused_texts(EIGHT) == ["norm bf16 tokens=16 width=2048"]
    assert fused_texts(EIGHT[1:-1]) == ["norm bf16 tokens=16 width=2048"]


def test_the_type_is_that_of_the_model() -> None:
    model = replace(olmoe(2), act_dtype="fp16")
    run = cpu_run([(0, 0, text) for text in EIGHT[1:-1]], model=model)
    assert [text for _, _, text in listed(fuse(draft_of(run)))] == ["norm fp16 tokens=16 width=2048"]


def test_an_op_without_neighbours_of_its_class_is_as_recorded() -> None:
    texts = ["norm fp32 tokens=16 width=2048", "qkv_proj bf16 m=16 n=2048 k=2048", "kv_write bf16"]
    draft = draft_of(cpu_run([(0, 0, text) for text in texts]))
    assert fuse(draft) is draft


def test_two_norms_with_an_addition_between_stay_two() -> None:
    norm, add = "norm bf16 tokens=16 width=2048", "elementwise bf16 elements=32768 reads=2"
    assert fused_texts([norm, norm, add, norm]) == [norm, add, norm]


@pytest.mark.parametrize("border", [(0, 1), (1, 0)], ids=["layer", "step"])
def test_a_run_ends_where_a_layer_or_step_does(border: tuple[int, int]) -> None:
    step, layer = border
    norm = "norm bf16 tokens=16 width=2048"
    ops = [(0, 0, norm), (0, 0, norm), (step, layer, norm), (step, layer, norm)]
    assert listed(fuse(draft_of(cpu_run(ops)))) == [(0, 0, norm), (step, layer, norm)]


def test_k_and_v_of_unlike_size_add_up() -> None:
    """The latent and the rotary part of MLA: 512 and 64 elements a token."""
    assert fused_texts(K_AND_V) == ["kv_write bf16 elements=8704"]
    assert fused_texts([*K_AND_V, *K_AND_V]) == ["kv_write bf16 elements=17408"]


def test_bookkeeping_never_stands_for_the_cache_write_or_norm_beside_it() -> None:
    """At one sequence a cache write or norm may move less than the arithmetic on positions does."""
    write, norm = "kv_write bf16 elements=512", "norm bf16 tokens=1 width=64"
    assert nbytes(SIX_KB) > max(nbytes(write), nbytes(norm))
    assert fused_texts([write, write, SIX_KB]) == ["kv_write bf16 elements=1024"]
    assert fused_texts([norm, SIX_KB]) == [norm]
    assert fused_texts([SIX_KB, norm]) == [norm]


def test_bookkeeping_between_gemms_is_one_kernel() -> None:
    gemm = "qkv_proj bf16 m=16 n=2048 k=2048"
    small = "elementwise int64 elements=1"
    assert fused_texts([gemm, small, small, small, gemm]) == [gemm, small, gemm]
    assert fused_texts([gemm, small, small]) == [gemm, small]


def test_what_is_dropped_is_counted_and_said() -> None:
    (note,) = fuse(draft_of(cpu_run([(0, 0, text) for text in EIGHT]))).notes
    assert note.startswith("7 of 8 recorded operators") and "fusion=recorded" in note


# -- the knob ------------------------------------------------------------------------------------------------------
def test_runs_are_the_default_only_for_a_cpu_recording_on_another_class() -> None:
    on_cpu = cpu_run([(0, 0, text) for text in EIGHT], model=olmoe(2))
    on_gpu = cpu_run(
        [(0, 0, text) for text in EIGHT], model=olmoe(2), hardware="h100-sxm", device_class="gpu"
    )
    rows = {
        (run.meta.device_class, hw.name): edited(run, hw, Scenario()).rows.size
        for run in (on_cpu, on_gpu)
        for hw in (H100, WAFER, CPU)
    }
    assert rows == {
        ("cpu", "h100-sxm"): 1, ("cpu", "cs3"): 1, ("cpu", "cpu"): 8,
        ("gpu", "h100-sxm"): 8, ("gpu", "cs3"): 8, ("gpu", "cpu"): 8,
    }  # fmt: skip
    assert edited(on_gpu, WAFER, Scenario.of("fusion=runs")).rows.size == 1


def test_the_default_is_the_same_as_runs_and_said_once() -> None:
    run = cpu_run([(0, 0, text) for text in EIGHT], model=olmoe(2))
    default, asked = (replay(run, H100, Scenario.of(*sets)) for sets in ((), ("fusion=runs",)))
    assert default.run.table().equals(asked.run.table())
    assert sum(SAID in text for text in default.summary["assumptions"]) == 1


def test_recorded_prices_each_op_as_a_kernel() -> None:
    run = cpu_run([(0, 0, text) for text in EIGHT], model=olmoe(2))
    each = replay(run, H100, Scenario.of("fusion=recorded"))
    assert each.run.column("op").to_pylist() == EIGHT
    assert (each.run.numpy("dur_ns") >= 1e9 * H100.families["norm"]["t0_s"]).all()
    assert not any(SAID in text for text in each.summary["assumptions"])


@pytest.mark.parametrize(
    ("facts", "hw"),
    [(ON_CPU, CPU), ({}, H100), ({}, load_hardware("a100-sxm"))],
    ids=["cpu", "gpu", "another gpu"],
)
def test_times_of_the_same_class_cannot_be_fused(facts: dict[str, str], hw: Hardware) -> None:
    with pytest.raises(ScenarioError, match="fusion=runs: times measured op by op") as caught:
        replay(decode_run(**facts), hw, Scenario.of("fusion=runs"))
    assert "\n" not in str(caught.value)


def test_only_two_values_are_known() -> None:
    with pytest.raises(ScenarioError, match="fusion"):
        Scenario.of("fusion=all")


# -- the shipped recordings ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=SHIPPED)
def recorded(request: pytest.FixtureRequest) -> Run:
    return parse(REPO / "traces" / "kineto" / request.param)


SMALL = frozenset(KINDS)


def test_the_work_of_a_recording_stays(recorded: Run) -> None:
    before = draft_of(recorded)
    after = fuse(before)
    assert [row for row in listed(after) if row[2].split()[0] not in SMALL] == [
        row for row in listed(before) if row[2].split()[0] not in SMALL
    ]
    assert elements_written(listed(after)) == elements_written(listed(before))
    assert after.rows.size < before.rows.size / 2


def test_a_recorded_layer_has_two_norms_and_one_cache_write(recorded: Run) -> None:
    after = listed(fuse(draft_of(recorded)))
    kinds = Counter((step, layer, Op.parse(text).kind) for step, layer, text in after)
    for step in range(len(recorded.meta.steps)):
        for layer in (0, 1):
            assert kinds[step, layer, "norm"] == 2
            assert kinds[step, layer, "kv_write"] == 1
        assert kinds[step, -1, "norm"] == 1
    assert {Op.parse(text).dtype for _, _, text in after if text.startswith("norm")} == {"bf16"}


def test_a_recorded_cache_write_is_what_the_model_keeps(recorded: Run) -> None:
    """K and V of a token and layer, as the architecture says: for MLA the latent and the rotary part alone."""
    model = recorded.meta.model
    assert model is not None
    for step, layer, text in listed(fuse(draft_of(recorded))):
        if text.startswith("kv_write"):
            tokens = recorded.meta.steps[step].tokens
            assert tokens is not None
            assert Op.parse(text)["elements"] * 2 == tokens * model.kv_bytes_per_token(layer)


def test_a_recording_fused_twice_is_fused_once(recorded: Run) -> None:
    once = fuse(draft_of(recorded))
    assert fuse(once) is once


@pytest.mark.parametrize(
    ("hw", "sets"),
    [
        (H100, ()),
        (H100, ("n_a=2",)),
        (H100, ("batch=1",)),
        (H100, ("batch=256", "layers=native")),
        (NODE, ("tp=8",)),
        (WAFER, ()),
        (WAFER, ("n_a=2", "placement=own")),
    ],
    ids=lambda value: value.name if isinstance(value, Hardware) else " ".join(value) or "as recorded",
)
def test_a_recorded_step_is_never_longer_fused(recorded: Run, hw: Hardware, sets: tuple[str, ...]) -> None:
    assert step_s(recorded, hw, "fusion=runs", *sets) < step_s(recorded, hw, "fusion=recorded", *sets)


@pytest.mark.parametrize("sets", [("tp=8",), ("ep=8",)], ids=" ".join)
def test_collectives_are_added_where_they_were(recorded: Run, sets: tuple[str, ...]) -> None:
    fused, each = (
        replay(recorded, NODE, Scenario.of(f"fusion={how}", *sets)).run.to_pandas(
            ["step", "layer", "family", "op"]
        )
        for how in ("runs", "recorded")
    )
    communication = [f[f.family == "communication"].astype(str) for f in (fused, each)]
    assert len(communication[0]) > 0
    assert communication[0].values.tolist() == communication[1].values.tolist()


def test_a_simulation_has_nothing_to_fuse() -> None:
    with pytest.raises(ScenarioError, match="fused kernels already"):
        simulate("olmoe-1b-7b", Workload(1, 8, 2), "h100-sxm", Scenario.of("fusion=runs"))
