"""How cost grows: with the batch, with the data set, and what reading the data costs beside a step.

python -m benchmarks.growth             a few minutes
python -m benchmarks.growth --quick     small sizes: does it run?
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro_bvae.cli.process import tune_allocator

from pyro_bvae import Config
from pyro_bvae.datasets import Data
from pyro_bvae.datasets.batches import batches

from .steps import eager_step
from .timing import interleaved, write

SHAPE = (1, 64, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Growth of cost with batch and data.")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rounds = 2 if args.quick else 10
    batch = batch_size(rounds, (16, 32) if args.quick else (32, 64, 128, 256))
    data = data_size(rounds, (100, 200) if args.quick else (2_000, 20_000, 100_000))
    rows = {"batch size": batch, "data size": data}
    write("growth", rows, args.out, args.quick)


def _config(batch_size: int) -> Config:
    return Config(
        dataset="x.npy", network="burgess", likelihood="bernoulli", latent_dim=10, epochs=1, lr=5e-4,
        batch_size=batch_size,
    ).resolved()  # fmt: skip


def batch_size(rounds: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """An eager step of a convolutional network: linear in the batch."""
    jobs = {str(size): eager_step(_config(size), SHAPE) for size in sizes}
    for job in jobs.values():
        job()
    rows = []
    for size, seconds in interleaved(jobs, rounds).items():
        rows.append(
            {"batch": int(size), "ms": 1e3 * seconds, "us_a_row": 1e6 * seconds / int(size)}
        )
        print(
            f"batch {size:>4}: {1e3 * seconds:8.1f} ms a step, {rows[-1]['us_a_row']:6.0f} us a row"
        )
    return rows


def data_size(rounds: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """A batch of 64 rows, resident or streamed from a file, beside the step that it feeds."""
    step = eager_step(_config(64), SHAPE)
    step()
    seconds = {"step": interleaved({"step": step}, max(rounds, 5))["step"]}
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            x = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
            path = Path(folder) / f"{n}.npy"
            np.save(path, x)
            seconds[f"resident, {n} rows"] = _feed(Data(x))
            seconds[f"streamed, {n} rows"] = _feed(Data(np.load(path, mmap_mode="r")))
    rows = []
    for name, value in seconds.items():
        rows.append({"feed": name, "ms": 1e3 * value, "of_step": value / seconds["step"]})
        print(f"{name:<24} {1e3 * value:8.3f} ms, {100 * rows[-1]['of_step']:6.2f} % of the step")
    return rows


def _feed(data: Data, count: int = 200) -> float:
    """CPU seconds a batch over whole epochs, the permutation and the reading thread among them."""
    taken, start = 0, time.process_time()
    for epoch in batches(data, 64, torch.Generator(), torch.device("cpu")):
        taken += sum(1 for _ in epoch)
        if taken >= count:
            break
    return (time.process_time() - start) / taken


if __name__ == "__main__":
    main()
