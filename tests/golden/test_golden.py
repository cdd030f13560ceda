"""Goldens, one small file per stage: what the shipped recordings parse to, and what their ops take.

A difference is written to tests/actual/ beside the golden's name. Rewrite on purpose only, after reading it:
``MOETRACE_GOLDEN=rewrite python -m pytest tests/golden``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moetrace.op import Op
from moetrace.ops import work
from moetrace.parse import parse, summary

HERE = Path(__file__).parent
TRACES = HERE.parents[1] / "traces" / "kineto"
NAMES = sorted(p.name for p in TRACES.iterdir() if p.is_dir())


def rounded(value: object) -> object:
    """Numbers to six digits: the golden is about meaning, not about the last bit."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def check(name: str, value: object) -> None:
    golden, text = HERE / f"{name}.json", json.dumps(rounded(value), indent=1, sort_keys=True) + "\n"
    if os.environ.get("MOETRACE_GOLDEN") == "rewrite":
        golden.write_text(text)
    if not golden.exists() or golden.read_text() != text:
        actual = HERE.parent / "actual"
        actual.mkdir(exist_ok=True)
        (actual / golden.name).write_text(text)
        pytest.fail(f"{golden} differs: see {actual / golden.name}")


@pytest.mark.parametrize("name", NAMES)
def test_parse(name):
    run = parse(TRACES / name)
    facts = summary(run)
    frame = run.to_pandas(["step", "layer", "kind"])
    frame = frame[frame.step == 1]
    kinds = {
        str(layer): here.kind.astype(str).value_counts().sort_index().to_dict()
        for layer, here in frame.groupby("layer", dropna=False)
    }
    check(
        f"parse-{name}",
        {"coverage": facts["coverage"], "steps": facts["steps"], "kinds of step 1 by layer": kinds},
    )


@pytest.mark.parametrize("name", NAMES)
def test_work(name):
    ops = sorted(text for text in parse(TRACES / name).codes("op")[1])
    takes = {text: work(Op.parse(text)) for text in ops}
    check(
        f"work-{name}",
        {
            text: [w.flops, w.weight_bytes, w.kv_bytes, w.act_bytes] if w.known else None
            for text, w in takes.items()
        },
    )
