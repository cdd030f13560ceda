"""How many rows an index picks, where experts run one by one: torch records the rows that it picks from, not how many."""

from __future__ import annotations

import pandas as pd
import pytest

from moetrace import ops
from moetrace.op import Op
from moetrace.ops import Seen
from moetrace.parse import parse
from tests.made import event, write
from tests.unit.test_placing import ATTENTION, BF16, eager, linear, plain

INDEX, ADD = "void at::native::index_elementwise_kernel<128, 4>", "void at::native::indexFuncSmallIndex<bf16>"
SILU = "void at::native::vectorized_elementwise_kernel<4>"
FEW = (1, 3, 2)  # rows of each expert, of the 8 tokens that `test_placing` has
END = [plain("aten::rsqrt", 1), linear(999, 64)]
CHOICE = [linear(4, 64), ("aten::topk", [[8, 4]], "void at::native::sbtopk::gatherTopK<float>")]


def index(*shape: int) -> tuple[str, list[list[int]], str]:
    return "aten::index", [list(shape), []], INDEX


def expert(rows: int) -> list[tuple[str, list[list[int]], str]]:
    """One expert's rows as transformers runs them: picked, multiplied, weighed and added back."""
    return [
        index(8, 64),
        linear(192, 64, rows),
        ("aten::silu", [[rows, 96]], SILU),
        linear(64, 96, rows),
        index(8, 2, 1),
        ("aten::index_add_", [[8, 64], [], [rows], [rows, 64]], ADD),
    ]


def picked(path, block, on_gpu=False) -> pd.DataFrame:
    """The indices and additions of a decode step whose two layers have such a block."""
    calls = [*(ATTENTION + CHOICE + block) * 2, *END]
    if on_gpu:
        eager(path, calls)
    else:
        name = "execute_context_0(0)_generation_8(8)"
        events = [event(name, "user_annotation", 0, 20 * len(calls), tid=7)]
        events += [
            event(
                op, "cpu_op", 20 * i, 15, tid=7, **{"Input Dims": shapes, "Input type": [BF16] * len(shapes)}
            )
            for i, (op, shapes, _) in enumerate(calls)
        ]
        write(path, events)
    run = parse(path)
    frame = run.to_pandas(["kernel", "op", "act_bytes"])
    return frame[frame.kernel.isin(["aten::index", "aten::index_add_", INDEX, ADD])]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_an_index_for_one_expert_has_the_rows_that_its_gemm_multiplies(tmp_path, on_gpu):
    found = picked(tmp_path / "t.json", [op for rows in FEW for op in expert(rows)], on_gpu)
    sizes = [Op.parse(text)["elements"] for text in found.op.astype(str)]
    assert sizes == [n for rows in FEW for n in (64 * rows, rows, 64 * rows)] * 2
    # states read and written, weights read and written, rows read, added to and written: bf16
    assert found.act_bytes.sum() == 2 * sum(2 * (64 * n + n + n * 64) + n * 64 for n in FEW) * 2


def test_an_index_whose_rows_several_experts_share_stays_whole(tmp_path):
    block = [index(8, 64), *(op for rows in FEW for op in expert(rows)[1:4])]
    found = picked(tmp_path / "t.json", block)
    assert [Op.parse(text)["elements"] for text in found.op.astype(str)] == [8 * 64] * 2


def test_an_index_of_another_width_than_the_gemm_behind_it_stays_whole(tmp_path):
    found = picked(tmp_path / "t.json", [index(8, 32), *expert(2)[1:4]])
    assert [Op.parse(text)["elements"] for text in found.op.astype(str)] == [8 * 32] * 2


@pytest.mark.parametrize(("role", "elements"), [("picks 3", 192), ("", 512)])
def test_a_role_that_says_the_rows_goes_before_the_shapes(role: str, elements: int) -> None:
    seen = Seen("", "aten::index", ((8, 64), ()), ("bf16", ""), tokens=8, role=role)
    assert ops.build("elementwise", seen) == Op.of("elementwise", "bf16", elements=elements)
