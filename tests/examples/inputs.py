"""The files that examples take as given, made when a command first names one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

import moetrace
from moetrace.run import Run
from tests.conftest import REPO, SHIPPED
from tests.made import rank_traces, write

TINY = {
    "model_type": "olmoe", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 16, "norm_topk_prob": False,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
GENERATE = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("tiny.json"))
model.generate(torch.ones(2, 4, dtype=torch.long), max_new_tokens=4, min_new_tokens=4)
"""
MOE_OPS = {
    "kind": ["moe_experts"] * 4, "dtype": ["bf16"] * 4, "tokens": [1, 16, 64, 256], "hidden": [2048] * 4,
    "inter": [768] * 4, "experts": [128] * 4, "topk": [8] * 4,
}  # fmt: skip


@cache
def recorded() -> Run:
    return moetrace.parse(SHIPPED)


def _run(folder: Path) -> None:
    recorded().save(folder / "run")


def _before(folder: Path) -> None:
    _predicted("n_a=8").save(folder / "before")


def _after(folder: Path) -> None:
    _predicted("n_a=6").save(folder / "after")


@cache
def _predicted(edit: str) -> Run:
    return moetrace.replay(recorded(), "h100-sxm", moetrace.Scenario.of(edit)).run


def _traces(folder: Path) -> None:
    (folder / "traces").symlink_to(REPO / "traces")


def _profiles(folder: Path) -> None:
    (folder / "hw_profiles").symlink_to(REPO / "hw_profiles")


def _trace(folder: Path) -> None:
    shutil.copy(SHIPPED / "trace.json.gz", folder)


def _bare(folder: Path) -> None:
    shutil.copy(SHIPPED / "trace.json.gz", folder / "bare.json.gz")


def _routing(folder: Path) -> None:
    shutil.copy(SHIPPED / "routing.parquet", folder)


def _ranks(folder: Path) -> None:
    (folder / "rank-traces").mkdir()
    for rank, events in enumerate(rank_traces([100, 130, 110, 100], clocks=[0, 2000, -700, 5])):
        path = folder / "rank-traces" / f"trace-rank{rank}.json"
        write(path, events, distributedInfo={"rank": rank, "world_size": 4})


def _sqlite(folder: Path) -> None:
    from tests.unit.test_nsys import save, small

    save(folder / "out.sqlite", **small())


def _ops(folder: Path) -> None:
    pd.DataFrame(MOE_OPS).to_parquet(folder / "ops.parquet")


def _measured(folder: Path) -> None:
    """A table as a user measures one: 48 MoE modules, here the law's own times and 2 % of noise."""
    shapes = ((2048, 768, 128), (4096, 1536, 128), (7168, 2048, 256), (4096, 14336, 8))
    rows = [
        {
            "kind": "moe_experts",
            "dtype": "bf16",
            "tokens": t,
            "hidden": h,
            "inter": i,
            "experts": e,
            "topk": 2,
        }
        for h, i, e in shapes
        for t in (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512)
    ]
    table = pd.DataFrame(rows)
    seconds = moetrace.cost(table, "h100-sxm").column("time_s").to_numpy()
    noise = np.exp(np.random.default_rng(0).normal(0, 0.02, len(rows)))
    table.assign(kind="moe_module", seconds=1.1 * seconds * noise).to_csv(folder / "mine.csv", index=False)


def _module_table(folder: Path) -> None:
    table = pd.DataFrame(MOE_OPS).assign(kind="moe_module", system="h100_sxm")
    times = moetrace.cost(table.assign(kind="moe_experts"), "h100-sxm").column("time_s").to_numpy()
    table.assign(latency=times * 1e3).to_parquet(folder / "moe_perf.parquet")


def _figures(folder: Path) -> None:
    lines = (REPO / "moetrace" / "validate" / "published.csv").read_text().splitlines()
    kept = [lines[0], *(line for line in lines if line.startswith("OEA3-"))]
    (folder / "figures.csv").write_text("\n".join(kept) + "\n")


def _config(folder: Path) -> None:
    shutil.copy(REPO / "moetrace" / "models" / "olmoe-1b-7b.json", folder / "config.json")


def _tiny(folder: Path) -> None:
    (folder / "tiny.json").write_text(json.dumps(TINY))


def _script(folder: Path) -> None:
    _tiny(folder)
    (folder / "generate.py").write_text(GENERATE)


FILES: dict[str, Callable[[Path], None]] = {
    "run": _run, "before": _before, "after": _after, "traces": _traces, "hw_profiles": _profiles,
    "trace.json.gz": _trace, "bare.json.gz": _bare,
    "rank-traces": _ranks,
    "routing.parquet": _routing, "out.sqlite": _sqlite, "ops.parquet": _ops, "mine.csv": _measured,
    "moe_perf.parquet": _module_table, "figures.csv": _figures, "config.json": _config, "tiny.json": _tiny,
    "generate.py": _script,
}  # fmt: skip


def provide(words: list[str], folder: Path) -> None:
    """Makes the files that a command takes and that no earlier one wrote: any word, or the head of a path, in FILES."""
    outputs = {words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-o", "--grid")}
    for word in words:
        name = word.partition("/")[0]
        if name in FILES and word not in outputs and not (folder / name).exists():
            FILES[name](folder)


def names(wanted: set[str]) -> dict[str, object]:
    """What a block of Python takes as given: a small model, and what to call it with."""
    given: dict[str, object] = {}
    if wanted & {"model", "inputs", "batches"}:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(0)
        kind = TINY["model_type"]
        given["model"] = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{k: v for k, v in TINY.items() if k != "model_type"})
        )
        tokens = torch.ones(2, 4, dtype=torch.long)
        given["inputs"] = {"input_ids": tokens}
        given["batches"] = [given["inputs"]] * 2
    return given
