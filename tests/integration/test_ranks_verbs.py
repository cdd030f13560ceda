"""Every verb that takes a RUN takes the directory that `parse` wrote of many ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetrace.parse.ranks import parse_ranks, rank_files
from tests.made import grid_traces, write

SENDS = (("allreduce", 2, 1, 4096), ("alltoall", 2, 2, 1024))
CLOCKS = [(0.0, 0.0), (5000.0, 2e-5), (-300.0, -1e-5), (70.0, 0.0)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    (root / "traces").mkdir()
    made = grid_traces(4, SENDS, CLOCKS, lambda step, i, r: 50.0 + 20 * r + step % 3, steps=8, stated=True)
    for rank, events in enumerate(made):
        write(root / "traces" / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 4})
    parse_ranks(rank_files(root / "traces"), root / "out", jobs=1, options={"hardware": "h100-sxm-x4"})
    return root / "out"


def test_attribution_has_each_rank_and_the_whole(ranks: Path, call) -> None:
    facts = json.loads(call("attribute", ranks, "--json").out)
    assert facts["device_is"] == "rank" and [d["device"] for d in facts["devices"]] == [0, 1, 2, 3]
    for d in facts["devices"]:
        assert sum(f["busy_s"] for f in d["families"]) == pytest.approx(d["busy_s"])
    whole = {f["family"]: f["busy_s"] for f in facts["families"]}
    for family, seconds in whole.items():  # the whole is the mean rank
        each = [next(f["busy_s"] for f in d["families"] if f["family"] == family) for d in facts["devices"]]
        assert seconds == pytest.approx(sum(each) / 4)
    waits = [
        next(f["busy_s"] for f in d["families"] if f["family"] == "communication") for d in facts["devices"]
    ]
    assert waits[3] == min(waits)  # the slowest rank waits least
    assert (ranks / "attribution.parquet").is_file()
    said = call("attribute", ranks)
    assert (
        said.status == 0
        and "Rank by rank" in said.out
        and "not to be trusted" not in said.out.split("note: 4")[-1]
    )


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("show", (), "Where does a decode step go?"),
        ("show", ("--by", "step"), "Answers"),
        ("replay", ("--hw", "h100-sxm-x4,h200-sxm-x4"), "row 2: 4 ranks; a rank waits"),
        ("doctor", (), "Do ranks wait for each other?"),
    ],
)
def test_other_verbs_take_it(ranks: Path, call, verb: str, more: tuple[str, ...], said: str) -> None:
    answer = call(verb, ranks, *more)
    assert said in answer.out and not answer.err, answer.err


def test_the_page_shows_the_ranks(ranks: Path, call, tmp_path: Path) -> None:
    answer = call("report", ranks, "-o", tmp_path / "r.html")
    assert answer.status == 0, answer.err
    page = (tmp_path / "r.html").read_text()
    assert "Recorded ranks, all steps together" in page and page.count('<td data-v="3">3</td>') >= 1
    assert "all_to_all ranks=2 stride=2" in page and "2, every 2" in page


def test_ranks_against_ranks_and_a_timeline(ranks: Path, call, tmp_path: Path) -> None:
    same = call("diff", ranks, ranks, "--gate", "tpot<+3%")
    assert same.status == 0 and "nothing changed" in same.out
    answer = call("export", ranks, "--perfetto", "-o", tmp_path / "t.json")
    assert answer.status == 0, answer.err
    names = {
        e["args"]["name"]
        for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"]
        if e["name"] == "process_name"
    }
    assert len(names) == 4


def test_what_it_is_not(ranks: Path, call, tmp_path: Path) -> None:
    answer = call("attribute", ranks, "--model", "olmoe-1b-7b")
    assert answer.status == 2 and "is parsed already" in answer.err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ranks.json").write_text('{"schema": "moetrace.ranks/1", "ranks": []}')
    answer = call("show", tmp_path / "broken")
    assert answer.status == 2 and "is not the summary of ranks" in answer.err
    answer = call("replay", ranks, "--hw", "h100-sxm-x4", "-o", ranks / "in")
    assert (answer.status == 2 and "is a run" in answer.err) or "lies in the run" in answer.err
