"""The way by the disk gives what the short way gives, whatever the size of its parts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from moetrace import formats
from moetrace.attribute import attribute
from moetrace.errors import OutputError
from moetrace.formats import events, piles, texts
from moetrace.parse import batches, build, kinds, long, parse, summary
from moetrace.parse.summary import MANY_NAMES
from moetrace.replay import Scenario, replay
from moetrace.run import Run
from tests.conftest import REPO
from tests.made import decode_trace, event, write

RECORDED = sorted((REPO / "traces" / "kineto").iterdir())
ORDER = ["start_ns", "stream", "dur_ns", "kernel", "op"]


def long_way(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """From now on even a short trace is long."""
    monkeypatch.setattr(events, "IN_MEMORY", 0)
    for module in (events, long):
        monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(piles, "_HELD", 1 << 16)


def assert_same(one: Run, other: Run) -> None:
    a, b = (run.to_pandas().sort_values(ORDER, kind="stable").reset_index(drop=True) for run in (one, other))
    assert list(a.columns) == list(b.columns) and len(a) == len(b)
    for name in a.columns:
        left, right = a[name].astype(object), b[name].astype(object)
        assert ((left == right) | (left.isna() & right.isna())).all(), name
    assert one.meta.to_dict() == other.meta.to_dict()


@pytest.mark.parametrize("rows", [150, 4000])
@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.name)
def test_a_recording_of_a_cpu(monkeypatch: pytest.MonkeyPatch, path: Path, rows: int) -> None:
    short = parse(path)
    long_way(monkeypatch, rows)
    assert_same(parse(path), short)


def served(steps: int, lanes: int = 2) -> list[dict[str, object]]:
    """Steps run op by op on a GPU, each with a range, operators, launches and kernels that run on into the next step."""
    made: list[dict[str, object]] = []
    for s in range(steps):
        at = 1000 * s
        made.append(event(f"step[DECODE bs={1 + s % 3}]", "user_annotation", at, 900, tid=7))
        made.append(
            event("python", "cpu_op", at + 1, 1500 if s % 4 == 3 else 890, tid=7, **{"External id": 5000 + s})
        )
        for k in range(8):
            ids = {"External id": 8 * s + k}
            dims = {"Input Dims": [[16, 64], [64, 32 + k]], "Input type": ["c10::BFloat16"] * 2}
            made.append(event("aten::mm", "cpu_op", at + 10 + 100 * k, 50, tid=7, **ids, **dims))
            made.append(
                event("cudaLaunchKernel", "cuda_runtime", at + 20 + 100 * k, 5, tid=7, correlation=8 * s + k)
            )
            made.append(
                event("nvjet_gemm", "kernel", at + 700 + 90 * k, 40, tid=k % lanes, stream=k % lanes, device=0,
                      correlation=8 * s + k, **(ids if k % 2 else {}))
            )  # fmt: skip
    made.append(
        event("nvjet_gemm", "kernel", 1000 * steps + 4000, 40, tid=1, stream=1, device=0, correlation=10**6)
    )
    return made


@pytest.mark.parametrize("rows", [7, 30, 10**4])
@pytest.mark.parametrize("annotated", [True, False])
def test_steps_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, annotated: bool) -> None:
    made = [e for e in served(40) if annotated or e["cat"] != "user_annotation"]
    file = write(tmp_path / "t.json", made[::-1])
    short = parse(file)
    long_way(monkeypatch, rows)
    long = parse(file)
    if annotated:
        assert_same(long, short)
    else:  # what stands for steps are pieces of time
        assert long.num_rows == short.num_rows
        assert (len(long.meta.steps) > 1) == (rows < 300)
        assert long.numpy("launch_ns").sum() == short.numpy("launch_ns").sum()


def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on hardly any name is remembered."""
    for name, size in (("_PAGE", 3), ("_CACHED", 2), ("_HELD", 40), ("_MANY", 5)):
        monkeypatch.setattr(texts, name, size)
    for module in (build, kinds):
        monkeypatch.setattr(module, "_MANY", 5)


@pytest.mark.parametrize("path", RECORDED[:2], ids=lambda p: p.name)
def test_names_that_outgrow_memory_change_nothing(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    short = parse(path)
    long_way(monkeypatch, 4000)
    few_names(monkeypatch)
    assert_same(parse(path), short)


def test_a_name_for_every_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = ("nvjet_gemm", "aten::mm", "python")
    made = [
        {**e, "name": f"{e['name']}_{i}"} if e["name"] in numbered else e for i, e in enumerate(served(40))
    ]
    file = write(tmp_path / "t.json", made)
    short = parse(file)
    long_way(monkeypatch, 30)
    few_names(monkeypatch)
    long = parse(file)
    assert_same(long, short)
    assert len(set(long.column("kernel").to_pylist())) == long.num_rows == 321
    assert differs(summary(long), summary(short)) == ""
    held, other = attribute(long, "h100-sxm"), attribute(short, "h100-sxm")
    assert differs(dict(held.summary), dict(other.summary)) == ""


def test_sums_by_kernel_that_are_not_of_all_ops_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Families, steps and coverage stay those of all ops."""
    strange = ("kernel", "cpu_op")
    made = [{**e, "name": f"strange_{i}"} if e["cat"] in strange else e for i, e in enumerate(served(40))]
    file = write(tmp_path / "t.json", made)
    short = parse(file)
    plain, held = summary(short), dict(attribute(short, "h100-sxm").summary)
    long_way(monkeypatch, 30)
    few_names(monkeypatch)
    monkeypatch.setattr(sys.modules["moetrace.parse.summary"], "_MOST", 20)
    long = parse(file)
    told, other = summary(long), dict(attribute(long, "h100-sxm").summary)
    for one, whole in ((told, plain), (other, held)):
        assert [n for n in one["notes"] if n not in whole["notes"]] == [MANY_NAMES]
        assert (
            differs(one["families"], whole["families"]) == "" and differs(one["steps"], whole["steps"]) == ""
        )
        assert one["coverage"]["named_share"] == whole["coverage"]["named_share"] == 0
    assert sum(f["share"] for f in told["families"]) == pytest.approx(1)


def test_a_step_with_more_ops_than_a_forward_pass_has_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [e for e in served(40) if e["cat"] != "user_annotation"]
    made += [event("step[DECODE bs=4]", "user_annotation", 0, 29_950, tid=7)]
    made += [event(f"step[DECODE bs={i}]", "user_annotation", 1000 * i, 900, tid=7) for i in range(30, 40)]
    file = write(tmp_path / "t.json", made)
    short = parse(file)
    assert [step.phase for step in short.meta.steps] == ["decode"] * 11
    long_way(monkeypatch, 30)
    assert_same(parse(file), short)
    monkeypatch.setattr(batches, "LONGEST", 60)
    long = parse(file)
    phases = [step.phase for step in long.meta.steps]
    assert phases == [None] * 8 + ["decode"] * 10
    assert [step.batch for step in long.meta.steps[8:]] == list(range(30, 40))
    ops = [row["ops"] for row in summary(long)["steps"]]
    assert sum(ops[:8]) == 8 * 30 and max(ops[:8]) <= 32 and ops[8:] == [8] * 10
    assert max(part.num_rows for part in long.parts(["step"])) <= 60
    said = [note for note in long.meta.notes if "more ops (up to 240)" in note]
    assert len(said) == 1 and "(60): 8 pieces" in said[0]
    starts = [step.start_ns for step in long.meta.steps]
    assert starts == sorted(starts) and long.num_rows == short.num_rows


def repeating(times: tuple[int, ...]) -> list[dict[str, object]]:
    """Steps of six layers of kernels whose names say nothing, each so many times over, launched one by one."""
    kinds = [f"{name}_of_a_layer" for name in ("abab", "baba", "cbab", "dbab", "ebab")]
    names = ["first", *(kinds * 6), "last"]
    made: list[dict[str, object]] = []
    for step, n in enumerate(times):
        made.append(event("step[DECODE bs=4]", "user_annotation", 10_000 * step, 9_000, tid=7))
        for i, name in enumerate(names * n):
            at = 10_000 * step + 20 * i
            ids = {"correlation": 1000 * step + i}
            made.append(event("cudaLaunchKernel", "cuda_runtime", at + 1, 2, tid=7, **ids))
            made.append(event(name, "kernel", at + 4, 5, tid=3, pid=0, stream=3, device=0, **ids))
    return made


def test_layers_by_repetition_of_more_names_than_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = [event(f"range_{i}", "user_annotation", i, 0.5, tid=9) for i in range(20)]
    file = write(tmp_path / "t.json", [*early, *repeating((1, 1, 1))])
    short = parse(file)
    assert short.numpy("layer").max() == 5
    long_way(monkeypatch, 40)
    few_names(monkeypatch)
    assert_same(parse(file), short)


def test_steps_beside_one_that_is_cut_keep_their_layers_by_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers by repetition need a step that the trace states: a piece is none, and takes it from no other."""
    file = write(tmp_path / "t.json", repeating((1, 4, 1)))
    long_way(monkeypatch, 40)
    monkeypatch.setattr(batches, "LONGEST", 100)
    run = parse(file)
    assert [step.batch for step in run.meta.steps] == [4, *[None] * 4, 4]
    table = run.to_pandas(["step", "layer"])
    layers = {i: rows.layer.max() for i, rows in table.groupby("step")}
    assert layers[0] == layers[5] == 5 and all(layers[i] != layers[i] for i in range(1, 5)), layers


def test_a_piece_begins_where_a_replay_does() -> None:
    edges, none = np.array([100, 205, 300]), np.zeros((2, 0), dtype=np.int64)
    found = [np.array([[7, 9], [90, 210]]), none, np.array([[8, 9], [120, 230]])]
    assert batches._moved(edges, found).tolist() == [120, 210, 300]
    assert batches._moved(edges, [none]).tolist() == edges.tolist()
    assert batches._replays(np.array([-1, 4, 4, -1, 3]), np.array([1, 2, 3, 4, 5])).tolist() == [
        [3, 4],
        [5, 2],
    ]


def test_a_batch_holds_no_more_rows_than_asked_but_for_one_step() -> None:
    assert batches._filled([3, 3, 5, 20, 1, 9, 1], 10).tolist() == [0, 0, 1, 2, 3, 3, 4]


def test_the_parts_of_a_stored_run_are_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "t.json", served(40))
    long_way(monkeypatch, 30)
    run = parse(file)
    parts = [set(part.column("step").to_pylist()) - {None} for part in run.parts(["step"])]
    assert len(parts) > 5 and sum(map(len, parts)) == len(set().union(*parts)) == 40
    saved = run.save(tmp_path / "run")
    assert [t.num_rows for t in saved.parts(["op"])] == [t.num_rows for t in run.parts(["op"])]
    assert_same(saved, run)


def differs(one: object, other: object, where: str = "") -> str:
    """Where two JSON-able values differ by more than rounding, which also orders rows that are alike; "" if nowhere."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((d for k in one if (d := differs(one[k], other[k], f"{where}.{k}"))), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        a, b = (
            sorted(x, key=lambda row: str(next(iter(row.values())))) if x and isinstance(x[0], dict) else x
            for x in (one, other)
        )
        return next(
            (d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := differs(x, y, f"{where}[{i}]"))),
            "",
        )
    same = one == pytest.approx(other, rel=1e-9, abs=1e-12) if isinstance(one, float) else one == other
    return "" if same else f"{where}: {one} {other}"


def test_what_is_made_of_a_stored_run_is_what_is_made_of_it_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = decode_trace(layers=3, steps=30, graph=True) + [
        {
            **e,
            "ts": e["ts"] + 10**6,
            "args": {**e["args"], "correlation": e["args"].get("correlation", -5) + 10**6},
        }
        for e in decode_trace(layers=3, steps=9, batch=7)
    ]
    file = write(tmp_path / "t.json", made)
    asked = {"model": "qwen3-30b-a3b", "kv_len": 500, "hardware": "h100-sxm"}
    short = parse(file, **asked)
    long_way(monkeypatch, 100)
    long = parse(file, **asked)
    assert len(list(long.parts())) > 10 and len(list(short.parts())) == 1
    assert differs(summary(long), summary(short)) == ""
    held, other = attribute(long, "h100-sxm"), attribute(short, "h100-sxm")
    assert differs(dict(held.summary), dict(other.summary)) == ""
    times = ["step", "dur_ns", "exposed_ns", "expected_s"]
    assert differs(*(t.select(times).sort_by("step").to_pylist() for t in (held.table, other.table))) == ""
    held.save(tmp_path / "held.parquet")
    assert held.is_in(tmp_path / "held.parquet") and not other.is_in(tmp_path / "held.parquet")
    for machine in ("h100-sxm", "h200-sxm", "cs3"):
        for knobs in ("", "n_a=4", "layers=native"):
            scenario = Scenario.of(*filter(None, [knobs]))
            a, b = replay(long, machine, scenario), replay(short, machine, scenario)
            wanted = {k: v for k, v in b.summary.items() if k != "assumptions"}
            assert differs({k: v for k, v in a.summary.items() if k != "assumptions"}, wanted) == "", (
                machine,
                knobs,
            )
            assert len(a.summary["assumptions"]) == len(b.summary["assumptions"])
            assert [(s.start_ns, s.end_ns) for s in a.run.meta.steps] == [
                (s.start_ns, s.end_ns) for s in b.run.meta.steps
            ]
            assert sorted(a.run.numpy("start_ns")) == sorted(b.run.numpy("start_ns"))


def test_what_is_spilled_leaves_nothing_and_needs_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "t.json", served(40))
    long_way(monkeypatch, 30)
    monkeypatch.setattr(piles, "_HELD", 0)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    run = parse(file, scratch=scratch)
    assert os.listdir(scratch) == [] and run.num_rows == 321
    monkeypatch.setattr(piles, "_MARGIN", 1 << 60)
    with pytest.raises(OutputError, match="MiB free"):
        parse(file, scratch=scratch)
    assert os.listdir(scratch) == []


def test_a_pile_gives_back_what_it_got(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    for held in (0, 1 << 30):
        monkeypatch.setattr(piles, "_HELD", held)
        pile = piles.Pile(formats.Spill())
        wide = [np.array([1, -(2**62), 3]), np.array([5]), np.array([2**31, 7])]
        for values in wide:
            pile.append({"a": values, "b": values % 2 == 1})
        assert pile.all()["a"].tolist() == np.concatenate(wide).tolist() and pile.all()["b"].dtype == bool
        odd, even = pile.scatter(lambda block: 1 - block["a"] % 2, 2)
        assert odd.all()["a"].tolist() == [1, 3, 5, 7] and len(even) == 2 and not len(pile)
