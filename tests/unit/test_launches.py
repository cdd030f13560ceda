"""Which launch belongs to a kernel, and what is said where that is in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moetrace.parse import parse
from tests.made import event, write

Event = dict[str, Any]


def launch(
    at: float, correlation: int, tid: int = 7, dur: float = 1, name: str = "cudaLaunchKernel"
) -> Event:
    return event(name, "cuda_runtime", at, dur, tid=tid, correlation=correlation)


def kernel(at: float, correlation: int) -> Event:
    return event("nvjet_a", "kernel", at, 9, tid=3, pid=0, stream=3, device=0, correlation=correlation)


def notes(path: Path, events: list[Event], about: str) -> list[str]:
    return [note for note in parse(write(path / "t.json", events)).meta.notes if about in note]


def test_of_launches_with_one_id_the_last_before_the_kernel_counts_and_a_note_says_so(tmp_path: Path) -> None:
    events = []
    for i in range(3):
        events += [
            event("step[DECODE bs=1]", "user_annotation", 1000 * i, 50, tid=7),
            launch(1000 * i + 10, 77),
            kernel(1000 * i + 20, 77),
        ]
    run = parse(write(tmp_path / "t.json", events))
    assert run.numpy("step").tolist() == [0, 1, 2]
    assert (run.numpy("start_ns") - run.numpy("launch_ns")).tolist() == [10_000] * 3
    (note,) = notes(tmp_path, events, "correlation id")
    assert note.startswith("1 correlation id(s) belong to several launches: their 3 op(s)")


def test_a_call_within_another_of_its_id_is_the_same_launch(tmp_path: Path) -> None:
    """The runtime's call and the driver's inside it: the op was launched when the outer one began."""
    events = [launch(10, 5, dur=8), launch(12, 5, dur=3, name="cuLaunchKernel"), kernel(20, 5)]
    run = parse(write(tmp_path / "t.json", events))
    assert (run.numpy("start_ns") - run.numpy("launch_ns")).tolist() == [10_000]
    assert notes(tmp_path, events, "correlation id") == []


def test_a_kernel_that_seems_to_begin_before_its_launch_keeps_it(tmp_path: Path) -> None:
    run = parse(write(tmp_path / "t.json", [launch(21, 5), kernel(20, 5)]))
    assert (run.numpy("start_ns") - run.numpy("launch_ns")).tolist() == [-1_000]


def test_a_gpus_run_of_which_only_the_host_was_recorded_says_so(tmp_path: Path) -> None:
    dims = {"Input Dims": [[4, 4], [4, 4]], "Input type": ["float", "float"]}
    operator = event("aten::mm", "cpu_op", 0, 8, tid=7, **{"External id": 1, **dims})
    assert len(notes(tmp_path, [operator, launch(1, 1), launch(3, 2)], "2 CUDA or HIP launches")) == 1
    query = event("cudaGetDeviceCount", "cuda_runtime", 1, 1, tid=7, correlation=3)
    assert notes(tmp_path, [operator, query], "CUDA or HIP") == []
