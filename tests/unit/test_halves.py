"""Two halves that take turns: the formulas against streams that are run stage by stage, and what each rule says at its edge."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moetrace import ops
from moetrace.cost import PriceContext, price
from moetrace.hardware import Hardware, load_hardware
from moetrace.op import Op
from moetrace.replay import halves, shares
from moetrace.replay.parallel import Share

HW = load_hardware("h100-sxm")
_LAYERS = 40


class Streams:
    """One stream that computes and one that sends; what is sent waits for the compute before it, and compute for what it
    needs."""

    def __init__(self) -> None:
        self.compute, self.send = 0.0, 0.0
        self.there = {"a": 0.0, "b": 0.0}  # when what a half has sent is there

    def run(self, seconds: float) -> None:
        self.compute += seconds

    def sent(self, half: str, seconds: float) -> None:
        self.send = max(self.send, self.compute) + seconds
        self.there[half] = self.send

    def wait(self, half: str) -> None:
        self.compute = max(self.compute, self.there[half])


def turns(t: dict[str, float], layers: int) -> float:
    """SGLang with prompts: stages [shared, wait, attention], [wait, experts] of both halves in turns."""
    s = Streams()
    for _ in range(layers):
        for half in "ab":
            s.run(t["shared"])
            s.wait(half)
            s.run(t["before"] + t["core"])
            s.sent(half, t["in"])
        for half in "ab":
            s.wait(half)
            s.run(t["experts"])
            s.sent(half, t["out"])
    return s.compute


def five(t: dict[str, float], layers: int) -> float:
    """SGLang's decode: the second half two stages of five behind. In flight is what is sent, of each half by itself."""
    s = Streams()

    def stage(half: str, number: int) -> None:
        if number == 0:
            s.run(t["before"])
        elif number == 1:
            s.run(t["core"])
        elif number == 2:
            s.there[half] = s.compute + t["in"]
            s.run(t["shared"])
        elif number == 3:
            s.wait(half)
            s.run(t["experts"])
            s.there[half] = s.compute + t["out"]
        else:
            s.wait(half)

    for number in range(5 * layers + 2):
        if number < 5 * layers:
            stage("a", number % 5)
        if number >= 2:
            stage("b", (number - 2) % 5)
    return s.compute


def summed(**ns: float) -> halves.Sums:
    names = ("before", "core", "shared", "experts", "alone", "apart", "in", "out")
    more = [f"limited {name}" for name in names[:4]] + [
        f"{kind} {name}" for kind in ("taken", "kept") for name in ("in", "out")
    ]
    found = dict.fromkeys([*names, *more], 0.0) | {
        f"flying {name}": ns.get(name, 0.0) for name in ("in", "out")
    }
    return {
        name: np.array([value])
        for name, value in (found | {k.replace("_", " "): v for k, v in ns.items()}).items()
    }


def together(s: halves.Sums, five: bool = False) -> float:
    computing = sum(s[name] for name in ("before", "core", "shared", "experts", "alone"))
    return float(halves.together(s, np.asarray(computing), np.array([five]), HW)[0])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("run", [turns, five])
def test_a_layer_takes_what_streams_take_stage_by_stage(run: object, seed: int) -> None:
    """Whichever of stages and exchanges are long; a layer in the middle, as the first and last have nothing beside them."""
    rng = np.random.default_rng(seed)
    ns = {name: float(rng.lognormal(5, 1)) for name in ("before", "core", "shared", "experts", "in", "out")}
    layer = run(ns, _LAYERS + 1) - run(ns, _LAYERS)  # type: ignore[operator]
    assert together(summed(**ns), run is five) == pytest.approx(layer, rel=1e-9)


def test_a_long_stage_hides_no_more_than_the_exchange_beside_it() -> None:
    ns = {"core": 100.0, "experts": 1000.0, "in": 10.0, "out": 300.0}
    assert together(summed(**ns)) == 100 + 1000 + 1000 + 300  # a half's collect beside the other's attention
    assert together(summed(**ns), True) == 2 * (10 + 300 + 1000)


def test_what_lies_in_no_layer_and_what_processors_send_hides_nothing() -> None:
    ns = {"core": 100.0, "experts": 100.0, "in": 50.0, "out": 50.0}
    plain = together(summed(**ns))
    assert together(summed(**ns, alone=7.0, apart=3.0)) == plain + 2 * 10
    sent = summed(**ns) | {"flying in": np.array([20.0])}
    assert together(sent) == plain + 2 * 30
    assert together(sent, True) == 2 * (20 + 100 + 100 + 30)


@pytest.mark.parametrize(
    ("more", "took"),
    [
        ({}, 400),
        ({"taken_in": 12.0, "taken_out": 12.0}, 400 + 4 * 12),  # a library's: from GEMMs too
        ({"taken_in": 12.0, "taken_out": 12.0, "kept_in": 12.0, "kept_out": 12.0}, 400 + 4 * 12),
        (
            {"taken_in": 12.0, "taken_out": 12.0, "kept_in": 12.0, "kept_out": 12.0, "limited_core": 100.0,
             "limited_experts": 100.0},
            400 / (1 - 12 / 66),  # however short the exchange is
        ),
    ],
)  # fmt: skip
def test_collectives_take_the_other_half_the_processors_that_they_run_on(
    more: dict[str, float], took: float
) -> None:
    """24 of 132 for 66 ns are 12 of the 100 ns that a stage computes; block FP8 GEMMs lose them for good."""
    found = together(summed(core=100.0, experts=100.0, **{"in": 66.0, "out": 66.0}, **more))
    assert found == pytest.approx(took)


def test_gaps_between_ops_lie_where_ops_do() -> None:
    s = summed(core=100.0, experts=300.0, **{"in": 150.0, "out": 150.0})
    assert halves.together(s, np.array([800.0]), np.array([False]), HW).tolist() == [200 + 600 + 600 + 200]


def test_each_op_has_its_stage() -> None:
    found = {kind: halves.stage_of(Op(kind, "bf16"), True) for kind in (
        "qkv_proj", "norm", "rope", "mla_attention", "attention_reduce", "o_proj", "topk", "shared_act", "moe_align", "moe_act",
        "moe_combine", "dense_down", "lm_head", "moe_dispatch", "all_gather", "moe_collect", "reduce_scatter", "all_reduce",
        "send_recv",
    )}  # fmt: skip
    assert list(found.values()) == [
        "before", "before", "before", "core", "core", "core", "core", "shared", "experts", "experts",
        "before", "alone", "alone", "in", "in", "out", "out", "either",
        "apart",
    ]  # fmt: skip
    assert halves.stage_of(Op("dense_down", "bf16"), False) == "experts"


def test_only_what_crosses_the_network_hides_of_a_low_latency_exchange() -> None:
    def parts(hw: Hardware, ranks: int) -> tuple[float, float]:
        """Seconds that hide and that do not."""
        op = Op.of(
            "moe_dispatch", "bf16", bytes=7_340_032, ranks=ranks, experts=256, topk=8, tokens=128, hidden=7168
        )
        works = ops.works([op])
        whole, share = price(works, hw).expected_s[0], halves.flying_share(works, hw, PriceContext())[0]
        return whole * share, whole * (1 - share)

    link = HW.link
    assert link and link.network_bytes_per_s
    hidden, own = parts(HW, 72)
    assert hidden == pytest.approx(
        8 / 9 * 7_340_032 / link.network_bytes_per_s, rel=0.1
    )  # of nine nodes' bytes one's stay
    faster = replace(HW, link=replace(link, network_bytes_per_s=2 * link.network_bytes_per_s))
    assert parts(faster, 72) == (pytest.approx(hidden / 2, rel=0.05), pytest.approx(own))
    assert parts(HW, 8)[0] == parts(HW, 4)[0] == 0  # within a node processors copy
    kinds = Op.of("moe_collect", bytes=9), Op.of("moe_collect", bytes=9, sms=24), Op.of("all_gather", bytes=9)
    assert [halves.low_latency(op) for op in kinds] == [True, False, False]


@pytest.mark.parametrize(
    ("phase", "engine", "kind", "staged"),
    [
        ("decode", "", "moe_dispatch", True),
        ("decode", "sglang@0.4.6", "moe_dispatch", True),
        ("decode", "vllm", "moe_dispatch", False),
        ("prefill", "sglang", "moe_dispatch", False),
        ("decode", "sglang", "all_gather", False),
    ],
)
def test_five_stages_are_of_decoding_with_exchanges_but_in_vllm(
    phase: str, engine: str, kind: str, staged: bool
) -> None:
    draft = SimpleNamespace(
        ops=(Op.of(kind, bytes=1),), steps=(SimpleNamespace(phase=phase),), stated=lambda name, default="": engine or default
    )  # fmt: skip
    assert shares.in_five(draft).tolist() == [staged]  # type: ignore[arg-type]


def test_a_step_of_two_halves_is_told_with_what_may_not_hide() -> None:
    draft = SimpleNamespace(
        shares=(Share(1, halves=True),), base=SimpleNamespace(step=np.zeros(3, int), segment=np.zeros(3, int)),
        ops=(Op.of("attention", batch=1), Op.of("moe_act", tokens=1), Op.of("all_reduce", bytes=1)),
        cell=np.array([0, 2, 1, 2]), hw=HW, steps=(SimpleNamespace(phase="decode"),), stated=lambda name, default="": default,
    )  # fmt: skip
    dur, segment = np.array([100, 66, 300, 66]), np.zeros(4, int)
    turns = shares.turns_of(draft, PriceContext())  # type: ignore[arg-type]
    span, more = shares.shared_out(draft, segment, dur, np.array([532]), turns)  # type: ignore[arg-type]
    assert span.tolist() == [2 * (100 + 12) + 2 * (300 + 12)]
    assert more.tolist() == [(2 * 532 - 848) // 2]  # half of what the halves hide from each other
