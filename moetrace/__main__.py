"""``python -m moetrace`` and the console script ``moetrace``."""

from __future__ import annotations

import sys

from moetrace.cli.main import run


def main() -> None:
    """Runs the command line and exits with its status."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
