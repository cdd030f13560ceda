"""Calibration: known coefficients are found again, what the rows cannot tell is not made up, bad tables are refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moetrace import load, ops
from moetrace.calibrate import _start, calibrate, facts_of, summary
from moetrace.calibrate.fit import Problem, fit, held_out
from moetrace.calibrate.profile import write_profile
from moetrace.calibrate.tables import read_measurements
from moetrace.errors import CalibrationError
from moetrace.hardware import Hardware, load_hardware
from moetrace.machines import gpu
from moetrace.op import Op
from moetrace.run import Run

TRUE = {"t0_s": 2.5e-5, "eta_bw": 0.8, "serial_s": 3e-11}
SHAPES = ((2048, 768, 128), (4096, 1536, 128), (7168, 2048, 256), (4096, 14336, 8))


def machine() -> Hardware:
    hw = load_hardware("h100-sxm")
    own = hw.families["experts"]
    value = {**own.value, "crowded_rows": 0.0, **TRUE}
    return replace(hw, families={**hw.families, "experts": replace(own, value=value)})


def table(noise: float = 0.01) -> pd.DataFrame:
    """Modules of four shapes as a machine of known coefficients would take."""
    rows = [
        {"tokens": t, "hidden": h, "inter": i, "experts": e, "topk": 2}
        for h, i, e in SHAPES
        for t in (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512)
    ]
    costs = gpu.cost(
        ops.works([Op.of("moe_module", **row) for row in rows]), ["experts"], machine(), cache="warm"
    )
    off = np.exp(np.random.default_rng(0).normal(0, noise, len(rows)))
    return pd.DataFrame(rows).assign(kind="moe_module", dtype="bf16", seconds=costs.expected_s * off)


def test_known_coefficients_are_found_and_written(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "mine.csv", index=False)
    found = calibrate([tmp_path / "mine.csv"], "h100-sxm")
    (group,) = found.groups
    assert group.key == "experts" and group.rows == 48 and group.shapes == 4
    for name, value in TRUE.items():
        assert group.fit.value[name] == pytest.approx(value, rel=0.3), name
    assert group.median < 0.03 and 0 < group.interval.error < 0.2
    assert "misaligned" in group.fit.kept  # no width was odd
    assert group.fit.covariance.shape == (len(group.fit.fitted),) * 2
    write_profile(found, "h100-sxm", tmp_path / "mine.toml", "a test")
    hw, base = load_hardware(str(tmp_path / "mine.toml")), load_hardware("h100-sxm")
    assert hw.families["experts"]["t0_s"] == pytest.approx(group.fit.value["t0_s"], rel=0.01)
    assert hw.families["experts"].seen["tokens"] == (1, 512) and hw.families["experts"].seen["topk"] == (2, 2)
    assert hw.families["experts"].seen["local_experts"] == (8, 256)
    assert hw.sources["fitted"] == "a test" and hw.peaks == base.peaks
    assert hw.families["experts:fp8"].value == base.families["experts:fp8"].value
    assert summary(found)["groups"][0]["kept"] == list(group.fit.kept)


def test_what_is_determined_is_told_by_the_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().query("experts == 8").to_csv(tmp_path / "mine.csv", index=False)
    problem = Problem.of("experts", read_measurements(tmp_path / "mine.csv", "h100-sxm"), machine(), "warm")
    one = fit(problem, {})
    # Of one shape a floor is not to be told from a cost per expert.
    assert {"t0_s", "per_expert_s", "per_local_expert_s"} <= set(one.kept) and not np.isnan(
        one.covariance
    ).any()
    monkeypatch.setattr(sys.modules[Problem.__module__], "_PRIOR_SHARE", 100.0)
    assert set(fit(problem, {}).fitted) <= set(one.fitted)  # a strong prior is not a row


def test_what_the_rows_drive_towards_nothing_is_nothing_and_what_they_do_not_touch_stays(
    tmp_path: Path,
) -> None:
    """A step that the rows do not have must not come back with the value that the fit started from."""
    rows = table()
    # A step downwards, which no coefficient allows.
    rows.loc[rows["tokens"] > rows["experts"], "seconds"] *= 0.9
    rows.to_csv(tmp_path / "mine.csv", index=False)
    problem = Problem.of("experts", read_measurements(tmp_path / "mine.csv", "h100-sxm"), machine(), "warm")
    found = fit(problem, {"crowded_rows": 16.0})
    assert {"wide_serial", "misaligned"} <= set(found.kept)
    assert found.value["wide_serial"] == 0.0
    start = problem.form.schema.parameters["misaligned"].start
    assert found.value["misaligned"] == start  # no row has such a width


def test_larger_rows_are_held_out_by_shape_and_bend_no_fit(tmp_path: Path) -> None:
    """They are what the interval of larger ops is drawn from: neither their times nor their shape may have been fitted."""
    rows = table(0.0).sort_values("tokens", kind="stable")
    few = int((rows["tokens"] <= 128).sum())
    slow = (rows["hidden"] == 7168) & (rows["tokens"] <= 128)
    far = rows.assign(
        seconds=rows["seconds"] * np.where(rows["tokens"] > 128, 5.0, 1.0) * np.where(slow, 2.0, 1.0)
    )
    off = []
    for name, times in (
        ("near", rows.assign(seconds=rows["seconds"] * np.where(slow, 2.0, 1.0))),
        ("far", far),
    ):
        times.to_csv(tmp_path / f"{name}.csv", index=False)
        found = read_measurements(tmp_path / f"{name}.csv", "h100-sxm")
        off.append(held_out(Problem.of("experts", found, machine(), "warm"), TRUE, fitted=few))
    near, beyond = off
    assert near[:few] == pytest.approx(beyond[:few])
    assert near[few:] - beyond[few:] == pytest.approx(np.log(5.0))
    large = (rows["hidden"] == 7168).to_numpy()[few:]
    assert np.abs(near[few:][large]).max() < 0.3  # no fit with the shape that is slow up to 128 tokens


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9])
def test_times_in_another_unit_are_refused(scale: float, tmp_path: Path) -> None:
    rows = table()
    rows.assign(seconds=rows["seconds"] * scale).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CalibrationError, match=r"mine\.csv: times are .* x what the law expects"):
        calibrate(str(tmp_path / "mine.csv"), "h100-sxm")


def test_a_table_has_rows_and_each_column_once(tmp_path: Path) -> None:
    """pandas gives the second of a name another name, so that a CSV's own header says."""
    text = table().to_csv(index=False)
    for name, written, words in (
        ("twice", text.replace("inter,", "tokens,", 1), "has several columns tokens"),
        ("empty", text.splitlines()[0] + "\n", "has no rows"),
        ("elsewhere", table().assign(hardware="b200").to_csv(index=False), "no row was measured on h100-sxm"),
    ):
        (tmp_path / f"{name}.csv").write_text(written)
        with pytest.raises(CalibrationError, match=words):
            calibrate([tmp_path / f"{name}.csv"], "h100-sxm")
    with pytest.raises(CalibrationError, match="an int is not a table of measurements: expected its path"):
        calibrate(3, "h100-sxm")  # type: ignore[arg-type]


def test_a_fact_of_the_kernel_is_no_coefficient(tmp_path: Path) -> None:
    """Where an engine's tiles switch is told by the profile: no fit moves it, and it is in what the fit writes."""
    table().assign(engine="vllm").to_csv(tmp_path / "mine.csv", index=False)
    (group, _) = sorted(calibrate([tmp_path / "mine.csv"], "h100-sxm").groups, key=lambda g: "@" not in g.key)
    assert group.key == "experts@vllm" and facts_of(group.key, "experts", load_hardware("h100-sxm")) == {
        "routed_experts": 0,
        "by_cycles": 0,
        "crowded_rows": 0,
        "wide_tokens": 64,
        "untuned_ranks": 0,
    }
    assert group.fit.value["wide_tokens"] == 64 and "wide_tokens" not in group.fit.fitted
    assert facts_of("experts@sglang", "experts", load_hardware("h100-sxm")) == {
        "routed_experts": 0,
        "by_cycles": 1,
        "crowded_rows": 64,
        "wide_tokens": 0,
        "untuned_ranks": 0,
    }


def test_a_fit_ends_where_it_began_if_it_began_at_its_end(tmp_path: Path) -> None:
    """A kernel that never shares a reduction out: a second fit, from what the first one wrote, must not switch that on."""
    never = replace(load_hardware("h100-sxm"), name="made")
    family = never.families["dense_gemm:fp8_block@vllm"]
    family = replace(
        family, value={**family.value, "splits": 1.0, "split_s": 0.01}, named=frozenset(family.value)
    )
    never = replace(never, families={"dense_gemm": family})
    rows = [
        {"m": m, "n": n, "k": k}
        for n in (256, 1024, 4096, 16384)
        for k in (512, 2048, 8192, 32768)
        for m in (1, 8, 64, 256, 512)
    ]
    costs = gpu.cost(
        ops.works([Op.of("gemm", "bf16", **row) for row in rows]), ["dense_gemm"], never, cache="warm"
    )
    made = pd.DataFrame(rows).assign(
        kind="gemm", dtype="bf16", seconds=costs.expected_s, shape=[f"{r['n']}x{r['k']}" for r in rows]
    )
    made.to_csv(tmp_path / "mine.csv", index=False)
    (group,) = calibrate([tmp_path / "mine.csv"], never).groups
    assert group.fit.value["split_s"] == pytest.approx(0.01, rel=0.01) and group.mean < 0.01
    # One that does not say it starts from where such a coefficient starts.
    older = replace(family, named=frozenset(family.value) - {"split_s"})
    assert _start(older, "gemm") == {k: v for k, v in family.value.items() if k != "split_s"}
    assert _start(older, "attention") == {}


def test_any_takes_the_fastest_kernel_where_one_set_holds_for_none(tmp_path: Path) -> None:
    rows = table()
    slow = rows.assign(engine="sglang", kernel="slow", seconds=rows["seconds"] * 6)
    pd.concat([slow, rows.assign(engine="vllm", kernel="fast")]).to_csv(tmp_path / "two.csv", index=False)
    calibration = calibrate([tmp_path / "two.csv"], "h100-sxm")
    found = {group.key: group for group in calibration.groups}
    assert set(found) == {"experts", "experts@sglang", "experts@vllm"}
    one = found["experts"]
    assert one.alone and one.kernels == ("fast",) and one.fit == found["experts@vllm"].fit
    # Half of the rows of all are of the slow one: an interval of 80 % reaches it.
    assert min(one.interval.error_decades) > 4.5 and max(found["experts@vllm"].interval.error_decades) < 0.5
    write_profile(calibration, "h100-sxm", tmp_path / "mine.toml", "a test")
    assert "of the fastest kernel alone" in (tmp_path / "mine.toml").read_text()


def test_too_little_is_not_fitted(tmp_path: Path) -> None:
    few = table()
    few[few["hidden"] == 2048].to_parquet(tmp_path / "few.parquet")
    with pytest.raises(CalibrationError, match="12 rows of 1 shapes: expected at least 30 rows of 3 shapes"):
        calibrate([tmp_path / "few.parquet"], "h100-sxm")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "moe_modul"}, "row 1: unknown kind 'moe_modul': did you mean 'moe_module'"),
        ({"dtype": "bf17"}, "row 1: unknown dtype 'bf17': did you mean 'bf16'"),
        ({"seconds": 0.0}, "row 1: its time is 0 s: expected above 0"),
        ({"hidden": np.nan}, "row 1: moe_module lacks the dim hidden"),
        ({"hardware": "a100-sxm"}, "no row was measured on h100-sxm"),
        ({"tokens": "many"}, "row 1: tokens is not a number"),
        ({"tokens": -4}, "row 1: tokens is below 1"),
        ({"seconds": "abc"}, "row 1: seconds is 'abc': expected a number"),
        ({"run_id": 1}, "unknown dim 'run_id': there are distinct, .*; leave out what is not a dim of an op"),
        ({"time_s": 1e-5}, "column time_s is what moetrace cost predicts, not a measurement"),
        ({"token": 1}, "unknown dim 'token': did you mean 'tokens'"),
        ({"latency": 1.0}, "columns seconds and latency both say the time: leave one out"),
        ({"op": "norm"}, "row 1: op 'norm' lacks a kind or a dtype"),
        ({"engine": "my engine"}, "engine 'my engine': expected a name"),
        ({"engine": "experts:fp8@vllm"}, "engine 'experts:fp8@vllm': expected a name"),
        ({"engine": "名"}, "engine '名': expected a name of letters, digits and _, such as vllm"),
        ({"weight": "full"}, "row 1: weight is 'full': expected a number"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    table().assign(**change).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(CalibrationError, match=said):
        calibrate([tmp_path / "bad.csv"], "h100-sxm")


def test_a_table_of_measurements_is_one_of_cost_with_a_time(tmp_path: Path) -> None:
    """Whatever `moetrace cost` takes: ops as text, public names, ranks that share a module, and times in ms or us."""
    own = table().assign(moe_ep=2, routing="balanced")
    own.to_csv(tmp_path / "own.csv", index=False)
    expected = read_measurements(tmp_path / "own.csv", "h100-sxm")
    assert set(expected.ops.column("local_experts")) == {4, 64, 128}
    assert (expected.ops.column("distinct") == np.minimum(own["experts"] / 2, own["tokens"])).all()
    public = {"tokens": "num_tokens", "inter": "inter_size", "routing": "distribution", "seconds": "latency"}
    named = own.rename(columns=public).assign(latency=own["seconds"] * 1e3)
    named.to_json(tmp_path / "public.jsonl", orient="records", lines=True)
    micro = own.rename(columns={"seconds": "latency_us"}).assign(latency_us=own["seconds"] * 1e6)
    micro.to_parquet(tmp_path / "us.parquet")
    text = pd.DataFrame({"op": [str(expected.ops[i]) for i in range(len(own))], "seconds": own["seconds"]})
    text.to_csv(tmp_path / "text.csv", index=False)
    for name in ("public.jsonl", "us.parquet", "text.csv"):
        found = read_measurements(tmp_path / name, "h100-sxm")
        assert found.seconds == pytest.approx(expected.seconds, rel=1e-9), name
        for dim in ("tokens", "hidden", "inter", "experts", "topk", "local_experts", "distinct"):
            assert (found.ops.column(dim) == expected.ops.column(dim)).all(), (name, dim)


def test_rows_of_a_table_may_say_no_engine_machine_or_weight(tmp_path: Path) -> None:
    """An empty cell is what a column that is not there says: all engines, this machine, one, the shape of the dims."""
    rows = table().assign(engine="vLLM 0.19.0", hardware="h100-sxm", weight=2.0, shape="one")
    empty = {"engine": "any", "hardware": "h100-sxm", "weight": 1.0, "shape": "moe_module 2048 768 128 2"}
    rows.loc[0, list(empty)] = np.nan
    rows.loc[1, "hardware"] = "b200"
    rows.loc[2, "engine"] = "TensorRT-LLM"
    rows.to_csv(tmp_path / "mine.csv", index=False)
    found = read_measurements(tmp_path / "mine.csv", "h100-sxm")
    assert len(found) == len(rows) - 1 and found.row[:3].tolist() == [0, 2, 3]
    for name, value in empty.items():
        assert getattr(found, name)[0] == value
    assert found.engine[:3].tolist() == ["any", "trtllm", "vllm"] and found.weight[1] == 2.0
    assert set(found.shape[1:]) == {"one"}


def test_the_engine_of_a_run_becomes_a_key_or_is_refused(shipped: Path, tmp_path: Path) -> None:
    run = load(shipped).with_meta(hardware="h100-sxm", device_class="gpu")
    run.with_meta(engine="SGLang v0.5.14").save(tmp_path / "good")
    assert set(read_measurements(tmp_path / "good", "h100-sxm").engine) == {"sglang"}
    run.with_meta(engine="our fork = best").save(tmp_path / "odd")
    with pytest.raises(CalibrationError, match="odd: engine 'our fork = best': expected a name"):
        read_measurements(tmp_path / "odd", "h100-sxm")


def test_a_run_of_another_machine_is_refused(shipped: Path, tmp_path: Path) -> None:
    run = load(shipped)
    run.save(tmp_path / "cpu")
    meta = replace(run.meta, hardware="a100-sxm", device_class="gpu")
    Run(meta, run.table()).save(tmp_path / "a100")
    for name, said in (("cpu", "cpu"), ("a100", "a100-sxm")):
        with pytest.raises(CalibrationError, match=f"the run was recorded on {said}, not on h100-sxm"):
            calibrate([tmp_path / name], "h100-sxm")


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CalibrationError, match="cannot be read as CSV, JSON lines or Parquet"):
        calibrate([tmp_path / "a.parquet"], "h100-sxm")
    for name in ("mine.txt", "nothing"):
        with pytest.raises(
            CalibrationError, match=rf"{name}: expected a RUN or a file that ends in \.parquet, \.csv"
        ):
            calibrate([tmp_path / name], "h100-sxm")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(CalibrationError, match="unknown dim 'x'"):
        calibrate([tmp_path / "b.csv"], "h100-sxm")


def test_the_verb_writes_a_profile_or_says_why_not(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "mine.csv", index=False)
    verb = [sys.executable, "-m", "moetrace", "calibrate", "mine.csv", "--hw", "h100-sxm"]
    done = subprocess.run(
        [*verb, "-o", "mine.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "written: mine.toml" in done.stdout and "experts" in done.stdout
    again = subprocess.run(
        [*verb, "-o", "mine.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2 and "Traceback" not in again.stderr


def test_a_limit_that_a_profile_states_is_written_whole(tmp_path: Path) -> None:
    """vLLM's all-reduce ends below 8 MiB: rounded to three digits, one of 8,388,608 bytes would still be its own kernel's."""
    sizes = [{"bytes": float(2**i), "ranks": n} for i in range(8, 28) for n in (2, 8)]
    works = ops.works([Op.of("all_reduce", **size) for size in sizes])
    seconds = gpu.cost(
        works, ["communication"], load_hardware("h100-sxm-x8"), engine="vllm", cache="warm"
    ).expected_s
    pd.DataFrame(sizes).assign(kind="all_reduce", dtype="bf16", engine="vllm", seconds=seconds).to_csv(
        tmp_path / "sent.csv", index=False
    )
    found = calibrate([tmp_path / "sent.csv"], "h100-sxm")
    assert "all_reduce@vllm" in {group.key for group in found.groups}
    write_profile(found, "h100-sxm", tmp_path / "mine.toml", "a test")
    anew, base = (load_hardware(name).families for name in (str(tmp_path / "mine.toml"), "h100-sxm"))
    for key, stated in {
        "all_reduce@vllm": 8388607,
        "all_reduce@sglang": 16777216,
    }.items():  # fitted, and kept
        assert anew[key]["most_bytes"] == base[key]["most_bytes"] == stated
