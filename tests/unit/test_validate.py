"""The ledger of published figures: what is read, how statements are judged, and that no row is lost."""

from __future__ import annotations

import csv
import math
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetrace.cost import price
from moetrace.cost.bounds import cache_warm
from moetrace.cost.price import PriceContext
from moetrace.cost.table import read_ops
from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.op import Op
from moetrace.ops import works
from moetrace.routing import uniform_distinct
from moetrace.validate import entries, summary, validate
from moetrace.validate.entry import (
    CONTRADICTED,
    NOT_SIMULATED,
    PARTLY,
    PREDICTED,
    REPRODUCED,
    Estimate,
    RefusalError,
    printed_range,
    scored,
    stated,
)
from moetrace.validate.figure import COLUMNS, Figure, read, shipped
from moetrace.validate.ledger import LEDGER_SCHEMA, table_of
from moetrace.validate.measured import measured_table
from moetrace.validate.simulating import MACHINES, machine_of, model_of
from moetrace.validate.sources import SOURCES, kernels
from moetrace.validate.sources.moe_bench import variants
from tests.conftest import REPO


def figure(**given: str) -> Figure:
    return Figure(**{**dict.fromkeys(COLUMNS, ""), "id": "FM8-9", "metric": "throughput_reported", **given})


NATIVE = figure(
    id="FM8-1",
    model="DeepSeek-V2-Lite",
    hw="A800-80G-PCIe",
    n_gpus="2",
    batch="2",
    input_len="64",
    output_len="64",
    n_a="6",
    value="479",
)


def test_an_id_that_is_taken_is_refused_and_the_same_figure_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shipped()[0]
    monkeypatch.setattr(sys.modules[Figure.__module__], "shipped", lambda: [first])
    for given, said in ((replace(first, source="a copy"), None), (replace(first, value="1"), "already")):
        with (tmp_path / "mine.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerow(asdict(given))
        if said is None:
            assert validate(tmp_path / "mine.csv").num_rows == validate().num_rows
        else:
            with pytest.raises(ScenarioError, match=f"{first.id} is the id of another figure already"):
                validate(tmp_path / "mine.csv")


def test_every_shipped_figure_has_a_source_and_a_mapping() -> None:
    figures = shipped()
    kinds = {kind for source in SOURCES for kind in source.KINDS}
    assert len({f.id for f in figures}) == len(figures) > 300
    assert all(f.source and f.metric and f.how_read for f in figures)
    assert {f.kind for f in figures} <= kinds


def test_each_kind_has_one_mapping() -> None:
    kinds = [kind for source in SOURCES for kind in source.KINDS]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("-15..-20", -20, -15),
        ("+5..+15", 5, 15),
        ("<=30", 0, 30),
        (">2", 2, math.inf),
        (">120", 120, math.inf),
        ("~60", 45, 75),
        ("-50", -62.5, -37.5),
        ("lower", -math.inf, 0),
    ],
)
def test_what_a_printed_text_allows(text: str, low: float, high: float) -> None:
    assert printed_range(text) == (low, high)


def test_words_that_say_no_range_are_refused() -> None:
    with pytest.raises(RefusalError, match="sudden rise"):
        printed_range("sudden rise")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([20.0, 30.0], REPRODUCED),
        ([25.0, 40.0], PARTLY),
        ([50.0], PARTLY),
        ([12.0], PARTLY),
        ([70.0], CONTRADICTED),
        ([-25.0], CONTRADICTED),
    ],
)
def test_a_statement_is_judged_by_all_its_settings(values: list[float], verdict: str) -> None:
    estimate = Estimate(values[0], None, None, "h100-sxm", "")
    assert stated(figure(value="20..30"), values, estimate).verdict == verdict


def test_an_entry_knows_its_error_and_whether_the_interval_holds() -> None:
    entry = scored(figure(value="100"), Estimate(0.12, 0.09, 0.15, "h100-sxm", ""), per=1e-3)
    assert entry.error == pytest.approx(0.2) and entry.within is True
    entry = scored(figure(value="100"), Estimate(0.12, 0.11, 0.15, "h100-sxm", ""), per=1e-3)
    assert entry.within is False


def test_fewer_experts_are_scored_as_throughput_and_as_ratio() -> None:
    fewer = replace(NATIVE, id="FM8-2", n_a="3", value="583")
    found = list(entries([NATIVE, fewer]))
    assert [(e.figure.id, e.metric, e.verdict) for e in found] == [
        ("FM8-1", "throughput_reported", PREDICTED),
        ("FM8-2", "throughput_reported", PREDICTED),
        ("FM8-2", "throughput_over_native_n_a", PREDICTED),
    ]
    ratio = found[2]
    first, second = found[0].estimate, found[1].estimate
    assert ratio.estimate and first and second
    assert ratio.estimate.value == pytest.approx(second.value / first.value)
    assert ratio.estimate.value > 1
    assert ratio.measured == pytest.approx(583 / 479) and ratio.within is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"batch": ""}, "not stated: batch"),
        ({"model": "GPT-5"}, "model 'GPT-5' is not in the catalogue"),
        ({"hw": "TPU v5"}, "there is no profile of 'TPU v5'"),
        ({"n_gpus": "3"}, "3"),
        ({"value": "fast"}, "is not a number"),
        ({"id": "NEW-1"}, "no mapping for figures NEW"),
        ({"id": "LMS-1", "metric": "eplb_speedup"}, "no prediction is made of eplb_speedup"),
        ({"id": "MIB-1", "metric": "x", "other_knob": "more draft tokens; speculative"}, "accepted"),
    ],
)
def test_what_cannot_be_simulated_says_why(change: dict[str, str], why: str) -> None:
    (entry,) = entries([replace(NATIVE, **change)])
    assert entry.verdict == NOT_SIMULATED and why in entry.note


REPORT = replace(
    NATIVE, id="LMS-1", model="DeepSeek-R1", hw="H100-SXM", n_gpus="72", parallelism="decode EP72", precision="FP8",
    batch="32/GPU", input_len="", output_len="", other_knob="TBO on vs off", metric="throughput_change", value="-27", unit="%",
)  # fmt: skip


def test_reports_of_large_expert_parallelism_take_from_each_other_what_they_leave_open() -> None:
    prefill = replace(
        REPORT, id="LMS-2", n_gpus="32", parallelism="prefill EP32", batch="", input_len="1024", other_knob="EPLB",
        metric="prefill_throughput_per_node", value="57674", unit="tokens/s/node",
    )  # fmt: skip
    change, rate = entries([REPORT, prefill])
    assert change.estimate and "ep=72" in change.estimate.setting and "eplb=32" in change.estimate.setting
    assert "2,000 tokens is taken" in change.note and change.estimate.value < 0
    assert rate.estimate and "--batch 512 --input-len 1024" in rate.estimate.setting
    assert "16,384 tokens per GPU" in rate.note and 0.5 < rate.estimate.value / 57674 < 2


def test_the_ledger_has_a_row_for_each_entry_and_the_summary_counts_them() -> None:
    marked = replace(NATIVE, id="FM8-3", other_knob="QUEUED", batch="4")
    accuracy = replace(NATIVE, id="FMA-1", metric="accuracy_avg")
    ledger = table_of(list(entries([NATIVE, marked, accuracy, replace(NATIVE, id="OTH-1", metric="mfu")])))
    assert ledger.schema == LEDGER_SCHEMA and ledger.num_rows == 4
    found = summary(ledger)
    whole = found["all"]
    counts = [whole[name] for name in ("rows", "predicted", "marked", "carried", "not_simulated")]
    assert counts == [4, 2, 1, 1, 1]
    assert whole["median_error"] == pytest.approx(abs(ledger.column("error")[0].as_py()))
    assert sum(r["rows"] for r in found["reasons"]) == 1
    assert {g["name"].split(":")[0] for g in found["groups"]["source"]} == {"FM8", "FMA", "OTH"}


def test_a_machine_of_several_gpus_is_its_profile_repeated() -> None:
    assert machine_of("A800-80G-PCIe", 2).gpus == 2
    assert [machine_of(name).name for name in ("H20-96G", "H200 (CoreWeave)", "H100")] == [
        "h20",
        "h200-sxm",
        "h100-sxm",
    ]
    assert model_of("DeepSeek-V3/R1") == "deepseek-v3"
    assert all(machine_of(name) for name in ("WSE-2", "Cerebras CS-3 (cloud)")) and len(MACHINES) > 10


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"id,metric\nA-1,x\n", "no column source"),
        (b"\xff\xfe\x00", "cannot be read"),
        (
            (",".join(COLUMNS) + "\n" + "," * (len(COLUMNS) - 1) + "\n").encode(),
            "line 2: a figure needs an id",
        ),
        ((",".join(COLUMNS) + "\nA-1,x\n").encode(), "line 2: a figure needs an id and a metric"),
    ],
    ids=["columns", "bytes", "empty", "short"],
)
def test_a_bad_table_of_figures_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=why):
        read(path)


def test_measured_ops_are_scored_by_row_and_flagged_ones_marked(tmp_path: Path) -> None:
    path = tmp_path / "gemm.parquet"
    table = {
        "op_name": ["gemm"] * 4,
        "gemm_dtype": ["bfloat16"] * 4,
        "m": [16, 16, 16, -1],
        "n": [4096] * 4,
        "k": [4096] * 4,
        "latency": [0.012] * 4,
        "system": ["h100_sxm", "h100_sxm", "tpu_v5", "h100_sxm"],
        "quality_flag": [0, 1, 0, 0],
    }
    pq.write_table(pa.table(table), path)
    ledger = measured_table(path)
    assert ledger.schema == LEDGER_SCHEMA
    rows = ledger.to_pylist()
    assert [r["verdict"] for r in rows] == [PREDICTED, PREDICTED, NOT_SIMULATED, NOT_SIMULATED]
    assert rows[0]["error"] == pytest.approx(rows[0]["predicted"] / 0.012 - 1)
    assert rows[2]["note"] and "no profile of 'tpu-v5'" in rows[3]["note"]
    assert summary(ledger)["all"]["marked"] == 1
    pq.write_table(pa.table({"op_name": ["gemm"]}), path)
    with pytest.raises(ScenarioError, match="expected a column latency"):
        measured_table(path)


PUBLIC = {
    "framework": "SGLang",
    "kernel_source": "k",
    "system": "h100_sxm",
    "quality_flag": 0,
    "latency": 0.5,
}
DEEPEP = {"node_num": 2, "hidden_size": 7168, "num_token": 64, "num_topk": 8, "num_experts": 256}
TABLES = {
    "moe_perf": ({
        "moe_dtype": "bfloat16", "num_tokens": 16, "hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128,
        "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "balanced", "aic_version": "0.5",
    }, ["experts"]),
    "attention": ({
        "batch_size": 4, "isl": 1, "step": 1023, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "kv_cache_dtype": "bfloat16", "window_size": 0.0,
    }, ["attention"]),
    "bmm": ({"bmm_dtype": "bfloat16", "op_name": "mla_gen_pre", "num_heads": 16, "num_tokens": 8}, ["batched_gemm"]),
    "nccl": ({"nccl_dtype": "half", "op_name": "all_gather", "num_gpus": 8, "message_size": 4096}, ["all_gather"]),
    "custom": ({"allreduce_dtype": "bfloat16", "num_gpus": 8, "message_size": 4096}, ["all_reduce"]),
    "deepep": ({**DEEPEP, "dispatch_avg_t_us": 20.0, "combine_avg_t_us": 30.0}, ["moe_dispatch", "moe_collect"]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLES))
def test_public_tables_are_scored_as_they_are_calibrated_on(name: str, tmp_path: Path) -> None:
    row, families = TABLES[name]
    rows = [{**PUBLIC, **row}, {**PUBLIC, **row, "quality_flag": 2}, {**PUBLIC, **row, "system": "tpu_v5"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    ledger = measured_table(tmp_path / f"{name}.parquet")
    assert ledger.schema == LEDGER_SCHEMA and ledger.num_rows == 3 * len(families)
    scored = [r for r in ledger.to_pylist() if r["verdict"] == PREDICTED]
    assert sorted({r["family"] for r in scored}) == sorted(families) and len(scored) == 2 * len(families)
    assert all(
        0 <= r["lower_bound"] < r["predicted"] and r["low"] < r["predicted"] < r["high"] for r in scored
    )
    found = summary(ledger)
    assert found["all"]["marked"] == len(families)
    assert [one["family"] for one in found["intervals"] if one["decade"] is None] == sorted(families)
    assert all(one["rows"] == 1 for one in found["intervals"])


def test_a_row_that_beats_its_bound_is_reported_with_its_cause_unless_it_is_warm(tmp_path: Path) -> None:
    row = {**PUBLIC, **TABLES["moe_perf"][0], "moe_dtype": "fp8_block", "latency": 1e-6}
    big = {**row, "hidden_size": 7168, "inter_size": 2048, "num_experts": 256}
    small = {**row, "moe_tp_size": 8, "num_tokens": 1}
    pq.write_table(pa.Table.from_pylist([big, small, {**big, "quality_flag": 1}]), tmp_path / "moe.parquet")
    ledger = measured_table(tmp_path / "moe.parquet")
    assert [(r["warm"], r["beaten"]) for r in ledger.to_pylist()] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    (one,) = summary(ledger)["beaten"]
    assert (
        (one["rows"], one["family"]) == (1, "experts") and "grouped top-k" in one["why"] and one["least"] < 1
    )
    from moetrace.report.ledger import ledger_report

    titles = [getattr(block, "title", "") for block in ledger_report(summary(ledger))]
    assert any("beat a lower bound" in title for title in titles)


def test_rows_of_types_that_are_not_known_stay_in_the_ledger(tmp_path: Path) -> None:
    rows = [{**PUBLIC, **TABLES["moe_perf"][0], "moe_dtype": dtype} for dtype in ("bfloat16", "fp3")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "moe.parquet")
    assert [r["verdict"] for r in measured_table(tmp_path / "moe.parquet").to_pylist()] == [
        PREDICTED,
        NOT_SIMULATED,
    ]


def test_a_table_of_ones_own_has_seconds(tmp_path: Path) -> None:
    own = {
        "kind": ["gemm"],
        "dtype": ["bf16"],
        "m": [8],
        "n": [64],
        "k": [64],
        "seconds": [1e-5],
        "hardware": ["h100-sxm"],
    }
    pq.write_table(pa.table(own), tmp_path / "own.parquet")
    (row,) = measured_table(tmp_path / "own.parquet").to_pylist()
    assert row["measured"] == pytest.approx(0.01) and row["family"] == "dense_gemm" and row["tokens"] == 8


def test_cells_that_do_not_fit_are_left_out() -> None:
    """MIB-0017: 32 Mixtral experts of full width are 360 GB in 16 bits, four H100s have 320."""
    bench = figure(id="MIB-17", model="Mixtral-8x7B variant", hw="H100-SXM5-80GB", n_gpus="4")
    narrow, wide = (1792, 32, 1), (14336, 32, 1)
    assert [len(cell) for cell in variants._cells(bench, [(wide,), (narrow,), (narrow, wide)])] == [1]
    with pytest.raises(RefusalError, match="none of its variants fits"):
        variants._cells(bench, [(wide,)])


def test_drafts_are_held_only_against_what_acceptance_does_not_decide() -> None:
    more = figure(id="MIB-32", model="Qwen3-30B-A3B", hw="H100-SXM5-80GB", value="monotone decrease",
                  metric="throughput_vs_draft_tokens", other_knob="more draft tokens")  # fmt: skip
    other = replace(more, metric="throughput_lag_draft0.6B", value="25..35")
    found = list(entries([more, other]))
    # Five to eight tokens at acceptance 0.9 change next to nothing.
    assert found[0].verdict in (REPRODUCED, PARTLY)
    assert found[1].verdict == NOT_SIMULATED
    assert "acceptance 0.5, 0.7 and 0.9" in found[0].note


def test_a_kernels_speed_is_of_what_its_authors_count() -> None:
    """FlashAttention-3 counts half of the FLOPs under a causal mask: the op's pairs and one more for each token."""
    full, causal = (next(f for f in shipped() if f.id == name) for name in ("FA3-0013", "FA3-0019"))
    found = list(entries([full, causal]))
    assert [e.verdict for e in found] == [PREDICTED, PREDICTED]
    assert kernels.prompt_of(full)["pairs"] == 32 * 512 * 512
    assert kernels.prompt_of(causal)["pairs"] == 32 * 512 * 513 / 2
    assert all(0.7 < 1 + (e.error or 0.0) < 1.3 and e.figure.unit == "TFLOP/s" for e in found)


def test_a_kernel_alone_is_without_its_launch() -> None:
    """DeepGEMM's 206 TFLOP/s of 64 x 2112 x 7168 are 9.4 us, of which the launch alone would be a third."""
    figure = next(f for f in shipped() if f.id == "DGM-0001")
    (found,) = entries([figure])
    assert found.estimate and found.estimate.hardware == "h800-sxm"
    hw, op = load_hardware("h800-sxm"), Op.of("gemm", "fp8_block", m=64, n=2112, k=7168)
    whole = price(works([op]), hw, context=PriceContext(engine="trtllm"))[0].expected_s
    alone = 2 * 64 * 2112 * 7168 / (found.estimate.value * 1e12)
    assert 3e-6 < whole - alone < 8e-6


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("FA3-0001", {"other_knob": ""}, "heads and their width"),
        ("FA3-0001", {"batch": ""}, "batch"),
        ("DGM-0001", {"other_knob": "n=2112"}, "the matrix's sizes"),
    ],
)
def test_a_kernel_whose_sizes_are_not_stated_is_refused(name: str, change: dict[str, str], why: str) -> None:
    figure = replace(next(f for f in shipped() if f.id == name), **change)
    found = list(entries([figure]))
    assert [e.verdict for e in found] == [NOT_SIMULATED] and why in found[0].note


def stated_kernel(
    text: str = "moe_module bf16 tokens=64 hidden=2816 inter=704 experts=128 topk=8", **given: str
) -> Figure:
    told = {"id": "PRK-1", "hw": "H200", "value": "384.1", "unit": "us", "metric": "kernel_latency"}
    return figure(**{**told, "other_knob": f"engine=vllm; cache=warm; op={text}", **given})


def test_a_kernel_that_is_written_out_is_priced_as_its_row_says() -> None:
    (found,) = entries([stated_kernel()])
    hw = load_hardware("h200-sxm")
    distinct = uniform_distinct(128, 8, 64)
    op = Op.parse(f"moe_module bf16 tokens=64 hidden=2816 inter=704 experts=128 topk=8 distinct={distinct}")
    seconds = price(works([op]), hw, context=PriceContext(engine="vllm", cache="warm"))[0].expected_s
    assert found.estimate and found.estimate.value == pytest.approx(1e6 * seconds, rel=1e-6)
    assert "experts@vllm" in found.note and "uniform routing" in found.note


def test_a_kernels_time_and_its_speed_are_one_prediction() -> None:
    (time,) = entries([stated_kernel("gemm bf16 m=16 n=8192 k=8192", value="50")])
    (speed,) = entries([stated_kernel("gemm bf16 m=16 n=8192 k=8192", value="40", unit="TFLOP/s")])
    assert time.estimate and speed.estimate and speed.estimate.low and time.estimate.high
    flops = 2 * 16 * 8192 * 8192
    assert speed.estimate.value == pytest.approx(flops / time.estimate.value * 1e-6)
    assert speed.estimate.low == pytest.approx(flops / time.estimate.high * 1e-6)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"other_knob": "op=gemm bf16 m=1 n=8 k=8"}, "not stated: engine"),
        ({"unit": "GB/s"}, "its unit, 'GB/s'"),
        ({"other_knob": "engine=vllm; op=gemm bf16 m=1 n=8"}, "lacks the dim k"),
        ({"hw": "GTX 480"}, "no profile of 'GTX 480'"),
    ],
)
def test_a_kernel_that_is_not_all_stated_is_refused(given: dict[str, str], why: str) -> None:
    (found,) = entries([stated_kernel(**given)])
    assert found.verdict == NOT_SIMULATED and why in found.note


def fits_the_cache(row: Figure) -> bool:
    """Whether what the op of a kernel's row touches fits the last-level cache of its GPU, by the profile."""
    told = dict(part.partition("=")[::2] for part in row.other_knob.split("; "))
    table = {"op": [told["op"]]} | ({"routing": ["uniform"]} if told["op"].startswith("moe") else {})
    ops = read_ops(pa.table(table), told["engine"]).ops
    return bool(cache_warm(works(ops), machine_of(row.hw)).all())


def test_printed_times_of_kernels_that_fit_the_cache_are_left_out_unless_it_was_cold() -> None:
    """Hardly anybody prints whether it was warm (docs/accuracy.md); of what is larger it hardly matters."""
    between = ("all-reduce", "exchange")  # GPUs, whose links decide
    rows = [row for row in shipped() if row.id.startswith("PRK-") and row.model not in between]
    unclear = [row for row in rows if "cache=cold" not in row.other_knob]
    assert len(unclear) > 100 and not [row.id for row in unclear if fits_the_cache(row)]
    # The rule sees what it is to find: 1 MiB of weights, and a whole module of one token less than one of the rows has.
    assert fits_the_cache(stated_kernel("gemm bf16 m=1 n=1024 k=512"))
    assert fits_the_cache(
        stated_kernel("moe_module fp8 tokens=3 hidden=2048 inter=512 experts=256 topk=8", hw="L40S")
    )


def test_a_kind_of_several_sources_says_how_many_there_are() -> None:
    several = [stated_kernel(id=f"PRK-{i}", source=f"engine#{i // 2}") for i in range(4)]
    names = [group["name"] for group in summary(table_of(list(entries(several))))["groups"]["source"]]
    assert names == ["PRK: engine#0 and 1 more"]


def test_the_readme_tells_how_far_off_printed_kernels_are() -> None:
    off: dict[tuple[str, str], list[float]] = {}
    for found in entries([row for row in shipped() if row.kind == "PRK"]):
        assert found.error is not None
        chip = {"B200": "Blackwell", "B300": "Blackwell", "GB200": "Blackwell", "GB300": "Blackwell"}
        name = found.figure.hw.split("-")[0]
        off.setdefault((chip.get(name, name), found.figure.model), []).append(abs(found.error))
    mean = {name: f"{100 * statistics.mean(errors):.0f} %" for name, errors in off.items()}
    median = {name: f"{100 * statistics.median(errors):.0f} %" for name, errors in off.items()}
    new = [("Blackwell", family) for family in ("MoE module", "GEMM", "attention", "MLA")]
    moe, gemm, attention, mla = new
    readme = " ".join((REPO / "README.md").read_text().split())
    assert (
        f"MoE modules are off by {mean['H200', 'MoE module']} on H200 (mean of {len(off['H200', 'MoE module'])}), "
        f"{mean['L40S', 'MoE module']} on L40S and {mean[moe]} on B200 and B300 (of {len(off[moe])}; median {median[moe]}); "
        f"there GEMMs are off by {mean[gemm]} (of {len(off[gemm])}), attention by {mean[attention]} "
        f"(of {len(off[attention])}; median {median[attention]}) and MLA by {mean[mla]} (of {len(off[mla])})"
    ) in readme
