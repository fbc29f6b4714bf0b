"""Whole commands, from Enter to the end, in processes of their own.

    python -m benchmarks.jobs               the README's first command among them: a minute or two
    python -m benchmarks.jobs --quick       fewer training steps

Wall seconds (of this machine, as busy as it is), CPU seconds, and of training steps alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .timing import write

COMMANDS = {
    "help": ["--help"],
    "help of train": ["train", "--help"],
    "a wrong option": ["train", "--dataset", "spiral"],
    "spirals": ["train", "--prior", "mixture", "--alpha", "1", "--out", "run"],
    "digits": ["train", "--dataset", "digits", "--out", "run"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole commands.")
    parser.add_argument("commands", nargs="*", help=f"of: {', '.join(COMMANDS)}")
    parser.add_argument("--quick", action="store_true", help="two training steps each")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of these is kept")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = []
    for name in args.commands or COMMANDS:
        words = COMMANDS[name] + (
            ["--steps", "2"] if args.quick and "--out" in COMMANDS[name] else []
        )
        row = min((run(words) for _ in range(args.repeat)), key=lambda found: found["wall_s"])
        rows.append({"command": name, **row})
        print(f"{name:<16} " + "  ".join(f"{k} {v:6.2f}" for k, v in row.items()), flush=True)
    write("jobs", rows, args.out, args.quick, fastest_of=args.repeat)


def run(words: list[str]) -> dict[str, Any]:
    """One command in an empty folder, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pyro_bvae.cli", *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=words[-1] != "spiral",
        )
        row = {"wall_s": time.perf_counter() - start}
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        row["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured = Path(folder) / "run" / "metrics.json"
        if measured.exists():
            row["training_s"] = json.loads(measured.read_text())["training_seconds"]
    return {name: round(value, 3) for name, value in row.items()}


if __name__ == "__main__":
    main()
