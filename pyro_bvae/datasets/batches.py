"""Batches of a `Data` on the device that trains, epoch after epoch, in an order that a generator fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .data import Data, narrow, to_float

Batch = tuple[Tensor, Tensor | None, int]


def all_rows(batch: int) -> slice:
    """Those of a batch that one process alone trains on."""
    return slice(0, batch)


def batches(
    data: Data,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    with_labels: bool = False,
    skip: int = 0,
    own: Callable[[int], slice] = all_rows,
    dtype: torch.dtype | None = None,
) -> Iterator[Iterator[Batch]]:
    """Epoch after epoch, its batches: x float ``(batch, *x_shape)`` and labels, on ``device``, and batch.

    Rows in memory are moved to the device once, as uint8 where they are, and gathered there. Rows on disk,
    and rows that would take more than half of a GPU's free memory, are read one batch ahead by a
    thread, through pinned memory. The batches are the same either way.

    Args:
        data: the rows.
        batch_size: rows a batch; a last batch of one row is left out where batch_size > 1.
        generator: of the order, advanced once an epoch.
        device: where the batches go.
        with_labels: give labels too; else None.
        skip: leave out so many batches of the first epoch, unread.
        own: which rows of a batch of this size are given; others are not read.
        dtype: of x; float32 by default.
    """
    labels = _tensor(data.labels).to(device) if with_labels else None
    resident = narrow(_tensor(data.x), dtype).to(device) if _fits(data, device) else None

    def epoch(skip: int) -> Iterator[Batch]:
        order = torch.randperm(len(data), generator=generator)
        begun = starts(len(data), batch_size)[skip:]
        sizes = [min(batch_size, len(data) - start) for start in begun]
        wanted = [own(size) for size in sizes]
        parts = [slice(b + w.start, b + w.stop) for b, w in zip(begun, wanted, strict=True)]
        here = order.to(device)
        xs = (
            _read_ahead(data, [order[part] for part in parts], device, dtype)
            if resident is None
            else (resident[here[part]] for part in parts)
        )
        for part, size, x in zip(parts, sizes, xs, strict=True):
            yield to_float(x, dtype), None if labels is None else labels[here[part]], size

    yield epoch(skip)
    while True:
        yield epoch(0)


def starts(n: int, batch_size: int) -> range:
    """Where each batch of an epoch of ``n`` rows begins."""
    last = n - 1 if batch_size > 1 and n % batch_size == 1 and n > 1 else n
    return range(0, last, batch_size)


def _fits(data: Data, device: torch.device) -> bool:
    """Whether all of x may stay on ``device``."""
    if not data.resident or device.type != "cuda":
        return data.resident
    size = int(np.prod(data.x.shape)) * data.x.dtype.itemsize
    return size <= torch.cuda.mem_get_info(device)[0] / 2


def _read_ahead(
    data: Data, parts: list[Tensor], device: torch.device, dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """The rows of each part on ``device``; while one is used, a thread reads the next."""

    def read(rows: Tensor) -> Tensor:
        x = narrow(_tensor(data.batch(rows.numpy())), dtype)
        return x.pin_memory() if device.type == "cuda" else x

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(read, parts[0])
        for rows in [*parts[1:], None]:
            x = pending.result()
            if rows is not None:
                pending = pool.submit(read, rows)
            yield x.to(device, non_blocking=True)


def _tensor(array: object) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
