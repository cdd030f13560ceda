"""Makes the fitted coefficients of the shipped profiles with `moetrace calibrate`, in place.

    python benchmarks/make_profiles.py FOLDER [--hw h100-sxm a100-sxm]

FOLDER holds the tables named below as Parquet: NVIDIA AIConfigurator's public performance tables (Apache-2.0) with the
columns `system` and `quality_flag`. Only the rows of a profile's own GPU are used; what a table does not cover stays as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Tables, and the most rows of one group: a module's form needs more of them than a kernel's.
TABLES = {
    ("moe_perf",): 1500,
    ("gemm_perf",): 1000,
    ("mla_bmm_perf",): 1000,
    ("generation_attention_perf", "generation_mla_perf"): 800,
    ("nccl_perf", "custom_allreduce_perf"): 3000,
    ("wideep_deepep_ll_perf", "wideep_deepep_normal_perf"): 3000,
}
ONLY = {"wideep_deepep_ll_perf": "h100-sxm"}  # measured on no other
SOURCE = "fit to NVIDIA AIConfigurator public performance tables (Apache-2.0) by benchmarks/make_profiles.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hw", nargs="+", default=["h100-sxm", "a100-sxm"], help="profiles to make")
    parser.add_argument("--tables", nargs="+", help="only groups of tables with one of these names")
    args = parser.parse_args()
    for name in args.hw:
        profile = ROOT / "hw_profiles" / f"{name}.toml"
        for tables, rows in TABLES.items():
            if (args.tables and not set(args.tables) & set(tables)) or ONLY.get(tables[0], name) != name:
                continue
            paths = [str(args.folder / f"{table}.parquet") for table in tables]
            verb = [sys.executable, "-m", "moetrace", "calibrate", *paths, "--max-rows", str(rows)]
            wanted = ["--hw", name, "--source", SOURCE, "-o", str(profile), "--force"]
            subprocess.run([*verb, *wanted], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
