from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import moetrace

SOURCE = Path(moetrace.__file__)


@pytest.mark.parametrize("name", moetrace.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(moetrace, name)
    assert not isinstance(value, ModuleType)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_types_and_run_time_name_the_same_things() -> None:
    """The TYPE_CHECKING block, the lazy table and __all__ are three lists of one thing."""
    block = next(n for n in ast.parse(SOURCE.read_text()).body if isinstance(n, ast.If))
    typed = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == moetrace._PUBLIC
    assert set(moetrace.__all__) == {*moetrace._PUBLIC, "__version__"}


@pytest.mark.parametrize("name", ["parse", "attribute", "replay", "record", "synthesize", "cost"])
def test_a_verb_stays_a_function_when_its_module_is_imported(name: str) -> None:
    module = importlib.import_module(f"moetrace.{name}")
    assert isinstance(module, ModuleType)
    assert callable(getattr(moetrace, name))
    assert getattr(moetrace, name) is getattr(module, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'parze'"):
        moetrace.parze


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, moetrace; moetrace.MoetraceError;"
        "print({'numpy', 'pyarrow', 'click', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parents[1]
    )
    assert done.stdout.strip() == "set()"


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCE.parent / "py.typed").is_file()


def test_a_machine_may_be_given_by_its_name(shipped: Path, tmp_path: Path) -> None:
    run, h100 = moetrace.load(shipped), moetrace.load_hardware("h100-sxm")
    assert moetrace.attribute(run, "h100-sxm").summary == moetrace.attribute(run, h100).summary
    assert moetrace.attribute(run).hardware == "cpu"
    assert moetrace.replay(run, "h100-sxm").summary == moetrace.replay(run, h100).summary
    assert moetrace.scenarios(["n_a=4"], ["h100-sxm"], run) == moetrace.scenarios(["n_a=4"], [h100], run)
    with pytest.raises(moetrace.MoetraceError, match=r"'h200'.*h200-sxm"):
        moetrace.replay(run, "h200")
    with pytest.raises(moetrace.MoetraceError, match="does not say which machine"):
        moetrace.attribute(run.with_meta(hardware=None))


def test_export_and_knobs_are_in_the_api(shipped: Path, tmp_path: Path) -> None:
    assert moetrace.write_timeline(moetrace.load(shipped), str(tmp_path / "new" / "t.json")) > 800
    assert (tmp_path / "new" / "t.json").stat().st_size > 1000
    assert "n_a" in [name for name, _, _ in moetrace.knob_table()]


def test_the_options_of_load_are_those_of_parse() -> None:
    load, parse = (inspect.signature(f).parameters for f in (moetrace.load, moetrace.parse))
    assert {n: p for n, p in load.items() if n != "path"} == {n: p for n, p in parse.items() if n != "trace"}


def test_the_api_does_the_main_job(shipped: Path) -> None:
    run = moetrace.load(shipped)
    assert isinstance(run, moetrace.Run)
    explained = moetrace.attribute(run, moetrace.load_hardware("cpu"))
    assert explained.table.num_rows == run.num_rows
    plans = moetrace.scenarios(["n_a=4"], [moetrace.load_hardware("h100-sxm")], run)
    predicted = [moetrace.replay(run, hardware, scenario) for hardware, scenario in plans]
    assert [p.run.meta.kind for p in predicted] == ["predicted"]


def test_scenarios_are_replayed_as_they_come(shipped: Path) -> None:
    """The list, one of its pairs, or the scenarios alone; the machine named must have the chip that they were made for."""
    run = moetrace.load(shipped)
    pairs = moetrace.scenarios(["n_a=8,4"], "h100-sxm", run)
    alone = [scenario for _, scenario in pairs]
    expected = [moetrace.replay(run, "h100-sxm", scenario).summary for scenario in alone]
    for given in (pairs, alone):
        assert [p.summary for p in moetrace.replay(run, "h100-sxm", given)] == expected
    assert moetrace.replay(run, "h100-sxm", pairs[1]).summary == expected[1]
    assert moetrace.replay(run, "h100-sxm", []) == []
    sized = moetrace.scenarios(["gpus=2,4", "tp=2,4"], "h100-sxm", run)
    found = moetrace.replay(run, "h100-sxm", sized)
    assert [p.summary["hardware"] for p in found] == ["h100-sxm-x2", "h100-sxm-x4"]
    with pytest.raises(
        moetrace.MoetraceError, match=r"^n_a=8: the scenario was made for h100-sxm, not for h200-sxm"
    ):
        moetrace.replay(run, "h200-sxm", pairs)
    with pytest.raises(moetrace.MoetraceError, match=r"^a list is not a Scenario"):
        moetrace.replay(run, "h100-sxm", [pairs])  # type: ignore[list-item]


def test_a_file_that_exists_is_replaced_only_by_force(shipped: Path, tmp_path: Path) -> None:
    """As on the command line."""
    run = moetrace.load(shipped)
    for write, name in ((moetrace.write_report, "page.html"), (moetrace.write_timeline, "t.json")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(moetrace.MoetraceError, match=f"{name} exists"):
            write(run, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        write(run, tmp_path / name, force=True)
        assert (tmp_path / name).stat().st_size > 1000


def test_a_path_in_the_place_of_a_run_and_text_in_that_of_a_scenario_are_errors_for_humans(
    shipped: Path, tmp_path: Path
) -> None:
    run = moetrace.load(shipped)
    calls = (
        lambda given: moetrace.attribute(given, "cpu"),
        lambda given: moetrace.replay(given, "cs3"),
        lambda given: moetrace.diff(run, given),
        lambda given: moetrace.write_report(given, tmp_path / "page.html"),
        lambda given: moetrace.write_timeline(given, tmp_path / "timeline.json"),
    )
    for call in calls:
        with pytest.raises(moetrace.MoetraceError, match=r"is a path and no Run: moetrace\.load reads one"):
            call(str(shipped))
    load = moetrace.Workload(1, 8, 2)
    for ask in (
        lambda: moetrace.replay(run, "cs3", "n_a=2"),  # type: ignore[arg-type]
        lambda: moetrace.simulate("olmoe-1b-7b", load, "cs3", "n_a=2"),  # type: ignore[arg-type]
    ):
        with pytest.raises(moetrace.MoetraceError, match=r"Scenario\.of\('n_a=2'\) reads it"):
            ask()


@pytest.mark.parametrize(
    "wrong", [None, 3.5, {"a": 1}, [1], pd.DataFrame({"a": [1]}), moetrace.Run], ids=repr
)
def test_a_value_of_another_type_is_an_error_in_words(wrong: Any, shipped: Path, tmp_path: Path) -> None:
    """Whatever the argument: what it is, what it is taken for and where one comes from."""
    run, load = moetrace.load(shipped), moetrace.Workload(1, 8, 2)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("Run", lambda: moetrace.attribute(wrong, "cpu")),
        ("Run", lambda: moetrace.diff(run, wrong)),
        ("Run", lambda: moetrace.replay(wrong, "cpu")),
        ("Run", lambda: moetrace.scenarios("n_a=4", "cpu", wrong)),
        ("Run", lambda: moetrace.make_report(wrong)),
        ("Run", lambda: moetrace.write_report(wrong, tmp_path / "page.html")),
        ("Run", lambda: moetrace.write_timeline(wrong, tmp_path / "t.json")),
        ("Run", lambda: moetrace.write_timeline(run, tmp_path / "t.json", beside=wrong)),
        ("Run", lambda: moetrace.plot_steps(wrong)),
        ("machine", lambda: moetrace.load_hardware(wrong)),
        ("machine", lambda: moetrace.cost({"kind": ["norm"], "dtype": ["bf16"], "tokens": [1], "width": [1]}, wrong)),
        ("Attribution", lambda: moetrace.plot_families(wrong)),
        ("model", lambda: moetrace.load_model(wrong)),
        ("model", lambda: moetrace.simulate(wrong, load, "h100-sxm")),
        ("Workload", lambda: moetrace.simulate("olmoe-1b-7b", wrong, "h100-sxm")),
        ("Workload", lambda: moetrace.synthesize("olmoe-1b-7b", wrong)),
        ("Scenario", lambda: moetrace.replay(run, "cs3", wrong)),
        ("setting", lambda: moetrace.Scenario.of(wrong)),
        ("path", lambda: moetrace.load(wrong)),
    ]  # fmt: skip
    if wrong is not None:
        cases += [
            ("Attribution", lambda: moetrace.write_timeline(run, tmp_path / "t.json", wrong)),
            ("Routing", lambda: moetrace.parse(shipped, routing=wrong)),
        ]
    for what, call in cases:
        with pytest.raises(moetrace.MoetraceError, match=rf"is not an? {what}: |^'a' is a path and no Run"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_run_of_a_prediction_is_named_where_the_prediction_was_given(shipped: Path) -> None:
    predicted = moetrace.replay(moetrace.load(shipped), "cs3")
    with pytest.raises(moetrace.MoetraceError, match=r"^a Prediction is not a Run: its \.run is one$"):
        moetrace.attribute(predicted)  # type: ignore[arg-type]


def test_values_that_are_no_list_and_no_number_are_refused(shipped: Path) -> None:
    run = moetrace.load(shipped)
    for call, words in (
        (lambda: moetrace.diff(run, run, gates=None), "None is not a gate"),
        (lambda: moetrace.diff(run, run, confidence="0.9"), "confidence=0.9: expected a number between 0 and 1"),
        (lambda: moetrace.diff(run, run, confidence=95), "confidence=95"),
        (lambda: moetrace.scenarios(["n_a=4"], [3], run), "an int is not a machine"),
        (lambda: moetrace.make_report(run, machines=3), "an int is not a machine"),
        (lambda: moetrace.validate(3), "an int is not a file"),
        (lambda: moetrace.Op.parse(3), "an int is not an op: expected text such as"),
        (lambda: moetrace.load_model(" "), "no model is named"),
        (lambda: moetrace.Scenario({"n_a": 4}), r"a dict is not a tuple of settings: Scenario\.of"),
        (lambda: moetrace.cost({"kind": "norm"}, "cpu"), "the column kind is 'norm': expected a list of values"),
        (lambda: moetrace.cost({"kind": ["norm"]}, "cpu", engine=None), "unknown value of engine 'None'"),
        (
            lambda: moetrace.simulate("olmoe-1b-7b", moetrace.Workload(1, 8, 2), "cpu", price_per_hour="2"),
            "price_per_hour=2: expected a price",
        ),
    ):  # fmt: skip
        with pytest.raises(moetrace.MoetraceError, match=words):
            call()


def test_an_attribution_of_another_run_is_no_part_of_a_timeline(shipped: Path, tmp_path: Path) -> None:
    run = moetrace.load(shipped)
    other = moetrace.attribute(moetrace.replay(run, "cs3", moetrace.Scenario.of("layers=4")).run)
    with pytest.raises(moetrace.MoetraceError, match=r"of another run: it has .* ops, the run 839"):
        moetrace.write_timeline(run, tmp_path / "t.json", other)


def test_a_run_that_is_saved_is_loaded_and_not_parsed(shipped: Path, tmp_path: Path) -> None:
    moetrace.load(shipped).save(tmp_path / "run")
    with pytest.raises(
        moetrace.MoetraceError, match=r"run is a RUN, which is parsed already: moetrace\.load reads it"
    ):
        moetrace.parse(tmp_path / "run")


def test_paths_may_be_text_or_paths_and_what_is_made_may_stand_for_its_name(
    shipped: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text((SOURCE.parent / "models" / "olmoe-1b-7b.json").read_text())
    assert moetrace.load_model(config) == moetrace.load_model(str(config))
    profile = SOURCE.parents[1] / "hw_profiles" / "cpu.toml"
    assert moetrace.load_hardware(profile) == moetrace.load_hardware(str(profile))
    run, cs3 = moetrace.load(shipped), moetrace.load_hardware("cs3")
    assert moetrace.parse(shipped, hardware=cs3).meta.hardware == "cs3"
    assert moetrace.scenarios("n_a=4", cs3, run) == moetrace.scenarios("n_a=4", "cs3", run)
    alone = moetrace.write_timeline(run, tmp_path / "t.json")
    assert moetrace.write_timeline(run, tmp_path / "two.json", beside=run) == 2 * alone


def test_tables_come_as_data_frames(shipped: Path) -> None:
    run = moetrace.load(shipped)
    held = moetrace.attribute(run, "cpu")
    assert held.to_pandas().equals(held.table.to_pandas()) and len(held.to_pandas()) == run.num_rows
    assert list(held.to_pandas(["family", "bound"])) == ["family", "bound"]
    assert list(held.to_pandas("bound")) == ["bound"] and list(run.to_pandas("op")) == ["op"]
    for table in (run, held, moetrace.replay(run, "cs3").run):
        with pytest.raises(moetrace.MoetraceError, match="unknown column 'familly': did you mean 'family'"):
            table.to_pandas(["op", "familly"])
    diff = moetrace.diff(run, run)
    assert diff.to_pandas()["family"].tolist() == [row["family"] for row in diff.facts["families"]]
    assert len(diff.to_pandas("op_layers")) == len(diff.facts["op_layers"])
    with pytest.raises(moetrace.MoetraceError, match="unknown table 'op': did you mean 'ops'"):
        diff.to_pandas("op")


def test_what_an_interpreter_prints_is_a_line(shipped: Path) -> None:
    run = moetrace.load(shipped)
    made = (
        run,
        moetrace.load_hardware("h100-sxm-x8"),
        moetrace.attribute(run, "cpu"),
        moetrace.replay(run, "cs3", moetrace.Scenario.of("n_a=2")),
        moetrace.simulate("olmoe-1b-7b", moetrace.Workload(1, 8, 2), "h100-sxm"),
        moetrace.simulate("olmoe-1b-7b", moetrace.Workload(1, 8, 1), "h100-sxm"),
        moetrace.diff(run, run),
        moetrace.make_report(run, machines=["cs3"]),
        run.routing,
    )
    for value in made:
        assert repr(value).startswith(f"<{type(value).__name__}") and len(repr(value)) < 200
    assert "n_a=2 on cs3" in repr(made[3]) and "TPOT" in repr(made[4]) and "TPOT" not in repr(made[5])


def test_one_name_stands_for_a_list_of_one(shipped: Path) -> None:
    """A string is not taken letter by letter."""
    run = moetrace.load(shipped)
    assert moetrace.scenarios("n_a=4", "cs3", run) == moetrace.scenarios(["n_a=4"], ["cs3"], run)
    found = moetrace.make_report(run, machines="cs3").facts["what_if"]["machines"]
    assert {row["hardware"] for row in found} == {"cs3"} and not any("error" in row for row in found)
    gates = [moetrace.diff(run, run, given).facts["gates"] for given in ("tpot<+3%", ["tpot<+3%"])]
    assert gates[0] == gates[1] and len(gates[0]) == 1
    load = moetrace.Workload(1, 8, 2)
    named, given = (moetrace.synthesize(m, load) for m in ("olmoe-1b-7b", moetrace.load_model("olmoe-1b-7b")))
    assert named.meta == given.meta and named.num_rows == given.num_rows
