"""Everything that is timed, by name.

    python -m benchmarks                    all of it: about half an hour
    python -m benchmarks steps --help       one of: steps, aggregate, growth, jobs, metrics

Each prints its table and writes JSON, with the hardware and the versions, to benchmarks/results/.
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("steps", "aggregate", "growth", "jobs", "metrics")


def main() -> None:
    name, *options = sys.argv[1:] or ("all",)
    if name not in (*NAMES, "all"):
        sys.exit(
            __doc__.strip() if name in ("-h", "--help") else f"{name}: one of {', '.join(NAMES)}"
        )
    for each in NAMES if name == "all" else (name,):
        sys.argv = [f"benchmarks.{each}", *options]
        importlib.import_module(f"benchmarks.{each}").main()


if __name__ == "__main__":
    main()
