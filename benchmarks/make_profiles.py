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
TABLES = ("moe_perf",)
SOURCE = "fit to NVIDIA AIConfigurator public performance tables (Apache-2.0) by benchmarks/make_profiles.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hw", nargs="+", default=["h100-sxm", "a100-sxm"], help="profiles to make")
    args = parser.parse_args()
    tables = [str(args.folder / f"{name}.parquet") for name in TABLES]
    for name in args.hw:
        profile = ROOT / "hw_profiles" / f"{name}.toml"
        verb = [sys.executable, "-m", "moetrace", "calibrate", *tables]
        wanted = ["--hw", name, "--source", SOURCE, "-o", str(profile), "--force"]
        subprocess.run([*verb, *wanted], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
