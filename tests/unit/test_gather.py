"""The way by the disk gives what the short way gives, whatever the size of its parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moetrace import formats
from moetrace.errors import OutputError
from moetrace.formats import events, piles
from moetrace.parse import gather, parse
from moetrace.run import Run
from tests.conftest import REPO
from tests.made import event, write

RECORDED = sorted((REPO / "traces" / "kineto").iterdir())
ORDER = ["start_ns", "stream", "dur_ns", "kernel", "op"]


def long_way(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """From now on even a short trace is long."""
    monkeypatch.setattr(events, "IN_MEMORY", 0)
    for module in (events, gather):
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


def test_the_parts_of_a_stored_run_are_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "t.json", served(40))
    long_way(monkeypatch, 30)
    run = parse(file)
    parts = [set(part.column("step").to_pylist()) - {None} for part in run.parts(["step"])]
    assert len(parts) > 5 and sum(map(len, parts)) == len(set().union(*parts)) == 40
    saved = run.save(tmp_path / "run")
    assert [t.num_rows for t in saved.parts(["op"])] == [t.num_rows for t in run.parts(["op"])]
    assert_same(saved, run)


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
