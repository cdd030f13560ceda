"""``moetrace simulate`` as a user has it."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from moetrace.run import Run
from tests.conftest import Answer

LENGTHS = ("--input-len", "2048", "--output-len", "512")
WORKLOAD = ("--batch", "16", *LENGTHS)
GPT_OSS = ("simulate", "--model", "gpt-oss-20b", *WORKLOAD)


def test_one_simulation_shows_measures_families_steps_memory_and_assumptions(
    call: Callable[..., Answer],
) -> None:
    answer = call(*GPT_OSS, "--hw", "h100-sxm-x4", "--set", "tp=4")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0].startswith("gpt-oss-20b on h100-sxm-x4: batch 16, 2,048 tokens in, 512 out, tp=4")
    starts = {line.split("  ")[0] for line in lines}
    assert {"TTFT", "TPOT", "ITL", "throughput, in + out", "experts", "communication"} <= starts
    assert {"decode 1", "decode 511", "weights", "KV cache at the end", "Memory: it fits"} <= starts
    assert "(E2E - TTFT) / (batch x output_len - 1)" in answer.out
    assert "Assumptions:" in lines and "unanchored" in answer.out


def test_the_alias_is_the_set_option(call: Callable[..., Answer]) -> None:
    machine = ("--hw", "h100-sxm-x4")
    assert call(*GPT_OSS, *machine, "--tp", "4", "--n-a", "2") == call(
        *GPT_OSS, *machine, "--set", "tp=4", "--set", "n_a=2"
    )


def test_json_has_every_measure_with_its_formula_and_interval(call: Callable[..., Answer]) -> None:
    document = json.loads(call(*GPT_OSS, "--hw", "h100-sxm", "--json").out)
    assert document["schema"] == "moetrace.simulations/1" and document["written"] == []
    (facts,) = document["simulations"]
    assert facts["schema"] == "moetrace.simulation/1"
    assert facts["workload"] == {"batch": 16, "input_len": 2048, "output_len": 512}
    for name in ("ttft", "tpot", "itl", "e2e", "throughput", "output_throughput", "user_speed"):
        measure = facts["metrics"][name]
        assert measure["low"] < measure["value"] < measure["high"]
        assert measure["formula"] and measure["unit"] in ("s", "tokens/s")
    assert set(facts["memory"]) == {
        "weight_bytes", "kv_bytes", "framework_bytes", "needed_bytes", "capacity_bytes", "fits", "rank",
        "rank_capacity_bytes", "largest_batch",
    }  # fmt: skip


def test_several_scenarios_stand_side_by_side(call: Callable[..., Answer]) -> None:
    answer = call(
        "simulate", "--model", "deepseek-v3", "--hw", "h100-sxm-x8,cs3", "--tp", "8", "--n-a", "8,4",
        "--batch", "1,16", "--input-len", "1024", "--output-len", "64",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    rows = [line.split() for line in answer.out.splitlines() if line[:1].isdigit()]
    assert len(rows) == 2 * 2 + 2 * 2 * 2  # two batches and two n_a; on the wafer also two placements
    assert {(row[1], "NO" in row, "wafers" in row) for row in rows} == {
        ("h100-sxm-x8", True, False),
        ("cs3", False, True),
    }
    assert "Definitions:" in answer.out


def test_the_predicted_run_is_written_and_read_by_the_other_verbs(
    call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(*GPT_OSS, "--hw", "h100-sxm", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    (folder,) = (tmp_path / "out").iterdir()
    run = Run.load(folder)
    assert (run.meta.kind, run.meta.hardware, len(run.meta.steps)) == ("predicted", "h100-sxm", 4)
    assert call("attribute", folder).status == 0
    assert call("export", folder, "--perfetto", "-o", tmp_path / "t.json").status == 0
    assert call("replay", folder, "--hw", "h200-sxm", "--set", "n_a=2").status == 0
    again = call(*GPT_OSS, "--hw", "h100-sxm", "-o", tmp_path / "out")
    assert again.status == 2 and "--force" in again.err


def test_a_config_file_is_a_model(call: Callable[..., Answer], tmp_path: Path) -> None:
    from moetrace.model import load_config

    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**load_config("olmoe-1b-7b"), "num_experts_per_tok": 2}))
    answer = call("simulate", "--model", file, "--hw", "h100-sxm", *WORKLOAD, "--json")
    (facts,) = json.loads(answer.out)["simulations"]
    assert (facts["model"], facts["distinct"]["topk"]) == ("mine", 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "gpt-oss-2", "--hw", "h100-sxm", *WORKLOAD), "did you mean 'gpt-oss-20b'"),
        (("--model", "gpt-oss-20b", "--hw", "h100", *WORKLOAD), "unknown"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm-x4", *WORKLOAD), "tp=4"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *WORKLOAD, "--set", "batch=4"), "given twice"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *WORKLOAD, "--set", "context=4"), "output lengths"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *WORKLOAD, "--set", "n_a=99"), "at most 32"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *WORKLOAD, "--set", "nope=1"), "unknown knob"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm"), "add --batch N"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *LENGTHS, "--batch", "0"), "batch=0"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", "--input-len", "x"), "expected a whole number"),
        (("--model", "gpt-oss-20b", "--hw", "h100-sxm", *LENGTHS, "--batch", "900000"), "at most"),
        (("--model", "nowhere/config.json", "--hw", "h100-sxm", *WORKLOAD), "no model config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_use_is_one_line_and_status_two(
    arguments: tuple[str, ...], says: str, call: Callable[..., Answer]
) -> None:
    answer = call("simulate", *arguments)
    assert (answer.status, answer.out, len(answer.error_lines)) == (2, "", 1)
    assert says in answer.err


def test_machines_lengths_and_prices_side_by_side(call: Callable[..., Answer]) -> None:
    answer = call(
        "simulate", "--model", "deepseek-v2-lite", "--hw", "h100-sxm,h100-sxm-x8,cs3", "--tp", "8", "--batch", "8",
        "--input-len", "128,2048", "--output-len", "64", "--n-a", "6,4", "--price-per-hour", "2.5",
        "--price-per-hour", "cs3=60", "--json",
    )  # fmt: skip
    found = json.loads(answer.out)["simulations"]
    assert len(found) == 2 * 2 * (1 + 1 + 2)  # lengths, n_a, and two placements on the wafer
    prices = {(f["hardware"], f["economics"]["price_per_hour"], f["economics"]["devices"]) for f in found}
    assert prices == {("h100-sxm", 2.5, 1), ("h100-sxm-x8", 2.5, 8), ("cs3", 60.0, 1)}
    assert {point["value"] for f in found for point in f["accuracy"]} == {"4"}
    table = call(
        "simulate", "--model", "deepseek-v2-lite", "--hw", "h100-sxm", *WORKLOAD, "--price-per-hour", "3"
    )
    assert "cost: " in table.out and "energy: " in table.out and "largest batch that fits" in table.out
    several = (*GPT_OSS, "--hw", "h100-sxm", "--n-a", "4,3")
    assert "  cost/M tokens = price of a device" in call(*several, "--price-per-hour", "3").out
    assert "cost/M" not in call(*several).out
    for wrong in ("0", "x", "b200=2"):
        assert "price-per-hour" in call(*GPT_OSS, "--hw", "h100-sxm", "--price-per-hour", wrong).err


def test_a_steady_load_with_drafted_tokens(call: Callable[..., Answer]) -> None:
    drafted = ("--draft", "qwen3-0.6b", "--draft-tokens", "3", "--acceptance", "0.7")
    answer = call(
        "simulate", "--model", "qwen3-8b", "--hw", "h100-sxm", *WORKLOAD, "--serving", "continuous", *drafted
    )
    assert answer.status == 0, answer.err
    assert (
        "mixed step" in answer.out
        and "a steady load" in answer.out
        and "drafted one after another" in answer.out
    )
    bare = call("simulate", "--model", "qwen3-8b", "--hw", "h100-sxm", *WORKLOAD, *drafted[:2])
    assert bare.status == 2 and "acceptance" in bare.err


def test_as_a_process_it_takes_no_longer_than_promised(process: Callable[..., Answer]) -> None:
    """Processor time, which does not depend on what else the machine does; on an idle one the wall clock shows the same."""

    def once() -> float:
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = process("simulate", "--model", "deepseek-v3", "--hw", "h100-sxm-x8", "--tp", "8", *WORKLOAD)
        assert answer.status == 0, answer.err
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime

    assert min(once() for _ in range(3)) < 1.5


def test_each_machine_says_what_it_gains_from_fewer_active_experts(call: Callable[..., Answer]) -> None:
    asked = ("--hw", "h100-sxm,cs3", "--n-a", "4,2", *WORKLOAD)
    answer = call("simulate", "--model", "gpt-oss-20b", *asked)
    lines = answer.out.splitlines()
    at = lines.index("TPOT over that of n_a 4, all else equal")
    rows = [line.split() for line in lines[at + 3 : at + 6]]
    assert [(row[0], row[1]) for row in rows] == [
        ("h100-sxm", "-"), ("cs3", "placement=spread"), ("cs3", "placement=own")
    ]  # fmt: skip
    done = json.loads(call("simulate", "--model", "gpt-oss-20b", *asked, "--json").out)["simulations"]
    tpot = {s["scenario"]["n_a"]: s["metrics"]["tpot"]["value"] for s in done if s["hardware"] == "h100-sxm"}
    assert float(rows[0][-1]) == round(tpot["2"] / tpot["4"], 2) < 1
    assert "all else equal" not in call(*GPT_OSS, "--hw", "h100-sxm,h200-sxm", "--n-a", "2").out


def test_what_does_not_fit_is_said_beside_the_times(call: Callable[..., Answer]) -> None:
    big = call("simulate", "--model", "mixtral-8x7b", "--hw", "h100-sxm", *WORKLOAD).out.splitlines()
    assert big[0].endswith("(no measurement behind it): IT DOES NOT FIT, see memory")
    assert "Memory: IT DOES NOT FIT" in big
    assert call(*GPT_OSS, "--hw", "h100-sxm").out.splitlines()[0].endswith("(no measurement behind it)")
