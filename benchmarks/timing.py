"""Side-by-side CPU times, and where they were measured."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(
    jobs: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of each job, one call of every job a round.

    CPU time, not wall time, and in turn: what else runs on the machine then disturbs all of them alike. On
    a GPU wall time, from an idle device to an idle device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = clock(device)
            job()
            seconds[name].append(clock(device) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock(device: str) -> float:
    """CPU seconds of this process; of a GPU, wall seconds once it has done all its work."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def hardware() -> dict[str, Any]:
    """The machine and the versions of what was timed."""
    import numpy
    import pyro
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": numpy.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, rows: Any, out: Path | None, quick: bool = False, **settings: Any) -> None:
    """The rows as JSON, with their settings and the hardware; of a quick run only where asked."""
    if quick and out is None:
        return
    device = "cuda" if settings.get("device", "cpu").startswith("cuda") else "cpu"
    path = out or RESULTS / f"{name}-{device}-{time.strftime('%Y-%m-%d')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, **settings, "hardware": hardware(), "rows": rows}
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Wrote {path}")
