"""SGLang's expert-distribution files: what they say, and that nothing in them runs."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from moetrace.errors import RunError
from moetrace.record import routing_files
from moetrace.record.routing_files import read_routing
from moetrace.routing import RoutingLog

torch = pytest.importorskip("torch", reason="needs the record extra")


def saved(folder: Path, what: object) -> RoutingLog:
    torch.save(what, folder / "expert_distribution_recorder_1.pt")
    found = read_routing(folder / "expert_distribution_recorder_1.pt")
    assert isinstance(found, RoutingLog)
    return found


def test_counts_by_pass_and_a_ring_buffer_that_was_not_filled(tmp_path: Path) -> None:
    counts = torch.zeros(5, 3, 4, dtype=torch.int32)
    counts[2, 1] = torch.tensor([3, 1, 0, 2])
    counts[3, 1] = torch.tensor([0, 0, 1, 1])
    told = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    routing, _ = saved(tmp_path, told).routing(4, 2)
    assert (routing.steps, routing.layers, routing.ordered) == ((0, 1), (1,), False)
    assert routing.token_counts() == {(0, 1): 3, (1, 1): 1}
    assert routing.distinct() == {(0, 1): 3, (1, 1): 2}


def test_ids_by_token_through_the_map_of_physical_experts(tmp_path: Path) -> None:
    ids = torch.full((2, 3, 8), -1, dtype=torch.int32)
    ids[1, :2, :2] = torch.tensor([[4, 0], [1, 4]])  # the third token is padding; layer 0 has no experts
    mapping = torch.tensor([[0, 1, 2, 3, 3], [0, 1, 2, 3, 3]])
    record = {
        "forward_pass_id": 7,
        "rank": 0,
        "topk_ids_of_layer": ids,
        "input_ids": [1, 2],
        "forward_mode": 2,
    }
    routing, _ = saved(tmp_path, {"records": [record], "last_physical_to_logical_map": mapping}).routing(4, 2)
    assert routing.ordered
    assert [tuple(map(int, row.values())) for row in routing.table().to_pylist()] == [
        (0, 1, 0, 2, 1),
        (0, 1, 1, 1, 1),
        (0, 1, 3, 1, 1),
        (0, 1, 3, 2, 1),
    ]


def test_physical_counts_are_summed_to_logical_ones(tmp_path: Path) -> None:
    record = {"global_physical_count": torch.tensor([[2, 1, 1, 0, 2]]), "rank": 0}
    mapping = torch.tensor([[0, 1, 2, 3, 0]])
    routing, _ = saved(tmp_path, {"records": [record], "last_physical_to_logical_map": mapping}).routing(4, 1)
    assert routing.popularity(0).tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0])


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("harmed"), "harmed"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"records": [Harm()]}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"logical_count": Harm()}, protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(RunError, match=r"not a \.pt file of tensors") as refused:
            read_routing(Path(name))
        assert "\n" not in str(refused.value)
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([1], "holds a list"),
        ({"a": 1}, "neither 'logical_count' nor 'records'"),
        ({"logical_count": [[1]]}, "3 dims"),
        ({"logical_count": torch.zeros(2, 2, dtype=torch.int64)}, "3 dims"),
        ({"logical_count": torch.zeros(2, 2, 2)}, "whole-number"),
        ({"records": [{"rank": 0}]}, "neither ids nor counts"),
        (
            {
                "records": [{"topk_ids_of_layer": torch.tensor([[[9]]])}],
                "last_physical_to_logical_map": torch.tensor([[0]]),
            },
            "physical expert 9 of 1",
        ),
    ],
)
def test_another_pt_file_is_one_line(tmp_path: Path, what: object, said: str) -> None:
    with pytest.raises(RunError, match=said):
        saved(tmp_path, what)


def test_damaged_and_absent_files_are_one_line(tmp_path: Path) -> None:
    torch.save({"logical_count": torch.ones(4, 4, 4, dtype=torch.int32)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pt").write_bytes(whole[:cut])
        with pytest.raises(RunError, match=r"a\.pt"):
            read_routing(tmp_path / "a.pt")
    with pytest.raises(RunError, match="cannot be read"):
        read_routing(tmp_path / "b.pt")


def _map(rows: int, value: int) -> dict[str, Any]:
    counts = [{"global_physical_count": torch.ones(2, 4, dtype=torch.int64)}]
    return {"records": counts, "last_physical_to_logical_map": torch.full((rows, 4), value)}


_LARGE = torch.ones(1, dtype=torch.int64).as_strided((10**5, 10**5, 10), (0, 0, 0))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"logical_count": _LARGE}, "larger than what is stored"),
        ({"logical_count": torch.ones(2, 3, 4, dtype=torch.int64).to_sparse()}, "whole-number tensor"),
        ({"logical_count": torch.ones(2, 3, 4, dtype=torch.complex64)}, "whole-number tensor"),
        ({"logical_count": torch.ones(2, 3, 4, dtype=torch.int64, device="meta")}, "whole-number tensor"),
        (_map(1, 0), "2 layers, the map of physical experts 1"),
        (_map(2, 2**40), "does not fit its counts"),
    ],
)
def test_tensors_that_claim_more_than_they_hold_are_one_line(
    tmp_path: Path, what: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        saved(tmp_path, what)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_files, "_MAX_PT", 1 << 16)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(RunError, match="larger than"):
        read_routing(path)


@pytest.mark.parametrize("old_format", [False, True])
def test_no_damage_of_a_pt_file_gives_another_error(tmp_path: Path, old_format: bool) -> None:
    path, rng = tmp_path / "a.pt", random.Random(0)
    counts = {"logical_count": torch.ones(2, 3, 4, dtype=torch.int64)}
    torch.save(counts, path, _use_new_zipfile_serialization=not old_format)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_routing(path)
        except RunError:
            refused += 1
    assert refused


def test_counts_too_large_to_deal_out_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('{"0": {"0": 100000000000, "1": 100000000000}}')
    log = read_routing(path)
    assert isinstance(log, RoutingLog)
    with pytest.raises(RunError, match=r"more than \d+ choices"):
        log.routing(8, 2)
